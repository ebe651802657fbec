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
from typing import Literal

from deepnarrow.mesh import MeshShape, Rules
from deepnarrow.modality import Costs, ParamArray
from deepnarrow.planning.hlo import Collective, ring_bytes
from deepnarrow.planning.state import param_spec

Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step works on.

    Attributes:
      costs: of the model.
      mesh: the devices'.
      rules: what is split along its axes.
      remat: what the backward pass repeats.
      micro_batches: pieces of the batch, one after the other.
      examples: of one micro-batch on one device.
    """

    costs: Costs
    mesh: MeshShape
    rules: Rules
    remat: Remat
    micro_batches: int
    examples: float

    def axes(self, array: ParamArray) -> set[str]:
        """The mesh axes that split a parameter."""
        return {name for target in param_spec(array, self.rules, self.mesh) if target is not None
                for name in ((target,) if isinstance(target, str) else target)}

    def share(self, array: ParamArray, *whole: str) -> float:
        """The elements of a parameter that one device has once it is whole along `whole`."""
        split = math.prod(self.mesh.sizes[axis] for axis in self.axes(array) - set(whole))
        return array.size / split


def expected_collectives(work: Work) -> list[Collective]:
    """Returns what the theory of this module asks for in one step."""
    found = [_gather(work), _scatter(work), _reduce(work), _tensor(work)]
    return [one for one in found if one is not None and one.result_bytes]


def _along(work: Work, axis: str) -> list[ParamArray]:
    return [array for array in work.costs.arrays if axis in work.axes(array)]


def _gather(work: Work) -> Collective | None:
    return _fsdp(work, "all-gather", times=2)


def _scatter(work: Work) -> Collective | None:
    return _fsdp(work, "reduce-scatter", times=1)


def _fsdp(work: Work, kind: str, times: int) -> Collective | None:
    arrays, size = _along(work, "fsdp"), work.mesh.fsdp
    if size == 1 or not arrays:
        return None
    count = times * work.micro_batches
    payload = count * work.costs.float_bytes * sum(
        work.share(array, "fsdp") for array in arrays)
    return Collective(kind, "fsdp", count * sum(map(_layers, arrays)), payload,
                      ring_bytes(kind, payload, size))


def _reduce(work: Work) -> Collective | None:
    """Gradients of parameters of which several devices hold the same part."""
    size = work.mesh.data
    others = work.mesh.fsdp
    payload = sent = count = 0.0
    for array in work.costs.arrays:
        replicas = size if "fsdp" in work.axes(array) else size * others
        if replicas > 1:
            moved = 4 * work.share(array)
            payload, sent = payload + moved, sent + ring_bytes("all-reduce", moved, replicas)
            count += 1
    axes = "+".join(axis for axis in ("data", "fsdp") if work.mesh.sizes[axis] > 1)
    return Collective("all-reduce", axes, int(count), payload, sent) if count else None


def _tensor(work: Work) -> Collective | None:
    size = work.mesh.tensor
    passes = work.micro_batches * (3 if work.remat == "full" else 2)
    payload, count = 0.0, 0
    if size == 1:
        return None
    for array in work.costs.arrays:
        # Only products that sum over a split axis: their result, [positions, d_model], is a sum.
        if array.axes[-1:] == ("embed",) and array.is_kernel and "tensor" in work.axes(array):
            positions = work.costs.lengths.get(array.component.split("/")[0], 1)
            layers = _layers(array)
            payload += passes * layers * positions * array.shape[-1] * work.costs.float_bytes
            count += passes * layers
    payload *= work.examples
    return Collective("all-reduce", "tensor", count, payload,
                      ring_bytes("all-reduce", payload, size))


def _layers(array: ParamArray) -> int:
    return array.shape[0] if array.axes[:1] == ("layers",) else 1
