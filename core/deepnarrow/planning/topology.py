"""TPU slices by name: `v5e:4x4` is 16 chips in a square. No JAX.

A *device* is what JAX and the compiler see: a chip, but on v3 one of a chip's two cores, each with
half of the memory and half of the arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from deepnarrow.errors import InputError, suggest
from deepnarrow.hardware import CHIPS, GIBI, Chip
from deepnarrow.planning.state import MIN_ROWS

MAX_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU, as slices are made of it.

    Attributes:
      chip: what its vendor publishes.
      usable_hbm_bytes: of one device: what the compiler of libtpu 0.0.42 says is available when it
        refuses a program ("exceeds available HBM"); the rest is the system's.
      slices: the slices one can have, smallest first.
      devices_per_chip: 2 where each core is a device.
      min_rows: of 128 numbers in a tile of its memory, see `state.tiled_bytes`.
      compiler_options: what `get_topology_desc` needs besides the name.
    """

    chip: Chip
    usable_hbm_bytes: float
    slices: tuple[str, ...]
    devices_per_chip: int = 1
    min_rows: int = MIN_ROWS
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16",
          "8x16x16", "16x16x16")
GENERATIONS: Mapping[str, Generation] = {
    # Slices: docs.cloud.google.com/tpu/docs/v3 ... v6e, "configurations".
    "v3": Generation(CHIPS["v3"], 15.48 * GIBI, ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16",
                                                 "16x32", "32x32"), devices_per_chip=2,
                     min_rows=2),
    # Two cores joined to one device ("megacore"), as JAX has them on a v4.
    "v4": Generation(CHIPS["v4"], 30.75 * GIBI, _CUBES,
                     compiler_options={"chip_config_name": "megacore"}),
    "v5e": Generation(CHIPS["v5e"], 15.75 * GIBI, _FLAT),
    "v5p": Generation(CHIPS["v5p"], 95.74 * GIBI, _CUBES),
    "v6e": Generation(CHIPS["v6e"], 31.25 * GIBI, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `sides` chips of one generation.

    >>> slice = parse_topology("v3:4x4")
    >>> slice.num_chips, slice.num_devices
    (16, 32)
    """

    generation: Generation
    sides: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it was asked for: `v5e:4x4`."""
        return f"{self.generation.chip.name}:{'x'.join(map(str, self.sides))}"

    @property
    def num_chips(self) -> int:
        """Chips in all."""
        return math.prod(self.sides)

    @property
    def num_devices(self) -> int:
        """What a mesh is made of."""
        return self.num_chips * self.generation.devices_per_chip

    @property
    def hbm_per_chip_bytes(self) -> float:
        """Memory of one chip that a program can have."""
        return self.generation.usable_hbm_bytes * self.generation.devices_per_chip

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of one device."""
        return self.generation.chip.peak_flops[dtype] / self.generation.devices_per_chip

    @property
    def hbm_bandwidth(self) -> float:
        """Bytes/s between one device and its memory."""
        return self.generation.chip.hbm_bandwidth / self.generation.devices_per_chip

    @property
    def interconnect_bandwidth(self) -> float:
        """Bytes/s that one device can send over its share of the chip's links."""
        return self.generation.chip.interconnect_bandwidth / self.generation.devices_per_chip


def parse_topology(text: str) -> Topology:
    """Reads `GENERATION:AxB` or `GENERATION:AxBxC`.

    Raises:
      InputError: the generation is unknown, or it has no such slice.
    """
    name, colon, sides = text.strip().partition(":")
    generation = GENERATIONS.get(name.lower())
    if generation is None:
        near = suggest(name.lower(), GENERATIONS)
        raise InputError("--chips", "unknown generation of TPU", got=text,
                         expected=f"GENERATION:SIDES with one of {', '.join(GENERATIONS)}",
                         hint=f"did you mean {near}?" if near else "e.g. v5e:4x4")
    slices, rank = generation.slices, generation.slices[-1].count("x") + 1
    if not colon or not re.fullmatch(r"[0-9]{1,3}(x[0-9]{1,3})*", sides):
        raise InputError("--chips", "is no slice", got=text,
                         expected=f"{name.lower()}: and {' x '.join('ABC'[:rank])} chips",
                         hint=f"{name.lower()}:{slices[1]}")
    numbers = tuple(map(int, sides.split("x")))
    if not _exists(numbers, rank, generation):
        raise InputError("--chips", f"{name.lower()} has no such slice", got=text,
                         expected=f"{', '.join(slices)} or {rank} even sides up to {MAX_SIDE}")
    return Topology(generation, numbers)


def _exists(sides: tuple[int, ...], rank: int, generation: Generation) -> bool:
    """Hosts are 2 x 2 chips, but a slice of its own may be as small as the list says."""
    if "x".join(map(str, sides)) in generation.slices:
        return True
    flat_even = all(side % 2 == 0 for side in sides[:2])
    return len(sides) == rank and flat_even and all(1 <= side <= MAX_SIDE for side in sides)


def larger_slices(topology: Topology) -> list[Topology]:
    """The slices of the same generation with more chips, smallest first."""
    found = [Topology(topology.generation, tuple(map(int, sides.split("x"))))
             for sides in topology.generation.slices]
    return [one for one in found if one.num_chips > topology.num_chips]
