"""Compute regions: does the ranking of operators at one size hold at a larger one?

A rung is a base (tiny, mini, small ...) with the shapes that operators made of it.
"""

from __future__ import annotations

import dataclasses
import itertools

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
from deepnarrow.compare import kendall_tau
from deepnarrow.operators import Contrasts, Family, effect_contrasts

MIN_SHARED = 2


@dataclasses.dataclass(frozen=True)
class Rung:
    """The operators of one base, best first.

    Attributes:
      base: its name.
      cost: of the base, or the mean of its shapes where it was not trained.
      ranking: operators with their effect at equal cost, by falling effect.
    """

    base: str
    cost: float
    ranking: tuple[tuple[str, Interval], ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """A smaller rung against a larger one.

    Attributes:
      small, large: bases.
      operators: on both.
      tau: Kendall's tau-b of their effects; the interval is of the noise of seeds.
      chosen: the best operator on the small rung.
      regret: what choosing it loses on the large rung against the best there.
    """

    small: str
    large: str
    operators: tuple[str, ...]
    tau: Interval
    chosen: str
    regret: Interval


@dataclasses.dataclass(frozen=True)
class Regions:
    """All rungs by rising cost, and all pairs of them that share two operators or more."""

    rungs: tuple[Rung, ...]
    steps: tuple[Step, ...]


def regions(family: Family, draws: int = DRAWS, seed: int = SEED) -> Regions:
    """Ranks the operators on every rung and says what carries over."""
    drawn = None if family.noise is None else draw_means(family.noise, draws, seed)
    found: list[tuple[Rung, Contrasts]] = []
    for base in dict.fromkeys(family.base):
        here = np.array([one == base for one in family.base])
        made = effect_contrasts(family, here)
        if made.operators:
            own = here & (np.array(family.names) == base)
            cost = float(family.cost[own if own.any() else here].mean())
            found.append((Rung(base, cost, _ranking(family, made)), made))
    found.sort(key=lambda pair: pair[0].cost)
    steps = [_step(family, small, large, drawn)
             for small, large in itertools.combinations(found, 2)]
    return Regions(tuple(rung for rung, _ in found), tuple(s for s in steps if s is not None))


def _ranking(family: Family, made: Contrasts) -> tuple[tuple[str, Interval], ...]:
    if family.noise is None:
        intervals = [Interval(float(v), None, None, "one seed")
                     for v in made.weights @ family.scores.mean]
    else:
        intervals = contrasts(family.noise, made.weights)
    pairs = zip(made.operators, intervals, strict=True)
    return tuple(sorted(pairs, key=lambda pair: -(pair[1].estimate or 0.0)))


def _step(
    family: Family, small: tuple[Rung, Contrasts], large: tuple[Rung, Contrasts],
    drawn: np.ndarray | None,
) -> Step | None:
    shared = [one for one in small[1].operators if one in large[1].operators]
    if len(shared) < MIN_SHARED:
        return None
    low, high = (made.weights[[made.operators.index(one) for one in shared]]
                 for _, made in (small, large))  # each [shared, shapes]
    mean = family.scores.mean
    chosen = int(np.argmax(low @ mean))
    tau = float(kendall_tau(low @ mean, high @ mean))
    regret = float((high @ mean).max() - (high @ mean)[chosen])
    names = (small[0].base, large[0].base, tuple(shared))
    if drawn is None or family.noise is None:
        one = "one seed"
        return Step(*names, Interval(tau if np.isfinite(tau) else None, None, None, one),
                    shared[chosen], Interval(regret, None, None, one))
    taus = kendall_tau(drawn @ low.T, drawn @ high.T)
    bounds = np.nanquantile(taus, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    effects = drawn @ high.T  # [draws, shared]
    return Step(*names, Interval(tau, float(min(bounds[0], tau)), float(max(bounds[1], tau)),
                                 f"{family.noise.method}, percentile"), shared[chosen],
                corrected_percentiles(regret, effects.max(axis=1) - effects[:, chosen],
                                      family.noise.method))
