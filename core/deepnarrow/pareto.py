"""Pareto fronts over records: which shapes are worth their cost. numpy only, never JAX.

Every number here is a mean over training seeds. Seeds of other kinds (shots, fine-tuning) are
averaged within a training seed first: their spread says how noisy a probe is, not how much training
varies.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from deepnarrow.errors import InputError, shorten, suggest
from deepnarrow.records import COSTS, MetricRow, Origin, Record, Status, latest

Direction = Literal["min", "max"]
FRONT_COSTS = ("params_non_embedding", "flops_forward_per_example", "step_time_s")
STEP_TIME = "step_time_s"
# Rows of stages few_shot and fine_tune that no features went into: chance is 1 / classes, majority
# the share of the commonest class.
REFERENCES = ("chance", "majority")
CHOSEN = ("l2",)  # settings that were chosen; how strong a probe's ridge was is no quality
# Scores of the split that choices are made on stand in the records; quality is the test split's.
SELECTION = "validation/"
ONE_AT_A_TIME = "these records mix studies with different settings; analyse them one at a time"


# --- fronts of plain numbers ---------------------------------------------------------------------
def front_mask(
    values: Float[np.ndarray, "points axes"], directions: Sequence[Direction]
) -> Bool[np.ndarray, " points"]:
    """Marks the points that no other point dominates.

    A point dominates another if it is at least as good on every axis and better on one; so equal
    points are on the front together, and an axis on which all points agree decides nothing. Points
    with a non-finite value are off the front. O(n log n) for one and two axes that vary.

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
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(directions) or not len(directions):
        raise InputError("front", "values are not one column a direction", got=values.shape,
                         expected=f"[points, {len(directions) or '>= 1'}]")
    unknown = sorted(set(directions) - {"min", "max"})
    if unknown:
        raise InputError("front", "unknown direction", got=unknown[0], expected="min or max")
    finite = np.isfinite(values).all(axis=1)  # [points, axes] -> [points]
    signs = np.where(np.array(directions) == "min", 1.0, -1.0)
    # Adding 0.0 turns -0.0 into 0.0, which it equals.
    costs = values[finite] * signs + 0.0  # [points, axes] -> [finite points, axes]
    mask = np.zeros(len(values), dtype=bool)
    if len(costs):
        costs = costs[:, (costs != costs[0]).any(axis=0)]  # constant axes drop out
        mask[finite] = _front_of_costs(costs)
    return mask


def _front_of_costs(costs: np.ndarray) -> np.ndarray:
    """[points, axes] -> [points]: the front where less is better; one point or more."""
    if costs.shape[1] == 0:
        return np.ones(len(costs), dtype=bool)
    if costs.shape[1] == 1:
        return costs[:, 0] == costs.min()
    return _front_of_two(costs) if costs.shape[1] == 2 else _front_of_many(costs)


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


def _front_of_many(costs: np.ndarray) -> np.ndarray:
    # In lexicographic order only an earlier point can dominate a later one, so the front grows and
    # each distinct point is compared with it once: O(points x front).
    distinct, place = np.unique(costs, axis=0, return_inverse=True)
    front = np.empty_like(distinct)
    on_front = np.zeros(len(distinct), dtype=bool)
    size = 0
    for i, point in enumerate(distinct):
        if not (front[:size] <= point).all(axis=1).any():  # [front, axes] -> [front]
            front[size], on_front[i] = point, True
            size += 1
    return on_front[place.reshape(-1)]


# --- one row a shape -----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Quality:
    """A quality of one shape over training seeds.

    Attributes:
      direction: whether less or more is better.
      mean: over training seeds; None where no seed has a finite value.
      sd: sample standard deviation over training seeds; None below two.
      n: training seeds with a finite value.
    """

    direction: Direction
    mean: float | None
    sd: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class ShapeRow:
    """One shape of one modality and architecture, over its training seeds.

    Attributes:
      modality, architecture, name: what the records say.
      shape: the eight fields.
      label: `name`, with the architecture before it where the modality has several.
      statuses: number of trials by status.
      costs: mean over the done trials that know it; None where none does.
      step_times: median step time by machine ("device on host"); machines never share a time axis.
      qualities: by name, e.g. `upstream/loss`, `digits/few_shot@5`, `digits/fine_tune`.
    """

    modality: str
    architecture: str
    name: str
    shape: Mapping[str, int | bool]
    label: str
    statuses: Mapping[Status, int]
    costs: Mapping[str, float | None]
    step_times: Mapping[str, float]
    qualities: Mapping[str, Quality]


