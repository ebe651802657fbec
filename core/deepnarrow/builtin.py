"""The core's own registrations, through the same hooks as everybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


@hookimpl
def deepnarrow_step_end(info: Mapping[str, Any]) -> None:
    """TensorBoard, where the config asks for it."""
    if info.get("tensorboard"):
        from deepnarrow import tensorboard

        tensorboard.step_end(info)


@hookimpl
def deepnarrow_run_end(record: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """TensorBoard, where the config asks for it."""
    if info.get("tensorboard"):
        from deepnarrow import tensorboard

        tensorboard.run_end(record, info)
