"""Foreign layouts of a ViT's arrays: which of their arrays is which of ours, and how it lies.

A layout is a list of entries, one a foreign array. Reading, writing and the check of names and
shapes follow from it. The check needs shapes only: `stand_in` makes an array of any shape that
holds one number, so that a file's headers are checked by the code that reads its arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.modality import Params
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.frame import count_frame, encoder_options
from deepnarrow_vision_vit.options import default_options, num_positions

if TYPE_CHECKING:
    from ml_collections import ConfigDict

LAYERS = "encoder/layers/"  # arrays of ours under it have the layers on a leading axis
MAX_NAMES = 5  # named in one error

Arrays = dict[str, np.ndarray]  # by path, joined with "/", or by a foreign name
Sizes = Mapping[str, tuple[int, ...]]  # shapes of arrays by name


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one array lies there and here.

    Attributes:
      read: `read(theirs, our_shape) -> ours`.
      write: `write(ours) -> theirs`.
    """

    read: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


SAME = Kind(lambda a, _: a, lambda a: a)
# PyTorch's linear maps have their outputs first, and all heads on one axis.
LINEAR = Kind(lambda a, _: a.T, lambda a: a.T)  # [out, in] <-> [in, out]
TO_HEADS = Kind(  # [heads * d_kv, d_model] <-> [d_model, heads, d_kv]
    lambda a, shape: a.T.reshape(shape), lambda a: a.reshape(a.shape[0], -1).T)
FROM_HEADS = Kind(  # [d_model, heads * d_kv] <-> [heads, d_kv, d_model]
    lambda a, shape: a.T.reshape(shape), lambda a: a.reshape(-1, a.shape[-1]).T)
HEADS = Kind(  # [heads * d_kv] <-> [heads, d_kv]
    lambda a, shape: a.reshape(shape), lambda a: a.reshape(-1))
CONVOLUTION = Kind(  # [d_model, channels, patch, patch] <-> [patch, patch, channels, d_model]
    lambda a, _: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))


class Entry(NamedTuple):
    """One foreign array: its name, our path, its layer (None outside of them), its kind."""

    theirs: str
    ours: str
    layer: int | None
    kind: Kind


class Names(NamedTuple):
    """A layout's names and kinds by our path: in a layer, `{i}` its number, and outside of them."""

    layer: Mapping[str, tuple[str, Kind]]
    frame: Mapping[str, tuple[str, Kind]]


# Of one attention: ours -> how it lies in PyTorch.
TORCH_ATTENTION = {
    **{f"{name}/kernel": TO_HEADS for name in ("query", "key", "value")},
    **{f"{name}/bias": HEADS for name in ("query", "key", "value")},
    "out/kernel": FROM_HEADS,
    "out/bias": SAME,
}


def torch_dense(ours: str, theirs: str, kind: Kind = LINEAR) -> dict[str, tuple[str, Kind]]:
    """Names of a linear map in PyTorch, and how it lies."""
    return {f"{ours}/kernel": (f"{theirs}.weight", kind), f"{ours}/bias": (f"{theirs}.bias", SAME)}


def torch_norm(ours: str, theirs: str) -> dict[str, tuple[str, Kind]]:
    """Names of a LayerNorm in PyTorch."""
    return {f"{ours}/scale": (f"{theirs}.weight", SAME), f"{ours}/bias": (f"{theirs}.bias", SAME)}


def stand_in(shape: Sequence[int]) -> np.ndarray:
    """An array of any shape that takes no memory: all of its numbers are one."""
    return np.broadcast_to(np.float32(0), tuple(shape))


