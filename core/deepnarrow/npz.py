"""Reading `.npz` files of strangers: nothing is run, nothing allocated that the file cannot fill.

Headers are read alone first, so that a caller can look at every shape before it reads an array.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from deepnarrow.errors import InputError

# Arrays of numbers hardly compress; a file that grows more than this on reading is a bomb.
MAX_EXPANSION = 100


class ArrayHeader(NamedTuple):
    """What an array says of itself before its numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_headers(path: str | os.PathLike[str], where: str) -> dict[str, ArrayHeader]:
    """Returns the header of every array of an `.npz` file by name; reads no array.

    Args:
      path: the file.
      where: what errors call it.

    Raises:
      InputError: it is no such file, holds pickled objects, or an array's size is not the claimed.
    """
    with _opened(path, where) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        names = [m.filename.removesuffix(".npy") for m in members]
        if not names or len(set(names)) < len(names):
            raise InputError(where, "has an array twice" if names else "holds no arrays")
        total, limit = sum(m.file_size for m in members), os.path.getsize(path) * MAX_EXPANSION
        if total > limit:
            raise InputError(where, "is packed too tightly", got=f"{total} bytes unpacked",
                             expected=f"at most {limit}", hint="write it with np.savez")
        return {name: _read_header(f"{where}, {name}", archive, member)
                for name, member in zip(names, members, strict=True)}


def read_arrays(
    path: str | os.PathLike[str], where: str, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Returns arrays by name; `read_headers` has found them sound.

    Raises:
      InputError: the file is damaged.
    """
    with _opened(path, where) as archive:
        arrays = {}
        for name in names:
            with archive.open(f"{name}.npy") as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], where: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError,
            KeyError) as error:
        raise InputError(where, "cannot be read as an .npz file", got=error,
                         hint="write it with np.savez") from error


def _read_header(where: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    with archive.open(member) as file:
        try:
            if np.lib.format.read_magic(file) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        except Exception as error:  # a hostile header makes NumPy's parser raise nearly anything
            raise InputError(where, "has no readable header", got=error) from error
        start = file.tell()
    if dtype.hasobject:
        raise InputError(where, "holds pickled objects, which are not read", got=dtype,
                         expected="an array of numbers")
    size = start + dtype.itemsize * math.prod(shape)
    if min(shape, default=0) < 0 or size != member.file_size:
        raise InputError(where, "claims another size than it has", got=f"{size} bytes",
                         expected=f"{member.file_size} bytes", hint="the file is damaged")
    return ArrayHeader(shape, dtype)
