"""What a train step takes as arguments: every array of the state and the batch, before any exists.

Bytes are those of the TPU's memory, which lays arrays out in tiles: tests compare the sum with the
compiled program's arguments, byte for byte. No JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepnarrow.cost import MIN_DIM_TO_FACTOR
from deepnarrow.modality import Axes, Costs, ParamArray

LANES, SUBLANES = 128, 8  # a tile of 32-bit numbers
MAX_VECTOR_TILE = 1024


@dataclasses.dataclass(frozen=True)
class StateArray:
    """One array of the train state or the batch.

    Attributes:
      kind: `params`, `optimizer`, `average`, `batch` or `counters`.
      path: keys from the root of the params, what it holds of them last (`v_row`); for messages.
      shape: of the whole array.
      axes: a logical axis name, or None, for each dimension.
      item_bytes: of one element.
    """

    kind: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: Axes
    item_bytes: int = 4


def train_state(costs: Costs, optimizer: str, *, average: bool) -> Iterator[StateArray]:
    """Yields every array of `train.TrainState`.

    Args:
      costs: of the model.
      optimizer: `adafactor` or `adamw`.
      average: a moving average of the parameters is kept too.
    """
    yield StateArray("counters", ("step",), (), ())
    yield StateArray("counters", ("finite",), (), (), item_bytes=1)
    groups = dict.fromkeys(_group(array) for array in costs.arrays)
    for group in groups:  # of the statistics and of the schedule
        yield StateArray("counters", (group, "count"), (), ())
        yield StateArray("counters", (group, "schedule"), (), ())
    for array in costs.arrays:
        yield StateArray("params", array.path, array.shape, array.axes)
        if average:
            yield StateArray("average", array.path, array.shape, array.axes)
        yield from (_adam if optimizer == "adamw" else _adafactor)(array)


def _group(array: ParamArray) -> str:
    stacked = array.axes[:1] == ("layers",)
    return f"layers_{array.shape[0]}" if stacked else "unstacked"


def _adam(array: ParamArray) -> Iterator[StateArray]:
    shape, axes = joined(array.shape, array.axes)
    for name in ("mu", "nu"):
        yield StateArray("optimizer", (*array.path, name), shape, axes)


def _adafactor(array: ParamArray) -> Iterator[StateArray]:
    """Row and column statistics of each layer's matrix, or the whole second moment.

    Optax keeps an array of one element in the place of what it does not need.
    """
    shape, axes = joined(array.shape, array.axes)
    stacked = 1 if axes[:1] == ("layers",) else 0
    layers, layer_axes = shape[:stacked], axes[:stacked]
    matrix = range(stacked, len(shape))
    by_size = sorted(matrix, key=lambda i: shape[i])
    factored = len(matrix) >= 2 and shape[by_size[-2]] >= MIN_DIM_TO_FACTOR
    nothing = ((*layers, 1), (*layer_axes, None))
    kept = {"v_row": nothing, "v_col": nothing, "v": (shape, axes)}
    if factored:
        kept = {"v_row": _without(shape, axes, by_size[-1]),
                "v_col": _without(shape, axes, by_size[-2]), "v": nothing}
    for name, (sizes, names) in kept.items():
        yield StateArray("optimizer", (*array.path, name), sizes, names)


def joined(shape: Sequence[int], axes: Axes) -> tuple[tuple[int, ...], Axes]:
    """Joins each `heads` axis to the `kv` axis after it, as the optimiser does."""
    sizes: list[int] = []
    names: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis == "kv" and names and names[-1] == "heads":
            sizes[-1] *= size
        else:
            sizes.append(size)
            names.append(axis)
    return tuple(sizes), tuple(names)


def _without(shape: tuple[int, ...], axes: Axes, i: int) -> tuple[tuple[int, ...], Axes]:
    return shape[:i] + shape[i + 1:], axes[:i] + axes[i + 1:]


def batch_arrays(arrays: Mapping[str, Any], batch_size: int) -> Iterator[StateArray]:
    """Yields the arrays of a batch: each of one example, with the batch's axis before it."""
    for name, spec in arrays.items():
        yield StateArray("batch", (name,), (batch_size, *spec.shape),
                         ("batch",) + (None,) * len(spec.shape), spec.item_bytes)


# --- layout ---------------------------------------------------------------------------------------
def tiled_bytes(shape: Sequence[int], item_bytes: int = 4) -> int:
    """Bytes of an argument in a TPU's memory.

    The two innermost axes are padded to tiles of 8 x 128 32-bit numbers (a second axis of 1, 2 or
    up to 4 to that), and the compiler chooses as innermost those two that pad least; narrower
    numbers are packed along the second. A vector's tile is the power of two that holds it, from 128
    to 1024. Derived from `entry_computation_layout` of programs compiled for v3, v5e and v5p.

    >>> tiled_bytes(()), tiled_bytes((250,)), tiled_bytes((3, 1)), tiled_bytes((16, 16, 3, 96))
    (512, 1024, 512, 393216)
    """
    pack = 4 // item_bytes
    if len(shape) < 2:
        size = math.prod(shape)
        tile = min(MAX_VECTOR_TILE, max(LANES, _power_of_two(size))) * pack
        return _up(size, tile) * item_bytes
    padded = min(_padded(shape, i, j, pack) for i in range(len(shape)) for j in range(len(shape))
                 if i != j)
    return padded * item_bytes


def _padded(shape: Sequence[int], minor: int, second: int, pack: int) -> int:
    rows = SUBLANES * pack
    if shape[second] < rows:
        rows = _power_of_two(shape[second])
    others = math.prod(size for i, size in enumerate(shape) if i not in (minor, second))
    return others * _up(shape[minor], LANES) * _up(shape[second], rows)


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile
