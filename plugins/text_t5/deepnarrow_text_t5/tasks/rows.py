"""A split of a task as tokens, read at random. No JAX.

Tokens lie end to end, so that memory is what the texts take and not rows times length; a row is cut
and padded when it is read. Tokenising is done once a machine for each content.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from deepnarrow.errors import InputError
from deepnarrow.modality import Example, Source
from deepnarrow_text_t5.cache import cached, digest
from deepnarrow_text_t5.tasks.examples import TextExample
from deepnarrow_text_t5.vocabulary import EOS_ID, PAD_ID, Vocabulary

BAG_PIECES = 1024  # the raw inputs' probe counts so many pieces, the commonest
_ENCODE_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of tokens of any length, without EOS: `tokens` end to end, and where each ends."""

    tokens: Int32[np.ndarray, " total"]
    ends: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.ends)

    def padded(self, index: int, length: int) -> Int32[np.ndarray, " length"]:
        """Returns a sequence cut to `length` - 1 tokens, EOS and padding.

        >>> Ragged(np.array([7, 8, 9], np.int32), np.array([2, 3])).padded(0, 5).tolist()
        [7, 8, 1, 0, 0]
        """
        start = self.ends[index - 1] if index else 0
        kept = self.tokens[start:min(self.ends[index], start + length - 1)]
        row = np.full(length, PAD_ID, np.int32)
        row[:len(kept)] = kept
        row[len(kept)] = EOS_ID
        return row


def encode(vocabulary: Vocabulary, texts: Sequence[str]) -> Ragged:
    """Returns the tokens of texts; from the cache where the same texts were encoded before."""
    key = digest([vocabulary.content_hash, *texts])
    number = len(texts)

    def make() -> bytes:
        parts, sizes = [], []
        for start in range(0, number, _ENCODE_CHUNK):
            rows = vocabulary.encode_all(texts[start:start + _ENCODE_CHUNK])
            sizes += [len(row) for row in rows]
            parts.append(np.array([token for row in rows for token in row], np.int32))
        return np.cumsum(sizes, dtype=np.int64).tobytes() + np.concatenate(parts).tobytes()

    content = cached("task_tokens", key, make)
    ends = np.frombuffer(content, np.int64, count=number)
    return Ragged(np.frombuffer(content, np.int32, offset=8 * number), ends)


@dataclasses.dataclass(frozen=True)
class Rows:
    """One split of a task, tokenised.

    Attributes:
      inputs: the prompts.
      targets: what is to be said.
      labels: int32 [n] classes; None for free text.
      references: what the scorer compares with instead of labels, an entry an example; or None.
      input_length: tokens of the encoder, EOS included.
      target_length: tokens of the decoder, EOS included.
      content_hash: sha256 of all of it.
    """

    inputs: Ragged
    targets: Ragged
    labels: Int32[np.ndarray, " n"] | None
    references: tuple[Any, ...] | None
    input_length: int
    target_length: int
    content_hash: str

    def source(self) -> Source:
        """Returns the split as a source of `inputs`, `targets` and, with classes, `label`."""
        labels = self.labels

        def load(index: int, rng: np.random.Generator) -> Example:
            del rng  # nothing is drawn
            example: Example = {"inputs": self.inputs.padded(index, self.input_length),
                                "targets": self.targets.padded(index, self.target_length)}
            return example if labels is None else {**example, "label": labels[index]}

        return Source(num_examples=len(self.inputs), load=load, content_hash=self.content_hash,
                      labels=None if labels is None else lambda: labels)

    def bag_of_pieces(self, pieces: Int[np.ndarray, " d"]) -> Float[np.ndarray, "n d"]:
        """Returns log(1 + count) of each of `pieces` in the part of the inputs the model sees."""
        column_of = dict(zip(pieces.tolist(), range(len(pieces)), strict=True))
        counts = np.zeros((len(self.inputs), len(pieces)), np.float32)
        for i in range(len(counts)):
            seen = self.inputs.padded(i, self.input_length).tolist()
            for piece, count in collections.Counter(seen).items():
                if piece in column_of:
                    counts[i, column_of[piece]] = count
        return np.log1p(counts)

    def common_pieces(self) -> Int[np.ndarray, " d"]:
        """Returns the commonest pieces of the inputs, at most `BAG_PIECES`, by id."""
        counts = np.bincount(self.inputs.tokens)
        order = np.argsort(-counts, kind="stable")[:BAG_PIECES]
        return np.sort(order[counts[order] > 0])


def make_rows(
    examples: Sequence[TextExample], vocabulary: Vocabulary, input_length: int, target_length: int,
    *, referenced: bool,
) -> Rows:
    """Tokenises the examples of a split; all have a label, or none has."""
    inputs = encode(vocabulary, [example.inputs for example in examples])
    targets = encode(vocabulary, [example.target for example in examples])
    labels = None
    if examples[0].label is not None:
        labels = np.array([example.label for example in examples], np.int32)
    references = tuple(example.reference for example in examples) if referenced else None
    content = digest([
        *(part.tobytes() for one in (inputs, targets) for part in (one.tokens, one.ends)),
        b"" if labels is None else labels.tobytes(), json.dumps(references),
        f"{input_length} {target_length}"])
    return Rows(inputs, targets, labels, references, input_length, target_length, content)


def word_targets(
    words: Sequence[str], vocabulary: Vocabulary, target_length: int, where: str
) -> Int32[np.ndarray, "classes target_length"]:
    """Returns the label's words as targets.

    Raises:
      InputError: a word does not fit, or two are one to the vocabulary.
    """
    encoded = vocabulary.encode_all(words)
    longest = max(range(len(words)), key=lambda i: len(encoded[i]))
    if len(encoded[longest]) + 1 > target_length:
        raise InputError(where, f"the targets are too short for the label {words[longest]!r}",
                         got=f"{target_length} tokens", expected=f">= {len(encoded[longest]) + 1}",
                         hint="raise data.task_target_length")
    spoken: dict[str, str] = {}
    for word, ids in zip(words, encoded, strict=True):
        other = spoken.setdefault(vocabulary.decode(ids), word)
        if other != word:
            raise InputError(where, "two labels are the same to the vocabulary",
                             got=f"{other!r} and {word!r}", hint="rename one of them")
    ragged = Ragged(np.array([t for ids in encoded for t in ids], np.int32),
                    np.cumsum([len(ids) for ids in encoded]))
    return np.stack([ragged.padded(i, target_length) for i in range(len(words))])
