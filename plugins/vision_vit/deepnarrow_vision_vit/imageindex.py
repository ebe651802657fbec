"""What every encoded image of a data set is, found by reading each once, and kept for next time.

Training reads at random, so an image that cannot be decoded must be known before it starts. One
pass over the files decodes each image and hashes its bytes; a Parquet file in the cache keeps the
result by (name, size, time of change), so that the next opening reads only what changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.files import cache_dir, write_bytes
from deepnarrow_vision_vit.images import Facts, inspect

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1  # of the index: raise it with every change of what `inspect` finds
FLUSH_SECONDS = 120.0  # an interrupted pass loses no more than this
CHUNK = 256  # images a thread takes at once
SHOW_SECONDS = 2.0  # passes that take longer show a bar


@dataclasses.dataclass(frozen=True)
class Index:
    """Facts of n encoded images.

    Attributes:
      hashes: uint8 [n, 32], sha256 of each image's bytes.
      labels: int64 [n], as stored with the image; -1 where the files hold none.
      modes: n mode names, see `images.Facts`.
      sizes: int32 [n, 2], height and width.
      problems: why an image cannot be decoded; empty where it can.
    """

    hashes: np.ndarray
    labels: np.ndarray
    modes: np.ndarray
    sizes: np.ndarray
    problems: np.ndarray


Row = tuple[bytes, int, Facts]  # sha256, label, facts
_KEYS = ("name", "stamp")
_FACTS = tuple(field.name for field in dataclasses.fields(Facts))


def build_index(
    place: str, names: Sequence[str], stamps: Sequence[str],
    read: Callable[[int], tuple[bytes, int]],
) -> Index:
    """Returns the index of n images, reading those that the cache does not know.

    Args:
      place: what the images are, e.g. `folder:/data/pets train`; names the cache's file.
      names: of the images, within `place`.
      stamps: what changes when an image may have changed: its file's size and time.
      read: `read(i) -> (bytes, label)`; label -1 where none is stored.
    """
    digest = hashlib.sha256(f"{VERSION} {place}".encode()).hexdigest()[:32]
    path = cache_dir() / "vision_vit" / f"index-{digest}.parquet"
    kept = _load(path)
    if kept is not None and _covers(kept, names, stamps):
        return _to_index(kept)
    known = {} if kept is None else _rows(kept)
    rows: list[Row | None] = [known.get(key) for key in zip(names, stamps, strict=True)]
    missing = [i for i, row in enumerate(rows) if row is None]
    flushed = time.monotonic()
    for i, row in _inspect_all(place, missing, read):
        rows[i] = row
        if time.monotonic() - flushed > FLUSH_SECONDS:
            _save(path, names, stamps, rows)
            flushed = time.monotonic()
    return _to_index(_save(path, names, stamps, rows))


def stamp(path: Path) -> str:
    """Returns a file's size and time of change."""
    status = os.stat(path)
    return f"{status.st_size}:{status.st_mtime_ns}"


def _inspect_all(
    place: str, missing: Sequence[int], read: Callable[[int], tuple[bytes, int]]
) -> Iterator[tuple[int, Row]]:
    def inspect_chunk(chunk: Sequence[int]) -> list[tuple[int, Row]]:
        found = []
        for i in chunk:
            data, label = read(i)
            found.append((i, (hashlib.sha256(data).digest(), label, inspect(data))))
        return found

    chunks = [missing[i:i + CHUNK] for i in range(0, len(missing), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool, _Bar(place, len(missing)) as bar:
        for found in pool.map(inspect_chunk, chunks):
            yield from found
            bar.advance(len(found))


class _Bar:
    """A bar on stderr for passes that take a while; a line now and then where that is a file."""

    def __init__(self, place: str, total: int):
        self._place, self._total, self._done = place, total, 0
        self._next = time.monotonic() + SHOW_SECONDS

    def __enter__(self) -> _Bar:
        return self

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() < self._next:
            return
        terminal = sys.stderr.isatty()
        end = "\r" if terminal else "\n"
        print(f"checking {self._place}: {self._done} of {self._total} images", end=end,
              file=sys.stderr, flush=True)
        self._next = time.monotonic() + (SHOW_SECONDS if terminal else 30.0)

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty() and self._done and time.monotonic() >= self._next - SHOW_SECONDS:
            print(file=sys.stderr)


# --- the cache's file -----------------------------------------------------------------------------
def _load(path: Path) -> pa.Table | None:
    """The kept table; None where the file is not there or not whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        return table.select([*_KEYS, "sha256", "label", *_FACTS])
    except (OSError, KeyError, pa.ArrowException):
        return None


def _covers(table: pa.Table, names: Sequence[str], stamps: Sequence[str]) -> bool:
    """Whether the table is about these very images in this order."""
    return all(table.column(key).to_pylist() == list(values)
               for key, values in zip(_KEYS, (names, stamps), strict=True))


def _rows(table: pa.Table) -> dict[tuple[str, str], Row]:
    """The table's rows by (name, stamp)."""
    columns = table.to_pydict()
    facts = map(Facts, *(columns[name] for name in _FACTS))
    rows = zip(columns["sha256"], columns["label"], facts, strict=True)
    return dict(zip(zip(*(columns[key] for key in _KEYS), strict=True), rows, strict=True))


def _save(
    path: Path, names: Sequence[str], stamps: Sequence[str], rows: Sequence[Row | None]
) -> pa.Table:
    """Writes what is known so far, and returns it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = [(name, mark, *row) for name, mark, row in zip(names, stamps, rows, strict=True)
            if row is not None]
    columns: dict[str, Any] = {
        "name": [r[0] for r in done], "stamp": [r[1] for r in done],
        "sha256": pa.array([r[2] for r in done], pa.binary(32)),
        "label": pa.array([r[3] for r in done], pa.int64()),
        **{name: [getattr(r[4], name) for r in done] for name in _FACTS},
    }
    table, sink = pa.table(columns), pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(path, sink.getvalue().to_pybytes())
    return table


def _to_index(table: pa.Table) -> Index:
    columns = {name: table.column(name) for name in table.column_names}
    hashes = b"".join(columns["sha256"].to_pylist())
    sizes = [columns[name].to_numpy().astype(np.int32) for name in ("height", "width")]
    return Index(
        hashes=np.frombuffer(hashes, np.uint8).reshape(-1, 32),
        labels=columns["label"].to_numpy(),
        modes=np.array(columns["mode"].to_pylist(), object),
        sizes=np.stack(sizes, axis=1),  # 2 x [n] -> [n, 2]
        problems=np.array(columns["problem"].to_pylist(), object),
    )


def hash_arrays(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, 32]: sha256 of each stored image's own bytes."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)

