"""Intervals are the textbook ones where there is a textbook, and cover planted truths where not."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from deepnarrow.bootstrap import (
    OWN_VARIANCE,
    contrasts,
    corrected_percentiles,
    draw_means,
    simultaneous,
    uncertain,
)
from deepnarrow.table import SeedValues

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"


def values(*shapes, examples=None):
    found = [np.array(one, float) for one in shapes]
    return SeedValues(
        tuple(f"s{i}" for i in range(len(found))), np.array([one.mean() for one in found]),
        np.array([one.std(ddof=1) if len(one) > 1 else math.nan for one in found]),
        np.array([len(one) for one in found]), examples)


def test_a_difference_of_two_shapes_is_the_pooled_t_test():
    one, other = [1.0, 1.3, 1.1], [0.7, 0.9]
    noise = uncertain(values(one, other))
    interval, = contrasts(noise, np.array([[1.0, -1.0]]))
    expected = scipy.stats.ttest_ind(one, other).confidence_interval(0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.method == "pooled-t"
    # Draws have the same percentiles.
    drawn = draw_means(noise, 200_000) @ [1.0, -1.0]
    assert np.quantile(drawn, [0.05, 0.95]) == pytest.approx(
        [expected.low, expected.high], abs=0.01)
    single, = simultaneous(noise, np.array([[1.0, -1.0]]), draws=200_000)
    assert single.low == pytest.approx(expected.low, abs=0.01)


def test_many_seeds_have_a_variance_of_their_own():
    rng = np.random.default_rng(0)
    wild, calm = 3 * rng.standard_normal(OWN_VARIANCE + 4), 0.1 * rng.standard_normal(9)
    interval, = contrasts(uncertain(values(wild, calm)), np.array([[1.0, -1.0]]))
    expected = scipy.stats.ttest_ind(wild, calm, equal_var=False).confidence_interval(0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-6)


def test_one_seed_each_is_not_known_and_one_among_several_borrows():
    assert uncertain(values([1.0], [2.0])) is None
    noise = uncertain(values([1.0], [2.0, 2.2]))
    assert noise.variance.tolist() == pytest.approx([0.02, 0.01])


def test_examples_are_resampled_for_all_shapes_together():
    rng = np.random.default_rng(0)
    right = (rng.random((2, 500)) < 0.5).astype(float)
    right[1] = right[0]
    seeds = [[m - 1e-9, m + 1e-9] for m in right.mean(axis=1)]
    noise = uncertain(values(*seeds, examples=right))
    drawn = draw_means(noise, 4000)
    assert drawn[:, 0].std() == pytest.approx(right[0].std(ddof=1) / math.sqrt(500), rel=0.05)
    assert np.abs(drawn[:, 0] - drawn[:, 1]).max() < 1e-6
    assert noise.method == "pooled-t and examples"


def test_simultaneous_intervals_hold_together():
    rng = np.random.default_rng(0)
    noise = uncertain(values(*rng.standard_normal((5, 5))))
    weights = np.column_stack([-np.ones(4), np.eye(4)])
    together = simultaneous(noise, weights)
    alone = contrasts(noise, weights)
    ratio = (together[0].high - together[0].low) / (alone[0].high - alone[0].low)
    # Wider than one comparison, narrower than Bonferroni, which ignores the shared control.
    bonferroni = scipy.stats.t.ppf(1 - 0.05 / 4, 20) / scipy.stats.t.ppf(0.95, 20)
    assert 1.2 < ratio < bonferroni
    inside = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found = simultaneous(uncertain(values(*rng.standard_normal((5, 5)))), weights, draws=4000)
        inside += all(one.low <= 0 <= one.high for one in found)
    assert 0.9 - 4 * 0.0173 < inside / 300 < 0.9 + 4 * 0.0173


def test_corrected_percentiles_undo_a_bias():
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(100_000)
    plain = corrected_percentiles(0.0, drawn, "m")
    assert (plain.low, plain.high) == pytest.approx((-1.645, 1.645), abs=0.02)
    # Draws that lie above the estimate by half a deviation: the bounds move down by one.
    moved = corrected_percentiles(0.0, drawn + 0.5, "m")
    assert (moved.low, moved.high) == pytest.approx((-1.645 - 0.5, 1.645 - 0.5), abs=0.03)
    open_ended = corrected_percentiles(1.0, np.r_[drawn, np.full(30_000, np.inf)], "m")
    assert open_ended.high is None


@pytest.mark.parametrize(("shapes", "seeds"), [(4, 2), (8, 3)])
def test_a_few_synthetic_studies_are_covered(shapes, seeds):
    """A fast `benchmarks/interval_coverage.py`; bounds are four binomial deviations from 90%."""
    spec = importlib.util.spec_from_file_location("coverage_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.cell((shapes, seeds, range(40)))
    for what in ("slope (power)", "saving at equal quality", "membership: margin",
                 "effect of an operator"):
        inside, count = found[what]
        # Numbers of one study are correlated: count studies, not numbers.
        slack = 4 * math.sqrt(0.09 / 40)
        assert 0.9 - slack < inside / count <= 1, (what, inside / count)
    for what in ("false holds, any domain", "false holds, jointly"):
        wrong, count = found[what]
        assert wrong / count < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 40), what
