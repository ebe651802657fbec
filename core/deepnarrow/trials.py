"""From a study's config to its trials: data opened, options resolved, keys made, costs counted.

Nothing here imports JAX: a study that cannot run is refused, and a finished one recognised, within
seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deepnarrow.assemble import check_operators, count_costs
from deepnarrow.config import ModalityStudy, StudyConfig, resolve_options
from deepnarrow.cost import CostSummary, summarize
from deepnarrow.errors import InputError
from deepnarrow.modality import Modality, Task, Upstream
from deepnarrow.ops import NamedShape, resolve
from deepnarrow.plugins import Registry
from deepnarrow.pretrained import Pretrained, open_pretrained, settle_data, unchecked
from deepnarrow.protocol import Budget, FewShot, FineTune, OptimizerConfig, Protocol
from deepnarrow.records import Record
from deepnarrow.settings import build
from deepnarrow.transfer.fewshot import check_labels
from deepnarrow.trialkey import REVISION, trial_key
from deepnarrow.tuning import Choice, TryResult, choose, grid, mean_losses


@dataclasses.dataclass(frozen=True)
class ModalityData:
    """A modality's data, opened once for all of its cells.

    Attributes:
      modality: the modality.
      upstream: what it is pre-trained on.
      tasks: the few-shot tasks that the protocol names.
      finetune_tasks: the fine-tune tasks that the protocol names, with its stage's options.
      facts: what determines results on the data's side: content hashes by split, and how each
        task changes the model.
      pretrained: the checkpoints that the study starts from, by their labels.
    """

    modality: Modality
    upstream: Upstream
    tasks: Mapping[str, Task]
    finetune_tasks: Mapping[str, Task]
    facts: Mapping[str, Any]
    pretrained: Mapping[str, Pretrained] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run with its transfers.

    Attributes:
      modality: name of the modality.
      architecture: name of the architecture.
      shape: the shape with its canonical name.
      options: the model's resolved options.
      data: content hashes of everything it reads, and the tasks' settings.
      protocol: budgets and stages.
      seed: the pre-training seed; 0 where a checkpoint stands for pre-training.
      checkpoint: what is known of that checkpoint (`Pretrained.facts`), or None.
      micro_batches: pieces of a training batch, where the result depends on them; else 1.
      is_try: whether it only serves to choose the learning rate of others.
      choice: the rate that tuning chose, which follows from the rest; None without tuning, and
        until the tries have ended.
    """

    modality: str
    architecture: str
    shape: NamedShape
    options: Mapping[str, Any]
    data: Mapping[str, Any]
    protocol: Protocol
    seed: int
    checkpoint: Mapping[str, Any] | None = None
    micro_batches: int = 1
    is_try: bool = False
    choice: Choice | None = None

    def config(self) -> dict[str, Any]:
        """Everything that determines the result, JSON-able: what the key is a hash of."""
        rare: dict[str, Any] = {}
        if self.checkpoint is not None:
            rare["checkpoint"] = dict(self.checkpoint)
        if self.micro_batches > 1:
            rare["micro_batches"] = self.micro_batches
        if self.is_try:
            rare["try"] = True
        return {
            "revision": REVISION,
            "modality": self.modality,
            "architecture": self.architecture,
            "shape": self.shape.shape.to_dict(),
            "options": dict(self.options),
            "data": dict(self.data),
            "protocol": _canonical(self.protocol),
            "seed": self.seed,
            **rare,
        }

    @property
    def key(self) -> str:
        """Hash of `config()`: no workdir, launcher, logging or device in it."""
        return trial_key(self.config())

    @property
    def cell(self) -> str:
        """The same of trials that differ in nothing but the seed."""
        return trial_key({**self.config(), "seed": None})

    @property
    def programs(self) -> str:
        """The same of trials that can share compiled programs.

        They may differ in seed, and in the rate and length of pre-training.
        """
        config = self.config()
        optimizer = config["protocol"]["optimizer"] and {
            **config["protocol"]["optimizer"], "learning_rate": None}
        protocol = {**config["protocol"], "optimizer": optimizer, "budget": None, "tune": None}
        return trial_key({**config, "seed": None, "try": None, "protocol": protocol})

    def tuned_facts(self) -> dict[str, Any]:
        """What another process must be told of tuning to run this, JSON-able; mostly nothing."""
        if self.is_try:
            return {"learning_rate": self.optimizer.learning_rate}
        return {} if self.choice is None else dataclasses.asdict(self.choice)

    @property
    def optimizer(self) -> OptimizerConfig:
        """Pre-training's, with the learning rate that was chosen."""
        given = self.protocol.pretraining.optimizer
        if self.protocol.tune is None:
            return given
        assert self.choice is not None, "it was begun before its tries had ended"
        return dataclasses.replace(given, learning_rate=self.choice.learning_rate)


