"""What observers are told of a study, and what becomes of it in the trackers."""

import importlib.util
import json
import pathlib
import types

import pytest
import toy

from deepnarrow import hookimpl
from deepnarrow.config import ModalityStudy, StudyConfig
from deepnarrow.errors import InputError
from deepnarrow.plugins import load_plugins
from deepnarrow.protocol import Budget, FewShot, FineTune, OptimizerConfig, Protocol, RunOptions
from deepnarrow.store import Store
from deepnarrow.study import run_study

TRACKERS = pathlib.Path(__file__).parents[2] / "docs" / "examples" / "trackers"


def run(tmp_path, monkeypatch, observers, **options):
    """Runs one trial of the toy, observed; returns its record."""
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])
    plugin = types.ModuleType("toy_plugin")
    vars(plugin).update(
        deepnarrow_register_modalities=hookimpl(deepnarrow_register_modalities),
        deepnarrow_register_architectures=hookimpl(deepnarrow_register_architectures))
    adamw = OptimizerConfig("adamw", 3e-3, "constant")
    protocol = Protocol(
        batch_size=16, budget=Budget("steps", 6), optimizer=adamw,
        few_shot=FewShot(("toy_task",), shots=(1,), seeds=1),
        fine_tune=FineTune(("toy_task",), examples=16 * 4, batch_size=16, optimizer=adamw))
    study = ModalityStudy("toy", ("tiny",), protocol, architectures=("toy_mlp",))
    config = StudyConfig("watched", (0,), {"toy": study}, RunOptions(
        log_every=2, eval_every=3, few_shot_every=3, **options))
    summary = run_study(config, tmp_path / "run", load_plugins([], [plugin, *observers]))
    assert dict(summary.counts) == {"done": 1}
    with Store(tmp_path / "run" / "records.sqlite", read_only=True) as store:
        (record,) = store.records()
    return record


def deepnarrow_register_modalities():
    return [toy.toy_modality()]


def deepnarrow_register_architectures():
    return [toy.toy_architecture()]


def tracker(name):
    """The module of an example, which needs a package that is not always there."""
    pytest.importorskip(name)
    path = TRACKERS / name / f"deepnarrow_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(record):
    """The points of a record's curve that were measured, not chosen at the end."""
    return {(p.stage, p.step, p.name): p.value for p in record.curve if "/selected/" not in p.name}


def test_observers_and_the_line_file_are_told_every_point_of_every_curve(tmp_path, monkeypatch):
    steps, ends = [], []
    watcher = types.ModuleType("watcher")
    vars(watcher).update(deepnarrow_step_end=hookimpl(lambda info: steps.append(info)),
                         deepnarrow_run_end=hookimpl(
                             lambda record, info: ends.append((record, info))))
    record = run(tmp_path, monkeypatch, [watcher])
    told = {(i["stage"], i["step"], name): x for i in steps for name, x in i["metrics"].items()}
    assert told == measured(record)
    assert {name.split("/")[0] for _, _, name in told} == {
        "train", "validation", "few_shot", "toy_task"}
    lines = [json.loads(line) for line in (
        tmp_path / "run" / "runs" / record.key / "curve.jsonl").read_text().splitlines()]
    assert {(line["stage"], line["step"], name): x for line in lines
            for name, x in line.items() if name not in ("stage", "step")} == told
    ((ended, whose),) = ends
    assert ended == record.to_dict()
    assert all({**info, **whose} == info for info in steps)
    assert whose == {
        "trial_key": record.key, "study": "watched", "workdir": str(tmp_path / "run"),
        "modality": "toy", "architecture": "toy_mlp", "shape": "tiny", "seed": 0,
        "config": record.config, "tensorboard": False}
    assert {(i["stage"], i["total_steps"]) for i in steps} == {("upstream", 6), ("fine_tune", 4)}


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path):
    from deepnarrow.files import append_json

    path = tmp_path / "curve.jsonl"
    append_json(path, {"step": 1})
    path.write_text(path.read_text() + '{"st')
    append_json(path, {"step": 2})
    assert path.read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}']


def test_tensorboard_without_tensorflow_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'deepnarrow\[tensorboard\]'"):
        RunOptions(tensorboard=True)


def test_tensorboard_has_every_point(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = run(tmp_path, monkeypatch, [], tensorboard=True)
    (folder,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert folder.name == f"toy-tiny-seed0-{record.key[:8]}"
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert {f"{stage}/{name}" for stage, _, name in measured(record)} <= tags
    assert "final/few_shot/toy_task/accuracy/pretrained/1shots" in tags
    assert [event.step for event in events.Tensors("upstream/train/loss")] == [2, 4, 6]


def test_mlflow_has_every_point(tmp_path, monkeypatch):
    record = run(tmp_path, monkeypatch, [tracker("mlflow")])
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("watched")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["shape"] == "tiny"
    history = client.get_metric_history(found.info.run_id, "upstream/train/loss")
    assert [(m.step, m.value) for m in history] == [
        (p.step, p.value) for p in record.curve
        if (p.stage, p.name) == ("upstream", "train/loss")]
    assert any(name.startswith("few_shot/") for name in found.data.metrics)


def test_wandb_writes_a_run_offline(tmp_path, monkeypatch):
    module = tracker("wandb")
    record = run(tmp_path, monkeypatch, [module])
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert record.key in folder.name
    assert list(folder.glob("run-*.wandb"))
    assert module.RUNS == {}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_trackers_example_is_short_and_imports_its_package_when_called(name):
    path = TRACKERS / name / f"deepnarrow_{name}.py"
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert [line for line in lines if line.startswith(("import", "from")) and name in line] == []
    assert f'{name} = "deepnarrow_{name}"' in (TRACKERS / name / "pyproject.toml").read_text()
