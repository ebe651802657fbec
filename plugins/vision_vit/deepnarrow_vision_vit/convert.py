"""big_vision's ViT parameters to ours and back: the same numbers under other names.

big_vision keeps layers apart (`Transformer/encoderblock_0`, ...) or stacked
(`Transformer/encoderblock`); both are read, the former is written. It sets the width of a head to
`width / num_heads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.modality import Params
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.frame import count_frame, encoder_options
from deepnarrow_vision_vit.options import default_options

WHERE = "big_vision parameters"
FlatParams = dict[str, np.ndarray]  # arrays by path, joined with "/"

_ATTENTION = {
    f"{theirs}/{leaf}": f"{theirs}/{leaf}"
    for theirs in ("query", "key", "value", "out") for leaf in ("kernel", "bias")
}
_MLP = {f"{theirs}/{leaf}": f"{ours}/{leaf}"
        for theirs, ours in (("Dense_0", "wi"), ("Dense_1", "wo")) for leaf in ("kernel", "bias")}
_NORM = {"scale": "scale", "bias": "bias"}


def _nest(theirs: str, ours: str, table: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}/{k}": f"{ours}/{v}" for k, v in table.items()}


# Their path -> ours, inside one layer and outside the layers.
LAYER_NAMES = {
    **_nest("LayerNorm_0", "attention_norm", _NORM),
    **_nest("MultiHeadDotProductAttention_0", "attention", _ATTENTION),
    **_nest("LayerNorm_1", "mlp_norm", _NORM),
    **_nest("MlpBlock_0", "mlp", _MLP),
}
FRAME_NAMES = {
    "embedding/kernel": "embedding/kernel",
    "embedding/bias": "embedding/bias",
    "pos_embedding": "position/embedding",
    "cls": "pooling/token",
    "MAPHead_0/probe": "pooling/probe",
    **_nest("MAPHead_0/MultiHeadDotProductAttention_0", "pooling/attention", _ATTENTION),
    **_nest("MAPHead_0/LayerNorm_0", "pooling/norm", _NORM),
    **_nest("MAPHead_0/MlpBlock_0", "pooling/mlp", _MLP),
    **_nest("Transformer/encoder_norm", "encoder/final_norm", _NORM),
    "head/kernel": "head/kernel",
    "head/bias": "head/bias",
}
STACKED = "Transformer/encoderblock/"


def from_big_vision(params: Mapping[str, Any], shape: Shape) -> Params:
    """Returns big_vision's parameters as ours, float32 NumPy arrays.

    Args:
      params: big_vision's nested dict, its layers apart or stacked.
      shape: the shape they are said to have.

    Raises:
      InputError: a path that is missing or unknown, or an array that does not fit `shape`.
    """
    _check_convertible(shape)
    flat = flatten(params)
    if any(path.startswith(STACKED) for path in flat):
        flat = _unstack_layers(flat)
    prefixes = [f"Transformer/encoderblock_{i}" for i in range(shape.num_encoder_layers)]
    ours: FlatParams = {
        f"encoder/layers/{name}": np.stack([_take(flat, f"{p}/{path}") for p in prefixes])
        for path, name in LAYER_NAMES.items()  # -> [layers, ...]
    }
    ours |= {name: _take(flat, path) for path, name in FRAME_NAMES.items() if path in flat}
    if flat:
        raise InputError(WHERE, f"{len(flat)} arrays have no place in the model",
                         got=", ".join(sorted(flat)),
                         hint=f"the shape has {shape.num_encoder_layers} layers")
    _check_shapes(ours, shape)
    return unflatten(ours)


def options_of(params: Params) -> dict[str, Any]:
    """Returns the options that a ViT's parameters (ours) show.

    `image_size` is among them where positions are learned; fixed positions leave no trace of it.
    """
    arrays = flatten(params)
    patch, _, channels, _ = arrays["embedding/kernel"].shape
    options: dict[str, Any] = {"patch_size": patch, "channels": channels, "pool_type": "gap",
                               "position": "sincos2d", "num_classes": 0}
    if "position/embedding" in arrays:
        options["position"] = "learn"
        options["image_size"] = patch * round(arrays["position/embedding"].shape[1] ** 0.5)
    if "pooling/token" in arrays:
        options["pool_type"] = "tok"
    elif "pooling/probe" in arrays:
        options["pool_type"] = "map"
    if "head/bias" in arrays:
        options["num_classes"] = len(arrays["head/bias"])
    return options


def to_big_vision(params: Params, shape: Shape) -> dict[str, Any]:
    """Returns our parameters as big_vision's nested dict, its layers apart.

    Raises:
      InputError: `shape` is one that big_vision's ViT cannot have.
    """
    _check_convertible(shape)
    ours = flatten(params)
    theirs: FlatParams = {path: ours[name] for path, name in FRAME_NAMES.items() if name in ours}
    for path, name in LAYER_NAMES.items():
        for i, array in enumerate(ours[f"encoder/layers/{name}"]):  # [layers, ...] -> [...]
            theirs[f"Transformer/encoderblock_{i}/{path}"] = array
    return unflatten(theirs)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> FlatParams:
    """Returns the arrays of a nested dict by path.

    >>> flatten({"head": {"bias": np.zeros(2)}})
    {'head/bias': array([0., 0.], dtype=float32)}
    """
    flat: FlatParams = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = np.asarray(value, np.float32)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of arrays by path.

    >>> unflatten({"head/bias": 1, "head/kernel": 2})
    {'head': {'bias': 1, 'kernel': 2}}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def _take(flat: FlatParams, path: str) -> np.ndarray:
    if path not in flat:
        raise InputError(WHERE, "an array is missing", expected=path)
    return flat.pop(path)


def _unstack_layers(flat: FlatParams) -> FlatParams:
    """Layers on a leading axis -> layers apart."""
    apart: FlatParams = {}
    for path, array in flat.items():
        if not path.startswith(STACKED):
            apart[path] = array
            continue
        for i, layer in enumerate(array):  # [layers, ...] -> [...]
            apart[f"Transformer/encoderblock_{i}/{path.removeprefix(STACKED)}"] = layer
    return apart


def _check_convertible(shape: Shape) -> None:
    if shape.num_heads * shape.d_kv != shape.d_model:
        raise InputError(WHERE, "big_vision's heads are d_model / num_heads wide",
                         got=f"d_model {shape.d_model}, num_heads {shape.num_heads}, "
                             f"d_kv {shape.d_kv}",
                         expected="num_heads * d_kv = d_model")
    if shape.share_heads or shape.share_kv:
        raise InputError(WHERE, "big_vision's heads share no projections",
                         expected="a shape without sh and skv")


def _check_shapes(ours: FlatParams, shape: Shape) -> None:
    """Compares every array with what the model of `shape` has; the options are read off `ours`."""
    options = default_options()
    found = options_of(unflatten(ours))
    # Without learned positions any image size will do: that of one patch.
    options.update({"image_size": found["patch_size"], **found})
    encoder = TRANSFORMER.make_stack(shape, "encoder", 1, encoder_options(options)).count().arrays
    expected = {"/".join(array.path): array.shape for array in count_frame(shape, options).arrays}
    expected |= {"/".join(("encoder", *array.path)): array.shape for array in encoder}
    for path in sorted({*expected, *ours}):
        got, want = ours[path].shape if path in ours else None, expected.get(path)
        if got != want:
            raise InputError(WHERE, f"{path} does not fit the shape", got=got or "nothing",
                             expected=want or "no such array")
