"""What a train step must send between devices, in theory. No JAX.

The theory, a device's sent bytes with ring algorithms (Patarasuk and Yuan 2009):

fsdp    Every parameter is gathered for the forward pass and once more for the backward pass, its
        gradient is reduced to the device that keeps it: three volumes instead of the two of plain
        data parallelism (Rajbhandari et al. 2020, "ZeRO", section 7.2). Gathered are numbers of
        the compute dtype; gradients are reduced in it, too, for a matmul's gradient has it.
data    Gradients are all-reduced once.
tensor  Every product whose inputs are split (a layer's attention output and the MLP's second
        matrix) all-reduces its result forward, and every one whose outputs are split the gradient
        of its input backward (Shoeybi et al. 2019, "Megatron-LM", section 3): as many again.
        `remat` `full` repeats the forward ones.

With micro-batches all but the reduction over `data` happens once for each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

from deepnarrow.modality import Costs, ParamArray
from deepnarrow.planning.hlo import Collective, ring_bytes

Remat = Literal["none", "dots", "full"]
Placed = tuple[str | None, ...]  # a mesh axis, or none, for each dimension


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step works on.

    Attributes:
      costs: of the model.
      mesh: sizes of the mesh's axes.
      placed: `placed(array)`: the mesh axis of each of a parameter's dimensions.
      remat: what the backward pass repeats.
      micro_batches: pieces of the batch, one after the other.
      examples: of one micro-batch on one device.
    """

    costs: Costs
    mesh: Mapping[str, int]
    placed: Callable[[ParamArray], Placed]
    remat: Remat
    micro_batches: int
    examples: float


def expected_collectives(work: Work) -> list[Collective]:
    """Returns what the theory of this module asks for in one step."""
    found = [_gather(work), _scatter(work), _reduce(work), _tensor(work)]
    return [one for one in found if one is not None and one.result_bytes]


def _share(work: Work, array: ParamArray, *axes: str) -> float:
    """The elements of a parameter that one device has when it is whole along `axes`."""
    split = math.prod(work.mesh.get(axis, 1) for axis in work.placed(array)
                      if axis is not None and axis not in axes)
    return array.size / split


def _along(work: Work, axis: str) -> list[ParamArray]:
    return [array for array in work.costs.arrays if axis in work.placed(array)]


def _gather(work: Work) -> Collective | None:
    return _fsdp(work, "all-gather", times=2)


def _scatter(work: Work) -> Collective | None:
    return _fsdp(work, "reduce-scatter", times=1)


def _fsdp(work: Work, kind: str, times: int) -> Collective | None:
    arrays, size = _along(work, "fsdp"), work.mesh.get("fsdp", 1)
    if size == 1 or not arrays:
        return None
    count = times * work.micro_batches
    payload = count * work.costs.float_bytes * sum(
        _share(work, array, "fsdp") for array in arrays)
    return Collective(kind, "fsdp", count * sum(map(_layers, arrays)), payload,
                      ring_bytes(kind, payload, size))


def _reduce(work: Work) -> Collective | None:
    """Gradients of parameters of which several devices hold the same part."""
    size = work.mesh.get("data", 1)
    others = work.mesh.get("fsdp", 1)
    payload = sent = count = 0.0
    for array in work.costs.arrays:
        replicas = size if "fsdp" in work.placed(array) else size * others
        if replicas > 1:
            moved = 4 * _share(work, array)
            payload, sent = payload + moved, sent + ring_bytes("all-reduce", moved, replicas)
            count += 1
    axes = "+".join(axis for axis in ("data", "fsdp") if work.mesh.get(axis, 1) > 1)
    return Collective("all-reduce", axes, int(count), payload, sent) if count else None


def _tensor(work: Work) -> Collective | None:
    size = work.mesh.get("tensor", 1)
    passes = work.micro_batches * (3 if work.remat == "full" else 2)
    payload, count = 0.0, 0
    if size == 1:
        return None
    for array in work.costs.arrays:
        # Only products that sum over a split axis: their result, [positions, d_model], is a sum.
        if array.axes[-1:] == ("embed",) and array.is_kernel and "tensor" in work.placed(array):
            positions = work.costs.lengths.get(array.component.split("/")[0], 1)
            layers = _layers(array)
            payload += passes * layers * positions * array.shape[-1] * work.costs.float_bytes
            count += passes * layers
    payload *= work.examples
    return Collective("all-reduce", "tensor", count, payload,
                      ring_bytes("all-reduce", payload, size))


def _layers(array: ParamArray) -> int:
    return array.shape[0] if array.axes[:1] == ("layers",) else 1
