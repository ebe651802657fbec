"""The Vision Transformer (Dosovitskiy et al., 2021), equal to big_vision's `models/vit.py`.

One departure: an attention head's width is `shape.d_kv`, whatever `d_model / num_heads` is, so that
shapes can scale it on its own. Where the two agree, so do the models
(tests/vision_vit/test_golden.py).

Params: `embedding`, `position` (learned only), `encoder` (the stack), `pooling` (`tok` and `map`
only), `pre_logits` (with `rep_size` only), `head` (none with `num_classes` 0). Nothing here knows
what fills the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from deepnarrow.errors import InputError
from deepnarrow.layers.attention import Attention
from deepnarrow.layers.linear import dropout
from deepnarrow.layers.mlp import MLP
from deepnarrow.layers.norms import make_norm
from deepnarrow.layers.stack import bind_module, init_module
from deepnarrow.modality import (
    EXAMPLE_MASK,
    Batch,
    Key,
    LossOutput,
    Model,
    Params,
    Stack,
    axes_tree,
)
from deepnarrow.shape import Shape
from deepnarrow.sharding import constrain, gathered
from deepnarrow_vision_vit.frame import count_frame, pooling_options
from deepnarrow_vision_vit.options import WHERE, check_options, grid_size

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SINCOS_TEMPERATURE = 10_000.0
HEAD_PATHS = (("head", "kernel"), ("head", "bias"))


# --- the parts of the frame -----------------------------------------------------------------------
class PatchEmbedding(nnx.Module):
    """A linear map of each patch: a convolution whose stride is its kernel's size.

    Attributes:
      kernel: float32 `[patch, patch, channels, d_model]`.
      bias: float32 `[d_model]`.
    """

    def __init__(self, d_model: int, options: ConfigDict, *, rngs: nnx.Rngs):
        self.dtype = options.compute_dtype
        size = (options.patch_size, options.patch_size, options.channels, d_model)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), size, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_model, jnp.float32))

    def __call__(
        self, image: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch length d_model"]:
        """Embeds the patches row by row, in the compute dtype."""
        kernel = gathered(self.kernel[...].astype(self.dtype), None, None, "channels", "embed")
        # [batch, size, size, channels] -> [batch, length, d_model]
        x = jax.lax.platform_dependent(
            image.astype(self.dtype), kernel, tpu=_convolve, default=_multiply)
        x += self.bias[...].astype(self.dtype)
        return constrain(x, "batch", "length", "embed")


class LearnedPosition(nnx.Module):
    """One learned vector a patch.

    Attributes:
      embedding: float32 `[1, length, d_model]`, at first normal with standard deviation
        1 / sqrt(d_model).
    """

    def __init__(self, length: int, d_model: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(d_model**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (1, length, d_model), jnp.float32))


class TokenPooling(nnx.Module):
    """A learned class token that goes through the encoder with the patches, before them.

    Attributes:
      token: float32 `[1, 1, d_model]`, zeros at first.
    """

    def __init__(self, d_model: int):
        self.token = nnx.Param(jnp.zeros((1, 1, d_model), jnp.float32))


class MapPooling(nnx.Module):
    """Multihead attention pooling (Lee et al. 2019; Zhai et al. 2022): a learned probe attends.

    Attributes:
      probe: float32 `[1, 1, d_model]`.
      attention, norm, mlp: one layer of a Transformer; only the MLP has a residual branch.
    """

    def __init__(self, shape: Shape, model_options: ConfigDict, *, rngs: nnx.Rngs):
        options = pooling_options(model_options)
        init = nnx.initializers.xavier_uniform()
        self.probe = nnx.Param(init(rngs.params(), (1, 1, shape.d_model), jnp.float32))
        self.attention = Attention(shape, options, rngs=rngs)
        self.norm = make_norm(shape.d_model, options)
        self.mlp = MLP(shape, options, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch d_model"]:
        """Pools all positions into one vector, float32."""
        # [1, 1, d_model] -> [batch, 1, d_model]
        probe = jnp.broadcast_to(self.probe[...], (x.shape[0], 1, x.shape[2]))
        pooled = self.attention(probe, x)  # [batch, length, d_model] -> [batch, 1, d_model]
        pooled += self.mlp(self.norm(pooled))
        return pooled[:, 0]  # [batch, 1, d_model] -> [batch, d_model]


class Frame(nnx.Module):
    """What stands before and after the encoder."""

    def __init__(self, shape: Shape, options: ConfigDict, *, rngs: nnx.Rngs):
        self.grid, self.dropout_rate = grid_size(options), options.dropout_rate
        self.embedding = PatchEmbedding(shape.d_model, options, rngs=rngs)
        self.position = (LearnedPosition(self.grid**2, shape.d_model, rngs=rngs)
                         if options.position == "learn" else None)
        self.pooling = make_pooling(shape, options, rngs=rngs)
        self.pre_logits = (nnx.Linear(shape.d_model, options.rep_size, rngs=rngs)
                           if options.rep_size else None)
        self.head = make_head(options.rep_size or shape.d_model, options, rngs=rngs)

    def embed(
        self, image: Float[Array, "batch size size channels"], key: Key | None
    ) -> Float[Array, "batch length d_model"]:
        """Images to the encoder's input, in the compute dtype; `key` feeds dropout."""
        x = self.embedding(image)  # [batch, size, size, channels] -> [batch, patches, d_model]
        position = (sincos_position(self.grid, x.shape[-1]) if self.position is None
                    else self.position.embedding[...])
        x += position.astype(x.dtype)
        if isinstance(self.pooling, TokenPooling):
            token = self.pooling.token[...].astype(x.dtype)
            token = jnp.broadcast_to(token, (x.shape[0], *token.shape[1:]))
            x = jnp.concatenate([token, x], axis=1)  # -> [batch, 1 + patches, d_model]
        return dropout(x, self.dropout_rate, key)

    def represent(self, x: Float[Array, "batch length d_model"]) -> Float[Array, "batch features"]:
        """The encoder's output to what the head sees, float32."""
        pooled = self.pool(x.astype(jnp.float32))
        if self.pre_logits is None:
            return pooled
        return jnp.tanh(self.pre_logits(pooled))  # [batch, d_model] -> [batch, rep_size]

    def pool(self, x: Float[Array, "batch length d_model"]) -> Float[Array, "batch d_model"]:
        """The encoder's output to one vector an image."""
        if isinstance(self.pooling, MapPooling):
            return self.pooling(x)
        if isinstance(self.pooling, TokenPooling):
            return x[:, 0]  # [batch, length, d_model] -> [batch, d_model]
        return x.mean(axis=1)  # [batch, length, d_model] -> [batch, d_model]

    def classify(self, features: Float[Array, "batch features"]) -> Float[Array, "batch classes"]:
        """Features to logits, float32.

        Raises:
          InputError: the model has no head.
        """
        if self.head is None:
            raise InputError(WHERE, "a model without a head has features only",
                             got="num_classes 0", hint="set num_classes")
        logits = self.head(features)  # [batch, features] -> [batch, classes]
        return constrain(logits, "batch", "classes")


