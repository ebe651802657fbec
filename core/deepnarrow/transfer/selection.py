"""Which checkpoint of a fine-tuning is reported: the last, or the best on validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from deepnarrow.errors import InputError
from deepnarrow.modality import Params, Scores, Task

VALIDATION, FULL_VALIDATION = "validation", "validation_full"


class Choice(NamedTuple):
    """A checkpoint that is reported: after how many updates, and what it scores on its split."""

    step: int
    scores: Scores


class Selection:
    """Scores checkpoints on validation while they pass by, and keeps those that are best.

    Each task has a choice of its own, also where one model serves all, and of the first where
    several are equally good. A task that serves `validation_full` gets a second one on that split:
    the number a benchmark's papers report, whose examples `test` is a part of. It decides nothing.

    Args:
      tasks: what is scored.
      select: `last` or `best`.
      last_step: of training.
      score: `score(params, task, split) -> Scores`.

    Attributes:
      choices: by task and split, after the last step was measured.
    """

    def __init__(
        self, tasks: Sequence[Task], select: Literal["last", "best"], last_step: int,
        score: Callable[[Params, Task, str], Scores],
    ):
        self._tasks, self._select, self._last_step, self._score = tasks, select, last_step, score
        self._kept: dict[int, Params] = {}
        self.choices: dict[tuple[str, str], Choice] = {}

    def measure(self, step: int, params: Params) -> dict[str, float]:
        """Scores a checkpoint; returns the metrics on `validation`, by task where there are more.

        Raises:
          InputError: a task's scores lack its metric.
        """
        values: dict[str, float] = {}
        for task in self._tasks:
            scores = self._score(params, task, VALIDATION)
            prefix = f"{task.name}/" if len(self._tasks) > 1 else ""
            values |= {f"{prefix}{name}": value for name, value in scores.metrics.items()}
            self._choose(task, VALIDATION, Choice(step, scores))
            due = self._select == "best" or step == self._last_step
            if due and FULL_VALIDATION in task.splits:
                self._choose(task, FULL_VALIDATION,
                             Choice(step, self._score(params, task, FULL_VALIDATION)))
        self._keep(step, params)
        return values

    def params(self, task: Task, last: Params) -> Params:
        """Returns the params chosen for a task; `last` are those after the last step."""
        return self._kept.get(self.choices[task.name, VALIDATION].step, last)

    def _choose(self, task: Task, split: str, new: Choice) -> None:
        old, value = self.choices.get((task.name, split)), quality(task, new.scores)
        if old is None or self._select == "last" or is_better(
                value, quality(task, old.scores), task.metric.direction):
            self.choices[task.name, split] = new

    def _keep(self, step: int, params: Params) -> None:
        """Keeps copies of what is chosen so far, except of the last step's, which the run holds."""
        chosen = {self.choices[task.name, VALIDATION].step for task in self._tasks}
        self._kept = {kept: value for kept, value in self._kept.items() if kept in chosen}
        if step in chosen and step != self._last_step and self._select == "best":
            self._kept[step] = jax.tree.map(jnp.copy, params)


def is_better(new: float, old: float, direction: Literal["min", "max"]) -> bool:
    """Says whether `new` is better; any number is better than one that is not finite.

    >>> is_better(0.5, 0.5, "max"), is_better(0.5, 0.6, "min"), is_better(0.5, math.nan, "max")
    (False, True, True)
    """
    if not math.isfinite(new) or not math.isfinite(old):
        return math.isfinite(new) and not math.isfinite(old)
    return new > old if direction == "max" else new < old


def quality(task: Task, scores: Scores) -> float:
    """Returns the task's own metric.

    Raises:
      InputError: the task's `score` did not give it.
    """
    if task.metric.name not in scores.metrics:
        raise InputError(f"task {task.name!r}", "its score lacks the task's metric",
                         got=", ".join(scores.metrics), expected=task.metric.name)
    return float(scores.metrics[task.metric.name])
