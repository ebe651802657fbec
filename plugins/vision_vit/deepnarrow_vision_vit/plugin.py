"""Hooks of vision_vit. Nothing here imports JAX; the model's code is imported when called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import deepnarrow_vision_vit.frame as frame
from deepnarrow.formats import format_in
from deepnarrow.hookspecs import hookimpl
from deepnarrow.modality import (
    BoundArchitecture,
    Key,
    Modality,
    Model,
    Params,
    Path,
    Stack,
    Task,
    Upstream,
)
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.big_vision import ARCHITECTURE as BIG_VISION
from deepnarrow_vision_vit.dataoptions import default_data_options
from deepnarrow_vision_vit.options import default_options
from deepnarrow_vision_vit.presets import PRESETS

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _assemble(shape: Shape, options: ConfigDict, stacks: Mapping[str, Stack]) -> Model:
    from deepnarrow_vision_vit.model import assemble

    return assemble(shape, options, stacks)


def _upstream(data_options: ConfigDict, options: ConfigDict) -> Upstream:
    from deepnarrow_vision_vit.tasks import upstream

    return upstream(data_options, options)


def _tasks(data_options: ConfigDict, options: ConfigDict) -> Mapping[str, Task]:
    from deepnarrow_vision_vit.tasks import tasks

    return tasks(data_options, options)


def _adapt(
    params: Params, source_options: ConfigDict, target_options: ConfigDict, key: Key
) -> tuple[Params, Sequence[Path]]:
    from deepnarrow_vision_vit.adapt import adapt

    return adapt(params, source_options, target_options, key)


@hookimpl
def deepnarrow_register_modalities() -> list[Modality]:
    """Vision Transformers."""
    return [Modality(
        name="vision_vit",
        presets=PRESETS,
        options=default_options(),
        data_options=default_data_options(),
        stack_specs=frame.stack_specs,
        assemble=_assemble,
        count_frame=frame.count_frame,
        upstream=_upstream,
        tasks=_tasks,
        adapt=_adapt,
        suffix_option="patch_size",
        check_options={"patch_size": 4},  # the digits are smaller than the default patch
        step=frame.STEP,
        checkpoint_formats={
            name: format_in(f"deepnarrow_vision_vit.{module}")
            for name, module in (("big_vision", "npzformat"), ("huggingface", "hfformat"),
                                 ("timm", "timmformat"))
        },
    )]


@hookimpl
def deepnarrow_register_architectures() -> list[BoundArchitecture]:
    """big_vision's own ViT, where there is a checkout."""
    return [BIG_VISION]
