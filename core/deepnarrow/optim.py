"""Optimisers and schedules, acting per layer and per matrix.

The layers of a stack lie on one array with a leading `layers` axis, and an attention kernel has one
axis for heads and one for their width. Optax works per array, so plain Optax on such arrays couples
the layers: parameter scale, update clipping and the factored statistics would be taken over all of
them, and depth, the very thing this project studies, would change the optimiser. Here every update
acts on the matrices that the unscanned model would have, as Mesh TensorFlow and T5X have them: one
layer at a time (`jax.vmap` over the layers), `heads` and `kv` joined to one axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, Float, Int

from deepnarrow.errors import InputError
from deepnarrow.modality import Axes, Params, is_kernel
from deepnarrow.protocol import OptimizerConfig

UNSTACKED = "unstacked"
Rate = float | Float[Array, ""]
Count = int | Int[Array, ""]
Matrices = dict[str, jax.Array]  # path -> [layers, rows, columns], or [rows, columns] if unstacked


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    With `peak` the learning rate, w `warmup_steps`, T `total_steps` and s the step:

        inverse_sqrt  peak * sqrt(w) / sqrt(max(s, w)), without linear warm-up
        rsqrt         peak / sqrt(1 + (s - w) / timescale)
        cosine        peak * (1 + cos(pi * (s - w) / (T - w))) / 2
        linear        peak * (1 - (s - w) / (T - w))
        constant      peak

    All but the first rise linearly as peak * s / w up to s = w. With `cooldown_steps` the rate is
    multiplied by min(1, (T - s) / cooldown_steps), so that it would be 0 at step T. T5's
    `1 / sqrt(max(s, 1e4))` (Raffel et al. 2020, section 3.1.2) is `inverse_sqrt` with
    `learning_rate=0.01, warmup_steps=10_000`; the others are big_vision's (Zhai et al. 2022,
    "Scaling Vision Transformers", section 3.5, for `rsqrt` with its cool-down).

    Raises:
      InputError: warm-up or cool-down does not fit `total_steps`.

    >>> t5 = OptimizerConfig("adafactor", 0.01, "inverse_sqrt", warmup_steps=10_000)
    >>> schedule = make_schedule(t5, total_steps=524_288)
    >>> [round(float(schedule(step)), 6) for step in (0, 10_000, 40_000)]
    [0.01, 0.01, 0.005]
    >>> vit = OptimizerConfig("adamw", 0.2, "rsqrt", warmup_steps=10, cooldown_steps=5, timescale=3)
    >>> schedule = make_schedule(vit, total_steps=100)
    >>> [round(float(schedule(step)), 6) for step in (0, 5, 10, 19, 100)]
    [0.0, 0.1, 0.2, 0.1, 0.0]
    """
    check_schedule(config, total_steps)
    relative = _relative(config, total_steps)
    return lambda step: config.learning_rate * relative(step)


def check_schedule(config: OptimizerConfig, total_steps: int) -> None:
    """Raises InputError where warm-up or cool-down does not fit `total_steps`."""
    if total_steps < 1:
        raise InputError("optimizer", "no steps to train", got=total_steps, expected=">= 1")
    config.check_steps("optimizer", total_steps)


def _relative(config: OptimizerConfig, total_steps: Count) -> optax.Schedule:
    """The schedule over its peak."""
    warmup, cooldown = config.warmup_steps, config.cooldown_steps
    decay = _decay(config, total_steps)

    def relative(step: Any) -> Any:
        rate = decay(step)
        if warmup and config.schedule != "inverse_sqrt":
            rate = rate * jnp.minimum(1.0, step / warmup)
        if cooldown:
            rate = rate * jnp.clip((total_steps - step) / cooldown, 0.0, 1.0)
        return rate

    return relative


