"""The embedded study: five of scikit-learn's digits upstream, the other five in transfer. No JAX.

1,797 real 8x8 scans from the test set of UCI's "Optical Recognition of Handwritten Digits"
(Alpaydin and Kaynak, 1998), labelled by people. They come with a dependency, so that a study runs
without any download.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.modality import Example, Metric, Source, Upstream
from deepnarrow.protocol import check_choice

if TYPE_CHECKING:
    from ml_collections import ConfigDict

WHERE = "vision_vit data.digits"
AUGMENTATIONS = ("none", "place")
ROTATIONS = (1, 4)

# Split name -> the half-open share of [0, 1) that an image's hash must fall into.
Splits = Mapping[str, tuple[float, float]]
UPSTREAM_SPLITS: Splits = {"train": (0.0, 0.8), "validation": (0.8, 1.0)}
TRANSFER_SPLITS: Splits = {"train": (0.0, 0.5), "validation": (0.5, 0.6), "test": (0.6, 1.0)}


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images in memory.

    Attributes:
      name: of the source.
      pixels: [n, size, size, channels], uint8 in 0..`white`.
      labels: int32 [n].
      white: the pixel value that becomes 1; 0 becomes -1.
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    white: int

    @property
    def size(self) -> int:
        """Side of an image, in pixels."""
        return self.pixels.shape[1]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.pixels.shape[3]

    @functools.cached_property
    def content_hash(self) -> str:
        """sha256 (hex) of all pixels and labels."""
        digest = hashlib.sha256(f"{self.pixels.shape} {self.white}".encode())
        digest.update(self.pixels.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def hashed(self) -> np.ndarray:
        """float64 [n, 3] in [0, 1), from each image's own bytes: its split, its row, its column."""
        digests = [hashlib.sha256(pixels.tobytes()).digest()[:24] for pixels in self.pixels]
        # 3 numbers of 64 bits an image, of which a float64 holds the upper 53.
        numbers = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 3)  # [n * 3] -> [n, 3]
        return (numbers >> np.uint64(11)) / 2.0**53