def _canonical(protocol: Protocol) -> dict[str, Any]:
    """A protocol's values as its file would have them: 20 where a number is meant is 20.0.

    Else a study that a program describes would have other keys in its workers than in the command.
    With `tune` the optimiser's own learning rate is None, for nothing depends on it.
    """
    values = dataclasses.asdict(build(Protocol, dataclasses.asdict(protocol), "protocol"))
    if protocol.tune is None:
        del values["tune"]
    else:
        values["optimizer"]["learning_rate"] = None
    return values


@dataclasses.dataclass(frozen=True)
class Unit:
    """Trials that share compiled programs: the seeds of one cell."""

    trials: tuple[Trial, ...]


def make_units(trials: Iterable[Trial]) -> list[Unit]:
    """Groups trials by cell: seeds share compiled programs."""
    by_cell: dict[str, list[Trial]] = {}
    for trial in trials:
        by_cell.setdefault(trial.cell, []).append(trial)
    return [Unit(tuple(group)) for group in by_cell.values()]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a cell costs, before it is run."""

    trial: Trial
    costs: CostSummary
    steps: int

    @property
    def flops_train_total(self) -> float:
        """FLOPs of the whole pre-training; 0 where there is none."""
        if not self.steps:
            return 0.0
        examples = self.steps * self.trial.protocol.pretraining.batch_size
        return self.costs.flops_train_per_example * examples


def open_data(study: ModalityStudy, registry: Registry) -> ModalityData:
    """Opens upstream data and the tasks that the protocol names; hashes their content.

    Raises:
      InputError: a checkpoint cannot be opened or belongs to other data; a task does not exist,
        does not serve the stage that asks for it, or has too few examples of a class for the shots.
    """
    modality = registry.modality(study.modality)
    where = f"modalities.{study.modality}"
    data = resolve_options(modality.data_options, study.data, f"{where}.data")
    pretrained = {
        source.label: open_pretrained(source, modality, registry, f"{where}.checkpoints[{i}]")
        for i, source in enumerate(study.checkpoints)}
    data = settle_data(data, modality, pretrained, where)
    options = resolve_options(modality.options, study.options, f"{where}.options")
    upstream = modality.upstream(data, options)
    facts: dict[str, Any] = {
        "upstream/train": upstream.train.content_hash,
        "upstream/validation": upstream.validation.content_hash,
    }
    tasks: dict[str, dict[str, Task]] = {"few_shot": {}, "fine_tune": {}}
    stages = {"few_shot": study.protocol.few_shot, "fine_tune": study.protocol.fine_tune}
    for kind, stage in stages.items():
        if stage is None:
            continue
        place = f"{where}.protocol.{kind}"
        own = stage.options if isinstance(stage, FineTune) else {}
        decided = resolve_options(options, {**upstream.options, **own}, f"{place}.options")
        known = _known_tasks(modality.name, modality.tasks(data, decided), registry)
        for name in stage.tasks:
            task = tasks[kind][name] = _find_task(known, name, kind, place)
            facts |= _task_facts(task, kind)
            if isinstance(stage, FewShot):
                _check_shots(task, stage, place)
            else:
                _check_classes(task)
    if pretrained and not study.evaluate_upstream:
        facts = {name: fact for name, fact in facts.items() if not name.startswith("upstream/")}
    return ModalityData(modality, upstream, tasks["few_shot"], tasks["fine_tune"], facts,
                        pretrained)


def _task_facts(task: Task, kind: str) -> dict[str, Any]:
    """What a stage's results depend on of a task."""
    splits = ("train", "test")
    if kind == "fine_tune":
        splits = tuple(dict.fromkeys(("train", "validation", "test", *task.splits)))
    place = f"{kind}/{task.name}"
    hashes = {f"{place}/{split}": task.examples(split).content_hash for split in splits}
    return {place: {"options": dict(task.options), "num_classes": task.num_classes}, **hashes}


def _known_tasks(
    modality: str, own: Mapping[str, Task], registry: Registry
) -> dict[str, Task]:
    """The modality's own tasks and those that other plugins add; no name stands twice."""
    added = registry.tasks.get(modality, {})
    twice = sorted(own.keys() & added.keys())
    if twice:
        raise InputError(f"tasks of {modality}", "a plugin adds a task that the modality has",
                         got=twice[0], hint="rename the added one")
    return {**own, **added}


