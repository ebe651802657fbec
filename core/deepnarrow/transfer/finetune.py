"""Fine-tuning on labelled tasks, the same for every modality.

The modality adapts the parameters (a new head, resampled positions), the core trains all of them,
or the head alone, with `train.train` on one task or on a mixture of them, and scores the checkpoint
that `selection.py` chooses on `validation` and `test`. The test split is read for nothing but that
score, once training is over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Int64, Shaped

from deepnarrow.assemble import make_model
from deepnarrow.config import resolve_options
from deepnarrow.data import check_seed, eval_batches
from deepnarrow.errors import InputError, NotApplicable, Preempted
from deepnarrow.modality import (
    AnyArchitecture,
    Batch,
    Modality,
    Model,
    Params,
    Path,
    Scores,
    Source,
    Task,
)
from deepnarrow.protocol import FineTune, RunOptions
from deepnarrow.records import CurvePoint, Status
from deepnarrow.shape import Shape
from deepnarrow.sharding import Layout, on_every_host
from deepnarrow.step import Program, make_program, metric_names
from deepnarrow.train import evaluate, train
from deepnarrow.transfer import apply_all
from deepnarrow.transfer.fewshot import check_labels, majority_accuracy
from deepnarrow.transfer.mixture import mix
from deepnarrow.transfer.selection import FULL_VALIDATION, VALIDATION, Selection

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MIXTURE = "mixture"  # what several tasks trained on together are called
_ADAPT = 2  # use of a seed's key; training uses 0 and 1


@dataclasses.dataclass(frozen=True)
class FineTuneProgram:
    """Fine-tuning one shape on one task, or on several together: serves checkpoints and seeds.

    Attributes:
      tasks: what is trained on together, and scored one by one.
      program: the compiled program of the adapted model.
      config: budget, optimiser and choice.
      source_options: model options of the checkpoints.
      target_options: those of the adapted model.
      modality: it adapts the parameters.
    """

    tasks: tuple[Task, ...]
    program: Program
    config: FineTune
    source_options: ConfigDict
    target_options: ConfigDict
    modality: Modality

    @property
    def name(self) -> str:
        """The task's name, or `mixture`."""
        return self.tasks[0].name if len(self.tasks) == 1 else MIXTURE

    def train_source(self) -> Source:
        """Returns what is trained on: the task's training split, or the mixture of several."""
        sources = {task.name: task.examples("train") for task in self.tasks}
        if len(sources) == 1:
            return sources[self.name]
        return mix(sources, self.config.mixture_limit)


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What one task got.

    Attributes:
      scores: by split: `validation` and `test` of the checkpoint chosen; `validation_full`, where
        the task serves it, of the one that is best there.
      steps: updates after which the checkpoint was chosen that scores on a split.
      params: of the checkpoint chosen.
      loss: on `test`; ranks by a metric that saturates and by one that does not can differ with the
        same models, so it stands beside the metric.
    """

    scores: Mapping[str, Scores]
    steps: Mapping[str, int]
    params: Params
    loss: float


@dataclasses.dataclass(frozen=True)
class FineTuneResult:
    """What fine-tuning one checkpoint with one seed gave.

    Attributes:
      curve: the learning curve, stage `fine_tune`; `validation/METRIC` is a task's metric, or
        `validation/TASK/METRIC` where there are several tasks.
      tasks: results by the tasks' names; empty unless `done`.
      params: the parameters after the last step.
      status: `done`, `diverged` or `preempted`.
      reinitialised: paths of the parameters that did not come from the checkpoint.
    """

    curve: tuple[CurvePoint, ...]
    tasks: Mapping[str, TaskResult]
    params: Params
    status: Status
    reinitialised: tuple[Path, ...]


def make_finetune(
    modality: Modality, architecture: AnyArchitecture, shape: Shape, options: ConfigDict,
    tasks: Sequence[Task], config: FineTune, layout: Layout | None = None, micro_batches: int = 1,
) -> FineTuneProgram:
    """Returns the program that fine-tunes models of `shape` on `tasks` together.

    Args:
      modality: of the checkpoints and the tasks.
      architecture: of the checkpoints.
      shape: of the checkpoints.
      options: model options of the checkpoints; the tasks', then `config`'s are laid over them.
      tasks: what to fine-tune on: one, or those of a mixture.
      config: budget (`config.steps` updates), optimiser, what is trained and how it is scored.
      layout: how devices share the work; None for one device.
      micro_batches: pieces that a training batch is worked on in.

    Raises:
      NotApplicable: a task does not serve fine-tuning, or needs a `score` the model lacks; only the
        head is to be trained and the model has none.
      Exception: whatever the model raises where the examples do not fit it, and the task where it
        cannot score what is decoded.
      InputError: an option is unknown, a label is out of range, the schedule does not fit, or the
        tasks of a mixture need different models or examples.
    """
    for task in tasks:
        if "fine_tune" not in task.kinds:
            raise NotApplicable(f"task {task.name!r}", "does not serve fine-tuning",
                                got=", ".join(sorted(task.kinds)))
        for split in dict.fromkeys(("train", "validation", "test", *task.splits)):
            truth(task, split)  # before any training: a late error is dear
    target_options = _target_options(options, tasks, config)
    model = make_model(modality, architecture, shape, target_options)
    program = make_program(model, config.optimizer, config.steps, _trained_paths(model, config),
                           layout, micro_batches)
    made = FineTuneProgram(tuple(tasks), program, config, options, target_options, modality)
    # These too raise now rather than after the pre-training.
    _check_adapts(made, architecture, shape)
    batch = next(eval_batches(made.train_source(), config.batch_size))
    metric_names(program, batch)
    for task in tasks:
        _predictor(program, task, config.decode)
        if config.decode == "greedy" and task.candidates is not None:
            _check_greedy(program, task, batch)
    return made


def _check_adapts(ft: FineTuneProgram, architecture: AnyArchitecture, shape: Shape) -> None:
    """Adapts parameters that take no memory, and compares the shapes with the other model's."""
    source = make_model(ft.modality, architecture, shape, ft.source_options)
    key = jax.random.key(0)
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
                          jax.eval_shape(source.init, key))
    adapted, reinitialised = ft.modality.adapt(params, ft.source_options, ft.target_options, key)
    _check_new(ft, reinitialised)
    wanted, got = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
         for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (jax.eval_shape(ft.program.model.init, key), adapted))
    for path in sorted(wanted.keys() | got.keys()):
        if wanted.get(path) != got.get(path):
            raise InputError(f"task {ft.name!r}, parameter {path}",
                             "the adapted checkpoint does not fit the task's model",
                             got=got.get(path, "none"), expected=wanted.get(path, "none"),
                             hint="see fine_tune.options and the task's options")


