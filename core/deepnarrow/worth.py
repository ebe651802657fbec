"""Was pre-training worth anything, and where do features lose to raw inputs?

The same probe, or the same fine-tuning, on three origins: the pre-trained model, an untrained
network of the same shape, and the raw inputs. Differences are taken within a training seed, and
their noise is pooled over the shapes (`bootstrap.uncertain`). They say where quality is lost, from
raw inputs to an untrained network's features, and how much pre-training wins back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from deepnarrow.agreement import MIN_SHAPES
from deepnarrow.bootstrap import Interval, contrasts, uncertain
from deepnarrow.compare import kendall_tau, kendall_variance, rank_interval
from deepnarrow.dominance import Direction
from deepnarrow.table import Table, seed_values, shapes_of

UNTRAINED, RAW = "untrained", "raw"
DIFFERENCE = "difference"  # the column of a table that is made to be reduced


@dataclasses.dataclass(frozen=True)
class ShapeWorth:
    """One shape; differences are better where positive, None where not measured.

    Attributes:
      name: of the shape.
      pretrained: its mean.
      over_untrained: the pre-trained model minus an untrained network of the shape.
      over_raw: the pre-trained model minus the raw inputs.
    """

    name: str
    pretrained: float
    over_untrained: Interval | None
    over_raw: Interval | None


@dataclasses.dataclass(frozen=True)
class Worth:
    """One quality of one domain, beside what needs no pre-training.

    Attributes:
      quality, direction: the column.
      shapes: those that were measured.
      pretrained, untrained, raw: means over the shapes; None where not measured.
      alike: Kendall's tau of the shapes, pre-trained against untrained: near 1, the order is that
        of the architectures under this probe, not of what they learnt. None below three shapes.
    """

    quality: str
    direction: Direction
    shapes: tuple[ShapeWorth, ...]
    pretrained: float
    untrained: float | None
    raw: float | None
    alike: Interval | None


def worths(table: Table, qualities: Sequence[tuple[str, Direction]]) -> list[Worth]:
    """Returns what every quality is worth that was measured without pre-training as well.

    Args:
      table: the rows of one domain.
      qualities: columns with directions.
    """
    names = {name for columns in table.beside.values() for name in columns}
    made = [_worth(table, name, way) for name, way in qualities if name in names]
    return [one for one in made if one is not None]


def _worth(table: Table, quality: str, direction: Direction) -> Worth | None:
    shapes = shapes_of(table)
    own = seed_values(table, shapes, quality).mean
    means = {origin: seed_values(_with(table, columns[quality]), shapes, DIFFERENCE).mean
             for origin, columns in table.beside.items() if quality in columns}
    known = np.isfinite(own) & np.any([np.isfinite(one) for one in means.values()], axis=0)
    if not known.any():
        return None
    over = {origin: _over(table, quality, origin, direction) if origin in means else
            [None] * len(own) for origin in (UNTRAINED, RAW)}
    average = {origin: float(np.nanmean(one[known])) for origin, one in means.items()
               if np.isfinite(one[known]).any()}
    return Worth(
        quality, direction,
        tuple(ShapeWorth(shapes.names[i], float(own[i]), over[UNTRAINED][i], over[RAW][i])
              for i in np.flatnonzero(known)),
        float(own[known].mean()), average.get(UNTRAINED), average.get(RAW),
        _alike(own[known], means[UNTRAINED][known]) if UNTRAINED in average else None)


def _with(table: Table, values: np.ndarray) -> Table:
    return dataclasses.replace(table, columns={**table.columns, DIFFERENCE: values}, outcomes={})


def _over(
    table: Table, quality: str, origin: str, direction: Direction
) -> list[Interval | None]:
    """The pre-trained models minus another origin, [shapes]."""
    sign = 1.0 if direction == "max" else -1.0
    lead = sign * (table.columns[quality] - table.beside[origin][quality])
    found = seed_values(_with(table, lead), shapes_of(table), DIFFERENCE)
    known = np.isfinite(found.mean)
    noise = uncertain(found)
    if noise is None:
        made = [Interval(float(value), None, None, "one seed") for value in found.mean]
    else:
        clean = dataclasses.replace(noise, mean=np.where(known, noise.mean, 0.0),
                                    variance=np.where(known, noise.variance, 0.0))
        made = contrasts(clean, np.eye(len(known)))
    return [one if yes else None for one, yes in zip(made, known, strict=True)]


def _alike(own: np.ndarray, untrained: np.ndarray) -> Interval | None:
    both = np.isfinite(untrained)
    tau = float(kendall_tau(own[both], untrained[both])) if both.sum() >= MIN_SHAPES else np.nan
    if not np.isfinite(tau):
        return None
    low, high = rank_interval(tau, kendall_variance(int(both.sum())), np.array([tau]))
    return Interval(tau, low, high, "score over shapes")
