"""The hooks a plugin may implement (entry-point group `deepnarrow.plugins`).

A plugin is a module. It implements hooks with `@deepnarrow.hookimpl`; registration hooks return
what they register, observers return nothing. A plugin's module imports without JAX: model code is
imported inside the functions that need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from deepnarrow.modality import AnyArchitecture, Modality, Task
    from deepnarrow.ops import ShapeOp
    from deepnarrow.plugins import Launcher, LawForm, Strategy

PROJECT = "deepnarrow"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- registration: called once, when plugins are loaded ---------------------------------------
@hookspec
def deepnarrow_register_modalities() -> list[Modality]:  # pyright: ignore[reportReturnType]
    """Returns the modalities this plugin adds."""


@hookspec
def deepnarrow_register_architectures() -> list[AnyArchitecture]:  # pyright: ignore[reportReturnType]
    """Returns architectures, general ones or bound to any plugin's modality."""


@hookspec
def deepnarrow_register_tasks() -> Mapping[str, list[Task]]:  # pyright: ignore[reportReturnType]
    """Returns transfer tasks by the name of the modality they extend."""


@hookspec
def deepnarrow_register_shape_ops() -> list[ShapeOp]:  # pyright: ignore[reportReturnType]
    """Returns shape operators; they act on a field of `Shape` or on a model option."""


@hookspec
def deepnarrow_register_strategies() -> list[Strategy]:  # pyright: ignore[reportReturnType]
    """Returns scaling strategies: given a base shape and a budget, they return shapes."""


@hookspec
def deepnarrow_register_law_forms() -> list[LawForm]:  # pyright: ignore[reportReturnType]
    """Returns functional forms of scaling laws that can be fitted."""


@hookspec
def deepnarrow_register_launchers() -> list[Launcher]:  # pyright: ignore[reportReturnType]
    """Returns launchers that run the units of a study."""


# --- observers: called on the host, never inside jit ------------------------------------------
@hookspec
def deepnarrow_step_end(info: Mapping[str, Any]) -> None:
    """Called with every point of a learning curve, when it is measured.

    :param info: whose: `trial_key`, `study`, `workdir`, `modality`, `architecture`, `shape`,
      `seed`, `config` (the resolved trial, JSON-able), `tensorboard` (the config wants it); and
      what: `stage` (`upstream`, `fine_tune`), `step`, `total_steps`, `metrics` (name -> float:
      `train/loss`, `validation/accuracy`, `TASK/seed0/train/loss`). A resumed run tells the steps
      behind its checkpoint again.
    """


@hookspec
def deepnarrow_run_end(record: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Called when a trial has ended, well or badly, and its record is stored.

    :param record: the record, as `records.Record.to_dict()` gives it.
    :param info: whose, as for `deepnarrow_step_end`.
    """