def _check_greedy(program: Program, task: Task, batch: Batch) -> None:
    """Scores predictions of zeros: raises where the task can score nothing but candidates."""
    params = jax.eval_shape(program.init, np.int32(0)).params
    output = jax.eval_shape(program.predict, params, batch)
    number = task.examples(VALIDATION).num_examples
    task.score(np.zeros((number, *output.shape[1:]), output.dtype), truth(task, VALIDATION))


def _target_options(options: ConfigDict, tasks: Sequence[Task], config: FineTune) -> ConfigDict:
    """The options of the model that is fine-tuned: one for all of the tasks."""
    found = [resolve_options(
        options, {**task.options, **config.options, "dropout_rate": config.dropout_rate},
        f"task {task.name!r}, options") for task in tasks]
    for task, other in zip(tasks, found, strict=True):
        for name, value in found[0].items():
            if other[name] != value:
                raise InputError(f"task {task.name!r}, options", f"{name} is not that of task "
                                 f"{tasks[0].name!r}: one model cannot serve both",
                                 got=other[name], expected=value,
                                 hint="mixture='single' trains a model for each task")
    return found[0]


def _trained_paths(model: Model, config: FineTune) -> tuple[Path, ...] | None:
    if config.train == "all":
        return None
    if not model.head_paths:
        raise NotApplicable("fine_tune", "train is 'head', but the model has no head of its own",
                            hint="train='all'")
    return model.head_paths


