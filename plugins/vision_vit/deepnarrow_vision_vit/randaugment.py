"""RandAugment (Cubuk et al. 2020) as the TPU models' `autoaugment.py` has it, in NumPy and Pillow.

Its 16 operations, their strengths, and its peculiarities, on which published recipes ("How to
train your ViT", Steiner et al. 2021) rest: what is empty after a move becomes grey (128), values
are cut off, not rounded, and `contrast` blends with the sum of the grey histogram over 256, which
is white for any image of common size (255 once it has 65,280 pixels, a 256th of the pixels below).
Each function takes and returns uint8 [h, w, 3].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image as PillowImage

MAX_LEVEL = 10.0
CUTOUT_CONST = 40
TRANSLATE_CONST = 100
GREY = 128  # of what is empty

Image = np.ndarray
_VALUES = np.arange(256, dtype=np.uint8)
_FLOATS = _VALUES.astype(np.float32)


def rand_augment(image: Image, rng: np.random.Generator, layers: int, magnitude: float) -> Image:
    """Applies `layers` operations drawn with replacement, each at strength `magnitude` of 10."""
    for _ in range(layers):
        name = NAMES[rng.integers(len(NAMES))]
        image = _apply(name, image, magnitude, rng)
    return image


def _apply(name: str, image: Image, level: float, rng: np.random.Generator) -> Image:
    share = level / MAX_LEVEL
    if name in ENHANCE:
        return ENHANCE[name](image, share * 1.8 + 0.1)
    if name in MOVES:
        move, most = MOVES[name]
        return move(image, share * most * (1 if rng.random() < 0.5 else -1))
    if name == "Cutout":
        height, width, _ = image.shape
        row, column = int(rng.integers(height)), int(rng.integers(width))
        return cutout(image, int(share * CUTOUT_CONST), row, column)
    if name in LEVELS:
        change, most = LEVELS[name]
        return change(image, int(share * most))
    return PLAIN[name](image)


# --- colours --------------------------------------------------------------------------------------
def blend(low: Image, high: Image, factor: float) -> Image:
    """`low + factor (high - low)`, cut off to whole bytes; factors above 1 extrapolate."""
    start = low.astype(np.float32)
    mixed = start + np.float32(factor) * (high.astype(np.float32) - start)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def auto_contrast(image: Image) -> Image:
    """Stretches each channel to 0..255."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))  # [h, w, 3] -> [3, h, w]
    return np.stack([_lookup(plane, _stretch(plane)) for plane in planes], axis=-1)


def _stretch(channel: np.ndarray) -> np.ndarray:
    """The table that maps a channel's smallest value to 0 and its largest to 255."""
    low, high = np.float32(channel.min()), np.float32(channel.max())
    if low == high:
        return _VALUES
    scale = np.float32(255) / (high - low)
    return np.clip(_FLOATS * scale + -low * scale, 0, 255).astype(np.uint8)


def equalize(image: Image) -> Image:
    """Spreads each channel's histogram evenly."""
    counts = np.array(PillowImage.fromarray(image).histogram()).reshape(-1, 256)
    channels = [_lookup(image[..., c], _spread(counts[c])) for c in range(image.shape[-1])]
    return np.stack(channels, axis=-1)  # channels x [h, w] -> [h, w, channels]


