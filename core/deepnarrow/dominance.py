"""Which points no other point dominates, in any number of axes. NumPy only, never JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from deepnarrow.errors import InputError

Direction = Literal["min", "max"]
# Below this many pairs, comparing all of them beats dividing further.
_ALL_PAIRS = 1 << 14


def front_mask(
    values: Float[np.ndarray, "points axes"], directions: Sequence[Direction]
) -> Bool[np.ndarray, " points"]:
    """Marks the points that no other point dominates.

    A point dominates another if it is at least as good on every axis and better on one; so equal
    points are on the front together, and an axis on which all points agree decides nothing. Points
    with a non-finite value are off the front. O(n log n) for one and two axes that vary,
    O(n log^(axes - 1) n) beyond: divide and conquer after Kung, Luccio & Preparata (1975).

    Args:
      values: [points, axes], any mixture of costs and qualities.
      directions: for each axis, whether less ("min") or more ("max") is better.

    Returns:
      [points], True on the front.

    Raises:
      InputError: `values` is not a table with a column for each direction.

    >>> front_mask(np.array([[1, 0.5], [2, 0.9], [3, 0.8]]), ["min", "max"]).tolist()
    [True, True, False]
    """
    costs = as_costs(values, directions)
    finite = np.isfinite(costs).all(axis=1)  # [points, axes] -> [points]
    mask = np.zeros(len(costs), dtype=bool)
    costs = costs[finite]  # [points, axes] -> [finite points, axes]
    if len(costs):
        costs = costs[:, (costs != costs[0]).any(axis=0)]  # constant axes drop out
        kept = _rough(costs)
        found = np.zeros(len(costs), dtype=bool)
        found[kept] = _front_of_costs(costs[kept])
        mask[finite] = found
    return mask


def as_costs(
    values: Float[np.ndarray, "points axes"], directions: Sequence[Direction]
) -> Float[np.ndarray, "points axes"]:
    """Returns `values` such that less is better on every axis, -0.0 as 0.0.

    Raises:
      InputError: `values` is not a table with a column for each direction.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(directions) or not len(directions):
        raise InputError("front", "values are not one column a direction", got=values.shape,
                         expected=f"[points, {len(directions) or '>= 1'}]")
    unknown = sorted(set(directions) - {"min", "max"})
    if unknown:
        raise InputError("front", "unknown direction", got=unknown[0], expected="min or max")
    return values * np.where(np.array(directions) == "min", 1.0, -1.0) + 0.0


def _rough(costs: np.ndarray) -> np.ndarray:
    """[points, axes] -> places of the points that one good point of the front does not dominate.

    One pass that leaves a few of many random points. Which point it is decides speed only.
    """
    if len(costs) * len(costs) <= _ALL_PAIRS or costs.shape[1] < 2:
        return np.arange(len(costs))
    low = costs.min(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        good = costs[np.argmin(((costs - low) / (costs.max(axis=0) - low)).sum(axis=1))]
    worse = np.ones(len(costs), dtype=bool)
    for axis in range(costs.shape[1]):
        worse &= costs[:, axis] >= good[axis]
    return np.flatnonzero(~worse | (costs == good).all(axis=1))


def _front_of_costs(costs: np.ndarray) -> np.ndarray:
    """[points, axes] -> [points]: the front where less is better; one point or more."""
    if costs.shape[1] == 0:
        return np.ones(len(costs), dtype=bool)
    if costs.shape[1] == 1:
        return costs[:, 0] == costs.min()
    if costs.shape[1] == 2:
        return _front_of_two(costs)
    # Distinct and in lexicographic order, only an earlier point can dominate a later one, and it
    # does where it is nowhere worse on the other axes.
    order = np.lexsort(costs.T[::-1])
    ordered = costs[order]
    new = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]  # [points]
    distinct = _front_of_sorted(ordered[new][:, 1:])
    mask = np.empty(len(costs), dtype=bool)
    mask[order] = distinct[np.cumsum(new) - 1]  # [distinct] -> [points]
    return mask


def _front_of_two(costs: np.ndarray) -> np.ndarray:
    order = np.argsort(costs[:, 0])
    x, y = costs[order].T  # [points, 2] -> 2 x [points]
    first = np.flatnonzero(np.r_[True, x[1:] != x[:-1]])  # [points] -> [distinct x]
    best = np.minimum.reduceat(y, first)  # the least y of each x
    before = np.r_[np.inf, np.minimum.accumulate(best)[:-1]]  # the least y of any smaller x
    column = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(x)]))  # -> [points]
    mask = np.empty(len(costs), dtype=bool)
    mask[order] = (y == best[column]) & (best < before)[column]
    return mask


def _front_of_sorted(rest: np.ndarray) -> np.ndarray:
    """[points, axes - 1] -> [points]: which rows have no earlier row that is nowhere worse."""
    size = len(rest)
    if size * size <= _ALL_PAIRS:
        earlier = np.tri(size, k=-1, dtype=bool)  # [later, earlier]
        return np.logical_not((_pairs(rest, rest) & earlier).any(axis=1))
    half = size // 2
    mask = np.empty(size, dtype=bool)
    mask[:half] = _front_of_sorted(rest[:half])
    mask[half:] = ~_covered(rest[:half][mask[:half]], rest[half:])
    # What the first half covers can be left out: whoever it dominates is covered as well.
    left = half + np.flatnonzero(mask[half:])
    mask[left] = _front_of_sorted(rest[left])
    return mask


def _covered(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[a, axes], [b, axes] -> [b]: whether any of `some` is nowhere worse than each of `others`."""
    if not len(some) or not len(others):
        return np.zeros(len(others), dtype=bool)
    if some.shape[1] == 1:
        return np.asarray(others[:, 0] >= some.min())
    if some.shape[1] == 2:
        order = np.argsort(some[:, 0])
        least = np.minimum.accumulate(some[order, 1])
        place = np.searchsorted(some[order, 0], others[:, 0], side="right") - 1
        return np.asarray((place >= 0) & (least[np.maximum(place, 0)] <= others[:, 1]))
    if len(some) * len(others) <= _ALL_PAIRS:
        return np.asarray(_pairs(some, others).any(axis=1))
    return _covered_by_parts(some, others)


def _covered_by_parts(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    values = np.concatenate([some[:, 0], others[:, 0]])
    if some[:, 0].max() <= others[:, 0].min():
        return _covered(some[:, 1:], others[:, 1:])  # the first axis is settled
    middle = np.partition(values, len(values) // 2)[len(values) // 2]
    if middle == values.max():
        middle = values[values < middle].max()
    low, below = some[:, 0] <= middle, others[:, 0] <= middle
    found = np.empty(len(others), dtype=bool)
    found[below] = _covered(some[low], others[below])
    found[~below] = _covered(some[low][:, 1:], others[~below][:, 1:])
    left = np.flatnonzero(~below & ~found)
    found[left] = _covered(some[~low], others[left])
    return found


def _pairs(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[a, axes], [b, axes] -> [b, a]: whether one of `some` is nowhere worse than `others`."""
    found = np.ones((len(others), len(some)), dtype=bool)
    for axis in range(some.shape[1]):
        found &= some[:, axis] <= others[:, axis, None]  # [b, 1] and [a] -> [b, a]
    return found
