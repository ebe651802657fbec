"""The protocol every shape goes through: budgets, optimiser, transfer. Part of a trial's key.

These dataclasses are also the schema of a study's config: `config.py` builds them from a ConfigDict
and names every unknown key, wrong type or value out of range at once; `__post_init__` checks
ranges.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from deepnarrow.errors import InputError
from deepnarrow.mesh import MeshShape, find_rules, read_axes

MAX_SEED = 2**31 - 1  # a seed is an int32 inside compiled programs
MAX_NUMBER = 1e30  # no setting means more; what is counted with it still fits a float
BudgetKind = Literal["steps", "epochs", "examples", "tokens", "train_flops"]
Schedule = Literal["inverse_sqrt", "rsqrt", "cosine", "linear", "constant"]
ENDS_AT_ZERO: tuple[Schedule, ...] = ("cosine", "linear")
DEFAULT_TIMESCALE = 10_000
# Larger than every task of GLUE, SuperGLUE and SQuAD: it holds back larger ones only.
DEFAULT_MIXTURE_LIMIT = 2**19
L2 = float | Literal["auto"]  # the strength of a ridge: a number, or chosen from the shots
AUTO: Literal["auto"] = "auto"
MAX_EXTEND = 20
PARITY_L2 = 2.0**10  # big_vision's, for every model
MIN_L2 = 2.0**-20  # a weaker ridge drowns in the rounding errors of float64


def check_range(
    where: str,
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    low_open: bool = False,
) -> None:
    """Raises `InputError` unless `value` is finite and in [low, high] (or (low, high]).

    Nothing may be larger than 1e30, whatever `high` is.
    """
    # An integer may be too large for a float, so it is compared before anything is computed of it.
    inside = (type(value) is int or math.isfinite(value)) and low <= value <= min(high, MAX_NUMBER)
    if not inside or (low_open and value == low):
        expected = f"{'>' if low_open else '>='} {_plain(low)}"
        if value > MAX_NUMBER or high < MAX_NUMBER:  # a bound that nobody set is else not named
            expected += f" and <= {_plain(min(high, MAX_NUMBER))}"
        raise InputError(where, f"{name} is out of range", got=value, expected=expected)


def check_l2(where: str, value: L2) -> None:
    """Raises `InputError` unless `value` is "auto" or the strength of a ridge."""
    if isinstance(value, str) and value != AUTO:
        raise InputError(where, "l2 is unknown", got=value, expected=f"a number or {AUTO}")
    if value != AUTO:
        check_range(where, "l2", value, MIN_L2)


def _plain(value: float) -> str:
    return f"{value:.0f}" if abs(value) < 1e15 and value == int(value) else f"{value:g}"


def check_choice(where: str, name: str, value: object, choices: Sequence[object]) -> None:
    """Raises `InputError` unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(
            where,
            f"{name} is unknown",
            got=value,
            expected=f"one of {', '.join(map(str, choices))}",
        )


