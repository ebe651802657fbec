"""An architecture of plain JAX functions: it fills the encoder of any modality.

    pip install .
    deepnarrow check vision_vit --architecture jax_averaging
    deepnarrow study CONFIG --set "modalities.vision_vit.architectures=('jax_averaging',)"

A layer adds to every position a linear map of the mean over all positions, then an MLP: the least
that lets positions see each other. Nothing here imports JAX; `model.py` does, when it is needed.
"""

from __future__ import annotations

import functools
from typing import Any

from deepnarrow import hookimpl
from deepnarrow.errors import NotApplicable
from deepnarrow.modality import Architecture, Costs, FlopTerm, ParamArray, Stack, StackOptions
from deepnarrow.shape import Shape

NAME = "jax_averaging"


@hookimpl
def deepnarrow_register_architectures() -> list[Architecture]:
    """Averaging layers. They have no heads: only depth, width and `ff` act on them."""
    return [Architecture(NAME, make_stack, frozenset({"NL", "EL", "DM", "FF"}), aux_loss=False)]


def make_stack(shape: Shape, role: str, length: int, options: StackOptions) -> Stack:
    """Returns a stack of such layers, or says why it cannot be one."""
    if role != "encoder" or options.causal or options.context_length is not None:
        raise NotApplicable(f"architecture {NAME!r}", "averages over all positions, so it cannot "
                            "decode", got=role, expected="encoder")

    def init(key: Any) -> Any:
        from deepnarrow_jax_averaging.model import init

        return init(count(shape, length).arrays, key)

    def apply(params: Any, x: Any, **settings: Any) -> Any:
        from deepnarrow_jax_averaging.model import apply

        return apply(options, params, x, **settings)

    return Stack(init=init, apply=apply, init_cache=_no_cache,
                 count=functools.partial(count, shape, length), output_length=length)


def count(shape: Shape, length: int) -> Costs:
    """A product of `d_model x d_model` for the mean and two of `d_model x d_ff` for each position,
    in every layer."""
    layers, d_model, d_ff = shape.num_encoder_layers, shape.d_model, shape.d_ff

    def array(name: str, size: tuple[int, ...], axes: tuple[str, ...], part: str) -> ParamArray:
        return ParamArray(("layers", name), (layers, *size), ("layers", *axes), part)

    return Costs(
        arrays=(
            array("norm", (d_model,), ("embed",), "norm"),
            array("mean", (d_model, d_model), ("embed", None), "mean"),
            array("wi", (d_model, d_ff), ("embed", "mlp"), "mlp"),
            array("wo", (d_ff, d_model), ("mlp", "embed"), "mlp"),
            ParamArray(("final_norm",), (d_model,), ("embed",), "norm"),
        ),
        flops=(
            FlopTerm("mean", "weight", 2.0 * layers * d_model * d_model,
                     activation_floats=float(layers * d_model)),
            FlopTerm("mlp", "weight", 4.0 * layers * length * d_model * d_ff,
                     activation_floats=float(layers * length * (2 * d_model + 2 * d_ff))),
        ))


def _no_cache(*_: Any) -> None:
    raise NotApplicable(f"architecture {NAME!r}", "cannot decode")
