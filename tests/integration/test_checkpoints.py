"""Studies that start from checkpoints, and `deepnarrow transfer`, on the toy."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import toy

from deepnarrow.assemble import make_model
from deepnarrow.cli import main
from deepnarrow.config import CheckpointSource, ModalityStudy, StudyConfig, load_config
from deepnarrow.errors import InputError, Preempted
from deepnarrow.foreign import import_checkpoint
from deepnarrow.protocol import Budget, FewShot, FineTune, OptimizerConfig, Protocol
from deepnarrow.store import Store
from deepnarrow.study import dry_run, run_study

TINY = toy.toy_modality().presets["tiny"].shape
SETTINGS = toy.toy_modality().options
TRANSFER = Protocol(
    few_shot=FewShot(("toy_task",), shots=(1, 5), seeds=2),
    fine_tune=FineTune(("toy_task",), examples=16 * 20, batch_size=16, seeds=2,
                       optimizer=OptimizerConfig("adamw", 3e-3, "constant")))


@pytest.fixture(scope="module")
def registry():
    return toy.toy_registry()


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])


def save_npz(path, shape=TINY, seed=0):
    model = make_model(toy.toy_modality(), toy.toy_architecture(), shape, SETTINGS)
    write = toy.toy_modality().checkpoint_formats["toy_npz"].write
    assert write is not None
    write(str(path), shape, SETTINGS, model.init(jax.random.key(seed)))
    return CheckpointSource(path.stem, "toy_npz", str(path))


def make_config(*sources, protocol=TRANSFER, seeds=(0,), **settings):
    study = ModalityStudy("toy", (), protocol, checkpoints=tuple(sources), **settings)
    return StudyConfig("released", seeds, {"toy": study})


def run(config, workdir, registry):
    run_study(config, workdir, registry)
    with Store(workdir / "records.sqlite", read_only=True) as store:
        return {record.name: record for record in store.records()}


def values(record, stage, metric, origin="pretrained"):
    return [(m.shots, m.shot_seed, m.finetune_seed, m.value) for m in record.metrics
            if (m.stage, m.metric, m.origin) == (stage, metric, origin)]


def test_checkpoints_are_transferred_once_and_their_content_is_recorded(tmp_path, registry):
    one = dataclasses.replace(save_npz(tmp_path / "one.npz"), step=500)
    two = save_npz(tmp_path / "two.npz", TINY.replace(d_ff=24), seed=1)
    found = run(make_config(one, two, seeds=(0, 1, 2)), tmp_path / "study", registry)
    assert set(found) == {"one@500", "two"}
    for record in found.values():
        assert record.status == "done"
        assert record.config["checkpoint"]["format"] == "toy_npz"
        assert len(record.config["checkpoint"]["sha256"]) == 64
        assert len(values(record, "few_shot", "accuracy")) == 4
        assert len(values(record, "fine_tune", "accuracy")) == 2
        assert values(record, "few_shot", "accuracy", "untrained")
        assert not [m for m in record.metrics if m.stage == "upstream"]
        assert record.costs["params_total"] > 0
        assert record.costs["flops_train_total"] is record.costs["tokens_seen"] is None
        assert "path" not in json.dumps(record.config["checkpoint"])
    assert found["one@500"].config["checkpoint"]["step"] == 500
    assert found["two"].shape["d_ff"] == 24
    assert run_study(make_config(one, two), tmp_path / "study", registry).trained == 0


def test_the_key_follows_the_content_not_the_path_or_name(tmp_path, registry):
    source = save_npz(tmp_path / "one.npz")
    moved = tmp_path / "moved.npz"
    moved.write_bytes((tmp_path / "one.npz").read_bytes())
    run_study(make_config(source), tmp_path / "study", registry)
    again = make_config(CheckpointSource("other", "toy_npz", str(moved)))
    assert run_study(again, tmp_path / "study", registry).trained == 0
    save_npz(moved, seed=5)
    assert run_study(again, tmp_path / "study", registry).trained == 1


def test_the_same_weights_twice_are_run_once_and_it_is_said(tmp_path, registry, capsys):
    source = save_npz(tmp_path / "one.npz")
    rows = dry_run(make_config(source, dataclasses.replace(source, name="copy")), registry)
    assert [row["name"] for row in rows] == ["one"]
    assert "note: toy: copy is one; it is run once" in capsys.readouterr().err
    assert (rows[0]["steps"], rows[0]["flops_train_total"], rows[0]["disk_bytes_estimate"]) == (
        0, 0.0, 0)
    assert rows[0]["params"] == 64 + 2 * (512 + 32 + 512) + 51


def test_a_study_of_its_own_run_equals_the_transfer_it_measured(tmp_path, registry):
    """Pre-train with transfer stages; start from the run it left: the same numbers."""
    budget = toy_protocol(steps=20)
    study = ModalityStudy("toy", ("tiny",), budget, architectures=("toy_mlp",))
    trained = run(StudyConfig("trained", (0,), {"toy": study}), tmp_path / "a", registry)["tiny"]
    source = CheckpointSource("again", "run", str(tmp_path / "a" / "runs" / trained.key))
    again = run(make_config(source, evaluate_upstream=True), tmp_path / "b", registry)["again"]
    for stage, metric in (("few_shot", "accuracy"), ("fine_tune", "accuracy"),
                          ("upstream", "accuracy"), ("upstream", "loss")):
        assert values(trained, stage, metric)
        np.testing.assert_allclose(
            [v[-1] for v in values(again, stage, metric)],
            [v[-1] for v in values(trained, stage, metric)], rtol=1e-6)


def toy_protocol(steps, **optimizer):
    return dataclasses.replace(
        TRANSFER, batch_size=16, budget=Budget("examples", 16 * steps),
        optimizer=OptimizerConfig("adamw", 3e-3, "cosine", warmup_steps=5, **optimizer))


def test_the_moving_average_is_what_a_run_gives(tmp_path, registry):
    study = ModalityStudy("toy", ("tiny",), toy_protocol(20, ema_decay=0.9),
                          architectures=("toy_mlp",))
    trained = run(StudyConfig("trained", (0,), {"toy": study}), tmp_path / "a", registry)["tiny"]
    source = CheckpointSource("again", "run", str(tmp_path / "a" / "runs" / trained.key))
    again = run(make_config(source, evaluate_upstream=True), tmp_path / "b", registry)["again"]
    np.testing.assert_allclose(values(again, "upstream", "loss")[0][-1],
                               values(trained, "upstream", "loss")[0][-1], rtol=1e-6)


def test_a_checkpoint_of_other_classes_is_transferred_but_not_evaluated(tmp_path, registry):
    source = save_npz(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as arrays:
        changed = {**arrays, "head/kernel": np.zeros((16, 7), np.float32),
                   "head/bias": np.zeros(7, np.float32)}
    np.savez(tmp_path / "one.npz", **changed)
    assert run(make_config(source), tmp_path / "a", registry)["one"].status == "done"
    failed = run(make_config(source, evaluate_upstream=True), tmp_path / "b", registry)["one"]
    assert "cannot be evaluated upstream" in failed.environment["error"]
    assert "head/kernel" in failed.environment["error"]


def test_a_damaged_checkpoint_fails_its_trial_with_the_reason(tmp_path, registry):
    source, other = save_npz(tmp_path / "one.npz"), save_npz(tmp_path / "two.npz", seed=1)
    with np.load(tmp_path / "one.npz") as arrays:
        changed = {**arrays, "encoder/layers/mlp/wi/bias": np.zeros((2, 31), np.float32)}
    np.savez(tmp_path / "one.npz", **changed)
    found = run(make_config(source, other), tmp_path / "study", registry)
    assert (found["one"].status, found["two"].status) == ("failed", "done")
    assert "wi/bias (got float32[2, 31]; expected float32[2, 32])" in found[
        "one"].environment["error"]


@pytest.mark.parametrize(("change", "message"), [
    ({"path": "/nowhere"}, r"toy.checkpoints\[0\].path: no such file .*'one'.*got /nowhere"),
    ({"format": "toy_np"}, r"checkpoints\[0\].format: .*one of run, toy_npz.*mean toy_npz"),
    ({"format": "run"}, r"is none: run.json is missing"),
])
def test_checkpoints_that_cannot_be_opened_are_refused_before_anything_is_written(
    tmp_path, registry, change, message
):
    source = dataclasses.replace(save_npz(tmp_path / "one.npz"), **change)
    with pytest.raises(InputError, match=message):
        run_study(make_config(source), tmp_path / "study", registry)
    assert not (tmp_path / "study").exists()


def test_a_run_of_another_modality_is_refused(tmp_path, registry):
    save_npz(tmp_path / "one.npz")
    import_checkpoint("toy", "toy_npz", tmp_path / "one.npz", tmp_path / "run", registry)
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"modality": "toy"', '"modality": "other"'))
    with pytest.raises(InputError, match=r"another modality \(got other; expected toy"):
        dry_run(make_config(CheckpointSource("x", "run", str(tmp_path / "run"))), registry)


CONFIG = """
def get_config():
    few_shot = {"tasks": ("toy_task",)}
    return {"name": "x", "seeds": (0,), "modalities": {"toy": {%s}}}
