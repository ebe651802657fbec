"""What a report says, as plain data: counts, mean curves, transfer beside its baselines."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from deepnarrow.records import Record, Status
from deepnarrow.summary import Quality, ShapeRow, quality_order, summarize

BASELINES = {"raw": "Raw inputs", "majority": "Majority class", "chance": "Chance"}


@dataclasses.dataclass(frozen=True)
class Counts:
    """What was run.

    Attributes:
      statuses: number of trials by status; all four are there.
      earlier_attempts: records of trials that were run again.
      non_finite: metric values and points of curves that are not finite.
    """

    statuses: Mapping[Status, int]
    earlier_attempts: int
    non_finite: int


@dataclasses.dataclass(frozen=True)
class Curve:
    """A learning curve of one shape: `points` are (step, mean over training seeds)."""

    label: str
    points: tuple[tuple[int, float], ...]
    seeds: int


@dataclasses.dataclass(frozen=True)
class TransferTable:
    """How well one task is solved, by shape, beside networks and inputs that learnt nothing.

    Attributes:
      task: its name.
      columns: what is measured, without the task: `few_shot@5`, `fine_tune`, ...
      rows: by shape label, a cell a column: (pre-trained, untrained), each None where unmeasured.
      baselines: (name, values by column): raw inputs, majority class, chance.
    """

    task: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[Quality | None, Quality | None], ...]], ...]
    baselines: tuple[tuple[str, tuple[float | None, ...]], ...]


def count_runs(records: Sequence[Record], trials: Sequence[Record]) -> Counts:
    """Counts `trials`, the latest of `records` by key."""
    found = Counter(record.status for record in trials)
    statuses: dict[Status, int] = {
        status: found[status] for status in ("done", "diverged", "failed", "preempted")}
    values = (row.value for record in trials for row in (*record.metrics, *record.curve))
    non_finite = sum(value is None or not math.isfinite(value) for value in values)
    return Counts(statuses, len(records) - len(trials), non_finite)


def mean_curves(
    trials: Sequence[Record], rows: Sequence[ShapeRow]
) -> dict[str, list[Curve]]:
    """Returns the upstream loss curves of the shapes in `rows` by name (`train/loss`, ...).

    Only done trials are in; a step's mean is over the seeds with a finite value there.
    """
    labels = {(row.modality, row.architecture, row.name): row.label for row in rows}
    values: dict[str, dict[str, dict[int, list[float]]]] = {}
    seeds: dict[tuple[str, str], int] = Counter()
    for record in trials:
        label = labels.get((record.modality, record.architecture, record.name))
        if record.status != "done" or label is None:
            continue
        for point in record.curve:
            if point.stage != "upstream" or point.name.rpartition("/")[2] != "loss":
                continue
            if point.value is not None and math.isfinite(point.value):
                steps = values.setdefault(point.name, {}).setdefault(label, {})
                steps.setdefault(point.step, []).append(point.value)
        for name in {point.name for point in record.curve}:
            seeds[name, label] += 1
    order = {label: i for i, label in enumerate(labels.values())}
    return {name: [_curve(label, shapes[label], seeds[name, label])
                   for label in sorted(shapes, key=order.__getitem__)]
            for name, shapes in sorted(values.items())}


def _curve(label: str, steps: Mapping[int, Sequence[float]], seeds: int) -> Curve:
    points = ((step, math.fsum(found) / len(found)) for step, found in sorted(steps.items()))
    return Curve(label, tuple(points), seeds)


def transfer_tables(
    trials: Sequence[Record], rows: Sequence[ShapeRow]
) -> list[TransferTable]:
    """Returns a table a task of the modality that `trials` and `rows` are of."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for trial in trials:
        groups.setdefault((trial.architecture, trial.name), []).append(trial)
    untrained = {row.label: summarize(groups[row.architecture, row.name], "untrained")
                 for row in rows}
    raw = summarize(trials, "raw")
    names = {name for row in rows for name in row.qualities} | set(raw) | {
        name for found in untrained.values() for name in found}
    references = _references(trials)
    tables = []
    transfer = [name for name in names if not name.startswith("upstream/")]
    for task in sorted({name.partition("/")[0] for name in transfer}):
        mine = sorted((n for n in transfer if n.partition("/")[0] == task), key=quality_order)
        cells = tuple((row.label, tuple(
            (row.qualities.get(name), untrained[row.label].get(name)) for name in mine))
            for row in rows if row.statuses.get("done"))
        columns = tuple(name.partition("/")[2] for name in mine)
        raw_means = tuple(raw[name].mean if name in raw else None for name in mine)
        baselines = [(BASELINES["raw"], raw_means)]
        baselines += [(BASELINES[kind], tuple(
            _reference(references, kind, task, column) for column in columns))
            for kind in ("majority", "chance")]
        tables.append(TransferTable(task, columns, cells, tuple(baselines)))
    return tables


def _references(trials: Sequence[Record]) -> dict[tuple[str, str, str], list[float]]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for record in trials:
        for row in record.metrics:
            if row.metric in ("chance", "majority") and row.value is not None:
                found.setdefault((row.metric, row.task, row.stage), []).append(row.value)
    return found


def _reference(
    references: Mapping[tuple[str, str, str], list[float]], kind: str, task: str, column: str
) -> float | None:
    stage, _, metric = column.partition("/")
    # Chance and majority are shares of classes: beside any other metric they say nothing.
    values = [] if metric else references.get((kind, task, stage.partition("@")[0]), [])
    return math.fsum(values) / len(values) if values else None