def check_names(where: str, name: str, values: Sequence[object]) -> None:
    """Raises `InputError` where a list that a stage works through is empty or repeats itself."""
    if not values:
        raise InputError(where, f"{name} is empty", expected="at least one",
                         hint="leave the whole stage out to skip it")
    if len(set(values)) < len(values):
        raise InputError(where, f"{name} names one twice", got=", ".join(map(str, values)))


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long to train: every shape gets the same amount of one kind.

    There is no kind `seconds`: what a trial gives would then depend on the machine and on what else
    ran there, and neither its key nor a resumed run could stand for it.

    Attributes:
      kind: `steps`, `epochs` (passes over the training source), `examples`, `tokens` (positions
        processed) or `train_flops` (convention `matmul`).
      amount: how many.
    """

    kind: BudgetKind
    amount: float

    def __post_init__(self) -> None:
        check_choice("budget", "kind", self.kind, get_args(BudgetKind))
        check_range("budget", "amount", self.amount, 0, low_open=True)

    def steps(
        self, batch_size: int, *, num_examples: int, tokens_per_example: int,
        train_flops_per_example: float,
    ) -> int:
        """Returns the steps that the budget pays for, rounded down.

        Args:
          batch_size: examples a step.
          num_examples: of the training source: an epoch.
          tokens_per_example: positions the model processes for one.
          train_flops_per_example: FLOPs of training on one.

        Raises:
          InputError: it does not pay for one.
        """
        one_step = {
            "steps": 1.0,
            "epochs": batch_size / num_examples,
            "examples": batch_size,
            "tokens": batch_size * tokens_per_example,
            "train_flops": batch_size * train_flops_per_example,
        }[self.kind]
        # 0.7 epochs of 100 examples are 70, not the 69.99999999999999 that binary fractions make.
        steps = int(self.amount / one_step * (1 + 1e-12))
        if steps < 1:
            raise InputError("budget.amount", f"does not pay for one step of {batch_size} examples",
                             got=self.amount, expected=f">= {one_step:g} {self.kind}",
                             hint="raise it, or lower batch_size")
        return steps


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser with its schedule, which ends at the budget.

    The formulas are in `optim.make_schedule` and `optim.make_optimizer`.

    Attributes:
      name: `adafactor` (T5's) or `adamw` (decoupled decay).
      learning_rate: the peak; for adafactor relative to the parameters' scale.
      schedule: `inverse_sqrt` (T5's: constant up to `warmup_steps`, then 1 / sqrt(step)), `rsqrt`
        (big_vision's: linear warm-up, then 1 / sqrt with a `timescale`), `cosine` or `linear`
        (linear warm-up, then to 0 at the last step) or `constant` (after linear warm-up).
      warmup_steps: of the schedule; fewer than the steps of the budget.
      cooldown_steps: the last so many steps fall linearly to 0, on top of the schedule; 0 for none.
        Not for cosine and linear, which end there anyway.
      timescale: of `rsqrt`, in steps: so long after the warm-up the rate has fallen by sqrt(2).
      weight_decay: of adamw; the share that one update takes off every kernel at the schedule's
        peak, whatever `learning_rate` is.
      clip_norm: global gradient norm, 0 for none.
      b1: adamw's first moment.
      b2: adamw's second moment.
      ema_decay: 0 for none; else the exponential moving average of the parameters is what is
        evaluated, saved as the result and transferred.
    """

    name: Literal["adafactor", "adamw"]
    learning_rate: float
    schedule: Schedule
    warmup_steps: int = 0
    cooldown_steps: int = 0
    timescale: int = DEFAULT_TIMESCALE
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_choice("optimizer", "name", self.name, ("adafactor", "adamw"))
        check_choice("optimizer", "schedule", self.schedule, get_args(Schedule))
        check_range("optimizer", "learning_rate", self.learning_rate, 0, low_open=True)
        check_range("optimizer", "warmup_steps", self.warmup_steps, 0)
        check_range("optimizer", "cooldown_steps", self.cooldown_steps, 0)
        check_range("optimizer", "timescale", self.timescale, 1)
        check_range("optimizer", "weight_decay", self.weight_decay, 0)
        check_range("optimizer", "clip_norm", self.clip_norm, 0)
        check_range("optimizer", "b1", self.b1, 0, 0.9999)
        check_range("optimizer", "b2", self.b2, 0, 0.999999)
        check_range("optimizer", "ema_decay", self.ema_decay, 0, 0.999999)
        if self.name == "adafactor" and (self.weight_decay, self.b1, self.b2) != (0.0, 0.9, 0.999):
            raise InputError("optimizer", "adafactor takes no weight_decay, b1 or b2",
                             got=f"{self.weight_decay}, {self.b1}, {self.b2}",
                             hint="leave them out, or take adamw")
        if self.cooldown_steps and self.schedule in ENDS_AT_ZERO:
            raise InputError("optimizer", f"cooldown_steps does not go with {self.schedule}, which "
                             "ends at 0 anyway", got=self.cooldown_steps, hint="leave it out")
        if self.timescale != DEFAULT_TIMESCALE and self.schedule != "rsqrt":
            raise InputError("optimizer", f"timescale does not go with {self.schedule}",
                             got=self.timescale, hint="leave it out, or take rsqrt")

    @property
    def ends(self) -> bool:
        """Whether the rate at a step depends on how many there are in all."""
        return self.schedule in ENDS_AT_ZERO or self.cooldown_steps > 0

    def check_steps(self, where: str, total_steps: int) -> None:
        """Raises `InputError` unless warm-up and cool-down fit training of `total_steps`."""
        if self.warmup_steps >= total_steps:
            raise InputError(f"{where}.warmup_steps", "warm-up does not fit the budget",
                             got=self.warmup_steps, expected=f"< {total_steps} steps",
                             hint="shorten the warm-up or raise the budget")
        if self.warmup_steps + self.cooldown_steps > total_steps:
            raise InputError(f"{where}.cooldown_steps", "cool-down does not fit the budget after "
                             "the warm-up", got=self.cooldown_steps,
                             expected=f"<= {total_steps - self.warmup_steps} steps",
                             hint="shorten warm-up or cool-down, or raise the budget")


