"""The options of the ViT, their checks, and the patch grid they imply. Imports no JAX."""

from __future__ import annotations

from ml_collections import ConfigDict

from deepnarrow.errors import InputError
from deepnarrow.protocol import check_choice, check_range
from deepnarrow.shape import FIELD_LIMITS, Shape

WHERE = "vision_vit options"
# Typing errors, not models: far above every published resolution, channel count and label set.
MAX_SIDE, MAX_CHANNELS, MAX_CLASSES = 2**14, 2**12, 2**24
POOL_TYPES = ("gap", "tok", "map")
POSITIONS = ("learn", "sincos2d")
LOSSES = ("softmax", "sigmoid")
ACTIVATIONS = ("gelu", "gelu_exact")


def default_options() -> ConfigDict:
    """Returns the defaults of the model's options, as big_vision's ViT has them.

    Options:
      image_size: side of the square image, in pixels.
      patch_size: side of a square patch, in pixels; divides `image_size`.
      channels: of the image.
      num_classes: classes of the head, 0 for a model without a head (features only).
      pool_type: `gap` (mean over positions), `tok` (a learned class token) or `map` (multihead
        attention pooling by a learned probe).
      position: `learn` (a learned embedding) or `sincos2d` (fixed; no parameters).
      rep_size: width of `pre_logits`, a dense layer with tanh between pooling and head; 0 for
        none.
      activation: of the MLPs: `gelu` (tanh approximation) or `gelu_exact` (by erf, as PyTorch's).
      norm_eps: added to the variance by every LayerNorm.
      head_zeroinit: the head's kernel begins at zero, else at LeCun's normal.
      loss: `softmax` or `sigmoid` (one binary cross-entropy a class, summed) on the logits.
      label_smoothing: share of the target that is spread evenly over all classes.
      dropout_rate: after the position embedding and inside the encoder.
      compute_dtype: `float32` or `bfloat16`, of the patch embedding and the encoder.
      remat: `none`, `full` or `dots`: what the encoder's backward pass recomputes.
      scan: apply the encoder's layers by a scan (compile time independent of depth).
    """
    return ConfigDict({
        "image_size": 224,
        "patch_size": 16,
        "channels": 3,
        "num_classes": 1000,
        "pool_type": "gap",
        "position": "learn",
        "rep_size": 0,
        "activation": "gelu",
        "norm_eps": 1e-6,
        "head_zeroinit": True,
        "loss": "softmax",
        "label_smoothing": 0.0,
        "dropout_rate": 0.0,
        "compute_dtype": "float32",
        "remat": "none",
        "scan": True,
    }).lock()


def grid_size(options: ConfigDict) -> int:
    """Returns the patches along one side of the image.

    Raises:
      InputError: `patch_size` does not divide `image_size`.

    >>> grid_size(default_options())
    14
    """
    image, patch = options.image_size, options.patch_size
    check_range(WHERE, "image_size", image, 1, MAX_SIDE)
    check_range(WHERE, "patch_size", patch, 1, MAX_SIDE)
    if image % patch:
        below = image // patch * patch
        images = " or ".join(str(s) for s in (below, below + patch) if s)
        divisors = [p for p in range(1, image + 1) if image % p == 0]
        near = [max((p for p in divisors if p < patch), default=None),
                min((p for p in divisors if p > patch), default=None)]
        patches = " or ".join(str(p) for p in near if p)
        raise InputError(
            WHERE, "patch_size does not divide image_size",
            got=f"image_size {image}, patch_size {patch}",
            expected=f"image_size {images} with this patch_size, "
                     f"or patch_size {patches} with this image_size")
    return image // patch


def num_positions(options: ConfigDict) -> int:
    """Returns the length of the encoder's input: one position a patch, one more for `tok`.

    >>> num_positions(default_options())
    196
    """
    return grid_size(options) ** 2 + (options.pool_type == "tok")


def check_options(shape: Shape, options: ConfigDict) -> None:
    """Raises `InputError` where the options, alone or with the shape, make no model."""
    grid_size(options)
    check_choice(WHERE, "pool_type", options.pool_type, POOL_TYPES)
    check_choice(WHERE, "position", options.position, POSITIONS)
    check_choice(WHERE, "loss", options.loss, LOSSES)
    check_range(WHERE, "channels", options.channels, 1, MAX_CHANNELS)
    check_range(WHERE, "num_classes", options.num_classes, 0, MAX_CLASSES)
    check_range(WHERE, "rep_size", options.rep_size, 0, FIELD_LIMITS["d_model"][1])
    check_choice(WHERE, "activation", options.activation, ACTIVATIONS)
    check_range(WHERE, "norm_eps", options.norm_eps, 0, 1, low_open=True)
    check_range(WHERE, "label_smoothing", options.label_smoothing, 0, 1)
    check_range(WHERE, "dropout_rate", options.dropout_rate, 0, 0.99)
    check_choice(WHERE, "compute_dtype", options.compute_dtype, ("float32", "bfloat16"))
    check_choice(WHERE, "remat", options.remat, ("none", "full", "dots"))
    if options.position == "sincos2d" and (shape.d_model % 4 or shape.d_model < 8):
        _refuse_sincos(shape.d_model)
    if shape.num_decoder_layers:
        raise InputError("vision_vit shape", "a ViT has no decoder", expected=0,
                         got=f"num_decoder_layers {shape.num_decoder_layers}")
    if shape.num_encoder_layers == 0:
        raise InputError("vision_vit shape", "a ViT is an encoder", got="num_encoder_layers 0",
                         expected="at least 1")


def _refuse_sincos(d_model: int) -> None:
    # Sine and cosine of x and of y take a quarter of the channels each, at two or more frequencies.
    below = d_model // 4 * 4
    near = " or ".join(str(d) for d in sorted({max(below, 8), max(below + 4, 8)}))
    raise InputError(WHERE, "position sincos2d needs a d_model of 8 or more that 4 divides",
                     got=f"d_model {d_model}", expected=f"d_model {near}",
                     hint="position=learn takes any d_model")
