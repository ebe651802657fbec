"""Claims about one domain, each with its interval: "A matches B at x% of its cost", and what saves.

All are functions of the shapes' means over training seeds. Weighted sums of means have exact
pooled-t intervals; what is read off a front, a best-of-several, has bias-corrected percentiles of
`bootstrap.draw_means`. Costs are taken as known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from deepnarrow.bootstrap import (
    DRAWS,
    LEVEL,
    SEED,
    Interval,
    contrasts,
    corrected_percentiles,
    draw_means,
)
from deepnarrow.errors import InputError
from deepnarrow.operators import DEPTH_SYMBOLS, Family, curve_weights, family_of, split_name
from deepnarrow.pareto import Front
from deepnarrow.regions import Regions, regions
from deepnarrow.table import Table, select

MARGIN = 0.01
MAX_SHAPES = 500  # of one plane; claims of more take minutes, and nobody reads them
MAX_BASELINES = 60  # spread over the costs where every shape is one
MANY_SHAPES = 100  # above, fewer draws: their quantiles cost more and matter less
_CELLS = 4_000_000  # of weights held at a time
MAX_SEEDS = 1000
# Shapes whose costs differ by less say nothing about what cost buys.
MIN_DOUBLING = 0.07


@dataclasses.dataclass(frozen=True)
class Match:
    """A shape against a baseline that costs more.

    Attributes:
      shape, baseline: names.
      cost_ratio: the shape's cost over the baseline's.
      difference: quality of the shape minus the baseline's, better being positive.
      verdict: `matches`: the interval is above -margin; `worse`: below; else `undecided`.
      seeds_needed: of each shape, for an interval of this estimate that decides; None above
        `MAX_SEEDS` or with one seed.
    """

    shape: str
    baseline: str
    cost_ratio: float
    difference: Interval
    verdict: Literal["matches", "worse", "undecided"]
    seeds_needed: int | None


def matches(family: Family, margin: float = MARGIN) -> list[Match]:
    """Compares every baseline (reference shapes) with every cheaper shape, by rising cost ratio."""
    pairs = [(i, b) for b in baselines_of(family) for i in range(len(family.names))
             if family.cost[i] < family.cost[b]]
    step = max(1, _CELLS // max(1, len(family.names)))
    found = [one for start in range(0, len(pairs), step)
             for one in _differences(family, pairs[start : start + step])]
    made = [Match(family.names[i], family.names[b], float(family.cost[i] / family.cost[b]), one,
                  _verdict(one, margin), _seeds_needed(family, i, b, one, margin))
            for (i, b), one in zip(pairs, found, strict=True)]
    return sorted(made, key=lambda match: (match.baseline, match.cost_ratio, match.shape))


def baselines_of(family: Family) -> list[int]:
    """The reference family's shapes; of more than `MAX_BASELINES`, evenly many over the costs."""
    found = np.flatnonzero(family.reference)
    found = found[np.argsort(family.cost[found], kind="stable")]
    if len(found) > MAX_BASELINES:
        found = found[np.unique(np.linspace(0, len(found) - 1, MAX_BASELINES).round().astype(int))]
    return sorted(found.tolist())


def _differences(family: Family, pairs: Sequence[tuple[int, int]]) -> list[Interval]:
    weights = np.zeros((len(pairs), len(family.names)))
    for k, (i, b) in enumerate(pairs):
        weights[k, i], weights[k, b] = family.sign, -family.sign
    if family.noise is None:
        return [Interval(float(v), None, None, "one seed") for v in weights @ family.scores.mean]
    return contrasts(family.noise, weights)


def _verdict(difference: Interval, margin: float) -> Literal["matches", "worse", "undecided"]:
    if difference.low is not None and difference.low > -margin:
        return "matches"
    return "worse" if difference.high is not None and difference.high < -margin else "undecided"


