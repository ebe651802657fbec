"""The table of `mesh.py` applied: where parameters, optimiser state, batches and activations lie.

Only `jax.jit` and `NamedSharding`: the same code runs on CPU, GPU and TPU. Models name the logical
axes of what they compute (`constrain`, `gathered`) and never see a device; without a layout both
return what they were given.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, GetAttrKey, keystr, tree_flatten_with_path, tree_map_with_path

from deepnarrow.mesh import (
    MESH_AXES,
    MeshShape,
    Rules,
    Spec,
    Whole,
    factored_specs,
    find_rules,
    place_param,
    spec_of,
    without_batch_axes,
)
from deepnarrow.modality import Axes, Batch


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices arranged in a mesh, and the rules that put arrays on it.

    Attributes:
      mesh: axes `data`, `fsdp`, `tensor`, in this order, also where their size is 1.
      shape: its sizes.
      preset: name of the rules.
    """

    mesh: Mesh
    shape: MeshShape
    preset: str

    @property
    def rules(self) -> Rules:
        """The table."""
        return find_rules(self.preset, self.shape)

    @property
    def whole(self) -> NamedSharding:
        """The same array on every device."""
        return self.named(())

    @property
    def batch(self) -> NamedSharding:
        """The leading axis split as batches are."""
        return self.named(spec_of(("batch",), (self.shape.batch_ways,), self.rules, self.shape))

    def named(self, spec: Spec) -> NamedSharding:
        """Returns the sharding of an array whose dimensions lie on `spec`."""
        return NamedSharding(self.mesh, PartitionSpec(*spec))


def make_layout(
    shape: MeshShape, preset: str, devices: Sequence[Any] | None = None
) -> Layout:
    """Arranges devices in a mesh.

    Args:
      shape: of the mesh.
      preset: a name in `mesh.RULES`.
      devices: the first `shape.size` are taken; all that there are unless given. They may be those
        of a topology that is only compiled for.

    Raises:
      InputError: the preset is unknown, or leaves an axis of the mesh unused.
    """
    find_rules(preset, shape)
    return Layout(make_mesh(shape, jax.devices() if devices is None else devices), shape, preset)


def make_mesh(shape: MeshShape, devices: Sequence[Any]) -> Mesh:
    """Arranges the first `shape.size` of `devices` so that neighbours in the mesh are near."""
    sizes = tuple(shape.sizes.values())
    chosen = mesh_utils.create_device_mesh(
        sizes, list(devices)[: shape.size], allow_split_physical_axes=True)
    return Mesh(chosen, MESH_AXES)


# --- parameters and what is like them -------------------------------------------------------------
def place(param_axes: Any, shapes: Any, layout: Layout) -> tuple[Any, list[Whole]]:
    """Places every parameter.

    Args:
      param_axes: tree like the params whose leaves are tuples of logical axis names.
      shapes: arrays or abstract arrays like the params.
      layout: where.

    Returns:
      A tree of `NamedSharding` like the params, and what the rules would have split but could not.
    """
    left: list[Whole] = []

    def one(path: Any, leaf: Any, axes: Axes) -> NamedSharding:
        name = keystr(path, simple=True, separator="/")
        spec, own = place_param(name, axes, leaf.shape, layout.rules, layout.shape,
                                np.dtype(leaf.dtype).itemsize)
        left.extend(own)
        return layout.named(spec)

    return tree_map_with_path(one, shapes, param_axes), left


def place_state(opt_state: Any, params: Any, param_axes: Any, layout: Layout) -> Any:
    """Places the state of an optimiser that `optim.per_matrix` made: each array as its parameter.

    The statistics lie in flat dicts by the parameters' paths, `heads` and `kv` joined to one axis;
    Adafactor's factored ones lack an axis of the matrix. Counters and place-holders stay whole.

    Args:
      opt_state: abstract arrays of the state.
      params: abstract arrays of the parameters.
      param_axes: their logical axes.
      layout: where.
    """
    shardings, _ = place(param_axes, params, layout)
    matrices: dict[str, tuple[bool, tuple[int, ...], Spec]] = {}
    for (path, leaf), axes, sharding in zip(
            tree_flatten_with_path(params)[0], _axes_leaves(param_axes),
            jax.tree.leaves(shardings), strict=True):
        name = keystr(path, simple=True, separator="/")
        matrices[name] = _matrix(axes, leaf.shape, sharding.spec)

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, DictKey) and key.key in matrices]
        if not names:
            return layout.whole
        fields = [key.name for key in path if isinstance(key, GetAttrKey)]
        return layout.named(_statistic(leaf.shape, *matrices[names[-1]], fields))

    return tree_map_with_path(one, opt_state)


def _axes_leaves(param_axes: Any) -> list[Axes]:
    return jax.tree.leaves(param_axes, is_leaf=lambda x: isinstance(x, tuple))


