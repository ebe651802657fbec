"""A causal stack one position at a time: keys and values of the past are kept, not computed again.

Apart from `block.py`, so that training does not carry a cache. Layers are unrolled here and not
scanned: a loop over layers takes one layer's keys and values out of all layers' by a copy, at every
token, and those copies were half of the time of decoding on a CPU. The price is a time to compile
that grows with depth. Heads come before positions in the cache: a query then meets its keys in one
batched product as they lie.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deepnarrow.layers.attention import Attention, attention_mask, attention_weights
from deepnarrow.layers.block import Block, Ends, bind_ends, make_block
from deepnarrow.layers.stack import bind_layers
from deepnarrow.modality import Params, StackOptions, StackOutput
from deepnarrow.shape import Shape

# Keys and values [batch, num_heads, length, d_kv], without num_heads where heads share them.
KeysAndValues = tuple[jax.Array, jax.Array]


class Cache(NamedTuple):
    """Keys and values of a stack, for decoding; one entry a layer.

    Attributes:
      position: int32 scalar: the position that comes next.
      past: of self-attention, zeros from `position` on.
      context: of cross-attention over the whole context; empty without one.
      context_mask: bool `[batch, 1, 1, context_length]`, or None.
    """

    position: Int[Array, ""]
    past: tuple[KeysAndValues, ...]
    context: tuple[KeysAndValues, ...]
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
    blocks = bind_layers(make_block(shape, options), params["layers"])
    heads = () if shape.share_kv else (shape.num_heads,)
    empty = jnp.zeros((batch_size, *heads, length, shape.d_kv), options.compute_dtype)
    cross: list[KeysAndValues] = []
    if context is not None:
        cross = [_project_context(block, context.astype(options.compute_dtype)) for block in blocks]
    return Cache(position=jnp.zeros((), jnp.int32), past=((empty, empty),) * len(blocks),
                 context=tuple(cross),
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
    length = cache.past[0][0].shape[-2]
    mask = (jnp.arange(length) <= cache.position)[None, None, None]  # -> [1, 1, 1, length]
    bias = _bias(ends, cache.position, length)
    x = x.astype(options.compute_dtype)
    past = []
    for layer, block in enumerate(bind_layers(make_block(shape, options), params["layers"])):
        normed = block.attention_norm(x)
        past.append(_extend(block.attention, normed, cache.past[layer], cache.position))
        x += _attend(block.attention, normed, past[layer], mask=mask, bias=bias)
        if cache.context:
            x += _attend(block.cross_attention, block.cross_attention_norm(x), cache.context[layer],
                         mask=cache.context_mask, bias=None)
        x += block.mlp(block.mlp_norm(x))
    cache = cache._replace(position=cache.position + 1, past=tuple(past))
    return StackOutput(ends.final_norm(x), None, cache, jnp.zeros((), jnp.float32))


def _bias(ends: Ends, position: jax.Array, length: int) -> jax.Array | None:
    if ends.relative_bias is None:
        return None
    bias = ends.relative_bias(position[None], jnp.arange(length))  # [num_heads, 1, length]
    return bias[None]  # -> [1, num_heads, 1, length]


def _extend(
    attention: Attention, x: Float[Array, "batch 1 d_model"], past: KeysAndValues,
    position: jax.Array,
) -> KeysAndValues:
    """Writes the keys and values of `x` at `position`."""
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(all_, one, position, axis=-2)
        for all_, one in zip(past, _heads_first(attention.project_context(x)), strict=True))
    return keys, values


def _attend(
    attention: Attention, x: Float[Array, "batch 1 d_model"],
    keys_and_values: KeysAndValues, *,
    mask: Bool[Array, "#batch 1 1 key"] | None, bias: Float[Array, "1 num_heads 1 key"] | None,
) -> Float[Array, "batch 1 d_model"]:
    """As `Attention.attend`, for one query and heads before positions."""
    keys, values = keys_and_values
    heads = "h" if keys.ndim == 4 else ""
    query = attention.project_query(x)[:, 0]  # [batch, 1, d_model] -> [batch, num_heads, d_kv]
    # -> [batch, num_heads, 1, key]
    scores = jnp.einsum(f"bhd,b{heads}kd->bhk", query, keys,
                        preferred_element_type=jnp.float32)[:, :, None]
    weights = attention_weights(scores, mask, bias, values.dtype)[:, :, 0]
    # [batch, num_heads, key] -> [batch, num_heads, d_kv]
    attended = jnp.einsum(f"bhk,b{heads}kd->bhd", weights, values)
    return attention.out(attended[:, None])  # [batch, 1, num_heads, d_kv] -> [batch, 1, d_model]


def _project_context(block: Block, context: Float[Array, "batch context d_model"]) -> KeysAndValues:
    assert block.cross_attention is not None  # a stack with a context has it
    return _heads_first(block.cross_attention.project_context(context))


def _heads_first(keys_and_values: KeysAndValues) -> KeysAndValues:
    """[batch, length, num_heads, d_kv] -> [batch, num_heads, length, d_kv]; shared: as they are."""
    keys, values = (array.swapaxes(1, 2) if array.ndim == 4 else array for array in keys_and_values)
    return keys, values
