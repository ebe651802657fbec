"""One way to run a step on a slice, and what it would take: an estimate. No JAX."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal

from deepnarrow.cost import CONVENTIONS
from deepnarrow.mesh import MeshShape, find_rules
from deepnarrow.modality import Costs
from deepnarrow.planning.hlo import Collective
from deepnarrow.planning.memory import Memory, temporary_bytes
from deepnarrow.planning.state import argument_bytes, batch_arrays, number_arrays, state_arrays
from deepnarrow.planning.topology import Topology
from deepnarrow.planning.traffic import Remat, Work, expected_collectives
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.stepspec import ArraySpec

NUM_SCALARS = 8  # metrics that a step returns, about
SCALAR_BYTES = 512  # a tile
# A step reads each float32 parameter for the gather or cast and in the update, writes it once, and
# writes and reads its gradient.
PARAM_PASSES = 5


@dataclasses.dataclass(frozen=True)
class Step:
    """A train step of one shape: all that is known before a mesh is chosen.

    Attributes:
      name: of the shape.
      costs: by remat.
      arrays: what it reads of an example.
      batch_size: examples a step.
      optimizer: of the step.
      dtype: of the matmuls' operands.
    """

    name: str
    costs: Mapping[Remat, Costs]
    arrays: Mapping[str, ArraySpec]
    batch_size: int
    optimizer: OptimizerConfig
    dtype: Literal["bfloat16", "float32"]

    @property
    def model_flops(self) -> float:
        """FLOPs of the step without what remat repeats."""
        return self.batch_size * sum(CONVENTIONS["matmul"].train(self.costs["none"]).values())


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a step is spread over devices.

    Attributes:
      preset: name of the sharding rules.
      mesh: of the devices.
      remat: what the backward pass repeats.
      micro_batches: pieces of the batch, one after the other.
    """

    preset: str
    mesh: MeshShape
    remat: Remat
    micro_batches: int

    def __str__(self) -> str:
        return f"{self.mesh} remat={self.remat} micro_batches={self.micro_batches}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step takes with one choice.

    Attributes:
      choice: the mesh, remat and micro-batches.
      memory: of one device.
      limit: bytes that a device has.
      flops: of the whole step, over all devices, what remat repeats included.
      collectives: of one device and step.
      compute_s, memory_s, interconnect_s: FLOPs at the peak, bytes through memory, bytes over the
        links: the roofline's three times.
      mfu_bound: the model's FLOPs over what the devices could do in `step_time_s`.
      compiled: the memory, FLOPs and collectives are the compiler's.
    """

    choice: Choice
    memory: Memory
    limit: float
    flops: float
    collectives: tuple[Collective, ...]
    compute_s: float
    memory_s: float
    interconnect_s: float
    mfu_bound: float
    compiled: bool = False

    @property
    def fits(self) -> bool:
        """Whether the device has memory enough."""
        return self.memory.total <= self.limit

    @property
    def step_time_s(self) -> float:
        """The longest of the three times: they overlap at best (Williams et al. 2009)."""
        return max(self.compute_s, self.memory_s, self.interconnect_s)

    @property
    def bound(self) -> str:
        """What limits the step."""
        times = {"compute": self.compute_s, "memory": self.memory_s,
                 "interconnect": self.interconnect_s}
        return max(times, key=lambda name: times[name])

    @property
    def rank(self) -> tuple[float, float, int]:
        """What orders choices: predicted time, then the sum of its parts, then fewer pieces."""
        total = self.compute_s + self.memory_s + self.interconnect_s
        return self.step_time_s, total, self.choice.micro_batches


def estimate(step: Step, topology: Topology, choice: Choice) -> Estimate:
    """Estimates one train step on `topology`, spread as `choice` says, in closed form."""
    costs, mesh = step.costs[choice.remat], choice.mesh
    rules = find_rules(choice.preset, mesh)
    work = Work(costs, mesh, rules, choice.remat, choice.micro_batches,
                step.batch_size / mesh.batch_ways / choice.micro_batches)
    average = bool(step.optimizer.ema_decay)
    arguments = argument_bytes(itertools.chain(
        state_arrays(costs, step.optimizer.name, rules, mesh, average=average),
        batch_arrays(step.arrays, step.batch_size, rules, mesh),
        number_arrays(step.optimizer)), topology.generation.min_rows)
    temporaries = temporary_bytes(work, step.costs["none"], step.arrays, average)
    memory = Memory(sum(arguments.values()), sum(temporaries.values()), NUM_SCALARS * SCALAR_BYTES,
                    {**arguments, **temporaries})
    flops = step.batch_size * sum(CONVENTIONS["hardware"].train(costs).values())
    moved = _moved_bytes(work, arguments, temporaries)
    return timed(step, topology, choice, memory, flops, tuple(expected_collectives(work)), moved)


def timed(
    step: Step, topology: Topology, choice: Choice, memory: Memory, flops: float,
    collectives: tuple[Collective, ...], moved: float, *, compiled: bool = False,
) -> Estimate:
    """Puts the roofline's times to what is known of a step; `moved`: bytes through memory."""
    peak, devices = topology.peak_flops(step.dtype), topology.num_devices
    compute = flops / devices / peak
    through = moved / topology.hbm_bandwidth
    links = sum(one.sent_bytes for one in collectives) / topology.interconnect_bandwidth
    longest = max(compute, through, links)
    return Estimate(choice, memory, topology.generation.usable_hbm_bytes, flops, collectives,
                    compute, through, links,
                    step.model_flops / (longest * peak * devices), compiled)


def _moved_bytes(
    work: Work, arguments: Mapping[str, float], temporaries: Mapping[str, float]
) -> float:
    """Bytes through one device's memory: at least this.

    The state is read and written in the update, the gathered parameters of every layer are written
    once and read in both passes for each micro-batch, and activations are written and read.
    """
    gathered = work.costs.float_bytes * sum(
        work.share(array, "fsdp") for array in work.costs.arrays)
    activations = temporaries.get("activations", 0.0) + temporaries.get("logits", 0.0)
    return (PARAM_PASSES * arguments["params"] + 2 * arguments["optimizer"]
            + 2 * arguments.get("average", 0) + arguments["batch"]
            + work.micro_batches * (3 * gathered + 2 * activations))
