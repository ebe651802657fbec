"""How each benchmark scores a split: its own metrics, and their mean where there are several.

A scorer takes what the model answered (classes [n], -1 for none of the label's words; or texts) and
the truth, and returns `Scores`. Values per example are given where their mean is the quoted metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deepnarrow.modality import Scores
from deepnarrow_text_t5.tasks import metrics

Scorer = Callable[[Any, Any], Scores]
MEAN = "mean"


def quoted(names: Sequence[str]) -> str:
    """Returns the metric to quote: the only one, or the mean of several."""
    return names[0] if len(names) == 1 else MEAN


def not_a_number(names: Sequence[str]) -> Scores:
    """Returns the scores of a model whose log-likelihoods are not finite."""
    return Scores(dict.fromkeys({*names, quoted(names)}, math.nan), None)


def _with_mean(values: dict[str, float]) -> dict[str, float]:
    if len(values) == 1:
        return values
    return {**values, MEAN: math.fsum(values.values()) / len(values)}


def score_accuracy(predicted: metrics.Classes, labels: metrics.Classes) -> Scores:
    """Accuracy."""
    return Scores({"accuracy": metrics.accuracy(labels, predicted)},
                  (labels == predicted).astype(np.float64))


def score_matthews(predicted: metrics.Classes, labels: metrics.Classes) -> Scores:
    """CoLA: Matthews' correlation."""
    return Scores({"matthews_corrcoef": metrics.matthews(labels, predicted)}, None)


def score_f1(predicted: metrics.Classes, labels: metrics.Classes) -> Scores:
    """MRPC and QQP: F1 and accuracy."""
    return Scores(_with_mean({"f1": metrics.f1(labels, predicted),
                              "accuracy": metrics.accuracy(labels, predicted)}), None)


def score_class_f1(predicted: metrics.Classes, labels: metrics.Classes) -> Scores:
    """CB: the mean of three classes' F1, and accuracy."""
    return Scores(_with_mean({"mean_3class_f1": metrics.mean_class_f1(labels, predicted, 3),
                              "accuracy": metrics.accuracy(labels, predicted)}), None)


def score_subsets(predicted: metrics.Classes, truth: Sequence[tuple[int, str]]) -> Scores:
    """MNLI: accuracy on the matched and on the mismatched examples; `truth` is (label, subset).

    A value per example is weighted so that their mean is the mean of both accuracies.
    """
    labels = np.array([label for label, _ in truth])
    subsets = np.array([subset for _, subset in truth])
    correct = (labels == predicted).astype(np.float64)
    names = ("matched", "mismatched")
    sizes = {name: int((subsets == name).sum()) for name in names}
    if not all(sizes.values()):
        return not_a_number([f"accuracy_{name}" for name in names])
    values = {f"accuracy_{name}": float(correct[subsets == name].mean()) for name in names}
    weights = np.array([len(truth) / (2 * sizes[subset]) for subset in subsets])
    return Scores(_with_mean(values), correct * weights)


def score_multirc(predicted: metrics.Classes, truth: Sequence[tuple[int, str]]) -> Scores:
    """MultiRC: F1 over all answers, and all of a question right; `truth` is (label, question)."""
    labels = np.array([label for label, _ in truth])
    match = metrics.group_exact_match(labels, predicted, [group for _, group in truth])
    return Scores(_with_mean({"f1": metrics.f1(labels, predicted), "exact_match": match}), None)


def score_similarity(said: Sequence[str], truth: Sequence[float]) -> Scores:
    """STS-B: Pearson and Spearman; what is no number counts as -1, as in T5."""
    numbers, real = np.array([_number(text) for text in said]), np.array(truth)
    return Scores(_with_mean({"pearson_corrcoef": metrics.pearson(real, numbers),
                              "spearman_corrcoef": metrics.spearman(real, numbers)}), None)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def score_answers(said: Sequence[str], truth: Sequence[Sequence[str]]) -> Scores:
    """SQuAD and ReCoRD: exact match and F1 of words, the best over the right answers."""
    pairs = np.array([metrics.answer_match(answers, text)
                      for answers, text in zip(truth, said, strict=True)])  # [n, 2]
    match, f1 = pairs.mean(axis=0).tolist()
    return Scores(_with_mean({"em": match, "f1": f1}), pairs.mean(axis=1))


def score_referents(said: Sequence[str], truth: Sequence[tuple[int, str]]) -> Scores:
    """WSC by pronoun: is the text the referent, as the label says? `truth` is (label, referent)."""
    predicted = np.array([metrics.is_referent(referent, text)
                          for (_, referent), text in zip(truth, said, strict=True)])
    return score_accuracy(predicted, np.array([label for label, _ in truth]))
