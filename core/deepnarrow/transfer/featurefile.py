"""Anyone's features: read from `.npz` files, checked for what train and test share."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Num

from deepnarrow.errors import InputError
from deepnarrow.transfer.fewshot import as_integers

# Real features hardly compress; a file that grows more than this on reading is no file of features.
MAX_EXPANSION = 100


def encode_labels(
    y_train: np.ndarray, y_test: np.ndarray
) -> tuple[Int64[np.ndarray, " n_train"], Int64[np.ndarray, " n_test"],
           Int64[np.ndarray, " classes"]]:
    """Returns both labels as positions in the train labels' sorted classes, and those classes.

    Raises:
      InputError: a test label does not occur among the train labels; it names the first.

    >>> encode_labels(np.array([7, -1, 7]), np.array([-1]))
    (array([1, 0, 1]), array([0]), array([-1,  7]))
    """
    y_train, y_test = as_integers("train labels", y_train), as_integers("test labels", y_test)
    classes, encoded = np.unique(y_train, return_inverse=True)
    bad = ~np.isin(y_test, classes)
    if bad.any():
        index = int(bad.argmax())
        raise InputError("test labels", f"label of example {index} has no train example",
                         got=y_test[index], hint="give train examples of every class")
    return encoded.astype(np.int64), np.searchsorted(classes, y_test), classes


def count_repeated(
    x_train: Num[np.ndarray, "n_train d"], x_test: Num[np.ndarray, "n_test d"]
) -> int:
    """Returns how many test rows are also train rows, number by number, in float32.

    >>> count_repeated(np.eye(3), np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]))
    1
    """
    known = set(_row_hashes(x_train))
    return sum(row in known for row in _row_hashes(x_test))


def _row_hashes(x: Num[np.ndarray, "n d"]) -> list[int]:
    # 64 bits a row: two different rows of millions agree by chance once in a million files. The
    # sum turns -0.0 into 0.0.
    return [hash(row.tobytes()) for row in x.astype(np.float32) + np.float32(0)]


def load_probe_arrays(
    path: str | os.PathLike[str],
) -> tuple[Num[np.ndarray, "n d"], Int64[np.ndarray, " n"]]:
    """Reads features `x` [n, d] and integer labels `y` [n] from an `.npz` file, as it stands there.

    Nothing in the file is run (no pickle), and nothing is allocated before the sizes that it claims
    are found consistent with the size that it has.

    Raises:
      InputError: there is no such file, it is no such archive, or its arrays cannot be.
    """
    where = str(path)
    if not Path(path).is_file():
        raise InputError(where, "is not a file", expected="an .npz file with x [n, d] and y [n]")
    try:
        with zipfile.ZipFile(path) as archive:
            x = _read_member(where, archive, "x", 2)
            y = _read_member(where, archive, "y", 1)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise InputError(where, "cannot be read as an .npz file", got=error,
                         hint="write it with np.savez(path, x=features, y=labels)") from error
    if len(x) != len(y):
        raise InputError(where, "x and y have different lengths", got=f"{len(x)} and {len(y)}")
    return x, as_integers(f"{where}, y", y)


def _read_member(where: str, archive: zipfile.ZipFile, name: str, ndim: int) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        names = ", ".join(sorted(n.removesuffix(".npy") for n in archive.namelist()[:10]))
        raise InputError(where, f"has no array {name!r}", got=names or "no arrays",
                         expected="x [n, d] and y [n]")
    info = archive.getinfo(f"{name}.npy")
    shape, dtype, header_bytes = _read_header(f"{where}, {name}", archive, info)
    if dtype.kind not in "fiu" or len(shape) != ndim or min(shape) < 1:
        raise InputError(f"{where}, {name}", "is no such array", got=f"{dtype} {list(shape)}",
                         expected="numbers " + ("[n, d]" if ndim == 2 else "[n]"))
    size = header_bytes + dtype.itemsize * math.prod(shape)
    available = os.path.getsize(where) * MAX_EXPANSION
    if size != info.file_size or size > available:
        raise InputError(f"{where}, {name}", "claims another size than it has", got=f"{size} bytes",
                         expected=f"{min(info.file_size, available)} bytes",
                         hint="the file is damaged, or packed too tightly: write it with np.savez")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_header(
    where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype, int]:
    """Returns shape, dtype and the bytes before the data; no array is allocated."""
    with archive.open(info) as file:
        try:
            if np.lib.format.read_magic(file) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        except Exception as error:  # a hostile header makes NumPy's parser raise nearly anything
            raise InputError(where, "has no readable header", got=error) from error
        return shape, dtype, file.tell()
