"""A causal stack one position at a time: keys and values of the past are kept, not computed again.

Apart from `block.py`, so that training does not carry a cache. Heads come before positions in the
cache: a query then meets its keys in one batched product as they lie. With positions first XLA
copies all keys at every step, which made attention take 8 times as long on CPU.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepnarrow.layers.attention import Attention, attention_mask, attention_weights
from deepnarrow.layers.block import Block, Ends, bind_ends, make_block
from deepnarrow.layers.stack import apply_layers
from deepnarrow.modality import Params, StackOptions, StackOutput
from deepnarrow.shape import Shape


class Cache(NamedTuple):
    """Keys and values of a stack, for decoding.

    Keys are `[layers, batch, num_heads, length, d_kv]`, without `num_heads` where heads share them;
    values likewise.

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
    empty = jnp.zeros((num_layers, batch_size, *heads, length, shape.d_kv), options.compute_dtype)
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
    length = cache.past[0].shape[-2]
    mask = (jnp.arange(length) <= cache.position)[None, None, None]  # -> [1, 1, 1, length]
    step = functools.partial(_step, cache, mask, _bias(ends, cache.position, length))
    num_layers = cache.past[0].shape[0]
    (x, past), _ = apply_layers(
        make_block(shape, options), params["layers"],
        (x.astype(options.compute_dtype), cache.past), (jnp.arange(num_layers), cache.context),
        step, scan=options.scan)
    cache = cache._replace(position=cache.position + 1, past=past)
    return StackOutput(ends.final_norm(x), None, cache, jnp.zeros((), jnp.float32))


def _bias(ends: Ends, position: jax.Array, length: int) -> jax.Array | None:
    if ends.relative_bias is None:
        return None
    bias = ends.relative_bias(position[None], jnp.arange(length))  # [num_heads, 1, length]
    return bias[None]  # -> [1, num_heads, 1, length]


def _step(
    cache: Cache, mask: jax.Array, bias: jax.Array | None, block: Block,
    carry: tuple[jax.Array, tuple[jax.Array, jax.Array]], item: Any,
) -> tuple[Any, None]:
    """One layer at one position. All layers' past is carried, so that one position is written."""
    x, past = carry
    layer, context = item
    normed = block.attention_norm(x)
    new = _heads_first(block.attention.project_context(normed))
    past = tuple(_write(all_, one, layer, cache.position)
                 for all_, one in zip(past, new, strict=True))
    own = (jax.lax.dynamic_index_in_dim(array, layer, keepdims=False) for array in past)
    x += _attend(block.attention, normed, *own, mask=mask, bias=bias)
    if block.cross_attention is not None and block.cross_attention_norm is not None:
        x += _attend(block.cross_attention, block.cross_attention_norm(x), *context,
                     mask=cache.context_mask, bias=None)
    return (x + block.mlp(block.mlp_norm(x)), past), None


def _write(
    all_: Float[Array, "layers batch *heads length d_kv"], one: Float[Array, "batch *heads 1 d_kv"],
    layer: jax.Array, position: jax.Array,
) -> Float[Array, "layers batch *heads length d_kv"]:
    starts = [jnp.zeros((), jnp.int32)] * all_.ndim
    starts[0], starts[-2] = layer, position
    return jax.lax.dynamic_update_slice(all_, one[None], starts)


def _attend(
    attention: Attention, x: Float[Array, "batch 1 d_model"],
    keys: Float[Array, "batch *heads key d_kv"], values: Float[Array, "batch *heads key d_kv"], *,
    mask: Bool[Array, "#batch 1 1 key"] | None, bias: Float[Array, "1 num_heads 1 key"] | None,
) -> Float[Array, "batch 1 d_model"]:
    """As `Attention.attend`, for one query and heads before positions."""
    heads = "h" if keys.ndim == 4 else ""
    query = attention.project_query(x)[:, 0]  # [batch, 1, d_model] -> [batch, num_heads, d_kv]
    # -> [batch, num_heads, 1, key]
    scores = jnp.einsum(f"bhd,b{heads}kd->bhk", query, keys,
                        preferred_element_type=jnp.float32)[:, :, None]
    weights = attention_weights(scores, mask, bias).astype(values.dtype)[:, :, 0]
    # [batch, num_heads, key] -> [batch, num_heads, d_kv]
    attended = jnp.einsum(f"bhk,b{heads}kd->bhd", weights, values)
    return attention.out(attended[:, None])  # [batch, 1, num_heads, d_kv] -> [batch, 1, d_model]


def _project_context(
    context: jax.Array, block: Block, carry: None, _: None
) -> tuple[None, tuple[jax.Array, ...]]:
    assert block.cross_attention is not None  # init_cache was given a context
    return carry, _heads_first(block.cross_attention.project_context(context))


def _heads_first(keys_and_values: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    """[batch, length, num_heads, d_kv] -> [batch, num_heads, length, d_kv]; shared: as they are."""
    return tuple(array.swapaxes(1, 2) if array.ndim == 4 else array for array in keys_and_values)
