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
    Splits,
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
    tokens = _tokens(images.size, options)
    rotations: int = data_options.rotations
    train = make_source(images, classes, UPSTREAM_SPLITS["train"], tokens_per_example=tokens,
                        rotations=rotations, augment=data_options.augment)
    validation = make_source(images, classes, UPSTREAM_SPLITS["validation"],
                             tokens_per_example=tokens, rotations=rotations)
    return Upstream(
        train=train, validation=validation, metric=Metric("loss", "min"),
        options={"image_size": images.size, "channels": images.channels,
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
        images = open_images(data_options)
        # Never augmented: the probe's shots are these images, and its raw pixels too.
        return make_source(images, classes, _share(name, split, TRANSFER_SPLITS),
                           tokens_per_example=_tokens(images.size, options))

    def baseline(split: str) -> np.ndarray:
        images = open_images(data_options)
        source = make_source(images, classes, _share(name, split, TRANSFER_SPLITS),
                             tokens_per_example=1)
        still = np.random.default_rng(0)
        pixels = [source.load(i, still)["image"].reshape(-1) for i in range(source.num_examples)]
        return np.stack(pixels)  # n x [size * size * channels] -> [n, size * size * channels]

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


def _share(name: str, split: str, splits: Splits) -> tuple[float, float]:
    if split not in splits:
        raise InputError(f"task {name!r}", "no such split", got=split,
                         expected=f"one of {', '.join(splits)}")
    return splits[split]


def _tokens(image_size: int, options: ConfigDict) -> int:
    """Positions of one image. `patch_size` may yet be set by the shape's name, so 1 at least."""
    return max(1, (image_size // options.patch_size) ** 2 + (options.pool_type == "tok"))
