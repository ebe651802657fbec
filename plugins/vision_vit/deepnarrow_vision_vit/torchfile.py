"""What the folders of transformers and timm share: `config.json` beside `model.safetensors`.

PyTorch's own files (`.bin`, `.pt`, `.pth`) are pickles: whoever reads one runs what it says. They
are refused, with the remedy.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow_vision_vit.layout import Arrays, stand_in

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_CONFIG_BYTES = 50_000_000  # names of 20,000 classes take 2 MB
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
DTYPES = ("F64", "F32", "F16", "BF16")


def refuse_pickles(path: str, where: str, hint: str) -> None:
    """Raises `InputError` where `path` is a pickle's by its name."""
    if Path(path).suffix.lower() in PICKLES:
        raise InputError(where, "is a pickle, which runs code when it is read",
                         got=Path(path).suffix, hint=hint)


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Returns a JSON object.

    Raises:
      InputError: there is none, or it is too large.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(where, f"{path.name} is too large",
                             expected=f"at most {MAX_CONFIG_BYTES} bytes")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(where, f"has no {path.name}", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"{path.name} is no JSON", got=error) from error
    if not isinstance(values, dict):
        raise InputError(where, f"{path.name} is no JSON object", got=type(values).__name__)
    return values


def open_folder(path: str, where: str, remedy: str) -> tuple[dict[str, Any], Arrays]:
    """Returns a folder's config and a stand-in for every array; reads no array.

    Args:
      path: the folder.
      where: what errors call it.
      remedy: Python that writes the weights of a loaded `model` as one safetensors file.

    Raises:
      InputError: it is no such folder, or its header is damaged; it names the remedy.
    """
    folder = Path(path)
    hint = f"load it with the library that wrote it, then {remedy}"
    refuse_pickles(path, where, hint)
    if not folder.is_dir():
        raise InputError(where, "is not a folder", expected=f"a folder with {CONFIG}, {WEIGHTS}")
    if not (folder / WEIGHTS).is_file():
        found = sorted(p.name for p in folder.iterdir())
        pickles = [name for name in found if Path(name).suffix.lower() in PICKLES]
        what = ("holds a pickle, which runs code when it is read" if pickles
                else f"has no {WEIGHTS}")
        raise InputError(where, what, got=", ".join(pickles or found[:5]) or "nothing",
                         expected=WEIGHTS, hint=hint)
    return read_json(folder / CONFIG, where), _stand_ins(folder / WEIGHTS, where)


def _stand_ins(path: Path, where: str) -> Arrays:
    from safetensors import SafetensorError, safe_open

    stand_ins: Arrays = {}
    try:
        # The library compares every size that the header claims with the size of the file.
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  a safe_open is no mapping
                array = file.get_slice(name)
                if array.get_dtype() not in DTYPES:
                    raise InputError(where, f"array {name} does not hold real numbers",
                                     got=array.get_dtype(), expected=", ".join(DTYPES))
                stand_ins[name] = stand_in(array.get_shape())
    except (SafetensorError, OSError) as error:
        raise InputError(where, f"{WEIGHTS} cannot be read", got=error) from error
    return stand_ins


def read_tensors(path: str, where: str, names: Iterable[str]) -> Arrays:
    """Returns arrays of a folder that `open_folder` has found sound, float32, by name."""
    from safetensors import SafetensorError, safe_open

    importlib.import_module("ml_dtypes")  # NumPy knows bfloat16 from it
    try:
        with safe_open(Path(path) / WEIGHTS, "np") as file:
            return {name: file.get_tensor(name).astype(np.float32, copy=False)
                    for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(where, f"{WEIGHTS} cannot be read", got=error) from error


def write_folder(path: str, config: Mapping[str, Any], arrays: Arrays) -> None:
    """Makes the folder `path` of a config and float32 arrays."""
    from safetensors.numpy import save_file

    folder = Path(path)
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})


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
