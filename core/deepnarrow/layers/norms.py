"""RMSNorm and LayerNorm over the last axis. Statistics are float32 whatever the compute dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepnarrow.modality import StackOptions


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * scale` (Zhang and Sennrich, 2019): no mean, no bias.

    Attributes:
      scale: float32 `[features]`, ones at first.
    """

    def __init__(self, features: int, *, eps: float, dtype: str):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))

    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... features"]:
        """Normalises the last axis; the result has the compute dtype."""
        x = x.astype(jnp.float32)
        x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...]).astype(self.dtype)


class LayerNorm(nnx.Module):
    """`(x - mean) / sqrt(variance + eps) * scale + bias` (Ba et al., 2016).

    Attributes:
      scale: float32 `[features]`, ones at first.
      bias: float32 `[features]`, zeros at first.
    """

    def __init__(self, features: int, *, eps: float, dtype: str):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... features"]:
        """Normalises the last axis; the result has the compute dtype."""
        x = x.astype(jnp.float32)
        x -= jnp.mean(x, axis=-1, keepdims=True)
        x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...] + self.bias[...]).astype(self.dtype)


def make_norm(features: int, options: StackOptions) -> RMSNorm | LayerNorm:
    """Returns the norm that `options` ask for, over `features`."""
    norm = RMSNorm if options.norm == "rms" else LayerNorm
    return norm(features, eps=options.norm_eps, dtype=options.compute_dtype)
