"""`stdlib_module`: to which of six packages does a docstring belong? See `corpus.py`. No JAX."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from deepnarrow.errors import InputError
from deepnarrow.modality import Batch, Example, Metric, Source, Task
from deepnarrow.transfer.scores import score_accuracy
from deepnarrow_text_t5.cache import digest
from deepnarrow_text_t5.corpus import CLASSES, SPLITS, load_corpus
from deepnarrow_text_t5.sources import TextData, open_data, pad_to
from deepnarrow_text_t5.vocabulary import EOS_ID, PAD_ID

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PROMPT = "stdlib module: "


def module_task(data_options: ConfigDict) -> Task:
    """Returns `stdlib_module`: rank classification of the six packages' names."""

    def rows(split: str) -> Rows:
        if split not in SPLITS:
            raise InputError("task 'stdlib_module'", "no such split", got=split,
                             expected=f"one of {', '.join(SPLITS)}")
        return _rows(open_data(data_options), split)

    def candidates(batch: Batch) -> Batch:
        words = _label_words(open_data(data_options))
        # [classes, target_length] -> [batch, classes, target_length]
        return {"targets": np.tile(words, (len(batch["inputs"]), 1, 1))}

    return Task(
        name="stdlib_module", kinds=frozenset({"few_shot", "fine_tune"}),
        examples=lambda split: rows(split).source(), metric=Metric("accuracy", "max"),
        score=score_accuracy, num_classes=len(CLASSES), candidates=candidates,
        baseline=lambda split: rows(split).bag_of_pieces(),
    )


@dataclasses.dataclass(frozen=True)
class Rows:
    """One split, tokenised.

    Attributes:
      inputs: int32 [n, input_length]: prompt, text (cut where it is longer), EOS, padding.
      targets: int32 [n, target_length]: the label's word, EOS, padding.
      labels: int32 [n]: indices into `CLASSES`.
      prompt_length: tokens of the prompt.
      table_size: rows of the embedding table.
      content_hash: sha256 of all of it.
    """

    inputs: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    prompt_length: int
    table_size: int
    content_hash: str

    def source(self) -> Source:
        """Returns the split as a source of examples `inputs`, `targets`, `label`."""

        def load(index: int, rng: np.random.Generator) -> Example:
            del rng  # nothing is drawn
            return {"inputs": self.inputs[index], "targets": self.targets[index],
                    "label": self.labels[index]}

        return Source(
            num_examples=len(self.labels), load=load, content_hash=self.content_hash,
            labels=lambda: self.labels,
        )

    def bag_of_pieces(self) -> Float[np.ndarray, "n table"]:
        """Returns log(1 + count) of each piece in the text the model sees, prompt left out."""
        counts = np.zeros((len(self.labels), self.table_size), np.float32)
        texts = self.inputs[:, self.prompt_length:]
        row = np.broadcast_to(np.arange(len(texts))[:, None], texts.shape)
        np.add.at(counts, (row, texts), 1.0)
        counts[:, [PAD_ID, EOS_ID]] = 0.0
        return np.log1p(counts)


@functools.cache
def _rows(data: TextData, split: str) -> Rows:
    prompt = data.vocabulary.encode(PROMPT)
    if len(prompt) + 2 > data.lengths.inputs:
        raise InputError("text_t5 data", "input_length leaves no room for the task's prompt",
                         got=data.lengths.inputs, expected=f">= {len(prompt) + 2}")
    labelled = load_corpus().labelled[split]
    texts = [text for text, _ in labelled]
    labels = np.array([label for _, label in labelled], np.int32)
    words = _label_words(data)
    inputs = np.stack([pad_to([*prompt, *ids], data.lengths.inputs)
                       for ids in data.vocabulary.encode_all(texts)])
    targets = words[labels]  # [classes, target_length] -> [n, target_length]
    content = digest([inputs.tobytes(), targets.tobytes(), labels.tobytes()])
    return Rows(inputs, targets, labels, len(prompt), data.vocabulary.table_size, content)


def _label_words(data: TextData) -> Int[np.ndarray, "classes target_length"]:
    """The classes' names as targets."""
    words = data.vocabulary.encode_all(CLASSES)
    longest = max(len(word) for word in words) + 1
    if longest > data.lengths.targets:
        raise InputError("text_t5 data", "targets are too short for the labels' words",
                         got=f"{data.lengths.targets} tokens", expected=f">= {longest}",
                         hint="raise input_length")
    return np.stack([pad_to(word, data.lengths.targets) for word in words])
