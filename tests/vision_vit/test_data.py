"""The digits: splits, classes, augmentation, and the transfer task."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deepnarrow.errors import InputError
from deepnarrow_vision_vit.dataoptions import default_data_options
from deepnarrow_vision_vit.digits import (
    TRANSFER_SPLITS,
    UPSTREAM_SPLITS,
    Images,
    load_digits,
    make_digits,
)
from deepnarrow_vision_vit.options import default_options
from deepnarrow_vision_vit.tasks import tasks, upstream


def data_with(**changes):
    options = default_data_options()
    options.digits.update(changes)
    return options


def model_options():
    options = default_options()
    options.patch_size = 4
    return options


def examples_of(source, seed=0):
    return [source.load(i, np.random.default_rng([seed, i])) for i in range(source.num_examples)]


def the_task(**changes):
    (task,) = tasks(data_with(**changes), model_options()).values()
    return task


def image_bytes(source):
    return [example["image"].tobytes() for example in examples_of(source)]


def test_digits_are_the_bundled_ones():
    from sklearn.datasets import load_digits as bundled

    images, original = load_digits(), bundled()
    assert np.array_equal(images.pixels[..., 0], original.images)
    assert np.array_equal(images.labels, original.target)
    assert images.pixels.max() == images.white


def test_upstream_decides_the_models_options():
    assert upstream(data_with(), model_options()).options == {
        "image_size": 12, "channels": 1, "num_classes": 20}
    assert upstream(data_with(rotations=1, canvas=8), model_options()).options == {
        "image_size": 8, "channels": 1, "num_classes": 5}


def test_examples_are_scaled_images_with_their_labels():
    source = upstream(data_with(rotations=1, canvas=8), model_options()).validation
    images = load_digits()
    original = {((pixels / 8) - 1).astype(np.float32).tobytes(): label
                for pixels, label in zip(images.pixels, images.labels, strict=True)}
    for example in examples_of(source):
        assert example["image"].shape == (8, 8, 1)
        assert example["image"].dtype == np.float32
        assert example["label"].dtype == np.int32
        assert original[example["image"].tobytes()] == example["label"]


def test_a_label_is_the_position_in_the_list_of_classes():
    source = the_task(transfer_classes=(9, 5), upstream_classes=(0, 1)).examples("test")
    other = the_task(transfer_classes=(5, 9), upstream_classes=(0, 1)).examples("test")
    assert np.array_equal(source.labels(), 1 - other.labels())
    assert source.content_hash != other.content_hash


def test_labels_agree_with_the_examples():
    data = upstream(data_with(), model_options())
    for source in (data.train, data.validation, the_task().examples("test")):
        assert len(source.labels()) == source.num_examples
        for i in range(0, source.num_examples, 37):
            assert source.load(i, np.random.default_rng(0))["label"] == source.labels()[i]


def test_a_turned_image_is_another_class():
    source = upstream(data_with(canvas=8), model_options()).train
    plain = upstream(data_with(canvas=8, rotations=1), model_options()).train
    assert source.num_examples == 4 * plain.num_examples
    for i in (0, 7):
        upright = plain.load(i, np.random.default_rng(0))
        for turns in range(4):
            turned = source.load(4 * i + turns, np.random.default_rng(0))
            assert np.array_equal(turned["image"], np.rot90(upright["image"], turns))
            assert turned["label"] == 4 * upright["label"] + turns


def test_splits_share_no_image_and_miss_none():
    task, data = the_task(), upstream(data_with(rotations=1, augment="none"), model_options())
    transfer = [image_bytes(task.examples(split)) for split in TRANSFER_SPLITS]
    pretraining = [image_bytes(data.train), image_bytes(data.validation)]
    assert len(pretraining) == len(UPSTREAM_SPLITS)
    everything = [image for split in transfer + pretraining for image in split]
    assert len(everything) == 1797
    distinct = [set(split) for split in transfer + pretraining]
    assert sum(map(len, distinct)) == len(set(everything))


def test_splits_hold_enough_of_every_class():
    """25 shots of each class to draw from, and a test split that resolves half a per cent."""
    task = the_task()
    assert np.bincount(task.examples("train").labels()).min() >= 50
    assert np.bincount(task.examples("test").labels()).min() >= 50
    assert task.examples("test").num_examples >= 300


def test_equal_images_share_a_split():
    pixels = np.random.default_rng(0).integers(0, 17, (40, 8, 8, 1), np.uint8)
    labels = np.tile([0, 1], 40).astype(np.int32)
    twice = Images("twins", np.concatenate([pixels, pixels]), labels, white=16)
    assert np.array_equal(twice.hashed[:40], twice.hashed[40:])
    assert len(np.unique(twice.hashed)) == 3 * 40
    train = make_digits(twice, (0, 1), (0.0, 0.5), canvas=8)
    assert 0 < train.num_examples < 80
    assert train.num_examples % 2 == 0


def test_images_lie_all_over_the_canvas():
    """25 places of an 8 x 8 image on 12 x 12; the image is whole, the rest empty."""
    small = the_task(canvas=8).examples("test")
    places = []
    for i, example in enumerate(examples_of(the_task().examples("test"))):
        inner = small.load(i, np.random.default_rng(0))["image"]
        found = [(y, x) for y in range(5) for x in range(5)
                 if np.array_equal(example["image"][y:y + 8, x:x + 8], inner)]
        assert found
        assert example["image"].sum() == inner.sum() - (144 - 64)
        places += found[:1]
    assert len(set(places)) == 25


def test_augmentation_moves_training_images_only():
    data = upstream(data_with(rotations=1), model_options())
    still = upstream(data_with(rotations=1, augment="none"), model_options())
    moved = [not np.array_equal(a["image"], b["image"])
             for a, b in zip(examples_of(data.train), examples_of(still.train), strict=True)]
    assert 0.9 < np.mean(moved) < 1  # 24 of 25 places are others
    assert image_bytes(data.validation) == image_bytes(still.validation)
    shots, still_shots = the_task(), the_task(augment="none")
    assert image_bytes(shots.examples("train")) == image_bytes(still_shots.examples("train"))


def test_augmentation_depends_on_the_generator_alone():
    source = upstream(data_with(), model_options()).train
    one, again = source.load(5, np.random.default_rng(3)), source.load(5, np.random.default_rng(3))
    assert np.array_equal(one["image"], again["image"])
    images = {source.load(5, np.random.default_rng(seed))["image"].tobytes() for seed in range(250)}
    assert len(images) == 25


def test_the_hash_knows_what_determines_an_example():
    base = upstream(data_with(), model_options())
    hashes = [base.train.content_hash, base.validation.content_hash,
              the_task().examples("train").content_hash, the_task().examples("test").content_hash]
    for changes in ({"augment": "none"}, {"canvas": 16}, {"rotations": 1},
                    {"upstream_classes": (0, 1, 2)}):
        hashes.append(upstream(data_with(**changes), model_options()).train.content_hash)
    digits, everything = load_digits(), {"classes": (0, 1), "share": (0.0, 1.0), "canvas": 8}
    brighter = dataclasses.replace(digits, pixels=np.minimum(digits.pixels + 1, 16))
    hashes.append(make_digits(brighter, **everything).content_hash)
    hashes.append(make_digits(digits, **everything).content_hash)
    assert len(set(hashes)) == len(hashes)
    assert base.train.content_hash == upstream(data_with(), model_options()).train.content_hash


def test_the_baseline_is_the_pixels_in_order():
    task = the_task()
    pixels = task.baseline("test")
    examples = examples_of(task.examples("test"))
    assert pixels.shape == (len(examples), 144)
    assert np.array_equal(pixels, [example["image"].ravel() for example in examples])


def test_the_task_says_what_it_is():
    task = the_task()
    assert task.name == "digits_new_classes"
    assert task.kinds == {"few_shot", "fine_tune"}
    assert task.options == {"num_classes": task.num_classes} == {"num_classes": 5}
    with pytest.raises(InputError, match="no such split"):
        task.examples("tset")


@pytest.mark.parametrize(("changes", "said"), [
    ({"augment": "flip"}, ["augment is unknown", "none, place"]),
    ({"canvas": 7}, ["canvas is smaller", "7", "at least 8"]),
    ({"rotations": 2}, ["rotations is unknown", "1, 4"]),
    ({"upstream_classes": (0, 10)}, ["upstream_classes", "have not", "10"]),
    ({"transfer_classes": (5, -1)}, ["transfer_classes", "have not", "-1"]),
    ({"transfer_classes": (5, True)}, ["transfer_classes", "have not", "True"]),
    ({"upstream_classes": (0, 0)}, ["names a class twice"]),
    ({"upstream_classes": (0,)}, ["at least 2 classes"]),
    ({"upstream_classes": (0, 1, 5)}, ["overlap", "[5]"]),
], ids=str)
def test_bad_data_options_are_named(changes, said):
    with pytest.raises(InputError) as caught:
        upstream(data_with(**changes), model_options())
    for words in said:
        assert words in str(caught.value)
