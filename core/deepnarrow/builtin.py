"""The core's own registrations, through the same hooks as everybody's."""

from __future__ import annotations

from deepnarrow.hookspecs import hookimpl
from deepnarrow.modality import AnyArchitecture
from deepnarrow.ops import CORE_OPS, ShapeOp


@hookimpl
def deepnarrow_register_shape_ops() -> list[ShapeOp]:
    """NL EL DL DM FF KV NH SH SKV SHKV."""
    return list(CORE_OPS)


@hookimpl
def deepnarrow_register_architectures() -> list[AnyArchitecture]:
    """The vanilla Transformer."""
    from deepnarrow.layers.transformer import TRANSFORMER

    return [TRANSFORMER]
