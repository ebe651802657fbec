"""A tokenised corpus: shards of tokens on disk, mapped into memory, and a manifest of their hashes.

    DIR/vocabulary.model       the SentencePiece model the tokens are of
    DIR/train-00000.tokens     little-endian uint16 (int32 above 65,536 rows); EOS ends a document
    DIR/train-00000.ends       little-endian int64: where each document of the shard ends, EOS in
    DIR/manifest.json          written last: sizes and sha256 of all of these, counts, sources

A folder without a manifest is no store: it is one that `prepare` has not finished.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from deepnarrow.errors import InputError, shorten
from deepnarrow.files import cache_dir, safe_join, write_bytes
from deepnarrow_text_t5.cache import digest
from deepnarrow_text_t5.vocabulary import Vocabulary, parse_vocabulary

FORMAT = "deepnarrow text_t5 tokens"
VERSION = 1
MANIFEST, VOCABULARY = "manifest.json", "vocabulary.model"
MAX_MANIFEST_BYTES = 64 * 2**20
DTYPES = {"uint16": np.dtype("<u2"), "int32": np.dtype("<i4")}
ENDS_DTYPE = np.dtype("<i8")


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Documents end to end, each ended by EOS, in one or more shards.

    Attributes:
      shards: token arrays; a document lies in one of them.
      ends: for each shard, int64 [documents]: where its documents end.
      identity: bytes or a hash that says what the tokens are.
    """

    shards: Sequence[np.ndarray]
    ends: Sequence[np.ndarray]
    identity: bytes | str

    @functools.cached_property
    def starts(self) -> list[int]:
        """Where each shard begins in the whole, and at last where the whole ends."""
        return [0, *np.cumsum([len(shard) for shard in self.shards], dtype=np.int64).tolist()]

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, EOS included."""
        return self.starts[-1]

    def read(self, start: int, stop: int) -> Int[np.ndarray, " n"]:
        """Returns tokens `start` to `stop` of the whole as int32, a copy."""
        first = bisect.bisect_right(self.starts, start) - 1
        if stop <= self.starts[first + 1]:
            begin = self.starts[first]
            return self.shards[first][start - begin:stop - begin].astype(np.int32)
        middle = self.starts[first + 1]  # the segment goes on in the next shard
        return np.concatenate([self.read(start, middle), self.read(middle, stop)])

    def documents(self) -> Int[np.ndarray, "documents 2"]:
        """Returns where each document begins and ends in the whole, EOS left out."""
        spans = [np.stack([np.concatenate([[0], ends[:-1]]), ends - 1], axis=1) + start
                 for start, ends in zip(self.starts, self.ends, strict=False) if len(ends)]
        return np.concatenate(spans) if spans else np.zeros((0, 2), np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """An opened store.

    Attributes:
      vocabulary: what its tokens are of.
      splits: `train` and `validation`.
      manifest: all that `manifest.json` says.
    """

    vocabulary: Vocabulary
    splits: Mapping[str, Tokens]
    manifest: Mapping[str, Any]


def token_dtype(vocabulary: Vocabulary) -> str:
    """Name of the smallest type that holds every id."""
    return "uint16" if vocabulary.table_size <= 2**16 else "int32"


# --- opening --------------------------------------------------------------------------------------
def open_store(directory: Path) -> TokenStore:
    """Opens a store after comparing every file with the manifest.

    Sizes are compared each time. Hashes are computed when a file is seen for the first time on this
    machine, or was changed since.

    Raises:
      InputError: there is no store, or it is damaged; the file is named.
    """
    where = f"store '{directory}'"
    raw, manifest = _read_manifest(directory, where)
    try:
        files = [manifest["vocabulary"], *(file for split in manifest["splits"].values()
                                           for shard in split["shards"]
                                           for file in (shard["tokens"], shard["ends"]))]
        _verify(directory, raw, files, where)
        model = (directory / VOCABULARY).read_bytes()
        vocabulary = parse_vocabulary(model, f"{where}, {VOCABULARY}")
        dtype = DTYPES[manifest["dtype"]]
        splits = {name: _open_split(directory, split["shards"], dtype)
                  for name, split in manifest["splits"].items()}
        if set(splits) != {"train", "validation"}:
            raise KeyError("splits")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(where, f"{MANIFEST} is not what `deepnarrow prepare` writes",
                         got=f"{type(error).__name__} {error}",
                         hint="prepare it again") from error
    return TokenStore(vocabulary, splits, manifest)


def _read_manifest(directory: Path, where: str) -> tuple[bytes, dict[str, Any]]:
    path = directory / MANIFEST
    if not directory.is_dir():
        raise InputError(where, "no such folder", hint="make it: deepnarrow prepare CONFIG --out "
                         f"{directory}")
    if not path.is_file():
        raise InputError(where, "has no manifest: it is no store, or is not finished",
                         hint="run the same `deepnarrow prepare` again; it goes on where it was")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputError(where, f"{MANIFEST} is too large", got=f"{path.stat().st_size} bytes")
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"{MANIFEST} is not valid JSON", got=error,
                         hint="prepare it again") from error
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else ()
    if found != (FORMAT, VERSION):
        raise InputError(where, f"{MANIFEST} is of another kind or version", got=shorten(found),
                         expected=f"{FORMAT!r} {VERSION}", hint="prepare it again")
    return raw, manifest


def _verify(
    directory: Path, raw: bytes, files: Sequence[Mapping[str, Any]], where: str
) -> None:
    facts = []
    for file in files:
        name, size = file["file"], file["bytes"]
        if not isinstance(name, str) or not isinstance(size, int):
            raise InputError(where, "the manifest has a file without name or size",
                             got=repr(name))
        path = safe_join(directory, name, where)
        try:
            stat = path.stat()
        except OSError as error:
            raise _damaged(where, name, f"cannot be read: {error.strerror}") from error
        if stat.st_size != size:
            raise _damaged(where, name, f"has {stat.st_size} bytes instead of {size}")
        facts.append(f"{stat.st_dev} {stat.st_ino} {stat.st_mtime_ns}")
    marker = cache_dir() / "text_t5" / f"verified-{digest([raw, *facts])[:32]}"
    if marker.exists():
        return
    for file in files:
        if file_sha256(directory / file["file"]) != file["sha256"]:
            raise _damaged(where, file["file"], "does not match its sha256")
    try:
        write_bytes(marker, b"")
    except OSError:
        return  # it is verified again the next time


def _damaged(where: str, name: str, what: str) -> InputError:
    return InputError(where, f"is damaged: {name} {what}",
                      hint="copy it again, or delete the folder and prepare it again")


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_split(
    directory: Path, shards: Sequence[Mapping[str, Any]], dtype: np.dtype
) -> Tokens:
    tokens = [_mapped(directory / s["tokens"]["file"], dtype) for s in shards]
    ends = [_mapped(directory / s["ends"]["file"], ENDS_DTYPE) for s in shards]
    return Tokens(tokens, ends, digest([s["tokens"]["sha256"] for s in shards]))


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """A plain array over the mapped file: slices of `np.memmap` itself cost ten times as much."""
    return np.asarray(np.memmap(path, dtype, "r"))
