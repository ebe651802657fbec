"""Making a token store: every document read, split by its hash, tokenised and written, once.

Shards are written whole, each with a note of where reading goes on; the manifest comes last. So a
build that was killed at any moment goes on after its last shard, and ends in the same bytes as one
that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from deepnarrow.errors import InputError
from deepnarrow.files import WorkdirLock, write_bytes, write_json
from deepnarrow_text_t5.cache import digest, share
from deepnarrow_text_t5.readers import WHERE, Part, open_parts
from deepnarrow_text_t5.store import (
    DTYPES,
    ENDS_DTYPE,
    FORMAT,
    MANIFEST,
    VERSION,
    VOCABULARY,
    TokenStore,
    open_store,
    token_dtype,
)
from deepnarrow_text_t5.vocabulary import (
    EOS_ID,
    Vocabulary,
    load_vocabulary,
    parse_vocabulary,
    read_vocabulary,
)

PLAN = "plan.json"  # what is being made; removed when the manifest is there
SHARD_TOKENS = 2**26
BATCH_CHARACTERS = 2**20  # of the texts tokenised in one call
TRAINING_CHARACTERS = 10_000_000  # of the texts a vocabulary is trained on, drawn by their hash

LOPSIDED = 3.0  # times more or fewer tokens in validation than asked for: something is amiss

Progress = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """What decides a store's content, besides the sources' bytes.

    Attributes:
      source: see `readers`.
      vocabulary: path of a SentencePiece model; empty: one is trained on the training split.
      num_pieces: of the trained one.
      validation_share: of the documents of sources that have no splits of their own.
      shard_tokens: a shard is closed when it holds so many.
    """

    source: str
    vocabulary: str
    num_pieces: int
    validation_share: float
    shard_tokens: int = SHARD_TOKENS


@dataclasses.dataclass
class _Counts:
    """Of one split: what was written and what was left out."""

    documents: int = 0
    tokens: int = 0
    empty: int = 0
    duplicates: int = 0


@dataclasses.dataclass(frozen=True)
class _Position:
    """Where reading goes on: part and record in it."""

    part: int = 0
    record: int = 0


def build_store(settings: StoreSettings, directory: Path, progress: Progress) -> TokenStore:
    """Makes the store, or goes on with it; returns it opened. A finished one is only opened.

    Raises:
      InputError: a source or the vocabulary is wrong, a split would be empty, the directory holds
        something else, or another process is at it.
    """
    parts = open_parts(settings.source)
    given = read_vocabulary(settings.vocabulary) if settings.vocabulary else None
    plan = _plan(settings, parts, given)
    _check_directory(directory, plan)
    with WorkdirLock(directory):
        try:
            if not (directory / MANIFEST).exists():
                reader = _Reader(parts, settings.validation_share)
                _build(plan, reader, given, settings, directory, progress)
            _remove_notes(directory)
        except OSError as error:
            raise InputError(f"folder '{directory}'", f"cannot be written: {error.strerror}",
                             hint="make room; the same command goes on from here") from error
    store = open_store(directory)
    if all(part.split is None for part in parts):
        _warn_of_share(store, settings.validation_share)
    return store


def _warn_of_share(store: TokenStore, wanted: float) -> None:
    """Warns where whole documents are too large a measure: one of them makes or unmakes a split."""
    sizes = {split: tokens.num_tokens for split, tokens in store.splits.items()}
    share_of = sizes["validation"] / sum(sizes.values())
    if share_of > LOPSIDED * wanted or share_of < wanted / LOPSIDED:
        largest = max(int(np.diff(tokens.documents(), axis=1).max())
                      for tokens in store.splits.values())
        warnings.warn(
            f"{WHERE}: validation has {share_of:.1%} of the tokens, not {wanted:.1%}: documents "
            f"are few or unequal (the largest has {largest:,} of {sum(sizes.values()):,} tokens); "
            "is each text file's #paragraph (between blank lines) or #line what you mean?",
            stacklevel=2)


def _build(
    plan: dict[str, Any], reader: _Reader, given: Vocabulary | None, settings: StoreSettings,
    directory: Path, progress: Progress,
) -> None:
    write_json(directory / PLAN, plan)
    try:
        vocabulary = given or _trained(reader, settings, directory, progress)
        write_bytes(directory / VOCABULARY, vocabulary.model)
        splits = {split: _build_split(split, reader, vocabulary, settings, directory, progress)
                  for split in ("validation", "train")}
    except InputError:
        if not any(directory.glob("*.tokens")):  # nothing that is worth going on with
            _remove_notes(directory)
            (directory / VOCABULARY).unlink(missing_ok=True)
        raise
    _finish(directory, plan, vocabulary, splits)


def _plan(
    settings: StoreSettings, parts: Sequence[Part], vocabulary: Vocabulary | None
) -> dict[str, Any]:
    """What a build that goes on compares: a change of any of it would mix two corpora."""
    return {
        "format": FORMAT, "version": VERSION,
        "sources": [[part.name, part.split, part.num_bytes] for part in parts],
        "stamp": digest([repr(part.stamp) for part in parts]),
        "vocabulary": vocabulary.content_hash if vocabulary else f"{settings.num_pieces} pieces",
        "validation_share": settings.validation_share,
        "shard_tokens": settings.shard_tokens,
        "source": digest([settings.source]),
    }


def _check_directory(directory: Path, plan: dict[str, Any]) -> None:
    where = f"folder '{directory}'"
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(where, "is no folder", hint="name another one with --out")
    names = {path.name for path in directory.iterdir()} - {".lock"}
    known = MANIFEST if MANIFEST in names else PLAN
    if names and known not in names:
        raise InputError(where, "holds something else", got=sorted(names)[0],
                         hint="name an empty or a new folder with --out")
    if not names:
        return
    try:
        found = json.loads((directory / known).read_bytes())
        found = found["plan"] if known == MANIFEST else found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(where, f"{known} cannot be read", got=error,
                         hint="delete the folder, or name another one") from error
    differing = [key for key in plan if found.get(key) != plan[key]]
    if differing:
        raise InputError(where, "was begun with other sources or settings",
                         got=f"another {', '.join(differing)}",
                         hint="delete the folder, or name another one with --out")


# --- reading --------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Record:
    """A document of the wanted split, or an empty text that stands for one that is not wanted."""

    text: str
    next: _Position
    share: float  # of all bytes that lie before its end
    duplicate: bool = False
    empty: bool = False


class _Reader:
    """Documents of a split, from any position on.

    Documents are the same when they differ in white space only, as their tokens are. By hash the
    same documents fall into the same split; where a source has splits of its own, training
    documents that are also in validation are left out.
    """

    def __init__(self, parts: Sequence[Part], validation_share: float):
        self.parts, self.validation_share = parts, validation_share
        self._total = max(1, sum(part.num_bytes for part in parts))
        self._hidden: frozenset[bytes] | None = None

    def records(self, split: str, position: _Position = _Position()) -> Iterator[_Record]:
        """Yields every record of the parts that may hold `split`, empty texts for the others."""
        hidden = self._validation_hashes() if split == "train" else frozenset()
        done = sum(part.num_bytes for part in self.parts[:position.part])
        for index in range(position.part, len(self.parts)):
            part = self.parts[index]
            start = position.record if index == position.part else 0
            for record, (text, part_share) in enumerate(
                    part.read(start) if part.split in (None, split) else (), start):
                at = _Position(index, record + 1)
                total = (done + part_share * part.num_bytes) / self._total
                if not text.strip():
                    # Where the hash decides, both splits pass by: it is counted once.
                    yield _Record("", at, total, empty=(part.split or "train") == split)
                elif (part.split or self._split(text)) != split:
                    yield _Record("", at, total)
                elif hidden and _identity(text) in hidden:
                    yield _Record("", at, total, duplicate=True)
                else:
                    yield _Record(text, at, total)
            done += part.num_bytes

    def _split(self, text: str) -> str:
        drawn = share("document", " ".join(text.split()))
        return "validation" if drawn < self.validation_share else "train"

    def _validation_hashes(self) -> frozenset[bytes]:
        if all(part.split is None for part in self.parts):
            return frozenset()
        if self._hidden is None:
            self._hidden = frozenset(
                _identity(record.text) for record in self.records("validation") if record.text)
        return self._hidden


def _identity(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[:16]


def _trained(
    reader: _Reader, settings: StoreSettings, directory: Path, progress: Progress
) -> Vocabulary:
    """The vocabulary trained on the training split; what an earlier run trained is read again."""
    path = directory / VOCABULARY
    if path.exists():
        return parse_vocabulary(path.read_bytes(), f"file '{path}'")
    texts = _sample(reader, progress)
    if not texts:
        raise _empty("train", reader)
    progress(1.0, "training the vocabulary")
    return load_vocabulary(texts, settings.num_pieces)


def _sample(reader: _Reader, progress: Progress) -> list[str]:
    """Training documents up to 10 M characters, those of the smallest hashes; in their order."""
    kept: list[tuple[float, int, str]] = []  # a heap, the largest hash first
    characters = 0
    for number, record in enumerate(reader.records("train")):
        progress(record.share, "reading for the vocabulary")
        if record.text:
            heapq.heappush(kept, (-share("vocabulary", record.text), number, record.text))
            characters += len(record.text)
            while characters > TRAINING_CHARACTERS and len(kept) > 1:
                characters -= len(heapq.heappop(kept)[2])
    return [text for _, _, text in sorted(kept, key=operator.itemgetter(1))]


# --- writing --------------------------------------------------------------------------------------
def _build_split(
    split: str, reader: _Reader, vocabulary: Vocabulary, settings: StoreSettings, directory: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Writes the shards that are still to do; returns the manifest's entry of the split."""
    notes = list(_notes(directory, split))
    position = _Position(**notes[-1]["next"]) if notes else _Position()
    counts = _Counts(**notes[-1]["counts"]) if notes else _Counts()
    dtype = DTYPES[token_dtype(vocabulary)]
    finished = bool(notes) and notes[-1]["last"]
    batches = [] if finished else _encoded(reader, split, position, counts, vocabulary, dtype)
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for tokens, ends, position, total in batches:
        last = total is None
        progress(1.0 if total is None else total,
                 f"{split}: {counts.documents:,} documents, {counts.tokens:,} tokens")
        held.append((tokens, ends))
        if last or sum(len(one) for one, _ in held) >= settings.shard_tokens:
            notes.append(_write_shard(directory, split, len(notes), held, dtype) | {
                "next": dataclasses.asdict(position), "counts": dataclasses.asdict(counts),
                "last": last})
            write_json(directory / f"{split}-{len(notes) - 1:05d}.note", notes[-1])
            held = []
    if not counts.documents:
        raise _empty(split, reader)
    return {**dataclasses.asdict(counts),
            "shards": [note["shard"] for note in notes if note["shard"]]}


