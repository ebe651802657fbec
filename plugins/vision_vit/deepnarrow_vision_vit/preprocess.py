"""Preprocessing, as a list of typed operations in the config.

    ({"op": "inception_crop", "size": 224}, {"op": "flip"},
     {"op": "randaugment", "layers": 2, "magnitude": 15}, {"op": "value_range"})

Each operation is a frozen dataclass whose fields are its settings: `__call__(image, rng)` applies
it, `result(form)` says what comes out, so that a chain is checked before anything is read. Images
are Pillow's, of 8 bits, until `value_range` makes them float32 [h, w, channels]. Imports no JAX.

Resizing is Pillow's bilinear filter with antialiasing on uint8. `tf.image.resize` with
`antialias=True` gives the same up to rounding (big_vision cuts off, Pillow rounds each of its two
passes): a value differs by at most 1, by 2 in one of a thousand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from deepnarrow.errors import InputError, suggest
from deepnarrow.protocol import check_choice, check_range
from deepnarrow.settings import build
from deepnarrow_vision_vit.images import Raw, decode, to_picture, to_pixels
from deepnarrow_vision_vit.randaugment import rand_augment

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_SIDE = 4096
CROP_ATTEMPTS = 100  # of TensorFlow's `sample_distorted_bounding_box`


@dataclasses.dataclass(frozen=True)
class Form:
    """What is known of an image before it is read: None where images may differ.

    Attributes:
      height: in pixels.
      width: in pixels.
      channels: 1 or 3.
      kind: `raw` (encoded, or as stored), `uint8` (a picture) or `float32`.
    """

    height: int | None
    width: int | None
    channels: int | None
    kind: Literal["raw", "uint8", "float32"]


class Op(Protocol):
    """One operation."""

    def __call__(self, image: Any, rng: np.random.Generator, /) -> Any: ...

    def result(self, form: Form) -> Form: ...


def _check_side(op: str, name: str, value: int) -> None:
    check_range(op, name, value, 1, MAX_SIDE)


def _needs(form: Form, kind: str, *, channels: int | None = None) -> None:
    """Raises `InputError` where an operation cannot follow what stands before it."""
    if form.kind != kind:
        raise InputError("", f"takes {kind} images", got=form.kind,
                         hint="value_range comes last")
    if channels is not None and form.channels != channels:
        raise InputError("", f"takes images of {channels} channels", got=form.channels)


@dataclasses.dataclass(frozen=True)
class Decode:
    """Decodes to so many channels: grey repeated for 3, luma for 1. Always the first operation.

    Attributes:
      channels: 1 or 3.
      exif: `ignore` the orientation, as TensorFlow and its data sets do, or `apply` it.
    """

    channels: int
    exif: Literal["ignore", "apply"] = "ignore"

    def __post_init__(self) -> None:
        check_choice("decode", "channels", self.channels, (1, 3))


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes to `size` x `size`, whatever the aspect ratio was."""

    size: int

    def __post_init__(self) -> None:
        _check_side("resize", "size", self.size)

    def __call__(self, image: Picture, _rng: np.random.Generator, /) -> Picture:
        return resize(image, self.size, self.size)

    def result(self, form: Form) -> Form:
        _needs(form, "uint8")
        return dataclasses.replace(form, height=self.size, width=self.size)


