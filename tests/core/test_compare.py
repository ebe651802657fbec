"""Planted rankings and effects come back; verdicts are as the definition has them."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow import agreement
from deepnarrow import compare as compare_module
from deepnarrow.agreement import agreements, spearman
from deepnarrow.bootstrap import Interval
from deepnarrow.claims import depth_limits, front_cost, front_quality, gains, matches, savings
from deepnarrow.compare import (
    compare,
    kendall_tau,
    kendall_variance,
    rank_interval,
    verdict_of,
)
from deepnarrow.dominance import front_mask
from deepnarrow.errors import InputError
from deepnarrow.operators import ALL_SHAPES, FAMILY, curve_weights, effect_contrasts, family_of
from deepnarrow.regions import regions
from deepnarrow.table import Table

OPERATORS = ("nl16", "ff4k", "kv32", "nh4", "dm1k", "el8")
EFFECTS = np.linspace(-0.05, 0.05, 6)
BASES = {"tiny": 1e6, "mini": 4e6, "small": 16e6}


def texts(found):
    return np.array([*found, None], dtype=object)[:-1]


def table(rows, **more):
    """Rows of (domain, shape, seed, cost, quality)."""
    domain, name, seed, cost, quality = zip(*rows, strict=True)
    columns = {"params": np.array(cost, float), "quality": np.array(quality, float)}
    return Table(columns | more, texts(domain), texts(name), texts(map(str, seed)),
                 np.ones(len(rows), bool))


def line(cost):
    return 0.5 + 0.05 * math.log10(cost)


def study(domain="text", effects=EFFECTS, seeds=3, sd=0.003, bases=BASES, seed=0, factor=1.5):
    """Every operator on every base, at `factor` times the base's cost."""
    rng = np.random.default_rng([seed, len(domain)])
    rows = []
    for base, cost in bases.items():
        rows += [(domain, base, s, cost, line(cost) + sd * rng.standard_normal())
                 for s in range(seeds)]
        for operator, effect in zip(OPERATORS, effects, strict=True):
            place = cost * factor
            rows += [(domain, f"{base}-{operator}", s, place,
                      line(place) + effect + sd * rng.standard_normal()) for s in range(seeds)]
    return rows


def both(first, second, **settings_):
    return table(study("text", first, **settings_) + study("vision", second, **settings_))


QUALITIES = {"text": ("quality", "max"), "vision": ("quality", "max")}


def family(rows=None, **settings_):
    return family_of(table(study() if rows is None else rows), "text", "params", "quality", "max",
                     **settings_)


# --- tau -----------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9))
def test_rank_correlations_equal_scipys(pairs):
    one, other = np.array(pairs, float).T
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert float(kendall_tau(one, other)) == pytest.approx(
            scipy.stats.kendalltau(one, other).statistic)
        assert float(spearman(one, other)) == pytest.approx(
            scipy.stats.spearmanr(one, other).statistic)
    else:
        assert np.isnan(kendall_tau(one, other))


@pytest.mark.parametrize(("order", "low", "high", "p"), [
    ([0, 1, 2, 3, 4, 5], 0.9, 1.0, 2 / 720), ([5, 4, 3, 2, 1, 0], -1.0, -0.9, 2 / 720),
    ([2, 3, 5, 0, 1, 4], -0.2, 0.2, None)])
def test_planted_rankings(order, low, high, p):
    found = compare(both(EFFECTS, EFFECTS[order]), "params", QUALITIES)
    assert found.tau.operators == tuple(sorted(OPERATORS))
    assert low <= found.tau.estimate <= high
    assert found.tau.low <= found.tau.estimate <= found.tau.high
    if p is not None:
        assert found.tau.p == pytest.approx(p)
        # Six that agree: (1 - k) / (1 + k), k = 1.645^2 x 2 (2n + 5) / 9n(n - 1).
        bound = found.tau.low if found.tau.estimate > 0 else -found.tau.high
        assert bound == pytest.approx(0.4918, abs=1e-3)
    else:
        assert found.tau.p > 0.5
        assert found.tau.low < 0 < found.tau.high
    assert found == compare(both(EFFECTS, EFFECTS[order]), "params", QUALITIES)


