"""Does what holds in one domain hold in another? Operators at equal cost, and DeepNarrow's verdict.

Kendall's tau-b says whether domains rank the operators alike. Its interval is a score interval over
operators, widened by the noise of training seeds (`rank_interval`); its p is from permuting the
operators of every domain but one (exact up to 7 operators in two domains).

DeepNarrow's claim, set beforehand by a margin and a saving s: some deep-narrow shape is at most the
margin below the reference curve *at 1 / (1 - s) times its own cost*. Intervals of all these
differences are simultaneous, over the shapes of a domain (max-t) and over the domains (Bonferroni).
`holds`: a lower bound is above -margin. `fails`: every upper bound is below it. Else `undecided`.
They are 95% intervals, so that all verdicts of a comparison, `holds` and `fails` alike, are right
with that probability: with 90% ones each direction alone could go wrong in 5% of comparisons.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from deepnarrow.bootstrap import LEVEL, SEED, Interval, contrasts, draw_means, simultaneous
from deepnarrow.dominance import Direction
from deepnarrow.errors import InputError, shorten
from deepnarrow.operators import (
    ALL_SHAPES,
    Contrasts,
    Family,
    beside_line,
    curve_weights,
    effect_contrasts,
    family_of,
)
from deepnarrow.table import Table, count_non_finite, domains, select

Verdict = Literal["holds", "fails", "undecided"]
MARGIN = 0.01
SAVING = 0.2
MIN_SHARED = 5  # operators, for a verdict
VERDICT_LEVEL = 0.95  # that no verdict of a comparison is wrong, in either direction
DRAWS = 2000
PERMUTATIONS = 10_000
JOINT = "joint"
_CELLS = 4_000_000  # of signs of differences held at a time
_WORK = 300_000_000  # signs of differences that one interval may cost


@dataclasses.dataclass(frozen=True)
class Effect:
    """What an operator gains over the reference curve at equal cost; better is positive.

    Attributes:
      domain, operator: which.
      shapes: the shapes it is the mean of.
      effect: in units of the domain's quality; no bounds with one seed.
    """

    domain: str
    operator: str
    shapes: tuple[str, ...]
    effect: Interval


@dataclasses.dataclass(frozen=True)
class Tau:
    """Kendall's tau-b of the operators' effects, mean over pairs of domains.

    Attributes:
      estimate: None with fewer than two shared operators.
      low, high: None with fewer than `MIN_SHARED`, which say nothing.
      p: two-sided, of no association.
      operators: shared by all domains.
      method: of the interval and of p.
    """

    estimate: float | None
    low: float | None
    high: float | None
    p: float | None
    operators: tuple[str, ...]
    method: str


@dataclasses.dataclass(frozen=True)
class Test:
    """One deep-narrow shape against the reference curve at a higher cost."""

    domain: str
    shape: str
    cost: float
    reference_cost: float
    difference: Interval


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
      cost: the column.
      qualities: column and direction by domain.
      curves: how each domain's reference curve is drawn.
      effects: by domain and operator.
      tau: of their ranking.
      verdicts: by domain and `joint`; all None where fewer than `MIN_SHARED` operators are shared.
      reasons: for every verdict that is None or undecided.
      tests: behind the verdicts.
      margin, saving: set beforehand.
      outside: shapes by domain whose cost is outside the reference curve's range.
      left_out: shapes by domain without a finite cost or quality, and why.
      non_finite: number of values that were not finite.
      at_edge: shapes by domain whose learning rate is at the edge of what was tried.
    """

    cost: str
    qualities: Mapping[str, tuple[str, Direction]]
    curves: Mapping[str, str]
    effects: tuple[Effect, ...]
    tau: Tau
    verdicts: Mapping[str, Verdict | None]
    reasons: Mapping[str, str]
    tests: tuple[Test, ...]
    margin: float
    saving: float
    outside: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, Mapping[str, str]]
    non_finite: int
    at_edge: Mapping[str, tuple[str, ...]]