def _find_task(known: Mapping[str, Task], name: str, kind: str, where: str) -> Task:
    serving = [n for n, task in known.items() if kind in task.kinds]
    if name not in serving:
        raise InputError(f"{where}.tasks", "no such task for this stage", got=name,
                         expected=f"one of {', '.join(serving) or '(none)'}")
    return known[name]


def _check_shots(task: Task, stage: FewShot, where: str) -> None:
    """Refuses shots that a class cannot give: now, not after the training."""
    counts = _class_counts(task)
    if counts is None:
        raise InputError(f"task {task.name!r}", "its train source has no labels()",
                         hint="a task's sources carry labels; see Source in modality.py")
    fewest, most = int(counts.argmin()), max(stage.shots)
    if counts[fewest] < most:
        raise InputError(f"{where}.shots", f"class {fewest} of {task.name!r} has too few examples",
                         got=most, expected=f"<= {counts[fewest]} shots")


def _class_counts(task: Task) -> np.ndarray | None:
    """Training examples of each class, int64 [num_classes]; None for a task without classes."""
    labels = task.examples("train").labels
    if labels is None or task.num_classes is None:
        return None
    checked = check_labels(f"task {task.name!r}, train", labels(), task.num_classes)
    return np.bincount(checked, minlength=task.num_classes)


def _check_classes(task: Task) -> None:
    """Refuses a class that nothing can be learned of."""
    counts = _class_counts(task)
    if counts is not None and not counts.all():
        absent = np.flatnonzero(counts == 0)
        raise InputError(f"task {task.name!r}, train", f"class {absent[0]} has no example",
                         got=f"{len(absent)} of {task.num_classes} classes without any",
                         hint="leave the class out of the other splits too, or add examples")


def _cell_options(study: ModalityStudy, data: ModalityData, named: NamedShape) -> dict[str, Any]:
    """The preset's defaults, then the user's options, the data's and the shape's name's.

    Raises:
      InputError: two of the last three contradict each other.
    """
    where = f"modalities.{study.modality}.options"
    decided = data.upstream.options
    chosen = named.options(study.options, f"{where}.")
    for name, value in decided.items():
        if (name in study.options or name in named.fixed) and chosen[name] != value:
            place = f"{where}.{name}" if name in study.options else f"shape {named.name!r}, {name}"
            raise InputError(place, "the data decides this option", got=chosen[name],
                             expected=value, hint="leave it out")
    return resolve_options(data.modality.options, {**chosen, **decided}, where).to_dict()


def plan_trials(
    config: StudyConfig, registry: Registry, data: Mapping[str, ModalityData]
) -> tuple[list[Trial], list[str]]:
    """Returns the grid's trials, cell by cell, seeds innermost, and notes for the user.

    Equal shapes are run once, under the name that stands first.
    """
    trials: dict[str, Trial] = {}
    notes: dict[str, None] = {}
    for name, study in config.modalities.items():
        notes |= dict.fromkeys(f"{name}: {note}" for note in unchecked(data[name].pretrained))
        own = (_checkpoint_trials(study, data[name]) if study.checkpoints
               else _shape_trials(study, data[name], config.seeds, registry))
        for trial in own:
            if depends_on_pieces(trial, registry):
                trial = dataclasses.replace(trial, micro_batches=config.sharding.micro_batches)
            first = trials.setdefault(trial.key, trial)
            if first is not trial:
                notes[f"{study.modality}: {trial.shape.name} is {first.shape.name}; it is run "
                      "once"] = None
    return list(trials.values()), list(notes)


def depends_on_pieces(trial: Trial, registry: Registry) -> bool:
    """Whether micro-batches change the result: with dropout, or an aux loss."""
    stage = trial.protocol.fine_tune
    drops = trial.options["dropout_rate"] if trial.checkpoint is None else 0.0
    if stage is not None:
        drops = max(drops, stage.dropout_rate)
    return bool(drops) or registry.architecture(trial.architecture).aux_loss


def _shape_trials(
    study: ModalityStudy, data: ModalityData, seeds: Sequence[int], registry: Registry
) -> Iterator[Trial]:
    vocabulary = registry.vocabulary(data.modality)
    for architecture in study.architectures:
        for expression in study.shapes:
            named = resolve(expression, vocabulary)
            check_operators(named, registry.architecture(architecture))
            options = _cell_options(study, data, named)
            for seed in seeds:
                yield Trial(study.modality, architecture, named, options, data.facts,
                            study.protocol, seed)


