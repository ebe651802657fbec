"""Small files, written whole or not at all, and the lock that keeps a workdir to one writer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

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


def _nothing(call: str) -> None:
    del call


# Called with the name of every call that changes the disk, before it. Tests put a function here
# that raises, or ends the process, at the k-th call.
before_io: Callable[[str], None] = _nothing


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new, never a part."""
    before_io("mkdir")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        before_io("open")
        with open(temporary, "wb") as file:
            _write(file, data)
        before_io("replace")
        os.replace(temporary, path)
        sync(path.parent)  # the new name, too, outlives a power cut
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Appends a line of text and forces it to disk; a crash leaves at most its beginning."""
    before_io("open")
    with open(path, "ab") as file:
        _write(file, f"{line}\n".encode())


def cut_torn_tail(path: Path) -> int:
    """Cuts what follows the last line end, as a crash leaves it; returns the bytes dropped."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    torn = len(data) - (data.rfind(b"\n") + 1)
    if torn:
        before_io("truncate")
        os.truncate(path, len(data) - torn)
    return torn


def sync(path: Path) -> None:
    """Forces a file's content, or a folder's list of names, to disk."""
    before_io("fsync")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Gives a file or folder its new name, on disk too."""
    before_io("rename")
    os.rename(source, target)
    sync(target.parent)


def _write(file: IO[bytes], data: bytes) -> None:
    """Writes in two pieces, so that a crash between them leaves a part, as a real one may."""
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        before_io("write")
        file.write(piece)
        file.flush()
    before_io("fsync")
    os.fsync(file.fileno())


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


def safe_join(root: Path, name: str, where: str) -> Path:
    """Returns `root / name` for a name that data give: below `root`, and through no link.

    >>> safe_join(Path("runs"), "a/b", "plan.json").as_posix()
    'runs/a/b'

    Raises:
      InputError: the name is empty or absolute, leads out of `root`, or a part of it is a link.
    """
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
        raise InputError(where, "names a file outside of its folder", got=name)
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise InputError(where, f"'{path}' is a link, which is not followed",
                             hint=f"copy the folder without links: cp -rL '{root}' COPY")
    return path


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

    Args:
      workdir: made where it does not exist.
      wait_s: how long to wait for another process to leave.

    Raises:
      InputError: on entering, when another process holds it, naming the holder; or when the
        workdir cannot be made.
    """

    def __init__(self, workdir: Path, wait_s: float = 0.0):
        self.workdir, self.wait_s = workdir, wait_s

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
            self._lock()
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

    def _lock(self) -> None:
        deadline = time.monotonic() + self.wait_s
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.1)

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
            sync(made)
        rename(temporary, path)
    except OSError as error:
        raise InputError(f"output '{path}'", "cannot be written", got=error.strerror or error,
                         hint="name a place you may write to, with room for it") from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
