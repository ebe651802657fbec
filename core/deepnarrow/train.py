"""Training: one pure `train_step`, and the loop that feeds it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr, tree_map_with_path
from jaxtyping import Array, Bool, Float, Int

from deepnarrow.checkpoint import Checkpointer
from deepnarrow.data import TrainStream, check_seed, eval_batches
from deepnarrow.errors import InputError, Preempted
from deepnarrow.meter import Meter
from deepnarrow.modality import Batch, Key, LossOutput, Model, Params, Path, Source
from deepnarrow.optim import axes_by_path, make_optimizer
from deepnarrow.protocol import OptimizerConfig, RunOptions
from deepnarrow.records import CurvePoint, Stage, Status
from deepnarrow.runlog import RunLog, RunProgress

Scalar = Float[Array, ""]
Metrics = dict[str, tuple[Scalar, Scalar]]  # name -> (sum, weight)

_INIT, _STEPS = 0, 1  # the two uses of a seed's key


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: int32 scalar, updates applied.
      params: the model's parameters.
      opt_state: the optimiser's state; nothing of parameters that are frozen.
      finite: bool scalar; False once a loss, gradient or update was not finite. From then on
        nothing changes any more, so what is saved or evaluated is always finite.
      ema: the parameters' moving average; None where the optimiser's `ema_decay` is 0.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    finite: Bool[Array, ""]
    ema: Params | None

    @property
    def eval_params(self) -> Params:
        """The parameters that are evaluated and transferred: the average, where there is one."""
        return self.params if self.ema is None else self.ema


def train_step(
    state: TrainState, batch: Batch, seed: Int[Array, ""], *, model: Model,
    optimizer: optax.GradientTransformation, trained: Any, ema_decay: float,
) -> tuple[TrainState, Metrics]:
    """Makes one update: pure, so it can be jitted, vmapped over seeds and sharded.

    The objective is `loss_sum / weight_sum + aux_loss`. Randomness depends on (seed, step) alone.
    `trained` is a tree of bools like the params: gradients are taken of those alone, and the others
    stay as they are. The metrics are the model's and `loss` (without `aux_loss`), `grad_norm`
    (before clipping) and `finite`.
    """
    key = jax.random.fold_in(_key(seed, _STEPS), state.step)

    def objective(params: Params) -> tuple[Scalar, LossOutput]:
        return _objective(merge(params, state.params), batch, key, model)

    params = select(state.params, trained)
    (loss, out), grads = jax.value_and_grad(objective, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = merge(optax.apply_updates(params, updates), state.params)
    grad_norm = optax.tree.norm(grads)
    total = loss + grad_norm + optax.tree.norm(updates)  # not finite if one of them is not
    finite = state.finite & jnp.isfinite(total)
    ema = _average(state, params, ema_decay)
    step, params, opt_state, ema = jax.tree.map(
        functools.partial(jnp.where, finite), (state.step + 1, params, opt_state, ema),
        (state.step, state.params, state.opt_state, state.ema))
    one = jnp.float32(1.0)
    metrics = _metrics(out) | {"grad_norm": (grad_norm, one),
                               "finite": (finite.astype(jnp.float32), one)}
    return TrainState(step, params, opt_state, finite, ema), metrics


def select(params: Params, wanted: Any) -> Params:
    """Returns `params` with None, which is no leaf, where the tree of bools `wanted` is False."""
    return jax.tree.map(lambda x, keep: x if keep else None, params, wanted)


def merge(some: Params, params: Params) -> Params:
    """Returns `some`, as `select` made it, filled up from `params`."""
    return jax.tree.map(lambda new, old: old if new is None else new, some, params,
                        is_leaf=lambda x: x is None)


def _average(state: TrainState, params: Params, decay: float) -> Params | None:
    """The mean of the parameters after each update so far, weighted by decay^age.

    The weights add up to 1 at every step, so the initial parameters have none:
    `ema += (1 - decay) / (1 - decay^t) * (params - ema)` at update t = 1, 2, ...
    """
    if state.ema is None:
        return None
    age = (state.step + 1).astype(jnp.float32)
    rate = math.expm1(math.log(decay)) / jnp.expm1(age * math.log(decay))
    return jax.tree.map(lambda mean, new: mean + rate * (new - mean), state.ema, params)


def _key(seed: int | Int[Array, ""], use: int) -> Key:
    return jax.random.fold_in(jax.random.key(seed), use)


def _objective(params: Params, batch: Batch, key: Key, model: Model) -> tuple[Scalar, LossOutput]:
    out = model.loss(params, batch, key, train=True)
    # A batch may hold nothing that counts (all padding): its loss is 0, not 0 / 0.
    weight = jnp.where(out.weight_sum > 0, out.weight_sum, 1.0)
    return out.loss_sum / weight + out.aux_loss, out


def _metrics(out: LossOutput) -> Metrics:
    return {**out.metrics, "loss": (out.loss_sum, out.weight_sum)}


# --- the compiled program ------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Program:
    """A model with its optimiser, compiled: every function is jitted.

    Seeds are arguments, so trials that differ by their seed share one program.

    Attributes:
      model: what is trained.
      total_steps: updates in all; the schedule ends there.
      init: `init(seed) -> TrainState` with fresh parameters.
      start: `start(params) -> TrainState` from given parameters, which are copied.
      step: `step(state, batch, seed) -> (state, metrics)`; the state passed in is consumed.
      eval_step: `eval_step(params, batch) -> metrics`, each name -> (sum, weight), `loss` included.
      features: the model's, [batch, d].
      predict: the model's, [batch, ...].
      score: the model's, [batch], or None.
    """

    model: Model
    total_steps: int
    init: Callable[[Any], TrainState]
    start: Callable[[Params], TrainState]
    step: Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]
    eval_step: Callable[[Params, Batch], Metrics]
    features: Callable[[Params, Batch], jax.Array]
    predict: Callable[[Params, Batch], jax.Array]
    score: Callable[[Params, Batch], jax.Array] | None


def make_program(
    model: Model, optimizer: OptimizerConfig, total_steps: int,
    trained_paths: Collection[Path] | None = None,
) -> Program:
    """Returns the compiled program of `model`; compiling itself happens at the first calls.

    Args:
      model: what is trained.
      optimizer: by what.
      total_steps: updates in all.
      trained_paths: the parameters that are trained, None for all; the others are frozen.

    Raises:
      InputError: the optimiser's schedule does not fit `total_steps`, or a path of `trained_paths`
        is no parameter's.
    """
    transformation = make_optimizer(optimizer, total_steps, model.param_axes)
    trained = _trained(model.param_axes, trained_paths)

    def start(params: Params) -> TrainState:
        # Copied, because `step` consumes its state and the caller keeps the params.
        params = jax.tree.map(jnp.copy, params)
        ema = jax.tree.map(jnp.copy, params) if optimizer.ema_decay else None
        opt_state = transformation.init(select(params, trained))
        return TrainState(jnp.int32(0), params, opt_state, jnp.bool_(True), ema)

    def eval_step(params: Params, batch: Batch) -> Metrics:
        return _metrics(model.loss(params, batch, None, train=False))

    step = functools.partial(train_step, model=model, optimizer=transformation, trained=trained,
                             ema_decay=optimizer.ema_decay)
    return Program(
        model=model, total_steps=total_steps,
        init=jax.jit(lambda seed: start(model.init(_key(seed, _INIT)))),
        start=jax.jit(start),
        step=jax.jit(step, donate_argnums=0),
        eval_step=jax.jit(eval_step),
        features=jax.jit(model.features),
        predict=jax.jit(model.predict),
        score=jax.jit(model.score) if model.score is not None else None,
    )


def _trained(param_axes: Any, paths: Collection[Path] | None) -> Any:
    """A tree like the params: which of them are trained."""
    known = axes_by_path(param_axes)
    wanted = known.keys() if paths is None else {"/".join(path) for path in paths}
    missing = sorted(wanted - known.keys())
    if missing:
        raise InputError("parameters to train", "the model has no such parameter", got=missing[0],
                         expected=f"one of {', '.join(known)}")
    return tree_map_with_path(
        lambda path, _: keystr(path, simple=True, separator="/") in wanted, param_axes,
        is_leaf=lambda x: isinstance(x, tuple))


def step_bytes(program: Program, batch: Batch) -> float | None:
    """Returns the memory that one compiled step needs at its peak, as XLA accounts for it.

    Arguments (state and batch), outputs not aliased to them, and temporaries. None where the
    platform does not say.
    """
    state = jax.eval_shape(program.init, np.int32(0))
    # Lowered from the very function that trains, so that its first call finds it compiled.
    step: Any = program.step
    memory = step.lower(state, batch, np.int32(0)).compile().memory_analysis()
    if memory is None:
        return None
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return float(memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept)


def metric_names(program: Program, batch: Batch) -> set[str]:
    """Returns the names of what `eval_step` gives for `batch`: traced, not computed."""
    params = jax.eval_shape(program.init, np.int32(0)).params
    return set(jax.eval_shape(program.eval_step, params, batch))


# --- evaluation ----------------------------------------------------------------------------------
def evaluate(
    program: Program, params: Params, source: Source, batch_size: int,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Returns each metric's mean over the whole of `source`, `loss` included.

    Raises:
      Preempted: `should_stop`, asked before each batch, said True.
    """
    meter = Meter()
    for batch in eval_batches(source, batch_size):
        if should_stop is not None and should_stop():
            raise Preempted("asked to stop while evaluating")
        meter.add(program.eval_step(params, batch))
        meter.collect(leave=1)  # the device works on this batch while the host loads the next
    return meter.means()


