"""Chips and what a training step would take on them at best. Everything here is an estimate.

The table holds what vendors publish. `roofline_step_time` divides work by peak rates: most real
steps miss that by a factor of two or more, and one whose compiler fuses away what is counted as
memory traffic may beat it. It orders shapes; measured step times judge them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from deepnarrow.cost import CostSummary, convert, optimizer_bytes
from deepnarrow.errors import InputError, suggest
from deepnarrow.protocol import check_range

TERA, GIGA, GIBI = 1e12, 1e9, 2.0**30
PARAM_BYTES = 4
# A step reads each parameter forward, backward and in the update, writes it once, and writes and
# reads its gradient.
PARAM_PASSES = 6


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip, as its vendor describes it.

    Attributes:
      name: e.g. `v5e`.
      peak_flops: dense FLOP/s by dtype of the operands. `float32` is what JAX does by default with
        float32 matmuls: one bfloat16 pass on TPU, TF32 on GPU (JAX documentation, "Matmul
        precision").
      hbm_bytes: memory.
      hbm_bandwidth: bytes/s between memory and the cores.
      interconnect_bandwidth: bytes/s that a chip sends over all of its links together, one
        direction.
      source: where the numbers come from.
    """

    name: str
    peak_flops: Mapping[str, float]
    hbm_bytes: float
    hbm_bandwidth: float
    interconnect_bandwidth: float
    source: str


def _tpu(
    name: str, tera: float, hbm_bytes: float, hbm_gb_s: float, links_gb_s: float, source: str,
    int8: float | None = None,
) -> Chip:
    peak = {"bfloat16": tera * TERA, "float32": tera * TERA}
    if int8 is not None:
        peak["int8"] = int8 * TERA
    return Chip(name, peak, hbm_bytes, hbm_gb_s * GIGA, links_gb_s * GIGA,
                f"docs.cloud.google.com/tpu/docs/{source}")


def _gpu(
    name: str, bfloat16: float, tf32: float, int8: float, hbm_gb_s: float, nvlink_gb_s: float,
    source: str,
) -> Chip:
    peak = {"bfloat16": bfloat16 * TERA, "float32": tf32 * TERA, "int8": int8 * TERA}
    # NVLink is quoted for both directions together.
    return Chip(name, peak, 80 * GIGA, hbm_gb_s * GIGA, nvlink_gb_s / 2 * GIGA, source)


CHIPS: Mapping[str, Chip] = {
    chip.name: chip for chip in (
        # No link rate is published for v3 and v4. A v3 pod is a 32 x 32 torus, so 64 links cross
        # its middle: 6.4 TB/s is 100 GB/s a link, 4 links a chip. A v4 pod is a 16 x 16 x 16
        # torus: 24 TB/s over 512 links is 46.9 GB/s a link, 6 links a chip.
        _tpu("v3", 123, 32 * GIBI, 900, 4 * 6400 / 64, "v3; links from the pod's bisection"),
        _tpu("v4", 275, 32 * GIBI, 1200, 6 * 24000 / 512, "v4; links from the pod's bisection",
             int8=275),
        _tpu("v5e", 197, 16 * GIGA, 819, 1600 / 8, "v5e", int8=393),
        _tpu("v5p", 459, 95 * GIBI, 2765, 4800 / 8, "v5p"),
        _tpu("v6e", 918, 32 * GIGA, 1600, 3200 / 8, "v6e", int8=1836),
        # NVIDIA prints H100 rates with 2:4 sparsity; a dense matmul runs at half of them.
        _gpu("h100", 1979 / 2, 989 / 2, 3958 / 2, 3350, 900, "NVIDIA H100 data sheet, SXM, dense"),
        _gpu("a100", 312, 156, 624, 2039, 600, "NVIDIA A100 data sheet, 80 GB SXM, dense"),
    )
}


def chip_named(name: str) -> Chip:
    """Returns a chip by name (any case).

    Raises:
      InputError: there is none of that name.
    """
    if name.lower() in CHIPS:
        return CHIPS[name.lower()]
    near = suggest(name.lower(), CHIPS)
    raise InputError("chip", "unknown", got=name, expected=f"one of {', '.join(CHIPS)}",
                     hint=f"did you mean {near}?" if near else None)


@dataclasses.dataclass(frozen=True)
class StepTimeEstimate:
    """An estimate, in seconds, of one data-parallel training step; nothing is measured.

    Attributes:
      compute_s: matmul FLOPs at the chip's peak.
      memory_s: parameters, optimiser statistics and activations through memory.
      interconnect_s: the gradients' ring all-reduce between chips.
      bytes_needed: parameters, gradients, statistics and kept activations on one chip.
      bytes_there: the chip's memory.
    """

    compute_s: float
    memory_s: float
    interconnect_s: float
    bytes_needed: float
    bytes_there: float

    @property
    def fits(self) -> bool:
        """Whether the chip has memory enough, by this estimate."""
        return self.bytes_needed <= self.bytes_there

    @property
    def step_time_s(self) -> float:
        """The longest of the three: they overlap at best."""
        return max(self.compute_s, self.memory_s, self.interconnect_s)

    @property
    def bound(self) -> Literal["compute", "memory", "interconnect"]:
        """What limits the step."""
        times = {"compute": self.compute_s, "memory": self.memory_s,
                 "interconnect": self.interconnect_s}
        return max(times, key=lambda name: times[name])  # pyright: ignore[reportReturnType]


def roofline_step_time(
    summary: CostSummary,
    chip: Chip,
    *,
    batch_size: int,
    num_chips: int = 1,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    optimizer: Literal["adafactor", "adamw"] = "adafactor",
) -> StepTimeEstimate:
    """Estimates one training step by the roofline model (Williams et al. 2009).

    Every chip holds all parameters; the batch is split between chips. Compute counts the `hardware`
    convention. Memory counts six passes over the float32 parameters and their gradients, two over
    the optimiser's statistics, and the activations written once and read once.

    Args:
      summary: of the model, under any convention.
      chip: of `CHIPS`.
      batch_size: examples a step, over all chips.
      num_chips: chips that share the batch.
      dtype: of the matmuls' operands.
      optimizer: whose statistics are read and written.

    Raises:
      InputError: batch_size or num_chips is not positive.
    """
    check_range("roofline", "batch_size", batch_size, 1)
    check_range("roofline", "num_chips", num_chips, 1)
    flops = convert(summary, "hardware").flops_train_per_example * batch_size / num_chips
    params = summary.params_total * PARAM_BYTES
    statistics = sum(optimizer_bytes(summary.costs, optimizer).values())
    activations = summary.activation_bytes_per_example * batch_size / num_chips
    moved = PARAM_PASSES * params + 2 * statistics + 2 * activations
    reduced = 2 * params * (num_chips - 1) / num_chips  # a ring all-reduce sends this much a chip
    return StepTimeEstimate(
        compute_s=flops / chip.peak_flops[dtype],
        memory_s=moved / chip.hbm_bandwidth,
        interconnect_s=reduced / chip.interconnect_bandwidth,
        bytes_needed=2 * params + statistics + activations,
        bytes_there=chip.hbm_bytes,
    )
