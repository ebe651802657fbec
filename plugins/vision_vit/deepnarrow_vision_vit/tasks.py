"""What the ViT is pre-trained on and transferred to. No JAX; building a task reads no data."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.modality import Metric, Scores, Source, Task, Upstream
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
    images = open_images(data_options)
    classes = classes_of(data_options, "upstream_classes")
    canvas: int = data_options.canvas
    rotations: int = data_options.rotations
    tokens = _tokens(canvas, options)

    def source(split: str, augment: str) -> Source:
        return make_source(images, classes, UPSTREAM_SPLITS[split], canvas=canvas,
                           tokens_per_example=tokens, rotations=rotations, augment=augment)

    return Upstream(
        train=source("train", data_options.augment), validation=source("validation", "none"),
        metric=Metric("loss", "min"),
        options={"image_size": canvas, "channels": images.channels,
                 "num_classes": rotations * len(classes)},
    )


def tasks(data_options: ConfigDict, options: ConfigDict) -> Mapping[str, Task]:
    """The transfer tasks: `SOURCE_new_classes`, classification of `transfer_classes`."""
    task = _new_classes(data_options, options)
    return {task.name: task}


def _new_classes(data_options: ConfigDict, options: ConfigDict) -> Task:
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
                           canvas=canvas, tokens_per_example=_tokens(canvas, options))

    def baseline(split: str) -> np.ndarray:
        source, unused = examples(split), np.random.default_rng(0)
        pixels = [source.load(i, unused)["image"].ravel() for i in range(source.num_examples)]
        return np.stack(pixels)  # n x [pixels] -> [n, pixels]

    return Task(
        name=name, kinds=frozenset({"few_shot", "fine_tune"}), examples=examples,
        metric=Metric("accuracy", "max"), score=score_accuracy, num_classes=len(classes),
        options={"num_classes": len(classes)}, baseline=baseline,
    )


def score_accuracy(predictions: np.ndarray, labels: np.ndarray) -> Scores:
    """Share of examples whose highest logit is the label's.

    Args:
      predictions: logits [n, classes].
      labels: int [n].

    >>> score_accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])).metrics
    {'accuracy': 0.5}
    """
    correct = (predictions.argmax(axis=-1) == labels).astype(np.float64)  # [n, classes] -> [n]
    return Scores({"accuracy": float(correct.mean())}, correct)


def _tokens(image_size: int, options: ConfigDict) -> int:
    """Positions of one image. `patch_size` may yet be set by the shape's name, so 1 at least."""
    return max(1, (image_size // options.patch_size) ** 2 + (options.pool_type == "tok"))
