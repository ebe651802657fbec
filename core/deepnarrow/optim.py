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
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_leaves_with_path

from deepnarrow.errors import InputError
from deepnarrow.modality import Axes, Params
from deepnarrow.protocol import OptimizerConfig

UNSTACKED = "unstacked"
Matrices = dict[str, jax.Array]  # path -> [layers, rows, columns], or [rows, columns] if unstacked


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    `inverse_sqrt` is `learning_rate * sqrt(warmup) / sqrt(max(step, warmup))`: constant up to
    `warmup_steps`, then falling. T5's `1 / sqrt(max(step, 1e4))` (Raffel et al. 2020, section
    3.1.2) is `learning_rate=0.01, warmup_steps=10_000`. `cosine` rises linearly from 0 and falls to
    0 at `total_steps`; `constant` rises the same way and stays.

    Raises:
      InputError: the warm-up is not shorter than `total_steps`.

    >>> t5 = OptimizerConfig("adafactor", 0.01, "inverse_sqrt", warmup_steps=10_000)
    >>> schedule = make_schedule(t5, total_steps=524_288)
    >>> [round(float(schedule(step)), 6) for step in (0, 10_000, 40_000)]
    [0.01, 0.01, 0.005]
    """
    if total_steps < 1:
        raise InputError("optimizer", "no steps to train", got=total_steps, expected=">= 1")
    warmup, peak = config.warmup_steps, config.learning_rate
    if warmup >= total_steps:
        raise InputError("optimizer", "warmup_steps is not shorter than training", got=warmup,
                         expected=f"< {total_steps} steps",
                         hint="shorten the warm-up or raise the budget")
    if config.schedule == "inverse_sqrt":
        knee = max(warmup, 1)
        return lambda step: peak * math.sqrt(knee) / jnp.sqrt(jnp.maximum(step, knee))
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, total_steps - warmup)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(
    config: OptimizerConfig, total_steps: int, param_axes: Any
) -> optax.GradientTransformation:
    """Returns the optimiser of `config`, whose schedule ends after `total_steps` updates.

    `adafactor` is T5's (Shazeer & Stern 2018, with the constants of T5's Mesh TensorFlow runs):
    second-moment decay `1 - step^-0.8`, factored where both sides of a matrix are at least 128, eps
    1e-30, updates clipped to RMS 1, steps relative to the parameter's RMS (at least 1e-3), no
    momentum. `adamw` decays arrays of two and more dimensions in one layer, after `heads` and `kv`
    are joined: kernels and embeddings, not biases and norms. Global-norm clipping comes first, over
    all arrays together.

    Args:
      config: the optimiser.
      total_steps: updates in all.
      param_axes: tree like `params` whose leaves are tuples of logical axis names.

    Raises:
      InputError: the schedule does not fit `total_steps`; `init` and `update` raise it where
        `param_axes` does not fit the params.
    """
    schedule = make_schedule(config, total_steps)
    if config.name == "adafactor":
        inner = optax.adafactor(learning_rate=schedule)
    else:
        inner = optax.adamw(schedule, b1=config.b1, b2=config.b2,
                            weight_decay=config.weight_decay, mask=_decay_mask)
    optimizer = per_matrix(inner, param_axes)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


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
    axes_by_path = {keystr(path, simple=True, separator="/"): axes for path, axes in
                    tree_leaves_with_path(param_axes, is_leaf=lambda x: isinstance(x, tuple))}

    def init(params: Params) -> dict[str, Any]:
        return {group: _init_group(inner, group, matrices)
                for group, matrices in _split(params, axes_by_path).items()}

    def update(
        grads: Params, state: dict[str, Any], params: Params | None = None
    ) -> tuple[Params, dict[str, Any]]:
        if params is None:
            raise ValueError("this optimiser needs the params: update(grads, state, params)")
        groups = _split(params, axes_by_path)
        new_matrices: Matrices = {}
        new_state: dict[str, Any] = {}
        for group, matrices in _split(grads, axes_by_path).items():
            updates, new_state[group] = _update_group(
                inner, group, matrices, state[group], groups[group]
            )
            new_matrices |= updates
        # [layers, d_model, num_heads * d_kv] -> [layers, d_model, num_heads, d_kv]
        leaves = [new_matrices[path].reshape(leaf.shape) for path, leaf in _named(grads)]
        return jax.tree.unflatten(jax.tree.structure(grads), leaves), new_state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _decay_mask(matrices: Matrices) -> dict[str, bool]:
    return {path: matrix.ndim >= 2 for path, matrix in matrices.items()}


def _named(tree: Any) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in tree_leaves_with_path(tree):
        yield keystr(path, simple=True, separator="/"), leaf


def _split(tree: Params, axes_by_path: dict[str, Axes]) -> dict[str, Matrices]:
    """Groups arrays by their number of layers, with `heads` and `kv` joined."""
    groups: dict[str, Matrices] = {}
    for path, leaf in _named(tree):
        axes = axes_by_path.get(path)
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
        if i > 0 and axes[i] == "kv" and axes[i - 1] == "heads":
            joined[-1] *= size
        else:
            joined.append(size)
    return tuple(joined)


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
