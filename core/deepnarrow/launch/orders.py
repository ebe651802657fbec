"""Work orders and what comes back: the files between a study's command and its workers.

    WORKDIR/launch/NAME.json                     an order: config, keys with the attempts' numbers
    WORKDIR/launch/NAME.log                      what the worker printed
    WORKDIR/outbox/KEY-ATTEMPT.jsonl.gz          one record, whole or not there
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepnarrow.config import StudyConfig, from_json, to_json
from deepnarrow.errors import InputError
from deepnarrow.files import write_json
from deepnarrow.recordfile import SUFFIX, read_archive, write_archive
from deepnarrow.records import Record

LAUNCH = "launch"
OUTBOX = "outbox"
MAX_ORDER_BYTES = 50_000_000
_NAME = re.compile(r"([0-9a-f]{32})-([0-9]{1,9})" + re.escape(SUFFIX))


@dataclasses.dataclass(frozen=True)
class Order:
    """What one worker process is to run.

    Attributes:
      path: of the order's file.
      workdir: of the study.
      config: of the study.
      attempts: the attempts' numbers by the trials' keys, in the order in which they run.
      tuned: by the trials' keys, a try's `learning_rate` or the choice that a tuned trial takes.
    """

    path: Path
    workdir: Path
    config: StudyConfig
    attempts: Mapping[str, int]
    tuned: Mapping[str, Mapping[str, Any]]

    @property
    def log(self) -> Path:
        """Where the worker's output goes."""
        return self.path.with_suffix(".log")


def write_order(
    workdir: Path, config: StudyConfig, attempts: Mapping[str, int],
    tuned: Mapping[str, Mapping[str, Any]],
) -> Order:
    """Writes an order, named after its first trial."""
    key, attempt = next(iter(attempts.items()))
    path = workdir.absolute() / LAUNCH / f"{key}-{attempt}.json"
    write_json(path, {"workdir": str(workdir.absolute()), "config": to_json(config),
                      "attempts": dict(attempts), "tuned": dict(tuned)})
    return Order(path, workdir, config, attempts, tuned)


def read_order(path: str | Path) -> Order:
    """Reads an order.

    Raises:
      InputError: it is none.
    """
    path = Path(path)
    where = f"order '{path}'"
    try:
        if path.stat().st_size > MAX_ORDER_BYTES:
            raise InputError(where, "is too large", expected=f"<= {MAX_ORDER_BYTES} bytes")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(where, "cannot be read", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise InputError(where, "is no JSON", got=error) from error
    if not (isinstance(values, dict) and isinstance(values.get("workdir"), str)
            and isinstance(values.get("attempts"), dict)
            and all(type(n) is int for n in values["attempts"].values())
            and isinstance(values.get("tuned"), dict)
            and all(isinstance(one, dict) and isinstance(one.get("learning_rate"), float)
                    for one in values["tuned"].values())):
        raise InputError(where, "is no order", expected="workdir, config, attempts and tuned")
    return Order(path, Path(values["workdir"]), from_json(values.get("config"), where),
                 values["attempts"], values["tuned"])


def leave(workdir: Path, record: Record, attempt: int) -> None:
    """Leaves a record for the study's command."""
    write_archive([record], workdir / OUTBOX / f"{record.key}-{attempt}{SUFFIX}")


def left(workdir: Path) -> Iterator[tuple[Path, Record, int]]:
    """Yields what workers have left: the file, the record and the attempt's number.

    Raises:
      InputError: a file is damaged, or holds another record than it is named after.
    """
    for path in sorted((workdir / OUTBOX).glob(f"*{SUFFIX}")):
        named = _NAME.fullmatch(path.name)
        if named is None:
            continue  # being written, or not ours
        records = read_archive(path)
        if [record.key for record in records] != [named[1]]:
            raise InputError(str(path), "is not the record that its name says",
                             hint="remove it; its trial will run again")
        yield path, records[0], int(named[2])
