"""Registration and shapes: what the plugin brings, and what operators do to it."""

from __future__ import annotations

import os
import subprocess
import sys

import jax

from deepnarrow.assemble import check_operators
from deepnarrow.contract import check_modality as check_contract
from deepnarrow.errors import InputError, NotApplicable, ShapeError
from deepnarrow.ops import CORE_OPS
from deepnarrow.testing.subject import (
    Subject,
    axes_of,
    doubled,
    expect,
    first_of,
    leaves_by_path,
    name_of,
    shapes_of,
)

IMPORT_SECONDS = 120
# What each operator changes: the axis of that name, wherever it is.
CLAIMS = {"dm": ("d_model", "embed"), "ff": ("d_ff", "mlp"), "kv": ("d_kv", "kv"),
          "nh": ("num_heads", "heads")}


def check_registration(subject: Subject) -> None:
    """Members have the types of the contract, and `tiny` is there."""
    try:
        check_contract(subject.modality)
    except InputError as error:
        expect(False, f"what the plugin registers breaks the contract: {error}")


def check_operators_build(subject: Subject) -> None:
    """Every operator of the core either makes a model of `tiny` or says that it does not apply."""
    for op in CORE_OPS:
        text = f"tiny-{op.symbol.lower()}" + ("" if op.is_flag else "2")
        try:
            check_operators(subject.shape(text), subject.architecture)
            jax.eval_shape(subject.model_of(text).init, jax.random.key(0))
        except (NotApplicable, ShapeError):
            continue
        except Exception as error:
            expect(False, f"{text} raises {type(error).__name__}: {error}; build it, or let "
                          "stack_specs or assemble raise NotApplicable with the reason")


def check_depth_is_layers(subject: Subject) -> None:
    """Twice the layers change the `layers` axis and nothing else."""
    if not subject.applies("tiny-nl2"):
        return
    once = leaves_by_path(shapes_of(subject, "tiny-nl2"))
    twice = leaves_by_path(shapes_of(subject, "tiny-nl4"))
    expect(once.keys() == twice.keys(), "tiny-nl2 and tiny-nl4 have other parameters, first "
           f"{first_of(once.keys() ^ twice.keys())}; put the layers of a stack on one leading axis")
    axes = axes_of(subject, "tiny-nl2")
    for path, leaf in once.items():
        deep = (4, *leaf.shape[1:]) if "layers" in axes.get(path, ()) else leaf.shape
        expect(twice[path].shape == deep, f"{name_of(path)} is {leaf.shape} with 2 layers and "
               f"{twice[path].shape} with 4; only the leading axis `layers` may change with depth")


def check_imports_without_jax(subject: Subject) -> None:
    """The plugin's module is imported without JAX, so that every command starts at once."""
    for info in subject.registry.plugins:
        if subject.modality.name not in info.names.get("modalities", ()) or not info.module:
            continue
        code = ("import importlib, sys; importlib.import_module(sys.argv[1]); "
                "sys.exit(3 if 'jax' in sys.modules else 0)")
        done = subprocess.run([sys.executable, "-c", code, info.module], check=False,
                              capture_output=True, text=True, timeout=IMPORT_SECONDS,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        expect(done.returncode in (0, 3), f"a fresh process cannot import {info.module}: "
               f"{done.stderr.strip()[-300:]}")
        expect(done.returncode == 0, f"importing {info.module} imports JAX; import the model's "
               "code, and whatever else needs JAX, inside the functions that use it")


def _as_claimed(
    once: int, twice: int, name: str | None, axis: str, names: tuple[str | None, ...]
) -> bool:
    """Whether one dimension grew as its name says, when the axis `axis` was doubled."""
    if name is None and axis in names:  # a square matrix names one side: a mesh splits no two alike
        return twice in (once, 2 * once)
    return twice == once * (1 + (name == axis))


def check_operators_change_what_they_claim(subject: Subject) -> None:
    """Twice the width, MLP, heads or d_kv change the axes of that name and nothing else."""
    once, axes = leaves_by_path(shapes_of(subject, "tiny")), axes_of(subject, "tiny")
    for symbol, (field, axis) in CLAIMS.items():
        text = doubled(subject, symbol, field)
        if not subject.applies(text):
            continue
        twice = leaves_by_path(shapes_of(subject, text))
        expect(once.keys() == twice.keys(), f"tiny and {text} have other parameters, first "
               f"{first_of(once.keys() ^ twice.keys())}; an operator changes sizes only")
        for path, leaf in once.items():
            dims = zip(leaf.shape, twice[path].shape, axes[path], strict=True)
            expect(all(_as_claimed(*dim, axis, axes[path]) for dim in dims),
                   f"{name_of(path)} {axes[path]} is {leaf.shape} in "
                   f"tiny and {twice[path].shape} in {text}; {symbol} changes axes named {axis!r} "
                   "and no others: name the axis so, or leave its size")
