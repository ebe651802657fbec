"""The MLP of a Transformer layer."""

from __future__ import annotations

import functools

import jax
from flax import nnx
from jaxtyping import Array, Float

from deepnarrow.layers.linear import Projection, dropout, recomputed
from deepnarrow.modality import Key, StackOptions
from deepnarrow.shape import Shape
from deepnarrow.sharding import constrain

# ViT's MLP biases start as tiny normals (big_vision, as Dosovitskiy et al. 2021); T5 has none.
BIAS_STDDEV = 1e-6
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": recomputed(jax.nn.gelu),
    "gelu_exact": recomputed(functools.partial(jax.nn.gelu, approximate=False)),
}


class MLP(nnx.Module):
    """`wo(dropout(activation(wi(x))))`.

    Attributes:
      wi: kernel `[d_model, d_ff]`.
      wo: kernel `[d_ff, d_model]`.
    """

    def __init__(self, shape: Shape, options: StackOptions, *, rngs: nnx.Rngs):
        self.activation, self.dropout_rate = options.activation, options.dropout_rate
        bias_init = (nnx.initializers.normal(BIAS_STDDEV) if options.init == "xavier"
                     else nnx.initializers.zeros)
        self.wi = Projection((shape.d_model,), (shape.d_ff,), options, axes=("embed", "mlp"),
                             stddev=shape.d_model**-0.5, bias_init=bias_init, rngs=rngs)
        self.wo = Projection((shape.d_ff,), (shape.d_model,), options, axes=("mlp", "embed"),
                             stddev=shape.d_ff**-0.5, bias_init=bias_init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... d_model"], *, key: Key | None = None
    ) -> Float[Array, "... d_model"]:
        """Applies the MLP to every position; `key` feeds dropout, None for none."""
        x = self.wi(x)  # [..., d_model] -> [..., d_ff]
        x = constrain(x, "batch", *[None] * (x.ndim - 2), "mlp")
        x = ACTIVATIONS[self.activation](x)
        x = dropout(x, self.dropout_rate, key)
        return self.wo(x)  # [..., d_ff] -> [..., d_model]