def _encoded(
    reader: _Reader, split: str, position: _Position, counts: _Counts, vocabulary: Vocabulary,
    dtype: np.dtype,
) -> Iterator[tuple[np.ndarray, np.ndarray, _Position, float | None]]:
    """Yields batches of documents: tokens, ends in them, where reading goes on, share read.

    The last batch has no share; it may be without documents. `counts` is kept up to date.
    """
    texts: list[str] = []
    characters = 0
    for record in reader.records(split, position):
        position = record.next
        counts.empty += record.empty
        counts.duplicates += record.duplicate
        if record.text:
            texts.append(record.text)
            characters += len(record.text)
        if characters >= BATCH_CHARACTERS:
            yield *_encode(texts, counts, vocabulary, dtype), position, record.share
            texts, characters = [], 0
    yield *_encode(texts, counts, vocabulary, dtype), position, None


def _encode(
    texts: Sequence[str], counts: _Counts, vocabulary: Vocabulary, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    tokens, ends = end_to_end(vocabulary.encode_all(texts, num_threads=_num_threads()), dtype)
    counts.documents += len(texts)
    counts.tokens += len(tokens)
    return tokens, ends


def _num_threads() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_to_end(
    documents: Sequence[Sequence[int]], dtype: Any
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " documents"]]:
    """Returns all documents in one array, each followed by EOS, and where each ends.

    >>> [made.tolist() for made in end_to_end([[7, 8], [], [9]], np.int32)]
    [[7, 8, 1, 1, 9, 1], [3, 4, 6]]
    """
    ends = np.cumsum(np.fromiter(map(len, documents), np.int64, len(documents)) + 1)
    flat = np.full(int(ends[-1]) if len(ends) else 0, EOS_ID, dtype)
    is_text = np.ones(len(flat), np.bool_)
    is_text[ends - 1] = False
    flat[is_text] = np.fromiter(_chained(documents), dtype, len(flat) - len(ends))
    return flat, ends


