"""Transfer, text to text: the input names the task, the target is the label in words. No JAX.

    stdlib.py     which package is a docstring of? (always there; the quickstart's)
    glue.py, super_glue.py, squad.py     the 17 tasks of "Scale Efficiently", and their other forms
    custom.py     anybody's labelled file
    averages.py   GLUE, SuperGLUE, SQuAD, all

`docs/tasks.md` is for users.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deepnarrow.errors import InputError, suggest
from deepnarrow.modality import Task
from deepnarrow_text_t5.tasks import custom
from deepnarrow_text_t5.tasks.benchmark import (
    SPLITS,
    TFDS,
    BenchmarkTask,
    locate,
    path_of,
    read_split,
)
from deepnarrow_text_t5.tasks.build import TextTask, build_task
from deepnarrow_text_t5.tasks.examples import TextExample
from deepnarrow_text_t5.tasks.glue import GLUE
from deepnarrow_text_t5.tasks.scoring import score_accuracy
from deepnarrow_text_t5.tasks.squad import SQUAD
from deepnarrow_text_t5.tasks.stdlib import module_task
from deepnarrow_text_t5.tasks.super_glue import SUPER_GLUE, read_definite_pronouns

if TYPE_CHECKING:
    from ml_collections import ConfigDict

BENCHMARK_TASKS: Mapping[str, BenchmarkTask] = {
    task.name: task for task in (*GLUE, *SUPER_GLUE, *SQUAD)}
DPR = "dpr"  # data that WSC's training takes along
_CUSTOM_TARGET_LENGTH = 16


def tasks(data_options: ConfigDict, options: ConfigDict) -> Mapping[str, Task]:
    """Returns the transfer tasks of the data by name.

    A benchmark's data are read when they are needed; a task whose data the options do not name is
    there, and says so when it is used. The file of a custom task is read now: its labels are the
    classes.

    Raises:
      InputError: an option names no task, or a custom task cannot be.
    """
    del options  # lengths and vocabulary follow from the data's options
    _check_places(data_options.tasks)
    found = [module_task(data_options)]
    found += [build_task(_benchmark(task, data_options), data_options)
              for task in BENCHMARK_TASKS.values()]
    for name, line in data_options.custom_tasks.items():
        if name in {task.name for task in found}:
            raise InputError(f"data.custom_tasks.{name}", "is the name of a task that there is",
                             hint="choose another")
        found.append(build_task(_custom(name, line), data_options))
    return {task.name: task for task in found}


def _check_places(places: Mapping[str, str]) -> None:
    known = [*BENCHMARK_TASKS, *{task.benchmark for task in BENCHMARK_TASKS.values()}, DPR]
    for name, place in places.items():
        if name not in known:
            near = suggest(name, known)
            raise InputError(f"data.tasks.{name}", "is no task or benchmark",
                             hint=f"did you mean {near}?" if near else
                             "labelled files of your own go into data.custom_tasks")
        if not isinstance(place, str):
            raise InputError(f"data.tasks.{name}", "is no folder", got=repr(place),
                             expected=f"a path, or {TFDS}PATH")


def _benchmark(task: BenchmarkTask, data_options: ConfigDict) -> TextTask:
    places = data_options.tasks

    def read(split: str) -> Sequence[TextExample]:
        examples = read_split(task, locate(task, places), split)
        if task.name == "super_glue_wsc" and split == "train" and places.get(DPR):
            examples += read_definite_pronouns(path_of(places[DPR]))
        return examples

    return TextTask(task.name, task.words, read, task.score, task.metrics, task.referenced,
                    task.target_length, SPLITS)


def _custom(name: str, line: str) -> TextTask:
    return TextTask(
        name, custom.read_labelled(name, line).words,
        functools.partial(custom.read_split, name, line), score_accuracy, ("accuracy",),
        referenced=False, target_length=_CUSTOM_TARGET_LENGTH)
