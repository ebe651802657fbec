"""Safetensors files, read without trusting them: one file, or shards with an index. No JAX.

A file's header is checked against its size before anything is allocated; arrays become float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.foreign import checked_file

MAX_JSON_BYTES = 100_000_000  # of a config or an index
_FLOATS = ("F64", "F32", "F16", "BF16")


class Header(NamedTuple):
    """One array as its file's header has it: the file's name, a dtype such as `BF16`, a shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def safetensors_files(folder: str | Path, stem: str = "model") -> tuple[str, ...]:
    """Returns the names of the files that hold a folder's weights, the index first if there is one.

    Either `STEM.safetensors`, or `STEM.safetensors.index.json` with the shards that it names.

    Raises:
      InputError: there are none; where there are pickles (`.bin`, `.pt`), it says what to do.
    """
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if (Path(folder) / single).exists():
        return (single,)
    if (Path(folder) / index).exists():
        weight_map = read_json(folder, index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(
            isinstance(name, str) for name in weight_map.values()
        ):
            raise InputError(f"checkpoint file '{Path(folder) / index}'", "has no weight_map")
        return (index, *sorted(set(weight_map.values())))
    pickles = sorted(p.name for p in Path(folder).glob("*")
                     if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    if pickles:
        raise InputError(
            f"checkpoint '{folder}'", "holds pickled weights, which can run any code when read",
            got=", ".join(pickles[:3]), expected=single,
            hint="convert it where you trust it: transformers' from_pretrained(...), then "
                 "save_pretrained(..., safe_serialization=True)")
    raise InputError(f"checkpoint '{folder}'", "has no weights", expected=f"{single} or {index}")


def read_headers(folder: str | Path, files: tuple[str, ...]) -> dict[str, Header]:
    """Returns every array's header by name; reads no array.

    Raises:
      InputError: a file is damaged or cut short, an array is there twice or is none of floats, or
        an index does not name exactly the arrays that are there.
    """
    found: dict[str, Header] = {}
    for file in files:
        if file.endswith(".json"):
            continue
        with _open(folder, file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (it is no mapping)
                one = tensors.get_slice(name)
                header = Header(file, one.get_dtype(), tuple(one.get_shape()))
                if name in found:
                    raise InputError(f"checkpoint '{folder}'", "has an array twice", got=name)
                if header.dtype not in _FLOATS:
                    raise InputError(f"checkpoint '{folder}', {name}", "is no array of floats",
                                     got=header.dtype, expected=f"one of {', '.join(_FLOATS)}")
                found[name] = header
    _check_index(folder, files, found)
    return found


def read_arrays(folder: str | Path, files: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns every array by name, float32.

    Raises:
      InputError: as `read_headers`.
    """
    headers = read_headers(folder, files)
    arrays: dict[str, np.ndarray] = {}
    for file in sorted({header.file for header in headers.values()}):
        with _open(folder, file) as tensors:
            for name, header in headers.items():
                if header.file == file:
                    arrays[name] = np.asarray(tensors.get_tensor(name), np.float32)
    return arrays


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one file with `arrays`, marked as `transformers` expects it."""
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, path, metadata={"format": "pt"})


def read_json(folder: str | Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in a checkpoint's file.

    Raises:
      InputError: it is missing, a link, too large, or no JSON object.
    """
    path = checked_file(folder, name)
    where = f"checkpoint file '{path}'"
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(where, "is too large", got=f"{path.stat().st_size} bytes",
                         expected=f"at most {MAX_JSON_BYTES}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(where, "is no JSON", got=error) from error
    except OSError as error:
        raise InputError(where, "cannot be read", got=error.strerror) from error
    if not isinstance(values, dict):
        raise InputError(where, "is no JSON object", got=type(values).__name__)
    return values


def _open(folder: str | Path, file: str) -> Any:
    """Opens a file; the library checks its header's size, offsets and shapes against the file."""
    # Numpy knows bfloat16 from then on.
    import ml_dtypes  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from safetensors import SafetensorError, safe_open

    path = checked_file(folder, file)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"checkpoint file '{path}'", "is no whole safetensors file", got=error,
                         hint="download or copy it again") from error


def _check_index(
    folder: str | Path, files: tuple[str, ...], found: Mapping[str, Header]
) -> None:
    for index in (file for file in files if file.endswith(".json")):
        named = read_json(folder, index)["weight_map"]
        wrong = sorted(name for name in named.keys() | found.keys()
                       if named.get(name) != (found[name].file if name in found else None))
        if wrong:
            name = wrong[0]
            raise InputError(f"checkpoint file '{Path(folder) / index}'",
                             f"and its shards differ in {len(wrong)} arrays, first {name}",
                             got=found[name].file if name in found else "in no shard",
                             expected=named.get(name, "not in the index"))
