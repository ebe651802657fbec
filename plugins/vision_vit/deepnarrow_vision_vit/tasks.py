"""What the ViT is pre-trained on and transferred to. No JAX; building a task reads no data."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.modality import Metric, Source, Task, Upstream
from deepnarrow.transfer.scores import score_accuracy
from deepnarrow_vision_vit.sources import (
    TRANSFER_SPLITS,
    UPSTREAM_SPLITS,
    classes_of,
    make_source,
    open_images,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def upstream(data_options: ConfigDict, options: ConfigDict) -> Upstream:
    """Classification of `data_options.upstream_classes`, and of how often an image is turned.

    The data decides `image_size`, `channels` and `num_classes` of the model.
    """
    del options  # the data decides all of the model's options that it knows of
    images = open_images(data_options)
    classes = classes_of(data_options, "upstream_classes")
    canvas: int = data_options.canvas
    rotations: int = data_options.rotations

    def source(split: str, augment: str) -> Source:
        return make_source(images, classes, UPSTREAM_SPLITS[split], canvas=canvas,
                           rotations=rotations, augment=augment)

    return Upstream(
        train=source("train", data_options.augment), validation=source("validation", "none"),
        metric=Metric("loss", "min"),
        options={"image_size": canvas, "channels": images.channels,
                 "num_classes": rotations * len(classes)},
    )


def tasks(data_options: ConfigDict, options: ConfigDict) -> Mapping[str, Task]:
    """The transfer tasks: `SOURCE_new_classes`, classification of `transfer_classes`."""
    del options  # the images depend on the data's options alone
    task = _new_classes(data_options)
    return {task.name: task}


def _new_classes(data_options: ConfigDict) -> Task:
    classes = classes_of(data_options, "transfer_classes")
    name = f"{data_options.source}_new_classes"

    @functools.cache
    def examples(split: str) -> Source:
        if split not in TRANSFER_SPLITS:
            raise InputError(f"task {name!r}", "no such split", got=split,
                             expected=f"one of {', '.join(TRANSFER_SPLITS)}")
        # Never augmented: the probe's shots are these images, and its raw pixels too.
        canvas: int = data_options.canvas
        return make_source(open_images(data_options), classes, TRANSFER_SPLITS[split],
                           canvas=canvas)

    def baseline(split: str) -> np.ndarray:
        source, unused = examples(split), np.random.default_rng(0)
        pixels = [source.load(i, unused)["image"].ravel() for i in range(source.num_examples)]
        return np.stack(pixels)  # n x [pixels] -> [n, pixels]

    return Task(
        name=name, kinds=frozenset({"few_shot", "fine_tune"}), examples=examples,
        metric=Metric("accuracy", "max"), score=score_accuracy, num_classes=len(classes),
        options={"num_classes": len(classes)}, baseline=baseline,
    )