@pytest.mark.parametrize(("estimate", "size"), [(1.0, 5), (-1.0, 5), (0.0, 8), (0.6, 20)])
def test_rank_intervals_solve_the_score_equation(estimate, size):
    variance = kendall_variance(size)
    low, high = rank_interval(estimate, variance, np.array([estimate]))
    for bound in (low, high):
        if abs(bound) < 1 and bound != estimate:
            assert (estimate - bound) ** 2 == pytest.approx(
                1.6448536 ** 2 * variance * (1 - bound ** 2))
    assert -1 <= low <= estimate <= high <= 1
    assert high - low > 0.3
    wide = rank_interval(estimate, variance, np.linspace(-1, 1, 101))
    assert wide == (pytest.approx(min(low, -0.9)), pytest.approx(max(high, 0.9)))


def test_kendalls_variance_is_that_of_all_permutations():
    orders = np.array(list(itertools.permutations(range(6))), float)
    assert kendall_variance(6) == pytest.approx(kendall_tau(np.arange(6.0), orders).var())


def test_few_shared_operators_have_no_interval_of_tau():
    rows = [row for row in study("text") + study("vision")
            if row[1].rpartition("-")[2] not in OPERATORS[::2]]
    found = compare(table(rows), "params", QUALITIES).tau
    assert (found.estimate, found.low, found.high) == (1.0, None, None)
    assert len(found.operators) == 3


def test_exact_and_drawn_permutations_agree():
    rng = np.random.default_rng(0)
    one, other = np.arange(7.0), np.array([0, 2, 1, 4, 3, 6, 5.0])
    exact, how = compare_module._permutation_p([one, other], float(kendall_tau(one, other)), rng)
    assert how == "exact permutations"
    assert exact == pytest.approx(scipy.stats.kendalltau(one, other, method="exact").pvalue)
    three, _ = compare_module._permutation_p([one, other, one], 0.9, rng)
    assert three < 0.01


# --- effects -------------------------------------------------------------------------------------
def test_effects_are_planted_at_equal_cost_inside_the_range_only():
    found = effect_contrasts(family(study(sd=0)))
    assert found.operators == tuple(sorted(OPERATORS))
    fam = family(study(sd=0))
    effects = dict(zip(found.operators, found.weights @ fam.scores.mean, strict=True))
    assert effects == pytest.approx(dict(zip(OPERATORS, EFFECTS, strict=True)))
    # At 1.5 x 16M there is no reference: nothing is extrapolated.
    assert set(found.outside) == {f"small-{one}" for one in OPERATORS}
    assert found.shapes[0] == ("tiny-dm1k", "mini-dm1k")


def test_less_is_better_turns_the_sign():
    rows = [(d, n, s, c, -q) for d, n, s, c, q in study(sd=0)]
    fam = family_of(table(rows), "text", "params", "quality", "min")
    found = effect_contrasts(fam)
    assert dict(zip(found.operators, found.weights @ fam.scores.mean, strict=True)) == (
        pytest.approx(dict(zip(OPERATORS, EFFECTS, strict=True))))


def test_the_curve_joins_the_reference_family():
    fam = family(study(sd=0))
    assert fam.curve == FAMILY
    assert {n for n, r in zip(fam.names, fam.reference, strict=True) if r} == set(BASES)
    for cost in (1e6, 2e6, 3.3e6, 16e6, 16.5e6):
        weights = curve_weights(fam, cost)
        assert weights.sum() == pytest.approx(1)
        assert weights @ fam.scores.mean == pytest.approx(line(min(cost, 16e6)))
    assert curve_weights(fam, 0.9e6) is None
    assert curve_weights(fam, 18e6) is None


def test_names_without_operators_are_measured_from_all_shapes():
    rows = [("text", f"op{i}", s, 1e6, 0.1 * i + 0.001 * s) for i in range(6) for s in range(3)]
    fam = family(rows)
    assert fam.curve == ALL_SHAPES
    found = effect_contrasts(fam)
    assert found.operators == tuple(f"op{i}" for i in range(6))
    assert found.weights @ fam.scores.mean == pytest.approx(0.1 * (np.arange(6) - 2.5))


