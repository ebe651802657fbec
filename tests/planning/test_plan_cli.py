"""`deepnarrow plan`: what it prints, how it refuses, that it needs no JAX."""

import ast
import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from deepnarrow.cli import main
from deepnarrow.config import load_config

SMALL, MIDDLE = ("--chips", "v5e:2x2"), ("--chips", "v5e:4x4")
KEYS = ["name", "chips", "mesh", "remat", "micro_batches", "hbm_per_chip_bytes",
        "hbm_limit_bytes", "fits", "flops_per_step", "step_time_s", "collectives", "compiled"]


@pytest.fixture
def plan(capsys):
    def run(*arguments):
        code = main(["plan", *arguments])
        out, err = capsys.readouterr()
        return code, out, err
    return run


def test_json_is_what_it_says(plan):
    code, out, err = plan("text_t5", "base", "small-nl16", "--chips", "v3:4x4", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [one["name"] for one in document] == ["base", "small-nl16"]
    for one in document:
        assert list(one) == KEYS
        assert (one["chips"], one["fits"], one["compiled"]) == ("v3:4x4", True, False)
        assert one["mesh"].keys() == {"data", "fsdp", "tensor"}
        assert 0 < one["hbm_per_chip_bytes"] <= one["hbm_limit_bytes"] < 32 * 2**30
        assert all(list(c) == ["kind", "mesh_axis", "count", "bytes"] for c in one["collectives"])


def test_for_people(plan):
    code, out, _ = plan("vision_vit", "B/16", "--chips", "v5e:4x4", "--steps", "36000",
                        "--price-per-chip-hour", "2")
    assert code == 0
    for part in ("v5e:4x4: 16 chips, 15.8 GiB each", "batch 128, adamw (cosine), bfloat16 compute",
                 "image_size=224", "all-gather over fsdp", 'config: "sharding": {"mesh": "',
                 "--set sharding.mesh=", "36,000 steps: at least ", " chip-hours, ",
                 "not chosen: ", "estimate"):
        assert part in out
    hours = float(out.split("at least ")[1].split()[0])
    money = float(out.split("chip-hours, ")[1].split()[0])
    assert money == pytest.approx(2 * hours, abs=0.01)


def test_what_does_not_fit_ends_with_2_and_the_numbers(plan):
    code, out, err = plan("text_t5", "xxl", *SMALL)
    assert (code, err) == (2, "")
    assert "does not fit: even " in out
    assert "GiB too much; the smallest slice that would do is v5e:" in out
    code, out, _ = plan("text_t5", "xxl", *SMALL, "--json")
    assert code == 2
    assert json.loads(out)[0]["fits"] is False
    code, out, _ = plan("text_t5", "xxl", "small", *SMALL, "--json")  # one of them fits
    assert (code, [one["fits"] for one in json.loads(out)]) == (0, [False, True])


@pytest.mark.parametrize(("arguments", "message"), [
    (("text_t5", "base", "--chips", "v9:4x4"), "--chips: unknown generation"),
    (("text_t5", "base", "--chips", "v5e:5x5"), "--chips: v5e has no such slice"),
    (("text_t5", "base", *MIDDLE, "--mesh", "fsdp=32"), "needs more devices than there are"),
    (("text_t5", "base", *MIDDLE, "--mesh", "fsdp=3"), "does not divide the devices"),
    (("text_t5", "base", *MIDDLE, "--mesh", "fdsp=4"), "unknown axis"),
    (("text_t5", "base", *MIDDLE, "--remat", "ful"), "--remat: unknown (got ful;"),
    (("text_t5", "base", *MIDDLE, "--batch-size", "7"), "no mesh can be tried"),
    (("text_t5", "base", *MIDDLE, "--batch-size", "0"), "--batch-size: is not an integer in range"),
    (("text_t5", "base", *MIDDLE, "--price-per-chip-hour", "-1"), "--price-per-chip-hour"),
    (("base", *MIDDLE), "modality 'base': no plugin registers this modality"),
    (("text_t5", *MIDDLE), "no shape is given (got text_t5). Hint: deepnarrow plan text_t5 "),
    (("text_t5", "base", "--chips", "v5p:4x4"), "--chips: v5p has no such slice"),
    (("text_t5", "bse", *MIDDLE), "bse"),
    (("text_t5", "base", *MIDDLE, "--set", "vocabsize=7"), "vocabsize"),
    (("configs/quickstart.py", "base", *MIDDLE), "takes one config, or a modality and shapes"),
    (("configs/quickstart.py", *MIDDLE, "--batch-size", "8"), "--batch-size: the config says that"),
    (("absent.py", *MIDDLE), "no such file"),
])
def test_bad_input_is_one_line(plan, arguments, message):
    code, out, err = plan(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_without_libtpu_it_says_what_to_install(plan, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "libtpu" else found(name, *rest))
    code, out, err = plan("text_t5", "tiny", *SMALL, "--compile")
    assert (code, out) == (2, "")
    assert "libtpu is not installed" in err
    assert "pip install 'deepnarrow[tpu]'" in err


def test_without_compile_nothing_heavy_is_imported():
    code = ("import sys\nfrom deepnarrow.cli import main\n"
            "main(['plan', 'text_t5', 'tiny', '--chips', 'v5e:2x2'])\n"
            "sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'optax', 'libtpu')))")
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_every_cell_of_a_config(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path))
    config = tmp_path / "study.py"
    config.write_text("""
def get_config():
    return {"name": "two shapes", "seeds": (0, 1), "modalities": {"vision_vit": {
        "shapes": ("tiny", "tiny-nl8"), "options": {"patch_size": 4},
        "protocol": {"batch_size": 64, "budget": {"kind": "steps", "amount": 100},
                     "optimizer": {"name": "adamw", "learning_rate": 1e-3,
                                   "schedule": "constant"}}}}}
""")
    code, out, _ = plan(str(config), *SMALL, "--price-per-chip-hour", "3")
    assert code == 0
    assert out.count("200 steps: at least") == 2  # two seeds of 100
    assert "in all: at least " in out
    assert " at 3 a chip-hour" in out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("or: ")]
    settings = line.strip().removeprefix("or: --set ").split(" --set ")
    study = load_config(config, settings)  # what it writes is what a study takes
    entries = [line.split("config: ")[1] for line in out.splitlines() if "config: " in line]
    written = ast.literal_eval("{" + ", ".join(entries) + "}")
    assert dataclasses.asdict(study.sharding) == written["sharding"]
    remat = written["modalities"]["vision_vit"]["options"]["remat"]
    assert study.modalities["vision_vit"].options["remat"] == remat
    code, out, _ = plan(str(config), *SMALL, "--json")
    cells = json.loads(out)
    assert [one["name"] for one in cells] == ["tiny", "tiny-nl8"]
    # A study has one sharding: its cells are planned together.
    assert cells[0]["mesh"] == cells[1]["mesh"]
    assert str(study.sharding.micro_batches) == str(cells[0]["micro_batches"])