# --- the loop ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What training gave.

    Attributes:
      state: the last state; its params are finite.
      curve: points of this run, from before any interruption too.
      step_time_s: median seconds a step, completion to completion, without the steps after which
        something was logged, evaluated or saved; None below 20 timed steps.
      status: `done`, `diverged` or `preempted`.
      steps: updates applied in all.
      seconds: wall time of the loop, from before any interruption too.
    """

    state: TrainState
    curve: tuple[CurvePoint, ...]
    step_time_s: float | None
    status: Status
    steps: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Watch:
    """What is measured of the parameters every so many steps; its points are `NAME/...`."""

    name: str
    every: int
    last: bool
    measure: Callable[[int, Params], Mapping[str, float]]

    def due(self, step: int, total_steps: int) -> bool:
        if step == total_steps and self.last:
            return True
        return self.every > 0 and step > 0 and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The parts of one call of `train`."""

    program: Program
    seed: int
    batch_size: int
    run: RunOptions
    watches: tuple[_Watch, ...]
    checkpointer: Checkpointer | None
    on_log: Callable[[int, Mapping[str, float]], None] | None
    should_stop: Callable[[], bool]
    log: RunLog
    progress: RunProgress

    def steps(self, state: TrainState, stream: TrainStream) -> tuple[TrainState, Status]:
        """Steps until the end, a divergence, or a request to stop."""
        total, previous = self.program.total_steps, None
        seed = np.int32(self.seed)
        try:
            # Makes up for what a request to stop cut short: the state of that step was saved.
            self.evaluate(state, stream.step)
            while stream.step < total:
                if self.should_stop():
                    raise Preempted("asked to stop while training")
                state, metrics = self.program.step(state, next(stream), seed)
                step = stream.step
                # Waiting for the step before keeps the device busy and the host one ahead.
                if previous is not None:
                    finite = bool(previous["finite"][0])
                    self.log.timer.completed()
                    if not finite:
                        break
                previous = metrics
                self.log.meter.add(metrics)
                self.progress.update(step)
                if self.due(step) and self.observe(state, step):
                    break
        except Preempted:
            self.save(state, stream.step)
            return state, self.diverged(state) or "preempted"
        return state, self.diverged(state) or "done"

    def due(self, step: int) -> bool:
        every = (self.run.log_every, self.run.checkpoint_every, *(w.every for w in self.watches))
        return step == self.program.total_steps or any(n and step % n == 0 for n in every)

    def observe(self, state: TrainState, step: int) -> bool:
        """Logs, evaluates and saves what is due after `step`; returns True if it diverged."""
        if not bool(state.finite):
            return True
        last = step == self.program.total_steps
        if last or step % self.run.log_every == 0:
            self.write_log(step)
        self.evaluate(state, step)
        if last or step % self.run.checkpoint_every == 0:
            self.save(state, step)
        return False

    def write_log(self, step: int) -> None:
        values = self.log.meter.means()
        del values["finite"]
        self.log.meter = Meter()
        self.log.add_points(step, "train", values)
        self.progress.loss = values["loss"]
        self.progress.update(step, now=True)
        if self.on_log is not None:
            self.on_log(step, values)
        self.log.timer.pause()

    def evaluate(self, state: TrainState, step: int) -> None:
        """Measures what is due after `step` and has no point in the curve yet."""
        known = {p.name.partition("/")[0] for p in self.log.curve if p.step == step}
        for watch in self.watches:
            if watch.due(step, self.program.total_steps) and watch.name not in known:
                self.log.add_points(step, watch.name, watch.measure(step, state.eval_params))
                self.log.timer.pause()

    def save(self, state: TrainState, step: int) -> None:
        if self.checkpointer is None or not bool(state.finite):
            return
        if self.checkpointer.latest_step() != step:
            self.checkpointer.save(step, state, self.log.extra())
            self.log.timer.pause()

    def diverged(self, state: TrainState) -> Status | None:
        """Ends the curve of a run that diverged with an empty point at the step that did it."""
        if bool(state.finite):
            return None
        self.log.add_points(int(state.step) + 1, "train", {"loss": float("nan")})
        return "diverged"