@dataclasses.dataclass(frozen=True)
class ResizeSmall:
    """Resizes so that the smaller side has `size` pixels, keeping the aspect ratio."""

    size: int

    def __post_init__(self) -> None:
        _check_side("resize_small", "size", self.size)

    def __call__(self, image: Picture, _rng: np.random.Generator, /) -> Picture:
        factor = self.size / min(image.size)
        return resize(image, round(image.height * factor), round(image.width * factor))

    def result(self, form: Form) -> Form:
        _needs(form, "uint8")
        if form.height is None or form.width is None:
            return dataclasses.replace(form, height=None, width=None)
        factor = self.size / min(form.height, form.width)
        return dataclasses.replace(form, height=round(form.height * factor),
                                   width=round(form.width * factor))


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """Cuts `size` x `size` out of the middle."""

    size: int

    def __post_init__(self) -> None:
        _check_side("central_crop", "size", self.size)

    def __call__(self, image: Picture, _rng: np.random.Generator, /) -> Picture:
        _check_fits(image, self.size)
        above, left = (image.height - self.size) // 2, (image.width - self.size) // 2
        return image.crop((left, above, left + self.size, above + self.size))

    def result(self, form: Form) -> Form:
        return _cropped(form, self.size)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts `size` x `size` out at random; with `pad` before it, as for CIFAR."""

    size: int

    def __post_init__(self) -> None:
        _check_side("random_crop", "size", self.size)

    def __call__(self, image: Picture, rng: np.random.Generator, /) -> Picture:
        _check_fits(image, self.size)
        above, left = (int(rng.integers(side - self.size + 1))
                       for side in (image.height, image.width))
        return image.crop((left, above, left + self.size, above + self.size))

    def result(self, form: Form) -> Form:
        return _cropped(form, self.size)


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
    """Cuts out a box of random size, aspect ratio and place (Szegedy et al. 2015), and resizes it.

    The rule is that of TensorFlow's `sample_distorted_bounding_box`, see `inception_box`.

    Attributes:
      size: side of what comes out, in pixels.
      area_min: smallest share of the image's area.
      area_max: largest share.
      ratio_min: smallest width over height.
      ratio_max: largest.
    """

    size: int
    area_min: float = 0.05
    area_max: float = 1.0
    ratio_min: float = 0.75
    ratio_max: float = 1.33

    def __post_init__(self) -> None:
        _check_side("inception_crop", "size", self.size)
        check_range("inception_crop", "area_min", self.area_min, 0, 1, low_open=True)
        check_range("inception_crop", "area_max", self.area_max, self.area_min, 1)
        check_range("inception_crop", "ratio_min", self.ratio_min, 0.1, 10)
        check_range("inception_crop", "ratio_max", self.ratio_max, self.ratio_min, 10)

    def __call__(self, image: Picture, rng: np.random.Generator, /) -> Picture:
        above, left, height, width = inception_box(
            image.height, image.width, rng, area=(self.area_min, self.area_max),
            ratio=(self.ratio_min, self.ratio_max))
        box = image.crop((left, above, left + width, above + height))
        return resize(box, self.size, self.size)

    def result(self, form: Form) -> Form:
        _needs(form, "uint8")
        return dataclasses.replace(form, height=self.size, width=self.size)


@dataclasses.dataclass(frozen=True)
class Pad:
    """Adds `pixels` of zeros on every side."""

    pixels: int

    def __post_init__(self) -> None:
        _check_side("pad", "pixels", self.pixels)

    def __call__(self, image: Picture, _rng: np.random.Generator, /) -> Picture:
        from PIL import ImageOps

        return ImageOps.expand(image, self.pixels)

    def result(self, form: Form) -> Form:
        _needs(form, "uint8")
        return dataclasses.replace(
            form, height=None if form.height is None else form.height + 2 * self.pixels,
            width=None if form.width is None else form.width + 2 * self.pixels)


@dataclasses.dataclass(frozen=True)
class Flip:
    """Swaps left and right with probability 1/2."""

    def __call__(self, image: Picture, rng: np.random.Generator, /) -> Picture:
        from PIL.Image import Transpose

        return image.transpose(Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image

    def result(self, form: Form) -> Form:
        _needs(form, "uint8")
        return form


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`layers` of 16 distortions at strength `magnitude` of 10; on RGB (see `randaugment.py`)."""

    layers: int
    magnitude: float

    def __post_init__(self) -> None:
        check_range("randaugment", "layers", self.layers, 1, 16)
        check_range("randaugment", "magnitude", self.magnitude, 0, 30)

    def __call__(self, image: Picture, rng: np.random.Generator, /) -> Picture:
        return to_picture(rand_augment(to_pixels(image), rng, self.layers, self.magnitude))

    def result(self, form: Form) -> Form:
        _needs(form, "uint8", channels=3)
        return form


@dataclasses.dataclass(frozen=True)
class GreyToRgb:
    """Repeats the one channel."""

    def __call__(self, image: Picture, _rng: np.random.Generator, /) -> Picture:
        return image.convert("RGB")

    def result(self, form: Form) -> Form:
        _needs(form, "uint8", channels=1)
        return dataclasses.replace(form, channels=3)


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Maps 0..255 to float32 in `low`..`high`."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_range("value_range", "high", self.high, self.low, low_open=True)

    def __call__(self, image: Picture, _rng: np.random.Generator, /) -> np.ndarray:
        values = to_pixels(image).astype(np.float32)
        values *= np.float32((self.high - self.low) / 255)
        values += np.float32(self.low)
        return values

    def result(self, form: Form) -> Form:
        _needs(form, "uint8")
        return dataclasses.replace(form, kind="float32")


OPS: Mapping[str, type] = {
    "decode": Decode, "resize": Resize, "resize_small": ResizeSmall, "central_crop": CentralCrop,
    "random_crop": RandomCrop, "inception_crop": InceptionCrop, "pad": Pad, "flip": Flip,
    "randaugment": RandAugment, "grey_to_rgb": GreyToRgb, "value_range": ValueRange,
}


