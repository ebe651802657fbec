"""What the folders of transformers and timm share: `config.json` beside `model.safetensors`.

PyTorch's own files (`.bin`, `.pt`, `.pth`) are pickles: whoever reads one runs what it says. They
are refused, with the remedy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.tensorfiles import (
    read_headers,
    read_json,
    safetensors_files,
    write_safetensors,
)
from deepnarrow_vision_vit.layout import Arrays, stand_in

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def refuse_pickles(path: str, where: str, hint: str) -> None:
    """Raises `InputError` where `path` is a pickle's by its name."""
    if Path(path).suffix.lower() in PICKLES:
        raise InputError(where, "is a pickle, which runs code when it is read",
                         got=Path(path).suffix, hint=hint)


def open_folder(path: str, where: str) -> tuple[dict[str, Any], Arrays, tuple[str, ...]]:
    """Returns a folder's config, a stand-in for every array, and its files; reads no array.

    Raises:
      InputError: it is no such folder, or a header is damaged; pickles are refused with the remedy.
    """
    refuse_pickles(path, where, "load it with the library that wrote it, then save it as "
                   "safetensors")
    if not Path(path).is_dir():
        raise InputError(where, "is not a folder", expected=f"a folder with {CONFIG}, {WEIGHTS}")
    files = safetensors_files(path)
    config = read_json(path, CONFIG)
    stand_ins = {name: stand_in(header.shape) for name, header in read_headers(path, files).items()}
    return config, stand_ins, (CONFIG, *files)


def write_folder(path: str, config: Mapping[str, Any], arrays: Arrays) -> None:
    """Makes the folder `path` of a config and float32 arrays."""
    folder = Path(path)
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(folder / WEIGHTS, arrays)


# --- values of a config -------------------------------------------------------------------------
def integer(config: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    """Returns a positive integer of a config; `default` stands for an absent or null one."""
    value = config.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise InputError(where, f"{CONFIG}: {name} is not a positive integer", got=repr(value))
    return value


def square(config: Mapping[str, Any], name: str, where: str, default: int) -> int:
    """Returns the side of a square given as one integer or two equal ones."""
    value = config.get(name)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return integer({name: value}, name, where, default)


# --- what the model is fed ------------------------------------------------------------------------
def fold_statistics(
    arrays: Arrays, kernel: str, bias: str, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Makes a patch embedding of `(i - mean) / std` one for images in [-1, 1], in place.

    With x = 2 i - 1 for an image i in [0, 1], (i - m) / s = x / (2 s) + (1/2 - m) / s: whatever the
    patch, its embedding is the same.

    Args:
      arrays: hold the kernel [d_model, channels, patch, patch] and the bias [d_model].
      kernel: its name.
      bias: its name.
      mean: of each channel.
      std: of each channel.
    """
    weight, m, s = arrays[kernel], np.asarray(mean), np.asarray(std)  # m, s: [channels]
    shift = weight.astype(np.float64).sum(axis=(2, 3)) @ ((0.5 - m) / s)  # -> [d_model]
    arrays[kernel] = (weight / (2 * s)[:, None, None]).astype(np.float32)
    arrays[bias] = (arrays[bias] + shift).astype(np.float32)


def statistics(
    mean: Any, std: Any, channels: int, where: str
) -> tuple[list[float], list[float]] | None:
    """Returns means and standard deviations to fold, or None where they are 1/2: ours.

    Raises:
      InputError: they are no numbers, one a channel.
    """
    values: list[list[float]] = []
    for name, given, low in (("mean", mean, -math.inf), ("std", std, 0.0)):
        numbers = given if isinstance(given, list) else [given] * channels
        if len(numbers) != channels or not all(
                type(x) in (int, float) and math.isfinite(x) and x > low for x in numbers):
            raise InputError(where, f"the image {name} is not a number for each channel", got=given,
                             expected=f"{channels} numbers")
        values.append([float(x) for x in numbers])
    return None if all(x == 0.5 for x in (*values[0], *values[1])) else (values[0], values[1])
