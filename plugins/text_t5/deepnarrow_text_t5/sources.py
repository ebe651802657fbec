"""From text to examples: the tokenised corpus, and an objective at random access. No JAX."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from deepnarrow.errors import InputError
from deepnarrow.files import cache_dir, is_alive
from deepnarrow.modality import Example, Metric, Source, Upstream
from deepnarrow_text_t5.building import StoreSettings, build_store, end_to_end
from deepnarrow_text_t5.cache import cached, digest
from deepnarrow_text_t5.corpus import load_corpus
from deepnarrow_text_t5.objectives import OBJECTIVES, Lengths, Noise, Objective
from deepnarrow_text_t5.options import check_data_options
from deepnarrow_text_t5.readers import STDLIB, WHERE, open_parts
from deepnarrow_text_t5.spans import SpanLengths
from deepnarrow_text_t5.store import Tokens, TokenStore, open_store
from deepnarrow_text_t5.vocabulary import (
    EOS_ID,
    PAD_ID,
    Vocabulary,
    check_pieces,
    load_vocabulary,
    read_vocabulary,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FIXED_CORRUPTION_SEED = 0
DATA_OPTIONS = (
    "source", "vocabulary", "num_pieces", "validation_share", "validation_examples", "documents",
    "input_length", "objective", "noise_density", "mean_span_length",
)
PREPARED = "prepared:"
MIN_DOCUMENT_TOKENS = 2  # one that is kept, one that is noise
# What is tokenised at first use, into the cache; more is for `deepnarrow prepare`.
MAX_UNPREPARED_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class TextData:
    """What every source of one setting of the data's options shares.

    Attributes:
      splits: the documents' tokens, `train` and `validation`.
      vocabulary: what they are of.
      objective: what makes examples of them.
      noise: what it may draw on.
      lengths: of its segments.
      cut: one document an example, cut where it is longer; else documents lie end to end.
      validation_examples: how many validation examples are used; 0 for all.
    """

    splits: Mapping[str, Tokens]
    vocabulary: Vocabulary
    objective: Objective
    noise: Noise
    lengths: Lengths | SpanLengths
    cut: bool
    validation_examples: int


def open_data(data_options: ConfigDict) -> TextData:
    """Opens the corpus and its vocabulary; the same options give the same object.

    Raises:
      InputError: an option out of range, a source that cannot be read, a damaged store.
    """
    check_data_options(data_options)
    return _open(tuple(_own(data_options).items()))


def _own(data_options: ConfigDict) -> dict[str, Any]:
    """Those of the data's options that are about pre-training text."""
    return {name: data_options[name] for name in DATA_OPTIONS}


@functools.cache
def _open(items: tuple[tuple[str, Any], ...]) -> TextData:
    options = dict(items)
    # What is wrong with the lengths is said before anything is read.
    objective, noise, lengths = _lengths(options)
    vocabulary, splits = _tokens(options)
    noise = dataclasses.replace(noise, first_sentinel=vocabulary.first_sentinel,
                                num_pieces=vocabulary.num_pieces)
    return TextData(splits, vocabulary, objective, noise, lengths,
                    cut=options["documents"] == "cut",
                    validation_examples=options["validation_examples"])


def _lengths(options: Mapping[str, Any]) -> tuple[Objective, Noise, Lengths | SpanLengths]:
    """The objective, its noise without the ids of a vocabulary, and its segments' lengths.

    Raises:
      InputError: there can be no such lengths.
    """
    objective = OBJECTIVES[options["objective"]]
    noise = Noise(options["noise_density"], options["mean_span_length"], 0, 0)
    return objective, noise, objective.lengths(options["input_length"], noise)


def _tokens(options: Mapping[str, Any]) -> tuple[Vocabulary, Mapping[str, Tokens]]:
    source = options["source"]
    if source == STDLIB:
        corpus = load_corpus()
        vocabulary = (read_vocabulary(options["vocabulary"]) if options["vocabulary"]
                      else load_vocabulary(corpus.train, options["num_pieces"]))
        return vocabulary, {"train": _packed(corpus.train, vocabulary),
                            "validation": _packed(corpus.validation, vocabulary)}
    if source.startswith(PREPARED):
        store = open_store(Path(source.removeprefix(PREPARED)).expanduser())
        _check_vocabulary(store, source, options["vocabulary"])
    else:
        store = _cached_store(store_settings(options))
    return store.vocabulary, store.splits


def store_settings(options: Mapping[str, Any]) -> StoreSettings:
    """What of the data's options decides a store."""
    return StoreSettings(options["source"], options["vocabulary"], options["num_pieces"],
                         options["validation_share"])


