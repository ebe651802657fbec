"""What pre-training is worth, beside untrained networks and raw inputs: planted and refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from deepnarrow.records import MetricRow, Record
from deepnarrow.report.results import worth_by_quality
from deepnarrow.report.tables import worth_words
from deepnarrow.table import from_records
from deepnarrow.worth import worths

SHAPES = ("tiny", "tiny-nl8", "tiny-dm128", "mini")
QUALITY = "digits/few_shot@5"


def records(levels, seeds=3, noise=0.01, raw=0.9, direction="max"):
    """`levels`: by shape, (pre-trained, untrained)."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.2, seeds)  # of a draw of shots: all shapes and origins have it
    made = []
    for name, origins in levels.items():
        for seed in range(seeds):
            pairs = [*zip(("pretrained", "untrained"), origins, strict=True), ("raw", raw)]
            rows = tuple(MetricRow("few_shot", "digits", "accuracy", direction,
                                   value + shared[seed] + rng.normal(0, noise), origin, 5, 0)
                         for origin, value in pairs if value is not None)
            made.append(Record(f"{name}/{seed}", "s", "vision", "transformer", name, {}, seed,
                               "done", {}, {}, "matmul", {}, rows))
    return made


def only(found):
    table = from_records(found)
    one, = worths(table, [(QUALITY, table.directions[QUALITY])])
    return one


def test_differences_are_within_a_seed_and_their_noise_is_pooled():
    levels = dict.fromkeys(SHAPES, (0.6, 0.5))
    found = records(levels)
    one = only(found)
    assert [shape.name for shape in one.shapes] == list(SHAPES)
    lead = np.array([[r.metrics[0].value - r.metrics[1].value for r in found if r.name == name]
                     for name in SHAPES])  # [shapes, seeds]
    half = stats.t.ppf(0.95, 8) * math.sqrt(lead.var(axis=1, ddof=1).mean() / 3)
    for shape, mean in zip(one.shapes, lead.mean(axis=1), strict=True):
        assert shape.over_untrained.estimate == pytest.approx(mean)
        assert shape.over_untrained.low == pytest.approx(mean - half)
        assert shape.over_untrained.high == pytest.approx(mean + half)
        assert shape.over_raw.estimate == pytest.approx(-0.3, abs=0.03)
    words = worth_words([one])
    assert "beat an untrained network of their own in 4 and lose in 0 of 4 comparisons" in words
    assert "beat raw inputs in 0 and lose in 4 of 4 comparisons" in words
    row, = worth_by_quality([one]).rows
    assert row[4:8] == (pytest.approx(-0.4, abs=5e-3), pytest.approx(0.1, abs=5e-3), "4 (0) of 4",
                        "0 (4) of 4")


def test_less_is_better_turns_every_sign():
    one = only(records(dict.fromkeys(SHAPES, (0.5, 0.7)), raw=0.4, direction="min"))
    assert all(shape.over_untrained.low > 0 > shape.over_raw.high for shape in one.shapes)
    row, = worth_by_quality([one]).rows
    assert row[4:6] == (pytest.approx(-0.3, abs=5e-3), pytest.approx(0.2, abs=5e-3))


@pytest.mark.parametrize(("order", "said"), [(1, True), (-1, False)])
def test_an_order_that_untrained_networks_have_too_is_said(order, said):
    names = [f"s{i}" for i in range(8)]
    levels = {name: (0.3 + i / 20, 0.2 + order * i / 50) for i, name in enumerate(names)}
    one = only(records(levels, seeds=2, noise=1e-4))
    assert one.alike.estimate == pytest.approx(order)
    assert ("untrained networks rank the shapes as" in worth_words([one])) == said


def test_one_seed_knows_no_noise_and_what_was_not_measured_is_not_said():
    one = only(records({"tiny": (0.6, 0.5), "mini": (0.7, None)}, seeds=1, raw=None))
    assert one.raw is None
    assert [shape.name for shape in one.shapes] == ["tiny"]
    assert (one.shapes[0].over_untrained.low, one.shapes[0].over_raw) == (None, None)
    assert one.alike is None
    assert "One training seed" in worth_words([one])
    table = from_records(records({"tiny": (0.6, None)}, raw=None))
    assert worths(table, [(QUALITY, "max")]) == []