def _matrix(axes: Axes, shape: Sequence[int], spec: Spec) -> tuple[bool, tuple[int, ...], Spec]:
    """Whether layers are stacked; shape and spec with each `kv` joined to the `heads` before it."""
    sizes: list[int] = []
    places: list[Any] = []
    for i, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if axis == "kv" and i and axes[i - 1] == "heads":
            sizes[-1] *= size
        else:
            sizes.append(size)
            places.append(spec[i])
    return axes[:1] == ("layers",), tuple(sizes), tuple(places)


def _statistic(
    found: Sequence[int], stacked: bool, shape: tuple[int, ...], spec: Spec, fields: Sequence[str]
) -> Spec:
    """What a statistic of the shape `found` lies on, of a matrix of `shape` on `spec`."""
    if tuple(found) == shape:
        return spec
    lead, rest = (shape[:1], shape[1:]) if stacked else ((), shape)
    for field in ("v_row", "v_col"):
        if field in fields and len(rest) > 1:
            factored = factored_specs(rest, spec[len(lead):])[["v_row", "v_col"].index(field)]
            if tuple(found) == (*lead, *factored[0]):
                return (*spec[:len(lead)], *factored[1])
    return ()


def on_every_host(params: Any) -> Any:
    """Returns params of which every process holds the whole: as host arrays, where none did."""
    return jax.tree.map(
        lambda x: x if not isinstance(x, jax.Array) or x.is_fully_addressable
        else process_allgather(x, tiled=True), params)


# --- activations ----------------------------------------------------------------------------------
_ACTIVE: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def active(layout: Layout | None) -> Iterator[None]:
    """Has what is traced inside lie as `layout` says."""
    token = _ACTIVE.set(layout)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def traced_in(layout: Layout | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` tracing itself inside `active(layout)`: for `jax.jit`."""
    @functools.wraps(function)
    def inside(*args: Any) -> Any:
        with active(layout):
            return function(*args)

    return inside


def is_split() -> bool:
    """Whether a layout is active."""
    return _ACTIVE.get() is not None


def constrain(x: Any, *axes: str | None) -> Any:
    """Returns `x`, laid out as the rules say for its logical `axes`; one a dimension.

    An axis that does not divide stays whole.
    """
    layout = _ACTIVE.get()
    if layout is None:
        return x
    spec = spec_of(axes, x.shape, layout.rules, layout.shape)
    return jax.lax.with_sharding_constraint(x, layout.named(spec))


def for_each_part(x: Any, batch_size: int, *axes: str | None) -> Any:
    """Returns `x`, alike for all examples, once for each part of a batch instead of once in all.

    Every device holds as much as before. But the gradient is a sum over a device's own examples
    then, and devices can put off adding up theirs to the end, whatever the number of layers.

    Args:
      x: its leading axis is 1.
      batch_size: examples, of all devices.
      axes: logical names of the dimensions; the first is `batch`.
    """
    layout = _ACTIVE.get()
    if layout is None or batch_size % layout.shape.batch_ways:
        return x
    # [1, ...] -> [parts, ...]
    return constrain(jnp.broadcast_to(x, (layout.shape.batch_ways, *x.shape[1:])), *axes)


def gathered(kernel: Any, *axes: str | None) -> Any:
    """Returns a parameter of one layer as a product with a batch needs it.

    The mesh axes that split batches hold all of it then; the others keep their parts. Its gradient
    is split again at once, so that devices exchange no more than their parts of the sum.
    """
    layout = _ACTIVE.get()
    if layout is None:
        return kernel
    spec = spec_of(axes, kernel.shape, layout.rules, layout.shape)
    return _gather(kernel, layout.named(without_batch_axes(spec, layout.rules)), layout.named(spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(kernel: jax.Array, whole: NamedSharding, split: NamedSharding) -> jax.Array:
    del split
    return jax.lax.with_sharding_constraint(kernel, whole)


def _gather_forward(
    kernel: jax.Array, whole: NamedSharding, split: NamedSharding
) -> tuple[jax.Array, None]:
    return _gather(kernel, whole, split), None


def _gather_backward(
    whole: NamedSharding, split: NamedSharding, residuals: None, cotangent: jax.Array
) -> tuple[jax.Array]:
    del whole, residuals
    return (jax.lax.with_sharding_constraint(cotangent, split),)


_gather.defvjp(_gather_forward, _gather_backward)


# --- batches --------------------------------------------------------------------------------------
def local_rows(layout: Layout, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch that this process loads, ascending."""
    parts = layout.batch.addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in parts.values() if index is not None]
    return np.unique(np.concatenate(rows))


def put_batch(layout: Layout, batch: Mapping[str, np.ndarray]) -> Batch:
    """Puts this process's rows of a global batch, those of `local_rows`, on its devices."""
    return {name: jax.make_array_from_process_local_data(layout.batch, value)
            for name, value in batch.items()}
