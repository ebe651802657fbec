"""Upstream against downstream: does the better pre-trained shape transfer better?

Rank correlations over the shapes of one domain, and the pairs that turn around beyond seed noise
(Tay et al. 2022, Figure 1 and Table 3). Different metrics exaggerate the gap differently, so every
downstream quality is set beside upstream: cross-entropies (loss against loss) as well as
accuracies.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from deepnarrow.bootstrap import SEED, Interval, Uncertain, contrasts, draw_means, uncertain
from deepnarrow.compare import affordable, kendall_tau, kendall_variance, rank_interval
from deepnarrow.dominance import Direction
from deepnarrow.operators import split_name
from deepnarrow.table import SeedValues, Table, seed_values, shapes_of

DRAWS = 1000
MIN_SHAPES = 3
MAX_PAIRED = 400  # shapes whose pairs are looked at
MAX_PAIRS = 200  # inversions listed; all are counted


@dataclasses.dataclass(frozen=True)
class Inversion:
    """Upstream says `upstream_better`, downstream `downstream_better`, both beyond seed noise."""

    upstream_better: str
    downstream_better: str
    upstream: Interval
    downstream: Interval


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One upstream quality against one downstream quality.

    Attributes:
      upstream, downstream: columns; each with its direction, better being positive in all numbers.
      transform: what is ranked, in words.
      shapes: how many have both.
      kendall, spearman: rank correlations, with intervals (`compare.rank_interval`).
      inversions: pairs that turn around, the surest first, at most `MAX_PAIRS`.
      inverted, decided: how many pairs turn around, of those that both sides decide; None with one
        seed or more than `MAX_PAIRED` shapes.
      by_operator: inversions that the operator's shapes take part in.
    """

    upstream: tuple[str, Direction]
    downstream: tuple[str, Direction]
    transform: str
    shapes: int
    kendall: Interval
    spearman: Interval
    inversions: tuple[Inversion, ...]
    inverted: int | None
    decided: int | None
    by_operator: tuple[tuple[str, int], ...]


def agreements(
    table: Table, upstream: tuple[str, Direction], downstream: Sequence[tuple[str, Direction]],
    seed: int = SEED,
) -> list[Agreement]:
    """Sets every downstream quality beside the upstream one.

    Args:
      table: the rows of one domain.
      upstream, downstream: columns with directions.
      seed: of the resampling.
    """
    shapes = shapes_of(table)
    first = seed_values(table, shapes, upstream[0])
    found = []
    for quality in downstream:
        second = seed_values(table, shapes, quality[0])
        known = np.flatnonzero(np.isfinite(first.mean) & np.isfinite(second.mean))
        if len(known) >= MIN_SHAPES:
            found.append(_agreement(_pick(first, known), _pick(second, known), upstream, quality,
                                    seed))
    return found


def upstream_agreements(
    table: Table, qualities: Sequence[tuple[str, Direction]]
) -> list[Agreement]:
    """Sets the first quality that is upstream (else the first of all) beside the others.

    Args:
      table: the rows of one domain.
      qualities: columns with directions.
    """
    if len(qualities) < 2:
        return []
    first = next((one for one in qualities if one[0].startswith("upstream/")), qualities[0])
    return agreements(table, first, [one for one in qualities if one[0] != first[0]])


def _pick(values: SeedValues, places: np.ndarray) -> SeedValues:
    examples = None if values.examples is None else values.examples[places]
    return SeedValues(tuple(values.names[i] for i in places), values.mean[places],
                      values.sd[places], values.n[places], examples)


