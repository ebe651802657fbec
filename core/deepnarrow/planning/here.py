"""How a study is spread over the TPUs that are there, where its config does not say. No JAX.

On anything else, and where a modality does not say what its step reads, what the config says holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deepnarrow.config import StudyConfig, batch_sizes
from deepnarrow.errors import InputError
from deepnarrow.planning.cells import trial_cells
from deepnarrow.planning.estimate import Estimate
from deepnarrow.planning.search import search, together
from deepnarrow.planning.topology import GENERATIONS, Topology
from deepnarrow.planning.traffic import Remat
from deepnarrow.plugins import Registry
from deepnarrow.protocol import Sharding
from deepnarrow.trials import depends_on_pieces

if TYPE_CHECKING:
    from deepnarrow.trials import ModalityData, Trial

# JAX's `device_kind`, as libtpu 0.0.42 has it.
KINDS = {"TPU v3": "v3", "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p",
         "TPU v6 lite": "v6e"}


@dataclasses.dataclass(frozen=True)
class Spread:
    """How the devices share the work of a study.

    Attributes:
      sharding: mesh, rules and micro-batches.
      remats: what the backward pass repeats, by modality; as the options say where it is not in it.
      note: for the user; None where nothing was planned.
    """

    sharding: Sharding
    remats: Mapping[str, Remat] = dataclasses.field(default_factory=dict)
    note: str | None = None


def slice_here(device_kind: str, num_devices: int) -> Topology | None:
    """Returns the slice of TPUs that so many devices are, or None where they are none.

    >>> slice_here("TPU v3", 8).num_chips, slice_here("cpu", 1)
    (4, None)
    """
    generation = GENERATIONS.get(KINDS.get(device_kind, ""))
    if generation is None or num_devices % generation.devices_per_chip:
        return None
    return Topology(generation, (num_devices // generation.devices_per_chip,))


def spread_here(
    config: StudyConfig, registry: Registry, data: Mapping[str, ModalityData],
    trials: Sequence[Trial], topology: Topology | None,
) -> Spread:
    """Returns the fastest way that fits by estimate, or what the config says.

    No result and no key depends on it: micro-batches stay as they are where a result would, and
    remat computes the same numbers again.

    Args:
      config: of the study; if anything of its `sharding` is set, all of it holds, and so does a
        modality's option `remat`.
      registry: of the loaded plugins.
      data: of each modality.
      trials: that this process may run.
      topology: what is there, or None.
    """
    said = Spread(config.sharding)
    trials = [trial for trial in trials if trial.checkpoint is None]
    if topology is None or config.sharding != Sharding() or not trials or any(
            data[trial.modality].modality.step is None for trial in trials):
        return said
    cells = trial_cells(trials, registry, data)
    pieces = 1 if any(depends_on_pieces(trial, registry) for trial in trials) else None
    fixed = {name: study.options["remat"] for name, study in config.modalities.items()
             if "remat" in study.options}
    try:
        found = [search(cell.step, topology, remat=fixed.get(cell.modality.name),
                        micro_batches=pieces) for cell in cells]
    except InputError:  # a batch that no mesh of all devices divides
        return said
    ways = together(found, [cell.modality.name for cell in cells],
                    [cell.steps or 1 for cell in cells])
    way = next((way for way in ways if _divides(way[0], config)), None)
    if way is None:
        return dataclasses.replace(said, note=f"{topology.num_devices} devices: by estimate the "
                                   "study fits in no way; it is run as the config says")
    choice = way[0].choice
    remats: dict[str, Remat] = {
        cell.modality.name: one.choice.remat for cell, one in zip(cells, way, strict=True)
        if cell.modality.name not in fixed}
    sharding = Sharding(str(choice.mesh), choice.preset, choice.micro_batches)
    return Spread(sharding, remats, f"planned for {topology.num_devices} devices: {choice}")


def _divides(one: Estimate, config: StudyConfig) -> bool:
    ways = one.choice.mesh.batch_ways * one.choice.micro_batches
    return all(size % ways == 0 for size in batch_sizes(config).values())
