"""The study's numbers: planted effects give the planted verdicts; what is committed is derived."""

from __future__ import annotations

import dataclasses
import doctest
import importlib.util
import json
import math
import pathlib
import random
import re
import subprocess
import sys

import pytest

from deepnarrow import cli
from deepnarrow.merge import merge_into_workdir
from deepnarrow.protocol import Tune
from deepnarrow.recordfile import write_archive
from deepnarrow.records import MetricRow, Record
from deepnarrow.tuning import TryResult, choice_facts, choice_rows, choose

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "studies" / "deepnarrow_small_scale"
ARCHIVE, COMMITTED = FOLDER / "records.jsonl.gz", FOLDER / "numbers.json"
LOSS = "upstream/loss"


def load():
    spec = importlib.util.spec_from_file_location("small_scale_numbers", FOLDER / "numbers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # and the modules beside it can be imported from now on
    return module


NUMBERS = load()
PLAN = importlib.import_module("small_scale_plan")
VERDICTS = importlib.import_module("small_scale_verdicts")
TABLES = importlib.import_module("small_scale_tables")
PLANNED = PLAN.plan()
# What the shapes gain over the uniform curve, in loss, by how they were made.
WIDTH_WINS = {"depth first": -0.2, "between": -0.1, "width first": 0.05}
DEPTH_WINS = {"depth first": 0.2, "between": 0.1, "width first": -0.05}
PER_DOUBLING = 0.1  # of parameters, what the uniform shapes lose less


# --- synthetic records ---------------------------------------------------------------------------
def fields(shape):
    layers, d_model, d_ff, d_kv, heads = map(int, re.findall(r"-[a-z]+(\d+)", shape))
    return {"num_encoder_layers": layers, "num_decoder_layers": 0, "d_model": d_model,
            "d_ff": d_ff, "d_kv": d_kv, "num_heads": heads, "share_heads": False,
            "share_kv": False}


def costs(shape):
    """Near those of an encoder; FLOPs with attention, so that deep shapes are dearer."""
    one = fields(shape)
    layers, d_model = one["num_encoder_layers"], one["d_model"]
    params = layers * (4 * d_model ** 2 + 2 * d_model * one["d_ff"])
    flops = 2.0 * 16 * params + 4.0 * 16 ** 2 * layers * d_model
    return {"params_total": params + 10.0 * d_model, "params_non_embedding": float(params),
            "flops_forward_per_example": flops, "flops_train_total": 3 * flops * 1000,
            "tokens_seen": 16e3, "step_time_s": 0.01, "peak_bytes": None, "chip_hours": 0.01}


def loss_of(shape, gain):
    base = costs("x-nl2-dm32-ff128-kv8-nh4")["params_non_embedding"]
    doublings = math.log2(costs(shape)["params_non_embedding"] / base)
    return 3 - PER_DOUBLING * doublings - gain


def gains(planned, by_way, turn=False):
    """A gain of its own for every shape, so that there are ranks; of opposite sign for `turn`."""
    sign = -1 if turn else 1
    return {shape: sign * (by_way.get(way, 0.0) + 0.004 * place * (way != "uniform"))
            for place, (shape, way) in enumerate(planned.way.items())}


def record(domain, shape, seed, loss, **changes):
    one = Record(
        f"{domain}/{shape}/{seed}", "deepnarrow_small_scale", domain, "transformer", shape,
        fields(shape), seed, "done", {"protocol": {"budget": {"kind": "examples"}}}, costs(shape),
        "matmul", {"device": "cpu", "host": "vm", "attempt": 1, "stages": {"upstream": 7.5},
                   "parts": {"build": 4.0}, "versions": {"jax": "1"}},
        (MetricRow("upstream", "", "loss", "min", loss),))
    return dataclasses.replace(one, **changes)


def transferred(planned, loss, rng, sd, against=()):
    """Accuracies that fall with the loss; of tasks in `against` they rise."""
    rows = []
    for task in planned.tasks:
        level = 0.7 + (1 if task in against else -1) * 0.2 * (loss - 2.5)
        rows.append(MetricRow("fine_tune", task, "accuracy", "max", level + rng.gauss(0, sd)))
        rows += [MetricRow("few_shot", task, "accuracy", "max", value, origin, shots, draw)
                 for shots in planned.shots for draw in range(3)
                 for origin, value in (("pretrained", level - 1 / shots + rng.gauss(0, sd)),
                                       ("untrained", 0.3), ("raw", 0.25))]
    return rows


def tried(planned, turned):
    """Losses by shape and rate. The middle rate is every shape's best, but in `turned` domains the
    first wide shape's is the smallest: with that it is the best of its rung of three, with the
    middle one the worst. Its grid has grown by a rate, and the largest diverges."""
    found = {}
    for place, shape in enumerate(planned.shapes):
        low, middle, high = planned.tune.learning_rates
        best = loss_of(shape, 0.001 * place) + 1
        found[shape] = {low: best + 0.3, middle: best, high: best + 0.2}
    if planned.name in turned:
        shape = planned.made("width first")[0]
        best = found[shape][middle] - 0.1
        found[shape] = {low / 2: best + 0.1, low: best, middle: best + 0.2, high: None}
    return found


def study(gain=WIDTH_WINS, sd=0.001, turn=(), against=(), turned=(), seeds=(0, 1, 2)):
    """All trials and tries of the plan."""
    records = []
    for number, (domain, planned) in enumerate(PLANNED.items()):
        rng = random.Random(number)
        grids = tried(planned, turned)
        by_shape = gains(planned, gain, domain in turn)
        for shape in planned.shapes:
            results = {rate: [TryResult("done" if loss else "diverged", loss, 1e9, 2.0)]
                       for rate, loss in grids[shape].items()}
            choice = choose(planned.tune, results)
            assert choice is not None
            records += [record(
                domain, shape, 100, loss, key=f"{domain}/{shape}/{rate}",
                status="done" if loss else "diverged",
                config={"try": True, "protocol": {"optimizer": {"learning_rate": rate}}})
                for rate, loss in grids[shape].items()]
            for seed in seeds:
                loss = loss_of(shape, by_shape[shape]) + rng.gauss(0, sd)
                one = record(domain, shape, seed, loss)
                records.append(dataclasses.replace(
                    one, metrics=(*one.metrics, *choice_rows(choice),
                                  *transferred(planned, loss, rng, sd / 5, against)),
                    environment={**one.environment, "tuning": choice_facts(choice)}))
    return records


def derived(tmp_path, records):
    write_archive(records, tmp_path / "records.jsonl.gz")
    return NUMBERS.derive(tmp_path / "records.jsonl.gz")


def verdicts(document):
    return [document["hypotheses"][f"H{i}"]["verdict"] for i in range(1, 8)]


# --- verdicts ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("settings", "expected"), [
    ({}, "fails fails fails holds holds holds fails"),
    ({"gain": DEPTH_WINS, "turned": ("text_t5", "peptides"), "against": ("mnist5k",)},
     "holds holds holds fails holds fails holds"),
    ({"gain": {}, "sd": 0.3, "turned": ("vision_vit",)},
     "undecided undecided undecided undecided undecided undecided undecided"),
    # One domain the other way round: DeepNarrow fails there, width first in the others.
    ({"turn": ("peptides",)}, "fails fails fails fails undecided holds fails"),
])
def test_planted_effects_give_the_planted_verdicts(tmp_path, settings, expected):
    document = derived(tmp_path, study(**settings))
    assert document["statuses"]["ended"] == 117
    assert verdicts(document) == expected.split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A full set of records as an archive, and its document."""
    folder = tmp_path_factory.mktemp("whole")
    document = derived(folder, study(turned=("text_t5",)))
    return folder / "records.jsonl.gz", document


def test_planted_effects_and_slopes_are_inside_their_intervals(whole):
    _, document = whole
    for name, planned in PLANNED.items():
        gain = gains(planned, WIDTH_WINS)
        found = {one["shape"]: one["effect"]
                 for one in document["hypotheses"]["H1"]["domains"][name]["effects"]}
        assert list(found) == [PLAN.short(s) for s in planned.shapes if planned.way[s] != "uniform"]
        for shape, expected in gain.items():
            if planned.way[shape] != "uniform":
                assert found[PLAN.short(shape)]["estimate"] == pytest.approx(expected, abs=0.005)
        means = {way: sum(gain[shape] for shape in planned.made(way)) / 3
                 for way in ("width first", "depth first")}
        contrast = document["hypotheses"]["H4"]["domains"][name]
        assert contrast["width first minus depth first"]["estimate"] == pytest.approx(
            means["width first"] - means["depth first"], abs=0.005)
    turned = {name: len(one["turned"])
              for name, one in document["hypotheses"]["H7"]["domains"].items()}
    assert turned == {"text_t5": 2, "vision_vit": 0, "peptides": 0}


def command(capsys, *arguments):
    assert cli.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def near(expected):
    """Numbers are written with `DIGITS` digits."""
    return pytest.approx(NUMBERS.rounded(expected), rel=1e-8, nan_ok=True)


@pytest.mark.parametrize(("name", "arguments"), [
    ("H1", ["--cost", "params_non_embedding", "--quality", LOSS]),
    ("H2", ["--cost", "flops"]),
    ("H3", ["--cost", "params_non_embedding", "--quality", "text_t5=novel/fine_tune", "--quality",
            "vision_vit=digits/fine_tune", "--quality", "peptides=antimicrobial/fine_tune"]),
])
def test_comparisons_are_those_of_the_plans_commands(whole, tmp_path, capsys, name, arguments):
    archive, document = whole
    merge_into_workdir([str(archive)], tmp_path / "R")
    made = command(capsys, "compare", tmp_path / "R", *arguments, "--reference", PLAN.UNIFORM)
    found = document["hypotheses"][name]
    assert found["verdict"] == made["verdicts"]["joint"]
    assert found["tau"]["estimate"] == near(made["tau"]["estimate"])
    for domain, mine in found["domains"].items():
        assert mine["verdict"] == made["verdicts"][domain]
        effects = {PLAN.short(one["shapes"][0]): one for one in made["effects"]
                   if one["domain"] == domain}
        assert len(effects) == 8
        for one in mine["effects"]:
            assert one["effect"] == near({key: effects[one["shape"]][key]
                                          for key in ("estimate", "low", "high")})
        tests = [one for one in made["tests"] if one["domain"] == domain]
        assert tests
        assert [one["difference"]["low"] for one in mine["tests"]] == near(
            [one["difference"]["low"] for one in tests])


def test_fronts_ranks_and_slopes_are_those_of_the_plans_commands(whole, capsys):
    archive, document = whole
    made = command(capsys, "pareto", archive, "--cost", "params", "--cost", "flops", "--quality",
                   LOSS, "--quality", "digits/fine_tune", "--claims")
    for front in made["fronts"]:
        found, = [one for one in document["fronts"] if (one["domain"], one["cost"], one["quality"])
                  == (front["modality"], front["cost"], front["quality"])]
        assert [(one["shape"], one["on_front"], one["seeds"]) for one in found["points"]] == [
            (PLAN.short(one["name"]), one["on_front"], one["n"]) for one in front["points"]]
        for key, name in (("mean", "quality_mean"), ("membership", "membership")):
            assert [one[key] for one in found["points"]] == near(
                [one[name] for one in front["points"]])
    agreed, = made["agreements"]
    ranks, = [one for one in document["hypotheses"]["H6"]["tasks"] if one["task"] == "digits"]
    assert ranks["kendall"]["low"] == near(agreed["kendall"]["low"])
    law = command(capsys, "fit", archive, "--domain", "peptides", "--form", "power", "--x",
                  "flops", "--y", LOSS)
    slope, = [one for one in document["slopes"] if (one["domain"], one["x"])
              == ("peptides", "flops_forward_per_example")]
    assert slope["parameters"]["exponent"]["high"] == near(law["params"]["exponent"]["high"])
    # Every planned quality of every domain, at both costs.
    assert len(document["fronts"]) == 2 * sum(len(one.qualities) for one in PLANNED.values()) == 36


def test_what_is_not_done_is_named_and_counted(tmp_path):
    records = study()
    shapes = PLANNED["peptides"].shapes
    changed = {f"peptides/{shapes[1]}/2": "diverged", f"peptides/{shapes[2]}/0": "failed",
               f"text_t5/{PLANNED['text_t5'].shapes[0]}/1": "preempted"}
    records = [dataclasses.replace(one, status=changed.get(one.key, one.status))
               for one in records]
    document = derived(tmp_path, records)
    domains = document["statuses"]["domains"]
    assert domains["peptides"]["trials"] == {"done": 37, "diverged": 1, "failed": 1}
    assert domains["peptides"]["not_done"] == {
        "nl3-dm36, seed 2": "diverged", "nl4-dm32, seed 0": "failed"}
    assert domains["text_t5"]["trials"]["preempted"] == 1
    # Diverged and failed trials have ended: the other domains are complete, text is not.
    assert verdicts(document) == ["not yet"] * 6 + ["fails"]
    assert document["hypotheses"]["H4"]["so_far"] == "holds"
    assert document["hypotheses"]["H4"]["reason"] == "text_t5: 38 of 39 trials have ended"
    front = next(one for one in document["fronts"] if one["domain"] == "peptides")
    assert {one["shape"]: one["seeds"] for one in front["points"]} == {
        PLAN.short(shape): 2 if i in (1, 2) else 3 for i, shape in enumerate(shapes)}
    for name in ("H1", "H2", "H3"):
        assert document["hypotheses"][name]["domains"]["peptides"]["short_of_seeds"] == {
            "nl3-dm36": 2, "nl4-dm32": 2}
    page = TABLES.pages(document)
    assert "nl3-dm36, seed 2: diverged" in page
    assert re.search(r"\| nl4-dm32 \| depth first \| [^|]+]\* \| [^|*]+ \| [^|*]+ \|", page)


@pytest.mark.parametrize("keep", [
    lambda one: False, lambda one: one.is_try, lambda one: one.modality == "text_t5",
    lambda one: one.is_try or one.seed == 0, lambda one: "nl2-" in one.name])
def test_parts_of_the_study_give_what_they_can(tmp_path, keep):
    document = derived(tmp_path, [one for one in study(turned=tuple(PLANNED)) if keep(one)])
    found = document["hypotheses"]
    assert {one["verdict"] for name, one in found.items() if name != "H7"} == {"not yet"}
    assert all(one["reason"] for name, one in found.items() if name != "H7")
    assert NUMBERS.dump(document) == NUMBERS.dump(json.loads(NUMBERS.dump(document)))
    assert TABLES.pages(document).startswith("# The numbers")


@pytest.mark.parametrize(("change", "message"), [
    ({"seed": 9}, "not in the plan"), ({"name": "tiny-nl7"}, "not in the plan"),
    ({"modality": "other"}, "not in the plan"), ({"key": "twice"}, "two trials of one shape"),
    ({"key": "try", "config": {"try": True, "protocol": {"optimizer": {"learning_rate": 0.004}}}},
     "two tries of one rate")])
def test_records_of_another_plan_are_refused(tmp_path, capsys, change, message):
    shape = PLANNED["vision_vit"].shapes[0]
    one = record("vision_vit", shape, 0, 2.0)
    first = dataclasses.replace(one, key="first", config=change.get("config", one.config))
    write_archive([first, dataclasses.replace(one, **change)], tmp_path / "records.jsonl.gz")
    code = NUMBERS.main([str(tmp_path / "records.jsonl.gz"), "--out", str(tmp_path / "out")])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cost_counts_a_shared_program_once_and_attempts_all(whole):
    _, document = whole
    mine = document["cost"]["domains"]["vision_vit"]["trials"]
    assert (mine["records"], mine["seconds"]) == (39, 39 * 7.5)
    assert mine["building"] == 13 * 4.0  # the seeds of a shape share its program
    assert mine["core_hours"] == near((39 * 7.5 + 13 * 4) / 3600)
    tries = document["cost"]["domains"]["vision_vit"]["tries"]
    assert document["cost"]["rates_tried"] == {
        "text_t5": 40, "vision_vit": 39, "peptides": 39}  # one grid has grown
    assert tries["flops"] == near(3 * sum(
        costs(shape)["flops_train_total"] for shape in PLANNED["vision_vit"].shapes))


def test_rates_are_shown_with_what_they_cost(whole):
    text = whole[1]["rates"]["text_t5"]
    shape = PLAN.short(PLANNED["text_t5"].made("width first")[0])
    assert text["shapes"][shape]["chosen"] == 0.02
    assert text["shapes"][shape]["diverged"] == [0.08]
    assert text["shapes"][shape]["middle_over_best"] == near(0.2)
    assert text["largest_middle_over_best"] == near(0.2)
    assert (text["at_edge"], text["trials_with_another_rate"]) == ([], [])
    assert text["chosen"] == {"0.02": 1, "0.04": 12}


def test_a_rate_at_the_edge_is_flagged():
    tune = Tune((0.1, 0.2, 0.4), (100,))
    results = {rate: [TryResult("done", rate, 0.0, 0.0)] for rate in tune.learning_rates}
    choice = choose(tune, results)
    described = importlib.import_module("small_scale_described")
    assert described._sensitivity(choice, 0.2)["edge"] == "low"


# --- files ---------------------------------------------------------------------------------------
def test_the_command_writes_both_files_without_jax(whole, tmp_path):
    code = ("import runpy, sys\n"
            "sys.path.insert(0, sys.argv[1].rpartition('/')[0])  # as Python does for a script\n"
            "sys.argv.pop(0)\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as done: assert not done.code\n"
            "print([name for name in ('jax', 'flax') if name in sys.modules])")
    done = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER / "numbers.py"), str(whole[0]), "--out",
         str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert json.loads((tmp_path / "numbers.json").read_text()) == whole[1]
    assert (tmp_path / "numbers.md").read_text() == TABLES.pages(whole[1]) + "\n"
    script = subprocess.run([sys.executable, str(FOLDER / "numbers.py"), "absent"],
                            capture_output=True, text=True, timeout=120)
    assert script.returncode == 2
    assert script.stderr.startswith("error: source 'absent'")


def flat(value, path=""):
    """Every number and text of a document, by where it stands."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {place: one for key, part in items for place, one in flat(part, f"{path}/{key}").items()}


@pytest.mark.skipif(not COMMITTED.exists(), reason="no numbers are committed yet")
def test_the_committed_numbers_are_those_of_the_committed_records():
    document, written = NUMBERS.derive(ARCHIVE), json.loads(COMMITTED.read_text())
    found, expected = flat(document), flat(written)
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        assert found[place] == (pytest.approx(value, rel=1e-6, abs=1e-9)
                                if isinstance(value, float) else value), place
    assert COMMITTED.with_suffix(".md").read_text() == TABLES.pages(written) + "\n"


@pytest.mark.parametrize("module", [NUMBERS, PLAN, VERDICTS, TABLES])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
