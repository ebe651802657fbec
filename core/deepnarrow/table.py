"""`Table`: what analysis reads. Records and anybody's CSV or Parquet load into it (`tablefile.py`).

A row is one training seed of one shape in one domain. Rows that share domain and name are seeds of
one shape. Seeds of shots and of fine-tuning are averaged within a training seed first: their spread
is never taken for that of training.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from deepnarrow.dominance import Direction
from deepnarrow.errors import InputError, shorten, suggest
from deepnarrow.records import COSTS, MetricRow, Origin, Record, latest, reported
from deepnarrow.shape import FIELD_LIMITS
from deepnarrow.steptimer import MIN_TIMED_STEPS
from deepnarrow.summary import (
    TIMES,
    machine,
    quality_name,
    quality_order,
    seed_qualities,
    shape_table,
)
from deepnarrow.tuning import choice_in

# What "params" and "flops" stand for where a table has no such column: a shape's own size, without
# the table of embeddings.
ALIASES = {"params": "params_non_embedding", "flops": "flops_forward_per_example"}
# Seeds within a training seed.
INNER_SEEDS = ("shot_seed", "finetune_seed")
# What the same measurement gets without pre-training: random parameters, or no network at all.
WITHOUT_PRETRAINING: tuple[Origin, ...] = ("untrained", "raw")
BETTER_LOW = ("loss", "perplexity", "ppl", "error", "err", "nll", "bits_per_byte", "bpb",
              "cross_entropy", "crossentropy")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a study or of a file.

    Attributes:
      columns: by name, [rows]: float64 (NaN where empty or not finite) or text (object).
      domain: [rows] the domain or modality, "" where the table has none.
      name: [rows] the shape.
      seed: [rows] the training seed, as text; rows of a table without seeds are seeds each.
      done: [rows] False for trials that did not end well: they are shown as missing.
      non_finite: by column, [rows] True where a NaN or an infinity was written; an empty cell is
        none.
      costs, qualities: columns known to be such; empty for tables of other people.
      directions: of the qualities that are known.
      outcomes: per-example values by quality: one array a row, None where there are none.
      beside: by origin other than the pre-trained model (`untrained`, `raw`), by quality, [rows]:
        what the same probe got there.
    """

    columns: Mapping[str, np.ndarray]
    domain: np.ndarray
    name: np.ndarray
    seed: np.ndarray
    done: Bool[np.ndarray, " rows"]
    non_finite: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    costs: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ()
    directions: Mapping[str, Direction] = dataclasses.field(default_factory=dict)
    outcomes: Mapping[str, tuple[np.ndarray | None, ...]] = dataclasses.field(default_factory=dict)
    beside: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.name)


def from_records(records: Iterable[Record]) -> Table:
    """Returns one row a trial, with the columns of `records.COSTS`, the fields of the shape,
    `depth` (layers of all stacks), `width` (d_model), `key`, `status`, `machine`, `budget_kind`,
    `tuning_edge` (see `tuning.Choice`) and every quality.

    Raises:
      InputError: settings of several studies are mixed (see `summary.shape_table`).
    """
    trials = latest(reported(records))
    labels = {(row.modality, row.architecture, row.name): row.label for row in shape_table(trials)}
    found = [seed_qualities(record) for record in trials]
    directions: dict[str, Direction] = {
        name: way for one in found for name, (way, _) in one.items()}
    qualities = tuple(sorted(directions, key=quality_order))
    done = np.array([record.status == "done" for record in trials], dtype=bool)
    columns: dict[str, np.ndarray] = {
        cost: _floats(r.costs.get(cost) if r.status == "done" else None for r in trials)
        for cost in COSTS}
    columns |= {field: _floats(r.shape.get(field) for r in trials) for field in FIELD_LIMITS}
    columns["depth"] = columns["num_encoder_layers"] + np.nan_to_num(columns["num_decoder_layers"])
    columns["width"] = columns["d_model"]
    columns["key"] = _texts(r.key for r in trials)
    columns["status"] = _texts(r.status for r in trials)
    columns["machine"] = _texts(machine(r) for r in trials)
    columns["budget_kind"] = _texts(_budget_kind(r) for r in trials)
    columns["tuning_edge"] = _texts(_tuning_edge(r) for r in trials)
    columns |= {name: _floats(one.get(name, ("", None))[1] for one in found) for name in qualities}
    missing = {name: np.array([name in one and one[name][1] is None for one in found])
               for name in qualities}
    return Table(
        columns, _texts(r.modality for r in trials),
        _texts(labels[r.modality, r.architecture, r.name] for r in trials),
        _texts(str(r.seed) for r in trials), done, missing,
        COSTS, qualities, directions, _outcomes(trials, qualities), _beside(trials, qualities))


