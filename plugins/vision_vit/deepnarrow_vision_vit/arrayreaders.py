"""IDX files (the MNIST family) and NumPy archives, read into memory. Imports no JAX."""

from __future__ import annotations

import gzip
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow_vision_vit.readers import (
    MAX_MEMORY_BYTES,
    SPLIT_NAMES,
    ImageSet,
    array_pool,
    array_set,
)
from deepnarrow_vision_vit.splits import UNDIVIDED

_IDX_NAME = re.compile(r"(?:(?P<split>\w+?)-)?(?P<what>images|labels)[-.]idx(?P<dims>\d)-ubyte"
                       r"(?:\.gz)?")
_UBYTE = 0x08  # IDX's code of unsigned bytes
# Names of arrays in an archive: SPLIT_images with SPLIT_labels, or Keras' x_SPLIT with y_SPLIT.
_NPZ_IMAGES = re.compile(r"(?:(?P<before>\w+)_images|x_(?P<after>\w+)|images|x)")


# --- IDX ------------------------------------------------------------------------------------------
def open_idx(folder: Path, where: str) -> ImageSet:
    """Opens `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte.gz`, ...; without split: `all`."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _IDX_NAME.fullmatch(path.name)
        if match is None:
            continue
        split = _split_name(match["split"])
        if (split, match["what"]) in found:
            raise InputError(where, "two files hold the same", got=path.name,
                             expected=f"only {found[split, match['what']].name}")
        found[split, match["what"]] = path
    splits = sorted({split for split, _ in found})
    if not splits:
        raise InputError(where, "holds no IDX files",
                         expected="e.g. train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz")
    for split in splits:
        for what in ("images", "labels"):
            if (split, what) not in found:
                raise InputError(where, f"split {split!r} has no {what} file")
    return array_set(where, {
        split: array_pool(f"{where} {split}", read_idx(found[split, "images"]),
                          read_idx(found[split, "labels"]))
        for split in splits})


def read_idx(path: Path) -> np.ndarray:
    """Returns the array of an IDX file: uint8 of the shape in its header.

    Raises:
      InputError: the header is none, asks for too much, or the file is shorter or longer.
    """
    where = f"IDX file '{path}'"
    try:
        with open(path, "rb") as file:
            return _read_idx(gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file, where)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(where, f"cannot be read: {error}") from error


def _read_idx(file: gzip.GzipFile | BinaryIO, where: str) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UBYTE or not 1 <= magic[3] <= 4:
        raise InputError(where, "is no IDX file of bytes", got=magic.hex(),
                         expected="00000801 (labels) or 00000803 (images)")
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise InputError(where, "is cut off in its header")
    shape = struct.unpack(f">{magic[3]}I", header)
    size = 1
    for dim in shape:
        size *= dim
    if size > MAX_MEMORY_BYTES:
        raise InputError(where, "is too large", got=f"{list(shape)}",
                         expected=f"at most {MAX_MEMORY_BYTES} bytes")
    data = file.read(size + 1)
    if len(data) != size:
        raise InputError(where, "does not hold what its header says",
                         got="fewer bytes" if len(data) < size else "more bytes",
                         expected=f"{size} bytes, shape {list(shape)}",
                         hint="download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _split_name(name: str | None) -> str:
    return UNDIVIDED if name is None else SPLIT_NAMES.get(name, name)


# --- NumPy ----------------------------------------------------------------------------------------
def open_npz(path: Path, where: str) -> ImageSet:
    """Opens `train_images` with `train_labels`, `x_train` with `y_train`, or `images`, `labels`."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_MEMORY_BYTES:
            raise InputError(where, "is too large", got=f"{size} bytes unpacked",
                             expected=f"at most {MAX_MEMORY_BYTES}",
                             hint="prepare it as ArrayRecord, or as a folder")
        with np.load(path, allow_pickle=False) as arrays:
            names = _pair_names(arrays.files, where)
            return array_set(where, {
                split: array_pool(f"{where} {split}", arrays[images], arrays[labels])
                for split, (images, labels) in names.items()})
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(where, f"cannot be read: {error}",
                         expected="an .npz of plain arrays, no pickled objects") from error


def _pair_names(files: list[str], where: str) -> dict[str, tuple[str, str]]:
    """Names of the arrays of images and labels, by split."""
    pairs: dict[str, tuple[str, str]] = {}
    for images in files:
        match = _NPZ_IMAGES.fullmatch(images)
        if match is None:
            continue
        labels = (images.replace("images", "labels") if "images" in images
                  else f"y{images[1:]}")
        if labels not in files:
            raise InputError(where, f"has {images} without labels", expected=labels,
                             got=f"arrays {', '.join(files)}")
        pairs[_split_name(match["before"] or match["after"])] = (images, labels)
    if not pairs:
        raise InputError(where, "holds no images", got=f"arrays {', '.join(files)}",
                         expected="train_images, train_labels, ...; x_train, y_train, ...; or "
                                  "images, labels")
    return pairs