def compare(
    table: Table, cost: str, qualities: Mapping[str, tuple[str, Direction]], *,
    margin: float = MARGIN, saving: float = SAVING, reference: str | None = None,
    deep: str | None = None, seed: int = SEED,
) -> Comparison:
    """Compares the domains of `table`.

    Args:
      table: rows of two domains or more.
      cost: a column.
      qualities: column and direction by domain.
      margin: what still counts as equal, in units of the quality.
      saving: s; 0.2 means at most 80% of the cost.
      reference, deep: patterns, see `operators.family_of`.
      seed: of draws and permutations.

    Raises:
      InputError: one domain only, mixed budget kinds, a domain without finite rows, costs that are
        not positive.
    """
    names = domains(table)
    _check(table, names)
    families = {}
    for name in names:
        rows = select(table, table.domain == name)
        families[name] = family_of(rows, name, cost, *qualities[name], reference, deep)
        if not families[name].names:
            raise InputError(f"domain {shorten(name)!r}", "no finished runs with a finite "
                             f"{cost} and {qualities[name][0]}")
        _check_line(families[name])
    found = {name: effect_contrasts(family) for name, family in families.items()}
    tau = _tau(families, found, seed)
    tests, verdicts, reasons = judge(families, margin, saving, seed)
    if len(tau.operators) < MIN_SHARED:
        reason = f"{len(tau.operators)} operators are shared, a verdict needs {MIN_SHARED}"
        verdicts, reasons = dict.fromkeys(verdicts), dict.fromkeys(verdicts, reason)
    return Comparison(
        cost, dict(qualities), {name: family.curve for name, family in families.items()},
        tuple(effect for name in names for effect in _effects(families[name], found[name])), tau,
        verdicts, reasons, tests, margin, saving,
        {name: one.outside for name, one in found.items() if one.outside},
        {name: family.left_out for name, family in families.items() if family.left_out},
        count_non_finite(table, cost, *{quality for quality, _ in qualities.values()}),
        {name: shapes for name in names if (shapes := _at_edge(table, name))})


def _at_edge(table: Table, domain: str) -> tuple[str, ...]:
    """Shapes whose best learning rate was the least or the greatest tried: better ones may lie on.
    """
    edges = table.columns.get("tuning_edge")
    if edges is None or edges.dtype != object:
        return ()
    return tuple(dict.fromkeys(table.name[(table.domain == domain) & table.done & (edges != "")]))


def _check(table: Table, names: Sequence[str]) -> None:
    if len(names) < 2:
        raise InputError("compare", "there is one domain only", got=names[0] or "no column domain",
                         expected="two or more", hint="--by COLUMN says where the domain stands; "
                         "several sources may be given")
    if JOINT in names:
        raise InputError("compare", "no domain may be called so", got=JOINT)
    kinds = table.columns.get("budget_kind")
    used = set(kinds[table.done]) - {""} if kinds is not None and kinds.dtype == object else set()
    if len(used) > 1:
        raise InputError("compare", "budgets of different kinds are not compared",
                         got=", ".join(sorted(map(str, used))), expected="one kind in all domains")


def _check_line(family: Family) -> None:
    if family.curve == ALL_SHAPES and not beside_line(family):
        raise InputError(
            f"domain {shorten(family.domain)!r}", "has too few shapes: without a reference family "
            "each is measured from a line through all", got=len(family.names),
            expected="more than the line runs through",
            hint="--reference PATTERN names a reference family")


def _effects(family: Family, found: Contrasts) -> list[Effect]:
    if family.noise is not None and len(found.weights):
        intervals = contrasts(family.noise, found.weights)
    else:
        intervals = [Interval(float(value), None, None, "one seed")
                     for value in found.weights @ family.scores.mean]
    return [Effect(family.domain, name, shapes, interval) for name, shapes, interval in zip(
        found.operators, found.shapes, intervals, strict=True)]


