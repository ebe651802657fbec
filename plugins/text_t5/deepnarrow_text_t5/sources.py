"""From text to examples: the tokenised corpus, and span corruption at random access. No JAX."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.modality import Example, Metric, Source, Upstream
from deepnarrow_text_t5.cache import cached, digest
from deepnarrow_text_t5.corpus import Corpus, load_corpus
from deepnarrow_text_t5.spans import SpanLengths, corrupt, lengths_of_inputs, noise_mask
from deepnarrow_text_t5.vocabulary import (
    EOS_ID,
    NUM_SENTINELS,
    PAD_ID,
    Vocabulary,
    load_vocabulary,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FIXED_CORRUPTION_SEED = 0


@dataclasses.dataclass(frozen=True)
class TextData:
    """What every source of one setting of the data's options shares."""

    corpus: Corpus
    vocabulary: Vocabulary
    lengths: SpanLengths


def open_data(data_options: ConfigDict) -> TextData:
    """Reads the corpus and its vocabulary: seconds at first use, from the cache afterwards.

    Raises:
      InputError: an option out of range, or a standard library without its sources.
    """
    return _open(data_options.source, data_options.num_pieces, data_options.input_length)


@functools.cache
def _open(source: str, num_pieces: int, input_length: int) -> TextData:
    lengths = lengths_of_inputs(input_length)
    if lengths.noise_spans > NUM_SENTINELS:
        raise InputError("text_t5 data", "input_length needs more sentinels than there are",
                         got=f"{input_length}, which has {lengths.noise_spans} spans",
                         expected=f"at most {NUM_SENTINELS} spans")
    corpus = load_corpus(source)
    return TextData(corpus, load_vocabulary(corpus.train, num_pieces), lengths)


def upstream(data_options: ConfigDict, options: ConfigDict) -> Upstream:
    """Span corruption of the corpus; the metric is nats a target token on held-out documents.

    The data decides `vocab_size`, `input_length` and `target_length` of the model.
    """
    del options  # the data decides all of the model's options that it knows of
    data = open_data(data_options)
    return Upstream(
        train=span_source(data.corpus.train, data, fixed=False),
        validation=span_source(data.corpus.validation, data, fixed=True),
        metric=Metric("loss", "min"),
        options={"vocab_size": data.vocabulary.table_size, "input_length": data.lengths.inputs,
                 "target_length": data.lengths.targets,
                 "pad_id": PAD_ID, "eos_id": EOS_ID},
    )


def span_source(texts: Sequence[str], data: TextData, *, fixed: bool) -> Source:
    """Returns span corruption of `texts`: one element a segment of `lengths.raw` tokens.

    The documents lie end to end, each followed by EOS, in the order of `texts`: a docstring beside
    its neighbours in the source. What is left after the last whole segment is dropped.

    Args:
      texts: the documents.
      data: vocabulary and lengths.
      fixed: corrupt element i the same way each time (to evaluate), or by the `rng` of the call.
    """
    tokens = _packed(tuple(texts), data.vocabulary)
    vocabulary, lengths = data.vocabulary, data.lengths

    def load(index: int, rng: np.random.Generator) -> Example:
        if fixed:
            rng = np.random.default_rng((FIXED_CORRUPTION_SEED, index))
        segment = tokens[index * lengths.raw:(index + 1) * lengths.raw]
        inputs, targets = corrupt(segment, noise_mask(lengths, rng), eos_id=EOS_ID,
                                  first_sentinel=vocabulary.first_sentinel)
        return {"inputs": inputs, "targets": targets}

    content = digest([tokens.tobytes(), vocabulary.content_hash, repr(lengths), repr(fixed)])
    return Source(num_examples=len(tokens) // lengths.raw, load=load, content_hash=content)


def _packed(texts: tuple[str, ...], vocabulary: Vocabulary) -> np.ndarray:
    """All documents in one int32 array, each followed by EOS; tokenised once a machine."""
    key = digest([vocabulary.content_hash, *texts])

    def make() -> bytes:
        ids = [token for one in vocabulary.encode_all(texts) for token in (*one, EOS_ID)]
        return np.array(ids, np.int32).tobytes()

    return np.frombuffer(cached("tokens", key, make), np.int32)


def pad_to(ids: Sequence[int], length: int) -> np.ndarray:
    """Cuts `ids` to `length` - 1 tokens, adds EOS and fills up with padding; int32 [length].

    >>> pad_to([7, 8], 5).tolist(), pad_to([7, 8, 9], 3).tolist()
    ([7, 8, 1, 0, 0], [7, 8, 1])
    """
    row = np.full(length, PAD_ID, np.int32)
    kept = [*ids[: length - 1], EOS_ID]
    row[: len(kept)] = kept
    return row
