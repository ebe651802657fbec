"""An architecture written in Flax Linen: it fills the encoder of any modality.

    pip install .
    deepnarrow check vision_vit --architecture linen_mixer
    deepnarrow study CONFIG --set "modalities.vision_vit.architectures=('linen_mixer',)"

An MLP-Mixer (Tolstikhin et al. 2021): a layer mixes positions by one MLP and channels by another,
both with `d_ff` hidden units. Nothing here imports JAX; `model.py` does, when it is needed.
"""

from __future__ import annotations

import functools
from typing import Any

from deepnarrow import hookimpl
from deepnarrow.errors import NotApplicable
from deepnarrow.modality import Architecture, Costs, FlopTerm, ParamArray, Stack, StackOptions
from deepnarrow.shape import Shape

NAME = "linen_mixer"


@hookimpl
def deepnarrow_register_architectures() -> list[Architecture]:
    """The Mixer. It has no heads: of the operators only depth, width and `ff` act on it."""
    return [Architecture(NAME, make_stack, frozenset({"NL", "EL", "DM", "FF"}), aux_loss=False)]


def make_stack(shape: Shape, role: str, length: int, options: StackOptions) -> Stack:
    """Returns a stack of Mixer layers, or says why it cannot be one."""
    if role != "encoder" or options.causal or options.context_length is not None:
        raise NotApplicable(f"architecture {NAME!r}", "sees all positions at once, so it cannot "
                            "decode", got=role, expected="encoder")
    if options.remat != "none":
        raise NotApplicable(f"architecture {NAME!r}", "keeps all activations", got=options.remat,
                            expected="remat none")

    def module() -> Any:
        from deepnarrow_linen_mixer.model import Mixer

        return Mixer(shape.num_encoder_layers, shape.d_ff, length, options.dropout_rate,
                     options.compute_dtype, options.scan)

    def init(key: Any) -> Any:
        import jax.numpy as jnp

        return module().init(key, jnp.zeros((1, length, shape.d_model)), None, False)["params"]

    def apply(params: Any, x: Any, **settings: Any) -> Any:
        from deepnarrow_linen_mixer.model import apply

        return apply(module(), params, x, **settings)

    return Stack(init=init, apply=apply, init_cache=_no_cache,
                 count=functools.partial(count, shape, length), output_length=length)


def count(shape: Shape, length: int) -> Costs:
    """Every array that Linen makes, and every product: two of `length x d_ff` for each channel and
    two of `d_model x d_ff` for each position, in every layer."""
    layers, d_model, d_ff = shape.num_encoder_layers, shape.d_model, shape.d_ff
    arrays = []
    # The positions' axis has no name of the core's: "length" is for tables that are looked up in.
    for part, size, axis in (("tokens", length, None), ("channels", d_model, "embed")):
        arrays += [ParamArray(("layers", part, "norm", name), (layers, d_model),
                              ("layers", "embed"), "norm") for name in ("scale", "bias")]
        for name, shape_, axes in (("wi", (size, d_ff), (axis, "mlp")),
                                   ("wo", (d_ff, size), ("mlp", axis))):
            arrays += [
                ParamArray(("layers", part, name, "kernel"), (layers, *shape_), ("layers", *axes),
                           part),
                ParamArray(("layers", part, name, "bias"), (layers, shape_[1]),
                           ("layers", axes[1]), part)]
    arrays += [ParamArray(("final_norm", name), (d_model,), ("embed",), "norm")
               for name in ("scale", "bias")]
    kept = float(layers * (2 * length * d_model + d_ff))
    return Costs(tuple(arrays), (
        FlopTerm("tokens", "weight", 4.0 * layers * d_model * length * d_ff,
                 activation_floats=kept + layers * d_model * d_ff),
        FlopTerm("channels", "weight", 4.0 * layers * length * d_model * d_ff,
                 activation_floats=kept + layers * length * d_ff)))


def _no_cache(*_: Any) -> None:
    raise NotApplicable(f"architecture {NAME!r}", "cannot decode")