def make_pooling(
    shape: Shape, options: ConfigDict, *, rngs: nnx.Rngs
) -> TokenPooling | MapPooling | None:
    """Returns what pools with parameters, or None for the mean."""
    if options.pool_type == "tok":
        return TokenPooling(shape.d_model)
    return MapPooling(shape, options, rngs=rngs) if options.pool_type == "map" else None


def make_head(features: int, options: ConfigDict, *, rngs: nnx.Rngs) -> nnx.Linear | None:
    """Returns the classifier, or None without classes."""
    if not options.num_classes:
        return None
    kernel_init = (nnx.initializers.zeros if options.head_zeroinit
                   else nnx.initializers.lecun_normal())
    return nnx.Linear(features, options.num_classes, kernel_init=kernel_init, rngs=rngs)


def _multiply(
    image: Float[Array, "batch size size channels"],
    kernel: Float[Array, "patch patch channels d_model"],
) -> Float[Array, "batch length d_model"]:
    """Embeds the patches by one matrix product, which is fastest on a CPU."""
    # [patch, patch, channels, d_model] -> [patch * patch * channels, d_model]
    flat = kernel.reshape(-1, kernel.shape[-1])
    # [batch, length, patch * patch * channels] -> [batch, length, d_model]
    return extract_patches(image, len(kernel)) @ flat


