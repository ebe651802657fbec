"""Which axis of which array lies on which axis of the mesh: one table of rules, without JAX.

    logical axes of an array  --RULES-->  a mesh axis (or none) for each of its dimensions

A mesh arranges the devices in a box of three axes, in this order:

    data    copies of the parameters, each with its own part of the batch
    fsdp    splits the batch too, and with it the parameters and their optimiser's state
    tensor  splits the layers' insides: hidden units, heads, vocabulary

`sharding.py` applies the table to arrays.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from deepnarrow.errors import InputError, shorten, suggest
from deepnarrow.modality import Axes, ParamArray

if TYPE_CHECKING:
    from deepnarrow.protocol import Sharding

MESH_AXES = ("data", "fsdp", "tensor")
RESERVED = "expert"  # a mesh axis to come, with the first architecture that has experts
MAX_DEVICES = 2**20
SMALL_VECTOR = 2**20  # bytes, all layers together: smaller vectors are not worth a transfer

MeshAxis = str | tuple[str, ...] | None  # what one dimension lies on
Spec = tuple[MeshAxis, ...]  # of an array, a mesh axis for each dimension
Rules = tuple[tuple[str, MeshAxis], ...]  # (logical axis, mesh axis), the most wanted first

_BATCH: Rules = (("batch", ("data", "fsdp")),)
_TENSOR: Rules = (("mlp", "tensor"), ("heads", "tensor"), ("vocab", "tensor"),
                  ("classes", "tensor"))
_FSDP: Rules = (("embed", "fsdp"), ("mlp", "fsdp"), ("heads", "fsdp"), ("vocab", "fsdp"),
                ("classes", "fsdp"))
# Rules are tried in order: one is obeyed where the array has its logical axis, its mesh axis is not
# taken by an earlier rule, and it divides the axis. Arrays of activations have a batch, which takes
# `fsdp` first; so one table serves parameters and activations. "layers" lies on nothing: a scan
# would have to gather all of them.
RULES: Mapping[str, Rules] = {
    "data": _BATCH,
    "fsdp": _BATCH + _FSDP,
    "fsdp+tensor": _BATCH + _TENSOR + _FSDP,
}


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices lie along each axis of a mesh.

    >>> str(MeshShape(data=2, fsdp=4)), MeshShape(data=2, fsdp=4).size
    ('data=2,fsdp=4', 8)
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """Devices by axis, in the order of the mesh."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def size(self) -> int:
        """Devices in all."""
        return self.data * self.fsdp * self.tensor

    @property
    def batch_ways(self) -> int:
        """Parts that a batch is cut into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        long = [f"{axis}={size}" for axis, size in self.sizes.items() if size > 1]
        return ",".join(long) or "data=1"


class Whole(NamedTuple):
    """Something that was not split although the rules would have it.

    Attributes:
      path: the parameter's, `/` between the names.
      axis: logical name of the axis that a rule wanted to split; None where no rule applies.
      size: of that axis, of the array (in elements) where there is none.
      why: the reason, for people.
    """

    path: str
    axis: str | None
    size: int
    why: str


def read_axes(text: str, where: str = "sharding") -> dict[str, int]:
    """Reads `AXIS=SIZE` texts with commas between them.

    Raises:
      InputError: an axis is unknown, given twice or of no size.

    >>> read_axes("fsdp=4,tensor=2")
    {'fsdp': 4, 'tensor': 2}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*([0-9]{1,7})\s*", part, re.ASCII)
        if not match:
            raise InputError(where, "mesh cannot be read", got=repr(shorten(text)),
                             expected="AXIS=SIZE,..., e.g. 'fsdp=4,tensor=2'")
        axis, size = match[1], int(match[2])
        _check_axis(axis, size, sizes, where)
        sizes[axis] = size
    return sizes


