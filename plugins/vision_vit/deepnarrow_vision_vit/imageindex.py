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
from typing import Any

import numpy as np

from deepnarrow.files import cache_dir, write_bytes
from deepnarrow_vision_vit.images import Facts, inspect

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


Row = tuple[bytes, int, Facts]


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
    known = _load(path)
    rows: list[Row | None] = [known.get(key) for key in zip(names, stamps, strict=True)]
    missing = [i for i, row in enumerate(rows) if row is None]
    flushed = time.monotonic()
    for i, row in _inspect_all(place, missing, read):
        rows[i] = row
        if time.monotonic() - flushed > FLUSH_SECONDS:
            _save(path, names, stamps, rows)
            flushed = time.monotonic()
    if missing:
        _save(path, names, stamps, rows)
    return _to_index([row for row in rows if row is not None])


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
def _load(path: Path) -> dict[tuple[str, str], Row]:
    """Rows by (name, stamp); none where the file is not there or not whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path).to_pydict()
        facts = map(Facts, columns["mode"], columns["height"], columns["width"],
                    columns["problem"])
        rows = zip(columns["sha256"], columns["label"], facts, strict=True)
        return dict(zip(zip(columns["name"], columns["stamp"], strict=True), rows, strict=True))
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return {}


def _save(
    path: Path, names: Sequence[str], stamps: Sequence[str], rows: Sequence[Row | None]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = [(name, mark, *row) for name, mark, row in zip(names, stamps, rows, strict=True)
            if row is not None]
    columns: dict[str, Any] = {
        "name": [r[0] for r in done], "stamp": [r[1] for r in done],
        "sha256": pa.array([r[2] for r in done], pa.binary(32)),
        "label": pa.array([r[3] for r in done], pa.int64()),
        **{field.name: [getattr(r[4], field.name) for r in done]
           for field in dataclasses.fields(Facts)},
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def _to_index(rows: Sequence[Row]) -> Index:
    facts = [row[2] for row in rows]
    return Index(
        hashes=np.frombuffer(b"".join(row[0] for row in rows), np.uint8).reshape(-1, 32),
        labels=np.array([row[1] for row in rows], np.int64),
        modes=np.array([f.mode for f in facts], object),
        sizes=np.array([(f.height, f.width) for f in facts], np.int32).reshape(-1, 2),
        problems=np.array([f.problem for f in facts], object),
    )


def hash_arrays(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, 32]: sha256 of each stored image's own bytes."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)