def _spread(histogram: np.ndarray) -> np.ndarray:
    """The table that equalises a channel with this histogram."""
    used = histogram[histogram > 0]
    step = (used.sum() - used[-1]) // 255
    if step == 0:
        return _VALUES
    table = (np.cumsum(histogram) + step // 2) // step
    return np.clip(np.concatenate([[0], table[:-1]]), 0, 255).astype(np.uint8)


def invert(image: Image) -> Image:
    """255 minus each value."""
    return 255 - image


def posterize(image: Image, bits: int) -> Image:
    """Keeps the upper `bits`; above 8, which strong settings ask for, the image stays."""
    return image & np.uint8(256 - (1 << max(0, 8 - bits)))


def solarize(image: Image, threshold: int) -> Image:
    """Inverts the values from `threshold` up."""
    return _lookup(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: Image, addition: int) -> Image:
    """Adds to the values below 128."""
    added = np.clip(_VALUES.astype(np.int16) + addition, 0, 255).astype(np.uint8)
    return _lookup(image, np.where(_VALUES < 128, added, _VALUES))


def _lookup(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Maps each value by a table of 256."""
    return np.take(table, image)


def grey(image: Image) -> Image:
    """The luma as TensorFlow computes it, uint8 [h, w, 1]."""
    weights = np.array([0.2989, 0.587, 0.114], np.float32)
    scaled = image.astype(np.float32) * np.float32(1 / 255)
    return (scaled @ weights * np.float32(255.5)).astype(np.uint8)[..., None]


def color(image: Image, factor: float) -> Image:
    """Blends with its own grey."""
    return blend(np.broadcast_to(grey(image), image.shape), image, factor)


def contrast(image: Image, factor: float) -> Image:
    """Blends with one grey, which is `pixels / 256` (see the module's text)."""
    level = min(image.shape[0] * image.shape[1] / 256, 255.0)
    return _lookup(image, blend(np.full(256, int(level), np.uint8), _VALUES, factor))


def brightness(image: Image, factor: float) -> Image:
    """Blends with black."""
    return _lookup(image, blend(np.zeros(256, np.uint8), _VALUES, factor))


def sharpness(image: Image, factor: float) -> Image:
    """Blends with itself smoothed by a 3 x 3 kernel (1, the middle 5); the border stays."""
    wide = image.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]  # [h, w, 3] -> [h - 2, w, 3]
    smooth = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    result = image.copy()
    result[1:-1, 1:-1] = smooth // 13  # [h - 2, w - 2, 3]; the kernel's sum
    return blend(result, image, factor)


# --- moves ----------------------------------------------------------------------------------------
def shear_x(image: Image, level: float) -> Image:
    """Shifts row y left by `level` y pixels."""
    return _affine(image, (1.0, level, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: Image, level: float) -> Image:
    """Shifts column x up by `level` x pixels."""
    return _affine(image, (1.0, 0.0, 0.0, level, 1.0, 0.0))


def translate_x(image: Image, pixels: float) -> Image:
    """Shifts to the left by `pixels`."""
    return _affine(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


def translate_y(image: Image, pixels: float) -> Image:
    """Shifts up by `pixels`."""
    return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


def rotate(image: Image, degrees: float) -> Image:
    """Turns counter-clockwise around the centre."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    height, width = image.shape[0] - 1, image.shape[1] - 1
    return _affine(image, (cos, -sin, (width - (cos * width - sin * height)) / 2,
                           sin, cos, (height - (sin * width + cos * height)) / 2))


def _affine(image: Image, matrix: tuple[float, ...]) -> Image:
    """Pixel (x, y) becomes the nearest one to (a x + b y + c, d x + e y + f); grey outside."""
    a, b, c, d, e, f = map(np.float32, matrix)
    height, width, channels = image.shape
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    from_x = _round(a * x + b * y + c)  # -> [h, w]
    from_y = _round(d * x + e * y + f)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    places = np.where(inside, from_y * np.int32(width) + from_x, np.int32(height * width))
    # One grey pixel stands behind the last: [h, w, channels] -> [h * w + 1, channels]
    pixels = np.full((height * width + 1, channels), GREY, np.uint8)
    pixels[:-1] = image.reshape(-1, channels)
    return pixels[places]  # -> [h, w, channels]


def _round(values: np.ndarray) -> np.ndarray:
    """To the nearest integer, halves away from zero."""
    return np.trunc(values + np.copysign(np.float32(0.5), values)).astype(np.int32)


def cutout(image: Image, reach: int, row: int, column: int) -> Image:
    """Greys a square of side `2 reach` around a pixel, as far as it lies inside."""
    result = image.copy()
    result[max(0, row - reach):row + reach, max(0, column - reach):column + reach] = GREY
    return result


# The set of operations, in the order of the original; how strong each is at magnitude 10.
PLAIN: dict[str, Callable[[Image], Image]] = {
    "AutoContrast": auto_contrast, "Equalize": equalize, "Invert": invert}
LEVELS: dict[str, tuple[Callable[[Image, int], Image], int]] = {
    "Posterize": (posterize, 4), "Solarize": (solarize, 256), "SolarizeAdd": (solarize_add, 110)}
ENHANCE: dict[str, Callable[[Image, float], Image]] = {
    "Color": color, "Contrast": contrast, "Brightness": brightness, "Sharpness": sharpness}
MOVES: dict[str, tuple[Callable[[Image, float], Image], float]] = {
    "Rotate": (rotate, 30.0), "ShearX": (shear_x, 0.3), "ShearY": (shear_y, 0.3),
    "TranslateX": (translate_x, float(TRANSLATE_CONST)),
    "TranslateY": (translate_y, float(TRANSLATE_CONST))}
NAMES = ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color",
         "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
         "Cutout", "SolarizeAdd")
