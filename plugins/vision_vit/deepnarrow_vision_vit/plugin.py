"""Hooks of vision_vit. Nothing here imports JAX; the model's code is imported when called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import deepnarrow_vision_vit.frame as frame
import deepnarrow_vision_vit.hfformat as hfformat
import deepnarrow_vision_vit.npzformat as npzformat
import deepnarrow_vision_vit.timmformat as timmformat
from deepnarrow.formats import CheckpointFormat
from deepnarrow.hookspecs import hookimpl
from deepnarrow.modality import BoundArchitecture, Key, Modality, Model, Params, Path, Stack
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.big_vision import ARCHITECTURE as BIG_VISION
from deepnarrow_vision_vit.options import default_options
from deepnarrow_vision_vit.presets import PRESETS
from deepnarrow_vision_vit.sources import default_data_options
from deepnarrow_vision_vit.tasks import tasks, upstream

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _assemble(shape: Shape, options: ConfigDict, stacks: Mapping[str, Stack]) -> Model:
    from deepnarrow_vision_vit.model import assemble

    return assemble(shape, options, stacks)


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
        upstream=upstream,
        tasks=tasks,
        adapt=_adapt,
        suffix_option="patch_size",
        checkpoint_formats={
            "big_vision": CheckpointFormat(npzformat.inspect, npzformat.read, npzformat.write),
            "huggingface": CheckpointFormat(hfformat.inspect, hfformat.read, hfformat.write),
            "timm": CheckpointFormat(timmformat.inspect, timmformat.read, timmformat.write),
        },
    )]


@hookimpl
def deepnarrow_register_architectures() -> list[BoundArchitecture]:
    """big_vision's own ViT, where there is a checkout."""
    return [BIG_VISION]
