"""The benchmarks' metrics, as fractions: 1 is perfect (the papers print them times 100).

Predicted classes are -1 where the model said no label's word; that is wrong everywhere. Held
against the `t5` library in tests. One departure: a correlation with a constant is 0 here, where
SciPy says NaN: a model that always says the same has learnt nothing.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int, Num

Classes = Int[np.ndarray, " n"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Words that may differ between a predicted referent and the right one (WSC, as T5 compares them).
_DETERMINERS = frozenset((
    "a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that",
    "the", "their", "these", "this", "those", "which", "whose", "your"))


# --- classes -----------------------------------------------------------------------------------
def accuracy(labels: Classes, predicted: Classes) -> float:
    """Returns the share of right predictions."""
    return float(np.mean(labels == predicted))


def f1(labels: Classes, predicted: Classes) -> float:
    """Returns F1 of class 1 of two; what is neither class counts as the wrong one.

    >>> f1(np.array([1, 1, 0, 0]), np.array([1, -1, 0, 1]))
    0.5
    """
    positive = np.where((predicted == 0) | (predicted == 1), predicted, 1 - labels) == 1
    return _f1(labels == 1, positive)


def mean_class_f1(labels: Classes, predicted: Classes, num_classes: int) -> float:
    """Returns the mean over classes of each one's F1; 0 for a class that is nowhere."""
    return float(np.mean([_f1(labels == c, predicted == c) for c in range(num_classes)]))


def _f1(truth: np.ndarray, positive: np.ndarray) -> float:
    total = int(truth.sum() + positive.sum())
    return 2 * int((truth & positive).sum()) / total if total else 0.0


def matthews(labels: Classes, predicted: Classes) -> float:
    """Returns Matthews' correlation coefficient, for any number of classes (Gorodkin 2004).

    0 where either is constant.
    """
    classes = np.union1d(labels, predicted)
    true = (labels[:, None] == classes).sum(0).astype(float)  # [n] -> [classes]
    said = (predicted[:, None] == classes).sum(0).astype(float)  # [n] -> [classes]
    n = len(labels)
    spread = (n * n - said @ said) * (n * n - true @ true)
    covariance = n * float((labels == predicted).sum()) - true @ said
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def group_exact_match(
    labels: Classes, predicted: Classes, groups: Sequence[Hashable]
) -> float:
    """Returns the share of groups in which every prediction is right (MultiRC's EM)."""
    right: dict[Hashable, bool] = {}
    for group, one in zip(groups, labels == predicted, strict=True):
        right[group] = right.get(group, True) and bool(one)
    return float(np.mean(list(right.values())))


# --- numbers -----------------------------------------------------------------------------------
def pearson(truth: Num[np.ndarray, " n"], predicted: Num[np.ndarray, " n"]) -> float:
    """Returns Pearson's correlation; 0 where either is constant."""
    x, y = (np.asarray(v, np.float64) - np.mean(v, dtype=np.float64) for v in (truth, predicted))
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0


def spearman(truth: Num[np.ndarray, " n"], predicted: Num[np.ndarray, " n"]) -> float:
    """Returns Spearman's rank correlation, ties at their mean rank; 0 where either is constant."""
    return pearson(_ranks(truth), _ranks(predicted))


def _ranks(values: Num[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # [distinct] -> [n]


# --- answers in words --------------------------------------------------------------------------
def normalise_answer(text: str) -> str:
    """Returns an answer without case, punctuation, articles and spare blanks (SQuAD's script).

    >>> normalise_answer("The  cat's, mat.")
    'cats mat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def answer_match(answers: Sequence[str], predicted: str) -> tuple[float, float]:
    """Returns (exact match, F1 of words), each the largest over the right answers."""
    said = normalise_answer(predicted)
    known = [normalise_answer(answer) for answer in answers]
    return float(said in known), max(_word_f1(answer, said) for answer in known)


def _word_f1(answer: str, said: str) -> float:
    truth, words = answer.split(), said.split()
    shared = sum((collections.Counter(truth) & collections.Counter(words)).values())
    return 2 * shared / (len(truth) + len(words)) if shared else 0.0


def is_referent(referent: str, predicted: str) -> int:
    """Returns 1 if the prediction names the referent, 0 if another, -1 if it names nothing.

    T5's rule for WSC: case and determiners aside, the words of one are among those of the other,
    and both or neither has an apostrophe ("Bob" is not "Bob's hat").

    >>> is_referent("the fuzzy bunny", "bunny"), is_referent("Bob's hat", "Bob")
    (1, 0)
    """
    said, truth = (
        " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)
        for text in (predicted, referent))
    if not said:
        return -1
    if ("'" in said) != ("'" in truth):
        return 0
    words, right = set(said.split(" ")), set(truth.split(" "))
    return int(words <= right or right <= words)
