"""Multi-head attention, self and cross. `d_kv` is independent of `d_model / num_heads`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from deepnarrow.layers.linear import Projection, dropout
from deepnarrow.modality import Key, StackOptions
from deepnarrow.shape import Shape
from deepnarrow.sharding import constrain


class Attention(nnx.Module):
    """Multi-head dot-product attention (Vaswani et al., 2017).

    With `shape.share_heads` one query projection serves all heads, with `shape.share_kv` one key
    and one value projection does (multi-query attention); the attention maps stay one a head.

    Attributes:
      query: kernel `[d_model, num_heads, d_kv]`, or `[d_model, d_kv]` where heads share it.
      key, value: likewise.
      out: kernel `[num_heads, d_kv, d_model]`.
    """

    def __init__(self, shape: Shape, options: StackOptions, *, rngs: nnx.Rngs):
        self.num_heads, self.dropout_rate = shape.num_heads, options.dropout_rate
        self.scale = shape.d_kv**-0.5 if options.scale_attention else 1.0
        heads, one_head = (shape.num_heads, shape.d_kv), (shape.d_kv,)

        def project(outputs: tuple[int, ...], stddev: float) -> Projection:
            axes = ("embed", *("heads", "kv")[-len(outputs):])
            return Projection((shape.d_model,), outputs, options, axes=axes, stddev=stddev,
                              rngs=rngs)

        self.query = project(one_head if shape.share_heads else heads,
                             (shape.d_model * shape.d_kv) ** -0.5)
        self.key = project(one_head if shape.share_kv else heads, shape.d_model**-0.5)
        self.value = project(one_head if shape.share_kv else heads, shape.d_model**-0.5)
        self.out = Projection(heads, (shape.d_model,), options, axes=("heads", "kv", "embed"),
                              stddev=(shape.num_heads * shape.d_kv) ** -0.5, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch query d_model"],
        context: Float[Array, "batch key d_model"] | None = None,
        *,
        mask: Bool[Array, "#batch 1 #query key"] | None = None,
        bias: Float[Array, "parts num_heads query key"] | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch query d_model"]:
        """Attends from `x` to `context`, or to `x` itself where there is none.

        Args:
          x: what asks.
          context: what is attended to.
          mask: True where a query may see a key; None where it may see all.
          bias: added to the scores, float32; the same for each of equal parts of the batch.
          key: feeds dropout, None for none.

        Returns:
          The attended values, projected back, in the compute dtype.
        """
        keys, values = self.project_context(x if context is None else context)
        return self.attend(self.project_query(x), keys, values, mask=mask, bias=bias, key=key)

    def project_query(
        self, x: Float[Array, "batch query d_model"]
    ) -> Float[Array, "batch query num_heads d_kv"]:
        """Queries of all heads; a shared query is repeated."""
        query = self.query(x) * self.scale
        if query.ndim == 3:  # [batch, query, d_kv] -> [batch, query, num_heads, d_kv]
            query = jnp.repeat(query[:, :, None, :], self.num_heads, axis=2)
        return constrain(query, "batch", "length", "heads", "kv")

    def project_context(self, context: Float[Array, "batch key d_model"]) -> tuple[Array, Array]:
        """Keys and values: `[batch, key, num_heads, d_kv]` each, `[batch, key, d_kv]` if shared."""
        keys, values = self.key(context), self.value(context)
        axes = ("batch", "length", *("heads", "kv")[-keys.ndim + 2:])
        return constrain(keys, *axes), constrain(values, *axes)

    def attend(
        self,
        query: Float[Array, "batch query num_heads d_kv"],
        keys: Float[Array, "batch key ..."],
        values: Float[Array, "batch key ..."],
        *,
        mask: Bool[Array, "#batch 1 #query key"] | None = None,
        bias: Float[Array, "parts num_heads query key"] | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch query d_model"]:
        """Attention over projected queries, keys and values; arguments as in `__call__`."""
        heads = "h" if keys.ndim == 4 else ""
        # -> [batch, num_heads, query, key]; summed in float32, kept in the compute dtype.
        scores = jnp.einsum(f"bqhd,bk{heads}d->bhqk", query, keys)
        weights = attention_weights(scores, mask, bias, values.dtype)
        weights = dropout(weights, self.dropout_rate, key)
        # [batch, num_heads, query, key] -> [batch, query, num_heads, d_kv]
        attended = jnp.einsum(f"bhqk,bk{heads}d->bqhd", weights, values)
        attended = constrain(attended, "batch", "length", "heads", "kv")
        return self.out(attended)  # [batch, query, num_heads, d_kv] -> [batch, query, d_model]


def attention_weights(
    scores: Float[Array, "batch num_heads query key"],
    mask: Bool[Array, "#batch 1 #query key"] | None,
    bias: Float[Array, "parts num_heads query key"] | None,
    dtype: Any = jnp.float32,
) -> Float[Array, "batch num_heads query key"]:
    """Softmax of `scores + bias` over the keys that `mask` lets a query see.

    Computed in float32, returned and kept for the backward pass in `dtype`. A query that sees no
    key at all gets weights of 0, not a mean over what it must not see.
    """
    return _softmax(scores, bias, mask, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _softmax(
    scores: jax.Array, bias: jax.Array | None, mask: jax.Array | None, dtype: jnp.dtype
) -> jax.Array:
    """Keeps one attention map for the backward pass, the weights in `dtype`; autodiff keeps two."""
    if bias is not None:
        bias = bias.astype(scores.dtype)
        if len(bias) > 1:  # [parts, num_heads, query, key] -> [batch, num_heads, query, key]
            bias = jnp.repeat(bias, len(scores) // len(bias), axis=0)
        scores += bias
    if mask is None:
        return jax.nn.softmax(scores.astype(jnp.float32)).astype(dtype)
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min).astype(jnp.float32)
    return jnp.where(mask, jax.nn.softmax(scores), 0.0).astype(dtype)


def _softmax_forward(
    scores: jax.Array, bias: jax.Array | None, mask: jax.Array | None, dtype: jnp.dtype
) -> tuple[jax.Array, Any]:
    weights: jax.Array = _softmax(scores, bias, mask, dtype)
    # Of the bias its shape and dtype alone are needed, of the scores their dtype.
    return weights, (weights, jnp.zeros((), scores.dtype), bias)


def _softmax_backward(
    dtype: jnp.dtype, kept: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array | None, None]:
    del dtype
    weights, scores, bias = kept
    weights = weights.astype(jnp.float32)
    moved = weights * cotangent.astype(jnp.float32)
    moved -= weights * jnp.sum(moved, axis=-1, keepdims=True)
    moved = moved.astype(scores.dtype)
    if bias is None:
        return moved, None, None
    # [batch, num_heads, query, key] -> [parts, num_heads, query, key]
    summed = jnp.sum(moved.reshape(len(bias), -1, *moved.shape[1:]), axis=1, dtype=bias.dtype)
    return moved, summed, None


_softmax.defvjp(_softmax_forward, _softmax_backward)


def attention_mask(
    mask: Array | None, *, causal: bool, length: int
) -> Bool[Array, "#batch 1 #query key"] | None:
    """Joins the padding mask of the keys with the causal one.

    Args:
      mask: `[batch, key]`, nonzero at real keys; None where all are.
      causal: query i sees keys <= i only.
      length: number of queries and keys of a causal stack.

    Returns:
      True where a query may see a key, or None where it may see all.
    """
    padding = None if mask is None else (mask != 0)[:, None, None, :]  # [batch, key] -> 4 axes
    if not causal:
        return padding
    past = jnp.tril(jnp.ones((length, length), bool))[None, None]  # [1, 1, query, key]
    return past if padding is None else past & padding
