"""One pure `train_step`, and the compiled program of a model: the same for one device and many."""

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

from deepnarrow.errors import InputError
from deepnarrow.mesh import Whole
from deepnarrow.modality import Batch, Key, LossOutput, Model, Params, Path
from deepnarrow.optim import axes_by_path, check_schedule, make_optimizer, optimizer_at
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.sharding import (
    Layout,
    constrain,
    local_rows,
    place,
    place_state,
    put_batch,
    traced_in,
)

Scalar = Float[Array, ""]
Metrics = dict[str, tuple[Scalar, Scalar]]  # name -> (sum, weight)
MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]  # of peak rate and total steps

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


class StepArgs(NamedTuple):
    """The numbers of a trial that its compiled step takes as arguments.

    Trials that differ in nothing else share one program; `jax.vmap` over them packs trials.

    Attributes:
      seed: int32 scalar, of dropout and the like.
      learning_rate: float32 scalar, the schedule's peak.
      total_steps: int32 scalar, updates in all: the schedule ends there.
    """

    seed: Int[Array, ""] | np.int32
    learning_rate: Float[Array, ""] | np.float32
    total_steps: Int[Array, ""] | np.int32


def train_step(
    state: TrainState, batch: Batch, args: StepArgs, *, model: Model,
    optimizer: MakeOptimizer, trained: Any, ema_decay: float,
    micro_batches: int = 1, settle: Callable[[Params], Params] = lambda grads: grads,
) -> tuple[TrainState, Metrics]:
    """Makes one update: pure, so it can be jitted, vmapped over seeds and sharded.

    The objective is `loss_sum / weight_sum + aux_loss`. Randomness depends on (seed, step) alone.
    `trained` is a tree of bools like the params: gradients are taken of those alone, and the others
    stay as they are. `settle` has the gradients lie where their parameters do. The metrics are the
    model's and `loss` (without `aux_loss`), `grad_norm` (before clipping) and `finite`.

    With `micro_batches` the batch is worked on piece by piece, so that the activations of one piece
    at a time are held: see `_piecewise`.
    """
    key = jax.random.fold_in(_key(args.seed, _STEPS), state.step)
    params = select(state.params, trained)

    def output(params: Params, batch: Batch, key: Key) -> LossOutput:
        return model.loss(merge(params, state.params), batch, key, train=True)

    if micro_batches == 1:
        (loss, out), grads = jax.value_and_grad(
            lambda params: _objective(output(params, batch, key)), has_aux=True)(params)
        grads = settle(grads)
    else:
        (loss, out), grads = _piecewise(output, params, batch, key, micro_batches, settle)
    transformation = optimizer(args.learning_rate, args.total_steps)
    updates, opt_state = transformation.update(grads, state.opt_state, params)
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


def _key(seed: int | np.int32 | Int[Array, ""], use: int) -> Key:
    return jax.random.fold_in(jax.random.key(seed), use)


def _objective(out: LossOutput) -> tuple[Scalar, LossOutput]:
    # A batch may hold nothing that counts (all padding): its loss is 0, not 0 / 0.
    weight = jnp.where(out.weight_sum > 0, out.weight_sum, 1.0)
    return out.loss_sum / weight + out.aux_loss, out


def _piecewise(
    output: Callable[[Params, Batch, Key], LossOutput], params: Params, batch: Batch, key: Key,
    micro_batches: int, settle: Callable[[Params], Params],
) -> tuple[tuple[Scalar, LossOutput], Params]:
    """Value and gradients of the objective, a micro-batch at a time.

    Sums of losses, weights and gradients are added up and divided once, so the result is that of
    the whole batch. Two things depend on the pieces: dropout, because every piece has a key of its
    own, and `aux_loss`, whose mean over the pieces is weighted by their `weight_sum`.
    """

    def objective(params: Params, piece: Batch, key: Key) -> tuple[Scalar, LossOutput]:
        out = output(params, piece, key)
        aux_sum = jax.lax.stop_gradient(out.weight_sum) * out.aux_loss
        out = jax.tree.map(jnp.float32, out._replace(aux_loss=aux_sum))
        return out.loss_sum + aux_sum, out

    def add(total: Any, item: tuple[Batch, Int[Array, ""]]) -> tuple[Any, None]:
        piece, index = item
        (_, out), grads = jax.value_and_grad(objective, has_aux=True)(
            params, piece, jax.random.fold_in(key, index))
        grads, out = jax.tree.map(jnp.add, total, (grads, out))
        return (settle(grads), out), None

    pieces = jax.tree.map(functools.partial(_deal, micro_batches=micro_batches), batch)
    first = jax.tree.map(lambda x: x[0], pieces)
    out = jax.eval_shape(objective, params, first, key)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, out))
    (grads, out), _ = jax.lax.scan(
        add, (settle(zeros[0]), zeros[1]), (pieces, jnp.arange(micro_batches)))
    weight = jnp.where(out.weight_sum > 0, out.weight_sum, 1.0)
    out = out._replace(aux_loss=out.aux_loss / weight)
    grads = jax.tree.map(lambda grad: grad / weight, grads)
    return (out.loss_sum / weight + out.aux_loss, out), grads


