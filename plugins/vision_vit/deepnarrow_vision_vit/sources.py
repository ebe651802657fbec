"""The data's options, and image sets made into sources of examples. Imports no JAX."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.errors import InputError, shorten
from deepnarrow.modality import Example, Source
from deepnarrow_vision_vit.images import Raw, refusal, refused_mode, to_pixels
from deepnarrow_vision_vit.preprocess import Chain, Form, check_chain
from deepnarrow_vision_vit.readers import ImageSet, Pool, check_labels
from deepnarrow_vision_vit.splits import hash_shares, parse_split, split_rows

if TYPE_CHECKING:
    pass

WHERE = "vision_vit data"
CORRUPT = ("refuse", "skip")
MAX_CACHED_BYTES = 2**28  # sets that decode to less are decoded once and kept
MAX_NAMED = 5  # images that an error or a warning names


# --- which images ---------------------------------------------------------------------------------
def resolve_rows(
    images: ImageSet, expression: str, convert: tuple[str, ...], corrupt: str, where: str
) -> tuple[Pool, np.ndarray]:
    """Returns the stored split that an expression names, and the positions of its usable images.

    Raises:
      InputError: the expression is none, or an image cannot be used (see `usable`).
    """
    split = parse_split(expression, where, images.pools)
    pool = images.pools[split.name]
    index = pool.index()
    shares = hash_shares(index.hashes) if split.hashed or pool.sorted_by_class else None
    rows = split_rows(split, shares if split.hashed else None, len(index.hashes), where)
    if pool.sorted_by_class and not split.hashed and len(rows) < len(index.hashes):
        assert shares is not None
        rows = np.sort(np.argsort(shares, kind="stable")[rows])
    return pool, usable(pool, rows, convert, corrupt)


def usable(
    pool: Pool, rows: np.ndarray, convert: tuple[str, ...], corrupt: str
) -> np.ndarray:
    """Returns `rows` without the images that cannot be decoded, each of which is reported.

    Raises:
      InputError: with `corrupt` "refuse", images that cannot be decoded; in any case images that
        need a conversion which is not declared.
    """
    index = pool.index()
    bad = rows[index.problems[rows] != ""]
    if len(bad):
        text = _name(pool, bad, [str(index.problems[i]) for i in bad])
        what = f"{len(bad)} of {len(rows)} images cannot be used: {text}"
        if corrupt == "refuse":
            raise InputError(pool.where, what, hint="mend or remove them, or set data.corrupt="
                                                    "skip to leave them out")
        warnings.warn(f"{pool.where}: {what}; they are left out", stacklevel=2)
        rows = rows[index.problems[rows] == ""]
    needed = {mode: refused_mode(mode, convert) for mode in set(index.modes[rows].tolist())}
    refused = rows[[bool(needed[mode]) for mode in index.modes[rows].tolist()]]
    if len(refused):
        modes = [str(index.modes[i]) for i in refused]
        reasons = [refusal(mode, needed[mode]) for mode in modes]
        raise InputError(pool.where, f"{len(refused)} of {len(rows)} images are refused: "
                                     f"{_name(pool, refused, reasons)}")
    if not len(rows):
        raise InputError(pool.where, "no image is left")
    return rows


def _name(pool: Pool, rows: np.ndarray, reasons: Sequence[str]) -> str:
    shown = [f"{shorten(pool.describe(int(i)))} {reason}"
             for i, reason in zip(rows[:MAX_NAMED], reasons, strict=False)]
    more = len(rows) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def stored_forms(pool: Pool, rows: np.ndarray) -> list[Form]:
    """Returns the different forms in which images are stored."""
    index = pool.index()
    pairs = {(mode, height, width) for mode, (height, width)
             in zip(index.modes[rows].tolist(), index.sizes[rows].tolist(), strict=True)}
    return [Form(height, width, 1 if mode in ("1", "L", "LA") else 3, "raw")
            for mode, height, width in sorted(pairs)]


def warn_overlap(hashes: Mapping[str, np.ndarray], where: str) -> None:
    """Warns of images, by the hash of their content, that two splits share.

    Args:
      hashes: uint8 [n, 32] by split.
      where: for the warning.
    """
    # The first 8 bytes of a digest tell images apart: a billion pairs collide once in 10^10 times.
    keys = {name: np.unique(np.ascontiguousarray(value[:, :8]).view(np.uint64))
            for name, value in hashes.items()}
    for first, second in itertools.combinations(keys, 2):
        shared = len(np.intersect1d(keys[first], keys[second], assume_unique=True))
        if shared:
            warnings.warn(f"{where}: {first} and {second} share {shared} images (of "
                          f"{len(keys[first])} and {len(keys[second])} different ones)",
                          stacklevel=2)


# --- examples -------------------------------------------------------------------------------------
def make_source(
    pool: Pool, rows: np.ndarray, chain: Chain, num_classes: int, *, mixup: float = 0.0
) -> Source:
    """Returns the images at `rows` as examples, preprocessed by `chain`.

    An example is `{"image": float32 [size, size, channels], "label": int32}`. With `mixup` it has
    `partner_label` (int32) and `label_weight` (float32 in [0.5, 1]) too, see `mix`.

    Raises:
      InputError: the chain does not fit the images, or a label is out of range.
    """
    labels = check_labels(pool.where, pool.labels()[rows], num_classes).astype(np.int32)
    for form in stored_forms(pool, rows):
        check_chain(chain, form, f"{pool.where} preprocessing")
    read = _cached_read(pool, rows, chain)

    def load_plain(index: int, rng: np.random.Generator) -> Example:
        try:
            return {"image": chain(read(index), rng), "label": labels[index]}
        except InputError as error:  # the image has changed since it was indexed
            name = pool.describe(int(rows[index]))
            raise InputError(pool.where, f"{shorten(name)} {error.what}",
                             hint="start again: changed files are checked anew") from error

    def load_mixed(index: int, rng: np.random.Generator) -> Example:
        partner = int(rng.integers(len(rows)))
        share = float(rng.beta(mixup, mixup))
        return mix(load_plain(index, rng), load_plain(partner, rng), max(share, 1 - share))

    digest = hashlib.sha256(json.dumps([chain.facts(), mixup, num_classes]).encode())
    digest.update(pool.index().hashes[rows].tobytes())
    digest.update(labels.tobytes())
    return Source(num_examples=len(rows), load=load_mixed if mixup else load_plain,
                  content_hash=digest.hexdigest(), labels=lambda: labels)


def mix(example: Example, partner: Example, share: float) -> Example:
    """Mixes `share` of an example with the rest of a partner (Zhang et al. 2018, mixup).

    big_vision mixes each batch with itself shifted by one, with one share a batch. Here the partner
    is any training image and the share each example's own, so that example i depends on (seed, i)
    alone, whatever the batch and the number of hosts. As there, share = max(a, 1 - a) with
    a ~ Beta(alpha, alpha): each example has the same distribution, and the example itself weighs
    at least half. It costs a second image read and augmented for each example.
    """
    image = example["image"] * np.float32(share)
    image += partner["image"] * np.float32(1 - share)
    return {"image": image, "label": example["label"], "partner_label": partner["label"],
            "label_weight": np.float32(share)}


def _cached_read(pool: Pool, rows: np.ndarray, chain: Chain) -> Any:
    """`read(i) -> Raw` of the i-th of `rows`; small sets of encoded images are decoded once."""
    positions = rows.tolist()
    sizes = pool.index().sizes[rows].astype(np.int64)
    decoded = int((sizes[:, 0] * sizes[:, 1]).sum()) * chain.first.channels
    if isinstance(pool.read(positions[0]), np.ndarray) or decoded > MAX_CACHED_BYTES:
        return lambda index: pool.read(positions[index])
    kept: list[np.ndarray | None] = [None] * len(positions)

    def read(index: int) -> Raw:
        image = kept[index]
        if image is None:  # two threads may both decode it: the same image
            image = kept[index] = to_pixels(chain.decode(pool.read(positions[index])))
        return image

    return read
