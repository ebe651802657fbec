"""From a description of a text-to-text task to the contract's `Task`. Building one reads nothing.

Answers come as tokens (greedy decoding) or as log-likelihoods of the label's words (rank
classification); both are scored alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Num

from deepnarrow.errors import InputError
from deepnarrow.modality import Batch, Metric, Scores, Task
from deepnarrow_text_t5.sources import open_data
from deepnarrow_text_t5.tasks.examples import TextExample
from deepnarrow_text_t5.tasks.rows import Rows, make_rows, word_targets
from deepnarrow_text_t5.tasks.scoring import Scorer, not_a_number, quoted
from deepnarrow_text_t5.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A text-to-text task.

    Attributes:
      name: unique in the modality.
      words: what the classes are called, in order; None for free text.
      read: `read(split)` -> its examples, at least one; takes as long as reading takes.
      score: compares answers with the truth.
      metrics: what `score` gives; their mean is quoted where there are several.
      referenced: the truth is the examples' references, not their labels.
      target_length: tokens of the targets where the options do not say.
      splits: what `read` serves.
    """

    name: str
    words: tuple[str, ...] | None
    read: Callable[[str], Sequence[TextExample]]
    score: Scorer
    metrics: tuple[str, ...]
    referenced: bool
    target_length: int
    splits: tuple[str, ...] = ("train", "validation", "test")


def build_task(text_task: TextTask, data_options: ConfigDict) -> Task:
    """Returns the task; its splits are read and tokenised at first use, and kept."""
    name, words = text_task.name, text_task.words
    where = f"task {name!r}"
    input_length = _length(data_options, "task_input_length", data_options.input_length)
    target_length = _length(data_options, "task_target_length", text_task.target_length)

    def vocabulary() -> Vocabulary:
        return open_data(data_options).vocabulary

    @functools.cache
    def targets() -> np.ndarray:
        assert words is not None
        return word_targets(words, vocabulary(), target_length, where)

    @functools.cache
    def rows(split: str) -> Rows:
        examples = text_task.read(split)
        if words is not None:
            targets()  # a word that does not fit is an error here, not after the training
        return make_rows(examples, vocabulary(), input_length, target_length,
                         referenced=text_task.referenced)

    def candidates(batch: Batch) -> Batch:
        # [classes, target_length] -> [batch, classes, target_length]
        return {"targets": np.tile(targets(), (len(batch["inputs"]), 1, 1))}

    def score(predictions: Num[np.ndarray, "n k"], truth: Any) -> Scores:
        said = answers(predictions, words, vocabulary())
        return not_a_number(text_task.metrics) if said is None else text_task.score(said, truth)

    classes = words is not None
    return Task(
        name=name, splits=text_task.splits,
        kinds=frozenset({"few_shot", "fine_tune"} if classes else {"fine_tune"}),
        examples=lambda split: rows(split).source(),
        metric=Metric(quoted(text_task.metrics), "max"), score=score,
        num_classes=len(words) if words is not None else None,
        options={"input_length": input_length, "target_length": target_length},
        candidates=candidates if classes else None,
        baseline=(lambda split: rows(split).bag_of_pieces(rows("train").common_pieces()))
        if classes else None,
        references=(lambda split: rows(split).references or ()) if text_task.referenced else None,
    )


def _length(data_options: ConfigDict, name: str, default: int) -> int:
    """The option's value where it is set.

    Raises:
      InputError: it is no integer from 2 on.
    """
    value = data_options[name]
    if value is None:
        return default
    if type(value) is not int or value < 2:
        raise InputError("text_t5 data", f"{name} cannot be", got=repr(value),
                         expected="an integer >= 2, or None")
    return value


def answers(
    predictions: Num[np.ndarray, "n k"], words: Sequence[str] | None, vocabulary: Vocabulary
) -> np.ndarray | list[str] | None:
    """Returns what the model said: classes [n], or texts where there are no words of classes.

    Args:
      predictions: tokens [n, length], or log-likelihoods [n, classes] (floating).
      words: the classes; a text that is none of them becomes -1.
      vocabulary: of the tokens.

    Returns:
      None where an example has no largest log-likelihood (a NaN, or nothing but -inf).
    """
    if np.issubdtype(predictions.dtype, np.floating):
        if words is None or predictions.shape[1:] != (len(words),):
            raise ValueError(f"log-likelihoods {predictions.shape} of {words and len(words)} words")
        finite = np.isfinite(predictions.max(axis=1)).all()
        return predictions.argmax(axis=1) if finite else None  # [n, classes] -> [n]
    texts = [vocabulary.decode(row) for row in predictions.tolist()]
    if words is None:
        return texts
    # A word may be spelled in another way once it is tokens and back.
    spoken = {vocabulary.decode(ids): i for i, ids in enumerate(vocabulary.encode_all(words))}
    return np.array([spoken.get(text, -1) for text in texts])
