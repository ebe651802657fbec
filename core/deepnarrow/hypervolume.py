"""Hypervolume: how much of the space up to a reference point a set of points dominates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from deepnarrow.dominance import Direction, as_costs, front_mask
from deepnarrow.errors import InputError


def hypervolume(
    values: Float[np.ndarray, "points axes"],
    directions: Sequence[Direction],
    reference: Sequence[float],
) -> float:
    """Volume between `reference` and the front of `values` (Zitzler & Thiele 1998).

    Two axes: a sweep, O(n log n). More: exclusive volumes one point at a time (WFG; While,
    Bradstreet & Barone 2012), for fronts of some hundred points. Points with a non-finite value,
    and those that are not better than the reference on every axis, add nothing.

    Args:
      values: [points, axes].
      directions: for each axis, whether less or more is better.
      reference: for each axis the value that counts as worthless, in the axis's own direction.

    Raises:
      InputError: `values` is not a table with a column for each direction, or the reference has
        another number of axes or is not finite.

    >>> hypervolume(np.array([[1.0, 0.5], [2.0, 0.75]]), ["min", "max"], [4.0, 0.0])
    2.0
    """
    costs = as_costs(values, directions)
    place = np.asarray(reference, dtype=np.float64)
    if place.shape != (costs.shape[1],) or not np.isfinite(place).all():
        raise InputError("hypervolume", "reference is not one finite number an axis",
                         got=list(np.atleast_1d(place)), expected=f"{costs.shape[1]} numbers")
    place = as_costs(place[None], directions)[0]
    costs = costs[np.isfinite(costs).all(axis=1) & (costs < place).all(axis=1)]
    return _volume(_front(costs), place)


def _front(costs: np.ndarray) -> np.ndarray:
    """The distinct points of the front, in lexicographic order."""
    return np.unique(costs[front_mask(costs, ["min"] * costs.shape[1])], axis=0)


def _volume(front: np.ndarray, reference: np.ndarray) -> float:
    if not len(front):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - front[0, 0])
    if len(reference) == 2:
        # By rising first axis the second falls: each point adds the strip to the one before.
        heights = np.r_[reference[1], front[:-1, 1]] - front[:, 1]
        return float(((reference[0] - front[:, 0]) * heights).sum())
    # The worst on the last axis first: the later ones, limited to it, are dominated early.
    front = front[np.argsort(-front[:, -1], kind="stable")]
    total = 0.0
    for i, point in enumerate(front):
        limited = _front(np.maximum(front[i + 1 :], point))
        total += float(np.prod(reference - point)) - _volume(limited, reference)
    return total