@dataclasses.dataclass(frozen=True)
class FewShot:
    """The few-shot probe: ridge regression on `features`, as big_vision's evaluator does.

    Attributes:
      tasks: names of the modality's few-shot tasks.
      shots: examples a class.
      seeds: number of draws of the shots; seeds 0 ... seeds-1.
      l2: the ridge's strength: a number, or "auto": two probes of every draw are recorded, one
        with big_vision's 2^10 (`accuracy`) and one with the strength that the shots themselves
        choose (`accuracy_l2_auto`; the strength as `l2`), which suits every width.
    """

    tasks: tuple[str, ...]
    shots: tuple[int, ...] = (1, 5, 10, 25)
    seeds: int = 3
    l2: L2 = AUTO

    def __post_init__(self) -> None:
        check_names("few_shot", "tasks", self.tasks)
        check_names("few_shot", "shots", self.shots)
        for shots in self.shots:
            check_range("few_shot", "shots", shots, 1)
        check_range("few_shot", "seeds", self.seeds, 1)
        check_l2("few_shot", self.l2)

    @property
    def strengths(self) -> tuple[L2, ...]:
        """What every draw is probed with."""
        return (PARITY_L2, AUTO) if self.l2 == AUTO else (self.l2,)


@dataclasses.dataclass(frozen=True)
class FineTune:
    """Fine-tuning on labelled tasks.

    The T5 paper's (Raffel et al. 2020, section 3.1.2) is `adafactor` with a constant learning rate
    of 1e-3, dropout 0.1, `mixture` as one likes, `select="best"` and `decode="greedy"`.

    Attributes:
      tasks: names of the modality's fine-tune tasks.
      examples: budget, in examples (with repetition).
      batch_size: examples a step.
      optimizer: its own optimiser and schedule.
      seeds: number of fine-tuning seeds a checkpoint; seeds 0 ... seeds-1.
      dropout_rate: while fine-tuning.
      train: `all` parameters, or the task's new `head` alone: the others stay as they are.
      mixture: `single`: a model for each task; `proportional`: one model for all tasks, which are
        mixed in proportion to their numbers of examples.
      mixture_limit: of proportional mixing: no task counts for more examples than that.
      eval_every: steps between scores on validation; the last step is always scored. 0: only it.
      select: `last`: the checkpoint after the last step is reported; `best`: that with the best
        score on validation, for each task by itself. The test split is scored once, with the
        checkpoint chosen.
      decode: `rank`: the task's candidates are ranked, where it has them; `greedy`: what the model
        predicts is scored.
      options: model options laid over the task's, e.g. `{"compute_dtype": "bfloat16"}`; what
        decides the examples' form stays with the task.
      scratch: also fine-tune the untrained network of the same seed, in the same way: the control
        that tells what pre-training gave (records with origin `untrained`).
    """

    tasks: tuple[str, ...]
    examples: int
    batch_size: int
    optimizer: OptimizerConfig
    seeds: int = 1
    dropout_rate: float = 0.0
    train: Literal["all", "head"] = "all"
    mixture: Literal["single", "proportional"] = "single"
    mixture_limit: int = DEFAULT_MIXTURE_LIMIT
    eval_every: int = 0
    select: Literal["last", "best"] = "last"
    decode: Literal["rank", "greedy"] = "rank"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scratch: bool = False

    def __post_init__(self) -> None:
        check_names("fine_tune", "tasks", self.tasks)
        check_range("fine_tune", "examples", self.examples, 1)
        check_range("fine_tune", "batch_size", self.batch_size, 1)
        check_range("fine_tune", "seeds", self.seeds, 1)
        check_range("fine_tune", "dropout_rate", self.dropout_rate, 0, 0.99)
        check_choice("fine_tune", "train", self.train, ("all", "head"))
        check_choice("fine_tune", "mixture", self.mixture, ("single", "proportional"))
        check_range("fine_tune", "mixture_limit", self.mixture_limit, 1)
        check_range("fine_tune", "eval_every", self.eval_every, 0)
        check_choice("fine_tune", "select", self.select, ("last", "best"))
        check_choice("fine_tune", "decode", self.decode, ("rank", "greedy"))
        if self.select == "best" and not self.eval_every:
            raise InputError("fine_tune", "eval_every is 0, but select is best: there is one "
                             "checkpoint to choose from", hint="set eval_every, or select='last'")
        if "dropout_rate" in self.options:
            raise InputError("fine_tune", "options has dropout_rate",
                             hint="dropout_rate is a field of fine_tune itself")

    @property
    def steps(self) -> int:
        """Updates that the budget pays for: rounded down, at least 1."""
        return max(1, self.examples // self.batch_size)


@dataclasses.dataclass(frozen=True)
class Tune:
    """How the learning rate of pre-training is chosen: for every shape in the same way.

    Each rate is tried with each seed: pre-training alone, evaluated on upstream's validation split.
    A shape's trials take the rate with the lowest mean loss (`tuning.choose`).

    Attributes:
      learning_rates: the grid, increasing; instead of `optimizer.learning_rate`.
      seeds: of the tries; none of them may be a seed of the study, which reports those.
      fraction: of the protocol's budget that a try gets; its schedule ends there, with the warm-up
        and cool-down of `optimizer`.
      extend: how often a shape's grid may grow by a rate, in its own ratio, while the best one is
        at its edge. One that is there at last is recorded.
    """

    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    fraction: float = 1.0
    extend: int = 0

    def __post_init__(self) -> None:
        rates = self.learning_rates
        for rate in rates:
            check_range("tune", "a learning rate", rate, 0, low_open=True)
        if len(rates) < 2 or any(a >= b for a, b in itertools.pairwise(rates)):
            raise InputError("tune", "learning_rates cannot be used",
                             got=", ".join(f"{rate:g}" for rate in rates) or "none",
                             expected="two or more, increasing")
        check_names("tune", "seeds", self.seeds)
        for seed in self.seeds:
            check_range("tune", "a seed", seed, 0, MAX_SEED)
        check_range("tune", "fraction", self.fraction, 0, 1, low_open=True)
        check_range("tune", "extend", self.extend, 0, MAX_EXTEND)


class Pretraining(NamedTuple):
    """How a model is pre-trained: examples a step, how long, and with what."""

    batch_size: int
    budget: Budget
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything besides data, model and seed that determines a trial's result.

    Attributes:
      batch_size: examples a step of pre-training; None, as the two that follow, where nothing is
        pre-trained because the study starts from checkpoints.
      budget: how long to pre-train.
      optimizer: optimiser and schedule of pre-training.
      few_shot: the probe stage, or None.
      fine_tune: the fine-tuning stage, or None.
      tune: how each shape's learning rate of pre-training is chosen; None: it is
        `optimizer.learning_rate`, which means nothing otherwise.
    """

    batch_size: int | None = None
    budget: Budget | None = None
    optimizer: OptimizerConfig | None = None
    few_shot: FewShot | None = None
    fine_tune: FineTune | None = None
    tune: Tune | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_range("protocol", "batch_size", self.batch_size, 1)

    @property
    def pretraining(self) -> Pretraining:
        """What every shape needs.

        Raises:
          InputError: some of it is missing.
        """
        if self.batch_size is None or self.budget is None or self.optimizer is None:
            missing = [name for name in Pretraining._fields if getattr(self, name) is None]
            raise InputError("protocol", f"protocol lacks {', '.join(missing)}",
                             hint="shapes are pre-trained; checkpoints are not")
        return Pretraining(self.batch_size, self.budget, self.optimizer)


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How devices share the work of one model; see docs/sharding.md.

    None of it is in a trial's key but `micro_batches`, and that only where the result depends on
    it: with dropout, or an architecture that has an `aux_loss`.

    Attributes:
      mesh: e.g. `fsdp=4,tensor=2`: devices along the axes; None for all that are there, along
        `data`, or along `fsdp` where the rules have it.
      rules: which axes of which arrays are split: `data`, `fsdp` or `fsdp+tensor`.
      micro_batches: pieces of a training batch that are worked on one after the other, in
        pre-training and fine-tuning alike.
    """

    mesh: str | None = None
    rules: str = "data"
    micro_batches: int = 1

    def __post_init__(self) -> None:
        check_range("sharding", "micro_batches", self.micro_batches, 1)
        find_rules(self.rules, MeshShape())
        if self.mesh is not None:
            find_rules(self.rules, MeshShape(**read_axes(self.mesh)))


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run is watched; none of it changes a result, so none of it is in a trial's key.

    Attributes:
      log_every: steps between points of the curve.
      eval_every: steps between validation passes; the last step is always evaluated. 0: only it.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      few_shot_every: steps between few-shot probes while pre-training, on the tasks of the stage
        `few_shot`, for the curve (`few_shot/TASK/accuracy@SHOTS`, mean over seeds). 0: none.
      tensorboard: write `WORKDIR/tensorboard/` too; needs the extra `deepnarrow[tensorboard]`.
      profile: trace ten steps of each pre-training to `runs/KEY/profile/`, for Perfetto.
      hang_after_s: seconds without a step or a batch after which the process writes the stacks of
        its threads and ends (exit code 70); run again, it goes on from its checkpoint. 0: never.
      compile_within_s: the same while a program is compiled. 0: never.
    """

    log_every: int = 20
    eval_every: int = 0
    checkpoint_every: int = 200
    few_shot_every: int = 0
    tensorboard: bool = False
    profile: bool = False
    hang_after_s: float = 3600.0
    compile_within_s: float = 14400.0

    def __post_init__(self) -> None:
        check_range("run", "log_every", self.log_every, 1)
        check_range("run", "eval_every", self.eval_every, 0)
        check_range("run", "checkpoint_every", self.checkpoint_every, 1)
        check_range("run", "few_shot_every", self.few_shot_every, 0)
        if self.tensorboard and importlib.util.find_spec("tensorflow") is None:
            raise InputError("run", "tensorboard needs TensorFlow, which is not installed",
                             hint="pip install 'deepnarrow[tensorboard]'")
        check_range("run", "hang_after_s", self.hang_after_s, 0)
        check_range("run", "compile_within_s", self.compile_within_s, 0)


@dataclasses.dataclass(frozen=True)
class Launch:
    """How launchers run units in processes of their own; none of it is in a trial's key.

    Attributes:
      workers: units at once with `--launcher local`, as far as memory allows. With more than one,
        step times disturb each other.
      max_preemptions: how often a unit is begun again that was preempted or lost its machine.
      max_failures: how often one is begun again that crashed or hung, in one call.
      cpus: of a unit, for Ray and SLURM.
      gpus: of a unit, for Ray and SLURM.
      memory_gb: of a unit; 0: estimated from its shape.
      minutes: longest time of a SLURM job; one that needs longer is preempted and goes on.
      partition: SLURM's; empty for the cluster's default.
    """

    workers: int = 1
    max_preemptions: int = 10_000
    max_failures: int = 2
    cpus: int = 1
    gpus: int = 0
    memory_gb: float = 0.0
    minutes: int = 240
    partition: str = ""

    def __post_init__(self) -> None:
        for name, low in (("workers", 1), ("max_preemptions", 0), ("max_failures", 0), ("cpus", 1),
                          ("gpus", 0), ("memory_gb", 0), ("minutes", 1)):
            check_range("launch", name, getattr(self, name), low)
