"""Fine-tuning a ViT at a higher resolution: the grid grows, the rest is the checkpoint's."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from deepnarrow.assemble import make_model
from deepnarrow.config import resolve_options
from deepnarrow.errors import InputError
from deepnarrow.modality import Metric, Source, Task
from deepnarrow.plugins import registry
from deepnarrow.protocol import FineTune, OptimizerConfig
from deepnarrow.transfer.finetune import finetune, make_finetune
from deepnarrow.transfer.scores import score_accuracy
from deepnarrow_vision_vit.adapt import resample_position

ADAM = OptimizerConfig("adamw", 0.01, "cosine", warmup_steps=2)


def bars(size):
    """Two classes: is the upper or the left half of the image bright?"""
    def examples(split):
        n = {"train": 64, "validation": 16, "test": 20}[split]
        rng = np.random.default_rng(n)
        labels = np.arange(n) % 2
        images = 0.3 * rng.normal(size=(n, size, size, 1)).astype(np.float32)
        images[labels == 0, : size // 2] += 1.0
        images[labels == 1, :, : size // 2] += 1.0

        def load(index, rng):
            return {"image": images[index], "label": np.int32(labels[index])}

        return Source(n, load, f"{size} {split}", labels=lambda: labels)

    return Task("bars", frozenset({"fine_tune"}), examples, Metric("accuracy", "max"),
                score_accuracy, num_classes=2, options={"num_classes": 2})


@pytest.fixture(scope="module")
def checkpoint():
    """Modality, shape, options and params of a ViT of 8 x 8 images and 2 x 2 patches."""
    modality = registry().modality("vision_vit")
    options = resolve_options(modality.options, {
        "image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 3}, "options")
    shape = modality.presets["tiny"].shape.replace(num_encoder_layers=1)
    model = make_model(modality, registry().architecture("transformer"), shape, options)
    return modality, shape, options, model.init(jax.random.key(0))


def program(checkpoint, task, **changes):
    modality, shape, options, _ = checkpoint
    config = FineTune(("bars",), examples=20 * 16, batch_size=16, optimizer=ADAM, **changes)
    return make_finetune(modality, registry().architecture("transformer"), shape, options, [task],
                         config)


@pytest.mark.parametrize("train", ["all", "head"])
def test_a_higher_resolution_resamples_the_positions(checkpoint, train):
    params = checkpoint[-1]
    ft = program(checkpoint, bars(16), options={"image_size": 16}, train=train)
    assert (ft.source_options.image_size, ft.target_options.image_size) == (8, 16)
    result = finetune(ft, params, seed=0)
    assert result.status == "done"
    position = np.asarray(result.params["position"]["embedding"])
    start = np.asarray(resample_position(params["position"]["embedding"], 4))
    assert position.shape == (1, 16, 64)
    assert np.array_equal(position, start) == (train == "head")
    if train == "all":  # a linear head on an untrained network has little to go by
        assert result.tasks["bars"].scores["test"].metrics["accuracy"] == 1.0


def test_images_that_do_not_fit_the_model_are_refused_before_training(checkpoint):
    with pytest.raises(InputError, match=r"not those .*got 16 x 16 x 1; expected 8 x 8 x 1"):
        program(checkpoint, bars(16))


@pytest.mark.parametrize(("name", "value"), [("patch_size", 2), ("pool_type", "tok")])
def test_what_a_checkpoint_keeps_is_refused_before_training(checkpoint, name, value):
    with pytest.raises(InputError, match=f"a ViT keeps its {name}"):
        program(checkpoint, bars(8), options={name: value})
