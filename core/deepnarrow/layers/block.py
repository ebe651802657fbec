"""One pre-norm Transformer layer, and the forward pass of a stack of them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from deepnarrow.layers.attention import Attention, attention_mask
from deepnarrow.layers.linear import dropout
from deepnarrow.layers.mlp import MLP
from deepnarrow.layers.norms import LayerNorm, RMSNorm, make_norm
from deepnarrow.layers.relative import RelativeBias
from deepnarrow.layers.stack import (
    MakeModule,
    apply_layers,
    bind_module,
    init_layers,
    init_module,
    layer_keys,
)
from deepnarrow.modality import Key, Params, StackOptions, StackOutput
from deepnarrow.shape import Shape
from deepnarrow.sharding import constrain, for_each_part

RESIDUAL_AXES = ("batch", "length", "embed")  # logical, of what goes from layer to layer
KEYS_PER_LAYER = 6  # dropout inside and after attention, cross-attention and MLP


class Shared(NamedTuple):
    """What all layers of a stack see alike; computed once a stack.

    Attributes:
      mask: `[batch or 1, 1, query or 1, key]` for self-attention, None where all is seen.
      bias: `[parts, num_heads, query, key]` for self-attention, or None.
      context: `[batch, context_length, d_model]` for cross-attention, or None.
      context_mask: `[batch, 1, 1, context_length]`, or None.
    """

    mask: Bool[Array, "#batch 1 #query key"] | None = None
    bias: Float[Array, "parts num_heads query key"] | None = None
    context: Float[Array, "batch context d_model"] | None = None
    context_mask: Bool[Array, "batch 1 1 context"] | None = None


class Block(nnx.Module):
    """`x += attention(norm(x))`, then cross-attention where there is a context, then the MLP.

    Every residual branch ends with dropout.
    """

    def __init__(self, shape: Shape, options: StackOptions, *, rngs: nnx.Rngs):
        self.dropout_rate = options.dropout_rate
        self.attention_norm = make_norm(shape.d_model, options)
        self.attention = Attention(shape, options, rngs=rngs)
        if options.context_length is not None:
            self.cross_attention_norm = make_norm(shape.d_model, options)
            self.cross_attention = Attention(shape, options, rngs=rngs)
        else:
            self.cross_attention_norm = self.cross_attention = None
        self.mlp_norm = make_norm(shape.d_model, options)
        self.mlp = MLP(shape, options, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length d_model"], shared: Shared, keys: Key | None
    ) -> Float[Array, "batch length d_model"]:
        """Applies the layer; `keys` `[KEYS_PER_LAYER]` feed dropout, None for none."""
        key = [None if keys is None else keys[i] for i in range(KEYS_PER_LAYER)]
        y = self.attention(self.attention_norm(x), mask=shared.mask, bias=shared.bias, key=key[0])
        x += dropout(y, self.dropout_rate, key[1])
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            y = self.cross_attention(self.cross_attention_norm(x), shared.context,
                                     mask=shared.context_mask, key=key[2])
            x += dropout(y, self.dropout_rate, key[3])
        y = self.mlp(self.mlp_norm(x), key=key[4])
        return x + dropout(y, self.dropout_rate, key[5])


class Ends(nnx.Module):
    """What a stack has besides its layers: the final norm and the relative bias."""

    def __init__(self, shape: Shape, options: StackOptions, *, rngs: nnx.Rngs):
        self.final_norm: RMSNorm | LayerNorm = make_norm(shape.d_model, options)
        self.relative_bias = (
            RelativeBias(shape, options, rngs=rngs) if options.relative_buckets else None)


def make_block(shape: Shape, options: StackOptions) -> MakeModule:
    """Returns the maker of one layer."""
    return lambda rngs: Block(shape, options, rngs=rngs)


def init(shape: Shape, num_layers: int, options: StackOptions, key: Key) -> Params:
    """Parameters of the whole stack: `layers`, `final_norm` and, with buckets, `relative_bias`."""
    layers_key, ends_key = jax.random.split(key)
    params = init_module(lambda rngs: Ends(shape, options, rngs=rngs), ends_key)
    params["layers"] = init_layers(make_block(shape, options), num_layers, layers_key)
    return params


def bind_ends(shape: Shape, options: StackOptions, params: Params) -> Ends:
    """Returns the final norm and the relative bias with their parameters in them."""
    own = {name: params[name] for name in params if name != "layers"}
    return bind_module(lambda rngs: Ends(shape, options, rngs=rngs), own)


def apply(
    shape: Shape,
    num_layers: int,
    options: StackOptions,
    params: Params,
    x: Float[Array, "batch length d_model"],
    *,
    mask: Array | None = None,
    positions: Int[Array, "*batch length"] | None = None,
    context: Float[Array, "batch context d_model"] | None = None,
    context_mask: Array | None = None,
    key: Key | None = None,
) -> StackOutput:
    """Applies the stack to all positions at once.

    Args:
      shape: widths of the stack.
      num_layers: number of layers.
      options: how the blocks are built.
      params: as `init` returns them.
      x: what goes in.
      mask: `[batch, length]`, nonzero at real positions; None where all are real.
      positions: what the relative bias measures distances between; 0, 1, 2, ... unless given.
      context: what cross-attention looks at.
      context_mask: `[batch, context]`, likewise.
      key: feeds dropout, None for none.

    Returns:
      `x` after the final norm, in the compute dtype, with the mask it came with.
    """
    ends = bind_ends(shape, options, params)
    length = x.shape[1]
    shared = Shared(
        mask=attention_mask(mask, causal=options.causal, length=length),
        bias=self_bias(ends, len(x), length, positions),
        context=None if context is None else context.astype(options.compute_dtype),
        context_mask=attention_mask(context_mask, causal=False, length=length),
    )
    step = functools.partial(_step, shared)
    x, _ = apply_layers(
        make_block(shape, options), params["layers"],
        constrain(x.astype(options.compute_dtype), *RESIDUAL_AXES),
        layer_keys(key, num_layers, KEYS_PER_LAYER), step, scan=options.scan, remat=options.remat)
    # Layers fold 0 ... num_layers - 1 into the key: the next number is free.
    final_key = None if key is None else jax.random.fold_in(key, num_layers)
    final_rate = options.dropout_rate if options.final_dropout else 0.0
    x = constrain(dropout(ends.final_norm(x), final_rate, final_key), *RESIDUAL_AXES)
    return StackOutput(x, mask, None, jnp.zeros((), jnp.float32))


def self_bias(
    ends: Ends, batch_size: int, length: int, positions: Int[Array, "*batch length"] | None
) -> Float[Array, "parts num_heads length length"] | None:
    """The relative bias of whole sequences, or None for stacks without one.

    It is one for all, for each example that has positions of its own, or, on several devices, for
    each device's part of the batch.
    """
    if ends.relative_bias is None:
        return None
    if positions is None:
        positions = jnp.arange(length)
    bias = ends.relative_bias(positions, positions)
    if bias.ndim == 4:
        return bias
    # [num_heads, query, key] -> [1 or parts, num_heads, query, key]
    return for_each_part(bias[None], batch_size, "batch", "heads", "length", "length")


def _step(shared: Shared, block: Any, x: jax.Array, keys: Key | None) -> tuple[jax.Array, None]:
    return constrain(block(x, shared, keys), *RESIDUAL_AXES), None
