"""What a report says, as plain data: counts, mean curves, transfer beside its baselines."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from deepnarrow.bootstrap import Interval
from deepnarrow.pareto import Front, JointFront
from deepnarrow.records import Record, Status
from deepnarrow.report import text
from deepnarrow.summary import Quality, ShapeRow, quality_order, summarize
from deepnarrow.worth import Worth

BASELINES = {"raw": "Raw inputs", "majority": "Majority class", "chance": "Chance",
             "untrained": "Untrained networks"}
ACCURACIES = ("", "accuracy_l2_auto")  # metrics that guessing is a reference for
MAX_NAMES = 12
MAX_SPREAD = 1.1  # of a cost between trials of one shape, unsaid


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


def left_out(group: Sequence[Front | JointFront]) -> list[tuple[str, str]]:
    """Why shapes are in no front of `group`, or not in all: (reason, names)."""
    found: dict[str, dict[str, None]] = {}
    for front in group:
        for name, why in front.left_out.items():
            found.setdefault(why, {})[name] = None
    return [(why, ", ".join(text.plain(name, 40) for name in list(names)[:MAX_NAMES])
             + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""))
            for why, names in found.items()]


def warnings(group: Sequence[Front]) -> list[str]:
    """What makes the fronts of one quality less than they look, a line each."""
    lines = []
    for front in group:
        if front.cost_spread > MAX_SPREAD and front.points:
            where = f" on {front.machine}" if front.machine else ""
            lines.append(f"{text.cost_title(front.cost)}{where} differs up to "
                         f"{front.cost_spread:.2g}x between trials of one shape, and costs are "
                         "taken as known: what is said by it is less sure than it looks")
    one = group[0]
    if one.beside:
        shown = ", ".join(f"{BASELINES[origin].lower()} {text.quality(value)}"
                          for origin, value in one.beside.items())
        lines.append(f"without pre-training: {shown}" + (
            "; no shape beats raw inputs, so this front ranks features that are worse than doing "
            "without" if raw_wins(group) else ""))
    return lines


def raw_wins(group: Sequence[Front]) -> bool:
    """Whether raw inputs are as good as the best shape of the fronts of one quality."""
    best = [p.quality_mean for front in group for p in front.points]
    raw, turn = group[0].beside.get("raw"), 1 if group[0].direction == "max" else -1
    return bool(best) and raw is not None and turn * raw >= max(turn * value for value in best)


def worth_words(found: Sequence[Worth]) -> str:
    """Whether pre-training was worth anything, in sentences, over all that was measured."""
    words = []
    against = {"raw inputs": [[shape.over_raw for shape in one.shapes] for one in found],
               "an untrained network of their own": [[shape.over_untrained for shape in one.shapes]
                                                     for one in found]}
    for name, groups in against.items():
        known = [one for one in map(beyond, groups) if one is not None]
        if known:
            words.append(f"Beyond noise, shapes beat {name} in {sum(one[0] for one in known)} and "
                         f"lose in {sum(one[1] for one in known)} of "
                         f"{sum(one[2] for one in known)} comparisons.")
    if not words and found:
        words.append("One training seed: what is beyond noise is not known.")
    alike = sum(one.alike is not None and (one.alike.low or 0) > 0 for one in found)
    if alike:
        words.append(f"In {alike} of {len(found)} qualities untrained networks rank the shapes as "
                     "the pre-trained ones do: that order is at least in part that of the "
                     "architectures under the measurement, not of what they learnt.")
    return " ".join(words)


def beyond(found: Sequence[Interval | None]) -> tuple[int, int, int] | None:
    """How many of several differences are above 0 and below 0 by their intervals, and of how many;
    None without intervals.
    """
    known = [one for one in found if one and one.low is not None and one.high is not None]
    return (sum((one.low or 0) > 0 for one in known), sum((one.high or 0) < 0 for one in known),
            len(known)) if known else None


def count_runs(records: Sequence[Record], trials: Sequence[Record]) -> Counts:
    """Counts `trials`, the latest of `records` by key."""
    found = Counter(record.status for record in trials)
    statuses: dict[Status, int] = {
        status: found[status] for status in ("done", "diverged", "failed", "preempted")}
    # A rate that diverged while tuning is a result, and stands with each trial of its shape.
    values = (row.value for record in trials for row in (*record.metrics, *record.curve)
              if row.stage != "tuning")
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
    known = references.get((kind, task, stage.partition("@")[0]), [])
    values = known if metric in ACCURACIES else []
    return math.fsum(values) / len(values) if values else None
