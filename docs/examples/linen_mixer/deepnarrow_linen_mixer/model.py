"""The Mixer as a Linen module, and what makes a stack's `apply` of it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepnarrow.modality import StackOutput


class Mlp(nn.Module):
    """A residual branch: norm, then two dense layers along `axis` (1: positions, 2: channels)."""

    d_ff: int
    axis: int
    dropout_rate: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """[batch, length, d_model] -> [batch, length, d_model]"""
        y = nn.LayerNorm(dtype=self.dtype, name="norm")(x) * mask
        y = jnp.moveaxis(y, self.axis, 2)  # what is mixed comes last
        size = y.shape[-1]
        y = nn.Dense(self.d_ff, dtype=self.dtype, name="wi")(y)  # -> [batch, ..., d_ff]
        y = nn.Dense(size, dtype=self.dtype, name="wo")(nn.gelu(y))
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        return x + jnp.moveaxis(y, 2, self.axis)


class Layer(nn.Module):
    """Mixes positions, then channels; returns what `nn.scan` wants."""

    d_ff: int
    dropout_rate: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> tuple[jax.Array, None]:
        """[batch, length, d_model] -> [batch, length, d_model]"""
        for name, axis in (("tokens", 1), ("channels", 2)):
            x = Mlp(self.d_ff, axis, self.dropout_rate, self.dtype, name=name)(x, mask, train)
        return x, None


class Mixer(nn.Module):
    """A stack of layers, whose parameters lie on a leading axis `layers`, and a final norm."""

    num_layers: int
    d_ff: int
    length: int
    dropout_rate: float
    dtype: str
    scan: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """[batch, length, d_model] -> [batch, length, d_model]; `mask` is [batch, length]."""
        x = x.astype(self.dtype)
        mask = jnp.ones(x.shape[:2], x.dtype) if mask is None else mask.astype(x.dtype)
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast), length=self.num_layers,
            unroll=1 if self.scan else self.num_layers)
        x, _ = layers(self.d_ff, self.dropout_rate, self.dtype, name="layers")(
            x, mask[:, :, None], train)
        return nn.LayerNorm(dtype=self.dtype, name="final_norm")(x)


def apply(
    module: Mixer, params: Any, x: jax.Array, *, mask: Any = None, key: Any = None,
    train: bool = False, cache: Any = None, **_: Any,
) -> StackOutput:
    """A stack's `apply`: positions are in the parameters already, and there is no context."""
    train = train and key is not None
    out = module.apply({"params": params}, x, mask, train, rngs={"dropout": key} if train else None)
    return StackOutput(out, mask, cache, jnp.float32(0.0))