def _check_vocabulary(store: TokenStore, source: str, vocabulary: str) -> None:
    if vocabulary and read_vocabulary(vocabulary).content_hash != store.vocabulary.content_hash:
        raise InputError(WHERE, f"{source} was made with another vocabulary", got=vocabulary,
                         expected="the one it holds as vocabulary.model",
                         hint="prepare the corpus again with that one; where no checkpoint decides "
                         "it, leave the option vocabulary out")


def _cached_store(settings: StoreSettings) -> TokenStore:
    """The store of a corpus that nobody prepared: made at first use, in the cache.

    Raises:
      InputError: the corpus is too large for that.
    """
    parts = open_parts(settings.source)
    size = sum(part.num_bytes for part in parts)
    if size > MAX_UNPREPARED_BYTES:
        raise InputError(WHERE, "the corpus is too large to tokenise on the way",
                         got=f"{size / 2**30:.1f} GiB", expected=f"at most "
                         f"{MAX_UNPREPARED_BYTES / 2**30:.0f} GiB",
                         hint="deepnarrow prepare CONFIG --out DIR, then source=prepared:DIR")
    model = read_vocabulary(settings.vocabulary).content_hash if settings.vocabulary else ""
    key = digest([repr(settings), model, *(repr(part.stamp) for part in parts)])[:32]
    stores = cache_dir() / "text_t5" / "stores"
    if not (stores / key).exists():
        _build_aside(settings, stores, key)
    try:
        return open_store(stores / key)
    except InputError:  # the cache was damaged, and can be made again
        shutil.rmtree(stores / key)
        _build_aside(settings, stores, key)
        return open_store(stores / key)


def _build_aside(settings: StoreSettings, stores: Path, key: str) -> None:
    """Builds in a folder of this process, so that several may at once, and renames it."""
    own = stores / f".{key}.{os.getpid()}"
    try:
        stores.mkdir(parents=True, exist_ok=True)
        for left in stores.glob(".*.*"):  # by processes that were killed
            if not is_alive(int(left.suffix[1:])):
                shutil.rmtree(left, ignore_errors=True)
        build_store(settings, own, lambda *_: None)
        if not (stores / key).exists():
            os.replace(own, stores / key)
    except OSError as error:
        raise InputError(f"cache '{stores}'", f"cannot be written: {error.strerror}",
                         hint="set DEEPNARROW_CACHE to a directory you may write to") from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def prepare(
    data_options: ConfigDict, directory: Path, progress: Callable[[float, str], None]
) -> dict[str, Any]:
    """Makes the store of the data's options in `directory`; `source=prepared:DIR` then uses it.

    Returns:
      Counts by split, what of it the examples of these options leave out, and a `summary`.

    Raises:
      InputError: as `open_data`; or the source is prepared already, or the directory is taken.
    """
    check_data_options(data_options)
    if data_options.source.startswith(PREPARED):
        raise InputError(WHERE, "the source is prepared already", got=data_options.source,
                         hint="name what it was made of, e.g. c4_json:/data/c4/*.json.gz")
    if data_options.vocabulary == "":
        check_pieces(data_options.num_pieces)
    own = _own(data_options)
    _lengths(own)  # not after the hours that a large corpus takes
    store = build_store(store_settings(own), directory, progress)
    data = _open(tuple((own | {"source": f"{PREPARED}{directory}"}).items()))
    splits: dict[str, Any] = {
        split: {**{name: store.manifest["splits"][split][name]
                   for name in ("documents", "tokens", "empty", "duplicates")},
                "examples": text_source(data, split).num_examples, **_cuts(data, split)}
        for split in store.splits}
    texts = [f"{split} {facts['documents']:,} documents, {facts['tokens']:,} tokens, "
             f"{facts['examples']:,} examples" + "".join(
                 f", {facts[name]:,} {name.replace('_', ' ')}"
                 for name in ("empty", "duplicates", "cut_documents", "cut_tokens", "too_short")
                 if facts.get(name)) for split, facts in splits.items()]
    summary = (f"{directory}: {'; '.join(texts)}; {store.vocabulary.num_pieces:,} pieces. "
               f"Use it: data.source={PREPARED}{directory}")
    return {"splits": splits, "num_pieces": store.vocabulary.num_pieces,
            "vocab_size": store.vocabulary.table_size, "source": f"{PREPARED}{directory}",
            "summary": summary}


def _cuts(data: TextData, split: str) -> dict[str, int]:
    """What one document an example leaves out; end to end nothing is cut."""
    if not data.cut:
        return {}
    spans = data.splits[split].documents()
    lengths = spans[:, 1] - spans[:, 0]
    beyond = np.maximum(lengths - data.lengths.raw, 0)
    return {"cut_documents": int((beyond > 0).sum()), "cut_tokens": int(beyond.sum()),
            "too_short": int((lengths < MIN_DOCUMENT_TOKENS).sum())}


