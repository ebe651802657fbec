"""The configs of vision_vit load, their headers are true, and the small one is planned here."""

from __future__ import annotations

import pathlib
import re

import pytest
from image_files import write_idx

from deepnarrow.assemble import count_costs
from deepnarrow.config import load_config, resolve_options
from deepnarrow.cost import summarize
from deepnarrow.errors import InputError
from deepnarrow.ops import resolve
from deepnarrow.plugins import registry
from deepnarrow.trials import open_data, plan_trials
from deepnarrow_vision_vit.preprocess import Form, build_chain, check_chain

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "vision_vit"
NAMES = ("fewshot_i1k", "fewshot_scale", "pretrain_i21k", "small_cpu")


def study(name, *settings):
    return load_config(FOLDER / f"{name}.py", settings).modalities["vision_vit"]


def counted(expression, **options):
    found = registry()
    vit = found.modality("vision_vit")
    named = resolve(expression, found.vocabulary(vit))
    resolved = resolve_options(vit.options, named.options(options, "options."), "options")
    return summarize(count_costs(vit, found.architecture("transformer"), named.shape, resolved))


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_its_shapes_and_preprocessing_are_valid(name):
    part = study(name)
    for shape in part.shapes:
        assert counted(shape).params_total > 0
    ends = {check_chain(build_chain(part.data[pp], pp, 3), Form(None, None, None, "raw"), pp)
            for pp in ("train_pp", "eval_pp")}
    assert len(ends) == 1
    stages = [stage for stage in (part.protocol.few_shot, part.protocol.fine_tune) if stage]
    assert {task for stage in stages for task in stage.tasks} == set(part.data.get("transfer", {}))


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_are_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no such file or folder"):
        open_data(study(name), registry())


def test_the_numbers_of_the_claim_are_the_ledgers():
    text = (FOLDER / "fewshot_scale.py").read_text()
    rows = re.findall(r"^    ([SMB]/\d\d(?:-nl24)?) +([\d,]+) +(?:\(([-\d.]+)%\))? +([\d.]+) G"
                      r"(?: +\(([-\d.]+)%\))?", text, re.MULTILINE)
    assert len(rows) == 6
    for name, params, less_params, flops, less_flops in rows:
        costs = counted(name, num_classes=21_843)
        assert costs.params_total == int(params.replace(",", ""))
        assert f"{costs.flops_forward_per_example / 1e9:.3f}" == flops
        if less_params:
            base = counted("B/" + name[2:4], num_classes=21_843)
            assert f"{100 * (costs.params_total / base.params_total - 1):.1f}" == less_params
            forward = costs.flops_forward_per_example / base.flops_forward_per_example
            assert f"{100 * (forward - 1):.1f}" == less_flops


def test_the_small_study_is_planned_on_files_of_its_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path / "cache"))
    write_idx(tmp_path / "fashion", count=100, classes=10, size=28)
    write_idx(tmp_path / "mnist", prefixes=("",), count=1200, classes=10, size=28,
              seed=7)
    config = load_config(FOLDER / "small_cpu.py", [
        f"modalities.vision_vit.data.upstream=idx:{tmp_path}/fashion",
        f"modalities.vision_vit.data.transfer.mnist5k=idx:{tmp_path}/mnist"])
    data = {"vision_vit": open_data(config.modalities["vision_vit"], registry())}
    trials, notes = plan_trials(config, registry(), data)
    assert (len(trials), notes) == (18, [])
    assert trials[0].options["image_size"] == 28
    by_name = {t.shape.name: counted(t.shape.name, **{
        k: trials[0].options[k] for k in ("image_size", "patch_size", "channels", "num_classes")})
        for t in trials}
    same = [by_name[n].params_non_embedding for n in ("tiny", "tiny-nl8-dm32", "tiny-nl2-dm128")]
    assert max(same) / min(same) < 1.01
