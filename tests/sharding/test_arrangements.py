"""One training step on 8 fake devices, in every arrangement, against one device."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
PRESETS = ("data", "fsdp", "fsdp+tensor")
CASES = [f"{modality} adamw {preset} {split}" for modality in ("text_t5", "vision_vit")
         for preset in PRESETS for split in ("plain", "pieces")]
CASES += [f"text_t5 adafactor {preset} plain" for preset in PRESETS]


def child_environment(devices):
    """Of a process with so many fake devices; LLVM's optimisations cost more than they save."""
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags, "PYTHONWARNINGS": "error::DeprecationWarning:deepnarrow"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("arrangements") / "found.json"
    done = subprocess.run([sys.executable, HERE / "arrangements.py", out], capture_output=True,
                          text=True, env=child_environment(8), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.fixture
def row(found, case):
    assert found["devices"] == 8
    return {row["case"]: row for row in found["rows"]}[case]


@pytest.mark.parametrize("case", CASES)
def test_a_step_equals_one_device(row, case):
    assert row["loss"] < 1e-5
    assert row["metrics"] < 1e-5
    # AdamW's first moment is a tenth of the gradient, Adafactor's statistics are means of squares.
    assert row["opt_state"] < 1e-5
    assert row["params"] < 1e-5 < 1e-3 < row["moved"]
    assert row["placed"]


def test_scores_of_candidates_equal_one_device(found):
    assert found["scores"].keys() == set(PRESETS)
    assert max(found["scores"].values()) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_compiled_arguments_are_the_parts_and_no_more(row, case):
    assert row["argument_bytes"] == (
        row["state_bytes"] + row["batch_bytes"] + row["number_bytes"])
    assert row["state_bytes"] >= row["param_bytes"] * (3 if "adamw" in case else 1)


def test_parameters_shrink_with_the_mesh(found):
    bytes_ = {row["case"]: row["param_bytes"] for row in found["rows"]}
    whole, fsdp, both = (bytes_[f"text_t5 adafactor {preset} plain"] for preset in PRESETS)
    assert fsdp < 1.05 * whole / 4  # fsdp=4
    assert both < 1.05 * whole / 4  # fsdp=2, tensor=2


@pytest.mark.parametrize(("preset", "fewest"), [("fsdp", 4), ("fsdp+tensor", 5)])
def test_no_large_parameter_is_replicated(found, preset, fewest):
    """The compiled step takes an eighth of every parameter above 1 MiB."""
    large = found["large"][preset]
    assert len(large) >= fewest
    assert {path: part for path, _, part in large} == {path: whole / 8 for path, whole, _ in large}


def test_factored_statistics_are_split_too(found):
    rows = {row["case"]: row for row in found["rows"]}
    assert rows["text_t5 adafactor data plain"]["split_statistics"] == []
    for preset in ("fsdp", "fsdp+tensor"):
        split = rows[f"text_t5 adafactor {preset} plain"]["split_statistics"]
        assert "encoder/layers/mlp/wi/kernel" in split
        assert "decoder/layers/cross_attention/out/kernel" in split
        assert "embedding" in split


def test_a_checkpoint_of_each_arrangement_restores_bit_equal_in_each_other(found):
    assert found["unequal"] == []