def _decay(config: OptimizerConfig, total_steps: Count) -> optax.Schedule:
    """The schedule after its warm-up, relative to the peak, 1 before."""
    warmup, length = config.warmup_steps, total_steps - config.warmup_steps
    if config.schedule == "inverse_sqrt":
        knee = max(warmup, 1)
        return lambda step: math.sqrt(knee) / jnp.sqrt(jnp.maximum(step, knee))
    if config.schedule == "rsqrt":
        return lambda step: 1 / jnp.sqrt(1 + jnp.maximum(step - warmup, 0) / config.timescale)
    if config.schedule == "constant":
        return lambda step: jnp.ones_like(step, dtype=jnp.float32)

    def progress(step: Any) -> Any:
        return jnp.clip((step - warmup) / length, 0.0, 1.0)

    if config.schedule == "cosine":
        return lambda step: 0.5 * (1 + jnp.cos(jnp.pi * progress(step)))
    return lambda step: 1 - progress(step)


def make_optimizer(
    config: OptimizerConfig, total_steps: int, param_axes: Any
) -> optax.GradientTransformation:
    """Returns the optimiser of `config`, whose schedule ends after `total_steps` updates.

    `adafactor` is T5's (Shazeer & Stern 2018, with the constants of T5's Mesh TensorFlow runs):
    second-moment decay `1 - step^-0.8`, factored where both sides of a matrix are at least 128, eps
    1e-30, updates clipped to RMS 1, steps relative to the parameter's RMS (at least 1e-3), no
    momentum.

    `adamw` decouples the decay from the learning rate altogether, as big_vision does (and as the
    numbers of Steiner et al. 2022, "How to train your ViT?", are to be read): with s the schedule
    over its peak, an update is `-s * (learning_rate * adam + weight_decay * param)`. Optax and
    PyTorch multiply the decay by the learning rate too: their `weight_decay` is this one over
    `learning_rate`. It acts on kernels (`is_kernel`): not on biases, norms, position embeddings,
    vocabularies and single learned vectors.

    Global-norm clipping comes first, over all arrays together.

    Args:
      config: the optimiser.
      total_steps: updates in all.
      param_axes: tree like `params` whose leaves are tuples of logical axis names.

    Raises:
      InputError: the schedule does not fit `total_steps`; `init` and `update` raise it where
        `param_axes` does not fit the params.
    """
    check_schedule(config, total_steps)
    return optimizer_at(config, config.learning_rate, total_steps, param_axes)


def optimizer_at(
    config: OptimizerConfig, learning_rate: Rate, total_steps: Count, param_axes: Any
) -> optax.GradientTransformation:
    """Returns the optimiser of `config` with another peak, for a schedule that is known to fit.

    Both numbers may be traced: trials that differ in nothing else then share a compiled step.

    Args:
      config: the optimiser; its own learning rate does not count.
      learning_rate: the schedule's peak.
      total_steps: updates in all.
      param_axes: tree like `params` whose leaves are tuples of logical axis names.
    """
    relative = _relative(config, total_steps)
    if config.name == "adafactor":
        inner = optax.adafactor(learning_rate=lambda step: learning_rate * relative(step))
    else:
        inner = _adamw(config, learning_rate, relative, axes_by_path(param_axes))
    optimizer = per_matrix(inner, param_axes)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


def _adamw(
    config: OptimizerConfig, learning_rate: Rate, relative: optax.Schedule,
    axes: Mapping[str, Axes],
) -> optax.GradientTransformation:
    """AdamW on the matrices of one layer, which lie in a flat dict by path."""

    def kernels(matrices: Matrices) -> dict[str, bool]:
        return {path: is_kernel(_of_layer(_joined(axes[path])), matrix.shape)
                for path, matrix in matrices.items()}

    decay = [optax.add_decayed_weights(config.weight_decay, kernels)] if config.weight_decay else []
    return optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2), optax.scale(learning_rate), *decay,
        optax.scale_by_schedule(lambda step: -1.0 * relative(step)),
    )


def axes_by_path(param_axes: Any) -> dict[str, Axes]:
    """Returns the logical axes of each parameter by its path, `/` between the names."""
    return {keystr(path, simple=True, separator="/"): axes for path, axes in
            tree_leaves_with_path(param_axes, is_leaf=lambda x: isinstance(x, tuple))}