def _convolve(
    image: Float[Array, "batch size size channels"],
    kernel: Float[Array, "patch patch channels d_model"],
) -> Float[Array, "batch length d_model"]:
    """The same; a TPU need not write the patches to its memory."""
    stride = kernel.shape[:2]
    x = jax.lax.conv_general_dilated(image, kernel, stride, "VALID",
                                     dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x.reshape(len(x), -1, x.shape[-1])  # [batch, row, column, d_model] -> 3 axes


def extract_patches(
    image: Float[Array, "batch size size channels"], patch: int
) -> Float[Array, "batch length patch_values"]:
    """Cuts images into patches, row by row; a patch's values are in the order row, column, channel.

    >>> extract_patches(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    batch, size, _, channels = image.shape
    grid = size // patch
    # [batch, size, size, channels] -> [batch, row, patch, column, patch, channels]
    x = image.reshape(batch, grid, patch, grid, patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # -> [batch, row, column, patch, patch, channels]
    return x.reshape(batch, grid**2, patch**2 * channels)  # -> [batch, length, patch_values]


def sincos_position(grid: int, d_model: int) -> Float[Array, "1 length d_model"]:
    """Fixed sines and cosines of a patch's column and row (Chen et al. 2021, MoCo v3).

    A quarter of the channels each: sin(column w), cos(column w), sin(row w), cos(row w), with
    frequencies w from 1 down to 1/10000 in geometric steps.
    """
    quarter = d_model // 4
    omega = SINCOS_TEMPERATURE ** -(jnp.arange(quarter) / (quarter - 1))
    row, column = jnp.divmod(jnp.arange(grid**2), grid)
    row = row[:, None] * omega  # [length] -> [length, d_model / 4]
    column = column[:, None] * omega  # [length] -> [length, d_model / 4]
    waves = [jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)]
    return jnp.concatenate(waves, axis=1)[None]  # -> [1, length, d_model]


def example_losses(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"],
    options: ConfigDict,
) -> Float[Array, " batch"]:
    """The loss of each example: cross-entropy, or binary cross-entropies summed over classes.

    `label_smoothing` of the targets is spread evenly over all classes.
    """
    targets = optax.smooth_labels(targets, options.label_smoothing)
    if options.loss == "sigmoid":
        return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)
    return optax.softmax_cross_entropy(logits, targets)


def label_targets(batch: Batch, num_classes: int) -> Float[Array, "batch classes"]:
    """One-hot labels; of images that mixup has mixed, `label_weight` of theirs, rest the partner's.

    >>> label_targets({"label": jnp.array([1])}, 2).tolist()
    [[0.0, 1.0]]
    """
    targets = jax.nn.one_hot(batch["label"], num_classes)  # [batch] -> [batch, classes]
    if "partner_label" not in batch:
        return targets
    partners = jax.nn.one_hot(batch["partner_label"], num_classes)
    weight = batch["label_weight"][:, None]  # [batch] -> [batch, 1]
    return weight * targets + (1 - weight) * partners


# --- assembling -----------------------------------------------------------------------------------
class Encoded(NamedTuple):
    """An encoded batch: the bound frame, `features` [batch, d], the encoder's aux loss."""

    frame: Frame
    features: Array
    aux_loss: Array


def assemble(shape: Shape, options: ConfigDict, stacks: Mapping[str, Stack]) -> Model:
    """Returns the ViT around the filled encoder. A batch holds `image` and, to train, `label`
    (with mixup `partner_label` and `label_weight` too).

    `features` are what the head sees (big_vision's `pre_logits`); `predict` returns
    logits `[batch, num_classes]`.

    Raises:
      InputError: the options make no model.
    """
    check_options(shape, options)
    encoder = stacks["encoder"]

    def make_frame(rngs: nnx.Rngs) -> Frame:
        return Frame(shape, options, rngs=rngs)

    def init(key: Key) -> Params:
        frame_key, encoder_key = jax.random.split(key)
        return {**init_module(make_frame, frame_key), "encoder": encoder.init(encoder_key)}

    side = options.image_size

    def encode(params: Params, image: Array, key: Key | None, train: bool) -> Encoded:
        if image.shape[1:] != (side, side, options.channels):
            raise InputError(WHERE, "the images are not those the model takes",
                             got=" x ".join(str(n) for n in image.shape[1:]),
                             expected=f"{side} x {side} x {options.channels}",
                             hint="the data decide image_size and channels: see the task's pp")
        frame = bind_module(make_frame, {k: v for k, v in params.items() if k != "encoder"})
        frame_key, encoder_key = (None, None) if key is None else jax.random.split(key)
        x = frame.embed(image, frame_key if train else None)
        out = encoder.apply(params["encoder"], x, key=encoder_key, train=train)
        # [batch, length, d_model] -> [batch, features]
        return Encoded(frame, frame.represent(out.x), out.aux_loss)

    def features(params: Params, batch: Batch) -> Array:
        return encode(params, batch["image"], None, train=False).features

    def predict(params: Params, batch: Batch) -> Array:
        encoded = encode(params, batch["image"], None, train=False)
        return encoded.frame.classify(encoded.features)

    def loss(params: Params, batch: Batch, key: Key | None, *, train: bool) -> LossOutput:
        encoded = encode(params, batch["image"], key, train)
        logits = encoded.frame.classify(encoded.features)
        return sum_losses(logits, batch, encoded.aux_loss, options)

    axes = axes_tree(count_frame(shape, options).arrays)
    axes["encoder"] = axes_tree(encoder.count().arrays)
    return Model(
        init=init, loss=loss, features=features, predict=predict, param_axes=axes,
        head_paths=HEAD_PATHS if options.num_classes else (),
    )


def sum_losses(
    logits: Array, batch: Batch, aux_loss: Array, options: ConfigDict
) -> LossOutput:
    """Losses and hits of logits as the contract's sums.

    Args:
      logits: float32 [batch, classes].
      batch: with labels, mixed ones too, and the examples' mask.
      aux_loss: the encoder's.
      options: the model's.
    """
    weights, targets = batch[EXAMPLE_MASK], label_targets(batch, options.num_classes)
    # [batch, classes] -> [batch]
    correct = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
    weight_sum = weights.sum()
    return LossOutput(
        loss_sum=(example_losses(logits, targets, options) * weights).sum(),
        weight_sum=weight_sum,
        aux_loss=aux_loss,
        metrics={"accuracy": ((correct * weights).sum(), weight_sum)},
    )