def test_a_reference_may_be_named():
    fam = family(reference="mini,tiny*")
    assert sum(fam.reference) == 8
    with pytest.raises(InputError, match="--reference: matches no shape"):
        family(reference="nothing")


def test_fields_make_operators_comparable_between_bases():
    rows = [("text", name, s, cost, 0.5) for name, cost in
            (("micro", 1.0), ("micro-nl4-dm32", 1.0), ("micro-nl1", 0.9)) for s in range(2)]
    layers = np.repeat([2.0, 4.0, 1.0], 2)
    width = np.repeat([64.0, 32.0, 64.0], 2)
    fam = family_of(table(rows, num_encoder_layers=layers, d_model=width, depth=layers,
                          width=width), "text", "params", "quality", "max")
    assert dict(zip(fam.names, fam.operator, strict=True)) == {
        "micro": "", "micro-nl4-dm32": "nl+ dm-", "micro-nl1": "nl-"}
    assert dict(zip(fam.names, fam.deep.tolist(), strict=True)) == {
        "micro": False, "micro-nl4-dm32": True, "micro-nl1": False}


# --- verdicts ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("bounds", "verdict"), [
    ([(-0.005, 0.1)], "holds"), ([(-0.02, 0.1)], "undecided"), ([(-0.5, -0.011)], "fails"),
    ([(-0.5, -0.2), (-0.009, 0.0)], "holds"), ([(-0.5, -0.2), (-0.5, -0.009)], "undecided"),
    ([], "undecided"), ([(None, None)], "undecided")])
def test_verdicts_as_defined(bounds, verdict):
    assert verdict_of([Interval(0.0, low, high, "") for low, high in bounds], 0.01) == verdict


@pytest.mark.parametrize(("first", "second", "verdicts"), [
    (0.05, 0.05, ("holds", "holds", "holds")), (0.05, -0.08, ("holds", "fails", "fails")),
    (-0.08, -0.08, ("fails", "fails", "fails"))])
def test_deepnarrow_is_judged_by_domain_and_jointly(first, second, verdicts):
    effects = [EFFECTS.copy(), EFFECTS.copy()]
    for one, value in zip(effects, (first, second), strict=True):
        one[[OPERATORS.index("nl16"), OPERATORS.index("el8")]] = value, value - 0.001
    found = compare(both(*effects), "params", QUALITIES)
    assert tuple(found.verdicts.values()) == verdicts
    assert list(found.verdicts) == ["text", "vision", "joint"]
    assert {test.shape.split("-")[1] for test in found.tests} == {"nl16", "el8"}
    assert all(test.reference_cost == pytest.approx(test.cost / 0.8) for test in found.tests)


def test_much_noise_is_undecided_and_one_seed_says_nothing():
    found = compare(both(EFFECTS, EFFECTS, sd=0.2), "params", QUALITIES)
    assert found.verdicts["joint"] == "undecided"
    one = compare(both(EFFECTS, EFFECTS, seeds=1), "params", QUALITIES)
    assert set(one.verdicts.values()) == {"undecided"}
    assert all(effect.effect.low is None for effect in one.effects)
    assert "one training seed" in one.reasons["text"]


def test_fewer_than_five_shared_operators_give_tau_and_no_verdict():
    rows = study() + [r for r in study("vision") if not r[1].endswith(("el8", "dm1k"))]
    found = compare(table(rows), "params", QUALITIES)
    assert found.tau.estimate == 1.0
    assert set(found.verdicts.values()) == {None}
    assert found.reasons["joint"] == "4 operators are shared, a verdict needs 5"


