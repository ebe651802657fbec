"""The checkpoint that is reported: the right step by hand, and copies of what training goes on."""

from __future__ import annotations

import math
import types

import numpy as np
import pytest

from deepnarrow.errors import InputError
from deepnarrow.modality import Metric, Scores
from deepnarrow.transfer.selection import Selection

NAN = math.nan


def task(name="a", direction="max", splits=("train", "validation", "test")):
    return types.SimpleNamespace(name=name, metric=Metric("m", direction), splits=splits)


def follow(tasks, select, values):
    """Measures steps 10, 20, ... with `values[task][split]`; returns the selection and its log."""
    steps = len(next(iter(next(iter(values.values())).values())))
    asked, at = [], 0

    def score(params, one, split):
        asked.append((at, one.name, split))
        np.testing.assert_array_equal(params["w"], at)
        return Scores({"m": values[one.name][split][at], "other": -1.0 * at}, None)

    selection = Selection(tasks, select, 10 * steps, score)
    buffer = np.zeros(2)  # training writes over its params, as a donated buffer is written over
    for at in range(steps):
        buffer[:] = at
        selection.measure(10 * (at + 1), {"w": buffer})
    return selection, asked


def chosen(selection, one, last="last"):
    params = selection.params(one, {"w": last})["w"]
    return params if isinstance(params, str) else np.asarray(params).tolist()


@pytest.mark.parametrize(("direction", "values", "best"), [
    ("max", [0.1, 0.9, 0.5, 0.3], 1),
    ("min", [0.1, 0.9, 0.05, 0.3], 2),
    ("max", [0.1, 0.9, 0.9, 0.3], 1),  # the first of equals
    ("max", [0.1, 0.2, 0.3, 0.4], 3),
    ("max", [0.4, 0.2, 0.3, 0.4], 0),
    ("max", [NAN, 0.2, NAN, 0.1], 1),
    ("min", [NAN, math.inf, 0.1, NAN], 2),
    ("max", [NAN, NAN, NAN, NAN], 0),
])
def test_best_is_by_hand(direction, values, best):
    one = task(direction=direction)
    selection, _ = follow([one], "best", {"a": {"validation": values}})
    choice = selection.choices["a", "validation"]
    assert choice.step == 10 * (best + 1)
    np.testing.assert_equal(choice.scores.metrics, {"m": values[best], "other": -1.0 * best})
    assert chosen(selection, one) == ("last" if best == 3 else [best, best])


@pytest.mark.parametrize("values", [[0.9, 0.1], [0.1, 0.9], [0.5, NAN]])
def test_last_is_the_last(values):
    one = task()
    selection, _ = follow([one], "last", {"a": {"validation": values}})
    assert selection.choices["a", "validation"].step == 20
    assert chosen(selection, one) == "last"


def test_tasks_choose_apart_and_only_what_is_chosen_is_kept():
    tasks = [task("a"), task("b"), task("c", "min")]
    values = {"a": {"validation": [0, 3, 1, 2]}, "b": {"validation": [9, 8, 7, 6]},
              "c": {"validation": [5, 4, 6, 7]}}
    selection, _ = follow(tasks, "best", values)
    assert [selection.choices[t.name, "validation"].step for t in tasks] == [20, 10, 20]
    assert [chosen(selection, t) for t in tasks] == [[1, 1], [0, 0], [1, 1]]
    assert selection._kept.keys() == {10, 20}


def test_the_full_validation_split_has_its_own_best_and_decides_nothing():
    one = task(splits=("train", "validation", "test", "validation_full"))
    values = {"a": {"validation": [0.1, 0.9, 0.5], "validation_full": [0.7, 0.2, 0.3]}}
    selection, asked = follow([one], "best", values)
    assert selection.choices["a", "validation"].step == 20
    assert selection.choices["a", "validation_full"].step == 10
    assert chosen(selection, one) == [1, 1]
    assert {split for _, _, split in asked} == {"validation", "validation_full"}
    last, asked = follow([one], "last", values)
    assert last.choices["a", "validation_full"].step == 30
    assert [at for at, _, split in asked if split == "validation_full"] == [2]


def test_values_for_the_curve_are_by_task_where_there_are_several():
    def score(params, one, split):
        return Scores({"m": 1.0, "n": 2.0}, None)

    assert Selection([task()], "last", 1, score).measure(1, {}) == {"m": 1.0, "n": 2.0}
    two = Selection([task("a"), task("b")], "last", 1, score)
    assert two.measure(1, {}) == {"a/m": 1.0, "a/n": 2.0, "b/m": 1.0, "b/n": 2.0}


def test_a_score_without_the_tasks_metric_is_named():
    selection = Selection([task()], "best", 2, lambda *_: Scores({"f1": 0.5}, None))
    with pytest.raises(InputError, match=r"task 'a': its score lacks .* \(got f1; expected m\)"):
        selection.measure(1, {"w": np.zeros(1)})