@functools.cache
def load_digits() -> Images:
    """scikit-learn's 1,797 digits: [1797, 8, 8, 1], grey values 0..16, labels 0..9."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    return Images(
        name="digits",
        pixels=pixels.astype(np.uint8).reshape(-1, 8, 8, 1),  # [n, 64] -> [n, 8, 8, 1]
        labels=np.asarray(labels, np.int32),
        white=16,
    )


def open_digits(options: ConfigDict) -> Images:
    """Returns the digits and checks the embedded study's options against them.

    Raises:
      InputError: an unknown augmentation, a canvas too small, a class that the digits have not, a
        class twice or both upstream and in transfer, or fewer than 2 classes.
    """
    check_choice(WHERE, "augment", options.augment, AUGMENTATIONS)
    check_choice(WHERE, "rotations", options.rotations, ROTATIONS)
    images = load_digits()
    if options.canvas < images.size:
        raise InputError(WHERE, "canvas is smaller than the images", got=options.canvas,
                         expected=f"at least {images.size}")
    known = sorted(set(images.labels.tolist()))
    for option in ("upstream_classes", "transfer_classes"):
        _check_classes(option, classes_of(options, option), known)
    both = sorted({*classes_of(options, "upstream_classes")}
                  & {*classes_of(options, "transfer_classes")})
    if both:
        # The same images would be trained on upstream and tested on in transfer.
        raise InputError(WHERE, "upstream_classes and transfer_classes overlap",
                         got=f"both hold {both}", hint="give each class to one of them")
    return images


def classes_of(options: ConfigDict, option: str) -> tuple[int, ...]:
    """Returns the labels that `option` names, in its order."""
    return tuple(getattr(options, option))


def _check_classes(option: str, classes: tuple[int, ...], known: list[int]) -> None:
    for label in classes:
        if type(label) is not int or label not in known:
            raise InputError(WHERE, f"{option} names a class that the digits have not", got=label,
                             expected=f"integers out of {known}")
    if len(set(classes)) != len(classes):
        raise InputError(WHERE, f"{option} names a class twice", got=classes)
    if len(classes) < 2:
        raise InputError(WHERE, f"{option} needs at least 2 classes", got=classes)


def make_digits(
    images: Images, classes: tuple[int, ...], share: tuple[float, float], *, canvas: int,
    rotations: int = 1, augment: str = "none",
) -> Source:
    """Returns the images of `classes` whose hash falls into `share`, as examples.

    An example is `{"image": float32 [canvas, canvas, channels] in [-1, 1], "label": int32}`.
    Example `rotations * i + r` is image i after r quarter turns, with the label
    `rotations * (position of its class in classes) + r`.

    Args:
      images: where the examples come from.
      classes: labels of `images` to keep.
      share: half-open interval of [0, 1), see `Images.hashed`.
      canvas: side of the square that the image lies on, in pixels.
      rotations: quarter turns that make an image another class, itself among them.
      augment: where the image lies: `none` for a place hashed from it, `place` for one drawn from
        the stream's generator.
    """
    low, high = share
    split, place = images.hashed[:, 0], images.hashed[:, 1:]
    rows = np.flatnonzero(np.isin(images.labels, classes) & (split >= low) & (split < high))
    pixels = images.pixels[rows]  # [n, size, size, channels]
    turned = [np.rot90(pixels, turns, axes=(1, 2)) for turns in range(rotations)]  # views
    places = canvas - images.size + 1
    fixed = (place[rows] * places).astype(np.int64)  # [n, 2]: rows above, columns to the left
    kinds = np.array([classes.index(label) for label in images.labels[rows].tolist()], np.int32)
    # [n] -> [n, rotations] -> [n * rotations]
    labels = (rotations * kinds[:, None] + np.arange(rotations, dtype=np.int32)).reshape(-1)

    def load(index: int, rng: np.random.Generator) -> Example:
        row, turns = divmod(index, rotations)
        above, left = rng.integers(places, size=2) if augment == "place" else fixed[row]
        image = lay(turned[turns][row], canvas, int(above), int(left))
        return {"image": scale(image, images.white), "label": labels[index]}

    facts = json.dumps([images.content_hash, classes, share, canvas, rotations, augment])
    return Source(
        num_examples=len(labels), load=load, labels=lambda: labels,
        content_hash=hashlib.sha256(facts.encode()).hexdigest(),
    )


def digits_upstream(options: ConfigDict) -> Upstream:
    """Classification of `upstream_classes`, and of how often an image is turned."""
    images = open_digits(options)
    classes = classes_of(options, "upstream_classes")

    def source(split: str, augment: str) -> Source:
        return make_digits(images, classes, UPSTREAM_SPLITS[split], canvas=options.canvas,
                           rotations=options.rotations, augment=augment)

    return Upstream(
        train=source("train", options.augment), validation=source("validation", "none"),
        metric=Metric("loss", "min"),
        options={"image_size": options.canvas, "channels": images.channels,
                 "num_classes": options.rotations * len(classes)},
    )


def digits_examples(options: ConfigDict, split: str) -> Source:
    """Images of `transfer_classes`; never augmented, as the probe's shots are these."""
    return make_digits(open_digits(options), classes_of(options, "transfer_classes"),
                       TRANSFER_SPLITS[split], canvas=options.canvas)


def scale(pixels: np.ndarray, white: int) -> np.ndarray:
    """Maps 0..white to float32 in [-1, 1], as ViTs of big_vision expect their input.

    >>> scale(np.array([0, 4, 16], np.uint8), white=16).tolist()
    [-1.0, -0.5, 1.0]
    """
    return pixels.astype(np.float32) * np.float32(2 / white) - np.float32(1)


def lay(pixels: np.ndarray, canvas: int, above: int, left: int) -> np.ndarray:
    """Lays an image [h, w, c] on an empty square: zeros [canvas, canvas, c].

    >>> lay(np.array([[1, 2], [3, 4]])[..., None], canvas=3, above=1, left=0)[..., 0].tolist()
    [[0, 0, 0], [1, 2, 0], [3, 4, 0]]
    """
    height, width, channels = pixels.shape
    square = np.zeros((canvas, canvas, channels), pixels.dtype)
    square[above:above + height, left:left + width] = pixels
    return square