# --- chains ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Chain:
    """Decoding, then operations one after another, of which the last gives float32.

    Attributes:
      first: how images are decoded.
      ops: what follows.
      convert: conversions that decoding may make, see `images.CONVERSIONS`.
    """

    first: Decode
    ops: tuple[Op, ...]
    convert: tuple[str, ...] = ()

    def __call__(self, raw: Raw, rng: np.random.Generator) -> np.ndarray:
        """A stored image to float32 [size, size, channels]."""
        image: Any = self.decode(raw)
        for op in self.ops:
            image = op(image, rng)
        return image

    def decode(self, raw: Raw) -> Picture:
        """A stored image to a picture."""
        return decode(raw, self.first.channels, convert=self.convert, exif=self.first.exif)

    def facts(self) -> list[Any]:
        """What determines its results, JSON-able."""
        ops: list[Any] = [self.first, *self.ops]
        return [[[type(op).__name__, dataclasses.asdict(op)] for op in ops], list(self.convert)]


def build_chain(
    steps: Sequence[Mapping[str, Any]], where: str, channels: int, convert: tuple[str, ...] = ()
) -> Chain:
    """Builds a chain from its steps in a config; one without `decode` decodes to `channels`.

    Raises:
      InputError: an unknown operation or setting, a value out of range; with what is near.
    """
    first, ops = Decode(channels), []
    for i, step in enumerate(steps):
        place = f"{where}[{i}]"
        settings = dict(step) if isinstance(step, Mapping) else {}
        name = settings.pop("op", None)
        if not isinstance(name, str) or name not in OPS:
            near = suggest(str(name), OPS)
            raise InputError(place, "is no operation", got=name if name else step,
                             expected=f"{{'op': NAME, ...}}, NAME one of {', '.join(OPS)}",
                             hint=f"did you mean {near}?" if near else None)
        op = build(OPS[name], settings, f"{place} {name}")
        if not isinstance(op, Decode):
            ops.append(op)
        elif i:
            raise InputError(place, "decode comes first", got=f"operation {i + 1}")
        else:
            first = op
    return Chain(first, tuple(ops), convert)


def check_chain(chain: Chain, stored: Form, where: str) -> Form:
    """Returns what comes out of a chain.

    Raises:
      InputError: an operation cannot follow the one before it, or what comes out is no square
        float32 image of a known size.
    """
    form = dataclasses.replace(stored, channels=chain.first.channels, kind="uint8")
    for op in chain.ops:
        name = next(n for n, kind in OPS.items() if isinstance(op, kind))
        try:
            form = op.result(form)
        except InputError as error:
            raise InputError(f"{where} {name}", error.what, got=error.got,
                             expected=error.expected, hint=error.hint) from None
    if form.kind != "float32":
        raise InputError(where, "does not end in numbers that a model takes", got=form.kind,
                         hint="end it with {'op': 'value_range'}")
    if form.height is None or form.height != form.width:
        got = "images of different sizes" if form.height is None else f"{form.height}x{form.width}"
        raise InputError(where, "does not end in square images of one size", got=got,
                         hint="add {'op': 'resize', 'size': ...}")
    return form


# --- functions of pictures ------------------------------------------------------------------------
def resize(image: Picture, height: int, width: int) -> Picture:
    """Resizes by Pillow's antialiased bilinear filter."""
    from PIL.Image import Resampling

    if image.size == (width, height):
        return image
    return image.resize((width, height), Resampling.BILINEAR)


def inception_box(
    height: int, width: int, rng: np.random.Generator, *, area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws a box: (rows above, columns left, height, width).

    As TensorFlow's `sample_distorted_bounding_box`: the aspect ratio is uniform, then the height
    is uniform between those that give the smallest and the largest area, and the place uniform
    short of the last row and column; after 100 draws that do not fit, the whole image.
    """
    smallest, largest = (share * height * width for share in area)
    for _ in range(CROP_ATTEMPTS):
        aspect = rng.uniform(*ratio)
        low = round(math.sqrt(smallest / aspect))
        high = round(math.sqrt(largest / aspect))
        if round(high * aspect) > width:
            high = int((width + 0.5 - 1e-7) / aspect)
            high -= round(high * aspect) > width
        high = min(high, height)
        box_height = int(rng.integers(low, high + 1)) if low < high else high
        box_width = round(box_height * aspect)
        if box_width * box_height < smallest:
            box_height += 1
            box_width = round(box_height * aspect)
        if box_width * box_height > largest:
            box_height -= 1
            box_width = round(box_height * aspect)
        fits = 0 < box_height <= height and 0 < box_width <= width
        if fits and smallest <= box_width * box_height <= largest:
            above = int(rng.integers(max(1, height - box_height)))
            left = int(rng.integers(max(1, width - box_width)))
            return above, left, box_height, box_width
    return 0, 0, height, width


def _cropped(form: Form, size: int) -> Form:
    _needs(form, "uint8")
    if any(side is not None and side < size for side in (form.height, form.width)):
        raise InputError("", "is larger than the image", got=size,
                         expected=f"at most {form.height} x {form.width}")
    return dataclasses.replace(form, height=size, width=size)


def _check_fits(image: Picture, size: int) -> None:
    if min(image.size) < size:
        raise InputError("image", f"is smaller than its crop of {size} pixels",
                         got=f"{image.height} x {image.width}",
                         hint="put resize_small before the crop")
