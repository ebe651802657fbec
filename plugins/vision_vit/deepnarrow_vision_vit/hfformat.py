"""Folders of Hugging Face transformers: `ViTForImageClassification` and `ViTModel`.

Its ViT pools by the class token, has biases everywhere and GELU by erf unless told otherwise. Its
class token has a position embedding of its own, which is added to the token here and is zero where
we write; a pooler (dense, tanh) is our `pre_logits`. Attention without biases of query, key and
value is attention whose biases are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.files import write_json
from deepnarrow.formats import CheckpointHeader
from deepnarrow.modality import Params
from deepnarrow.shape import Shape
from deepnarrow.tensorfiles import read_arrays, read_json
from deepnarrow_vision_vit.convert import split_class_position
from deepnarrow_vision_vit.layout import (
    CONVOLUTION,
    SAME,
    TORCH_ATTENTION,
    Arrays,
    Names,
    check_arrays,
    flatten,
    make_entries,
    make_layout,
    read_entries,
    stand_in,
    torch_dense,
    torch_norm,
    write_entries,
)
from deepnarrow_vision_vit.resample import ADJUSTABLE, resampled
from deepnarrow_vision_vit.torchfile import (
    CONFIG,
    fold_statistics,
    integer,
    open_folder,
    square,
    statistics,
    write_folder,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CLASSIFIER, BACKBONE = "ViTForImageClassification", "ViTModel"
ACTIVATIONS = {"gelu": "gelu_exact", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
PREPROCESSOR = "preprocessor_config.json"
TOKEN, POSITION = "embeddings.cls_token", "embeddings.position_embeddings"
PATCHES = "embeddings.patch_embeddings.projection"

_LAYER = "encoder.layer.{i}."
_ATTENTION = {"query": "attention.query", "key": "attention.key", "value": "attention.value",
              "out": "output.dense"}


_LAYER_NAMES = {
    **torch_norm("attention_norm", f"{_LAYER}layernorm_before"),
    **{f"attention/{path}": (
        f"{_LAYER}attention.{_ATTENTION[path.split('/')[0]]}."
        f"{'weight' if path.endswith('kernel') else 'bias'}", kind)
       for path, kind in TORCH_ATTENTION.items()},
    **torch_norm("mlp_norm", f"{_LAYER}layernorm_after"),
    **torch_dense("mlp/wi", f"{_LAYER}intermediate.dense"),
    **torch_dense("mlp/wo", f"{_LAYER}output.dense"),
}
_FRAME_NAMES = {
    **torch_dense("embedding", PATCHES, CONVOLUTION),
    "position/embedding": (POSITION, SAME),
    "pooling/token": (TOKEN, SAME),
    **torch_norm("encoder/final_norm", "layernorm"),
    **torch_dense("pre_logits", "pooler.dense"),
    **torch_dense("head", "classifier"),
}


NAMES = Names(_LAYER_NAMES, _FRAME_NAMES)


def inspect(path: str) -> CheckpointHeader:
    """Reads `config.json` and the arrays' headers.

    Raises:
      InputError: it is no folder of such a model, or config and arrays contradict each other.
    """
    where = _where(path)
    config, stand_ins, files = open_folder(path, where)
    shape, options = _describe(config, stand_ins, where)
    _statistics(path, options, where)
    check_arrays(where, _canonical(config, stand_ins, shape), *make_layout(NAMES, shape, options))
    extra = (PREPROCESSOR,) if (Path(path) / PREPROCESSOR).exists() else ()
    return CheckpointHeader(shape, options, (*files, *extra), ADJUSTABLE)


def read(path: str, header: CheckpointHeader) -> Params:
    """Returns the parameters, float32, for images in [-1, 1], positions as the header says.

    Where `preprocessor_config.json` feeds the model other images, the patch embedding is adjusted:
    see `torchfile.fold_statistics`.

    Raises:
      InputError: the folder is damaged, or has changed.
    """
    where = _where(path)
    config, stand_ins, files = open_folder(path, where)
    shape, options = _describe(config, stand_ins, where)
    arrays = _canonical(config, read_arrays(path, files[1:]), shape)
    check_arrays(where, arrays, *make_layout(NAMES, shape, options))
    found = _statistics(path, options, where)
    if found is not None:
        fold_statistics(arrays, f"{PATCHES}.weight", f"{PATCHES}.bias", *found)
    params = read_entries(where, arrays, *make_layout(NAMES, shape, options))
    return resampled(params, header.options)


def write(path: str, shape: Shape, options: ConfigDict, params: Params) -> None:
    """Makes a folder that `from_pretrained` takes, with `preprocessor_config.json`.

    Fixed positions are written as the learned ones that they equal. Heads whose widths do not add
    up to `d_model` need a transformers that knows `head_dim` of a ViT (5.24 does).

    Raises:
      NotApplicable: transformers has no such ViT.
    """
    _check_writable(shape, options)
    params = with_positions(params, options, shape)
    sizes = {name: array.shape for name, array in flatten(params).items()}
    arrays = write_entries(params, make_entries(NAMES, sizes))
    arrays[POSITION] = np.pad(arrays[POSITION], ((0, 0), (1, 0), (0, 0)))  # zero for the token
    if options.num_classes:
        arrays = {name if name.startswith("classifier.") else f"vit.{name}": array
                  for name, array in arrays.items()}
    write_folder(path, _config(shape, options), arrays)
    half = [0.5] * options.channels
    write_json(Path(path) / PREPROCESSOR, {
        "image_processor_type": "ViTImageProcessor", "do_normalize": True, "image_mean": half,
        "image_std": half, "do_rescale": True, "rescale_factor": 1 / 255, "do_resize": True,
        "size": {"height": options.image_size, "width": options.image_size}})


def with_positions(params: Params, options: ConfigDict, shape: Shape) -> Params:
    """Returns params with positions as arrays, also where the model's are fixed; imports JAX."""
    if options.position == "learn":
        return params
    from deepnarrow_vision_vit.model import sincos_position

    grid = options.image_size // options.patch_size
    return {**params, "position": {"embedding": np.asarray(sincos_position(grid, shape.d_model))}}