def quality_name(row: MetricRow) -> str:
    """Names what `row` measures: `upstream/METRIC`, `TASK/few_shot@SHOTS` or `TASK/fine_tune`.

    The two stages of transfer are accuracies; another metric of a task follows its name.

    >>> quality_name(MetricRow("few_shot", "digits", "accuracy", "max", 0.9, shots=5))
    'digits/few_shot@5'
    >>> quality_name(MetricRow("fine_tune", "squad", "f1", "max", 0.9))
    'squad/fine_tune/f1'
    """
    if row.stage == "upstream":
        return f"upstream/{row.metric}"
    name = f"{row.task}/{row.stage}" + (f"@{row.shots}" if row.shots is not None else "")
    return name if row.metric == "accuracy" else f"{name}/{row.metric}"


def is_quality(row: MetricRow) -> bool:
    """True for rows that say how good a model is, not what guessing gets or choices rest on."""
    return row.metric not in (*REFERENCES, *CHOSEN) and not row.metric.startswith(SELECTION)


def headline_qualities(names: Iterable[str]) -> list[str]:
    """Every quality, but of the probes of one task only the one with the most shots.

    >>> headline_qualities(["digits/few_shot@5", "upstream/loss", "digits/few_shot@10"])
    ['upstream/loss', 'digits/few_shot@10']
    """
    last: dict[str, str] = {}
    for name in sorted(names, key=quality_order):
        last[re.sub(r"@\d+", "@", name)] = name
    return list(last.values())


def summarize(records: Iterable[Record], origin: Origin = "pretrained") -> dict[str, Quality]:
    """Returns the qualities of `records`, done trials of one shape, each a training seed of it.

    Args:
      records: the trials; those not done are left out.
      origin: what was measured: the pre-trained model, an untrained one, or the raw inputs.
    """
    per_seed: dict[str, list[float | None]] = {}
    directions: dict[str, Direction] = {}
    for record in records:
        if record.status != "done":
            continue
        values: dict[str, list[float]] = {}
        for row in record.metrics:
            if row.origin == origin and is_quality(row):
                directions[quality_name(row)] = row.direction
                values.setdefault(quality_name(row), []).extend(_finite(row.value))
        for name, found in values.items():
            per_seed.setdefault(name, []).append(_mean(found))
    return {name: _quality(directions[name], per_seed[name]) for name in sorted(
        per_seed, key=quality_order)}


def quality_order(name: str) -> tuple[bool, bool, str, str, int, str]:
    """Sorts qualities: upstream first, its loss before all, then by task, stage, shots."""
    task, _, rest = name.partition("/")
    stage, _, shots = rest.partition("@")
    shots, _, metric = shots.partition("/")
    number = int(shots) if shots.isdecimal() else 0
    return name != "upstream/loss", task != "upstream", task, stage, number, metric


def shape_table(records: Iterable[Record]) -> list[ShapeRow]:
    """Returns one row a (modality, architecture, shape name), in order of modality and size.

    Raises:
      InputError: settings of several studies are mixed: records of one shape differ in more than
        the seed, those of one modality in protocol or data, or a seed of a shape is there twice.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    modalities: dict[str, list[Record]] = {}
    for record in latest(records):
        groups.setdefault((record.modality, record.architecture, record.name), []).append(record)
        modalities.setdefault(record.modality, []).append(record)
    for modality, mine in modalities.items():
        _check_settings(f"modality {modality!r}", mine, ("protocol", "data"))
    several = {modality: len({record.architecture for record in mine}) > 1
               for modality, mine in modalities.items()}
    rows = [_shape_row(group, several[modality]) for (modality, _, _), group in groups.items()]
    return sorted(rows, key=lambda row: (
        row.modality, row.costs["params_non_embedding"] or math.inf, row.label))


def _check_settings(where: str, records: Sequence[Record], names: Iterable[str]) -> None:
    """Refuses records whose configs differ under one of `names`; absent from one, it is equal."""
    for name in names:
        first, *others = [r.config[name] for r in records if name in r.config] or [None]
        for other in others:
            if other != first:
                path, one, two = _difference(name, first, other)
                raise InputError(
                    where, f"records differ in {shorten(path, 120)}",
                    got=f"{shorten(one, 30)} and {shorten(two, 30)}",
                    expected="one setting, so that only shapes and seeds differ",
                    hint=ONE_AT_A_TIME)


def _difference(path: str, one: Any, two: Any) -> tuple[str, Any, Any]:
    """Where two unequal settings differ first, as a dotted path, and what is there."""
    while isinstance(one, Mapping) and isinstance(two, Mapping):
        name = next(k for k in [*one, *two] if k not in one or k not in two or one[k] != two[k])
        path, one, two = f"{path}.{name}", one.get(name, "nothing"), two.get(name, "nothing")
    return path, one, two


def _shape_row(group: list[Record], several: bool) -> ShapeRow:
    one = group[0]
    where = f"shape {one.name!r} of {one.modality}"
    _check_settings(where, group, sorted({k for r in group for k in r.config} - {"seed"}))
    done = [record for record in group if record.status == "done"]
    twice = [seed for seed, count in Counter(r.seed for r in done).items() if count > 1]
    if twice:
        raise InputError(
            where, "has two finished runs of one seed", got=f"seed {twice[0]}",
            expected="one protocol, so one run a seed", hint=ONE_AT_A_TIME)
    times: dict[str, list[float]] = {}
    for record in done:
        times.setdefault(machine(record), []).extend(_finite(record.costs.get(STEP_TIME)))
    return ShapeRow(
        one.modality, one.architecture, one.name, dict(one.shape),
        f"{one.architecture} {one.name}" if several else one.name,
        dict(Counter(record.status for record in group)),
        {cost: _mean([v for r in done for v in _finite(r.costs.get(cost))]) for cost in COSTS},
        {name: statistics.median(found) for name, found in sorted(times.items()) if found},
        summarize(done))


def machine(record: Record) -> str:
    """Names what a step time was measured on: device and host."""
    names = [str(record.environment[k]) for k in ("device", "host") if record.environment.get(k)]
    return " on ".join(names) or "an unnamed machine"


def _finite(value: float | None) -> list[float]:
    return [float(value)] if value is not None and math.isfinite(value) else []


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _quality(direction: Direction, seeds: Sequence[float | None]) -> Quality:
    known = [value for value in seeds if value is not None]
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Quality(direction, _mean(known), sd, len(known))


# --- fronts of records ---------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """One shape in a front's plane; `sd` and `n` are over training seeds."""

    name: str
    cost: float
    quality_mean: float
    quality_sd: float | None
    n: int
    on_front: bool


