"""RMSNorm and LayerNorm over the last axis. Statistics are float32 whatever the compute dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deepnarrow.layers.linear import recomputed
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

        def normalize(x: jax.Array, scale: jax.Array) -> jax.Array:
            x = x.astype(jnp.float32)
            return (_unit_rms(x, self.eps) * scale).astype(self.dtype)

        return recomputed(normalize)(x, self.scale[...])


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

        def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            if x.dtype == jnp.bfloat16:
                x = x.astype(jnp.float32)
                mean = jnp.mean(x, axis=-1, keepdims=True)
                var = jnp.maximum(jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean), 0.0)
                return ((x - mean) * jax.lax.rsqrt(var + self.eps) * scale + bias).astype(self.dtype)
            x = x.astype(jnp.float32)
            x -= jnp.mean(x, axis=-1, keepdims=True)
            return (_unit_rms(x, self.eps) * scale + bias).astype(self.dtype)

        return recomputed(normalize)(x, self.scale[...], self.bias[...])


def make_norm(features: int, options: StackOptions) -> RMSNorm | LayerNorm:
    """Returns the norm that `options` ask for, over `features`."""
    norm = RMSNorm if options.norm == "rms" else LayerNorm
    return norm(features, eps=options.norm_eps, dtype=options.compute_dtype)


def _unit_rms(x: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