# --- what a folder says -------------------------------------------------------------------------
def _where(path: str) -> str:
    return f"Hugging Face checkpoint '{path}'"


def _describe(
    config: Mapping[str, Any], arrays: Arrays, where: str
) -> tuple[Shape, dict[str, Any]]:
    """Shape and options by the config; what it leaves out has transformers' defaults."""
    names = config.get("architectures") or [BACKBONE]
    if config.get("model_type") != "vit" or names[0] not in (CLASSIFIER, BACKBONE):
        raise InputError(where, "is of another model", expected=f"vit: {CLASSIFIER} or {BACKBONE}",
                         got=f"{config.get('model_type')}: {names[0]}")
    activation, eps = config.get("hidden_act", "gelu"), config.get("layer_norm_eps", 1e-12)
    if activation not in ACTIVATIONS:
        raise InputError(where, f"{CONFIG}: hidden_act is none of this modality's", got=activation,
                         expected=f"one of {', '.join(ACTIVATIONS)}")
    if type(eps) not in (int, float) or not 0 < eps <= 1:
        raise InputError(where, f"{CONFIG}: layer_norm_eps is out of range", got=eps,
                         expected="> 0 and <= 1")
    d_model = integer(config, "hidden_size", where, 768)
    heads = integer(config, "num_attention_heads", where, 12)
    if d_model % heads and config.get("head_dim") is None:
        raise InputError(where, f"{CONFIG}: num_attention_heads does not divide hidden_size",
                         got=f"{heads} and {d_model}")
    shape = Shape(integer(config, "num_hidden_layers", where, 12), 0, d_model=d_model,
                  d_ff=integer(config, "intermediate_size", where, 3072), num_heads=heads,
                  d_kv=integer(config, "head_dim", where, d_model // heads or None))
    pooler = _length(arrays, "pooler.dense.bias")
    if pooler and config.get("pooler_act", "tanh") != "tanh":
        raise InputError(where, f"{CONFIG}: pooler_act is none of this modality's",
                         got=config["pooler_act"], expected="tanh")
    return shape, {
        "image_size": square(config, "image_size", where, 224),
        "patch_size": square(config, "patch_size", where, 16),
        "channels": integer(config, "num_channels", where, 3), "pool_type": "tok",
        "position": "learn", "num_classes": _length(arrays, "classifier.bias"),
        "rep_size": pooler, "activation": ACTIVATIONS[activation], "norm_eps": float(eps)}


def _length(arrays: Arrays, name: str) -> int:
    array = arrays.get(name)
    return 0 if array is None or array.ndim != 1 else len(array)


def _canonical(config: Mapping[str, Any], arrays: Arrays, shape: Shape) -> Arrays:
    """Names without `vit.`, the class token's position in the token, no bias missing."""
    arrays = {name.removeprefix("vit."): array for name, array in arrays.items()}
    if config.get("qkv_bias") is False:
        zeros = stand_in((shape.num_heads * shape.d_kv,))
        for part in ("query", "key", "value"):
            theirs, _ = NAMES.layer[f"attention/{part}/bias"]
            arrays |= {theirs.format(i=i): zeros for i in range(shape.num_encoder_layers)}
    return split_class_position(arrays, TOKEN, POSITION)


def _statistics(
    path: str, options: Mapping[str, Any], where: str
) -> tuple[list[float], list[float]] | None:
    file = Path(path) / PREPROCESSOR
    if not file.exists():
        return None
    values = read_json(path, PREPROCESSOR)
    if values.get("do_normalize") is False:
        return statistics(0.0, 1.0, options["channels"], where)
    return statistics(values.get("image_mean", 0.5), values.get("image_std", 0.5),
                      options["channels"], where)


# --- what we write ------------------------------------------------------------------------------
def _check_writable(shape: Shape, options: ConfigDict) -> None:
    where = "huggingface export"
    if options.pool_type != "tok":
        raise NotApplicable(where, "its ViT pools by a class token", got=options.pool_type,
                            expected="pool_type tok", hint="big_vision and timm hold all poolings")
    if shape.share_heads or shape.share_kv:
        raise NotApplicable(where, "its heads share no projections",
                            expected="a shape without sh and skv")
    if options.rep_size and options.num_classes:
        raise NotApplicable(where, "its classifier has no dense layer before the head",
                            got=f"rep_size {options.rep_size}", expected="0, or no head")


def _config(shape: Shape, options: ConfigDict) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    config: dict[str, Any] = {
        "architectures": [CLASSIFIER if options.num_classes else BACKBONE], "model_type": "vit",
        "dtype": "float32", "hidden_size": shape.d_model,
        "num_hidden_layers": shape.num_encoder_layers, "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.d_ff, "hidden_act": names[options.activation],
        "layer_norm_eps": options.norm_eps, "image_size": options.image_size,
        "patch_size": options.patch_size, "num_channels": options.channels, "qkv_bias": True,
    }
    if shape.num_heads * shape.d_kv != shape.d_model:
        config["head_dim"] = shape.d_kv
    if options.num_classes:
        labels = [f"LABEL_{i}" for i in range(options.num_classes)]
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    if options.rep_size:
        config |= {"pooler_output_size": options.rep_size, "pooler_act": "tanh"}
    return config