def _seeds_needed(
    family: Family, one: int, other: int, difference: Interval, margin: float
) -> int | None:
    from scipy.special import stdtrit

    if family.noise is None or difference.estimate is None:
        return None
    seeds = family.scores.n[[one, other]]
    variance = float((family.noise.variance[[one, other]] * seeds).sum())  # of a pair of seeds
    distance = abs(difference.estimate + margin)
    sizes = np.arange(2, MAX_SEEDS + 1)
    half = stdtrit(2 * (sizes - 1), (1 + LEVEL) / 2) * np.sqrt(variance / sizes)
    enough = np.flatnonzero(half < distance)
    return int(sizes[enough[0]]) if len(enough) else None


@dataclasses.dataclass(frozen=True)
class Saving:
    """What the interpolated front of the other shapes saves at a baseline's quality.

    Attributes:
      baseline: its name.
      saving: 1 - (cost at which the front has the baseline's quality) / (its cost); negative where
        the others need more. No estimate where they do not reach the quality; a bound is None where
        the front may not reach it.
      at_least: the cheapest other shape is as good already: the front may be cheaper still.
    """

    baseline: str
    saving: Interval
    at_least: bool


def savings(family: Family, baselines: Sequence[str] | None = None, draws: int = DRAWS,
            seed: int = SEED) -> list[Saving]:
    """Reads the savings at equal quality off the interpolated front, for every baseline.

    Between its points the front is a straight line over log cost. The baseline itself is left out
    of the front; the reference family's shapes are the baselines where none are named.
    """
    chosen = baselines_of(family) if baselines is None else [
        i for i, name in enumerate(family.names) if name in baselines]
    drawn = None if family.noise is None else family.sign * draw_means(family.noise, draws, seed)
    observed = family.sign * family.scores.mean[None]
    found = []
    for i in chosen:
        rest = np.delete(np.arange(len(family.names)), i)
        if not (family.cost[rest] < family.cost[i]).any():
            continue  # nothing costs less, so nothing can save

        def saving(means: np.ndarray, i: int = i, rest: np.ndarray = rest) -> np.ndarray:
            reached = front_cost(means[:, rest], family.cost[rest], means[:, i])
            return 1 - reached / family.cost[i]

        estimate = float(saving(observed)[0])
        if drawn is None or family.noise is None:
            known = estimate if math.isfinite(estimate) else None
            interval = Interval(known, None, None, "one seed")
        else:
            interval = corrected_percentiles(estimate, saving(drawn), family.noise.method)
        cheapest = rest[np.argmin(family.cost[rest])]
        found.append(Saving(family.names[i], interval, bool(
            observed[0, cheapest] >= observed[0, i])))
    return found


