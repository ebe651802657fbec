"""`deepnarrow train`, and what fine-tuning leaves in a record, on the toy modality."""

from __future__ import annotations

import dataclasses
import json
import types

import numpy as np
import pytest
import toy

from deepnarrow import cli, hookimpl
from deepnarrow.config import load_config
from deepnarrow.errors import InputError
from deepnarrow.plugins import load_plugins
from deepnarrow.signals import StopRequest
from deepnarrow.store import Store
from deepnarrow.trials import open_data, plan_trials

CONFIG = """
def get_config():
    adamw = {"name": "adamw", "learning_rate": 0.003, "schedule": "rsqrt", "warmup_steps": 5,
             "cooldown_steps": 10, "timescale": 20}
    protocol = {
        "batch_size": 16, "budget": {"kind": "epochs", "amount": 5}, "optimizer": adamw,
        "fine_tune": {"tasks": ("toy_task",), "examples": 320, "batch_size": 16,
                      "optimizer": {"name": "adamw", "learning_rate": 0.003,
                                    "schedule": "constant"}}}
    toy = {"shapes": ("tiny",), "architectures": ("toy_mlp",), "protocol": protocol}
    return {"name": "one", "seeds": (0,), "modalities": {"toy": toy},
            "run": {"log_every": 10, "checkpoint_every": 10}}
"""
PROTOCOL = "modalities.toy.protocol"


def two_tasks(data_options, options):
    """The toy's task, and one with the classes moved on and half of the examples for training."""
    task = toy._tasks(data_options, options)["toy_task"]

    def examples(split):
        source = task.examples("validation" if split == "train" else split)

        def load(index, rng):
            example = source.load(index, rng)
            return example | {"inputs": example["inputs"][::-1].copy()}

        return dataclasses.replace(source, load=load, content_hash=f"second {split}")

    second = dataclasses.replace(task, name="second", examples=examples)
    return {"toy_task": task, "second": second}


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """`train(*settings)` -> (exit code, stdout, stderr) of one config in one workdir."""
    plugin = types.ModuleType("toy_plugin")
    modality = dataclasses.replace(toy.toy_modality(), tasks=two_tasks)

    @hookimpl
    def deepnarrow_register_modalities():
        return [modality]

    @hookimpl
    def deepnarrow_register_architectures():
        return [toy.toy_architecture()]

    vars(plugin).update(deepnarrow_register_modalities=deepnarrow_register_modalities,
                        deepnarrow_register_architectures=deepnarrow_register_architectures)
    registry = load_plugins([], extra=[plugin])
    monkeypatch.setattr("deepnarrow.plugins.registry", lambda: registry)
    config = tmp_path / "one.py"
    config.write_text(CONFIG)

    def run(*settings, workdir="work", flags=()):
        sets = [part for setting in settings for part in ("--set", setting)]
        code = cli.main(["train", str(config), "--workdir", str(tmp_path / workdir), *sets, *flags])
        return code, *capsys.readouterr()

    return run


def record(workdir):
    with Store(workdir / "records.sqlite", read_only=True) as store:
        (found,) = store.records()
    return found


def test_a_run_ends_with_its_checkpoint_and_is_not_run_twice(train, tmp_path):
    code, out, err = train(flags=("--json",))
    found = json.loads(out)
    assert code == 0
    assert (found["status"], found["trained_now"]) == ("done", True)
    assert (found["steps"], found["total_steps"]) == (30, 30)  # 5 epochs of 96, 16 a step
    assert 0 < found["loss"] < 1
    assert found["checkpoint"] == f"{tmp_path}/work/runs/{found['key']}/checkpoints/30"
    assert {m["stage"] for m in found["metrics"]} == {"upstream", "fine_tune"}
    assert "[1/1]" in err
    again = json.loads(train(flags=("--json",))[1])
    assert again == {**found, "trained_now": False}
    code, out, _ = train()
    assert code == 0
    assert all(word in out for word in ("30 of 30", "upstream loss", "done", found["checkpoint"]))
    assert not (tmp_path / "work" / "report").exists()


def test_a_config_of_several_runs_is_refused_with_how_to_narrow_it(train, tmp_path):
    several = ("seeds=(3, 4)", "modalities.toy.shapes=('tiny', 'base')",
               "modalities.toy.architectures=('toy_mlp', 'transformer')")
    code, out, err = train(*several)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines == [
        "error: deepnarrow train: takes one training run, but seeds has 2 (got 3, 4; expected "
        'one). Hint: --set "seeds=(3,)"',
        "error: deepnarrow train: takes one training run, but modalities.toy.shapes has 2 (got "
        "tiny, base; expected one). Hint: --set \"modalities.toy.shapes=('tiny',)\"",
        "error: deepnarrow train: takes one training run, but modalities.toy.architectures has 2 "
        "(got toy_mlp, transformer; expected one). Hint: --set "
        "\"modalities.toy.architectures=('toy_mlp',)\""]
    assert not (tmp_path / "work").exists()


