"""Pareto fronts over a `Table`, with uncertainty: which shapes are worth their cost.

Every number is a mean over training seeds. A shape's *membership* is the probability that it is on
the front of the true means, given the noise of the seeds (and of the evaluation examples, where
records hold them): the share of draws of `bootstrap.draw_means` that put it there. Costs are taken
as known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from deepnarrow.bootstrap import (
    DRAWS,
    Interval,
    Uncertain,
    corrected_percentiles,
    draw_means,
    restrict,
    uncertain,
)
from deepnarrow.dominance import Direction, front_mask
from deepnarrow.hypervolume import hypervolume
from deepnarrow.summary import TIMES
from deepnarrow.table import (
    SeedValues,
    Shapes,
    Table,
    cost_spread,
    count_non_finite,
    direction_of,
    domains,
    find_column,
    mean_by_shape,
    missing,
    seed_values,
    select,
    shapes_of,
)

FRONT_COSTS = ("params_non_embedding", "flops_forward_per_example", "step_time_s")
JOINT_DRAWS = 500
MAX_DRAWN = 40_000_000  # numbers drawn for one front
# Volumes of larger fronts of more than two axes take minutes, and nobody reads them.
MAX_JOINT_VOLUME = 300


@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """One shape in a front's plane; `quality_sd` and `n` are over training seeds.

    Attributes:
      on_front: no other shape dominates it here (the strict definition).
      on_any_front: not dominated on at least one cost for at least one quality of those asked for
        (the definition of Tay et al. 2022).
      membership: probability that it is on the front of the true means; None with one seed.
      margin: quality by which it beats the best shape that costs no more, better being positive:
        the sign decides membership. None with one seed, or where nothing costs as little.
    """

    name: str
    cost: float
    quality_mean: float
    quality_sd: float | None
    n: int
    on_front: bool
    on_any_front: bool = False
    membership: float | None = None
    margin: Interval | None = None


@dataclasses.dataclass(frozen=True)
class Front:
    """The shapes of one domain by one cost (less is better) and one quality.

    Attributes:
      modality: the domain, "" where the table has none.
      cost, quality: names of columns.
      direction: of the quality.
      points: by cost, then quality.
      hypervolume: between the front and `reference`; None without points.
      reference: the worst cost and the worst quality of all points.
      method: how membership was drawn; None where every shape has one seed.
      left_out: shapes without a finite cost or quality, and why.
      non_finite: values among the table's rows that were NaN or infinite, of cost and quality.
      machine: for step times measured on several machines, which one; else "".
      cost_spread: how much the cost differs between trials of one shape at most, largest over
        smallest; costs are taken as known, so membership is too sure where this is far above 1.
      beside: what the same measurement gets without pre-training, mean over the rows: `untrained`
        networks, `raw` inputs. A front below `raw` says nothing for any shape.
    """

    modality: str
    cost: str
    quality: str
    direction: Direction
    points: tuple[FrontPoint, ...]
    hypervolume: float | None = None
    reference: tuple[float, ...] | None = None
    method: str | None = None
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    non_finite: int = 0
    machine: str = ""
    cost_spread: float = 1.0
    beside: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class JointPoint:
    """One shape on the axes of a joint front; `values` in the order of costs, then qualities."""

    name: str
    values: tuple[float, ...]
    on_front: bool
    membership: float | None


@dataclasses.dataclass(frozen=True)
class JointFront:
    """One front over several costs and qualities at once; see `Front`."""

    modality: str
    cost: tuple[str, ...]
    quality: tuple[str, ...]
    directions: tuple[Direction, ...]
    points: tuple[JointPoint, ...]
    hypervolume: float | None
    reference: tuple[float, ...] | None
    method: str | None
    left_out: Mapping[str, str]
    non_finite: int


def fronts(
    table: Table,
    costs: Sequence[str] = FRONT_COSTS,
    qualities: Sequence[tuple[str, str | None]] | None = None,
    draws: int = DRAWS,
) -> list[Front]:
    """Returns the front of every domain, quality and cost, in that order.

    Args:
      table: of one study, or of several under one protocol.
      costs: columns.
      qualities: columns with their direction (None: as the records say, else by the name), or None
        for all known ones.
      draws: of the true means, for membership.

    Raises:
      InputError: a column is not there, or a quality is better the other way.
    """
    if not len(table):
        return []
    costs = [find_column(table, cost, "cost") for cost in costs]
    chosen = quality_columns(table, qualities)
    found = []
    for domain in domains(table):
        mine = select(table, table.domain == domain)
        shapes = shapes_of(mine)
        places = [axis for cost in costs for axis in cost_axes(mine, shapes, cost)]
        for quality, direction in chosen:
            scores = seed_values(mine, shapes, quality)
            if quality not in table.directions or np.isfinite(mine.columns[quality]).any() \
                    or count_non_finite(mine, quality):
                found += [_front(mine, shapes, axis, quality, direction, scores, draws)
                          for axis in places]
    return _with_any(found)


def quality_columns(
    table: Table, qualities: Sequence[tuple[str, str | None]] | None
) -> list[tuple[str, Direction]]:
    """Returns the columns and directions of `qualities`, of all known ones for None."""
    if qualities is None:
        return [(name, table.directions[name]) for name in table.qualities]
    columns = [(find_column(table, name, "quality"), way) for name, way in qualities]
    return [(name, direction_of(table, name, way)) for name, way in columns]


@dataclasses.dataclass(frozen=True)
class CostAxis:
    """A cost of the shapes: `values` [shapes]; `machine` where times are from several, else ""."""

    cost: str
    machine: str
    values: np.ndarray
    spread: float

    @property
    def label(self) -> str:
        return f"{self.cost} on {self.machine}" if self.machine else self.cost


def cost_axes(table: Table, shapes: Shapes, cost: str) -> list[CostAxis]:
    """The cost of the shapes of one domain; one axis a machine where times are from several."""
    timed = table.done & np.isfinite(table.columns[cost])
    machines = table.columns.get("machine")
    names = sorted(set(machines[timed])) if machines is not None and cost in TIMES else []
    if len(names) < 2 or machines is None:
        return [CostAxis(cost, "", mean_by_shape(table, shapes, cost),
                         cost_spread(table, shapes, cost))]
    parts = [dataclasses.replace(table, done=table.done & (machines == name)) for name in names]
    return [CostAxis(cost, name, mean_by_shape(here, shapes, cost),
                     cost_spread(here, shapes, cost))
            for name, here in zip(names, parts, strict=True)]


def _front(
    table: Table, shapes: Shapes, axis: CostAxis, quality: str, direction: Direction,
    scores: SeedValues, draws: int,
) -> Front:
    places = axis.values
    known = np.flatnonzero(np.isfinite(places) & np.isfinite(scores.mean))
    order = known[np.lexsort((scores.mean[known], places[known]))]
    values = np.column_stack([places[order], scores.mean[order]])  # [points, 2]
    mask = front_mask(values, ("min", direction))
    noise = uncertain(scores) if len(order) else None
    share, margins = (None, None) if noise is None else _membership(
        restrict(noise, order), places[order], direction, draws)
    points = []
    for k, i in enumerate(order):
        several = scores.n[i] > 1
        points.append(FrontPoint(
            scores.names[i], float(places[i]), float(scores.mean[i]),
            float(scores.sd[i]) if several else None, int(scores.n[i]), bool(mask[k]), False,
            float(share[k]) if share is not None and several else None,
            margins[k] if margins is not None and several else None))
    reference = _worst(values, ("min", direction))
    volume = hypervolume(values, ("min", direction), reference) if reference else None
    points.sort(key=lambda point: (point.cost, point.quality_mean, point.name))
    return Front(
        str(table.domain[0]), axis.cost, quality, direction, tuple(points), volume, reference,
        noise.method if noise else None,
        missing(table, shapes, {axis.label: places, quality: scores.mean}),
        count_non_finite(table, axis.cost, quality), axis.machine, axis.spread,
        quality_beside(table, quality))


def quality_beside(table: Table, quality: str) -> dict[str, float]:
    """What a quality is without pre-training: mean over the done rows of one domain, by origin."""
    found = {origin: columns[quality][table.done & np.isfinite(columns[quality])]
             for origin, columns in table.beside.items() if quality in columns}
    return {origin: float(values.mean()) for origin, values in found.items() if len(values)}


def _worst(values: np.ndarray, directions: Sequence[Direction]) -> tuple[float, ...] | None:
    if not len(values):
        return None
    return tuple(float(column.max() if way == "min" else column.min())
                 for column, way in zip(values.T, directions, strict=True))


def _membership(
    noise: Uncertain, places: np.ndarray, direction: Direction, draws: int
) -> tuple[np.ndarray, list[Interval | None]]:
    """For shapes in order of cost: the share of draws on the front, and the margin's interval."""
    draws = max(200, min(draws, MAX_DRAWN // len(places)))
    sign = 1.0 if direction == "max" else -1.0
    observed = margin_of(sign * noise.mean[None], places)[0]
    drawn = margin_of(sign * draw_means(noise, draws), places)  # [draws, points]
    # Where costs are equal and so are qualities, both are on the front: a margin of 0 is enough.
    share = (drawn >= 0).mean(axis=0)
    margins = [corrected_percentiles(float(value), column, noise.method)
               if math.isfinite(value) else None
               for value, column in zip(observed, drawn.T, strict=True)]
    return share, margins


def margin_of(quality: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """[draws, points] by rising cost -> [draws, points]: lead over the best that costs no more.

    More quality is better. Infinite where nothing else costs as little.
    """
    best = np.maximum.accumulate(quality, axis=1)
    first = np.searchsorted(cost, cost, side="left")  # of the points of equal cost
    last = np.searchsorted(cost, cost, side="right")
    rival = np.full(quality.shape, -np.inf)
    cheaper = first > 0
    rival[:, cheaper] = best[:, first[cheaper] - 1]
    for i in np.flatnonzero(last - first > 1):
        others = [j for j in range(first[i], last[i]) if j != i]
        rival[:, i] = np.maximum(rival[:, i], quality[:, others].max(axis=1))
    return quality - rival


def _with_any(found: list[Front]) -> list[Front]:
    on_any = {(front.modality, point.name) for front in found for point in front.points
              if point.on_front}
    return [dataclasses.replace(front, points=tuple(
        dataclasses.replace(p, on_any_front=(front.modality, p.name) in on_any)
        for p in front.points)) for front in found]


def joint_fronts(
    table: Table,
    costs: Sequence[str],
    qualities: Sequence[tuple[str, str | None]] | None = None,
    draws: int = JOINT_DRAWS,
) -> list[JointFront]:
    """Returns one front a domain, over all `costs` and `qualities` at once.

    The noise of different qualities is drawn independently. Raises as `fronts` does.
    """
    if not len(table):
        return []
    costs = [find_column(table, cost, "cost") for cost in costs]
    chosen = quality_columns(table, qualities)
    return [_joint(select(table, table.domain == domain), domain, costs, chosen, draws)
            for domain in domains(table)]


def _joint(
    table: Table, domain: str, costs: Sequence[str], chosen: Sequence[tuple[str, Direction]],
    draws: int,
) -> JointFront:
    shapes = shapes_of(table)
    ways: tuple[Direction, ...] = (*("min" for _ in costs), *(way for _, way in chosen))
    scores = [seed_values(table, shapes, name) for name, _ in chosen]
    values = np.column_stack([*(mean_by_shape(table, shapes, cost) for cost in costs),
                              *(one.mean for one in scores)])  # [shapes, axes]
    known = np.asarray(np.isfinite(values).all(axis=1))
    draws = max(50, min(draws, MAX_DRAWN // len(values)))
    mask = front_mask(values, ways)
    noises = [uncertain(one) for one in scores] if known.any() else [None]
    share = np.zeros(len(values))
    if all(noise is not None for noise in noises):
        drawn = [draw_means(noise, draws, seed) for seed, noise in enumerate(noises) if noise]
        for i in range(draws):
            values_i = np.column_stack([values[:, : len(costs)], *(one[i] for one in drawn)])
            share += front_mask(values_i, ways) / draws
    several = np.all([one.n > 1 for one in scores], axis=0)
    points = tuple(JointPoint(
        shapes.names[i], tuple(map(float, values[i])), bool(mask[i]),
        float(min(share[i], 1.0)) if several[i] and all(noises) else None)
        for i in np.flatnonzero(known)[np.argsort(values[known, 0], kind="stable")])
    reference = _worst(values[known], ways)
    small = reference is not None and (len(ways) <= 2 or int(mask.sum()) <= MAX_JOINT_VOLUME)
    return JointFront(
        domain, tuple(costs), tuple(name for name, _ in chosen), ways, points,
        hypervolume(values[known], ways, reference) if small and reference else None, reference,
        noises[0].method if noises[0] else None,
        missing(table, shapes, dict(zip((*costs, *(name for name, _ in chosen)), values.T,
                                        strict=True))),
        count_non_finite(table, *costs, *(name for name, _ in chosen)))