@dataclasses.dataclass(frozen=True)
class Front:
    """The shapes of one modality by one cost (less is better) and one quality.

    Attributes:
      modality: its name.
      cost: one of `records.COSTS`.
      quality: the quality's name.
      direction: of the quality.
      points: by cost, then quality.
      left_out: shapes without a finite cost or quality (diverged, failed, not measured).
      machine: for step times measured on several machines, which one; else "".
    """

    modality: str
    cost: str
    quality: str
    direction: Direction
    points: tuple[FrontPoint, ...]
    left_out: tuple[str, ...] = ()
    machine: str = ""


def fronts(
    records: Iterable[Record],
    costs: Sequence[str] = FRONT_COSTS,
    qualities: Sequence[str] | None = None,
) -> list[Front]:
    """Returns the front of every modality, quality and cost, in that order.

    Args:
      records: trials of one study, or of several under one protocol.
      costs: cost columns.
      qualities: names as in `ShapeRow.qualities`, or None for all that were measured on the
        pre-trained model.

    Raises:
      InputError: a cost or a quality that no record knows.
    """
    for cost in costs:
        _check_known("cost", cost, COSTS)
    rows = shape_table(records)
    known = sorted({name for row in rows for name in row.qualities}, key=quality_order)
    for quality in (qualities or ()) if rows else ():
        _check_known("quality", quality, known)
    found = []
    for modality in dict.fromkeys(row.modality for row in rows):
        mine = [row for row in rows if row.modality == modality]
        for quality in known if qualities is None else qualities:
            if any(quality in row.qualities for row in mine):
                found += [front for cost in costs for front in _fronts_of(mine, cost, quality)]
    return found


def _fronts_of(rows: list[ShapeRow], cost: str, quality: str) -> list[Front]:
    machines = sorted({name for row in rows for name in row.step_times})
    if cost != STEP_TIME or len(machines) < 2:
        return [_front([(row, row.costs[cost]) for row in rows], cost, quality)]
    return [_front([(row, row.step_times.get(name)) for row in rows], cost, quality, name)
            for name in machines]


def _front(
    rows: list[tuple[ShapeRow, float | None]], cost: str, quality: str, machine: str = ""
) -> Front:
    direction: Direction = next(
        row.qualities[quality].direction for row, _ in rows if quality in row.qualities)
    places, left_out = [], []
    for row, value in rows:
        score = row.qualities.get(quality)
        if value is None or score is None or score.mean is None:
            left_out.append(row.label)
        else:
            places.append((row.label, value, score.mean, score.sd, score.n))
    values = np.array([place[1:3] for place in places]).reshape(-1, 2)  # [points, 2]
    mask = front_mask(values, ("min", direction))
    points = (FrontPoint(*place, on_front=bool(on)) for place, on in zip(places, mask, strict=True))
    ordered = sorted(points, key=lambda point: (point.cost, point.quality_mean, point.name))
    return Front(rows[0][0].modality, cost, quality, direction, tuple(ordered), tuple(left_out),
                 machine)


def _check_known(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = suggest(name, known)
        raise InputError(kind, f"no record has this {kind}", got=name,
                         expected=f"one of {', '.join(known)}" if known else None,
                         hint=f"did you mean {near}?" if near else None)
