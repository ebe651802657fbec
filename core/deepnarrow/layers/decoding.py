"""A causal stack one position at a time: keys and values of the past are kept, not computed again.

Apart from `block.py`, so that training does not carry a cache.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepnarrow.layers.attention import attention_mask
from deepnarrow.layers.block import Block, Ends, bind_ends, make_block
from deepnarrow.layers.stack import apply_layers
from deepnarrow.modality import Params, StackOptions, StackOutput
from deepnarrow.shape import Shape


class Cache(NamedTuple):
    """Keys and values of a stack, for decoding.

    `KEYS` is `[layers, batch, length, num_heads, d_kv]`, without `num_heads` where heads share it.

    Attributes:
      position: int32 scalar: the position that comes next.
      past: (keys, values) of self-attention, zeros from `position` on.
      context: (keys, values) of cross-attention over the whole context, or None.
      context_mask: bool `[batch, 1, 1, context_length]`, or None.
    """

    position: Int[Array, ""]
    past: tuple[Array, Array]
    context: tuple[Array, Array] | None
    context_mask: Bool[Array, "batch 1 1 context"] | None


def init_cache(
    shape: Shape,
    length: int,
    options: StackOptions,
    params: Params,
    batch_size: int,
    context: Float[Array, "batch context d_model"] | None,
    context_mask: Array | None,
) -> Cache:
    """Returns an empty cache for `length` positions; keys and values of the context are in it."""
    layers = params["layers"]
    num_layers = jax.tree.leaves(layers)[0].shape[0]
    heads = () if shape.share_kv else (shape.num_heads,)
    empty = jnp.zeros((num_layers, batch_size, length, *heads, shape.d_kv), options.compute_dtype)
    cross = None
    if context is not None:
        step = functools.partial(_project_context, context.astype(options.compute_dtype))
        _, cross = apply_layers(make_block(shape, options), layers, None, None, step,
                                scan=options.scan)
    return Cache(position=jnp.zeros((), jnp.int32), past=(empty, empty), context=cross,
                 context_mask=attention_mask(context_mask, causal=False, length=length))


def apply(
    shape: Shape,
    options: StackOptions,
    params: Params,
    x: Float[Array, "batch 1 d_model"],
    cache: Cache,
) -> StackOutput:
    """Applies the stack to the position that comes next, which sees itself and all before it.

    Returns:
      `x` after the final norm, and the cache for the position after. Beyond the cache's length the
      result is undefined.
    """
    ends = bind_ends(shape, options, params)
    length = cache.past[0].shape[2]
    mask = (jnp.arange(length) <= cache.position)[None, None, None]  # -> [1, 1, 1, length]
    step = functools.partial(_step, cache, mask, _bias(ends, cache.position, length))
    x, past = apply_layers(make_block(shape, options), params["layers"],
                           x.astype(options.compute_dtype), (cache.past, cache.context), step,
                           scan=options.scan)
    cache = cache._replace(position=cache.position + 1, past=past)
    return StackOutput(ends.final_norm(x), None, cache, jnp.zeros((), jnp.float32))


def _bias(ends: Ends, position: jax.Array, length: int) -> jax.Array | None:
    if ends.relative_bias is None:
        return None
    bias = ends.relative_bias(position[None], jnp.arange(length))  # [num_heads, 1, length]
    return bias[None]  # -> [1, num_heads, 1, length]


def _step(
    cache: Cache, mask: jax.Array, bias: jax.Array | None, block: Block, x: jax.Array, item: Any
) -> tuple[jax.Array, Any]:
    """One layer at one position; the output is the layer's keys and values with this one added."""
    past, context = item
    normed = block.attention_norm(x)
    new = block.attention.project_context(normed)
    past = tuple(jax.lax.dynamic_update_slice_in_dim(all_, one, cache.position, axis=1)
                 for all_, one in zip(past, new, strict=True))
    query = block.attention.project_query(normed)
    x += block.attention.attend(query, *past, mask=mask, bias=bias)
    if block.cross_attention is not None and block.cross_attention_norm is not None:
        query = block.cross_attention.project_query(block.cross_attention_norm(x))
        x += block.cross_attention.attend(query, *context, mask=cache.context_mask)
    return x + block.mlp(block.mlp_norm(x)), past


def _project_context(
    context: jax.Array, block: Block, carry: None, _: None
) -> tuple[None, tuple[jax.Array, jax.Array]]:
    assert block.cross_attention is not None  # init_cache was given a context
    return carry, block.cross_attention.project_context(context)
