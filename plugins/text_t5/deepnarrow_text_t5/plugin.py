"""Hooks of the text_t5 plugin. Nothing here imports JAX: the model's code is imported in calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.formats import format_in
from deepnarrow.hookspecs import hookimpl
from deepnarrow.modality import Modality, Model, Stack, Task, Upstream
from deepnarrow.shape import Shape
from deepnarrow_text_t5.adapt import adapt
from deepnarrow_text_t5.frame import STEP, count_frame, stack_specs
from deepnarrow_text_t5.options import default_data_options, default_options
from deepnarrow_text_t5.presets import CATALOGUE, PRESETS, open_name

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _assemble(shape: Shape, options: ConfigDict, stacks: Mapping[str, Stack]) -> Model:
    from deepnarrow_text_t5.model import assemble

    return assemble(shape, options, stacks)


def _upstream(data_options: ConfigDict, options: ConfigDict) -> Upstream:
    from deepnarrow_text_t5.sources import upstream

    return upstream(data_options, options)


def _tasks(data_options: ConfigDict, options: ConfigDict) -> Mapping[str, Task]:
    from deepnarrow_text_t5.tasks import tasks

    return tasks(data_options, options)


def _prepare(
    data_options: ConfigDict, directory: Path, progress: Callable[[float, str], None]
) -> Mapping[str, Any]:
    from deepnarrow_text_t5.sources import prepare

    return prepare(data_options, directory, progress)


def _averages(scores: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    from deepnarrow_text_t5.tasks.averages import averages

    return averages(scores)


@hookimpl
def deepnarrow_register_modalities() -> list[Modality]:
    """T5 encoder-decoders."""
    return [Modality(
        name="text_t5",
        presets=PRESETS,
        catalogue=CATALOGUE,
        options=default_options(),
        data_options=default_data_options(),
        stack_specs=stack_specs,
        assemble=_assemble,
        count_frame=count_frame,
        upstream=_upstream,
        tasks=_tasks,
        adapt=adapt,
        prepare=_prepare,
        averages=_averages,
        checkpoint_formats={
            "huggingface": format_in("deepnarrow_text_t5.huggingface"),
            "t5x": format_in("deepnarrow_text_t5.t5x", writes=False),
        },
        open_name=open_name,
        step=STEP,
    )]
