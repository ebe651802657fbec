"""Records as lines of JSON in one gzip file: everything of each, to keep in a repository.

A study's workdir has gigabytes of checkpoints beside its records. The archive has the records
alone, every number of them, so that a study goes on from it on another machine.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from deepnarrow.errors import InputError, shorten
from deepnarrow.files import write_bytes
from deepnarrow.records import CurvePoint, MetricRow, Origin, Outcome, Record, Stage, Status

SUFFIX = ".jsonl.gz"
MAX_LINE = 2**28  # bytes of one record's JSON: far above any, and no bomb gets further
_ROWS = {"metrics": MetricRow, "curve": CurvePoint, "outcomes": Outcome}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "status": get_args(Status), "stage": get_args(Stage), "origin": get_args(Origin),
    "direction": ("min", "max")}


def write_archive(records: Iterable[Record], path: str | Path) -> int:
    """Writes an archive, whole or not at all; the same records give the same bytes.

    Returns:
      The number of records.

    Raises:
      InputError: `path` does not end in `.jsonl.gz` or cannot be written.
    """
    path = Path(path)
    where = f"archive '{shorten(str(path))}'"
    if not path.name.endswith(SUFFIX):
        raise InputError(where, "has another ending", expected=f"NAME{SUFFIX}")
    lines = [json.dumps(record.to_dict(), sort_keys=True) for record in records]
    data = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    except OSError as error:
        raise InputError(where, f"cannot be written: {error.strerror}") from error
    return len(lines)


def read_archive(path: str | Path) -> list[Record]:
    """Returns the records of an archive.

    Raises:
      InputError: the file cannot be read, is cut short, or a line is no record.
    """
    where = f"archive '{shorten(str(path))}'"
    found = []
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE or not line.endswith(b"\n"):
                    raise InputError(f"{where} line {len(found) + 1}", "is too long or cut short")
                found.append(_record(line, f"{where} line {len(found) + 1}"))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(where, f"cannot be read: {shorten(error)}",
                         expected="a file that deepnarrow merge --out wrote") from error
    return found


def _record(line: bytes, where: str) -> Record:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(where, "is no JSON", got=shorten(error)) from error
    values = _fields(Record, values, where)
    for name, kind in _ROWS.items():
        if not isinstance(values[name], list):
            raise InputError(where, f"{name} is no list")
        values[name] = tuple(_row(kind, row, f"{where}, {name}") for row in values[name])
    for name in ("shape", "config", "costs", "environment"):
        if not isinstance(values[name], dict):
            raise InputError(where, f"{name} is no table")
    return Record(**values)


def _row(kind: type, row: Any, where: str) -> Any:
    values = _fields(kind, row, where)
    if "values" in values:
        numbers = values["values"]
        if not isinstance(numbers, list) or not all(isinstance(n, int | float) for n in numbers):
            raise InputError(where, "values are no list of numbers")
        values["values"] = tuple(float(number) for number in numbers)
    return kind(**values)


def _fields(kind: type, values: Any, where: str) -> dict[str, Any]:
    """A copy of `values`, which must have exactly the fields of a dataclass."""
    expected = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, Mapping) or values.keys() != expected:
        got = sorted(values) if isinstance(values, Mapping) else values
        raise InputError(where, "has other fields than a record of this version",
                         got=shorten(got), expected=", ".join(sorted(expected)))
    for name, choices in _CHOICES.items():
        if name in values and values[name] not in choices:
            raise InputError(where, f"{name} is unknown", got=shorten(values[name]),
                             expected=" or ".join(choices))
    return dict(values)
