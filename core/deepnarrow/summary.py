"""Records reduced to one row a shape: costs, and qualities over training seeds.

Seeds of other kinds (shots, fine-tuning) are averaged within a training seed first: their spread
says how noisy a probe is, not how much training varies.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deepnarrow.dominance import Direction
from deepnarrow.errors import InputError, shorten
from deepnarrow.records import COSTS, MetricRow, Origin, Record, Status, latest, reported

STEP_TIME, CHIP_HOURS = "step_time_s", "chip_hours"
TIMES = (STEP_TIME, CHIP_HOURS)  # measured: of several machines none says anything about another
# Rows of stages few_shot and fine_tune that no features went into: chance is 1 / classes, majority
# the share of the commonest class.
REFERENCES = ("chance", "majority")
CHOSEN = ("l2",)  # settings that were chosen; how strong a probe's ridge was is no quality
# Scores of the split that choices are made on stand in the records; quality is the test split's.
SELECTION = "validation/"
AVERAGE = "average"  # over the tasks that were probed
ONE_AT_A_TIME = "these records mix studies with different settings; analyse them one at a time"


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
    return (row.stage != "tuning" and row.metric not in (*REFERENCES, *CHOSEN)
            and not row.metric.startswith(SELECTION))


def headline_qualities(names: Iterable[str]) -> list[str]:
    """Every quality, but of the probes of one task only the one with the most shots.

    >>> headline_qualities(["digits/few_shot@5", "upstream/loss", "digits/few_shot@10"])
    ['upstream/loss', 'digits/few_shot@10']
    """
    last: dict[str, str] = {}
    for name in sorted(names, key=quality_order):
        last[re.sub(r"@\d+", "@", name)] = name
    return list(last.values())


def seed_qualities(
    record: Record, origin: Origin = "pretrained"
) -> dict[str, tuple[Direction, float | None]]:
    """Returns the qualities of one done trial: direction, and mean over shots and fine-tunings.

    The value is None where nothing finite was measured; a trial that is not done has none. Where
    several tasks were probed, their mean is a quality too: `average/few_shot@SHOTS`.
    """
    values: dict[str, list[float]] = {}
    directions: dict[str, Direction] = {}
    for row in record.metrics if record.status == "done" else ():
        if row.origin == origin and is_quality(row):
            directions[quality_name(row)] = row.direction
            values.setdefault(quality_name(row), []).extend(_finite(row.value))
    made: dict[str, tuple[Direction, float | None]] = {
        name: (directions[name], _mean(found)) for name, found in values.items()}
    return made | _averages(made)


def _averages(
    found: Mapping[str, tuple[Direction, float | None]]
) -> dict[str, tuple[Direction, float | None]]:
    """Means over tasks of the probes, by shots and metric; None where one of them is."""
    groups: dict[tuple[str, Direction], list[float | None]] = {}
    for name, (direction, value) in found.items():
        task, _, rest = name.partition("/")
        if task == AVERAGE:
            return {}  # somebody's task has that name
        if rest.startswith("few_shot"):
            groups.setdefault((rest, direction), []).append(value)
    return {f"{AVERAGE}/{rest}": (direction, None if None in values else _mean(
        [value for value in values if value is not None]))
        for (rest, direction), values in groups.items() if len(values) > 1}


def summarize(records: Iterable[Record], origin: Origin = "pretrained") -> dict[str, Quality]:
    """Returns the qualities of `records`, done trials of one shape, each a training seed of it.

    Args:
      records: the trials; those not done are left out.
      origin: what was measured: the pre-trained model, an untrained one, or the raw inputs.
    """
    per_seed: dict[str, list[float | None]] = {}
    directions: dict[str, Direction] = {}
    for record in records:
        for name, (direction, value) in seed_qualities(record, origin).items():
            directions[name] = direction
            per_seed.setdefault(name, []).append(value)
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
    for record in latest(reported(records)):
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