def parse_mesh(text: str, num_devices: int, where: str = "sharding") -> MeshShape:
    """Reads a mesh, e.g. `fsdp=4,tensor=2`; without `data`, that axis takes all other devices.

    Args:
      text: as `read_axes` takes it.
      num_devices: how many there are.
      where: named in errors.

    Raises:
      InputError: it is no mesh, needs more devices than there are, or does not divide them.

    >>> parse_mesh("fsdp=4", 8)
    MeshShape(data=2, fsdp=4, tensor=1)
    """
    sizes = read_axes(text, where)
    needed = math.prod(sizes.values())
    if needed > num_devices:
        raise InputError(where, f"mesh {text} needs more devices than there are", got=needed,
                         expected=f"at most {num_devices}",
                         hint=f"'{_smaller(sizes, num_devices)}' would fit")
    if num_devices % needed:
        raise InputError(where, f"mesh {text} does not divide the devices", got=needed,
                         expected=f"a divisor of {num_devices}",
                         hint=f"'{_smaller(sizes, num_devices)}' would fit")
    return MeshShape(**{"data": num_devices // needed, **sizes})


def _check_axis(axis: str, size: int, sizes: Mapping[str, int], where: str) -> None:
    if axis == RESERVED:
        raise InputError(where, "mesh has the axis 'expert', which is reserved for experts to come",
                         expected=", ".join(MESH_AXES), hint="leave it out")
    if axis not in MESH_AXES:
        near = suggest(axis, MESH_AXES)
        raise InputError(where, "mesh has an unknown axis", got=repr(shorten(axis)),
                         expected=f"one of {', '.join(MESH_AXES)}",
                         hint=f"did you mean {near!r}?" if near else None)
    if axis in sizes:
        raise InputError(where, f"mesh has the axis {axis!r} twice", hint="keep one of them")
    if not 1 <= size <= MAX_DEVICES:
        raise InputError(where, f"mesh has a size that cannot be for axis {axis!r}", got=size,
                         expected=f"1..{MAX_DEVICES}")


def _smaller(sizes: Mapping[str, int], num_devices: int) -> str:
    """The mesh with the same axes, as far as the devices go."""
    left, fitting = num_devices, dict.fromkeys(sizes, 1)
    for axis in sorted(sizes, key=MESH_AXES.index, reverse=True):
        fitting[axis] = max(n for n in range(1, min(sizes[axis], left) + 1) if left % n == 0)
        left //= fitting[axis]
    return ",".join(f"{axis}={size}" for axis, size in fitting.items())


def find_rules(preset: str, mesh: MeshShape, where: str = "sharding") -> Rules:
    """Returns the rules of a preset that use every axis of `mesh`.

    Raises:
      InputError: there is no such preset, or devices along an axis would all do the same work.
    """
    if preset not in RULES:
        near = suggest(preset, RULES)
        raise InputError(where, "rules are unknown", got=repr(shorten(preset)),
                         expected=f"one of {', '.join(RULES)}",
                         hint=f"did you mean {near!r}?" if near else None)
    used = {axis for _, target in RULES[preset] for axis in _names(target)}
    for axis, size in mesh.sizes.items():
        if size > 1 and axis not in used:
            raise InputError(where, f"rules {preset!r} never use the mesh axis {axis!r}",
                             got=mesh, expected=f"{axis}=1", hint=f"rules='fsdp+{axis}'")
    return RULES[preset]


def choose_mesh(
    sharding: Sharding, batch_sizes: Mapping[str, int], num_devices: int, num_processes: int = 1
) -> tuple[MeshShape, list[str]]:
    """Returns the mesh that `sharding` asks for, and notes for the user.

    Without one, all devices lie along `data`, or along `fsdp` where the rules have it; on one host
    as many as divide every batch.

    Args:
      sharding: mesh, rules and micro-batches.
      batch_sizes: examples a step, by the place in the config.
      num_devices: how many there are.
      num_processes: that share them; with more than one, no device may be left out.

    Raises:
      InputError: the mesh, the rules and the batches do not fit each other.
    """
    notes: list[str] = []
    if sharding.mesh is not None:
        mesh = parse_mesh(sharding.mesh, num_devices)
        if num_processes > 1 and mesh.size < num_devices:
            raise InputError("sharding", f"mesh {sharding.mesh} leaves out devices",
                             got=mesh.size, expected=num_devices,
                             hint="leave out 'data': it takes all other devices")
    else:
        ways = num_devices
        if num_processes == 1:
            part = math.gcd(*(size // sharding.micro_batches for size in batch_sizes.values()))
            ways = max(n for n in range(1, num_devices + 1) if part % n == 0)
        if ways < num_devices:
            notes.append(f"{ways} of {num_devices} devices are used: no more divide the batches")
        mesh = MeshShape(**{"data" if sharding.rules == "data" else "fsdp": ways})
    find_rules(sharding.rules, mesh)
    for where, size in batch_sizes.items():
        if size % (mesh.batch_ways * sharding.micro_batches):
            raise InputError(where, "does not divide among the devices", got=size,
                             expected=f"a multiple of {mesh.batch_ways * sharding.micro_batches} "
                             f"(mesh {mesh}, micro_batches {sharding.micro_batches})",
                             hint="another batch size, or fewer devices along data and fsdp")
    return mesh, notes


def _names(target: MeshAxis) -> tuple[str, ...]:
    return () if target is None else (target,) if isinstance(target, str) else target


def spec_of(axes: Axes, shape: Sequence[int], rules: Rules, mesh: MeshShape) -> Spec:
    """Returns what each dimension of an array lies on: the first rule that divides it wins.

    Args:
      axes: logical names of its dimensions.
      shape: their sizes.
      rules: the table.
      mesh: axes of size 1 are left out.

    >>> spec_of(("layers", "embed", "mlp"), (12, 768, 3072), RULES["fsdp"], MeshShape(fsdp=8))
    (None, 'fsdp', None)
    >>> spec_of(("batch", "length", "mlp"), (128, 196, 3072), RULES["fsdp+tensor"],
    ...         MeshShape(data=2, fsdp=2, tensor=2))
    (('data', 'fsdp'), None, 'tensor')
    """
    spec: list[MeshAxis] = [None] * len(axes)
    free = {axis: size for axis, size in mesh.sizes.items() if size > 1}
    for logical, target in rules:
        names = tuple(name for name in _names(target) if name in free)
        ways = math.prod(free[name] for name in names)
        for i, axis in enumerate(axes):
            if axis == logical and names and spec[i] is None and shape[i] % ways == 0:
                spec[i] = names[0] if len(names) == 1 else names
                for name in names:
                    del free[name]
                break
    return tuple(spec)


def place_param(
    path: str, axes: Axes, shape: Sequence[int], rules: Rules, mesh: MeshShape,
    itemsize: int = 4,
) -> tuple[Spec, list[Whole]]:
    """Returns what a parameter's dimensions lie on, and where they should but could not.

    Vectors (one axis longer than 1 besides `layers`) below `SMALL_VECTOR` bytes stay whole.
    """
    wanted = {name for axis, target in rules if axis in axes for name in _names(target)
              if mesh.sizes[name] > 1}
    rank = sum(size > 1 for axis, size in zip(axes, shape, strict=True) if axis != "layers")
    size = math.prod(shape)
    whole: Spec = (None,) * len(axes)
    if not wanted:
        splits = any(mesh.sizes[name] > 1 for axis, target in rules if axis != "batch"
                     for name in _names(target))
        return whole, [Whole(path, None, size, "no rule for its axes")] if splits else []
    if rank < 2 and size * itemsize < SMALL_VECTOR:
        return whole, [Whole(path, None, size, "a small vector")]
    spec = spec_of(axes, shape, rules, mesh)
    taken = {name for target in spec for name in _names(target)}
    return spec, [_why(path, axes, shape, rules, name, mesh.sizes[name], spec)
                  for name in MESH_AXES if name in wanted - taken]


def _why(
    path: str, axes: Axes, shape: Sequence[int], rules: Rules, name: str, ways: int, spec: Spec
) -> Whole:
    """Why nothing of an array lies on the mesh axis `name`, by the first rule that would have it.
    """
    logical = next(axis for axis, target in rules if axis in axes and name in _names(target))
    i = axes.index(logical)
    if shape[i] % ways:
        return Whole(path, logical, shape[i], f"does not divide by {name}={ways}")
    return Whole(path, logical, shape[i], f"lies on {spec[i]}, so not on {name}={ways}")


def place_arrays(
    arrays: Sequence[ParamArray], rules: Rules, mesh: MeshShape
) -> tuple[dict[str, Spec], list[Whole]]:
    """Places every parameter of a model as it is counted: specs by path, and what stays whole."""
    specs: dict[str, Spec] = {}
    left: list[Whole] = []
    for array in arrays:
        path = "/".join(array.path)
        specs[path], own = place_param(path, array.axes, array.shape, rules, mesh)
        left += own
    return specs, left


def shard_shape(shape: Sequence[int], spec: Spec, mesh: MeshShape) -> tuple[int, ...]:
    """Returns the shape of one device's part.

    >>> shard_shape((12, 768, 3072), (None, "fsdp", None), MeshShape(fsdp=8))
    (12, 96, 3072)
    """
    return tuple(size // math.prod(mesh.sizes[name] for name in _names(target))
                 for size, target in zip(shape, spec, strict=True))


def without_batch_axes(spec: Spec, rules: Rules) -> Spec:
    """Returns `spec` without the mesh axes that split a batch: a parameter as a product sees it."""
    batch = {name for axis, target in rules if axis == "batch" for name in _names(target)}
    kept = [tuple(name for name in _names(target) if name not in batch) for target in spec]
    return tuple(None if not names else names[0] if len(names) == 1 else names for names in kept)


def factored_specs(
    shape: Sequence[int], spec: Spec
) -> tuple[tuple[tuple[int, ...], Spec], tuple[tuple[int, ...], Spec]]:
    """Returns shapes and specs of Adafactor's (v_row, v_col) of one layer's matrix.

    Each lacks one axis of the matrix: `v_row` the longest, `v_col` the second longest; of equal
    ones the last counts as the longest (Optax's order). What is left lies where the matrix does.

    >>> factored_specs((768, 3072), ("fsdp", "tensor"))
    (((768,), ('fsdp',)), ((3072,), ('tensor',)))
    """
    second, first = sorted(range(len(shape)), key=lambda i: shape[i])[-2:]

    def without(axis: int) -> tuple[tuple[int, ...], Spec]:
        return (tuple(n for i, n in enumerate(shape) if i != axis),
                tuple(target for i, target in enumerate(spec) if i != axis))

    return without(first), without(second)
