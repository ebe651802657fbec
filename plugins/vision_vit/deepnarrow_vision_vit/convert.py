"""big_vision's ViT parameters to ours and back: the same numbers under other names.

big_vision keeps layers apart (`Transformer/encoderblock_0`, ...) or, scanned, on a leading axis
(`Transformer/encoderblock`); both are read, the former is written. It sets the width of a head to
`width / num_heads`. Names of older checkpoints are read as its `fix_old_checkpoints` reads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.modality import Params
from deepnarrow.shape import FIELD_LIMITS, Shape
from deepnarrow_vision_vit.layout import (
    SAME,
    Arrays,
    Entry,
    Kind,
    Names,
    Sizes,
    flatten,
    make_entries,
    make_layout,
    read_entries,
    unflatten,
    write_entries,
)

WHERE = "big_vision parameters"
MAX_LAYERS = FIELD_LIMITS["num_encoder_layers"][1]
FIXED = {"activation": "gelu", "norm_eps": 1e-6}  # options of every big_vision ViT

_DENSE = ("kernel", "bias")
_ATTENTION = {f"{name}/{leaf}": f"{name}/{leaf}"
              for name in ("query", "key", "value", "out") for leaf in _DENSE}
_MLP = {f"{ours}/{leaf}": f"{theirs}/{leaf}"
        for ours, theirs in (("wi", "Dense_0"), ("wo", "Dense_1")) for leaf in _DENSE}
_NORM = {"scale": "scale", "bias": "bias"}
_LAYER = "Transformer/encoderblock_{i}/"
_STACKED = "Transformer/encoderblock/"


def _named(ours: str, theirs: str, table: Mapping[str, str]) -> dict[str, tuple[str, Kind]]:
    return {f"{ours}/{k}": (f"{theirs}/{v}", SAME) for k, v in table.items()}


_LAYER_NAMES = {
    **_named("attention_norm", f"{_LAYER}LayerNorm_0", _NORM),
    **_named("attention", f"{_LAYER}MultiHeadDotProductAttention_0", _ATTENTION),
    **_named("mlp_norm", f"{_LAYER}LayerNorm_1", _NORM),
    **_named("mlp", f"{_LAYER}MlpBlock_0", _MLP),
}
_FRAME_NAMES = {
    "embedding/kernel": ("embedding/kernel", SAME),
    "embedding/bias": ("embedding/bias", SAME),
    "position/embedding": ("pos_embedding", SAME),
    "pooling/token": ("cls", SAME),
    "pooling/probe": ("MAPHead_0/probe", SAME),
    **_named("pooling/attention", "MAPHead_0/MultiHeadDotProductAttention_0", _ATTENTION),
    **_named("pooling/norm", "MAPHead_0/LayerNorm_0", _NORM),
    **_named("pooling/mlp", "MAPHead_0/MlpBlock_0", _MLP),
    **_named("encoder/final_norm", "Transformer/encoder_norm", _NORM),
    **{f"{name}/{leaf}": (f"{name}/{leaf}", SAME)
       for name in ("pre_logits", "head") for leaf in _DENSE},
}
NAMES = Names(_LAYER_NAMES, _FRAME_NAMES)
# Before Linen, Flax numbered the modules of a layer through, whatever their class; the first ViTs
# kept positions in the encoder; MAP heads were once inlined.
_OLD_NAMES = (
    (r"(encoderblock(?:_\d+)?)/MultiHeadDotProductAttention_1/",
     r"\1/MultiHeadDotProductAttention_0/"),
    (r"(encoderblock(?:_\d+)?)/LayerNorm_2/", r"\1/LayerNorm_1/"),
    (r"(encoderblock(?:_\d+)?)/MlpBlock_3/", r"\1/MlpBlock_0/"),
    (r"^Transformer/(posembed_input/)?pos_embedding$", "pos_embedding"),
    (r"^(probe$|(?:MlpBlock|MultiHeadDotProductAttention|LayerNorm)_0/)", r"MAPHead_0/\1"),
)


def from_big_vision(params: Mapping[str, Any], shape: Shape) -> Params:
    """Returns big_vision's parameters as ours, float32 NumPy arrays.

    Args:
      params: big_vision's nested dict, its layers apart or stacked.
      shape: the shape they are said to have.

    Raises:
      InputError: a path that is missing or unknown, or an array that does not fit `shape`.
    """
    check_convertible(shape, FIXED)
    arrays = flatten(params)
    arrays = canonical(WHERE, arrays, find_root(arrays))
    entries, sizes = layout(shape, describe(WHERE, arrays)[1])
    return read_entries(WHERE, arrays, entries, sizes)


def to_big_vision(params: Params, shape: Shape) -> dict[str, Any]:
    """Returns our parameters as big_vision's nested dict, its layers apart.

    Raises:
      NotApplicable: `shape` is one that big_vision's ViT cannot have.
    """
    check_convertible(shape, FIXED)
    sizes = {path: array.shape for path, array in flatten(params).items()}
    return unflatten(write_entries(params, make_entries(NAMES, sizes)))


def layout(shape: Shape, found: Mapping[str, Any]) -> tuple[list[Entry], Sizes]:
    """Returns the entries of canonical arrays and the sizes of our own.

    Args:
      shape: the shape they are said to have.
      found: the options that `describe` read off them.
    """
    # Without learned positions any image size will do: that of one patch.
    return make_layout(NAMES, shape, {"image_size": found["patch_size"], **found})


def check_convertible(shape: Shape, options: Mapping[str, Any]) -> None:
    """Raises `NotApplicable` where big_vision has no such ViT."""
    if shape.num_heads * shape.d_kv != shape.d_model:
        raise NotApplicable(WHERE, "big_vision's heads are d_model / num_heads wide",
                            got=f"d_model {shape.d_model}, num_heads {shape.num_heads}, "
                                f"d_kv {shape.d_kv}",
                            expected="num_heads * d_kv = d_model")
    if shape.share_heads or shape.share_kv:
        raise NotApplicable(WHERE, "big_vision's heads share no projections",
                            expected="a shape without sh and skv")
    for name, value in FIXED.items():
        if options[name] != value:
            raise NotApplicable(WHERE, f"big_vision's ViT has another {name}", got=options[name],
                                expected=value)


# --- their arrays -----------------------------------------------------------------------------
def find_root(paths: Collection[str]) -> str:
    """Returns the prefix under which a checkpoint has its ViT.

    It lies under `params/`, under `opt/target/`, or at the root, and there it may lie under one
    name (`img/` of a two-tower model). Optimiser states and other towers lie elsewhere.

    >>> find_root(["opt/0/mu/img/embedding/kernel", "params/img/embedding/kernel", "params/t"])
    'params/img/'
    """
    root = next((root for root in ("params/", "opt/target/")
                 if any(path.startswith(root) for path in paths)), "")
    end = "/embedding/kernel"
    towers = {path[len(root):-len(end)] for path in paths
              if path.startswith(root) and path[len(root):].endswith(end)}
    if f"{root}embedding/kernel" not in paths and len(towers) == 1:
        return f"{root}{towers.pop()}/"
    return root


def canonical(where: str, arrays: Arrays, root: str) -> Arrays:
    """Returns the arrays under `root` with the names of today's unscanned model.

    They are views, of stand-ins too.

    Raises:
      InputError: layers are stacked beyond any model.
    """
    arrays = {path.removeprefix(root): array for path, array in arrays.items()
              if path.startswith(root)}
    for old, new in _OLD_NAMES:
        arrays = {re.sub(old, new, path): array for path, array in arrays.items()}
    return split_class_position(_unstack_layers(where, arrays), "cls", "pos_embedding")


def split_class_position(arrays: Arrays, token: str, position: str) -> Arrays:
    """Adds the class token's own position embedding to the class token.

    Models that concatenate the token first have one position more than patches; the sum that
    enters the encoder is the same.
    """
    if token not in arrays or position not in arrays or arrays[position].ndim != 3:
        return arrays
    table = arrays[position]
    if math.isqrt(max(table.shape[1] - 1, 0)) ** 2 + 1 != table.shape[1]:
        return arrays
    if arrays[token].shape != table[:, :1].shape:
        return arrays  # the check of shapes will say so
    return {**arrays, token: arrays[token] + table[:, :1], position: table[:, 1:]}


def describe(where: str, arrays: Arrays) -> tuple[Shape, dict[str, Any]]:
    """Returns the shape and the options that canonical arrays show.

    `image_size` is among the options where positions are learned; fixed ones leave no trace of it.

    Raises:
      InputError: an array that decides one of them is missing or cannot be.
    """
    layer = _LAYER.format(i=0)
    patch, columns, channels, d_model = _size(where, arrays, "embedding/kernel", 4)
    _, num_heads, d_kv = _size(
        where, arrays, f"{layer}MultiHeadDotProductAttention_0/query/kernel", 3)
    _, d_ff = _size(where, arrays, f"{layer}MlpBlock_0/Dense_0/kernel", 2)
    if patch != columns:
        raise InputError(where, "its patches are not square", got=f"{patch} x {columns}")
    numbers = [int(m[1]) for m in map(re.compile(_LAYER.format(i=r"(\d{1,9})")).match, arrays) if m]
    shape = Shape(1 + max(numbers), 0, d_model=d_model, d_ff=d_ff, d_kv=d_kv, num_heads=num_heads)
    options: dict[str, Any] = {
        "patch_size": patch, "channels": channels, "pool_type": "gap", "position": "sincos2d",
        "num_classes": 0, "rep_size": 0, **FIXED}
    if "pos_embedding" in arrays:
        options["position"] = "learn"
        _, length, _ = _size(where, arrays, "pos_embedding", 3)
        options["image_size"] = patch * square_side(where, "pos_embedding", length)
    if "cls" in arrays:
        options["pool_type"] = "tok"
    elif "MAPHead_0/probe" in arrays:
        options["pool_type"] = "map"
    for name, option in (("pre_logits", "rep_size"), ("head", "num_classes")):
        if f"{name}/bias" in arrays:
            (options[option],) = _size(where, arrays, f"{name}/bias", 1)
    return shape, options


def square_side(where: str, name: str, length: int) -> int:
    """Returns the patches along a side of a square image with `length` of them.

    Raises:
      InputError: `length` is no square.
    """
    side = math.isqrt(length)
    if side == 0 or side * side != length:
        raise InputError(where, f"{name} is not of a square image", got=f"{length} positions")
    return side


def _size(where: str, arrays: Mapping[str, np.ndarray], name: str, ndim: int) -> tuple[int, ...]:
    if name not in arrays:
        raise InputError(where, "is no ViT: an array is missing", expected=name,
                         got=f"{len(arrays)} arrays, {min(arrays, default='none')} first")
    if arrays[name].ndim != ndim or 0 in arrays[name].shape:
        raise InputError(where, f"array {name} is not of a ViT", got=list(arrays[name].shape),
                         expected=f"{ndim} axes")
    return arrays[name].shape


def _unstack_layers(where: str, arrays: Arrays) -> Arrays:
    """Layers on a leading axis -> layers apart."""
    apart: Arrays = {}
    for path, array in arrays.items():
        if not path.startswith(_STACKED) or not array.ndim:
            apart[path] = array
            continue
        name = path.removeprefix(_STACKED)
        if len(array) > MAX_LAYERS:
            raise InputError(where, f"array {path} has too many layers", got=len(array),
                             expected=f"at most {MAX_LAYERS}")
        for i, layer in enumerate(array):  # [layers, ...] -> [...]
            apart[f"{_LAYER.format(i=i)}{name}"] = layer
    return apart
