"""Small files, written whole or not at all, and the lock that keeps a workdir to one writer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from deepnarrow.errors import InputError


def cache_dir() -> Path:
    """Where things that can be made again are kept between runs.

    `DEEPNARROW_CACHE`, else `XDG_CACHE_HOME/deepnarrow`, else `~/.cache/deepnarrow`.
    """
    own = os.environ.get("DEEPNARROW_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deepnarrow"


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, atomically; refuses NaN and infinities."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def append_json(path: Path, value: Any) -> None:
    """Appends `value` as one line of JSON; a line that was cut short is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value, allow_nan=False) + "\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())


def is_alive(pid: int) -> bool:
    """True while a process of this host runs; False for one that ended and waits for its parent."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # another user's
    except (ProcessLookupError, OverflowError):
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True  # no /proc on this system


class WorkdirLock:
    """Exclusive use of a workdir by one process; the kernel frees it when the process dies.

    Raises:
      InputError: on entering, when another process holds it, naming the holder; or when the
        workdir cannot be made.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir

    def __enter__(self) -> WorkdirLock:
        where = f"workdir '{self.workdir}'"
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._file = open(self.workdir / ".lock", "a+")
        except OSError as error:
            raise InputError(
                where,
                f"cannot be written: {error.strerror}",
                hint="name a directory you may write to",
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise InputError(
                where,
                "is in use by another run",
                got=holder or "unknown holder",
                hint="wait for it, stop it, or name another workdir",
            ) from None
        self._file.truncate(0)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()} since {now}")
        self._file.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def check_new(path: Path) -> None:
    """Raises `InputError` where something has that name already."""
    if os.path.lexists(path):
        raise InputError(f"output '{path}'", "exists already",
                         hint="name another, or remove it first")


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Makes a file or a folder whole or not at all: yields where to make it, then moves it there.

    What was made is forced to disk before it gets its name; if the block raises, it is removed.

    Raises:
      InputError: something has that name already, or the place cannot be written.
    """
    check_new(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # of a process that was killed and had our id
        yield temporary
        for made in [*temporary.rglob("*"), temporary]:
            _sync(made)
        os.rename(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise InputError(f"output '{path}'", "cannot be written", got=error.strerror or error,
                         hint="name a place you may write to, with room for it") from error
    finally:
        _remove(temporary)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