def test_a_modality_set_to_none_is_left_out(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(CONFIG.replace('{"toy": toy}', '{"toy": toy, "other": toy}'))
    assert list(load_config(path).modalities) == ["toy", "other"]
    assert list(load_config(path, ["modalities.other=None"]).modalities) == ["toy"]
    with pytest.raises(InputError, match="modalities: is empty"):
        load_config(path, ["modalities.other=None", "modalities.toy=None"])


def test_a_run_that_diverges_exits_with_3(train):
    code, out, _ = train(f"{PROTOCOL}.optimizer.learning_rate=1e30", flags=("--json",))
    found = json.loads(out)
    assert (code, found["status"], found["loss"]) == (3, "diverged", None)
    assert found["steps"] < 30
    assert train(f"{PROTOCOL}.optimizer.learning_rate=1e30")[0] == 3


def test_a_run_that_fails_says_why(train):
    code, _, err = train(f"{PROTOCOL}.fine_tune.options={{'num_classes': 3}}")
    assert code == 0, err  # fewer logits than labels train: the task's options are the user's
    code, out, err = train(f"{PROTOCOL}.fine_tune.train=head",
                           f"{PROTOCOL}.fine_tune.options={{'compute_dtype': 'float99'}}",
                           workdir="other", flags=("--json",))
    assert code == 1
    assert json.loads(out)["status"] == "failed"
    assert "float99" in err.splitlines()[-1]


class StopAfter(StopRequest):
    """A stop request that somebody makes after so many polls."""

    def __init__(self, polls):
        super().__init__()
        self.polls = polls

    def __call__(self):
        self.polls -= 1
        self.requested |= self.polls <= 0
        return self.requested


def test_a_run_that_is_stopped_exits_with_75_and_goes_on(train, tmp_path, monkeypatch):
    assert train(workdir="unbroken")[0] == 0
    for polls in (7, 20, 15):  # twice in training, once in fine-tuning
        with monkeypatch.context() as patch:
            patch.setattr("deepnarrow.signals.StopRequest", lambda n=polls: StopAfter(n))
            code, out, err = train()
        assert (code, out) == (75, "")
        assert "the same command goes on from here" in err
    assert train()[0] == 0
    a, b = record(tmp_path / "work"), record(tmp_path / "unbroken")
    assert (a.key, a.metrics, a.curve, a.outcomes) == (b.key, b.metrics, b.curve, b.outcomes)


# --- fine-tuning in a record ----------------------------------------------------------------------
@pytest.mark.parametrize("mixture", ["single", "proportional"])
def test_every_task_leaves_its_metrics_and_the_step_that_was_chosen(train, tmp_path, mixture):
    code, _, err = train(
        f"{PROTOCOL}.fine_tune.tasks=('toy_task', 'second')", f"{PROTOCOL}.fine_tune.seeds=2",
        f"{PROTOCOL}.fine_tune.mixture={mixture}", f"{PROTOCOL}.fine_tune.select=best",
        f"{PROTOCOL}.fine_tune.eval_every=5", f"{PROTOCOL}.optimizer.ema_decay=0.9")
    assert code == 0, err
    found = record(tmp_path / "work")
    rows = {(m.task, m.metric, m.finetune_seed): m.value for m in found.metrics
            if m.stage == "fine_tune"}
    assert rows.keys() == {
        (task, metric, seed) for task in ("toy_task", "second")
        for metric, seeds in (("accuracy", (0, 1)), ("validation/accuracy", (0, 1)),
                              ("loss", (0, 1)), ("majority", (None,))) for seed in seeds}
    assert all(m.direction == "min" and 0 < m.value < 10 for m in found.metrics
               if (m.stage, m.metric) == ("fine_tune", "loss"))
    points = {(p.name, p.step): p.value for p in found.curve if p.stage == "fine_tune"}
    for task in ("toy_task", "second"):
        for seed in (0, 1):
            place = (f"{task}/seed{seed}/validation/accuracy" if mixture == "single"
                     else f"mixture/seed{seed}/validation/{task}/accuracy")
            values = {step: v for (name, step), v in points.items() if name == place}
            assert list(values) == [5, 10, 15, 20]
            best = max(values, key=values.__getitem__)
            ((step, value),) = [(step, v) for (name, step), v in points.items()
                                if name == f"{task}/seed{seed}/selected/validation/accuracy"]
            assert (step, value) == (best, values[best])
            assert rows[task, "validation/accuracy", seed] == values[best]
    outcomes = {(o.task, o.finetune_seed): o.values for o in found.outcomes}
    for (task, seed), values in outcomes.items():
        assert rows[task, "accuracy", seed] == pytest.approx(np.mean(values))
    assert len(outcomes) == 4


@pytest.mark.usefixtures("train")
def test_new_settings_are_part_of_the_key(tmp_path):
    from deepnarrow import plugins

    def key(*settings):
        config = load_config(tmp_path / "one.py", [f"{PROTOCOL}.{s}" for s in settings])
        registry = plugins.registry()
        data = {"toy": open_data(config.modalities["toy"], registry)}
        return plan_trials(config, registry, data)[0][0].key

    keys = [key(), *map(key, (
        "optimizer.ema_decay=0.9", "optimizer.timescale=30", "optimizer.cooldown_steps=11",
        "fine_tune.train=head", "fine_tune.mixture=proportional", "fine_tune.mixture_limit=9",
        "fine_tune.eval_every=10", "fine_tune.decode=greedy",
        "fine_tune.options={'remat': 'full'}"))]
    assert len(set(keys)) == len(keys)