def finetune(
    ft: FineTuneProgram, params: Params, *, seed: int,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    on_log: Callable[[int, Mapping[str, float]], None] | None = None,
) -> FineTuneResult:
    """Fine-tunes a checkpoint and scores it.

    Args:
      ft: the program, from `make_finetune`.
      params: of the checkpoint; they are left alone.
      seed: of new parameters, data order and dropout.
      should_stop: asked before each step and each batch that is scored; if it says True, the
        status is `preempted` and there are no scores.
      progress: called as `progress(step, total_steps, text)`.
      on_log: called as `on_log(step, {"train/loss": ...})` with every point of the curve.

    Raises:
      InputError: the seed is out of range; only the head is trained and other parameters are new.
    """
    check_seed(seed)
    config, last_step = ft.config, ft.program.total_steps
    key = jax.random.fold_in(jax.random.key(seed), _ADAPT)
    # `adapt` may look at arrays on the host.
    adapted, reinitialised = ft.modality.adapt(
        on_every_host(params), ft.source_options, ft.target_options, key)
    _check_new(ft, reinitialised)

    def score(params: Params, task: Task, split: str) -> Scores:
        predictions = predict_all(ft.program, params, task, split, config.batch_size, should_stop,
                                  config.decode)
        return task.score(predictions, truth(task, split))

    selection = Selection(ft.tasks, config.select, last_step, score)
    result = train(ft.program, ft.train_source(), seed=seed, batch_size=config.batch_size,
                   run=RunOptions(eval_every=config.eval_every), stage="fine_tune",
                   measure=selection.measure, initial_params=adapted, progress=progress,
                   on_log=on_log, should_stop=should_stop)
    status, found, last = result.status, {}, result.state.eval_params
    try:
        for task in ft.tasks if status == "done" else ():
            chosen = selection.params(task, last)
            found[task.name] = _task_result(task, selection, chosen, score, evaluate(
                ft.program, chosen, task.examples("test"), config.batch_size, should_stop)["loss"])
    except Preempted:
        status, found = "preempted", {}
    return FineTuneResult(result.curve, found, last, status, tuple(reinitialised))


def _task_result(
    task: Task, selection: Selection, params: Params,
    score: Callable[[Params, Task, str], Scores], loss: float,
) -> TaskResult:
    """The first and only look at the test split: with the checkpoint chosen without it."""
    chosen = {split: selection.choices[task.name, split] for split in (VALIDATION, FULL_VALIDATION)
              if (task.name, split) in selection.choices}
    scores = {split: choice.scores for split, choice in chosen.items()}
    steps = {split: choice.step for split, choice in chosen.items()}
    return TaskResult({**scores, "test": score(params, task, "test")},
                      {**steps, "test": steps[VALIDATION]}, params, loss)


def _check_new(ft: FineTuneProgram, reinitialised: Sequence[Path]) -> None:
    trained = set(ft.program.model.head_paths)
    frozen = [path for path in reinitialised if tuple(path) not in trained]
    if ft.config.train == "head" and frozen:
        raise InputError("fine_tune", "train is 'head', but the task makes other parameters anew",
                         got="/".join(frozen[0]), hint="train='all'")


def majority(task: Task) -> float | None:
    """Accuracy on `test` of always answering the commonest label of `train`; None without classes.
    """
    if task.num_classes is None:
        return None
    return majority_accuracy(task_labels(task, "train"), task_labels(task, "test"))


def predict_all(
    program: Program, params: Params, task: Task, split: str, batch_size: int,
    should_stop: Callable[[], bool] | None = None, decode: Literal["rank", "greedy"] = "rank",
) -> Shaped[np.ndarray, "n ..."]:
    """Returns predictions of every example of a split, in order.

    They are what `Model.predict` returns; for tasks with `candidates`, if `decode` is `rank`, they
    are the candidates' log-likelihoods [n, candidates].

    Raises:
      Preempted: `should_stop`, asked before each batch, said True.
      NotApplicable: the task needs a `score` that the model lacks.
    """
    return apply_all(_predictor(program, task, decode), params, task.examples(split), batch_size,
                     should_stop, program.rows(batch_size))


def _predictor(
    program: Program, task: Task, decode: Literal["rank", "greedy"]
) -> Callable[[Params, Batch], Array]:
    candidates, score = task.candidates, program.score
    if candidates is None or decode == "greedy":
        return program.on_host(program.predict)
    if score is None:
        raise NotApplicable(f"task {task.name!r}", "ranks candidates, but the model has no score")

    score = program.on_host(score)

    def rank(params: Params, batch: Batch) -> Float[Array, "batch candidates"]:
        return score(params, batch, candidates(batch))

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
