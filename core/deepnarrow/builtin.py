"""The core's own registrations, through the same hooks as everybody's."""

from __future__ import annotations

from deepnarrow.hookspecs import hookimpl
from deepnarrow.modality import AnyArchitecture
from deepnarrow.ops import CORE_OPS, ShapeOp
from deepnarrow.plugins import Launcher, LawForm, Strategy


@hookimpl
def deepnarrow_register_shape_ops() -> list[ShapeOp]:
    """NL EL DL DM FF KV NH SH SKV SHKV."""
    return list(CORE_OPS)


@hookimpl
def deepnarrow_register_architectures() -> list[AnyArchitecture]:
    """The vanilla Transformer."""
    from deepnarrow.layers.transformer import TRANSFORMER

    return [TRANSFORMER]


@hookimpl
def deepnarrow_register_strategies() -> list[Strategy]:
    """deepnarrow, uniform, width, compound, sovit."""
    from deepnarrow.strategies import STRATEGIES

    return list(STRATEGIES)


@hookimpl
def deepnarrow_register_law_forms() -> list[LawForm]:
    """power, power_floor, chinchilla, shape."""
    from deepnarrow.lawforms import FORMS

    return list(FORMS)


@hookimpl
def deepnarrow_register_launchers() -> list[Launcher]:
    """inline, local, ray, slurm."""
    from deepnarrow.launch import inline, local, raycluster, slurm

    return [Launcher("inline", inline.run), Launcher("local", local.run),
            Launcher("ray", raycluster.run), Launcher("slurm", slurm.run)]