def test_mixed_budgets_and_single_domains_are_refused():
    rows = study() + study("vision")
    kinds = texts("tokens" if r[0] == "text" else "examples" for r in rows)
    with pytest.raises(InputError, match=r"budgets of different kinds.*examples, tokens"):
        compare(table(rows, budget_kind=kinds), "params", QUALITIES)
    with pytest.raises(InputError, match="one domain only"):
        compare(table(study()), "params", QUALITIES)
    with pytest.raises(InputError, match=r"cost 'params': is not positive.*got 0"):
        compare(table([*rows, ("text", "z", 0, 0.0, 1.0)]), "params", QUALITIES)
    with pytest.raises(InputError, match="no domain may be called so"):
        compare(table(study() + study("joint")), "params", QUALITIES)


# --- claims --------------------------------------------------------------------------------------
def interpolated(cost, quality):
    """The front's points by the definition: distinct, by rising cost."""
    mask = front_mask(np.column_stack([cost, quality]), ["min", "max"])
    points = sorted(set(zip(cost[mask].tolist(), quality[mask].tolist(), strict=True)))
    return np.log([c for c, _ in points]), np.array([q for _, q in points])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1.0, 2, 3, 5, 8]), st.integers(0, 6)), min_size=1,
                max_size=8), st.floats(0.05, 6.5), st.floats(1, 9))
def test_the_interpolated_front_equals_its_definition(points, target, at):
    cost, quality = np.array(points, float).T
    at = max(at, cost.min())
    logs, best = interpolated(cost, quality)
    assert front_quality(quality[None], cost, np.array([at]))[0, 0] == pytest.approx(
        np.interp(math.log(at), logs, best))
    expected = math.exp(np.interp(target, best, logs)) if target <= best[-1] else math.inf
    assert front_cost(quality[None], cost, np.array([target]))[0] == pytest.approx(expected)


def test_savings_by_hand():
    rows = [("text", name, s, cost, quality + e) for name, cost, quality in
            (("small", 1e6, 0.5), ("small-nl16", 4e6, 0.7), ("base", 16e6, 0.6))
            for s, e in enumerate((-1e-4, 1e-4))]
    found = {one.baseline: one for one in savings(family(rows))}
    # Half way between 1e6 and 4e6 in log cost is 2e6: an eighth of 16e6.
    assert found["base"].saving.estimate == pytest.approx(1 - 2 / 16)
    assert 0.87 < found["base"].saving.low < found["base"].saving.high < 0.88
    assert set(found) == {"base"}  # nothing costs less than small
    easy = family([(d, n, s, c, 0.5 if n == "base" else q) for d, n, s, c, q in rows])
    assert savings(easy)[0].at_least  # small is as good already
    assert savings(family(rows), ["small-nl16"])[0].saving.estimate is None  # not reached


def test_matches_and_the_seeds_they_need():
    rows = [("text", name, s, cost, quality + e) for name, cost, quality in
            (("base", 2e6, 0.5), ("base-nl16", 1e6, 0.499), ("base-nh4", 1e6, 0.4))
            for s, e in enumerate((-0.01, 0.0, 0.01))]
    found = {one.shape: one for one in matches(family(rows), margin=0.02)}
    assert found["base-nl16"].cost_ratio == 0.5
    assert found["base-nl16"].verdict == "matches"
    assert found["base-nh4"].verdict == "worse"
    tight = {one.shape: one for one in matches(family(rows), margin=0.005)}["base-nl16"]
    assert tight.verdict == "undecided"
    n = tight.seeds_needed
    half = scipy.stats.t.ppf(0.95, 2 * (n - 1)) * 0.01 * math.sqrt(2 / n)
    before = scipy.stats.t.ppf(0.95, 2 * (n - 2)) * 0.01 * math.sqrt(2 / (n - 1))
    assert half < 0.004 < before


def test_gains_rank_the_operators():
    found = {one.operator: one for one in gains(family(study(factor=2)))}
    slope = 0.05 * math.log10(2)  # of the reference line, a doubling
    for operator, effect in zip(OPERATORS, EFFECTS, strict=True):
        per = found[operator].per_doubling
        assert per.low < slope + effect < per.high or abs(per.estimate - slope - effect) < 0.004
        assert per.method == "pooled-t"
    assert next(iter(found)) == "el8"
    assert found["el8"].lift.low > 0 > found["nl16"].lift.high


