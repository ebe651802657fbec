"""Memory of one device during a train step, before anything is compiled. No JAX.

Arguments are exact: every array of the state and the batch, split by the mesh and laid out in
tiles. Temporaries are a model of what the compiler keeps: what the ledger says the backward pass
needs, gradients, one layer's working set, gathered parameters, and what the update makes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from deepnarrow.modality import Costs
from deepnarrow.planning.traffic import Work
from deepnarrow.stepspec import ArraySpec

FLOAT_BYTES = 4
# Of one layer's values the backward pass holds their gradients, too.
WORKING_COPIES = 2
LOGIT_COPIES = 2  # logits and their gradient, float32
GATHERED_LAYERS = 2  # the next layer's parameters are gathered while one layer works
UPDATE_COPIES = 1  # of the new parameters, until the step is known to be finite
LANES = 128  # the batch lies innermost in the copy of what is convolved, padded to so many
SPLIT_COMPONENTS = ("attention", "cross_attention", "mlp", "head")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      arguments: state and batch.
      temporaries: what lives at the worst moment besides.
      outputs: what is returned and not written over an argument.
      parts: what `arguments` and `temporaries` are made of, by name.
    """

    arguments: float
    temporaries: float
    outputs: float
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes that the device must have."""
        return self.arguments + self.temporaries + self.outputs


def temporary_bytes(
    work: Work, unsaved: Costs, inputs: Mapping[str, ArraySpec], average: bool
) -> dict[str, float]:
    """Returns the bytes that live at the worst moment, by what they are.

    Args:
      work: of the step.
      unsaved: costs of the same model without remat: what one layer computes.
      inputs: the arrays of an example.
      average: a moving average of the parameters is kept too.
    """
    params = FLOAT_BYTES * sum(work.share(array) for array in work.costs.arrays)
    accumulated = params if work.micro_batches > 1 else 0.0
    logits = FLOAT_BYTES * work.examples * sum(
        term.activation_floats for term in work.costs.flops if term.kind == "logits")
    backward = {
        "activations": _kept(work, work.costs),
        "working set": WORKING_COPIES * _largest_layer(work, unsaved),
        "logits": LOGIT_COPIES * logits / work.mesh.tensor,
        "gathered parameters": GATHERED_LAYERS * _gathered(work),
        "gradients": params + accumulated,
        "inputs": _copied(work, inputs),
    }
    update = {"gradients": params, "update": (UPDATE_COPIES + average) * params}
    return max(backward, update, key=lambda parts: sum(parts.values()))


def _copied(work: Work, inputs: Mapping[str, ArraySpec]) -> float:
    """Images in the compute dtype, as their first convolution reads them; tokens are not copied."""
    elements = sum(math.prod(spec.shape) for spec in inputs.values()
                   if spec.dtype == "float32" and len(spec.shape) > 2)
    return work.costs.float_bytes * elements * LANES * math.ceil(work.examples / LANES)


def _kept(work: Work, costs: Costs) -> float:
    """What the ledger says is kept for the backward pass, the logits left out."""
    return work.examples * costs.float_bytes * sum(
        term.activation_floats / _split(work, term.component)
        for term in costs.flops if term.kind != "logits")


def _largest_layer(work: Work, unsaved: Costs) -> float:
    """What one layer computes, of the stack where that is most."""
    depth = {array.component.split("/")[0]: array.shape[0] for array in unsaved.arrays
             if array.axes[:1] == ("layers",)}
    by_stack = dict.fromkeys(depth, 0.0)
    for term in unsaved.flops:
        stack = term.component.split("/")[0]
        if stack in depth:
            by_stack[stack] += term.activation_floats / _split(work, term.component) / depth[stack]
    return work.examples * unsaved.float_bytes * max(by_stack.values(), default=0.0)


def _split(work: Work, component: str) -> int:
    """How many devices share the activations of a component."""
    tensor = work.mesh.tensor
    return tensor if component.split("/")[-1] in SPLIT_COMPONENTS else 1


def _gathered(work: Work) -> float:
    """One layer's parameters in the compute dtype, whole along `fsdp`; largest stack."""
    by_stack: dict[str, float] = {}
    for array in work.costs.arrays:
        if array.axes[:1] == ("layers",) and "fsdp" in work.axes(array):
            whole = work.share(array, "fsdp") / array.shape[0]
            stack = array.component.split("/")[0]
            by_stack[stack] = by_stack.get(stack, 0.0) + whole * work.costs.float_bytes
    return max(by_stack.values(), default=0.0)
