"""What a train step takes as arguments: every array of the state and the batch, before any exists.

Bytes are those of the TPU's memory, which lays arrays out in tiles: tests compare the sum with the
compiled program's arguments, byte for byte. No JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

from deepnarrow.cost import MIN_DIM_TO_FACTOR
from deepnarrow.mesh import (
    MeshShape,
    Rules,
    Spec,
    factored_specs,
    place_param,
    shard_shape,
    spec_of,
)
from deepnarrow.modality import Axes, Costs, ParamArray
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.stepspec import ArraySpec

LANES, SUBLANES = 128, 8  # a tile of 32-bit numbers
MIN_ROWS = 1  # of a tile
MAX_VECTOR_TILE = 1024


@dataclasses.dataclass(frozen=True)
class StateArray:
    """One array of the train state or the batch.

    Attributes:
      kind: `params`, `optimizer`, `average`, `batch` or `counters`.
      shape: of the whole array.
      local: of one device's part.
      item_bytes: of one element.
    """

    kind: str
    shape: tuple[int, ...]
    local: tuple[int, ...]
    item_bytes: int = 4


@functools.lru_cache(maxsize=2**14)  # asked hundreds of times for each mesh of a search
def param_spec(array: ParamArray, rules: Rules, mesh: MeshShape) -> Spec:
    """Returns what each dimension of a parameter lies on."""
    return place_param("/".join(array.path), array.axes, array.shape, rules, mesh)[0]


def state_arrays(
    costs: Costs, optimizer: str, rules: Rules, mesh: MeshShape, *, average: bool
) -> Iterator[StateArray]:
    """Yields every array of `step.TrainState`, placed as `sharding.place_state` places it.

    Args:
      costs: of the model.
      optimizer: `adafactor` or `adamw`.
      rules: of the sharding.
      mesh: likewise.
      average: a moving average of the parameters is kept too.
    """
    groups = dict.fromkeys(_group(array) for array in costs.arrays)
    # The step; in each group the counts of the statistics and of the schedule.
    yield from [StateArray("counters", (), ())] * (1 + 2 * len(groups))
    yield StateArray("counters", (), (), item_bytes=1)  # finite
    for array in costs.arrays:
        spec = param_spec(array, rules, mesh)
        own = StateArray("params", array.shape, shard_shape(array.shape, spec, mesh))
        yield own
        if average:
            yield dataclasses.replace(own, kind="average")
        for shape, place in _statistics(array, spec, optimizer):
            yield StateArray("optimizer", shape, shard_shape(shape, place, mesh))


def _group(array: ParamArray) -> str:
    stacked = array.axes[:1] == ("layers",)
    return f"layers_{array.shape[0]}" if stacked else "unstacked"


def _statistics(
    array: ParamArray, spec: Spec, optimizer: str
) -> list[tuple[tuple[int, ...], Spec]]:
    """Shapes and specs of what the optimiser keeps of a parameter.

    AdamW: two moments. Adafactor: row and column statistics of each layer's matrix, or the whole
    second moment; Optax keeps an array of one element in the place of what it does not need.
    """
    shape, place = joined(array.shape, array.axes, spec)
    if optimizer == "adamw":
        return [(shape, place)] * 2
    stacked = 1 if array.axes[:1] == ("layers",) else 0
    matrix, layers = shape[stacked:], shape[:stacked]
    nothing = (*layers, 1), (None,) * (stacked + 1)
    if len(matrix) < 2 or sorted(matrix)[-2] < MIN_DIM_TO_FACTOR:
        return [nothing, nothing, (shape, place)]
    factored = [((*layers, *sizes), (*place[:stacked], *places))
                for sizes, places in factored_specs(matrix, place[stacked:])]
    return [*factored, nothing]


def joined(shape: Sequence[int], axes: Axes, spec: Spec) -> tuple[tuple[int, ...], Spec]:
    """Joins each `kv` axis to the `heads` axis before it, as the optimiser does."""
    sizes: list[int] = []
    places = []
    for i, (size, axis) in enumerate(zip(shape, axes, strict=True)):
        if axis == "kv" and i and axes[i - 1] == "heads":
            sizes[-1] *= size
        else:
            sizes.append(size)
            places.append(spec[i])
    return tuple(sizes), tuple(places)


def batch_arrays(
    arrays: Mapping[str, ArraySpec], batch_size: int, rules: Rules, mesh: MeshShape
) -> Iterator[StateArray]:
    """Yields the arrays of a batch: each of one example, with the batch's axis before it."""
    for spec in arrays.values():
        shape = (batch_size, *spec.shape)
        axes = ("batch", *[None] * len(spec.shape))
        local = shard_shape(shape, spec_of(axes, shape, rules, mesh), mesh)
        yield StateArray("batch", shape, local, spec.item_bytes)


def number_arrays(optimizer: OptimizerConfig) -> Iterator[StateArray]:
    """Yields what a step reads of `step.StepArgs`, without dropout: the seed is left out then."""
    yield from [StateArray("numbers", (), ())] * (1 + optimizer.ends)  # peak rate, total steps


def argument_bytes(arrays: Iterator[StateArray], min_rows: int = MIN_ROWS) -> dict[str, int]:
    """Returns bytes of one device by kind (`params`, `optimizer`, `average`, `batch`, ...)."""
    found: dict[str, int] = {}
    for array in arrays:
        size = tiled_bytes(array.local, array.item_bytes, min_rows)
        found[array.kind] = found.get(array.kind, 0) + size
    return found


# --- layout ---------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=2**14)
def tiled_bytes(shape: tuple[int, ...], item_bytes: int = 4, min_rows: int = MIN_ROWS) -> int:
    """Bytes of an argument in a TPU's memory.

    The two innermost axes are padded to tiles of 8 x 128 32-bit numbers (a second axis of 1, 2 or
    up to 4 to that), and the compiler chooses as innermost those two that pad least; narrower
    numbers are packed along the second. A vector's tile is the power of two that holds it, from 128
    to 1024. On a v3 no tile has fewer than `min_rows` 2 rows of 128. Derived from
    `entry_computation_layout` and argument sizes of programs compiled for v3, v4, v5e, v5p and v6e.

    >>> tiled_bytes(()), tiled_bytes((250,)), tiled_bytes((3, 1)), tiled_bytes((16, 16, 3, 96))
    (512, 1024, 512, 393216)
    >>> [tiled_bytes(shape, min_rows=2) for shape in ((), (12, 1), (12, 1, 768))]  # v3
    [1024, 1024, 49152]
    """
    pack = 4 // item_bytes
    if len(shape) < 2:
        size = math.prod(shape)
        tile = min(MAX_VECTOR_TILE, max(LANES * min_rows, _power_of_two(size))) * pack
        return _up(size, tile) * item_bytes
    padded = min(_padded(shape, i, j, pack, min_rows)
                 for i in range(len(shape)) for j in range(len(shape)) if i != j)
    return padded * item_bytes


def _padded(shape: Sequence[int], minor: int, second: int, pack: int, min_rows: int) -> int:
    rows = SUBLANES * pack
    if shape[second] < rows:
        rows = max(_power_of_two(shape[second]), min_rows * pack)
    others = math.prod(size for i, size in enumerate(shape) if i not in (minor, second))
    return others * _up(shape[minor], LANES) * _up(shape[second], rows)


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile
