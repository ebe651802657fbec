"""`Store`: the records of a study in one SQLite file. Rows are only added, one row a fact.

Tables: `records` (one row an ended trial), `metrics`, `curves` and `outcomes` (one row a number, a
point, an evaluation), which refer to it; `claims` (one row an attempt at a trial). Structured
fields (shape, config, costs, environment) are JSON. A non-finite number is NULL; per-example
outcomes are compressed float64, where NaN says null.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import socket
import sqlite3
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from deepnarrow.errors import InputError, shorten
from deepnarrow.records import FINISHED, CurvePoint, MetricRow, Outcome, Record, Status

SCHEMA_VERSION = 2
APPLICATION_ID = 0x646E7231  # "dnr1": tells our files from any other SQLite file
BUSY_SECONDS = 30.0  # how long a writer waits for another

_TABLES = {
    "records": """
        id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, key TEXT NOT NULL,
        study TEXT NOT NULL, modality TEXT NOT NULL, architecture TEXT NOT NULL, name TEXT NOT NULL,
        shape TEXT NOT NULL, seed INTEGER NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('done', 'diverged', 'failed', 'preempted')),
        config TEXT NOT NULL, costs TEXT NOT NULL, flop_convention TEXT NOT NULL,
        environment TEXT NOT NULL""",
    "metrics": """
        record INTEGER NOT NULL REFERENCES records(id), position INTEGER NOT NULL,
        stage TEXT NOT NULL, task TEXT NOT NULL, metric TEXT NOT NULL,
        direction TEXT NOT NULL CHECK (direction IN ('min', 'max')), value REAL,
        origin TEXT NOT NULL CHECK (origin IN ('pretrained', 'untrained', 'raw')),
        shots INTEGER, shot_seed INTEGER, finetune_seed INTEGER, PRIMARY KEY (record, position)""",
    "curves": """
        record INTEGER NOT NULL REFERENCES records(id), position INTEGER NOT NULL,
        stage TEXT NOT NULL, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL,
        PRIMARY KEY (record, position)""",
    "outcomes": """
        record INTEGER NOT NULL REFERENCES records(id), position INTEGER NOT NULL,
        stage TEXT NOT NULL, task TEXT NOT NULL, metric TEXT NOT NULL, origin TEXT NOT NULL,
        "values" BLOB NOT NULL, shots INTEGER, shot_seed INTEGER, finetune_seed INTEGER,
        PRIMARY KEY (record, position)""",
}
_CLAIMS = {"claims": """
        key TEXT NOT NULL, attempt INTEGER NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
        at TEXT NOT NULL, PRIMARY KEY (key, attempt)"""}


def _made(tables: Mapping[str, str]) -> tuple[str, ...]:
    """The statements that make tables whose rows are only added."""
    return (
        *(f"CREATE TABLE {table} ({columns})" for table, columns in tables.items()),
        *(f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} "
          "BEGIN SELECT RAISE(ABORT, 'rows are only added'); END"
          for table in tables for verb in ("UPDATE", "DELETE")),
    )


# What brings a file of each version to the next one; a new file is of version 0.
_MIGRATIONS = {
    0: (*_made(_TABLES),
        "CREATE UNIQUE INDEX finished ON records(key) WHERE status IN ('done', 'diverged')",
        f"PRAGMA application_id = {APPLICATION_ID}"),
    1: _made(_CLAIMS),
}
_JSON_FIELDS = ("shape", "config", "costs", "environment")
_CHILDREN = {"metrics": MetricRow, "curves": CurvePoint, "outcomes": Outcome}
_FIELD_OF = {"metrics": "metrics", "curves": "curve", "outcomes": "outcomes"}
T = TypeVar("T")


class Store:
    """The records in the file at `path`, made where it does not exist.

    One writer at a time, any number of readers beside it. Every `add` is one transaction that is on
    disk when `add` returns.

    Args:
      path: the SQLite file; its folder must exist.
      read_only: never write (`deepnarrow status`); the file must exist.

    Raises:
      InputError: the file cannot be opened, is no record store, or a newer deepnarrow wrote it.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False):
        self.path = Path(path)
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise InputError(str(path), "no file can be here",
                             expected="a file in a folder that exists")
        if read_only and not self.path.is_file():
            raise InputError(str(path), "no records yet", hint="is this a study's workdir?")
        with _reported(self.path):
            self._db = _connect(self.path, read_only)
            try:
                if self._is_new() and read_only:
                    raise InputError(str(path), "no records yet")
                if not read_only:
                    self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; a closed store cannot be used again."""
        self._db.close()

    def add(self, record: Record) -> bool:
        """Stores `record`, all of it or nothing.

        A record that is here already, and a finished key whose results are the same, change
        nothing; measured costs and the environment may differ, the first ones stay.

        Returns:
          True where it was added, False where it was here already.

        Raises:
          InputError: the key is finished with other results, or a value cannot be stored.
        """
        return self.add_all([record]) == 1

    def add_all(self, records: Iterable[Record]) -> int:
        """Stores `records` as `add` does, all of them or none; returns how many were added."""
        with _reported(self.path), self._transaction():
            return sum(self._add(record) for record in records)

    def claim(self, key: str) -> int:
        """Returns the number of a new attempt at `key`; earlier attempts are fenced off by it."""
        with _reported(self.path), self._transaction():
            attempt = self._newest_claim(key) + 1
            self._db.execute("INSERT INTO claims VALUES (?, ?, ?, ?, datetime('now'))",
                             [key, attempt, socket.gethostname(), os.getpid()])
            return attempt

    def add_claimed(self, record: Record, attempt: int) -> bool:
        """Stores the record that an attempt gave, as `add` does, unless a newer one was claimed.

        Returns:
          True where it is in the store now, False where the attempt was fenced off.
        """
        with _reported(self.path), self._transaction():
            if attempt != self._newest_claim(record.key):
                return False
            self._add(record)
            return True

    def attempts(self) -> dict[str, int]:
        """Returns how often each key was attempted."""
        with _reported(self.path):
            if self._db.execute("PRAGMA user_version").fetchone()[0] < 2:
                return {}  # read only, and of a version without claims
            return dict(self._db.execute("SELECT key, MAX(attempt) FROM claims GROUP BY key"))

    def _newest_claim(self, key: str) -> int:
        query = "SELECT COALESCE(MAX(attempt), 0) FROM claims WHERE key = ?"
        return self._db.execute(query, [key]).fetchone()[0]

    def _add(self, record: Record) -> bool:
        try:
            plain = _plain(record)
            digest = _digest(plain)
            if self._is_here(plain, digest):
                return False
            self._insert(plain, digest)
            return True
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError, sqlite3.IntegrityError,
                sqlite3.ProgrammingError) as error:
            raise _cannot_store(record, error) from error

    def finished_keys(self) -> set[str]:
        """Keys that need no further run: done or diverged."""
        with _reported(self.path):
            rows = self._db.execute("SELECT key FROM records WHERE status IN ('done', 'diverged')")
            return {key for (key,) in rows}

    def statuses(self) -> dict[str, int]:
        """Number of keys by status; a key counts as finished, or else by its last record."""
        with _reported(self.path):
            return dict(self._db.execute("""
                SELECT status, COUNT(*) FROM (
                  SELECT status, ROW_NUMBER() OVER (
                    PARTITION BY key ORDER BY status IN ('done', 'diverged') DESC, id DESC) AS place
                  FROM records)
                WHERE place = 1 GROUP BY status ORDER BY status"""))

    def records(
        self, modality: str | None = None, status: Status | None = None
    ) -> list[Record]:
        """Returns the records, oldest first, of one modality or status where given."""
        given = [("modality", modality), ("status", status)]
        where = " AND ".join(f"{column} = ?" for column, value in given if value is not None)
        with _reported(self.path):
            return self._read(where or "1", [value for _, value in given if value is not None])

    def _is_new(self) -> bool:
        """True for an empty file; raises `InputError` unless it is new or ours."""
        version, application, tables = (
            self._db.execute(query).fetchone()[0]
            for query in ("PRAGMA user_version", "PRAGMA application_id",
                          "SELECT COUNT(*) FROM sqlite_master"))
        if not (version or application or tables):
            return True
        if application != APPLICATION_ID:
            raise InputError(str(self.path), "is not a record store of deepnarrow")
        if version > SCHEMA_VERSION:
            raise InputError(str(self.path), "was written by a newer deepnarrow", got=version,
                             expected=f"schema version <= {SCHEMA_VERSION}",
                             hint="upgrade deepnarrow")
        return False

    def _prepare(self) -> None:
        # Only after the file is known to be ours or new: setting WAL writes to it.
        mode = _retry_busy(
            lambda: self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        if mode != "wal":
            warnings.warn(
                f"{self.path}: SQLite's WAL does not work on this file system; using journal mode "
                f"{mode!r}: records are as safe, but readers wait while one is written",
                stacklevel=3)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._transaction():
            self._is_new()  # read again, now that nobody else writes
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            for each in range(version, SCHEMA_VERSION):
                for statement in (*_MIGRATIONS[each], f"PRAGMA user_version = {each + 1}"):
                    self._db.execute(statement)

    @contextlib.contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _is_here(self, record: Record, digest: str) -> bool:
        if self._db.execute("SELECT 1 FROM records WHERE digest = ?", [digest]).fetchone():
            return True
        if record.status not in FINISHED:
            return False
        earlier = self._read("key = ? AND status IN ('done', 'diverged')", [record.key])
        if earlier:
            _refuse_conflict(earlier[0], record)
        return bool(earlier)

    def _insert(self, record: Record, digest: str) -> None:
        columns = {"digest": digest}
        for field in dataclasses.fields(Record):
            if field.name not in _FIELD_OF.values():
                value = getattr(record, field.name)
                columns[field.name] = json.dumps(value) if field.name in _JSON_FIELDS else value
        cursor = self._db.execute(_insertion("records", columns), list(columns.values()))
        for table, field in _FIELD_OF.items():
            for position, row in enumerate(getattr(record, field)):
                columns = {"record": cursor.lastrowid, "position": position, **vars(row)}
                if "values" in columns:
                    columns["values"] = _pack(columns["values"])
                self._db.execute(_insertion(table, columns), list(columns.values()))

    def _read(self, where: str, values: list[Any]) -> list[Record]:
        # One read transaction: the tables show one moment while another process writes.
        inside = self._db.in_transaction
        with contextlib.nullcontext() if inside else self._transaction("DEFERRED"):
            children = {table: self._children(table, kind, where, values)
                        for table, kind in _CHILDREN.items()}
            rows = self._select(f"SELECT * FROM records WHERE {where} ORDER BY id", values)
        found = []
        for row in rows:
            key, _ = row.pop("id"), row.pop("digest")
            row |= {field: json.loads(row[field]) for field in _JSON_FIELDS}
            row |= {_FIELD_OF[table]: tuple(rows.get(key, ())) for table, rows in children.items()}
            found.append(Record(**row))
        return found

    def _children(
        self, table: str, kind: type[T], where: str, values: list[Any]
    ) -> dict[int, list[T]]:
        found: dict[int, list[T]] = {}
        query = (f"SELECT * FROM {table} WHERE record IN (SELECT id FROM records WHERE {where}) "
                 "ORDER BY record, position")
        for row in self._select(query, values):
            record, _ = row.pop("record"), row.pop("position")
            if "values" in row:
                row["values"] = _unpack(row["values"])
            found.setdefault(record, []).append(kind(**row))
        return found

    def _select(self, query: str, values: list[Any]) -> list[dict[str, Any]]:
        cursor = self._db.execute(query, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    def connect(mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True,
                               timeout=BUSY_SECONDS, isolation_level=None)

    if not read_only:
        return connect("mode=rwc")
    db = connect("mode=ro")
    try:
        db.execute("SELECT COUNT(*) FROM sqlite_master")
    except sqlite3.Error as error:
        db.close()
        # A folder where nothing can be written has no room for WAL's shared memory. With no WAL
        # beside it the file holds everything, and nobody changes it.
        wal = path.with_name(path.name + "-wal")
        if not isinstance(error, sqlite3.OperationalError) or wal.exists():
            raise
        return connect("mode=ro&immutable=1")
    return db


def _retry_busy(function: Any) -> Any:
    # SQLite's own waiting does not cover the switch to WAL, which two processes may try at once.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return function()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.Error as error:
        raise InputError(str(path), f"cannot be used as a record store: {error}",
                         hint="is it a whole SQLite file, writable, its disk not full?") from error


def _insertion(table: str, columns: Mapping[str, Any]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"


def _plain_value(value: Any) -> Any:
    """Plain Python: scalars of array libraries as numbers, non-finite floats as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain(record: Record) -> Record:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(Record):
        value = getattr(record, field.name)
        if field.name in _FIELD_OF.values():
            fields[field.name] = tuple(_plain_row(row) for row in value)
        else:
            fields[field.name] = _plain_value(value)
    return Record(**fields)


