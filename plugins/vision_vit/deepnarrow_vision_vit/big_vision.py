"""Working beside a checkout of big_vision: its ViT, its few-shot evaluator, its config style.

big_vision is on no package index: a clone of github.com/google-research/big_vision on `PYTHONPATH`
is used where there is one, with the packages that it imports. Everything else works without; no
JAX here until a function needs it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.assemble import count_costs as count_ours
from deepnarrow.errors import InputError, NotApplicable, suggest
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.modality import BoundArchitecture, Costs, Model, ParamArray
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.presets import PRESETS

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64
    from ml_collections import ConfigDict

NAME = "big_vision_vit"
VIT, FEWSHOT = "big_vision.models.vit", "big_vision.evaluators.fewshot_lsr"
# What the modules import besides our own dependencies: package -> how to install it.
PACKAGES = {"tensorflow": "pip install tensorflow-cpu", "einops": "pip install einops",
            "absl": "pip install absl-py"}
# Ours -> big_vision's policy for what a layer keeps.
REMAT_POLICIES = {"none": "everything_saveable", "full": "nothing_saveable",
                  "dots": "dots_with_no_batch_dims_saveable"}


def unavailable() -> str | None:
    """Returns why big_vision cannot be used here, with the remedy; None where it can. Imports it
    not."""
    if VIT in sys.modules:
        return None
    if importlib.util.find_spec("big_vision") is None:
        return ("big_vision is not on PYTHONPATH: clone github.com/google-research/big_vision and "
                "put the clone there")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"big_vision imports {missing[0]}: {PACKAGES[missing[0]]}" if missing else None


def import_module(name: str) -> Any:
    """Returns a module of big_vision.

    Raises:
      NotApplicable: there is no checkout, or a package that it imports is missing.
    """
    reason = unavailable()
    if reason is None:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reason = f"importing {name} failed: {error}"
    raise NotApplicable("big_vision", f"cannot be used here: {reason}")


# --- the architecture -------------------------------------------------------------------------
def count_costs(shape: Shape, options: ConfigDict) -> Costs:
    """Costs of big_vision's ViT: ours, under its names, layers stacked where it scans.

    Raises:
      NotApplicable: big_vision has no such ViT.
    """
    from deepnarrow_vision_vit.plugin import deepnarrow_register_modalities

    _check_model(shape, options)
    costs = count_ours(deepnarrow_register_modalities()[0], TRANSFORMER, shape, options)
    arrays = [renamed for array in costs.arrays for renamed in _renamed(array, options.scan)]
    return dataclasses.replace(costs, arrays=tuple(arrays))


def _make_model(shape: Shape, options: ConfigDict) -> Model:
    from deepnarrow_vision_vit.linen import make_model

    _check_model(shape, options)
    return make_model(import_module(VIT), shape, options, count_costs(shape, options).arrays)


def _check_model(shape: Shape, options: ConfigDict) -> None:
    from deepnarrow_vision_vit.convert import check_convertible

    check_convertible(shape, options.to_dict())
    if options.remat != "none" and not options.scan:
        raise NotApplicable(f"architecture {NAME!r}", "recomputes only where it scans",
                            got=f"remat {options.remat}, scan False", expected="scan True")


def _renamed(array: ParamArray, scan: bool) -> list[ParamArray]:
    """Our array as big_vision's: one, or one a layer."""
    from deepnarrow_vision_vit.convert import NAMES
    from deepnarrow_vision_vit.layout import LAYERS

    path = "/".join(array.path)
    if not path.startswith(LAYERS):
        theirs, _ = NAMES.frame[path]
        return [dataclasses.replace(array, path=tuple(theirs.split("/")))]
    theirs, _ = NAMES.layer[path.removeprefix(LAYERS)]
    if scan:
        return [dataclasses.replace(array, path=tuple(theirs.replace("_{i}", "", 1).split("/")))]
    return [dataclasses.replace(array, path=tuple(theirs.format(i=i).split("/")),
                                shape=array.shape[1:], axes=array.axes[1:])
            for i in range(array.shape[0])]


ARCHITECTURE = BoundArchitecture(
    name=NAME, modality="vision_vit", make_model=_make_model, count_costs=count_costs,
    operators=frozenset({"NL", "EL", "DM", "FF", "KV", "NH"}), unavailable=unavailable,
    aux_loss=False)


# --- the few-shot evaluator ---------------------------------------------------------------------
def fewshot_accuracy(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    num_classes: int,
    shots: Sequence[int],
    num_seeds: int = 3,
    l2: float = 1024.0,
) -> Float64[np.ndarray, "shots seeds"]:
    """Returns the accuracies that big_vision's own evaluator `fewshot_lsr` gives on features.

    `deepnarrow probe` is the same on the same files, without a checkout. With features in files:

        fewshot_accuracy(*load_probe_arrays("train.npz"), *load_probe_arrays("test.npz"), ...)

    Args:
      x_train: features [n_train, d] to draw the shots from.
      y_train: their labels [n_train], 0 ... num_classes - 1.
      x_test: features [n_test, d] to classify.
      y_test: their labels [n_test].
      num_classes: number of classes.
      shots: examples a class.
      num_seeds: seeds 0 ... num_seeds - 1 draw the shots.
      l2: strength of the ridge.

    Raises:
      NotApplicable: there is no checkout, or a package that it imports is missing.
    """
    module = import_module(FEWSHOT)
    import jax
    import numpy as np

    name = "features"
    evaluator = module.Evaluator(
        lambda *_: None, batch_size=1, datasets={}, shots=tuple(shots), l2_reg=l2, pp_train="",
        pp_eval="", display_first=(), num_seeds=num_seeds, devices=jax.devices())
    # It looks here before it reads a data set and computes features.
    evaluator._repr[name] = (x_train, y_train, x_test, y_test, num_classes)
    per_seed = [evaluator.compute_fewshot_metrics(None, seed, name, "train", "test")
                for seed in range(num_seeds)]
    return np.array([[float(result[k]) for result in per_seed] for k in shots])


