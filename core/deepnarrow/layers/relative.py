"""T5's relative position bias: a learned number for each bucket of distances and each head."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from deepnarrow.layers.linear import kernel_initializer
from deepnarrow.modality import StackOptions
from deepnarrow.shape import Shape
from deepnarrow.sharding import constrain, gathered


@functools.cache
def bucket_table(num_buckets: int, max_distance: int, causal: bool) -> np.ndarray:
    """Buckets of the relative positions -max_distance ... max_distance (key minus query).

    Half of the buckets of one direction hold one distance each, the rest grow logarithmically up
    to `max_distance`; all beyond share the last (Raffel et al. 2020, section 2.1, and the code
    released with it). Causal stacks spend every bucket on the past and give the future the bucket
    of distance 0; others split the buckets evenly.

    Args:
      num_buckets: buckets in all; at least 2 a direction.
      max_distance: above the number of buckets of one distance each.
      causal: one direction or two.

    Returns:
      int32 `[2 * max_distance + 1]`.

    >>> bucket_table(8, 16, causal=True)[16 - np.array([0, 1, 2, 3, 4, 5, 6, 9, 15, 16])]
    array([0, 1, 2, 3, 4, 4, 5, 6, 7, 7], dtype=int32)
    >>> bucket_table(8, 16, causal=False)[16 + np.array([-6, -1, 0, 1, 6])]
    array([3, 1, 0, 5, 7], dtype=int32)
    """
    relative = np.arange(-max_distance, max_distance + 1)
    distance = np.maximum(-relative, 0) if causal else np.abs(relative)
    one_way = num_buckets if causal else num_buckets // 2
    exact = one_way // 2
    ratio = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    # The nudge keeps distances that lie exactly on a boundary from falling below it.
    large = exact + np.floor(ratio * (one_way - exact) + 1e-9).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(large, one_way - 1))
    if not causal:
        bucket = bucket + np.where(relative > 0, one_way, 0)
    return bucket.astype(np.int32)


class RelativeBias(nnx.Module):
    """The table of one stack; every layer adds the same bias to its attention scores.

    Attributes:
      embedding: float32 `[relative_buckets, num_heads]`.
    """

    def __init__(self, shape: Shape, options: StackOptions, *, rngs: nnx.Rngs):
        self.buckets, self.max_distance = options.relative_buckets, options.relative_max_distance
        self.causal = options.causal
        init = kernel_initializer(options, shape.d_model**-0.5)
        self.embedding = nnx.Param(
            init(rngs.params(), (self.buckets, shape.num_heads), jnp.float32))

    def __call__(
        self, query_positions: Int[Array, "*batch query"], key_positions: Int[Array, "*batch key"]
    ) -> Float[Array, "*batch num_heads query key"]:
        """Returns the bias to add to the scores, float32."""
        # [..., query], [..., key] -> [..., query, key]
        relative = key_positions[..., None, :] - query_positions[..., :, None]
        relative = jnp.clip(relative, -self.max_distance, self.max_distance)
        table = bucket_table(self.buckets, self.max_distance, self.causal)
        # -> [num_heads, ..., query, key]
        bias = jax.lax.platform_dependent(
            gathered(self.embedding[...], "buckets", "heads"), relative,
            tpu=functools.partial(_multiply, table), default=functools.partial(_look_up, table))
        bias = jnp.moveaxis(bias, 0, -3)  # -> [..., num_heads, query, key]
        return constrain(bias, *[None] * (bias.ndim - 3), "heads", "length", "length")


def _look_up(
    table: np.ndarray, embedding: Float[Array, "buckets num_heads"], relative: Int[Array, ...]
) -> Float[Array, "num_heads ..."]:
    """The bias at relative positions within what `table` holds; it is a `bucket_table`."""
    return embedding.T[:, jnp.asarray(table)[relative + len(table) // 2]]


def _multiply(
    table: np.ndarray, embedding: Float[Array, "buckets num_heads"], relative: Int[Array, ...]
) -> Float[Array, "num_heads ..."]:
    """The same numbers as `_look_up`, by comparisons and a matrix product.

    A TPU looks up element by element, and its gradient is a scatter of query x key rows, padded
    to 128 numbers each: together 2.2 GB through memory for T5's 512 x 512.
    """
    positions = np.arange(len(table)) - len(table) // 2
    own = [positions[table == bucket] for bucket in range(len(embedding))]  # one run each, or none
    first, last = (
        np.array([ends[i] if len(ends) else none for ends in own])
        .reshape(-1, *[1] * relative.ndim) for i, none in ((0, 1), (-1, 0)))
    one_hot = ((relative >= first) & (relative <= last)).astype(embedding.dtype)
    return jnp.tensordot(embedding.T, one_hot, 1, precision=jax.lax.Precision.HIGHEST)