def model_sizes(shape: Shape, options: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the model's own arrays by path, without JAX."""
    length = num_positions(options)
    encoder = TRANSFORMER.make_stack(shape, "encoder", length, encoder_options(options))
    sizes = {"/".join(array.path): array.shape for array in count_frame(shape, options).arrays}
    return sizes | {"/".join(("encoder", *array.path)): array.shape
                    for array in encoder.count().arrays}


def make_layout(
    names: Names, shape: Shape, found: Mapping[str, Any]
) -> tuple[list[Entry], dict[str, tuple[int, ...]]]:
    """Returns a layout's entries for a model, and the shapes of its own arrays.

    Args:
      names: of the layout.
      shape: the model's.
      found: the options that the checkpoint decides.

    Raises:
      InputError: they make no model.
    """
    options = default_options()
    options.update(found)
    sizes = model_sizes(shape, options)
    return make_entries(names, sizes), sizes


def make_entries(names: Names, sizes: Sizes) -> list[Entry]:
    """Returns a layout's entries for the model with arrays of `sizes`; it has no others."""
    entries = [Entry(theirs, ours, None, kind)
               for ours, (theirs, kind) in names.frame.items() if ours in sizes]
    for name, (theirs, kind) in names.layer.items():
        num_layers = sizes[LAYERS + name][0]
        entries += [Entry(theirs.format(i=i), LAYERS + name, i, kind) for i in range(num_layers)]
    return entries


def check_arrays(where: str, arrays: Mapping[str, Any], entries: list[Entry], sizes: Sizes) -> None:
    """Compares foreign arrays, or stand-ins for them, with a layout.

    Raises:
      InputError: arrays are missing, have no place, or another shape; it names them and both
        shapes.
    """
    names = {entry.theirs for entry in entries}
    missing = sorted(names - arrays.keys())
    if missing:
        raise InputError(where, f"{_count(missing)} missing", expected=_few(missing))
    unknown = sorted(arrays.keys() - names)
    if unknown:
        raise InputError(where, f"{_count(unknown)} without a place in the model",
                         got=_few(unknown))
    for entry in entries:
        ours = sizes[entry.ours] if entry.layer is None else sizes[entry.ours][1:]
        expected, got = entry.kind.write(stand_in(ours)).shape, arrays[entry.theirs].shape
        if got != expected:
            raise InputError(where, f"array {entry.theirs} does not fit the model",
                             got=list(got), expected=list(expected))


def read_entries(
    where: str, arrays: Mapping[str, np.ndarray], entries: list[Entry], sizes: Sizes
) -> Params:
    """Returns foreign arrays as our params, float32.

    Raises:
      InputError: as `check_arrays`, or a number is not finite.
    """
    check_arrays(where, arrays, entries, sizes)
    ours: Arrays = {path: np.empty(size, np.float32) for path, size in sizes.items()}
    for entry in entries:
        array = arrays[entry.theirs]
        target = ours[entry.ours] if entry.layer is None else ours[entry.ours][entry.layer]
        target[...] = entry.kind.read(array, target.shape)
        if not np.isfinite(target).all():
            raise InputError(where, f"array {entry.theirs} holds a number that is not finite",
                             hint="the checkpoint is of a diverged run, or damaged")
    return unflatten(ours)


def write_entries(params: Params, entries: list[Entry]) -> Arrays:
    """Returns our params as foreign arrays by name, float32 and contiguous."""
    ours = flatten(params)
    return {
        entry.theirs: np.ascontiguousarray(entry.kind.write(
            ours[entry.ours] if entry.layer is None else ours[entry.ours][entry.layer]))
        for entry in entries}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Arrays:
    """Returns the arrays of a nested dict by path.

    >>> flatten({"head": {"bias": np.zeros(2)}})
    {'head/bias': array([0., 0.], dtype=float32)}
    """
    flat: Arrays = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = np.asarray(value, np.float32)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of arrays by path.

    >>> unflatten({"head/bias": 1, "head/kernel": 2})
    {'head': {'bias': 1, 'kernel': 2}}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} array{'s are' if len(names) > 1 else ' is'}"


def _few(names: Sequence[str]) -> str:
    more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
