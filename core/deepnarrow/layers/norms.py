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
            centred, variance = _moments(x)
            unit = centred * jax.lax.rsqrt(variance + self.eps)
            return (unit * scale + bias).astype(self.dtype)

        return recomputed(normalize)(x, self.scale[...], self.bias[...])


def make_norm(features: int, options: StackOptions) -> RMSNorm | LayerNorm:
    """Returns the norm that `options` ask for, over `features`."""
    norm = RMSNorm if options.norm == "rms" else LayerNorm
    return norm(features, eps=options.norm_eps, dtype=options.compute_dtype)


def _unit_rms(x: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` minus its mean, and its variance, both float32.

    The variance of bfloat16 numbers is `mean(x^2) - mean(x)^2`, which reads `x` once and not twice.
    In float32 what cancels there is 2^-24 of the mean's square, while rounding `x` to 8 bits has
    already put 2^-20 of it into the variance.
    """
    low = x.dtype == jnp.bfloat16
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    if low:
        square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x - mean, jnp.maximum(square - jnp.square(mean), 0.0)
    return x - mean, jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
