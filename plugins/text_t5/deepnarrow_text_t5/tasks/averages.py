"""The benchmarks' averages, as T5 and "Scale Efficiently" report them.

A task's score is the mean of its metrics, a benchmark's the mean of its tasks' scores (T5's
`eval_utils.compute_avg_glue`; MNLI is one task, WNLI none). `all` is the mean of the three
benchmarks, the last column of "Scale Efficiently", Table 4. Fractions: the papers print them x 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from deepnarrow_text_t5.tasks.glue import GLUE
from deepnarrow_text_t5.tasks.squad import SQUAD
from deepnarrow_text_t5.tasks.super_glue import SUPER_GLUE

METRICS: Mapping[str, tuple[str, ...]] = {
    task.name: task.metrics for task in (*GLUE, *SUPER_GLUE, *SQUAD)}
BENCHMARKS: Mapping[str, tuple[str, ...]] = {
    "glue": tuple(task.name for task in GLUE if task.name != "glue_wnli"),
    "super_glue": tuple(t.name for t in SUPER_GLUE if t.name != "super_glue_wsc_marked"),
    "squad": ("squad",),
}
ALL = "all"


def averages(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the averages that the scores suffice for.

    Args:
      scores: metrics by task, as `Task.score` gives them.

    Returns:
      `glue`, `super_glue` and `squad` where every task of the benchmark is there, and `all` where
      all three are.

    >>> averages({"squad": {"em": 0.5, "f1": 0.75}})
    {'squad': 0.625}
    """
    task_scores = {name: _mean([scores[name][metric] for metric in METRICS[name]])
                   for name in scores if scores[name].keys() >= set(METRICS.get(name, ("",)))}
    found = {benchmark: _mean([task_scores[name] for name in names])
             for benchmark, names in BENCHMARKS.items() if task_scores.keys() >= set(names)}
    return {**found, ALL: _mean(list(found.values()))} if len(found) == len(BENCHMARKS) else found


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