def _chained(documents: Iterable[Iterable[int]]) -> Iterator[int]:
    for document in documents:
        yield from document


def _write_shard(
    directory: Path, split: str, number: int, held: Sequence[tuple[np.ndarray, np.ndarray]],
    dtype: np.dtype,
) -> dict[str, Any]:
    """Writes tokens and ends; a shard without documents is not written."""
    sizes = [len(tokens) for tokens, _ in held]
    tokens = np.concatenate([tokens for tokens, _ in held]) if held else np.zeros(0, dtype)
    before = np.cumsum([0, *sizes[:-1]]) if sizes else []
    ends = [ends + start for (_, ends), start in zip(held, before, strict=True)]
    if not len(tokens):
        return {"shard": None}
    files = {"tokens": tokens, "ends": np.concatenate(ends).astype(ENDS_DTYPE)}
    shard: dict[str, Any] = {"num_tokens": len(tokens), "num_documents": len(files["ends"])}
    for name, array in files.items():
        data = array.tobytes()
        path = directory / f"{split}-{number:05d}.{name}"
        write_bytes(path, data)
        shard[name] = {"file": path.name, "bytes": len(data),
                       "sha256": hashlib.sha256(data).hexdigest()}
    return {"shard": shard}


def _notes(directory: Path, split: str) -> Iterator[dict[str, Any]]:
    """What earlier runs wrote, in order, as far as it is whole."""
    number = 0
    while (path := directory / f"{split}-{number:05d}.note").exists():
        yield json.loads(path.read_bytes())
        number += 1


def _finish(
    directory: Path, plan: dict[str, Any], vocabulary: Vocabulary, splits: dict[str, Any]
) -> None:
    model = vocabulary.model
    write_json(directory / MANIFEST, {
        "format": FORMAT, "version": VERSION, "dtype": token_dtype(vocabulary),
        "vocabulary": {"file": VOCABULARY, "bytes": len(model),
                       "sha256": hashlib.sha256(model).hexdigest(),
                       "num_pieces": vocabulary.num_pieces,
                       "content_hash": vocabulary.content_hash},
        "splits": splits, "plan": plan,
    })


def _remove_notes(directory: Path) -> None:
    for path in (*directory.glob("*.note"), directory / PLAN):
        path.unlink(missing_ok=True)


def _empty(split: str, reader: _Reader) -> InputError:
    hint = None
    if all(part.split is None for part in reader.parts):
        hint = ("documents are dealt out by their hash: give more of them (of text files "
                "#paragraph or #line), or another validation_share")
    return InputError(WHERE, f"the {split} split is empty", got=f"no document in "
                      f"{len(reader.parts)} files or splits", hint=hint)
