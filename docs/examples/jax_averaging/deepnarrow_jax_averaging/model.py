"""The layers as functions over a dict of arrays that have the layers on their first axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from deepnarrow.modality import ParamArray, StackOptions, StackOutput


def init(arrays: Sequence[ParamArray], key: Any) -> Any:
    """Norms of ones; matrices [layers, fan in, fan out], normal with variance 1 / fan in."""
    params: dict[str, Any] = {"layers": {}}
    for i, array in enumerate(arrays):
        node = params["layers"] if array.path[0] == "layers" else params
        node[array.path[-1]] = (
            jnp.ones(array.shape) if "norm" in array.path[-1]
            else jax.random.normal(jax.random.fold_in(key, i), array.shape)
            / math.sqrt(array.shape[-2]))
    return params


def apply(
    options: StackOptions, params: Any, x: jax.Array, *, mask: Any = None, key: Any = None,
    train: bool = False, cache: Any = None, **_: Any,
) -> StackOutput:
    """[batch, length, d_model] -> [batch, length, d_model]; `mask` is [batch, length]."""
    num_layers = len(params["layers"]["norm"])
    x = x.astype(options.compute_dtype)
    weights = jnp.ones(x.shape[:2], x.dtype) if mask is None else mask.astype(x.dtype)
    # [batch, length] -> [batch, length, 1]; of each example's positions they add up to 1
    weights = (weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1))[:, :, None]
    rate = options.dropout_rate if train and key is not None else 0.0

    def layer(x: jax.Array, scanned: Any) -> tuple[jax.Array, None]:
        w, i = scanned
        y = normalise(x) * w["norm"]
        # [batch, length, d_model] -> [batch, 1, d_model], the same for every position
        y = y + (y * weights).sum(axis=1, keepdims=True) @ w["mean"]
        y = jax.nn.gelu(y @ w["wi"]) @ w["wo"]
        if rate:
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, y.shape)
            y = jnp.where(kept, y / (1 - rate), 0)
        return x + y, None

    if options.remat != "none":
        layer = jax.checkpoint(layer)
    layers = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params["layers"])
    x, _ = jax.lax.scan(layer, x, (layers, jnp.arange(num_layers)),
                        unroll=1 if options.scan else num_layers)
    return StackOutput(normalise(x) * params["final_norm"].astype(x.dtype), mask, cache,
                       jnp.float32(0.0))


def normalise(x: jax.Array) -> jax.Array:
    """Root mean square 1 over the channels."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
