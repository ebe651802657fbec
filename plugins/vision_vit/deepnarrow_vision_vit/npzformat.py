"""big_vision's `.npz` checkpoints: parameters by path, as its `models.vit.load` takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.formats import CheckpointHeader
from deepnarrow.modality import Params
from deepnarrow.npz import ArrayHeader, read_arrays, read_headers
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.convert import (
    canonical,
    check_convertible,
    describe,
    find_root,
    layout,
    to_big_vision,
)
from deepnarrow_vision_vit.layout import check_arrays, flatten, read_entries, stand_in
from deepnarrow_vision_vit.resample import ADJUSTABLE, resampled
from deepnarrow_vision_vit.torchfile import refuse_pickles

if TYPE_CHECKING:
    from ml_collections import ConfigDict

BFLOAT16 = np.dtype("V2")  # what NumPy makes of bfloat16


def inspect(path: str) -> CheckpointHeader:
    """Reads the arrays' headers: shape and options; see `convert.describe`.

    Raises:
      InputError: it is no such file, or no ViT's.
    """
    where = _where(path)
    headers, root = _headers(path, where)
    stand_ins = {name: stand_in(header.shape) for name, header in headers.items()}
    arrays = canonical(where, stand_ins, root)
    shape, options = describe(where, arrays)
    check_arrays(where, arrays, *layout(shape, options))
    return CheckpointHeader(shape, options, (Path(path).name,), ADJUSTABLE)


def read(path: str, header: CheckpointHeader) -> Params:
    """Returns the parameters, float32, their positions resampled to the header's `image_size`.

    Raises:
      InputError: the file is damaged, or has changed.
    """
    where = _where(path)
    headers, root = _headers(path, where)
    arrays = read_arrays(path, where, headers)
    for name, (_, dtype) in headers.items():
        if dtype == BFLOAT16:
            import ml_dtypes

            arrays[name] = arrays[name].view(ml_dtypes.bfloat16)
        arrays[name] = arrays[name].astype(np.float32, copy=False)
    arrays = canonical(where, arrays, root)
    entries, sizes = layout(*describe(where, arrays))
    return resampled(read_entries(where, arrays, entries, sizes), header.options)


def write(path: str, shape: Shape, options: ConfigDict, params: Params) -> None:
    """Writes the parameters under `params/`, layers apart.

    Raises:
      NotApplicable: big_vision has no such ViT.
    """
    check_convertible(shape, options.to_dict())
    arrays = {f"params/{name}": array
              for name, array in flatten(to_big_vision(params, shape)).items()}
    with open(path, "wb") as file:  # given a name, NumPy would append .npz to it
        np.savez(file, allow_pickle=False, **arrays)


def _where(path: str) -> str:
    return f"big_vision checkpoint '{path}'"


def _headers(path: str, where: str) -> tuple[dict[str, ArrayHeader], str]:
    """Headers of the ViT's arrays, and the prefix of their names."""
    refuse_pickles(path, where, "save the parameters with np.savez, keys joined by /")
    if not Path(path).is_file():
        raise InputError(where, "is not a file", expected="an .npz file",
                         hint="new-style checkpoint folders (tensorstore) must be saved as .npz")
    headers = read_headers(path, where)
    root = find_root(headers)
    headers = {name: header for name, header in headers.items() if name.startswith(root)}
    for name, (_, dtype) in headers.items():
        if dtype != BFLOAT16 and dtype.kind != "f":
            raise InputError(where, f"array {name} does not hold real numbers", got=dtype)
    return headers, root
