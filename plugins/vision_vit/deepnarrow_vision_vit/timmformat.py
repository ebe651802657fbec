"""Folders as timm's hub has them: `config.json` (architecture, model_args) and safetensors.

timm fuses query, key and value, has GELU by erf unless told otherwise, and adds a position to the
class token too, which is added to the token here and is zero where we write. LayerScale is folded
into the matrix before it. What a folder does not say is what timm's architecture of that name has:
only plain ViTs are known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.formats import CheckpointHeader
from deepnarrow.modality import Params
from deepnarrow.shape import Shape
from deepnarrow.tensorfiles import read_arrays
from deepnarrow_vision_vit.convert import split_class_position, square_side
from deepnarrow_vision_vit.hfformat import with_positions
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
    statistics,
    write_folder,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

POOLINGS = {"token": "tok", "avg": "gap", "map": "map"}
NORM_EPS = 1e-6  # of timm's ViTs, those of CLIP and a few others apart
# Names whose norm, activation, blocks are a plain ViT's: from timm 1.0.31, vision_transformer.py
# and deit.py.
_PLAIN = re.compile(
    r"(vit_(tiny|small|medium|base|large|huge|giant|gigantic|so400m|giantopt)_patch\d+"
    r"(_gap|_siglip|_siglip_gap)?_\d+|deit3?_(tiny|small|medium|base|large|huge)_patch\d+_\d+|"
    r"flexivit_(small|base|large)|vit_(small|base|large)_patch14_dinov2)(\..*)?")
_TANH = re.compile(r".*(patch32_siglip|large_patch16_siglip(_gap)?_512|so400m_patch16|giantopt).*")
_HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 16,
          1664: 16}
_ODD_HEADS = {"vit_base_patch16_gap_224": 16}
# Arguments that this reader understands or that change nothing of a finished model.
_ARGUMENTS = frozenset({
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth",
    "num_heads", "mlp_ratio", "qkv_bias", "init_values", "class_token", "no_embed_class",
    "fc_norm", "act_layer", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate",
    "attn_drop_rate", "drop_path_rate", "weight_init", "dynamic_img_size", "fix_init",
})
_DEFAULTS = {"pos_embed": "learn", "final_norm": True, "proj_bias": True, "reg_tokens": 0}
_REASONS = {
    "fc_norm.": "normalises after pooling, this modality before",
    "norm_pre.": "normalises before its first layer",
    "reg_token": "has register tokens",
    "dist_token": "has a distillation token",
}
_LAYER = "blocks.{i}."
_PARTS = {"query": "q", "key": "k", "value": "v", "out": "proj"}


def _attention(ours: str, theirs: str) -> dict[str, tuple[str, Any]]:
    table = {}
    for path, kind in TORCH_ATTENTION.items():
        part, leaf = path.split("/")
        name = f"{theirs}.{_PARTS[part]}.{'weight' if leaf == 'kernel' else 'bias'}"
        table[f"{ours}/{path}"] = (name, kind)
    return table


_LAYER_NAMES = {
    **torch_norm("attention_norm", f"{_LAYER}norm1"),
    **_attention("attention", f"{_LAYER}attn"),
    **torch_norm("mlp_norm", f"{_LAYER}norm2"),
    **torch_dense("mlp/wi", f"{_LAYER}mlp.fc1"),
    **torch_dense("mlp/wo", f"{_LAYER}mlp.fc2"),
}
_FRAME_NAMES = {
    **torch_dense("embedding", "patch_embed.proj", CONVOLUTION),
    "position/embedding": ("pos_embed", SAME),
    "pooling/token": ("cls_token", SAME),
    "pooling/probe": ("attn_pool.latent", SAME),
    **_attention("pooling/attention", "attn_pool"),
    **torch_norm("pooling/norm", "attn_pool.norm"),
    **torch_dense("pooling/mlp/wi", "attn_pool.mlp.fc1"),
    **torch_dense("pooling/mlp/wo", "attn_pool.mlp.fc2"),
    **torch_norm("encoder/final_norm", "norm"),
    **torch_dense("head", "head"),
}
_FUSED = ((r"(blocks\.\d+\.attn)\.qkv\.(weight|bias)", "qkv"),
          (r"(attn_pool)\.kv\.(weight|bias)", "kv"))


NAMES = Names(_LAYER_NAMES, _FRAME_NAMES)


def inspect(path: str) -> CheckpointHeader:
    """Reads `config.json` and the arrays' headers.

    Raises:
      InputError: it is no folder of a plain ViT, or config and arrays contradict each other.
    """
    where = _where(path)
    config, stand_ins, files = open_folder(path, where)
    arrays = _canonical(stand_ins, where)
    shape, options = _describe(config, arrays, where)
    _statistics(config, options, where)
    check_arrays(where, arrays, *make_layout(NAMES, shape, options))
    return CheckpointHeader(shape, options, files, ADJUSTABLE)


def read(path: str, header: CheckpointHeader) -> Params:
    """Returns the parameters, float32, for images in [-1, 1], positions as the header says.

    Where the config's `mean` and `std` feed the model other images, the patch embedding is
    adjusted: see `torchfile.fold_statistics`.

    Raises:
      InputError: the folder is damaged, or has changed.
    """
    where = _where(path)
    config, _, files = open_folder(path, where)
    arrays = _canonical(read_arrays(path, files[1:]), where)
    shape, options = _describe(config, arrays, where)
    check_arrays(where, arrays, *make_layout(NAMES, shape, options))
    found = _statistics(config, options, where)
    if found is not None:
        fold_statistics(arrays, "patch_embed.proj.weight", "patch_embed.proj.bias", *found)
    params = read_entries(where, arrays, *make_layout(NAMES, shape, options))
    return resampled(params, header.options)


def write(path: str, shape: Shape, options: ConfigDict, params: Params) -> None:
    """Makes a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` takes.

    Fixed positions are written as the learned ones that they equal.

    Raises:
      NotApplicable: timm has no such ViT.
    """
    _check_writable(shape, options)
    params = with_positions(params, options, shape)
    sizes = {name: array.shape for name, array in flatten(params).items()}
    arrays = write_entries(params, make_entries(NAMES, sizes))
    if options.pool_type == "tok":  # zero for the token
        arrays["pos_embed"] = np.pad(arrays["pos_embed"], ((0, 0), (1, 0), (0, 0)))
    write_folder(path, _config(shape, options), _fuse(arrays))


# --- arrays ---------------------------------------------------------------------------------------
def _canonical(arrays: Arrays, where: str) -> Arrays:
    """Query, key and value apart, LayerScale folded, the class token's position in the token."""
    for prefix, reason in _REASONS.items():
        if any(name.startswith(prefix) for name in arrays):
            raise InputError(where, f"is a model that cannot be held: it {reason}", got=prefix)
    apart: Arrays = {}
    for name, array in arrays.items():
        for pattern, parts in _FUSED:
            match = re.fullmatch(pattern, name)
            if match and array.ndim and len(array) % len(parts) == 0:
                pieces = np.split(array, len(parts))  # [parts * width, ...] -> parts x [width, ...]
                apart |= {f"{match[1]}.{part}.{match[2]}": piece
                          for part, piece in zip(parts, pieces, strict=True)}
                break
        else:
            apart[name] = array
    _fold_layer_scale(apart, where)
    _add_biases(apart)
    return split_class_position(apart, "cls_token", "pos_embed")


def _fold_layer_scale(arrays: Arrays, where: str) -> None:
    """`gamma (W x + b)` is a linear map as well: it takes the place of `W x + b`."""
    for name in [name for name in arrays if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name)]:
        gamma = arrays.pop(name)
        block, scale, _ = name.rsplit(".", 2)
        scaled = f"{block}.{'attn.proj' if scale == 'ls1' else 'mlp.fc2'}"
        for leaf in ("weight", "bias"):
            array = arrays.get(f"{scaled}.{leaf}")
            if array is None or gamma.shape != array.shape[:1]:
                raise InputError(where, f"array {name} does not fit {scaled}.{leaf}",
                                 got=list(gamma.shape))
            factor = gamma[:, None] if array.ndim == 2 else gamma
            arrays[f"{scaled}.{leaf}"] = array.astype(np.float32) * factor.astype(np.float32)


def _add_biases(arrays: Arrays) -> None:
    """Attention without biases of query, key and value is attention whose biases are zero."""
    if any(re.fullmatch(r"blocks\.\d+\.attn\.q\.bias", name) for name in arrays):
        return  # a single missing one is an error
    pattern = re.compile(r"blocks\.\d+\.attn\.[qkv]\.weight")
    for name in [name for name in arrays if pattern.fullmatch(name)]:
        arrays[f"{name.removesuffix('weight')}bias"] = stand_in(arrays[name].shape[:1])


def _fuse(arrays: Arrays) -> Arrays:
    fused: Arrays = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn|attn_pool)\.([qkv])\.(weight|bias)", name)
        parts = "" if not match else "kv" if match[1] == "attn_pool" else "qkv"
        if match is None or match[2] not in parts:
            fused[name] = array
        elif match[2] == parts[0]:
            fused[f"{match[1]}.{parts}.{match[3]}"] = np.concatenate(
                [arrays[f"{match[1]}.{part}.{match[3]}"] for part in parts])
    return fused


# --- what a folder says -------------------------------------------------------------------------
def _where(path: str) -> str:
    return f"timm checkpoint '{path}'"


def _describe(
    config: Mapping[str, Any], arrays: Arrays, where: str
) -> tuple[Shape, dict[str, Any]]:
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(name, str) or not isinstance(arguments, dict) or not _PLAIN.fullmatch(name):
        raise InputError(where, f"{CONFIG}: architecture is not known to be a plain ViT", got=name,
                         expected="a name like vit_base_patch16_224")
    for key, value in arguments.items():
        if key not in _ARGUMENTS and value not in (None, False) and value != _DEFAULTS.get(key):
            raise InputError(where, f"{CONFIG}: model_args.{key} makes another model", got=value)
    patch, _, channels, d_model = _size(arrays, "patch_embed.proj.weight", 4, where)[::-1]
    d_ff, _ = _size(arrays, "blocks.0.mlp.fc1.weight", 2, where)
    width, _ = _size(arrays, "blocks.0.attn.q.weight", 2, where)
    _, length, _ = _size(arrays, "pos_embed", 3, where)
    heads = integer(arguments, "num_heads", where, _ODD_HEADS.get(name, _HEADS.get(d_model)))
    if width % heads:
        raise InputError(where, "num_heads does not divide the width of the queries",
                         got=f"{heads} and {width}")
    layers = {int(m[1]) for m in (re.match(r"blocks\.(\d{1,9})\.", key) for key in arrays) if m}
    shape = Shape(1 + max(layers), 0, d_model=d_model, d_ff=d_ff, d_kv=width // heads,
                  num_heads=heads)
    return shape, {
        "image_size": patch * square_side(where, "pos_embed", length), "patch_size": patch,
        "channels": channels, "pool_type": _pool_type(config, arguments, arrays, where),
        "position": "learn", "rep_size": 0, "norm_eps": NORM_EPS,
        "num_classes": _size(arrays, "head.bias", 1, where)[0] if "head.bias" in arrays else 0,
        "activation": _activation(name, arguments, where)}


def _pool_type(
    config: Mapping[str, Any], arguments: Mapping[str, Any], arrays: Arrays, where: str
) -> str:
    shown = ("map" if "attn_pool.latent" in arrays else "token" if "cls_token" in arrays
             else "avg")
    said = arguments.get("global_pool", config.get("global_pool")) or shown
    if said != shown:
        raise InputError(where, f"{CONFIG}: global_pool cannot be held with these arrays",
                         got=f"{said}, {'with' if 'cls_token' in arrays else 'without'} a class "
                         "token", expected=shown)
    return POOLINGS[shown]


def _activation(name: str, arguments: Mapping[str, Any], where: str) -> str:
    activation = arguments.get("act_layer") or ("gelu_tanh" if _TANH.fullmatch(name) else "gelu")
    known = {"gelu": "gelu_exact", "gelu_tanh": "gelu"}
    if activation not in known:
        raise InputError(where, f"{CONFIG}: model_args.act_layer is none of this modality's",
                         got=activation, expected=f"one of {', '.join(known)}")
    return known[activation]


def _size(arrays: Arrays, name: str, ndim: int, where: str) -> tuple[int, ...]:
    array = arrays.get(name)
    if array is None:
        raise InputError(where, "is no ViT of timm: an array is missing", expected=name)
    if array.ndim != ndim or 0 in array.shape:
        raise InputError(where, f"array {name} is not of a ViT", got=list(array.shape),
                         expected=f"{ndim} axes")
    return array.shape


def _statistics(
    config: Mapping[str, Any], options: Mapping[str, Any], where: str
) -> tuple[list[float], list[float]] | None:
    values = config.get("pretrained_cfg")
    values = values if isinstance(values, dict) else config  # older folders have one level
    return statistics(values.get("mean", 0.5), values.get("std", 0.5), options["channels"], where)


# --- what we write ------------------------------------------------------------------------------
def _check_writable(shape: Shape, options: ConfigDict) -> None:
    where = "timm export"
    if shape.num_heads * shape.d_kv != shape.d_model:
        raise NotApplicable(where, "timm's heads are d_model / num_heads wide",
                            got=f"d_model {shape.d_model}, num_heads {shape.num_heads}, "
                                f"d_kv {shape.d_kv}",
                            expected="num_heads * d_kv = d_model")
    if shape.share_heads or shape.share_kv:
        raise NotApplicable(where, "timm's heads share no projections",
                            expected="a shape without sh and skv")
    if options.rep_size:
        raise NotApplicable(where, "timm's ViT has no dense layer before the head",
                            got=f"rep_size {options.rep_size}", expected="rep_size 0")
    if options.norm_eps != NORM_EPS:
        raise NotApplicable(where, "timm's ViT has another norm_eps", got=options.norm_eps,
                            expected=NORM_EPS)


def _config(shape: Shape, options: ConfigDict) -> dict[str, Any]:
    pooling = {ours: theirs for theirs, ours in POOLINGS.items()}[options.pool_type]
    arguments: dict[str, Any] = {
        "img_size": options.image_size, "patch_size": options.patch_size,
        "in_chans": options.channels, "embed_dim": shape.d_model,
        "depth": shape.num_encoder_layers, "num_heads": shape.num_heads,
        "mlp_ratio": _ratio(shape), "class_token": pooling == "token", "global_pool": pooling,
    }
    if pooling == "avg":
        arguments["fc_norm"] = False
    if options.activation == "gelu":
        arguments["act_layer"] = "gelu_tanh"
    half, side = [0.5] * options.channels, options.image_size
    return {
        "architecture": "vit_base_patch16_224",  # model_args replace all of its numbers
        "num_classes": options.num_classes, "num_features": shape.d_model, "global_pool": pooling,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [options.channels, side, side], "fixed_input_size": True, "mean": half,
            "std": half, "num_classes": options.num_classes, "first_conv": "patch_embed.proj",
            "classifier": "head"}}


def _ratio(shape: Shape) -> float:
    """A ratio that timm's `int(d_model * ratio)` makes `d_ff` of."""
    exact = shape.d_ff / shape.d_model
    return exact if int(shape.d_model * exact) == shape.d_ff else (shape.d_ff + 0.5) / shape.d_model
