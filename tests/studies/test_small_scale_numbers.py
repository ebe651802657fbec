"""The study's numbers: planted effects give the planted verdicts; what is committed is derived."""

from __future__ import annotations

import csv
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