def _beside(
    trials: Sequence[Record], qualities: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    made: dict[str, dict[str, np.ndarray]] = {}
    for origin in WITHOUT_PRETRAINING:
        found = [seed_qualities(record, origin) for record in trials]
        names = [name for name in qualities if any(name in one for one in found)]
        made[origin] = {name: _floats(one.get(name, ("", None))[1] for one in found)
                        for name in names}
    return {origin: columns for origin, columns in made.items() if columns}


def _tuning_edge(record: Record) -> str:
    choice = choice_in(record)
    return choice.edge if choice is not None else ""


def _budget_kind(record: Record) -> str:
    protocol = record.config.get("protocol")
    budget = protocol.get("budget") if isinstance(protocol, Mapping) else None
    return str(budget.get("kind", "")) if isinstance(budget, Mapping) else ""


def _outcomes(
    trials: Sequence[Record], qualities: Sequence[str]
) -> dict[str, tuple[np.ndarray | None, ...]]:
    found: dict[str, list[np.ndarray | None]] = {name: [None] * len(trials) for name in qualities}
    for i, record in enumerate(trials):
        by_name: dict[str, list[tuple[float, ...]]] = {}
        for one in record.outcomes if record.status == "done" else ():
            if one.origin == "pretrained":
                row = MetricRow(one.stage, one.task, one.metric, "max", None, shots=one.shots)
                by_name.setdefault(quality_name(row), []).append(one.values)
        for name, values in by_name.items():
            if name in found and len({len(v) for v in values}) == 1:
                found[name][i] = np.mean(np.array(values), axis=0)  # [evaluations, examples] -> [n]
    return {name: tuple(rows) for name, rows in found.items() if any(r is not None for r in rows)}


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([math.nan if v is None or not math.isfinite(v) else float(v) for v in values],
                    dtype=np.float64)


def _texts(values: Iterable[str]) -> np.ndarray:
    return np.array([*values, None], dtype=object)[:-1]


def concat(tables: Sequence[Table]) -> Table:
    """Returns the rows of all `tables`; a column that one of them lacks is empty there."""
    if len(tables) == 1:
        return tables[0]
    tables = _one_name_a_cost(tables)
    names = list(dict.fromkeys(name for one in tables for name in one.columns))
    columns = {}
    for name in names:
        is_text = any(one.columns[name].dtype == object for one in tables if name in one.columns)
        columns[name] = np.concatenate([
            one.columns[name].astype(object) if is_text and name in one.columns
            else one.columns.get(name, np.full(len(one), "" if is_text else math.nan,
                                               dtype=object if is_text else np.float64))
            for one in tables])
    with_outcomes = dict.fromkeys(name for one in tables for name in one.outcomes)
    origins = {origin: dict.fromkeys(name for one in tables for name in one.beside.get(origin, {}))
               for origin in WITHOUT_PRETRAINING}
    written = dict.fromkeys(name for one in tables for name in one.non_finite)
    return Table(
        columns=columns, domain=np.concatenate([one.domain for one in tables]),
        name=np.concatenate([one.name for one in tables]),
        seed=np.concatenate([one.seed for one in tables]),
        done=np.concatenate([one.done for one in tables]),
        non_finite={name: np.concatenate([
            one.non_finite.get(name, np.zeros(len(one), dtype=bool)) for one in tables])
            for name in written},
        costs=tuple(dict.fromkeys(name for one in tables for name in one.costs)),
        qualities=tuple(dict.fromkeys(name for one in tables for name in one.qualities)),
        directions={name: way for one in tables for name, way in one.directions.items()},
        outcomes={name: tuple(row for one in tables
                              for row in one.outcomes.get(name, (None,) * len(one)))
                  for name in with_outcomes},
        beside={origin: {name: np.concatenate([
            one.beside.get(origin, {}).get(name, np.full(len(one), math.nan)) for one in tables])
            for name in names} for origin, names in origins.items() if names})


def _one_name_a_cost(tables: Sequence[Table]) -> list[Table]:
    """Where one table says `params` and another `params_non_embedding`, both say the latter."""
    known = {name for one in tables for name in one.columns}
    renamed = {alias: name for alias, name in ALIASES.items() if {alias, name} <= known}
    return [dataclasses.replace(one, columns={
        renamed.get(name, name): values for name, values in one.columns.items()}) for one in tables]


def select(table: Table, rows: Bool[np.ndarray, " rows"] | Int[np.ndarray, " rows"]) -> Table:
    """Returns the table of the chosen rows."""
    places = np.arange(len(table))[rows]
    return dataclasses.replace(
        table, columns={name: values[places] for name, values in table.columns.items()},
        domain=table.domain[places], name=table.name[places], seed=table.seed[places],
        done=table.done[places],
        non_finite={name: found[places] for name, found in table.non_finite.items()},
        outcomes={name: tuple(values[i] for i in places)
                  for name, values in table.outcomes.items()},
        beside={origin: {name: values[places] for name, values in columns.items()}
                for origin, columns in table.beside.items()})


def count_non_finite(table: Table, *columns: str) -> int:
    """Number of values of `columns` that were written as NaN or an infinity."""
    return sum(int(table.non_finite[name].sum()) for name in columns if name in table.non_finite)


def domains(table: Table) -> list[str]:
    """The domains, by name."""
    return sorted(set(table.domain))


def find_column(table: Table, name: str, kind: str) -> str:
    """Returns the column that `name` means: itself, or what it is an alias of.

    Raises:
      InputError: there is no such column, or it holds text; the message has the nearest name.
    """
    found = name if name in table.columns else ALIASES.get(name, name)
    numeric = [one for one, values in table.columns.items() if values.dtype != object]
    if found in numeric:
        return found
    if found in table.columns:
        bad = next((i for i, v in enumerate(table.columns[found]) if not _is_number(v)), 0)
        raise InputError(f"{kind} {shorten(name)!r}", "is a column of text",
                         got=f"{table.columns[found][bad]!r} in data row {bad + 1}",
                         expected="numbers")
    shown = [*table.costs] if kind == "cost" and table.costs else (
        [*table.qualities] if kind == "quality" and table.qualities else numeric)
    near = suggest(name, [*shown, *ALIASES])
    raise InputError(kind, f"no record has this {kind}", got=name,
                     expected=f"one of {', '.join(shorten(s) for s in shown)}" if shown else None,
                     hint=f"did you mean {near}?" if near else None)


def as_number(text: str) -> float:
    """The number that `text` is, in ASCII digits without underscores.

    Raises:
      ValueError: it is none.
    """
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def _is_number(value: object) -> bool:
    try:
        as_number(str(value))
    except ValueError:
        return False
    return True


def direction_of(table: Table, quality: str, given: str | None) -> Direction:
    """Returns a quality's direction: what the records say, what was given, else by its name.

    Raises:
      InputError: given and known directions differ.
    """
    known = table.directions.get(quality)
    if given is not None and known not in (None, given):
        raise InputError(f"--quality {quality}", "is better the other way", got=given,
                         expected=known)
    if known is not None:
        return known
    words = quality.lower().replace("-", "_").replace("/", "_")
    lower = any(words == word or words.endswith("_" + word) for word in BETTER_LOW)
    return "max" if given == "max" else "min" if given == "min" or lower else "max"


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The shapes of one domain's rows, in order of first appearance.

    Attributes:
      names: [shapes].
      index: [rows] which shape a row is of.
    """

    names: tuple[str, ...]
    index: Int[np.ndarray, " rows"]


def shapes_of(table: Table) -> Shapes:
    """Groups the rows of one domain's table by name."""
    places: dict[str, int] = {}
    index = np.fromiter((places.setdefault(name, len(places)) for name in table.name),
                        dtype=np.int64, count=len(table))
    return Shapes(tuple(places), index)


def mean_by_shape(table: Table, shapes: Shapes, column: str) -> Float[np.ndarray, " shapes"]:
    """Mean of a column over the rows of each shape where it is finite; NaN where none is.

    Times are medians: one disturbed run does not move them.
    """
    values = np.where(table.done, table.columns[column], math.nan)
    finite = np.isfinite(values)
    if column in TIMES:
        return np.array([np.median(values[finite & (shapes.index == i)])
                         if (finite & (shapes.index == i)).any() else math.nan
                         for i in range(len(shapes.names))])
    size = len(shapes.names)
    count = np.bincount(shapes.index[finite], minlength=size)
    # A mean of equal numbers is that number, to the last bit.
    first = np.full(size, math.nan)
    first[shapes.index[finite][::-1]] = values[finite][::-1]
    extra = np.bincount(shapes.index[finite], (values - first[shapes.index])[finite], size)
    return first + extra / np.maximum(count, 1)


def missing(
    table: Table, shapes: Shapes, values: Mapping[str, Float[np.ndarray, " shapes"]]
) -> dict[str, str]:
    """Why shapes are missing where one of `values` (by column) is not finite, by their names.

    >>> table = Table({"acc": np.array([1.0, math.nan])}, _texts("mm"), _texts("ab"),
    ...               _texts("00"), np.array([True, True]))
    >>> missing(table, shapes_of(table), {"acc": table.columns["acc"]})
    {'b': 'acc is missing'}
    """
    size = len(shapes.names)
    gone = {name: ~np.isfinite(column) for name, column in values.items()}
    ended = np.bincount(shapes.index[table.done], minlength=size) > 0
    written = {name: np.bincount(shapes.index[table.done & bad], minlength=size) > 0
               for name, bad in table.non_finite.items() if name in gone}
    statuses = _statuses(table, shapes, ended)
    return {shapes.names[i]: "; ".join(
        _why(name, bool(written[name][i]) if name in written else False, bool(table.costs))
        for name, bad in gone.items() if bad[i]) if ended[i] else
        f"no finished run ({statuses.get(i, 'not done')})"
        for i in np.flatnonzero(np.any(list(gone.values()), axis=0)).tolist()}


def _why(name: str, written: bool, of_records: bool) -> str:
    if written:
        return f"{name} is not finite"
    if name.startswith(TIMES) and of_records:
        return f"{name} was not measured: it needs {MIN_TIMED_STEPS} timed training steps"
    return f"{name} is missing"


def _statuses(table: Table, shapes: Shapes, ended: np.ndarray) -> dict[int, str]:
    """How the trials of shapes without a done one ended."""
    words = table.columns.get("status")
    if words is None or words.dtype != object:
        return {}
    found: dict[int, Counter[str]] = {}
    for row in np.flatnonzero(~ended[shapes.index]).tolist():
        found.setdefault(int(shapes.index[row]), Counter())[str(words[row])] += 1
    return {i: ", ".join(f"{n} {word}" for word, n in one.items()) for i, one in found.items()}


def cost_spread(table: Table, shapes: Shapes, column: str) -> float:
    """How much a cost differs between the trials of one shape at most: largest over smallest."""
    values = table.columns[column]
    usable = table.done & (values > 0)
    most, least = np.zeros(len(shapes.names)), np.full(len(shapes.names), math.inf)
    np.maximum.at(most, shapes.index[usable], values[usable])
    np.minimum.at(least, shapes.index[usable], values[usable])
    return float((most / least)[most > 0].max(initial=1.0))


@dataclasses.dataclass(frozen=True)
class SeedValues:
    """One quality of the shapes of one domain, a number a training seed.

    Attributes:
      names: [shapes].
      mean: [shapes] over training seeds, NaN where none is finite.
      sd: [shapes] sample standard deviation over training seeds, NaN below two.
      n: [shapes] training seeds with a finite value.
      examples: [shapes, examples] per-example values, mean over seeds, where every shape with a
        mean has them for the same examples; else None.
    """

    names: tuple[str, ...]
    mean: Float[np.ndarray, " shapes"]
    sd: Float[np.ndarray, " shapes"]
    n: Int[np.ndarray, " shapes"]
    examples: Float[np.ndarray, "shapes examples"] | None = None


def seed_values(table: Table, shapes: Shapes, column: str) -> SeedValues:
    """Reduces a quality to training seeds, and those to mean and spread.

    Raises:
      InputError: a shape has two rows of one seed, and no column says what else differs.
    """
    values = np.where(table.done, table.columns[column], math.nan)
    places: dict[tuple[int, str], int] = {}
    run = np.fromiter((places.setdefault(key, len(places))
                       for key in zip(shapes.index.tolist(), table.seed, strict=True)),
                      dtype=np.int64, count=len(table))  # [rows]: which training run
    if len(places) < len(table) and not any(name in table.columns for name in INNER_SEEDS):
        _refuse_twice(table, run)
    finite = np.isfinite(values)
    count = np.bincount(run[finite], minlength=len(places))
    total = np.bincount(run[finite], values[finite], len(places))
    shape = np.fromiter((key[0] for key in places), dtype=np.int64, count=len(places))
    known = count > 0
    per_run, shape = total[known] / count[known], shape[known]
    size = len(shapes.names)
    n = np.bincount(shape, minlength=size)
    mean = np.full(size, math.nan)
    mean[n > 0] = np.bincount(shape, per_run, size)[n > 0] / n[n > 0]
    squares = np.bincount(shape, (per_run - mean[shape]) ** 2, size)
    sd = np.full(size, math.nan)
    sd[n > 1] = np.sqrt(squares[n > 1] / (n[n > 1] - 1))
    return SeedValues(shapes.names, mean, sd, n, _examples(table, shapes, column, mean))


def _refuse_twice(table: Table, run: np.ndarray) -> None:
    _, first, count = np.unique(run, return_index=True, return_counts=True)
    row = first[count > 1][0]
    raise InputError(f"shape {shorten(table.name[row])!r}", "has two rows of one seed",
                     got=f"seed {table.seed[row]}", expected="one row a training seed",
                     hint=f"a column {' or '.join(INNER_SEEDS)} tells other seeds apart")


def _examples(
    table: Table, shapes: Shapes, column: str, mean: np.ndarray
) -> np.ndarray | None:
    rows = table.outcomes.get(column)
    if rows is None:
        return None
    sizes = {len(row) for row in rows if row is not None}
    known = [[row for row, i in zip(rows, shapes.index, strict=True) if i == k and row is not None]
             for k in range(len(shapes.names))]
    whole = all(found or not math.isfinite(mean[k]) for k, found in enumerate(known))
    if len(sizes) != 1 or not whole:
        return None
    size = sizes.pop()
    values = np.array([np.mean(found, axis=0) if found else np.full(size, math.nan)
                       for found in known])  # [shapes, examples]
    # A score that is no mean over examples (an F1 over groups) says nothing an example at a time.
    same = np.isclose(values.mean(axis=1), mean, rtol=1e-6, atol=1e-9) | ~np.isfinite(mean)
    usable = size > 1 and same.all() and np.isfinite(values[np.isfinite(mean)]).all()
    return values if usable else None
