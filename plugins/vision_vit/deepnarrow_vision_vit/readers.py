"""Opening images by one line, `KIND:PATH`: what is stored, under which splits and labels.

    tfds:/data/cifar10/3.0.2     a data set prepared by tensorflow-datasets as ArrayRecord
    folder:/data/pets            CLASS/*.jpg, or SPLIT/CLASS/*.jpg (.jpg .jpeg .png)
    idx:/data/fashion_mnist      MNIST's files, gzipped or not
    npz:/data/set.npz            arrays `train_images`, `train_labels`, ... or `images`, `labels`
    parquet:/data/set            files `train-*.parquet`, ..., with encoded `image` and `label`
    digits                       scikit-learn's 1,797 handwritten digits

Opening reads labels and listings; the images themselves are read when needed. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from deepnarrow.errors import InputError, shorten, suggest
from deepnarrow_vision_vit.imageindex import Index, hash_arrays
from deepnarrow_vision_vit.images import Raw, array_facts
from deepnarrow_vision_vit.splits import UNDIVIDED

MAX_MEMORY_BYTES = 2**33  # of a source that is read into memory as a whole
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation",
               "val": "validation", "dev": "validation", "test": "test", "t10k": "test"}


@dataclasses.dataclass(frozen=True)
class Pool:
    """The images of one stored split.

    Attributes:
      where: the source and the split, for errors.
      labels: `labels() -> int64 [n]`.
      read: `read(i) -> ` the stored image: bytes, or uint8 [h, w, channels].
      describe: `describe(i) -> ` a name of image i for people.
      index: `index() -> Index`: hashes and facts of all images; reads them once.
      sorted_by_class: whether neighbours are of one class: then slices by position go through
        the images in the order of their hashes.
    """

    where: str
    labels: Callable[[], np.ndarray]
    read: Callable[[int], Raw]
    describe: Callable[[int], str]
    index: Callable[[], Index]
    sorted_by_class: bool = False


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """An opened source.

    Attributes:
      where: the source, for errors.
      pools: what is stored, by split; one called `all` where the source has no splits.
      num_classes: labels are 0 ... num_classes - 1.
    """

    where: str
    pools: Mapping[str, Pool]
    num_classes: int


@functools.lru_cache(maxsize=32)
def open_set(source: str) -> ImageSet:
    """Opens a source by its line; twice the same line is opened once.

    Raises:
      InputError: an unknown kind, nothing there, or content that does not fit.
    """
    kind, colon, path = source.partition(":")
    openers = _openers()
    if source == "digits":
        return _digits_set()
    if kind not in openers or not colon or not path:
        near = suggest(kind, [*openers, "digits"])
        raise InputError(f"source {shorten(source)!r}", "is no source of images",
                         expected=f"digits, or one of {', '.join(f'{k}:PATH' for k in openers)}",
                         hint=f"did you mean {near}?" if near and near != kind else None)
    where = f"source '{source}'"
    place = Path(path).expanduser()
    if not place.exists():
        raise InputError(where, "there is no such file or folder", got=path,
                         hint="give the path of data that is on this machine")
    return openers[kind](place, where)


def _openers() -> dict[str, Callable[[Path, str], ImageSet]]:
    from deepnarrow_vision_vit import arrayreaders, filereaders

    return {"tfds": filereaders.open_tfds, "folder": filereaders.open_folder,
            "idx": arrayreaders.open_idx, "npz": arrayreaders.open_npz,
            "parquet": filereaders.open_parquet}


# --- labels ---------------------------------------------------------------------------------------
def check_labels(
    where: str, labels: np.ndarray, num_classes: int | None = None
) -> np.ndarray:
    """Returns labels as int64 [n].

    Raises:
      InputError: they are no integers from 0 up (below `num_classes`, where that is given); the
        first bad one is named.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # [n, 1] -> [n]
    if labels.ndim != 1 or labels.dtype.kind not in "iuf":
        raise InputError(where, "labels are no list of integers",
                         got=f"{labels.dtype} {list(labels.shape)}", expected="integers [n]")
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    bad = (whole != labels) | (whole < 0) | (whole >= (num_classes or 2**31))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise InputError(
            where, f"label {first} is out of range", got=labels[first],
            expected=f"integers 0..{num_classes - 1}" if num_classes else "integers from 0 up")
    return whole


def count_classes(where: str, labels: Mapping[str, np.ndarray]) -> int:
    """Returns the number of classes that the labels of all splits show.

    Raises:
      InputError: a class between 0 and the highest label has no example in any split.
    """
    every = np.concatenate(list(labels.values())) if labels else np.zeros(0, np.int64)
    if not len(every):
        raise InputError(where, "holds no images")
    present = np.unique(every)
    missing = np.setdiff1d(np.arange(min(int(present[-1]) + 1, len(every) + 1)), present)
    if len(missing):
        raise InputError(where, f"class {missing[0]} has no image",
                         got=f"labels up to {present[-1]}, {len(present)} of them in use",
                         expected="labels 0 ... classes - 1", hint="number the classes from 0")
    if len(present) < 2:
        raise InputError(where, "holds one class only", expected="at least 2")
    return len(present)


# --- arrays in memory -----------------------------------------------------------------------------
def array_pool(where: str, pixels: np.ndarray, labels: np.ndarray) -> Pool:
    """Returns a pool over images in memory.

    Raises:
      InputError: not uint8 [n, h, w] or [n, h, w, channels], or as many labels as images.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., None]  # [n, h, w] -> [n, h, w, 1]
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        hint = {np.float32: "scale to 0..255 and .astype(np.uint8)",
                np.float64: "scale to 0..255 and .astype(np.uint8)",
                np.uint16: "16 bits: (images >> 8).astype(np.uint8)"}.get(pixels.dtype.type)
        raise InputError(where, "images are no bytes",
                         got=f"{pixels.dtype} {list(pixels.shape)}",
                         expected="uint8 [n, height, width] or [n, height, width, channels]",
                         hint=hint)
    if len(pixels) != len(labels):
        raise InputError(where, "images and labels do not pair up",
                         got=f"{len(pixels)} images, {len(labels)} labels")
    if not pixels.size:
        raise InputError(where, "holds no pixels", got=f"shape {list(pixels.shape)}")
    labels = check_labels(where, labels)

    @functools.cache
    def index() -> Index:
        facts, count = array_facts(pixels[0]), len(pixels)
        return Index(hashes=hash_arrays(pixels), labels=labels,
                     modes=np.full(count, facts.mode, object),
                     sizes=np.full((count, 2), pixels.shape[1:3], np.int32),
                     problems=np.full(count, "", object))

    return Pool(where, labels=lambda: labels, read=lambda i: pixels[i],
                describe=lambda i: f"image {i}", index=index,
                sorted_by_class=bool((np.diff(labels) >= 0).all()))


def array_set(where: str, pools: Mapping[str, Pool]) -> ImageSet:
    """Returns the set of pools whose labels are in memory."""
    labels = {name: pool.labels() for name, pool in pools.items()}
    return ImageSet(where, pools, count_classes(where, labels))


def _digits_set() -> ImageSet:
    from deepnarrow_vision_vit.digits import load_digits

    digits = load_digits()
    pixels = np.round(digits.pixels.astype(np.float64) * 255 / digits.white).astype(np.uint8)
    where = "source 'digits'"
    return array_set(where, {UNDIVIDED: array_pool(where, pixels, digits.labels)})