def upstream(data_options: ConfigDict, options: ConfigDict) -> Upstream:
    """The objective over the corpus; the metric is nats a target token on held-out documents.

    The data decides `vocab_size`, `input_length` and `target_length` of the model.
    """
    del options  # the data decides all of the model's options that it knows of
    data = open_data(data_options)
    return Upstream(
        train=text_source(data, "train"),
        validation=text_source(data, "validation"),
        metric=Metric("loss", "min"),
        options={"vocab_size": data.vocabulary.table_size, "input_length": data.lengths.inputs,
                 "target_length": data.lengths.targets,
                 "pad_id": PAD_ID, "eos_id": EOS_ID},
    )


def text_source(data: TextData, split: str) -> Source:
    """Returns the examples of a split: one a segment of `lengths.raw` tokens, or one a document.

    End to end, the documents keep their order: a docstring beside its neighbours in the source.
    What is left after the last whole segment is dropped. Cut, a document of fewer than two tokens
    is left out. Validation examples are made the same way each time, training examples by the `rng`
    of the call.

    Raises:
      InputError: the split holds no example.
    """
    tokens = data.splits[split]
    spans = _document_spans(data, tokens) if data.cut else None
    number = tokens.num_tokens // data.lengths.raw if spans is None else len(spans)
    if number < 1:
        raise InputError(WHERE, f"the {split} split holds no example",
                         got=f"{tokens.num_tokens} tokens",
                         expected=f">= {data.lengths.raw}, which is one segment",
                         hint="lower input_length, or take more text")
    fixed = split == "validation"
    if fixed and data.validation_examples:
        number = min(number, data.validation_examples)
    load = _loader(data, tokens, spans, fixed=fixed)
    # What is not the default's is named after it, so that the default's hash is that of old.
    extra = [] if isinstance(data.lengths, SpanLengths) else [data.objective.name, repr(data.noise)]
    extra += ["cut", repr(data.noise)] if data.cut else []
    extra += [str(number)] if fixed and data.validation_examples else []
    content = digest([tokens.identity, data.vocabulary.content_hash, repr(data.lengths),
                      repr(fixed), *extra])
    return Source(num_examples=number, load=load, content_hash=content)


def _loader(
    data: TextData, tokens: Tokens, spans: Int[np.ndarray, "documents 2"] | None, *, fixed: bool
) -> Callable[[int, np.random.Generator], Example]:
    raw, inputs_length, targets_length = (
        data.lengths.raw, data.lengths.inputs, data.lengths.targets)
    make, noise = data.objective.make, data.noise

    def load(index: int, rng: np.random.Generator) -> Example:
        if fixed:
            rng = np.random.default_rng((FIXED_CORRUPTION_SEED, index))
        start, stop = (index * raw, (index + 1) * raw) if spans is None else spans[index]
        inputs, targets = make(tokens.read(start, stop), noise, rng)
        return {"inputs": fill(inputs, inputs_length), "targets": fill(targets, targets_length)}

    return load


def _document_spans(data: TextData, tokens: Tokens) -> Int[np.ndarray, "documents 2"]:
    spans = tokens.documents()
    spans = spans[spans[:, 1] - spans[:, 0] >= MIN_DOCUMENT_TOKENS]
    spans[:, 1] = np.minimum(spans[:, 1], spans[:, 0] + data.lengths.raw)
    return spans


def fill(ids: Int[np.ndarray, " n"], length: int) -> Int[np.ndarray, " length"]:
    """Fills `ids` up with padding, or cuts them and ends them with EOS again.

    >>> fill(np.array([7, 8, 1]), 5).tolist(), fill(np.array([7, 8, 1]), 2).tolist()
    ([7, 8, 1, 0, 0], [7, 1])
    """
    if len(ids) == length:
        return ids
    row = np.full(length, PAD_ID, ids.dtype)
    row[:len(ids)] = ids[:length]
    if len(ids) > length:
        row[-1] = EOS_ID
    return row


def _packed(texts: tuple[str, ...], vocabulary: Vocabulary) -> Tokens:
    """All documents in one int32 array, each followed by EOS; tokenised once a machine."""
    key = digest([vocabulary.content_hash, *texts])

    def make() -> bytes:
        return end_to_end(vocabulary.encode_all(texts), np.int32)[0].tobytes()

    tokens = np.frombuffer(cached("tokens", key, make), np.int32)
    return Tokens([tokens], [np.flatnonzero(tokens == EOS_ID) + 1], tokens.tobytes())


def pad_to(ids: Sequence[int], length: int) -> np.ndarray:
    """Cuts `ids` to `length` - 1 tokens, adds EOS and fills up with padding; int32 [length].

    >>> pad_to([7, 8], 5).tolist(), pad_to([7, 8, 9], 3).tolist()
    ([7, 8, 1, 0, 0], [7, 8, 1])
    """
    row = np.full(length, PAD_ID, np.int32)
    kept = [*ids[: length - 1], EOS_ID]
    row[: len(kept)] = kept
    return row
