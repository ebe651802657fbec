"""Scores that tasks of several modalities share; NumPy only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Num

from deepnarrow.errors import InputError
from deepnarrow.modality import Scores


def score_accuracy(
    predictions: Num[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Scores:
    """Returns the share of examples whose largest prediction is the label's, and 0 or 1 for each.

    A candidate may have the log-likelihood -inf beside a finite one. An example with a NaN, with
    +inf, or with nothing but -inf has no largest prediction: the accuracy is then NaN, with no
    values of the examples, rather than a number that looks like one.

    Args:
      predictions: a logit or log-likelihood of each class.
      labels: the right classes.

    Raises:
      InputError: the predictions are integers: decoded tokens, not one number a class.

    >>> score_accuracy(np.array([[-1.0, -3.0], [-2.0, -1.0]]), np.array([0, 0])).metrics
    {'accuracy': 0.5}
    """
    if predictions.dtype.kind != "f":
        raise InputError("accuracy", "predictions are no logits or log-likelihoods",
                         got=f"{predictions.dtype}{list(predictions.shape)}",
                         expected="floats, one a class",
                         hint="a task that is scored so needs fine_tune.decode='rank'")
    largest = predictions.max(axis=-1)  # [n, classes] -> [n]; NaN if one of them is
    if not np.isfinite(largest).all():
        return Scores({"accuracy": float("nan")}, None)
    correct = (predictions.argmax(axis=-1) == labels).astype(np.float64)  # [n, classes] -> [n]
    return Scores({"accuracy": float(correct.mean())}, correct)