def _plain_row(row: Any) -> Any:
    if isinstance(row, Outcome):
        values = (float(value) for value in row.values)
        return dataclasses.replace(
            row, values=tuple(v if math.isfinite(v) else math.nan for v in values))
    return type(row)(**{name: _plain_value(value) for name, value in vars(row).items()})


def _digest(record: Record) -> str:
    text = json.dumps(record.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _pack(values: tuple[float, ...]) -> bytes:
    packed = array.array("d", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return zlib.compress(packed.tobytes(), 1)


def _unpack(blob: bytes) -> tuple[float, ...]:
    packed = array.array("d")
    packed.frombytes(zlib.decompress(blob))
    if sys.byteorder == "big":
        packed.byteswap()
    return tuple(packed)


def _cannot_store(record: Record, error: Exception) -> InputError:
    return InputError(f"record {record.key}", f"cannot be stored: {shorten(error, 200)}",
                      expected="text, numbers of 64 bits, and lists and tables of them")


def _refuse_conflict(stored: Record, given: Record) -> None:
    where = f"record {stored.key} ({stored.name}, seed {stored.seed})"
    hint = "one key has one result: find out which run is right"
    for field in ("modality", "architecture", "name", "shape", "seed", "status"):
        ours, theirs = getattr(stored, field), getattr(given, field)
        if ours != theirs:
            raise InputError(where, f"is finished with another {field}", got=theirs,
                             expected=shorten(ours), hint=hint)
    ours, theirs = Counter(stored.metrics), Counter(given.metrics)
    if ours != theirs:
        raise InputError(where, "is finished with other metrics",
                         got=_show(theirs - ours), expected=_show(ours - theirs), hint=hint)


def _show(rows: Counter[MetricRow]) -> str:
    if not rows:
        return "nothing"
    row = next(iter(rows))
    return f"{row.stage} {row.task} {row.metric} {row.value}".replace("  ", " ")
