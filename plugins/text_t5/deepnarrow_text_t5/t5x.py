"""The format `t5x`: a checkpoint of T5X's minimal T5, read without TensorFlow.

A step's folder holds a msgpack file `checkpoint`: a tree whose leaves are arrays, or say in which
folder beside it an array lies in Zarr's format. The tree has no config: the shape is that of the
arrays. Names and axes are those of `t5x/examples/t5` and `t5x/examples/scalable_t5`, whose layers
may be stacked on an axis of their own. The latter has a relative bias in every layer; such a model
is ours only if all layers of a stack have the same one.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.foreign import checked_file
from deepnarrow.formats import CheckpointHeader
from deepnarrow.modality import Params
from deepnarrow.shape import Shape
from deepnarrow.tensorfiles import read_json
from deepnarrow_text_t5.convert import Entry, entries, put

STATE_FILE = "checkpoint"
ARRAY_FILE = ".zarray"
PLACEHOLDER = "PLACEHOLDER://"  # what Orbax writes where T5X itself writes a TensorStore spec
MAX_STATE_BYTES = 2**31 - 1
MAX_RATIO = 1100  # deflate cannot compress more: what claims to is no honest array
TABLE = "token_embedder/embedding"
BIAS = "relpos_bias/rel_embedding"
_ROLES = ("encoder", "decoder")
_MODULES = {
    "encoder": {"attention_norm": "pre_attention_layer_norm", "attention": "attention",
                "mlp_norm": "pre_mlp_layer_norm", "mlp": "mlp"},
    "decoder": {"attention_norm": "pre_self_attention_layer_norm", "attention": "self_attention",
                "cross_attention_norm": "pre_cross_attention_layer_norm",
                "cross_attention": "encoder_decoder_attention",
                "mlp_norm": "pre_mlp_layer_norm", "mlp": "mlp"},
}


class Leaf(NamedTuple):
    """An array that can be read: its shape, how, and the files it is read from."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    files: tuple[str, ...] = ()


def inspect(path: str) -> CheckpointHeader:
    """Reads the tree and the arrays' headers, and infers the shape from them.

    Raises:
      InputError: no such checkpoint, a damaged one, or arrays that do not fit together.
      NotApplicable: it is no T5 1.0.
    """
    found = leaves(path)
    shape, options = _infer(path, found)
    for entry in entries(shape, options["relative_buckets"]):
        for name, leaf in _sources(entry, found):
            if leaf is None or leaf.shape not in _allowed(entry, name):
                raise InputError(
                    f"checkpoint '{path}'", f"{name} does not fit the other arrays",
                    got=list(leaf.shape) if leaf else "nothing",
                    expected=" or ".join(str(list(s)) for s in sorted(_allowed(entry, name))))
    known = {TABLE} | {name for entry in entries(shape, options["relative_buckets"])
                       for name, _ in _sources(entry, found)}
    left = sorted(found.keys() - known)
    if left:
        raise InputError(f"checkpoint '{path}'", "holds arrays that a T5 1.0 has no place for",
                         got=", ".join(left[:3]))
    files = sorted({file for leaf in found.values() for file in leaf.files})
    return CheckpointHeader(shape, options, (STATE_FILE, *files), data_files={"vocabulary": None})


def read(path: str, header: CheckpointHeader) -> Params:
    """Returns the weights as our params, float32.

    Raises:
      NotApplicable: the layers of a stack have different relative biases.
    """
    found = leaves(path)
    params: Params = {"embedding": _array(found[TABLE])}
    for entry in entries(header.shape, header.options["relative_buckets"]):
        arrays = [_array(leaf) for _, leaf in _sources(entry, found) if leaf is not None]
        if entry.path[1] == "relative_bias":
            if any(not np.array_equal(array, arrays[0]) for array in arrays):
                raise NotApplicable(f"checkpoint '{path}'", f"every {entry.path[0]} layer has a "
                                    "relative bias of its own; here all layers of a stack share "
                                    "one, as in T5 1.0")
            put(params, entry.path, np.ascontiguousarray(arrays[0].T))  # [heads, buckets] ->
        else:
            ours = [array.reshape(entry.shape) for array in arrays]
            put(params, entry.path, np.stack(ours) if entry.layers else ours[0])
    return params


# --- names ----------------------------------------------------------------------------------------
def _sources(entry: Entry, found: Mapping[str, Leaf]) -> Iterator[tuple[str, Leaf | None]]:
    """(name, leaf) of what one of our arrays is made of, layer by layer."""
    role = entry.path[0]
    if entry.path[1] == "final_norm":
        names = [f"{role}/{role}_norm/scale"]
    elif entry.path[1] == "relative_bias":
        names = sorted((name for name in found if re.fullmatch(
            rf"{role}/(layers_\d+/)?{BIAS}", name)), key=_layer_of) or [f"{role}/{BIAS}"]
    else:
        module, *rest = entry.path[2:]
        names = ["/".join((role, f"layers_{layer}", _MODULES[role][module], *rest))
                 for layer in range(entry.layers)]
    for name in names:
        yield name, found.get(name)