"""
ONE = '{"name": "a", "format": "toy_npz", "path": "a.npz"}'
FEW = '"protocol": {"few_shot": few_shot}'
BUDGET = ('"protocol": {"few_shot": few_shot, "batch_size": 2, "budget": {"kind": "examples", '
          '"amount": 8}, "optimizer": {"name": "adamw", "learning_rate": 1e-3, '
          '"schedule": "cosine"}}')


@pytest.mark.parametrize(("text", "message"), [
    (f'"checkpoints": ({ONE}, {ONE}), {FEW}', r"checkpoints.*has a value twice.*got a"),
    (f'"checkpoints": ({ONE},), "shapes": ("tiny",), {FEW}', "shapes: do not go with checkpoints"),
    (f'"checkpoints": ({ONE},), {BUDGET}', "protocol: has batch_size, budget, optimizer, but"),
    (f'"checkpoints": ({ONE},), "protocol": {{}}', "has nothing to do with the checkpoints"),
    (f'"checkpoints": ({{"name": "a", "path": "b"}},), {FEW}', r"checkpoints\[0\].format: is miss"),
    (f'"checkpoints": ({{**{ONE}, "step": -1}},), {FEW}', r"checkpoints\[0\].step: is out of ran"),
    (f'"checkpoints": ({{**{ONE}, "stepp": 1}},), {FEW}', "did you mean step"),
    (f'"shapes": ("tiny",), {FEW}', "protocol: lacks batch_size, budget, optimizer"),
    (f'"shapes": ("tiny",), "evaluate_upstream": True, {BUDGET}', "evaluate_upstream: is for"),
    (FEW, "shapes: is empty"),
])
def test_configs_that_make_no_sense_are_named(tmp_path, text, message):
    (tmp_path / "config.py").write_text(CONFIG % text)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "config.py")


def test_a_config_with_checkpoints_loads(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG % f'"checkpoints": ({ONE},), {FEW}')
    config = load_config(tmp_path / "config.py")
    assert config.modalities["toy"].checkpoints == (CheckpointSource("a", "toy_npz", "a.npz"),)


# --- deepnarrow transfer --------------------------------------------------------------------------
@pytest.fixture
def transfer(tmp_path, registry, monkeypatch, capsys):
    """`transfer(*arguments) -> (exit code, stdout, stderr)` on an imported toy."""
    save_npz(tmp_path / "one.npz")
    import_checkpoint("toy", "toy_npz", tmp_path / "one.npz", tmp_path / "run", registry)
    monkeypatch.setattr("deepnarrow.plugins.registry", lambda: registry)

    def call(*arguments):
        code = main(["transfer", str(tmp_path / "run"), *arguments])
        return code, *capsys.readouterr()

    return call


QUICK = ("--set", "protocol.fine_tune.examples=64", "--set", "protocol.few_shot.shots=(1, 5)")


def test_transfer_prints_the_protocol_and_a_table(transfer):
    code, out, _ = transfer("--tasks", "toy_task", *QUICK)
    assert code == 0
    assert "examples 64, batch_size 32" in out
    assert "learning_rate 0.001" in out
    assert "tiny: done" in out
    for words in (("few_shot", "accuracy", "5", "pretrained"), ("few_shot", "chance", "raw"),
                  ("fine_tune", "accuracy", "pretrained"), ("fine_tune", "majority", "raw")):
        assert any(all(word in line for word in words) for line in out.splitlines()), words


def test_transfer_as_json_has_every_value(transfer, tmp_path):
    workdir = ("--workdir", str(tmp_path / "kept"))
    code, out, _ = transfer("--tasks", "toy_task", *QUICK, *workdir, "--json")
    document = json.loads(out)
    assert (code, document["status"], document["source"]["format"]) == (0, "done", "toy_npz")
    rows = {r["metric"]: r for r in document["results"]
            if (r["stage"], r["shots"], r["origin"]) == ("few_shot", 5, "pretrained")}
    assert set(rows) == {"accuracy", "accuracy_l2_auto", "l2"}
    for row in rows.values():
        assert len(row["values"]) == 3
        assert row["mean"] == pytest.approx(np.mean(row["values"]))
        assert row["sd"] == pytest.approx(np.std(row["values"], ddof=1))
    assert transfer("--tasks", "toy_task", *QUICK, *workdir, "--json")[1] == out  # not run again


@pytest.mark.parametrize(("workdir", "said"), [
    ((), "stopped: nothing is kept; with --workdir DIR"),
    (("--workdir", "w"), "goes on from here")])
def test_transfer_says_what_is_kept_when_it_is_stopped(transfer, tmp_path, monkeypatch, workdir,
                                                       said):
    monkeypatch.chdir(tmp_path)

    def stopped(*_):
        raise Preempted("transfer in its folder")

    monkeypatch.setattr("deepnarrow.study.train_one", stopped)
    code, out, err = transfer("--tasks", "toy_task", *QUICK, *workdir)
    assert (code, out) == (75, "")
    assert said in err
    assert ("the same command goes on" in err) == bool(workdir)


def test_transfer_takes_the_stages_of_a_config(transfer, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG % f'"shapes": ("tiny",), {BUDGET}')
    code, out, _ = transfer("--config", str(tmp_path / "config.py"), "--json",
                            "--set", "protocol.few_shot.shots=(2,)")
    protocol = json.loads(out)["protocol"]
    assert code == 0
    assert protocol["fine_tune"] is None
    assert (protocol["few_shot"]["tasks"], protocol["few_shot"]["shots"]) == (["toy_task"], [2])


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "--tasks is missing"), (("--tasks", "toy_tsk"), "did you mean toy_task?"),
    (("--tasks", "toy_task,"), "has no such task (got ''"),
    (("--tasks", "toy_task", "--set", "protocol.fine_tune.exampels=3"), "did you mean examples?"),
    (("--tasks", "toy_task", "--set", "data.nois=3"), "did you mean noise?"),
    (("--tasks", "toy_task", "--set", "protocol.few_shot.shots=(99,)"), "too few examples"),
    (("--config", "nowhere.py"), "no such file"),
])
def test_transfer_refuses_bad_arguments(transfer, arguments, message):
    code, out, err = transfer(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