def _agreement(
    first: SeedValues, second: SeedValues, upstream: tuple[str, Direction],
    downstream: tuple[str, Direction], seed: int,
) -> Agreement:
    signs = [1.0 if way == "max" else -1.0 for _, way in (upstream, downstream)]
    means = [sign * values.mean for sign, values in zip(signs, (first, second), strict=True)]
    noises = [uncertain(first), uncertain(second)]
    size = len(means[0])
    draws = affordable(DRAWS, size)
    drawn = []
    for k, noise in enumerate(noises):
        one = np.repeat(means[k][None], draws, 0) if noise is None else \
            signs[k] * draw_means(noise, draws, seed + k)
        drawn.append(one)
    method = "score over shapes" + (", widened by the noise of seeds" if all(noises) else "")
    inversions, decided = _inversions(first.names, noises, signs)
    involved = Counter(operator for one in inversions for operator in {
        "-".join(split_name(name)[1]) for name in (one.upstream_better, one.downstream_better)}
        if operator)
    return Agreement(
        upstream, downstream,
        f"ranks of {_signed(*upstream)} against ranks of {_signed(*downstream)}", len(means[0]),
        _interval(kendall_tau(*means), kendall_variance(size), kendall_tau(*drawn), method),
        _interval(spearman(*means), 1 / (size - 1), spearman(*drawn), method),
        tuple(inversions[:MAX_PAIRS]),
        None if decided is None else len(inversions), decided,
        tuple(sorted(involved.items(), key=lambda pair: -pair[1])))


def _signed(name: str, way: Direction) -> str:
    return name if way == "max" else f"-{name}"


def _interval(
    estimate: np.ndarray, variance: float, drawn: np.ndarray, method: str
) -> Interval:
    if not np.isfinite(estimate):
        return Interval(None, None, None, "one side is constant")
    low, high = rank_interval(float(estimate), variance, drawn)
    return Interval(float(estimate), low, high, method)


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's rho of the last axis (mean ranks for ties); NaN where one side is constant.

    >>> float(spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])))
    0.5
    """
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """[..., n] -> ranks from 0, mean ones for ties."""
    order = np.argsort(values, axis=-1, kind="stable")
    inner = np.take_along_axis(values, order, -1)
    size = values.shape[-1]
    new = np.ones(values.shape, dtype=bool)
    new[..., 1:] = inner[..., 1:] != inner[..., :-1]
    places = np.broadcast_to(np.arange(size), values.shape)
    first = np.maximum.accumulate(np.where(new, places, 0), axis=-1)
    ends = np.ones(values.shape, dtype=bool)
    ends[..., :-1] = new[..., 1:]
    last = np.minimum.accumulate(np.where(ends, places, size)[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, -1)
    return ranks


def _inversions(
    names: Sequence[str], noises: Sequence[Uncertain | None], signs: Sequence[float]
) -> tuple[list[Inversion], int | None]:
    """The pairs that turn around, and the number of pairs that both sides decide."""
    size = len(names)
    up, down = noises
    if up is None or down is None or size > MAX_PAIRED:
        return [], None
    i, j = np.triu_indices(size, 1)
    weights = np.zeros((len(i), size))
    weights[np.arange(len(i)), i], weights[np.arange(len(i)), j] = 1, -1
    pairs = zip(i.tolist(), j.tolist(), contrasts(up, signs[0] * weights),
                contrasts(down, signs[1] * weights), strict=True)
    found, decided = [], 0
    for a, b, first, second in pairs:
        if not (_beyond(first) and _beyond(second)):
            continue
        decided += 1
        if (first.estimate or 0) * (second.estimate or 0) < 0:
            better, worse = (a, b) if (first.estimate or 0) > 0 else (b, a)
            if better == a:
                found.append(Inversion(names[better], names[worse], first, _flip(second)))
            else:
                found.append(Inversion(names[better], names[worse], _flip(first), second))
    return sorted(found, key=lambda one: -min(one.upstream.low or 0, one.downstream.low or 0)), \
        decided


def _beyond(one: Interval) -> bool:
    return one.low is not None and one.high is not None and (one.low > 0 or one.high < 0)


def _flip(one: Interval) -> Interval:
    low, high = (None if v is None else -v for v in (one.high, one.low))
    return Interval(None if one.estimate is None else -one.estimate, low, high, one.method)