def test_where_depth_stops_paying():
    peak, rows, depths = 8, [], []
    for depth in (2, 4, 8, 16, 32):
        for s, e in enumerate((-1e-3, 1e-3)):
            cost = 1e6 * depth
            name = "tiny" if depth == 2 else f"tiny-nl{depth}"
            rows.append(("text", name, s, cost,
                         line(cost) - 0.02 * abs(math.log2(depth / peak)) + e))
            depths.append(float(depth))
    for base, cost in (("mini", 2e6), ("small", 64e6)):
        rows += [("text", base, s, cost, line(cost) + e) for s, e in enumerate((-1e-3, 1e-3))]
        depths += [2.0, 2.0]
    fam = family_of(table(rows, depth=np.array(depths)), "text", "params", "quality", "max",
                    reference="mini,small")
    found, = depth_limits(fam)
    assert found.depths == (2, 4, 8, 16, 32)
    assert (found.best.low, found.best.estimate, found.best.high) == (8, 8, 8)


# --- regions and agreement -----------------------------------------------------------------------
def test_regret_of_choosing_small_and_deploying_large():
    bases = {"tiny": 1e6, "mini": 4e6, "small": 16e6}
    rows = [r for r in study(bases=bases, factor=1.5) if not r[1].startswith("mini-")]
    turned = [r for r in study(effects=EFFECTS[::-1], bases=bases) if r[1].startswith("mini-")]
    found = regions(family(rows + turned))
    assert [rung.base for rung in found.rungs] == ["tiny", "mini"]
    assert found.rungs[0].ranking[0][0] == "el8"
    step, = found.steps
    assert (step.small, step.large, step.chosen) == ("tiny", "mini", "el8")
    assert step.tau.estimate == -1.0
    assert step.regret.low < 0.1 < step.regret.high or abs(step.regret.estimate - 0.1) < 0.01
    same = regions(family()).steps[0]
    assert (same.tau.estimate, same.regret.estimate) == (1.0, 0.0)


def test_pairs_that_turn_around_beyond_noise():
    names = {"wide": (1.0, 0.3), "wide-nl8": (0.8, 0.5), "wide-nh4": (0.5, 0.4)}
    rng = np.random.default_rng(0)
    rows, down = [], []
    for name, (up, transfer) in names.items():
        for s in range(4):
            rows.append(("text", name, s, 1.0, up + 0.01 * rng.standard_normal()))
            down.append(transfer + 0.01 * rng.standard_normal())
    both_ = table(rows, glue=np.array(down))
    found, = agreements(both_, ("quality", "max"), [("glue", "max")])
    turned = {(one.upstream_better, one.downstream_better) for one in found.inversions}
    assert turned == {("wide", "wide-nl8"), ("wide", "wide-nh4")}
    assert (found.inverted, found.decided) == (2, 3)
    assert all(one.upstream.low > 0 and one.downstream.low > 0 for one in found.inversions)
    assert dict(found.by_operator) == {"nl8": 1, "nh4": 1}
    assert found.kendall.estimate == pytest.approx(-1 / 3)
    flipped, = agreements(dataclasses.replace(both_, columns=both_.columns | {
        "glue": -np.array(down)}), ("quality", "max"), [("glue", "min")])
    assert {(i.upstream_better, i.downstream_better) for i in flipped.inversions} == turned
    noisy = [(d, n, s, c, q + 3 * rng.standard_normal()) for d, n, s, c, q in rows]
    quiet, = agreements(table(noisy, glue=np.array(down)), ("quality", "max"), [("glue", "max")])
    assert quiet.inverted == 0


def test_three_domains_are_compared_pair_by_pair():
    rows = [*study("a"), *study("bb"), *study("ccc", EFFECTS[::-1])]
    found = compare(table(rows), "params", dict.fromkeys(("a", "bb", "ccc"), ("quality", "max")))
    assert found.tau.estimate == pytest.approx((1 - 1 - 1) / 3)
    assert len({(e.domain, e.operator) for e in found.effects}) == 18


@pytest.mark.parametrize("module", [compare_module, agreement])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