# --- the config style ---------------------------------------------------------------------------
_SAME = ("pool_type", "head_zeroinit", "scan", "num_classes")
_PATCH = re.compile(r"[1-9][0-9]{0,3}")
_FIELDS = ("variant", "width", "depth", "mlp_dim", "num_heads", "patch_size", "posemb", "rep_size",
           "dropout", "remat_policy", "dtype_mm", *_SAME)


def read_model_config(model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns big_vision's `config.model` as a shape expression and model options.

    What it leaves out has big_vision's defaults, so that the model is the same.

    >>> read_model_config({"variant": "S/16", "rep_size": True, "posemb": "sincos2d"})[0]
    'S/16'
    >>> read_model_config({"variant": "S/16", "rep_size": True})[1]["rep_size"]
    384
    >>> read_model_config({"variant": "B/32", "depth": 24, "num_heads": 6})[0]
    'B/32-nl24-kv128-nh6'

    Raises:
      InputError: a key or value that its ViT does not have, or ours cannot.
    """
    where = "big_vision config.model"
    for key in model:
        if key not in _FIELDS:
            near = suggest(str(key), _FIELDS)
            raise InputError(where, f"{key!r} is no field of its ViT",
                             hint=f"did you mean {near}?" if near else None)
    expression, width = _expression(model, where)
    options: dict[str, Any] = {
        "position": model.get("posemb", "learn"), "pool_type": model.get("pool_type", "gap"),
        "rep_size": _rep_size(model, width, where),
        "head_zeroinit": model.get("head_zeroinit", True),
        "dropout_rate": _dropout(model, where), "scan": model.get("scan", False),
        "compute_dtype": model.get("dtype_mm", "float32"), "remat": _remat(model, where)}
    if options["pool_type"] not in ("gap", "tok", "map"):
        raise InputError(where, "its pooling is none of ours", got=options["pool_type"],
                         expected="gap, tok or map")
    if model.get("num_classes") is not None:
        options["num_classes"] = model["num_classes"]
    return expression, options


def _expression(model: Mapping[str, Any], where: str) -> tuple[str, int]:
    """The shape expression, and the width."""
    variant = str(model.get("variant") or "B")
    name, slash, patch = variant.partition("/")
    if name not in PRESETS or name == "tiny" or (slash and not _PATCH.fullmatch(patch)):
        raise InputError(where, "unknown variant", got=variant,
                         expected=f"one of {', '.join(n for n in PRESETS if n != 'tiny')}, "
                                  "perhaps with /16")
    base = PRESETS[name].shape
    size = _side(model.get("patch_size", int(patch or 16)), where)
    # Without a variant the MLP is four times as wide as the model.
    width = _number(model, "width", base.d_model, where)
    mlp = base.d_ff if model.get("variant") else 4 * width
    heads = _number(model, "num_heads", base.num_heads, where)
    if width % heads:
        raise InputError(where, "num_heads does not divide the width", got=f"{heads} and {width}")
    fields = {
        "nl": (_number(model, "depth", base.num_encoder_layers, where), base.num_encoder_layers),
        "dm": (width, base.d_model),
        "ff": (_number(model, "mlp_dim", mlp, where), base.d_ff),
        "kv": (width // heads, base.d_kv),
        "nh": (heads, base.num_heads),
    }
    operators = [f"-{symbol}{value}" for symbol, (value, old) in fields.items() if value != old]
    return f"{name}/{size}{''.join(operators)}", width


def _number(model: Mapping[str, Any], name: str, default: int, where: str) -> int:
    value = model.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise InputError(where, f"{name} is not a positive integer", got=repr(value))
    return value


def _side(size: Any, where: str) -> int:
    """The side of a patch: a positive integer, or a pair of the same one."""
    sides = size if isinstance(size, (tuple, list)) else (size,)
    if not sides or any(type(side) is not int or side < 1 for side in sides):
        raise InputError(where, "patch_size is no positive integer, and no two of them",
                         got=repr(size))
    if len(set(sides)) != 1:
        raise InputError(where, "patches are square here", got=f"patch_size {tuple(sides)}")
    return sides[0]


def _rep_size(model: Mapping[str, Any], width: int, where: str) -> int:
    """The width of `pre_logits`: the model's own for True, none for False."""
    value = model.get("rep_size", False)
    if type(value) not in (bool, int) or value < 0:
        raise InputError(where, "rep_size is no bool and no integer >= 0", got=repr(value))
    return width if value is True else int(value)


def _dropout(model: Mapping[str, Any], where: str) -> float:
    value = model.get("dropout", 0.0)
    if type(value) not in (int, float):
        raise InputError(where, "dropout is no number", got=repr(value))
    return float(value)


def _remat(model: Mapping[str, Any], where: str) -> str:
    """It recomputes a layer where it scans, and keeps everything where it does not."""
    if not model.get("scan", False):
        return "none"
    policy = model.get("remat_policy", "nothing_saveable")
    ours = {theirs: name for name, theirs in REMAT_POLICIES.items()}
    if policy not in ours:
        raise InputError(where, "its remat_policy is none of ours", got=policy,
                         expected=f"one of {', '.join(ours)}")
    return ours[policy]