def front_cost(quality: np.ndarray, cost: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[draws, shapes], [shapes], [draws] -> [draws]: least cost at which the front has the target.

    More quality is better. The front joins its points by straight lines over log cost; below its
    first point it is that point's cost, above its last it is infinite.
    """
    quality, logs = _levels(quality, cost)
    best = np.maximum.accumulate(quality, axis=1)  # [draws, levels]
    rises = np.ones(best.shape, dtype=bool)
    rises[:, 1:] = best[:, 1:] > best[:, :-1]
    # The front's point at or before each place.
    place = np.maximum.accumulate(np.where(rises, np.arange(best.shape[1]), 0), axis=1)
    reached = best >= target[:, None]
    right = reached.argmax(axis=1)
    rows = np.arange(len(best))
    left = place[rows, np.maximum(right - 1, 0)]
    low, high = best[rows, left], best[rows, right]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(right > 0, (target - low) / (high - low), 1.0)
    found = logs[left] + share * (logs[right] - logs[left])
    return np.where(reached.any(axis=1), np.exp(found), np.inf)


@dataclasses.dataclass(frozen=True)
class Gain:
    """What an operator buys.

    Attributes:
      operator: its name.
      shapes: that it made.
      per_doubling: quality gained per doubling of cost over the shape it was applied to, least
        squares through the origin over its shapes; None where their costs hardly differ.
      lift: quality over the interpolated front of all shapes without it, at equal cost, mean over
        its shapes inside that front's range; how far the operator moves the front.
    """

    operator: str
    shapes: tuple[str, ...]
    per_doubling: Interval | None
    lift: Interval | None


def gains(family: Family, draws: int = DRAWS, seed: int = SEED) -> list[Gain]:
    """Returns what every operator buys, by falling lift."""
    drawn = None if family.noise is None else family.sign * draw_means(family.noise, draws, seed)
    found = []
    for operator in sorted({one for one in family.operator if one}):
        mine = [i for i, one in enumerate(family.operator) if one == operator]
        found.append(Gain(operator, tuple(family.names[i] for i in mine),
                          _per_doubling(family, mine), _lift(family, mine, drawn)))
    return sorted(found, key=lambda gain: -(gain.lift.estimate or 0.0) if gain.lift else math.inf)


def _per_doubling(family: Family, mine: Sequence[int]) -> Interval | None:
    places = {name: i for i, name in enumerate(family.names)}
    rows = np.zeros(len(family.names))
    squares = 0.0
    for i in mine:
        base = places.get(family.base[i])
        doublings = math.log2(family.cost[i] / family.cost[base]) if base is not None else 0.0
        if base is not None and abs(doublings) >= MIN_DOUBLING:
            rows[i] += family.sign * doublings
            rows[base] -= family.sign * doublings
            squares += doublings ** 2
    if not squares:
        return None
    if family.noise is None:
        return Interval(float(rows @ family.scores.mean / squares), None, None, "one seed")
    return contrasts(family.noise, rows[None] / squares)[0]


def _lift(family: Family, mine: Sequence[int], drawn: np.ndarray | None) -> Interval | None:
    rest = np.delete(np.arange(len(family.names)), mine)
    if len(rest) == 0:
        return None
    low = family.cost[rest].min()
    inside = [i for i in mine if family.cost[i] >= low]
    if not inside:
        return None

    def lift(means: np.ndarray) -> np.ndarray:
        front = front_quality(means[:, rest], family.cost[rest], family.cost[inside])
        return (means[:, inside] - front).mean(axis=1)

    estimate = float(lift(family.sign * family.scores.mean[None])[0])
    if drawn is None or family.noise is None:
        return Interval(estimate, None, None, "one seed")
    return corrected_percentiles(estimate, lift(drawn), family.noise.method)


def front_quality(quality: np.ndarray, cost: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[draws, shapes], [shapes], [places] -> [draws, places]: the interpolated front at costs `at`.

    Beyond its last point it stays level: more cost buys at least as much.
    """
    quality, logs = _levels(quality, cost)
    best = np.maximum.accumulate(quality, axis=1)  # [draws, levels]
    size = len(logs)
    rises = np.ones(best.shape, dtype=bool)
    rises[:, 1:] = best[:, 1:] > best[:, :-1]
    places = np.where(rises, np.arange(size), 0)
    left = np.maximum.accumulate(places, axis=1)  # the front's point at or before each level
    later = np.where(rises, np.arange(size), size)
    after = np.minimum.accumulate(later[:, ::-1], axis=1)[:, ::-1]  # at or after each level
    found = np.empty((len(quality), len(at)))
    rows = np.arange(len(quality))
    for k, target in enumerate(np.log(at)):
        level = max(int(np.searchsorted(logs, target, side="right")) - 1, 0)
        one = left[:, level]
        other = after[:, level + 1] if level + 1 < size else np.full(len(rows), size)
        other = np.where(other < size, other, one)
        span = logs[other] - logs[one]
        share = np.where(span > 0, (target - logs[one]) / np.where(span > 0, span, 1), 0.0)
        found[:, k] = best[rows, one] + share * (best[rows, other] - best[rows, one])
    return found


def _levels(quality: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[draws, shapes] -> [draws, levels] the best quality of each distinct cost, and log costs."""
    order = np.argsort(cost, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(cost[order]) > 0])
    return np.maximum.reduceat(quality[:, order], first, axis=1), np.log(cost[order][first])


@dataclasses.dataclass(frozen=True)
class DepthLimit:
    """Where more layers stop paying at equal cost, for one base.

    Attributes:
      base: the shape whose layers were varied.
      depths: measured, rising.
      effects: quality over the reference curve at equal cost, by depth.
      best: the depth with the largest effect; `high` is None where the deepest may be the best, so
        that an end was not seen.
    """

    base: str
    depths: tuple[int, ...]
    effects: tuple[float, ...]
    best: Interval


def depth_limits(family: Family, draws: int = DRAWS, seed: int = SEED) -> list[DepthLimit]:
    """Returns, for every base with three depths or more, where depth stops paying."""
    drawn = None if family.noise is None else draw_means(family.noise, draws, seed)
    found = []
    for base in dict.fromkeys(family.base):
        rows = _depth_rows(family, base)
        if len(rows) < 3:
            continue
        depths = np.array([depth for depth, _ in rows])
        weights = np.array([row for _, row in rows])
        effects = weights @ family.scores.mean
        best = float(depths[np.argmax(effects)])
        interval = Interval(best, None, None, "one seed")
        if drawn is not None and family.noise is not None:
            places = depths[np.argmax(drawn @ weights.T, axis=1)]
            low, high = np.quantile(places, [(1 - LEVEL) / 2, (1 + LEVEL) / 2],
                                    method="inverted_cdf")
            interval = Interval(best, float(low), None if high == depths[-1] else float(high),
                                f"{family.noise.method}, percentile")
        found.append(DepthLimit(base, tuple(map(int, depths)), tuple(map(float, effects)),
                                interval))
    return found


def _depth_rows(family: Family, base: str) -> list[tuple[float, np.ndarray]]:
    """Depth and effect at equal cost of a base and of its shapes with operators on depth alone."""
    rows = []
    for i, name in enumerate(family.names):
        symbols = {term.rstrip("0123456789.*k") for term in split_name(name)[1]}
        if family.base[i] == base and symbols <= set(DEPTH_SYMBOLS) and math.isfinite(
                family.depth[i]):
            curve = curve_weights(family, float(family.cost[i]))
            if curve is not None:
                row = -curve
                row[i] += 1
                rows.append((float(family.depth[i]), family.sign * row))
    return sorted(rows, key=lambda pair: pair[0])


@dataclasses.dataclass(frozen=True)
class Claims:
    """All claims of one front's plane, and what carries over between sizes."""

    modality: str
    cost: str
    quality: str
    matches: list[Match]
    savings: list[Saving]
    gains: list[Gain]
    depth_limits: list[DepthLimit]
    regions: Regions


def claims_of(
    table: Table, front: Front, margin: float = MARGIN, reference: str | None = None
) -> Claims | None:
    """Returns the claims of one plane of `table`; None for one machine's share of step times, and
    where nothing has a finite cost and quality.

    Args:
      table: rows of the front's domain, and perhaps of others.
      front: the plane.
      margin: what still counts as equal, in units of the quality.
      reference: pattern of the baselines, see `operators.family_of`.

    Raises:
      InputError: a cost is not positive, `reference` matches nothing, or there are more than
        `MAX_SHAPES` shapes.
    """
    if front.machine or not front.points:
        return None
    if len(front.points) > MAX_SHAPES:
        raise InputError("claims", "are made of fewer shapes", got=len(front.points),
                         expected=f"<= {MAX_SHAPES} in one domain")
    rows = select(table, table.domain == front.modality)
    family = family_of(rows, front.modality, front.cost, front.quality, front.direction,
                       reference)
    draws = min(DRAWS, DRAWS * MANY_SHAPES // len(family.names))
    return Claims(front.modality, front.cost, front.quality, matches(family, margin),
                  savings(family, draws=draws), gains(family, draws), depth_limits(family, draws),
                  regions(family, draws))
