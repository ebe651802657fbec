"""Encoded and stored images to pictures of 8 bits, and what is wrong with those that are refused.

Declared conversions only. An image of 8 bits, grey or RGB, is taken as it is; palettes, alpha,
CMYK and 16 bits are converted where the config names them (`CONVERSIONS`), else refused by name.
An EXIF orientation is ignored unless the config says otherwise, as `tf.image.decode_jpeg` and
tensorflow-datasets ignore it, and so every number published with them. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Literal

import numpy as np

from deepnarrow.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_PIXELS = 2**26  # an image with more is refused from its header, before it is decoded
FORMATS = ("JPEG", "PNG")
SIXTEEN_BIT = "16-bit"  # our name for a mode that Pillow reports as I;16, or hides in RGB

# Conversion that a config may declare -> the Pillow modes that need it.
CONVERSIONS = {
    "palette": ("P", "PA"),
    "alpha": ("LA", "RGBA", "La", "RGBa"),
    "cmyk": ("CMYK",),
    "sixteen_bit": (SIXTEEN_BIT,),
}
PLAIN_MODES = ("1", "L", "RGB")
MODES = {1: "L", 3: "RGB"}  # of pictures, by channels

Raw = bytes | np.ndarray  # an encoded image, or a stored one: uint8 [h, w, channels]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What an image is, as stored.

    Attributes:
      mode: Pillow's name of its pixel format, or `SIXTEEN_BIT`; empty where it cannot be read.
      height: in pixels.
      width: in pixels.
      problem: why it cannot be decoded, or empty.
    """

    mode: str
    height: int
    width: int
    problem: str = ""


def inspect(data: bytes) -> Facts:
    """Returns what an encoded image is; decodes it all, since only that shows a truncated one.

    >>> inspect(b"GIF89a").problem
    'is no JPEG and no PNG'
    """
    facts = Facts("", 0, 0)
    try:
        with _open(data) as image:
            facts = Facts(_mode(image, data), image.height, image.width)
            if image.width * image.height > MAX_PIXELS:
                return dataclasses.replace(facts, problem=_too_large(image.width, image.height))
            image.draft(None, (1, 1))  # JPEG: reads every coefficient, at an eighth of the size
            image.load()
    except Exception as error:  # whatever Pillow raises on bytes of anybody's making
        return dataclasses.replace(facts, problem=_problem(error))
    return facts


def array_facts(image: np.ndarray) -> Facts:
    """Returns what a stored image [h, w, channels] is.

    >>> array_facts(np.zeros((2, 3, 1), np.uint8))
    Facts(mode='L', height=2, width=3, problem='')
    """
    height, width, channels = image.shape
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels} channels")
    return Facts(mode, height, width)


def refused_mode(mode: str, convert: tuple[str, ...]) -> str:
    """Returns the conversion that `mode` needs and `convert` does not name; empty if it is fine.

    >>> refused_mode("P", ()), refused_mode("P", ("palette",)), refused_mode("F", ("palette",))
    ('palette', '', 'none')
    """
    if mode in PLAIN_MODES:
        return ""
    needed = next((name for name, modes in CONVERSIONS.items() if mode in modes), "none")
    return "" if needed in convert else needed


def decode(
    raw: Raw, channels: int, *, convert: tuple[str, ...] = (), exif: Literal["ignore", "apply"]
    = "ignore",
) -> Picture:
    """Returns an image as a picture of mode L (1 channel) or RGB (3).

    Grey becomes RGB by repetition; RGB becomes grey by ITU-R 601 luma (Pillow's `L`). Alpha is
    dropped, not blended; of 16 bits the upper 8 are kept (both as TensorFlow's decoder does).

    Args:
      raw: encoded, or stored as an array.
      channels: 1 or 3.
      convert: conversions that are wanted, of `CONVERSIONS`.
      exif: `apply` turns the image as its EXIF orientation says.

    Raises:
      InputError: it cannot be decoded, or needs a conversion that is not wanted.
    """
    if isinstance(raw, np.ndarray):
        return _from_array(raw, channels, convert)
    try:
        with _open(raw) as image:
            mode = _mode(image, raw)
            if image.width * image.height > MAX_PIXELS:
                raise InputError("image", _too_large(image.width, image.height))
            image.load()
            if needed := refused_mode(mode, convert):
                raise InputError("image", *_refusal(mode, needed))
            return _to_mode(_turned(image, exif), channels)
    except InputError:
        raise
    except Exception as error:
        raise InputError("image", _problem(error)) from error


def _open(data: bytes) -> Picture:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=FORMATS)


def _mode(image: Picture, data: bytes) -> str:
    """Pillow's mode; a PNG of 16 bits a channel, which Pillow may show as RGB, by its header."""
    sixteen = image.format == "PNG" and data[24:25] == b"\x10"  # IHDR's bit depth
    return SIXTEEN_BIT if sixteen or image.mode.startswith("I") else image.mode


def _turned(image: Picture, exif: str) -> Picture:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) if exif == "apply" else image


def _to_mode(image: Picture, channels: int) -> Picture:
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("LA", "La"):
        image = image.getchannel(0)
    wanted = MODES[channels]
    return image if image.mode == wanted else image.convert(wanted)


def _from_array(image: np.ndarray, channels: int, convert: tuple[str, ...]) -> Picture:
    mode = array_facts(image).mode
    if needed := refused_mode(mode, convert):
        raise InputError("image", *_refusal(mode, needed))
    kept = 1 if image.shape[-1] < 3 else 3  # drops alpha
    return _to_mode(to_picture(image[..., :kept]), channels)


def to_picture(pixels: np.ndarray) -> Picture:
    """uint8 [h, w, 1 or 3] as a picture."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1
                                                else pixels))


def to_pixels(picture: Picture) -> np.ndarray:
    """A picture as uint8 [h, w, 1 or 3]."""
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels  # grey: [h, w] -> [h, w, 1]


def refusal(mode: str, needed: str) -> str:
    """Says why an image of `mode` is refused, and which conversion would take it."""
    return " ".join(_refusal(mode, needed))


def _refusal(mode: str, needed: str) -> tuple[str]:
    hint = (f"declare convert=({needed!r},) to take it" if needed in CONVERSIONS
            else "only 8-bit grey and RGB images can be used")
    return (f"is of mode {mode}; {hint}",)


def _too_large(width: int, height: int) -> str:
    return f"has {width} x {height} pixels, more than the {MAX_PIXELS} allowed"


def _problem(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "is no JPEG and no PNG"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"has more than the {MAX_PIXELS} pixels allowed"
    return f"cannot be decoded: {str(error) or type(error).__name__}"
