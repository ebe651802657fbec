"""Averages over tasks in a trial's record."""

import dataclasses

import pytest

from deepnarrow.records import MetricRow
from deepnarrow.trialrows import average_rows


def row(task, metric, value, origin="pretrained", seed=0):
    return MetricRow("fine_tune", task, metric, "max", value, origin, finetune_seed=seed)


def both(scores):
    """An average of two tasks, where both are there."""
    if not {"a", "b"} <= scores.keys():
        return {}
    return {"suite": (scores["a"]["accuracy"] + scores["b"]["f1"]) / 2}


@pytest.fixture
def modality(toy):
    return dataclasses.replace(toy[0], averages=both)


def test_averages_are_by_origin_seed_and_split(modality):
    rows = [
        row("a", "accuracy", 0.5), row("b", "f1", 1.0), row("b", "em", 0.9),
        row("a", "validation/accuracy", 0.2), row("b", "validation/f1", 0.4),
        row("a", "accuracy", 0.1, seed=1), row("b", "f1", 0.3, seed=1),
        row("a", "accuracy", 0.0, "untrained"), row("b", "f1", 0.2, "untrained"),
        row("a", "validation_full/accuracy", 0.7),  # b is missing
        MetricRow("fine_tune", "a", "majority", "max", 0.9, "raw"),
        MetricRow("fine_tune", "a", "loss", "min", 0.9, finetune_seed=0),
        MetricRow("fine_tune", "b", "loss", "min", 0.8, finetune_seed=0),
        MetricRow("few_shot", "a", "accuracy", "max", 0.9, shots=1, shot_seed=0),
    ]
    found = {(r.task, r.metric, r.origin, r.finetune_seed): r.value
             for r in average_rows(modality, rows)}
    assert found == {
        ("suite", "mean", "pretrained", 0): pytest.approx(0.75),
        ("suite", "validation/mean", "pretrained", 0): pytest.approx(0.3),
        ("suite", "mean", "pretrained", 1): pytest.approx(0.2),
        ("suite", "mean", "untrained", 0): pytest.approx(0.1),
    }


def test_a_task_that_diverged_has_no_average(modality):
    rows = [row("a", "accuracy", 0.5), row("b", "f1", None)]
    assert list(average_rows(modality, rows)) == []


def test_a_modality_without_averages_has_none(toy):
    assert list(average_rows(toy[0], [row("a", "accuracy", 0.5), row("b", "f1", 1.0)])) == []
