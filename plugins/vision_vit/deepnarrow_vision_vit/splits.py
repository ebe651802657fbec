"""Which images belong to a split: `train[:90%]` by position, `hash(train)[90%:]` by content.

    NAME             all images of a stored split; `all` where the source has no splits of its own
    NAME[a:b]        a slice by position: numbers, or whole per cent, negative ones from the end,
                     rounded to the nearest image as tensorflow-datasets does
    hash(NAME)[a:b]  the images whose content's hash falls into [a, b) per cent: equal images never
                     end up on both sides, whatever their order is
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping

import numpy as np

from deepnarrow.errors import InputError, suggest

UNDIVIDED = "all"  # the one stored split of a source without splits of its own

_FORM = re.compile(
    r"(?:hash\((?P<hashed>\w+)\)|(?P<name>\w+))"
    r"(?:\[(?P<low>-?\d{1,12}%?)?:(?P<high>-?\d{1,12}%?)?\])?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Split:
    """A parsed split expression.

    Attributes:
      text: the expression.
      name: of the stored split.
      hashed: whether the slice is one of content hashes.
      low: where the slice begins: `90%`, `1000`, or None for the beginning.
      high: where it ends, likewise.
    """

    text: str
    name: str
    hashed: bool
    low: str | None
    high: str | None


def parse_split(text: str, where: str, known: Collection[str]) -> Split:
    """Returns the split that `text` describes.

    >>> parse_split("hash(train)[90%:]", "example", ["train"]).low
    '90%'

    Raises:
      InputError: it is no split expression, or names a split that is not stored.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(where, "is no split", got=repr(text),
                         expected="NAME, NAME[a:b] or hash(NAME)[a%:b%], e.g. train[:90%]")
    name = match["hashed"] or match["name"]
    if name not in known:
        near = suggest(name, known)
        raise InputError(where, "the source has no such split", got=name,
                         expected=f"one of {', '.join(known)}",
                         hint=f"did you mean {near}?" if near else None)
    split = Split(text, name, match["hashed"] is not None, match["low"], match["high"])
    if split.hashed and any(b is not None and not b.endswith("%") for b in (split.low, split.high)):
        raise InputError(where, "a slice of hashes is in per cent", got=repr(text),
                         expected="e.g. hash(train)[:90%]")
    return split


def split_rows(split: Split, shares: np.ndarray | None, size: int, where: str) -> np.ndarray:
    """Returns the positions of a split's images among the `size` images of its stored split.

    Args:
      split: what is wanted.
      shares: float64 [size] in [0, 1), see `hash_shares`; None where `split` is not hashed.
      size: images of the stored split.
      where: for errors.

    Raises:
      InputError: a bound is out of range, or the split is empty.
    """
    if split.hashed:
        assert shares is not None
        low, high = (_bound(b, 100, default, where) / 100
                     for b, default in ((split.low, 0), (split.high, 100)))
        rows = np.flatnonzero((shares >= low) & (shares < high))
    else:
        rows = np.arange(_bound(split.low, size, 0, where), _bound(split.high, size, size, where))
    if not len(rows):
        raise InputError(where, "the split is empty", got=repr(split.text),
                         expected=f"some of {size} images",
                         hint="name all splits in the config, by position, e.g. train[:80%]")
    return rows


def hash_shares(hashes: np.ndarray) -> np.ndarray:
    """Maps sha256 digests, uint8 [n, 32], evenly to float64 [n] in [0, 1)."""
    numbers = np.ascontiguousarray(hashes[:, :8]).view(">u8")[:, 0]  # [n, 8] -> [n]
    return (numbers >> np.uint64(11)) / 2.0**53


def _bound(text: str | None, size: int, default: int, where: str) -> int:
    if text is None:
        return default
    per_cent = text.endswith("%")
    value = int(text.removesuffix("%"))
    limit = 100 if per_cent else size
    if abs(value) > limit:
        raise InputError(where, "a slice is out of range", got=text,
                         expected=f"-{limit}..{limit}{' per cent' if per_cent else ''}")
    if per_cent:
        value = round(value * size / 100)
    return value + size if text.startswith("-") else value


def default_upstream(stored: Collection[str], where: str) -> Mapping[str, str]:
    """The splits of pre-training, where the config names none.

    >>> default_upstream(["train", "test"], "example")["validation"]
    'hash(train)[90%:]'
    """
    pool = _pool(stored, where)
    if pool != UNDIVIDED and "validation" in stored:
        return {"train": pool, "validation": "validation"}
    return {"train": f"hash({pool})[:90%]", "validation": f"hash({pool})[90%:]"}


def default_transfer(stored: Collection[str], where: str) -> Mapping[str, str]:
    """The splits of a transfer task, where the config names none.

    >>> default_transfer(["all"], "example")
    {'train': 'hash(all)[:50%]', 'validation': 'hash(all)[50%:60%]', 'test': 'hash(all)[60%:]'}
    """
    pool = _pool(stored, where)
    if pool == UNDIVIDED:
        return {"train": "hash(all)[:50%]", "validation": "hash(all)[50%:60%]",
                "test": "hash(all)[60%:]"}
    if "test" not in stored:
        return {"train": f"hash({pool})[:90%]", "validation": f"hash({pool})[90%:]",
                "test": _needed(stored, "validation", where)}
    if "validation" in stored:
        return {"train": pool, "validation": "validation", "test": "test"}
    return {"train": f"hash({pool})[:90%]", "validation": f"hash({pool})[90%:]", "test": "test"}


def _pool(stored: Collection[str], where: str) -> str:
    return UNDIVIDED if UNDIVIDED in stored else _needed(stored, "train", where)


def _needed(stored: Collection[str], name: str, where: str) -> str:
    if name not in stored:
        raise InputError(where, f"the source has no split {name!r} to take by default",
                         got=f"splits {', '.join(stored)}",
                         hint="name the splits to use in the config")
    return name