def _layer_of(name: str) -> int:
    match = re.search(r"/layers_(\d+)/", name)
    return int(match[1]) if match else -1


def _allowed(entry: Entry, name: str) -> set[tuple[int, ...]]:
    """Their shapes of one layer's array: axes as ours, or heads and width joined."""
    if name.endswith(BIAS):
        return {entry.shape[::-1]}
    joined = (math.prod(entry.shape[:entry.rows]), math.prod(entry.shape[entry.rows:]))
    return {entry.shape, joined if entry.rows else entry.shape}


def _infer(path: str, found: Mapping[str, Leaf]) -> tuple[Shape, dict[str, int]]:
    """The shape and the options that the arrays' sizes imply."""
    if "decoder/logits_dense/kernel" in found or any("/wi_0/" in name for name in found):
        raise NotApplicable(f"checkpoint '{path}'", "is a T5 1.1 (gated MLPs, or a table of its "
                            "own for the logits), which is not supported", expected="a T5 1.0")
    vocab_size, d_model = _dims(path, found, TABLE, 2)
    layers = {role: 1 + max((_layer_of(name) for name in found if name.startswith(f"{role}/")),
                            default=-1) for role in _ROLES}
    bias = next((n for n in sorted(found) if n.startswith("encoder/") and n.endswith(BIAS)),
                f"encoder/{BIAS}")
    num_heads, buckets = _dims(path, found, bias, 2)
    query = _dims(path, found, "encoder/layers_0/attention/query/kernel")
    d_ff = _dims(path, found, "encoder/layers_0/mlp/wi/kernel", 2)[1]
    shape = Shape(layers["encoder"], layers["decoder"], d_model=d_model, d_ff=d_ff,
                  d_kv=math.prod(query[1:]) // max(num_heads, 1), num_heads=num_heads)
    # T5X has both fixed in its code.
    return shape, {"vocab_size": vocab_size, "relative_buckets": buckets,
                   "relative_max_distance": 128, "pad_id": 0, "eos_id": 1}


def _dims(
    path: str, found: Mapping[str, Leaf], name: str, rank: int | None = None
) -> tuple[int, ...]:
    if name not in found:
        raise InputError(f"checkpoint '{path}'", "has an array missing", expected=name)
    shape = found[name].shape
    if rank is not None and len(shape) != rank:
        raise InputError(f"checkpoint '{path}'", f"{name} has another number of axes",
                         got=list(shape), expected=f"{rank} axes")
    return shape


# --- the tree -------------------------------------------------------------------------------------
def leaves(path: str) -> dict[str, Leaf]:
    """Returns the model's arrays by name, those of stacked layers apart as `layers_0` ...

    Raises:
      InputError: no such checkpoint, or a damaged one.
    """
    tree = _read_tree(Path(path))
    target = tree.get("optimizer", tree)
    target = target.get("target") if isinstance(target, Mapping) else None
    if not isinstance(target, Mapping):
        raise InputError(f"checkpoint '{path}'", "has no 'target', where T5X keeps the parameters")
    flat = dict(_flatten(path, target, ()))
    found: dict[str, Leaf] = {}
    for name, leaf in flat.items():
        match = re.fullmatch(r"(encoder|decoder)/\1/(.+)", name)
        if match is None:
            found[name] = leaf
            continue
        axis = _layers_axis(flat, match[1])
        if len(leaf.shape) <= axis:
            raise InputError(f"checkpoint '{path}'", f"{name} has no axis for the layers",
                             got=list(leaf.shape))
        for layer in range(leaf.shape[axis]):
            found[f"{match[1]}/layers_{layer}/{match[2]}"] = _one_layer(leaf, axis, layer)
    return found


def _layers_axis(flat: Mapping[str, Leaf], role: str) -> int:
    """Where a stack's layers lie: T5X's default is 1; 0 where the norms say so."""
    d_model = flat[TABLE].shape[-1] if TABLE in flat and flat[TABLE].shape else None
    norm = flat.get(f"{role}/{role}/pre_mlp_layer_norm/scale")
    return 0 if norm and norm.shape[0] != d_model and norm.shape[-1] == d_model else 1


def _one_layer(leaf: Leaf, axis: int, layer: int) -> Leaf:
    shape = (*leaf.shape[:axis], *leaf.shape[axis + 1:])
    return Leaf(shape, lambda: leaf.read().take(layer, axis), leaf.files)


def _read_tree(folder: Path) -> Mapping[str, Any]:
    from flax import serialization

    if not (folder / STATE_FILE).exists():
        steps = sorted((p for p in folder.glob("checkpoint_*") if p.is_dir()),
                       key=lambda p: (len(p.name), p.name))
        raise InputError(f"checkpoint '{folder}'", "is no T5X checkpoint",
                         expected=f"the folder of one step, with a file {STATE_FILE!r}",
                         hint=f"name one of its steps: {steps[-1]}" if steps else None)
    file = checked_file(folder, STATE_FILE)
    if file.stat().st_size > MAX_STATE_BYTES:
        raise InputError(f"checkpoint file '{file}'", "is too large",
                         expected=f"at most {MAX_STATE_BYTES} bytes")
    try:
        tree = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:  # whatever a parser raises on bytes that are something else
        raise InputError(f"checkpoint file '{file}'", "is no msgpack of arrays",
                         got=f"{type(error).__name__}: {error}") from error
    if not isinstance(tree, Mapping):
        raise InputError(f"checkpoint file '{file}'", "is no tree", got=type(tree).__name__)
    return tree


def _flatten(
    path: str, node: Mapping[Any, Any], keys: tuple[str, ...]
) -> Iterator[tuple[str, Leaf]]:
    for key, value in node.items():
        name = "/".join((*keys, str(key)))
        if isinstance(value, np.ndarray):
            yield name, Leaf(value.shape, lambda value=value: value)
        elif isinstance(value, str) and value.startswith(PLACEHOLDER):
            yield name, _zarr(path, value.removeprefix(PLACEHOLDER))
        elif isinstance(value, Mapping) and "driver" in value:
            yield name, _zarr(path, _spec_folder(path, name, value))
        elif isinstance(value, Mapping):
            yield from _flatten(path, value, (*keys, str(key)))
        else:
            raise InputError(f"checkpoint '{path}'", f"{name} is no array",
                             got=type(value).__name__)


def _spec_folder(path: str, name: str, spec: Mapping[str, Any]) -> str:
    """The folder that a TensorStore spec names; nothing else in it is believed."""
    store = spec.get("kvstore")
    folder = (store.get("path") if isinstance(store, Mapping) else None) or spec.get("path")
    if spec.get("driver") != "zarr" or not isinstance(folder, str):
        raise InputError(f"checkpoint '{path}'", f"{name} is in a store that is not supported",
                         got=spec.get("driver"), expected="zarr, in a folder beside the checkpoint")
    return folder.rstrip("/")


# --- Zarr -----------------------------------------------------------------------------------------
def _zarr(path: str, folder: str) -> Leaf:
    """An array of Zarr's format 2 whose header, chunks and sizes fit together."""
    header_file = f"{folder}/{ARRAY_FILE}"
    header = read_json(path, header_file)
    where = f"checkpoint file '{Path(path) / header_file}'"
    shape, chunks = (_sizes(where, header, name) for name in ("shape", "chunks"))
    dtype = header.get("dtype")
    if len(shape) != len(chunks) or 0 in chunks or header.get("dimension_separator", ".") != ".":
        raise InputError(where, "has chunks that do not fit", got=list(chunks))
    if dtype not in ("<f4", "<f8", "<f2", "bfloat16"):
        raise InputError(where, "is no array of floats", got=dtype)
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    present = len(list((Path(path) / folder).iterdir()))
    if math.prod(counts) > present:
        raise InputError(where, "says there are more chunks than there are",
                         got=f"{math.prod(counts)} chunks", expected=f"at most {present}")
    files = [f"{folder}/{'.'.join(map(str, index)) or '0'}"
             for index in itertools.product(*map(range, counts))]
    stored = sum(checked_file(path, file).stat().st_size for file in files)
    if math.prod(shape) * 2 > MAX_RATIO * (stored + 1):
        raise InputError(where, "says the array is larger than its files can hold",
                         got=f"{math.prod(shape)} numbers in {stored} bytes")
    return Leaf(shape, lambda: _read_zarr(path, folder), (header_file, *files))


def _sizes(where: str, header: Mapping[str, Any], name: str) -> tuple[int, ...]:
    values = header.get(name)
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise InputError(where, f"{name} is no list of sizes", got=repr(values))
    return tuple(values)


def _read_zarr(path: str, folder: str) -> np.ndarray:
    import tensorstore

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{Path(path) / folder}/"}}
    try:
        return tensorstore.open(spec, open=True, read=True).result().read().result()
    except ValueError as error:
        raise InputError(f"checkpoint '{Path(path) / folder}'", "cannot be read",
                         got=str(error).partition("[")[0]) from error


def _array(leaf: Leaf) -> np.ndarray:
    return np.asarray(leaf.read(), np.float32)