def per_matrix(
    inner: optax.GradientTransformation, param_axes: Any
) -> optax.GradientTransformation:
    """Applies `inner` to each layer's matrices as if the layers were arrays of their own.

    The state is a dict: `unstacked`, and `layers_N` for each depth N, hold `inner`'s state over a
    flat dict of matrices by path; statistics of stacked arrays have the leading `layers` axis,
    counters have none.

    Args:
      inner: a transformation that treats every array by itself.
      param_axes: tree like `params` whose leaves are tuples of logical axis names.
    """
    by_path = axes_by_path(param_axes)

    def init(params: Params) -> dict[str, Any]:
        return {group: _init_group(inner, group, matrices)
                for group, matrices in _split(params, by_path).items()}

    def update(
        grads: Params, state: dict[str, Any], params: Params | None = None
    ) -> tuple[Params, dict[str, Any]]:
        if params is None:
            raise ValueError("this optimiser needs the params: update(grads, state, params)")
        groups = _split(params, by_path)
        new_matrices: Matrices = {}
        new_state: dict[str, Any] = {}
        for group, matrices in _split(grads, by_path).items():
            updates, new_state[group] = _update_group(
                inner, group, matrices, state[group], groups[group]
            )
            new_matrices |= updates
        # [layers, d_model, num_heads * d_kv] -> [layers, d_model, num_heads, d_kv]
        leaves = [new_matrices[path].reshape(leaf.shape) for path, leaf in _named(grads)]
        return jax.tree.unflatten(jax.tree.structure(grads), leaves), new_state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _named(tree: Any) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in tree_leaves_with_path(tree):
        yield keystr(path, simple=True, separator="/"), leaf


def _split(tree: Params, by_path: Mapping[str, Axes]) -> dict[str, Matrices]:
    """Groups arrays by their number of layers, with `heads` and `kv` joined."""
    groups: dict[str, Matrices] = {}
    for path, leaf in _named(tree):
        axes = by_path.get(path)
        if axes is None or len(axes) != leaf.ndim:
            raise InputError(f"param_axes of {path}", "does not fit the parameter",
                             got="nothing" if axes is None else axes,
                             expected=f"a tuple of {leaf.ndim} axis names")
        group = f"layers_{leaf.shape[0]}" if axes and axes[0] == "layers" else UNSTACKED
        # [layers, d_model, num_heads, d_kv] -> [layers, d_model, num_heads * d_kv]
        groups.setdefault(group, {})[path] = leaf.reshape(_joined_shape(leaf.shape, axes))
    return groups


def _joined_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """Returns `shape` with each `heads` axis joined to the `kv` axis that follows it."""
    joined: list[int] = []
    for i, size in enumerate(shape):
        if _joins(axes, i):
            joined[-1] *= size
        else:
            joined.append(size)
    return tuple(joined)


def _joined(axes: Axes) -> Axes:
    """Returns the names of the axes of an array with `_joined_shape`."""
    return tuple(axis for i, axis in enumerate(axes) if not _joins(axes, i))


def _of_layer(axes: Axes) -> Axes:
    return axes[1:] if axes[:1] == ("layers",) else axes


def _joins(axes: Axes, i: int) -> bool:
    return i > 0 and axes[i] == "kv" and axes[i - 1] == "heads"


def _state_axes(init: Callable[[Matrices], Any], matrices: Matrices) -> Any:
    """Returns the vmap axes of a stacked group's state: counters are shared by the layers."""
    layer = {path: jax.ShapeDtypeStruct(m.shape[1:], m.dtype) for path, m in matrices.items()}
    return jax.tree.map(lambda s: None if jnp.issubdtype(s.dtype, jnp.integer) else 0,
                        jax.eval_shape(init, layer))


def _init_group(inner: optax.GradientTransformation, group: str, matrices: Matrices) -> Any:
    if group == UNSTACKED:
        return inner.init(matrices)
    return jax.vmap(inner.init, out_axes=_state_axes(inner.init, matrices))(matrices)


def _update_group(
    inner: optax.GradientTransformation, group: str, grads: Matrices, state: Any, params: Matrices
) -> tuple[Any, Any]:
    if group == UNSTACKED:
        return inner.update(grads, state, params)
    axes = _state_axes(inner.init, params)
    return jax.vmap(inner.update, in_axes=(0, axes, 0), out_axes=(0, axes))(grads, state, params)
