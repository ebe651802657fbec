"""Accuracy: by hand, and never a plausible number out of predictions that are none."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from deepnarrow.errors import InputError
from deepnarrow.transfer.scores import score_accuracy

INF, NAN = np.inf, np.nan


def test_accuracy_by_hand():
    scores = score_accuracy(np.array([[2.0, 1.0], [0.0, 1.0], [5.0, 4.0]]), np.array([0, 1, 1]))
    assert scores.metrics == {"accuracy": pytest.approx(2 / 3)}
    assert scores.per_example.tolist() == [1.0, 1.0, 0.0]


def test_an_impossible_candidate_is_not_chosen():
    scores = score_accuracy(np.float32([[-INF, -3.0], [-1.0, -INF]]), np.array([1, 1]))
    assert scores.metrics == {"accuracy": 0.5}
    assert scores.per_example.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("row", [[NAN, NAN], [NAN, 1.0], [1.0, NAN], [-INF, -INF], [INF, 0.0],
                                 [-INF, NAN]])
def test_predictions_that_are_not_finite_make_no_accuracy(row):
    scores = score_accuracy(np.float32([[2.0, 1.0], row]), np.array([0, 0]))
    assert math.isnan(scores.metrics["accuracy"])
    assert scores.per_example is None


def test_decoded_tokens_are_no_scores_of_classes():
    with pytest.raises(InputError, match=r"no logits .*got int32\[2, 3\].*decode='rank'"):
        score_accuracy(np.zeros((2, 3), np.int32), np.zeros(2, int))


def test_scoring_does_not_import_jax():
    code = "import sys, deepnarrow.transfer.scores; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