def _deal(x: jax.Array, micro_batches: int) -> jax.Array:
    """[batch, ...] -> [micro_batches, batch / micro_batches, ...]: piece i has rows i, i + n, ...

    Dealt like cards, each piece has rows of every device, whatever their number.
    """
    x = x.reshape(-1, micro_batches, *x.shape[1:])
    return constrain(jnp.moveaxis(x, 1, 0), None, "batch", *[None] * (x.ndim - 2))


def _metrics(out: LossOutput) -> Metrics:
    return {**out.metrics, "loss": (out.loss_sum, out.weight_sum)}


# --- the compiled program ------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Program:
    """A model with its optimiser, compiled: every function is jitted.

    Trials that differ by seed, learning rate or length alone share what is compiled. With a layout,
    parameters and state lie where it says; batches are global arrays, which `put` makes of what
    this process loaded; everything but states is given back whole to every process.

    Attributes:
      model: what is trained.
      learning_rate: the schedule's peak.
      total_steps: updates in all; the schedule ends there.
      init: `init(seed) -> TrainState` with fresh parameters.
      start: `start(params) -> TrainState` from given parameters, which are copied.
      step: `step(state, batch, args(seed)) -> (state, metrics)`; the state passed in is consumed.
      eval_step: `eval_step(params, batch) -> metrics`, each name -> (sum, weight), `loss` included.
      features: the model's, [batch, d].
      predict: the model's, [batch, ...].
      score: the model's, [batch, candidates], or None.
      layout: how devices share the work; None for one device.
      shardings: a `TrainState` of shardings; None where there is no layout.
      left_whole: what the layout's rules would have split but could not.
      micro_batches: pieces that a training batch is worked on in.
    """

    model: Model
    learning_rate: float
    total_steps: int
    init: Callable[[Any], TrainState]
    start: Callable[[Params], TrainState]
    step: Callable[[TrainState, Batch, StepArgs], tuple[TrainState, Metrics]]
    eval_step: Callable[[Params, Batch], Metrics]
    features: Callable[[Params, Batch], jax.Array]
    predict: Callable[[Params, Batch], jax.Array]
    score: Callable[[Params, Batch, Batch], jax.Array] | None
    layout: Layout | None = None
    shardings: TrainState | None = None
    left_whole: tuple[Whole, ...] = ()
    micro_batches: int = 1

    def args(self, seed: int) -> StepArgs:
        """Returns what `step` takes beside state and batch."""
        return StepArgs(
            np.int32(seed), np.float32(self.learning_rate), np.int32(self.total_steps))

    def at(self, optimizer: OptimizerConfig, total_steps: int) -> Program:
        """Returns the same compiled functions for another peak and length of the schedule.

        Args:
          optimizer: the one the program was made with, up to its learning rate.
          total_steps: updates in all.

        Raises:
          InputError: the schedule does not fit `total_steps`.
        """
        check_schedule(optimizer, total_steps)
        return dataclasses.replace(
            self, learning_rate=optimizer.learning_rate, total_steps=total_steps)

    def rows(self, batch_size: int) -> np.ndarray | None:
        """Returns the rows of a global batch that this process loads; None for all."""
        return None if self.layout is None else local_rows(self.layout, batch_size)

    def put(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Returns what this process loaded of a batch as the program takes it."""
        return batch if self.layout is None else put_batch(self.layout, batch)

    def on_host(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns one of the program's functions for batches as this process loads them."""
        return function if self.layout is None else (
            lambda params, *batches: function(params, *map(self.put, batches)))

    def put_params(self, params: Params) -> Params:
        """Returns parameters, which every process has whole, where the program has them."""
        return params if self.shardings is None else jax.device_put(params, self.shardings.params)


def make_program(
    model: Model, optimizer: OptimizerConfig, total_steps: int,
    trained_paths: Collection[Path] | None = None, layout: Layout | None = None,
    micro_batches: int = 1,
) -> Program:
    """Returns the compiled program of `model`; compiling itself happens at the first calls.

    `program.step.lower(abstract_state(program), abstract_batch(program, batch), program.args(0))`
    lowers the step without any array, also for devices that are not there.

    Args:
      model: what is trained.
      optimizer: by what.
      total_steps: updates in all.
      trained_paths: the parameters that are trained, None for all; the others are frozen.
      layout: how devices share the work; None for one device.
      micro_batches: pieces that a training batch is worked on in, one after the other.

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

    def init(seed: Any) -> TrainState:
        return start(model.init(_key(seed, _INIT)))

    def eval_step(params: Params, batch: Batch) -> Metrics:
        return _metrics(model.loss(params, batch, None, train=False))

    shardings, left_whole = (None, []) if layout is None else _place(layout, model, init)
    step = functools.partial(
        train_step, model=model, trained=trained,
        optimizer=lambda peak, steps: optimizer_at(optimizer, peak, steps, model.param_axes),
        ema_decay=optimizer.ema_decay, micro_batches=micro_batches,
        settle=_settler(None if shardings is None else select(shardings.params, trained)))
    jitted = _Jit(layout, shardings)
    return Program(
        model=model, learning_rate=optimizer.learning_rate, total_steps=total_steps,
        init=jitted(init, "-", "state"),
        start=jitted(start, "params", "state"),
        step=jitted(step, "state batch -", "state -", donate_argnums=0),
        eval_step=jitted(eval_step, "params batch", "-"),
        features=jitted(model.features, "params batch", "-"),
        predict=jitted(model.predict, "params batch", "-"),
        score=jitted(model.score, "params batch batch", "-") if model.score is not None else None,
        layout=layout, shardings=shardings, left_whole=tuple(left_whole),
        micro_batches=micro_batches,
    )


@dataclasses.dataclass(frozen=True)
class _Jit:
    """Compiles a function whose arguments and results lie as their kinds say; `-`: whole."""

    layout: Layout | None
    shardings: TrainState | None

    def __call__(
        self, function: Callable[..., Any], inputs: str, outputs: str, **settings: Any
    ) -> Callable[..., Any]:
        if self.layout is None or self.shardings is None:
            return jax.jit(function, **settings)
        kinds = {"state": self.shardings, "params": self.shardings.params,
                 "batch": self.layout.batch, "-": self.layout.whole}
        into, out = ([kinds[kind] for kind in text.split()] for text in (inputs, outputs))
        return jax.jit(traced_in(self.layout, function), in_shardings=tuple(into),
                       out_shardings=out[0] if len(out) == 1 else tuple(out), **settings)


def _place(
    layout: Layout, model: Model, init: Callable[[Any], TrainState]
) -> tuple[TrainState, list[Whole]]:
    """Returns where every array of a state lies, and what stays whole."""
    state = jax.eval_shape(init, np.int32(0))
    params, left = place(model.param_axes, state.params, layout)
    opt_state = place_state(state.opt_state, state.params, model.param_axes, layout)
    ema = None if state.ema is None else params
    whole: Any = layout.whole  # a tree of the state's form whose leaves are no arrays
    return TrainState(whole, params, opt_state, whole, ema), left


def _settler(shardings: Any) -> Callable[[Params], Params]:
    """Has gradients lie as their parameters do."""
    if shardings is None:
        return lambda grads: grads
    return lambda grads: jax.lax.with_sharding_constraint(grads, shardings)


def abstract_state(program: Program) -> TrainState:
    """Returns a state of abstract arrays that know where they lie."""
    state = jax.eval_shape(program.init, np.int32(0))
    if program.shardings is None:
        return state
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state, program.shardings)


def abstract_batch(program: Program, batch: Mapping[str, Any]) -> Batch:
    """Returns a global batch of abstract arrays, from arrays (or abstract ones) of its shapes."""
    sharding = None if program.layout is None else program.layout.batch
    return {name: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype),
                                       sharding=sharding) for name, x in batch.items()}


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

    Arguments (state and batch), outputs not aliased to them, and temporaries, of one device. None
    where the platform does not say.

    Args:
      program: whose step.
      batch: a global batch, of which only shapes count.
    """
    # Lowered from the very function that trains, so that its first call finds it compiled.
    step: Any = program.step
    arguments = abstract_state(program), abstract_batch(program, batch), program.args(0)
    memory = step.lower(*arguments).compile().memory_analysis()
    if memory is None:
        return None
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return float(memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept)


def metric_names(program: Program, batch: Batch) -> set[str]:
    """Returns the names of what `eval_step` gives for `batch`: traced, not computed."""
    params = jax.eval_shape(program.init, np.int32(0)).params
    return set(jax.eval_shape(program.eval_step, params, batch))