def _checkpoint_trials(study: ModalityStudy, data: ModalityData) -> Iterator[Trial]:
    """One trial a checkpoint; its options are the checkpoint's but for what the data decides."""
    for label, found in data.pretrained.items():
        named = NamedShape(label, found.shape, found.options.to_dict())
        yield Trial(study.modality, found.architecture, named, _cell_options(study, data, named),
                    data.facts, study.protocol, seed=0, checkpoint=found.facts)


# --- tries --------------------------------------------------------------------------------------
def make_try(trial: Trial, learning_rate: float, seed: int, registry: Registry) -> Trial:
    """Returns the run that tries a learning rate for `trial`: pre-training alone, and shorter."""
    batch_size, budget, optimizer = trial.protocol.pretraining
    assert trial.protocol.tune is not None
    amount = budget.amount * trial.protocol.tune.fraction
    protocol = Protocol(batch_size, Budget(budget.kind, amount),
                        dataclasses.replace(optimizer, learning_rate=learning_rate))
    upstream = {name: fact for name, fact in trial.data.items() if name.startswith("upstream/")}
    made = dataclasses.replace(trial, data=upstream, protocol=protocol, seed=seed, is_try=True,
                               choice=None, micro_batches=1)
    if depends_on_pieces(made, registry):
        return dataclasses.replace(made, micro_batches=trial.micro_batches)
    return made


def tries_of(
    trial: Trial, results: Mapping[str, TryResult], registry: Registry
) -> tuple[list[Trial], Choice | None]:
    """Returns the tries of a trial, as far as `results` (by key) say which; its choice, once known.

    The tries that the first ones' losses will call for are not among them yet.
    """
    tune = trial.protocol.tune
    if tune is None:
        return [], None
    tries: dict[float, list[Trial]] = {}
    found: dict[float, list[TryResult]] = {}
    for _ in range(tune.extend + 1):
        for rate in grid(tune, mean_losses(found, len(tune.seeds))):
            if rate not in tries:
                tries[rate] = [make_try(trial, rate, seed, registry) for seed in tune.seeds]
                found[rate] = [results[one.key] for one in tries[rate] if one.key in results]
    return [one for rate in sorted(tries) for one in tries[rate]], choose(tune, found)


def _check_fine_tune_batch(stage: FineTune, tasks: Mapping[str, Task], where: str) -> None:
    sizes = [task.examples("train").num_examples for task in tasks.values()]
    fewest = sum(sizes) if stage.mixture == "proportional" else min(sizes)
    _check_batch(stage.batch_size, fewest, where)


def _check_batch(batch_size: int, examples: int, where: str) -> None:
    """Refuses a batch in which an example would stand twice."""
    if batch_size > examples:
        raise InputError(f"{where}.batch_size", "is more than the training split has",
                         got=batch_size, expected=f"<= {examples} examples")


def count_cell(trial: Trial, registry: Registry, data: ModalityData) -> Cell:
    """Counts a trial's costs in closed form and the steps its budget pays for."""
    options = resolve_options(data.modality.options, trial.options, "options")
    architecture = registry.architecture(trial.architecture)
    costs = summarize(count_costs(data.modality, architecture, trial.shape.shape, options))
    protocol, where = trial.protocol, f"modalities.{trial.modality}.protocol"
    if trial.is_try:
        where += ", a try of tune"
    if protocol.fine_tune:
        _check_fine_tune_batch(protocol.fine_tune, data.finetune_tasks, f"{where}.fine_tune")
        protocol.fine_tune.optimizer.check_steps(f"{where}.fine_tune.optimizer",
                                                 protocol.fine_tune.steps)
    if trial.checkpoint is not None:
        return Cell(trial, costs, steps=0)
    _check_batch(protocol.pretraining.batch_size, data.upstream.train.num_examples, where)
    steps = protocol.pretraining.budget.steps(
        protocol.pretraining.batch_size, num_examples=data.upstream.train.num_examples,
        tokens_per_example=costs.tokens_per_example,
        train_flops_per_example=costs.flops_train_per_example)
    protocol.pretraining.optimizer.check_steps(f"{where}.optimizer", steps)
    return Cell(trial, costs, steps)


def blank_record(study: str, trial: Trial, cell: Cell) -> Record:
    """Returns the record of a trial that has measured nothing: `failed`, without numbers."""
    return Record(
        key=trial.key, study=study, modality=trial.modality, architecture=trial.architecture,
        name=trial.shape.name, shape=trial.shape.shape.to_dict(), seed=trial.seed, status="failed",
        config=json.loads(json.dumps(trial.config())), costs={},
        flop_convention=cell.costs.convention, environment={})
