"""Fine-tuning on one labelled task at a time, the same for every modality.

The modality adapts the parameters (a new head, resampled positions), the core trains all of them
with `train.train` and scores the result on `validation` and `test`. The test split is used for
nothing but that score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64, Shaped

from deepnarrow.assemble import make_model
from deepnarrow.config import resolve_options
from deepnarrow.data import check_seed
from deepnarrow.errors import InputError, NotApplicable, Preempted
from deepnarrow.modality import AnyArchitecture, Batch, Modality, Params, Path, Scores, Task
from deepnarrow.protocol import FineTune, RunOptions
from deepnarrow.records import CurvePoint, Status
from deepnarrow.shape import Shape
from deepnarrow.train import Program, make_program, train
from deepnarrow.transfer import apply_all
from deepnarrow.transfer.fewshot import check_labels, majority_accuracy

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_ADAPT = 2  # use of a seed's key; training uses 0 and 1


@dataclasses.dataclass(frozen=True)
class FineTuneProgram:
    """Fine-tuning one shape on one task: serves every checkpoint and every seed.

    Attributes:
      task: the task.
      program: the compiled program of the adapted model.
      config: budget and optimiser.
      source_options: model options of the checkpoints.
      target_options: those of the adapted model.
      modality: it adapts the parameters.
    """

    task: Task
    program: Program
    config: FineTune
    source_options: ConfigDict
    target_options: ConfigDict
    modality: Modality


@dataclasses.dataclass(frozen=True)
class FineTuneResult:
    """What fine-tuning one checkpoint with one seed gave.

    Attributes:
      curve: the learning curve, stage `fine_tune`.
      scores: the task's scores by split, `validation` and `test`; empty unless `done`.
      params: the fine-tuned parameters.
      status: `done`, `diverged` or `preempted`.
      reinitialised: paths of the parameters that did not come from the checkpoint.
      majority: accuracy on `test` of always answering the commonest label of `train`; None where
        the task has no classes.
    """

    curve: tuple[CurvePoint, ...]
    scores: Mapping[str, Scores]
    params: Params
    status: Status
    reinitialised: tuple[Path, ...]
    majority: float | None


def make_finetune(
    modality: Modality, architecture: AnyArchitecture, shape: Shape, options: ConfigDict,
    task: Task, config: FineTune,
) -> FineTuneProgram:
    """Returns the program that fine-tunes models of `shape` on `task`.

    Args:
      modality: of the checkpoints and the task.
      architecture: of the checkpoints.
      shape: of the checkpoints.
      options: model options of the checkpoints; the task's and the dropout rate are laid over them.
      task: what to fine-tune on.
      config: budget (`config.steps` updates) and optimiser.

    Raises:
      NotApplicable: the task does not serve fine-tuning, or needs a `score` the model lacks.
      InputError: an option is unknown, a label is out of range, or the schedule does not fit.
    """
    where = f"task {task.name!r}"
    if "fine_tune" not in task.kinds:
        raise NotApplicable(where, "does not serve fine-tuning", got=", ".join(sorted(task.kinds)))
    for split in ("train", "validation", "test"):  # before any training: a late error is dear
        truth(task, split)
    overrides = {**task.options, "dropout_rate": config.dropout_rate}
    target_options = resolve_options(options, overrides, f"{where}, options")
    model = make_model(modality, architecture, shape, target_options)
    program = make_program(model, config.optimizer, config.steps)
    _predictor(program, task)  # raises now rather than after training
    return FineTuneProgram(task, program, config, options, target_options, modality)


def finetune(
    ft: FineTuneProgram, params: Params, *, seed: int,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> FineTuneResult:
    """Fine-tunes a checkpoint and scores it.

    Args:
      ft: the program, from `make_finetune`.
      params: of the checkpoint; they are left alone.
      seed: of new parameters, data order and dropout.
      should_stop: asked before each step and each batch that is scored; if it says True, the
        status is `preempted` and there are no scores.
      progress: called as `progress(step, total_steps, text)`.

    Raises:
      InputError: the seed is out of range.
    """
    check_seed(seed)
    task, batch_size = ft.task, ft.config.batch_size
    key = jax.random.fold_in(jax.random.key(seed), _ADAPT)
    adapted, reinitialised = ft.modality.adapt(params, ft.source_options, ft.target_options, key)
    result = train(ft.program, task.examples("train"), seed=seed, batch_size=batch_size,
                   run=RunOptions(), stage="fine_tune", initial_params=adapted,
                   progress=progress, should_stop=should_stop)
    status, scores = result.status, {}
    try:
        for split in ("validation", "test") if status == "done" else ():
            predictions = predict_all(
                ft.program, result.state.params, task, split, batch_size, should_stop)
            scores[split] = task.score(predictions, truth(task, split))
    except Preempted:
        status, scores = "preempted", {}
    majority = None if task.num_classes is None else majority_accuracy(
        task_labels(task, "train"), task_labels(task, "test"))
    return FineTuneResult(result.curve, scores, result.state.params, status,
                          tuple(reinitialised), majority)


def predict_all(
    program: Program, params: Params, task: Task, split: str, batch_size: int,
    should_stop: Callable[[], bool] | None = None,
) -> Shaped[np.ndarray, "n ..."]:
    """Returns predictions of every example of a split, in order.

    They are what `Model.predict` returns; for tasks with `candidates` they are the
    candidates' log-likelihoods [n, candidates].

    Raises:
      Preempted: `should_stop`, asked before each batch, said True.
      NotApplicable: the task needs a `score` that the model lacks.
    """
    return apply_all(_predictor(program, task), params, task.examples(split), batch_size,
                     should_stop)


def _predictor(program: Program, task: Task) -> Callable[[Params, Batch], Array]:
    candidates, score = task.candidates, program.score
    if candidates is None:
        return program.predict
    if score is None:
        raise NotApplicable(f"task {task.name!r}", "ranks candidates, but the model has no score")

    def rank(params: Params, batch: Batch) -> Float[Array, "batch candidates"]:
        # candidates x [batch] -> [batch, candidates]
        return jnp.stack([score(params, candidate) for candidate in candidates(batch)], axis=1)

    return rank


def truth(task: Task, split: str) -> Sequence[Any] | Int64[np.ndarray, " n"]:
    """Returns what `task.score` compares predictions with: references, else labels.

    Raises:
      InputError: the split lacks them, or has more or fewer than examples.
    """
    if task.num_classes is not None:
        labels = task_labels(task, split)
        if task.references is None:
            return labels
    assert task.references is not None  # registration has seen to it
    references, number = task.references(split), task.examples(split).num_examples
    if len(references) != number:
        raise InputError(f"task {task.name!r}, {split}", "has another number of references than of "
                         "examples", got=len(references), expected=number)
    return references


def task_labels(task: Task, split: str) -> Int64[np.ndarray, " n"]:
    """Returns the labels of a split.

    Raises:
      InputError: the split has none, or one is not in 0 ... num_classes - 1.
    """
    where = f"task {task.name!r}, {split}"
    labels = task.examples(split).labels
    if labels is None or task.num_classes is None:
        raise InputError(where, "its source has no labels()",
                         hint="a task's sources carry labels: see Source in modality.py")
    return check_labels(where, labels(), task.num_classes)
