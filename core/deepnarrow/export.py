"""Records as one flat table, CSV or Parquet: a row for each record and metric.

A record without metrics (failed, preempted) has one row with the metric's columns empty, so that it
does not vanish from the table. Tuning's tries have none: their losses stand in the rows, of stage
`tuning`, of the trials that took the chosen rate; an archive has their own records (recordfile.py).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from deepnarrow.errors import InputError
from deepnarrow.records import COSTS, MetricRow, Record, reported
from deepnarrow.shape import FIELD_LIMITS, FLAG_FIELDS
from deepnarrow.store import Store

# Every column with its type, in order.
COLUMNS: dict[str, type] = {
    **dict.fromkeys(("key", "study", "modality", "architecture", "name"), str),
    **dict.fromkeys(FIELD_LIMITS, int),
    **dict.fromkeys(FLAG_FIELDS, bool),
    "seed": int,
    "status": str,
    **dict.fromkeys(COSTS, float),
    **dict.fromkeys(("flop_convention", "device", "host", "stage", "task", "metric", "direction"),
                    str),
    "value": float,
    "origin": str,
    **dict.fromkeys(("shots", "shot_seed", "finetune_seed"), int),
}


def flat_rows(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """Yields one row a (record, metric), with every column of `COLUMNS`, None where empty."""
    for record in reported(records):
        known = {**vars(record), **record.shape, **record.costs}
        known |= {name: record.environment.get(name) for name in ("device", "host")}
        metrics: tuple[MetricRow | None, ...] = record.metrics or (None,)
        for metric in metrics:
            row = known | (vars(metric) if metric else {})
            yield {name: _typed(row.get(name), kind) for name, kind in COLUMNS.items()}


def export_csv(store: Store, path: str | Path) -> int:
    """Writes the flat table of `store` as CSV (UTF-8, header, empty cell for none).

    Text that a spreadsheet would take for a formula (it starts with = + - @, a tab or a carriage
    return) gets a leading apostrophe. Numbers are written so that they read back exactly.

    Returns:
      The number of rows.

    Raises:
      InputError: `path` cannot be written.
    """
    rows = list(flat_rows(store.records()))

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([_cell(value) for value in row.values()] for row in rows)

    _replace(Path(path), write)
    return len(rows)


def export_parquet(store: Store, path: str | Path) -> int:
    """Writes the flat table of `store` as Parquet: columns are typed, an empty cell is null.

    Returns:
      The number of rows.

    Raises:
      InputError: `path` cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    table = pa.Table.from_pylist(list(flat_rows(store.records())), schema=schema)
    _replace(Path(path), lambda partial: pq.write_table(table, partial))
    return table.num_rows


def _typed(value: Any, kind: type) -> Any:
    return None if value is None else kind(value)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return "" if value is None else value


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside `path` and renames, so that a reader never sees half a table."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
