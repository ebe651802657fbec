"""The fastest way to run a step on a slice, among all that fit, by estimate. No JAX."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

from deepnarrow.errors import InputError
from deepnarrow.hardware import GIBI
from deepnarrow.mesh import MeshShape
from deepnarrow.planning.estimate import Choice, Estimate, Step, estimate
from deepnarrow.planning.topology import Topology, larger_slices
from deepnarrow.planning.traffic import Remat

REMATS: tuple[Remat, ...] = ("none", "dots", "full")
MAX_MICRO_BATCHES = 64


@dataclasses.dataclass(frozen=True)
class Search:
    """What was tried on one slice.

    Attributes:
      topology: the slice.
      tried: every choice, those that fit first, each group by predicted time.
      rejected: a reason for each kind of mesh that could not be tried.
    """

    topology: Topology
    tried: Sequence[Estimate]
    rejected: Mapping[str, str]

    @property
    def best(self) -> Estimate | None:
        """The fastest that fits, or None."""
        return self.tried[0] if self.tried and self.tried[0].fits else None

    @property
    def smallest(self) -> Estimate:
        """The one that needs least memory."""
        return min(self.tried, key=lambda one: one.memory.total)


def search(
    step: Step, topology: Topology, *, mesh: MeshShape | None = None,
    remat: Remat | None = None, micro_batches: int | None = None,
) -> Search:
    """Estimates every mesh x remat x micro-batches, or those that agree with what is given.

    Raises:
      InputError: nothing can be tried: the batch does not go into any mesh, or not into the given
        one.
    """
    rejected: dict[str, str] = {}
    tried: list[Estimate] = []
    for preset, shape in _meshes(topology.num_devices, mesh):
        if step.batch_size % shape.batch_ways:
            rejected[str(shape)] = (f"a batch of {step.batch_size} does not divide into "
                                    f"{shape.batch_ways} parts")
            continue
        if reason := _unsplit(step, shape):
            rejected[str(shape)] = reason
            continue
        for one in _pieces(step.batch_size // shape.batch_ways, micro_batches):
            tried += [estimate(step, topology, Choice(preset, shape, kind, one))
                      for kind in REMATS if remat in (None, kind)]
    if not tried:
        raise InputError(f"shape {step.name!r} on {topology.name}", "no mesh can be tried",
                         got="; ".join(f"{key}: {why}" for key, why in rejected.items()),
                         hint="choose a --batch-size that the number of devices divides")
    tried.sort(key=lambda one: (not one.fits, one.rank))
    return Search(topology, tried, rejected)


def together(
    found: Sequence[Search], modalities: Sequence[str], weights: Sequence[float]
) -> list[tuple[Estimate, ...]]:
    """Returns the ways to run several steps, an estimate for each, fastest in all first.

    What runs together shares its mesh, rules and micro-batches, and within a modality its remat, as
    the cells of a study do. Only ways in which every step fits.

    Args:
      found: a search for each step.
      modalities: of each.
      weights: how often each runs.
    """
    known = [{one.choice: one for one in search.tried if one.fits} for search in found]
    names = sorted(set(modalities))
    places = dict.fromkeys((one.choice.preset, one.choice.mesh, one.choice.micro_batches)
                           for one in found[0].tried if one.fits)
    ways = []
    for preset, mesh, pieces in places:
        for remats in itertools.product(REMATS, repeat=len(names)):
            by_name = dict(zip(names, remats, strict=True))
            way = [estimates.get(Choice(preset, mesh, by_name[name], pieces))
                   for estimates, name in zip(known, modalities, strict=True)]
            if all(way):
                ways.append(tuple(one for one in way if one is not None))
    return sorted(ways, key=lambda way: tuple(
        sum(weight * one.rank[i] for weight, one in zip(weights, way, strict=True))
        for i in range(3)))


def smallest_slice(step: Step, topology: Topology) -> Search | None:
    """Returns the search on the smallest larger slice of the generation on which the step fits."""
    for larger in larger_slices(topology):
        try:
            found = search(step, larger)
        except InputError:
            continue  # the batch is too small for so many devices
        if found.best is not None:
            return found
    return None


def reasons(found: Search, best: Estimate, limit: int = 6) -> list[str]:
    """Says why the choices that come to mind before `best` were not taken.

    Those that would be as fast by estimate but do not fit, the fastest of each other mesh, and the
    meshes that could not be tried.
    """
    said: dict[str, str] = {}
    for one in sorted(found.tried, key=lambda one: one.rank):
        name = str(one.choice.mesh)
        if one.choice == best.choice or name in said:
            continue
        if not one.fits:
            over = (one.memory.total - one.limit) / GIBI
            if one.rank < best.rank:
                said[f"{name} {one.choice.remat}"] = (
                    f"{one.choice} would take {one.step_time_s * 1e3:.3g} ms but needs {over:.3g} "
                    "GiB more than a device has")
        elif one.choice.mesh != best.choice.mesh:
            said[name] = (f"{one.choice} takes {one.step_time_s * 1e3:.3g} ms, bound by "
                          f"{one.bound}")
    return [*list(said.values())[:limit],
            *(f"{name}: {why}" for name, why in list(found.rejected.items())[:limit])]


def config_lines(choices: Mapping[str, Choice]) -> tuple[list[str], list[str]]:
    """Returns what makes a study run as planned: entries of its config, and the same for `--set`.

    Args:
      choices: by modality; of one mesh, rules and micro-batches.
    """
    choice = next(iter(choices.values()))
    sharding = {"mesh": str(choice.mesh), "rules": choice.preset,
                "micro_batches": choice.micro_batches}
    remats = {name: one.remat for name, one in choices.items()}
    options = {name: {"options": {"remat": remat}} for name, remat in remats.items()}
    entries = [f'"sharding": {json.dumps(sharding)}', f'"modalities": {json.dumps(options)}']
    settings = [*(f"sharding.{key}={value}" for key, value in sharding.items()), *(
        f"modalities.{name}.options.remat={remat}" for name, remat in remats.items())]
    return entries, settings


def _meshes(devices: int, given: MeshShape | None) -> Iterator[tuple[str, MeshShape]]:
    """Rules and sizes of every mesh: `data`, `fsdp` with and without `data`, and with `tensor`."""
    if given is not None:
        yield ("fsdp+tensor" if given.tensor > 1 else "fsdp" if given.fsdp > 1 else "data"), given
        return
    yield "data", MeshShape(data=devices)
    for tensor in _divisors(devices):
        for fsdp in _divisors(devices // tensor)[1:]:
            yield ("fsdp" if tensor == 1 else "fsdp+tensor",
                   MeshShape(devices // tensor // fsdp, fsdp, tensor))


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _pieces(examples: int, given: int | None) -> list[int]:
    """Numbers of micro-batches that divide a device's examples."""
    if given is not None:
        return [given] if examples % given == 0 else []
    return [one for one in _divisors(examples) if one <= MAX_MICRO_BATCHES]


def _unsplit(step: Step, mesh: MeshShape) -> str | None:
    """Says why a mesh with `tensor` would leave most of the model whole."""
    if mesh.tensor == 1:
        return None
    for array in step.costs["none"].arrays:
        for axis, size in zip(array.axes, array.shape, strict=True):
            if axis in ("heads", "mlp") and array.is_kernel and size % mesh.tensor:
                return (f"{axis} of {'/'.join(array.path)} is {size}, which tensor={mesh.tensor} "
                        "does not divide")
    return None
