"""Which trials run now: a small file for each process that trains, in `WORKDIR/running/`.

The file is touched about once a second, so a process on another machine that died is told from one
that lives by the file's age.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepnarrow.files import is_alive, write_json

RUNNING = "running"
FRESH_S = 60.0  # a process elsewhere whose file is older counts as gone


def state_file(workdir: Path, host: str | None = None, pid: int | None = None) -> Path:
    """Returns the file of a process; of this one unless told."""
    host = socket.gethostname() if host is None else host
    return workdir / RUNNING / f"{host}-{os.getpid() if pid is None else pid}.json"


def say_running(workdir: Path, facts: Mapping[str, Any]) -> None:
    """Says what this process works on now."""
    write_json(state_file(workdir), {"host": socket.gethostname(), "pid": os.getpid(), **facts})


def touch(workdir: Path) -> None:
    """Shows that this process lives; nothing where it works on nothing."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(state_file(workdir))


def say_ended(workdir: Path) -> None:
    """Takes back what this process said, and what processes said that are gone."""
    state_file(workdir).unlink(missing_ok=True)
    for path in (workdir / RUNNING).glob("*.json"):
        if _read(path) is None:
            path.unlink(missing_ok=True)


def running(workdir: Path) -> list[dict[str, Any]]:
    """Returns what the processes that live work on; a damaged file counts as none."""
    found = [_read(path) for path in sorted((workdir / RUNNING).glob("*.json"))]
    return [state for state in found if state is not None]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(path.read_text())
        here = state["host"] == socket.gethostname()
        alive = (is_alive(int(state["pid"])) if here
                 else time.time() - path.stat().st_mtime < FRESH_S)
        return state if alive and "key" in state else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
