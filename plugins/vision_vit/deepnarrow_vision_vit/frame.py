"""The ViT around its encoder, without JAX: which stack it needs, what the frame costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepnarrow.modality import (
    EXAMPLE_MASK,
    Axes,
    Costs,
    FlopTerm,
    ParamArray,
    Path,
    StackOptions,
    StackSpec,
)
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.shape import Shape
from deepnarrow.stepspec import ArraySpec, StepSpec
from deepnarrow_vision_vit.options import check_options, grid_size, num_positions

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def encoder_options(options: ConfigDict) -> StackOptions:
    """Returns how the encoder is built: pre-LayerNorm, GELU, biases (big_vision's ViT)."""
    return StackOptions(
        norm="layer", norm_eps=options.norm_eps, activation=options.activation, use_bias=True,
        scale_attention=True,
        init="xavier", dropout_rate=options.dropout_rate, compute_dtype=options.compute_dtype,
        remat=options.remat, scan=options.scan,
    )


def pooling_options(options: ConfigDict) -> StackOptions:
    """Returns how the MAP head is built: as the encoder, float32, never with dropout."""
    return StackOptions(norm="layer", norm_eps=options.norm_eps, activation=options.activation,
                        use_bias=True, scale_attention=True, init="xavier")


def stack_specs(shape: Shape, options: ConfigDict) -> tuple[StackSpec, ...]:
    """The encoder over the patches, and over the class token with `pool_type` `tok`."""
    check_options(shape, options)
    return (StackSpec("encoder", num_positions(options), encoder_options(options)),)


def count_frame(shape: Shape, options: ConfigDict) -> Costs:
    """Costs of patch embedding, position, pooling, `pre_logits` and head.

    With N patches of p x p x c values, C classes and features of width R (`rep_size`, else
    `d_model`), the forward FLOPs of an example are `2 N p^2 c d_model` for the embedding,
    `2 d_model rep_size` for `pre_logits` and `2 R C` for the head; see `_count_map` for
    attention pooling. The embedding's backward pass takes as much as its forward pass, not twice:
    nothing needs a gradient of the image. Components are `embedding`, `position`, `pooling`,
    `pre_logits` and `head`.

    Raises:
      InputError: the options make no model.
    """
    check_options(shape, options)
    d_model, patches = shape.d_model, grid_size(options) ** 2
    patch, channels, classes = options.patch_size, options.channels, options.num_classes
    arrays = [
        ParamArray(("embedding", "kernel"), (patch, patch, channels, d_model),
                   (None, None, "channels", "embed"), "embedding", positions=patches),
        ParamArray(("embedding", "bias"), (d_model,), ("embed",), "embedding", positions=patches),
    ]
    if options.position == "learn":
        arrays.append(ParamArray(("position", "embedding"), (1, patches, d_model),
                                 (None, "length", "embed"), "position", positions=1))
    embed = 2 * patches * patch**2 * channels * d_model
    costs = Costs(
        # The patches and the logits are kept: the backward pass forms gradients of them.
        arrays=tuple(arrays),
        flops=(FlopTerm("embedding", "weight", float(embed), backward=1.0,
                        activation_floats=float(patches * patch**2 * channels)),),
    )
    costs += _count_pooling(shape, options)
    width = options.rep_size or d_model
    if options.rep_size:
        costs += Costs(
            arrays=(ParamArray(("pre_logits", "kernel"), (d_model, width), ("embed", None),
                               "pre_logits", positions=1),
                    ParamArray(("pre_logits", "bias"), (width,), (None,), "pre_logits",
                               positions=1)),
            flops=(FlopTerm("pre_logits", "weight", 2.0 * d_model * width,
                            activation_floats=float(d_model + width)),),
        )
    if classes:
        features = None if options.rep_size else "embed"
        costs += Costs(
            arrays=(ParamArray(("head", "kernel"), (width, classes), (features, "classes"),
                               "head", positions=1),
                    ParamArray(("head", "bias"), (classes,), ("classes",), "head", positions=1)),
            flops=(FlopTerm("head", "logits", 2.0 * width * classes,
                            activation_floats=float(width + classes)),),
        )
    return costs


def _count_pooling(shape: Shape, options: ConfigDict) -> Costs:
    if options.pool_type == "tok":
        return Costs(arrays=(_pooling_array(("token",), (1, 1, shape.d_model),
                                            (None, None, "embed")),))
    if options.pool_type == "map":
        return _count_map(shape, num_positions(options))
    return Costs()


def _count_map(shape: Shape, length: int) -> Costs:
    """Attention pooling: one probe asks all N positions, then an MLP.

    FLOPs, with "heads" 1 where shared: projections `2 d_model d_kv (query heads + num_heads +
    2 N key heads)`, scores and weighted sums `4 N num_heads d_kv`, MLP `4 d_model d_ff`.
    """
    d_model, d_ff, d_kv, heads = shape.d_model, shape.d_ff, shape.d_kv, shape.num_heads
    query_heads = 1 if shape.share_heads else heads
    key_heads = 1 if shape.share_kv else heads
    projections = 2 * d_model * d_kv * (query_heads + heads + 2 * length * key_heads)
    attention = 4 * length * heads * d_kv
    mlp = 4 * d_model * d_ff
    kept = (2 * heads * d_kv + 2 * length * key_heads * d_kv + heads * length  # attention
            + 2 * d_model + 2 * d_ff)  # norm's input and output, the MLP's hidden layer
    return Costs(
        arrays=(
            _pooling_array(("probe",), (1, 1, d_model), (None, None, "embed")),
            *_map_attention(shape, length),
            _pooling_array(("norm", "scale"), (d_model,), ("embed",)),
            _pooling_array(("norm", "bias"), (d_model,), ("embed",)),
            _pooling_array(("mlp", "wi", "kernel"), (d_model, d_ff), ("embed", "mlp")),
            _pooling_array(("mlp", "wi", "bias"), (d_ff,), ("mlp",)),
            _pooling_array(("mlp", "wo", "kernel"), (d_ff, d_model), ("mlp", "embed")),
            _pooling_array(("mlp", "wo", "bias"), (d_model,), ("embed",)),
        ),
        flops=(FlopTerm("pooling", "weight", float(projections + mlp)),
               FlopTerm("pooling", "attention", float(attention), scores=float(heads * length),
                        activation_floats=float(kept))),
    )


def _map_attention(shape: Shape, length: int) -> list[ParamArray]:
    arrays: list[ParamArray] = []
    shared = {"query": shape.share_heads, "key": shape.share_kv, "value": shape.share_kv}
    for name, one_head in shared.items():
        sizes = (shape.d_kv,) if one_head else (shape.num_heads, shape.d_kv)
        axes = ("kv",) if one_head else ("heads", "kv")
        positions = 1 if name == "query" else length  # the probe is one position
        arrays += [
            _pooling_array(("attention", name, "kernel"), (shape.d_model, *sizes),
                           ("embed", *axes), positions),
            _pooling_array(("attention", name, "bias"), sizes, axes, positions),
        ]
    out = (shape.num_heads, shape.d_kv, shape.d_model)
    return [
        *arrays,
        _pooling_array(("attention", "out", "kernel"), out, ("heads", "kv", "embed")),
        _pooling_array(("attention", "out", "bias"), (shape.d_model,), ("embed",)),
    ]


def _pooling_array(
    path: Path, shape: tuple[int, ...], axes: Axes, positions: int = 1
) -> ParamArray:
    return ParamArray(("pooling", *path), shape, axes, "pooling", positions=positions)


def _step_arrays(options: ConfigDict) -> dict[str, ArraySpec]:
    size = options.image_size
    return {"image": ArraySpec((size, size, options.channels), "float32"),
            "label": ArraySpec((), "int32"), EXAMPLE_MASK: ArraySpec((), "float32")}


# Steiner et al. 2022, "How to train your ViT?": Adam, cosine, 10k steps of warm-up, global clipping
# at 1, decoupled decay 1e-4 (big_vision's configs/vit_s16_i1k.py and vit_i21k.py).
STEP = StepSpec(_step_arrays, OptimizerConfig("adamw", 0.001, "cosine", warmup_steps=10_000,
                                              weight_decay=1e-4, clip_norm=1.0))
