"""A study on the TPUs that are there is spread as the plan says; its keys and results stay."""

import dataclasses
import types

import pytest
import toy

from deepnarrow import hookimpl
from deepnarrow.config import ModalityStudy, StudyConfig
from deepnarrow.planning.here import Spread, slice_here, spread_here
from deepnarrow.planning.topology import GENERATIONS, Topology
from deepnarrow.plugins import load_plugins
from deepnarrow.protocol import Budget, FineTune, OptimizerConfig, Protocol, Sharding
from deepnarrow.stepspec import ArraySpec, StepSpec
from deepnarrow.store import Store
from deepnarrow.study import run_study
from deepnarrow.trials import open_data, plan_trials

ADAMW = OptimizerConfig("adamw", 3e-3, "constant")
STEP = StepSpec(lambda options: {
    "inputs": ArraySpec((toy.LENGTH, toy.CHANNELS), "float32"), "label": ArraySpec((), "int32"),
    "example_mask": ArraySpec((), "float32")}, ADAMW)
EIGHT = Topology(GENERATIONS["v5e"], (8,))


def registry_of(modality):
    plugin = types.ModuleType("toy_plugin")
    vars(plugin)["deepnarrow_register_modalities"] = hookimpl(
        lambda: [modality], specname="deepnarrow_register_modalities")
    return load_plugins([], extra=[plugin])


@pytest.fixture
def registry():
    return registry_of(dataclasses.replace(toy.toy_modality(), step=STEP))


def config_of(shapes=("tiny", "tiny-nl4"), batch_size=32, **changes):
    options = changes.pop("options", {})
    fine_tune = changes.pop("fine_tune", None)
    protocol = Protocol(batch_size=batch_size, budget=Budget("examples", batch_size * 6),
                        optimizer=ADAMW, fine_tune=fine_tune)
    study = ModalityStudy("toy", shapes, protocol, options=options)
    return StudyConfig("toys", (0,), {"toy": study}, **changes)


def spread_of(config, registry, topology):
    data = {name: open_data(study, registry) for name, study in config.modalities.items()}
    return spread_here(config, registry, data, plan_trials(config, registry, data)[0], topology)


@pytest.mark.parametrize(("kind", "devices", "name"), [
    ("TPU v3", 8, "v3:4"), ("TPU v4", 4, "v4:4"), ("TPU v5 lite", 16, "v5e:16"),
    ("TPU v5", 64, "v5p:64"), ("TPU v6 lite", 1, "v6e:1")])
def test_tpus_are_known_by_their_kind(kind, devices, name):
    found = slice_here(kind, devices)
    assert found is not None
    assert (found.name, found.num_devices) == (name, devices)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA A100-SXM4-80GB", "TPU v99"])
def test_of_other_devices_nothing_is_planned(kind, registry):
    assert slice_here(kind, 8) is None
    assert spread_of(config_of(), registry, None) == Spread(Sharding())


def test_all_devices_are_used_by_the_fastest_plan(registry):
    found = spread_of(config_of(), registry, EIGHT)
    assert found.sharding == Sharding("fsdp=8", "fsdp", 1)
    assert found.remats == {"toy": "full"}  # it moves the fewest bytes, which bounds the toy
    assert found.note == "planned for 8 devices: fsdp=8 remat=full micro_batches=1"


def test_what_the_config_says_holds(registry):
    said = Sharding(rules="fsdp")
    assert spread_of(config_of(sharding=said), registry, EIGHT) == Spread(said)
    assert spread_of(config_of(options={"remat": "full"}), registry, EIGHT).remats == {}
    assert spread_of(config_of(), registry_of(toy.toy_modality()), EIGHT) == Spread(Sharding())
    assert spread_of(config_of(batch_size=12), registry, Topology(GENERATIONS["v5e"], (5,))
                     ) == Spread(Sharding())  # no mesh of five devices divides it


def small(bytes_, chips=1):
    return Topology(dataclasses.replace(GENERATIONS["v5e"], usable_hbm_bytes=bytes_), (chips,))


def test_less_memory_means_remat_or_pieces_but_only_where_the_result_stays(registry):
    much = spread_of(config_of(), registry, small(1_000_000))
    assert (much.sharding.micro_batches, much.remats) == (1, {"toy": "full"})
    little = spread_of(config_of(), registry, small(800_000))
    assert (little.sharding.micro_batches, little.remats) == (8, {"toy": "full"})
    # Dropout draws other bits for each piece.
    dropout = config_of(options={"dropout_rate": 0.1})
    assert spread_of(dropout, registry, small(1_000_000)).sharding.micro_batches == 1
    assert "fits in no way" in spread_of(dropout, registry, small(800_000)).note
    none = spread_of(config_of(), registry, small(1000))
    assert none.sharding == Sharding()
    assert "fits in no way" in none.note


def test_the_mesh_divides_every_batch(registry):
    stage = FineTune(("toy_task",), examples=4 * 6, batch_size=4, optimizer=ADAMW)
    assert spread_of(config_of(), registry, EIGHT).sharding.mesh == "fsdp=8"
    found = spread_of(config_of(fine_tune=stage), registry, EIGHT)
    assert found.sharding == Sharding("fsdp=4,tensor=2", "fsdp+tensor")


def test_a_planned_study_has_the_keys_and_the_results_of_any(tmp_path, registry, monkeypatch):
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])
    config, rows = config_of(("tiny",)), {}
    for name, topology in (("plain", None), ("planned", small(500_000))):
        monkeypatch.setattr("deepnarrow.trial.slice_here", lambda *_, topology=topology: topology)
        run_study(config, tmp_path / name, registry)
        with Store(tmp_path / name / "records.sqlite", read_only=True) as store:
            (rows[name],) = store.records()
    plain, planned = rows["plain"], rows["planned"]
    assert planned.environment["sharding"] == plain.environment["sharding"] | {
        "micro_batches": 4, "remat": {"toy": "full"}}
    assert "remat" not in plain.environment["sharding"]
    assert (plain.key, plain.config, plain.status) == (planned.key, planned.config, planned.status)
    for one, other in zip(plain.metrics, planned.metrics, strict=True):
        assert one.metric == other.metric
        assert one.value == pytest.approx(other.value, rel=1e-4)
