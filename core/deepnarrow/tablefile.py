"""Tables from files: anybody's CSV or Parquet, and deepnarrow's own exports.

The shape is in column `name`, else `shape`, else `model`; the domain in the column asked for, else
`domain`, else `modality`; the training seed in `seed`. All three may be missing. Nothing in a file
is ever executed.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from deepnarrow.dominance import Direction
from deepnarrow.errors import InputError, shorten, suggest
from deepnarrow.export import COLUMNS
from deepnarrow.records import COSTS, MetricRow
from deepnarrow.summary import is_quality, quality_name, quality_order
from deepnarrow.table import WITHOUT_PRETRAINING, Table, as_number

NAME_COLUMNS = ("name", "shape", "model")
DOMAIN_COLUMNS = ("domain", "modality")
# What a long table of ours has, and nobody else's.
OWN_COLUMNS = {"key", "modality", "architecture", "name", "seed", "status", "stage", "task",
               "metric", "direction", "value", "origin"}
SEPARATORS = (";", "\t", "|")  # of other dialects
MAX_BYTES = 4 << 30
MAX_CELLS = 300_000_000
Columns = dict[str, np.ndarray]


def read_table(path: str | Path, by: str | None = None) -> Table:
    """Reads a CSV (UTF-8, with a header) or a Parquet file.

    A column of a CSV is numeric if every cell is a number or empty; "nan", "inf" and the like are
    numbers that are not finite, and counted. A table that deepnarrow exported (a row a record and
    metric) becomes one with a column a quality.

    Args:
      path: the file.
      by: the column that says the domain.

    Raises:
      InputError: the file cannot be read, has no header or rows of another length, two columns of
        one name, or no column `by`.
    """
    path = Path(path)
    where = f"source {shorten(str(path))!r}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(where, "is too large", got=f"{path.stat().st_size} bytes",
                             expected=f"<= {MAX_BYTES}")
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        columns = _read_parquet(path, where) if is_parquet else _read_csv(path, where)
    except OSError as error:
        raise InputError(where, f"cannot be read: {error.strerror or error}") from error
    if set(columns) >= OWN_COLUMNS:
        return _own_export(columns)
    return _foreign(columns, where, by)


def _read_csv(path: Path, where: str) -> Columns:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows = [row for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(where, f"is no CSV: {error}", expected="UTF-8, a header, one row a line",
                         hint="CSV and Parquet files and study workdirs can be read") from error
    header = [name.strip() for name in header]
    _check_header(header, where)
    for i, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(where, f"data row {i} has another number of cells", got=len(row),
                             expected=f"{len(header)}, as in the header")
    cells = zip(*rows, strict=True) if rows else ((),) * len(header)
    return {name: _typed(column) for name, column in zip(header, cells, strict=True)}


def _check_header(header: list[str], where: str) -> None:
    if not any(header):
        raise InputError(where, "has no header", expected="a first line with the columns' names")
    if any("\0" in name for name in header):
        raise InputError(where, "is no text", hint="CSV and Parquet files can be read")
    separator = next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
    if separator is not None:
        raise InputError(where, "has one column", got=shorten(header[0], 60),
                         expected="columns with commas between", hint=f"replace {separator!r}")
    twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if twice is not None:
        raise InputError(where, "has two columns of one name", got=repr(shorten(twice)))


def _typed(cells: tuple[str, ...]) -> np.ndarray:
    try:
        return np.array([as_number(cell) if cell.strip() else _EMPTY for cell in cells],
                        np.float64)
    except ValueError:
        return np.array([*cells, None], dtype=object)[:-1]


def _read_parquet(path: Path, where: str) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        shape = pq.read_metadata(path)
        if shape.num_rows * shape.num_columns > MAX_CELLS:
            raise InputError(where, "is too large", got=f"{shape.num_rows} rows x "
                             f"{shape.num_columns} columns", expected=f"<= {MAX_CELLS} cells")
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise InputError(where, f"is no Parquet file: {shorten(error)}") from error
    _check_header(table.column_names, where)
    return {name: _arrow_column(table.column(name)) for name in table.column_names}


def _arrow_column(column: object) -> np.ndarray:
    import pyarrow as pa

    found = cast(pa.ChunkedArray, column)
    number = (pa.types.is_integer(found.type) or pa.types.is_floating(found.type)
              or pa.types.is_boolean(found.type))
    values = found.to_pylist()
    if number:
        return np.array([_EMPTY if v is None else float(v) for v in values], dtype=np.float64)
    return np.array([*("" if v is None else str(v) for v in values), None], dtype=object)[:-1]


# An empty cell, told from a written NaN by its bits.
_EMPTY = float(np.array(0x7FF8_0000_0000_0E00, dtype=np.uint64).view(np.float64))


def _non_finite(values: np.ndarray) -> np.ndarray:
    empty = values.view(np.uint64) == np.float64(_EMPTY).view(np.uint64)
    return ~np.isfinite(values) & ~empty


def _foreign(columns: Columns, where: str, by: str | None) -> Table:
    numbers = {name: values for name, values in columns.items() if values.dtype != object}
    non_finite = {name: _non_finite(values) for name, values in numbers.items()}
    for values in numbers.values():
        values[~np.isfinite(values)] = math.nan
    if by is not None and by not in columns:
        near = suggest(by, columns)
        raise InputError(where, "has no such column", got=by,
                         expected=f"one of {', '.join(shorten(name) for name in columns)}",
                         hint=f"did you mean {near}?" if near else None)
    rows = len(next(iter(columns.values())))
    name = next((c for c in NAME_COLUMNS if c in columns), None)
    domain = by or next((c for c in DOMAIN_COLUMNS if c in columns), None)
    status = columns.get("status")
    done = (np.array([v in ("done", "") for v in status], dtype=bool)
            if status is not None and set(status) & {"done"} else np.ones(rows, dtype=bool))
    return Table(
        columns, _labels(columns[domain]) if domain else np.full(rows, "", dtype=object),
        _labels(columns[name]) if name else _numbered(rows, "row "),
        _labels(columns["seed"]) if "seed" in columns else _numbered(rows, "#"), done,
        {k: v for k, v in non_finite.items() if v.any()})


def _labels(values: np.ndarray) -> np.ndarray:
    """Text as it is, numbers as a person would write them."""
    if values.dtype == object:
        return values
    return np.array([*(f"{v:.15g}" for v in values), None], dtype=object)[:-1]


def _numbered(rows: int, prefix: str) -> np.ndarray:
    return np.array([*(f"{prefix}{i + 1}" for i in range(rows)), None], dtype=object)[:-1]


def _own_export(columns: Columns) -> Table:
    """A row a record and metric -> a row a record, a column a quality."""
    rows = list(zip(*(columns[name] for name in columns), strict=True))
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    first: dict[str, dict[str, object]] = {}
    for cell in cells:
        first.setdefault(str(cell["key"]), cell)
    found, directions = _measured(cells)
    qualities = tuple(sorted(directions, key=quality_order))
    made: Columns = {}
    for name in COLUMNS:
        if name in columns and name not in ("stage", "task", "metric", "value", "direction"):
            kind = columns[name].dtype
            made[name] = np.array([*(one[name] for one in first.values()), None],
                                  dtype=object)[:-1].astype(kind)
    for name in qualities:
        made[name] = _column(found, first, "pretrained", name)
    beside = {origin: {name: column for name in qualities if np.isfinite(
        column := _column(found, first, origin, name)).any()} for origin in WITHOUT_PRETRAINING}
    whole = _foreign(made, "table", None)
    depth = made["num_encoder_layers"] + np.nan_to_num(made["num_decoder_layers"])
    return dataclasses.replace(
        whole, columns=made | {"depth": depth, "width": made["d_model"]}, directions=directions,
        done=np.array([one["status"] == "done" for one in first.values()], dtype=bool),
        costs=tuple(name for name in COSTS if name in made), qualities=qualities,
        beside={origin: one for origin, one in beside.items() if one})


Measured = dict[tuple[str, str, str], list[float]]  # by key, origin, quality


def _measured(cells: Sequence[Mapping[str, Any]]) -> tuple[Measured, dict[str, Direction]]:
    """The qualities of done trials, and the directions of those of pre-trained models."""
    found: Measured = {}
    directions: dict[str, Direction] = {}
    for cell in cells:
        shots = cell.get("shots", math.nan)
        row = MetricRow(cell["stage"], str(cell["task"]), str(cell["metric"]), cell["direction"],
                        None, shots=int(shots) if np.isfinite(shots) else None)
        if cell["status"] != "done" or not is_quality(row):
            continue
        if cell["origin"] == "pretrained":
            directions[quality_name(row)] = row.direction
        values = found.setdefault((str(cell["key"]), str(cell["origin"]), quality_name(row)), [])
        values += [float(cell["value"])] if np.isfinite(cell["value"]) else []
    return found, directions


def _column(found: Measured, keys: Iterable[str], origin: str, name: str) -> np.ndarray:
    return np.array([_mean(found.get((key, origin, name), [])) for key in keys])


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