def train(
    program: Program, source: Source, *, seed: int, batch_size: int, run: RunOptions,
    stage: Stage = "upstream", validation: Source | None = None,
    measure: Callable[[int, Params], Mapping[str, float]] | None = None,
    few_shot: Callable[[int, Params], Mapping[str, float]] | None = None,
    initial_params: Params | None = None, checkpointer: Checkpointer | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    on_log: Callable[[int, Mapping[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Trains for `program.total_steps` updates, going on from the newest checkpoint, if any.

    On an unchanged device, an interrupted run ends with the same bits as an unbroken one: state,
    data order, random numbers and curve.

    Args:
      program: what to train.
      source: examples to train on.
      seed: of initialisation, data order and dropout.
      batch_size: examples a step; `validation` is evaluated in batches of the same size.
      run: how often to log, evaluate and save.
      stage: written on the curve's points.
      validation: evaluated every `run.eval_every` steps and after the last.
      measure: called as `measure(step, params)` at the same steps, for values that go to the curve
        beside those of `validation`. The params are the program's: copy what is to be kept.
      few_shot: called in the same way every `run.few_shot_every` steps, for points `few_shot/...`.
      initial_params: where training starts; fresh ones if None. They are copied.
      checkpointer: where to save and to look for a checkpoint; None to do neither.
      progress: called as `progress(step, total_steps, text)`.
      on_log: called as `on_log(step, metrics)` with the means since the last call.
      should_stop: asked before each step and each batch of `validation`; if it says True, the
        state is saved and training ends as `preempted`.

    Returns:
      The result. A loss, gradient or update that is not finite is never applied and ends training
      as `diverged`; nothing is saved after it.

    Raises:
      InputError: the seed or batch size is out of range, the source is empty, or the checkpoint
        belongs to another model or ends beyond `total_steps`.
    """
    check_seed(seed)
    state, extra = _begin(program, seed, initial_params, checkpointer)
    start, log = int(state.step), RunLog.make(stage, extra)
    should_stop = should_stop or (lambda: False)

    def validate(step: int, params: Params) -> dict[str, float]:
        values = {} if validation is None else evaluate(
            program, params, validation, batch_size, should_stop)
        return values | (dict(measure(step, params)) if measure is not None else {})

    watches = []
    if validation is not None or measure is not None:
        watches.append(_Watch("validation", run.eval_every, True, validate))
    if few_shot is not None:
        watches.append(_Watch("few_shot", run.few_shot_every, False, few_shot))
    loop = _Loop(program, seed, batch_size, run, tuple(watches), checkpointer, on_log,
                 should_stop, log,
                 RunProgress(progress, program.total_steps, batch_size, start))
    loop.progress.update(start, now=True)
    with TrainStream(source, seed=seed, batch_size=batch_size, start_step=start) as stream:
        state, status = loop.steps(state, stream)
    if checkpointer is not None:
        checkpointer.wait()
    return TrainResult(state, tuple(log.curve), log.timer.median(), status, int(state.step),
                       log.seconds())


def _begin(
    program: Program, seed: int, initial_params: Params | None, checkpointer: Checkpointer | None
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to go on from, and what was saved beside it."""
    saved = None if checkpointer is None else checkpointer.newest_whole()
    if checkpointer is not None and saved is not None:
        if saved > program.total_steps:
            raise InputError(f"checkpoint directory {checkpointer.directory}",
                             "holds a longer run", got=f"step {saved}",
                             expected=f"<= {program.total_steps} steps",
                             hint="the budget changed; train in a fresh directory")
        return checkpointer.restore(jax.eval_shape(program.init, np.int32(seed)))
    if initial_params is not None:
        return program.start(initial_params), {}
    return program.init(np.int32(seed)), {}