# --- tau -----------------------------------------------------------------------------------------
def kendall_tau(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of the last axis, any leading axes; NaN where one of them is constant.

    >>> float(kendall_tau(np.array([1, 2, 3]), np.array([1, 3, 2]))).__round__(6)
    0.333333
    """
    size, leading = one.shape[-1], np.broadcast_shapes(one.shape, other.shape)[:-1]
    if leading and math.prod(leading) > 1 and math.prod(leading) * size * size > _CELLS:
        pair = [np.broadcast_to(x, (*leading, size)).reshape(-1, size) for x in (one, other)]
        step = max(1, _CELLS // size ** 2)
        parts = [kendall_tau(*(x[start : start + step] for x in pair))
                 for start in range(0, len(pair[0]), step)]
        return np.concatenate(parts).reshape(leading)
    a = np.sign(one[..., :, None] - one[..., None, :])  # [..., n] -> [..., n, n]
    b = np.sign(other[..., :, None] - other[..., None, :])
    with np.errstate(invalid="ignore"):
        return (a * b).sum((-2, -1)) / np.sqrt((a * a).sum((-2, -1)) * (b * b).sum((-2, -1)))


def affordable(draws: int, size: int) -> int:
    """As many draws of a tau of `size` values as take seconds; at least 50.

    >>> affordable(2000, 20), affordable(2000, 1000)
    (2000, 300)
    """
    return max(50, min(draws, _WORK // max(1, size * size)))


def _tau(families: Mapping[str, Family], found: Mapping[str, Contrasts], seed: int) -> Tau:
    shared = sorted(set.intersection(*(set(one.operators) for one in found.values())))
    rows = {name: one.weights[[one.operators.index(o) for o in shared]]
            for name, one in found.items()}  # [shared, shapes]
    effects = [rows[name] @ family.scores.mean for name, family in families.items()]
    estimate = _mean_tau(effects) if len(shared) > 1 else np.array(math.nan)
    if not np.isfinite(estimate):
        return Tau(None, None, None, None, tuple(shared), "too few shared operators or all equal")
    p, how = _permutation_p(effects, float(estimate), np.random.default_rng(seed))
    if len(shared) < MIN_SHARED:
        return Tau(float(estimate), None, None, p, tuple(shared), "no interval: fewer than "
                   f"{MIN_SHARED} operators; p: {how}")
    draws = affordable(DRAWS, len(shared))
    drawn = [draw_means(family.noise, draws, seed + i) @ rows[name].T if family.noise is not None
             else np.repeat((rows[name] @ family.scores.mean)[None], draws, 0)
             for i, (name, family) in enumerate(families.items())]  # each [draws, shared]
    low, high = rank_interval(float(estimate), kendall_variance(len(shared)), _mean_tau(drawn))
    noisy = all(family.noise is not None for family in families.values())
    noise = ", widened by the noise of seeds" if noisy else ""
    return Tau(float(estimate), low, high, p, tuple(shared), f"score over operators{noise}; p: "
               f"{how}")


def kendall_variance(size: int) -> float:
    """Variance of tau between `size` pairs of independent values (Kendall 1938)."""
    return 2 * (2 * size + 5) / (9 * size * (size - 1))


def rank_interval(estimate: float, variance: float, drawn: np.ndarray) -> tuple[float, float]:
    """90% interval of a rank correlation, from -1 to 1.

    The values r for which (estimate - r)^2 <= z^2 variance (1 - r^2): the variance of no
    association shrinks towards -1 and 1, an assumption that `benchmarks/interval_coverage.py`
    tries. A bootstrap of few ranks is far too narrow there: of five operators that agree every
    resample agrees. Widened to the percentiles of `drawn`, by the noise of seeds.
    """
    z2 = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2 * variance
    root = math.sqrt(max(estimate ** 2 - (1 + z2) * (estimate ** 2 - z2), 0.0))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    bounds = ((estimate - root) / (1 + z2), float(low), (estimate + root) / (1 + z2), float(high))
    return max(min(*bounds[:2], estimate), -1.0), min(max(*bounds[2:], estimate), 1.0)


def _mean_tau(effects: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean([kendall_tau(a, b) for a, b in itertools.combinations(effects, 2)], axis=0)


def _permutation_p(
    effects: Sequence[np.ndarray], estimate: float, rng: np.random.Generator
) -> tuple[float, str]:
    size = len(effects[0])
    if len(effects) == 2 and size <= 7:
        orders = np.array(list(itertools.permutations(range(size))))
        taus = kendall_tau(effects[0][None], effects[1][orders])
        return float(np.mean(np.abs(taus) >= abs(estimate) - 1e-12)), "exact permutations"
    number = affordable(PERMUTATIONS, size)
    shuffled = [rng.permuted(np.repeat(one[None], number, 0), axis=1) for one in effects[1:]]
    taus = _mean_tau([np.repeat(effects[0][None], number, 0), *shuffled])
    more = int((np.abs(taus) >= abs(estimate) - 1e-12).sum())
    return (more + 1) / (number + 1), f"{number} permutations"


# --- DeepNarrow ----------------------------------------------------------------------------------
def judge(
    families: Mapping[str, Family], margin: float, saving: float, seed: int = SEED
) -> tuple[tuple[Test, ...], dict[str, Verdict | None], dict[str, str]]:
    """Returns the tests behind DeepNarrow's verdicts, the verdicts, and reasons where undecided."""
    tests: list[Test] = []
    verdicts: dict[str, Verdict | None] = {}
    reasons: dict[str, str] = {}
    level = 1 - (1 - VERDICT_LEVEL) / len(families)
    for name, family in families.items():
        mine = deep_tests(family, saving, level, seed)
        tests += mine
        verdicts[name] = verdict_of([test.difference for test in mine], margin)
        if not family.deep.any():
            reasons[name] = "no shape is deep-narrow; --deep PATTERN names them"
        elif not mine:
            reasons[name] = (f"no deep-narrow shape at {1 - saving:.0%} of a cost inside the "
                             "reference family's range")
        elif family.noise is None:
            reasons[name] = "one training seed: the noise is not known"
        elif verdicts[name] == "undecided":
            reasons[name] = "the intervals hold -margin: more seeds or more shapes would decide"
    found = list(verdicts.values())
    verdicts[JOINT] = ("fails" if "fails" in found else
                       "holds" if set(found) == {"holds"} else "undecided")
    if verdicts[JOINT] == "undecided":
        reasons[JOINT] = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    return tuple(tests), verdicts, reasons


def deep_tests(family: Family, saving: float, level: float, seed: int = SEED) -> list[Test]:
    """Deep-narrow shapes minus the reference curve at 1 / (1 - saving) times their cost."""
    places, rows = [], []
    for i in np.flatnonzero(family.deep):
        curve = curve_weights(family, float(family.cost[i]) / (1 - saving))
        if curve is not None:
            row = -curve
            row[i] += 1
            places.append(i)
            rows.append(family.sign * row)
    if not rows:
        return []
    weights = np.array(rows)
    if family.noise is None:
        found = [Interval(float(v), None, None, "one seed") for v in weights @ family.scores.mean]
    else:
        found = simultaneous(family.noise, weights, level, seed=seed)
    return [Test(family.domain, family.names[i], float(family.cost[i]),
                 float(family.cost[i]) / (1 - saving), interval)
            for i, interval in zip(places, found, strict=True)]


def verdict_of(differences: Sequence[Interval], margin: float) -> Verdict:
    """`holds`, `fails` or `undecided`, from simultaneous intervals of the differences.

    >>> verdict_of([Interval(0.0, -0.005, 0.005, "")], 0.01)
    'holds'
    """
    if not differences or any(one.low is None or one.high is None for one in differences):
        return "undecided"
    if any(one.low is not None and one.low > -margin for one in differences):
        return "holds"
    if all(one.high is not None and one.high < -margin for one in differences):
        return "fails"
    return "undecided"
