"""Weights between Hugging Face's layout of T5 and ours, which the architecture `transformer` sets.

Theirs: one array a layer, linear maps as [outputs, inputs], heads and their width joined. Ours:
layers stacked, maps as [inputs, outputs], heads apart: query, key, value
[layers, d_model, num_heads, d_kv], out [layers, num_heads, d_kv, d_model].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.modality import Params, Path
from deepnarrow.shape import Shape

TABLE = "shared.weight"
# Names under which a state dict repeats the shared table.
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
# Old releases carry a bias that no layer uses.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
_MAX_NAMED = 5  # arrays that differ, in an error
_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}


class Entry(NamedTuple):
    """One of our arrays and where it is in theirs.

    Attributes:
      path: keys in our params.
      name: in a state dict, with `{}` for the layer where there is one array a layer.
      layers: how many layers are stacked, 0 for an array that stands alone.
      shape: of one layer's array in our layout.
      rows: how many leading axes of `shape` are inputs of a linear map (their array is the
        transpose of the matrix [inputs, outputs]); 0 for arrays that are the same in both.
    """

    path: Path
    name: str
    layers: int
    shape: tuple[int, ...]
    rows: int = 0


def from_hugging_face(state: Mapping[str, np.ndarray], shape: Shape) -> Params:
    """Returns our params (float32) of a T5 1.0 state dict.

    Args:
      state: arrays by their name in `T5ForConditionalGeneration.state_dict()`.
      shape: the shape they were trained with.

    Raises:
      InputError: an array is missing, left over or of another shape; the table is not tied.
      NotApplicable: `shape` shares projections, which that layout does not know.
    """
    left = dict(state)
    table = _take(left, TABLE)
    for name in TIED:
        if not np.array_equal(left.pop(name, table), table):
            raise InputError(f"weights '{name}'", "differ from the shared table",
                             hint="only T5 1.0, which ties them, is supported")
    if table.ndim != 2 or table.shape[1] != shape.d_model:
        raise InputError(f"weights '{TABLE}'", "have another shape", got=table.shape,
                         expected=f"[vocab_size, {shape.d_model}]")
    params: Params = {"embedding": np.asarray(table, np.float32)}
    for entry in entries(shape, _num_buckets(state)):
        layers = [_ours(entry, name, _take(left, name)) for name in _names(entry)]
        put(params, entry.path, np.stack(layers) if entry.layers else layers[0])
    if left:
        raise InputError("weights", "hold arrays that this shape has no place for",
                         got=", ".join(sorted(left)[:3]), hint="check the shape's layers")
    return params


def to_hugging_face(params: Params, shape: Shape) -> dict[str, np.ndarray]:
    """Returns the state dict of `params`, the shared table once; undoes `from_hugging_face`."""
    state = {TABLE: np.asarray(params["embedding"])}
    num_buckets = params["encoder"]["relative_bias"]["embedding"].shape[0]
    for entry in entries(shape, num_buckets):
        array = params
        for name in entry.path:
            array = array[name]
        layers = np.asarray(array) if entry.layers else np.asarray(array)[None]
        for name, layer in zip(_names(entry), layers, strict=True):
            state[name] = _theirs(entry, layer)
    return state


def check_state(
    where: str, found: Mapping[str, tuple[int, ...]], shape: Shape, vocab_size: int,
    num_buckets: int,
) -> None:
    """Compares the shapes of a state dict's arrays with those that a T5 of `shape` has.

    Raises:
      InputError: with the names that differ, what is there and what should be.
    """
    expected = {TABLE: (vocab_size, shape.d_model)}
    for entry in entries(shape, num_buckets):
        expected |= dict.fromkeys(_names(entry), _their_shape(entry))
    optional = {**dict.fromkeys(TIED, expected[TABLE]),
                **{name: found[name] for name in UNUSED if name in found}}
    wrong = [name for name in sorted(found.keys() | expected.keys())
             if found.get(name) != expected.get(name, optional.get(name))]
    if wrong:
        facts = [f"{name}: {_show(found.get(name))}, not {_show(expected.get(name))}"
                 for name in wrong[:_MAX_NAMED]]
        raise InputError(where, f"{len(wrong)} arrays differ from those of its config: "
                         f"{'; '.join(facts)}{'; ...' if len(wrong) > _MAX_NAMED else ''}",
                         hint="are config and weights of the same model?")


def _show(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def entries(shape: Shape, num_buckets: int) -> Iterator[Entry]:
    """Yields every array but the table."""
    if shape.share_heads or shape.share_kv:
        raise NotApplicable("Hugging Face's T5", "has no shared projections",
                            got="share_heads or share_kv")
    for role, num_layers in (("encoder", shape.num_encoder_layers),
                             ("decoder", shape.num_decoder_layers)):
        names = ["attention", "mlp"] if role == "encoder" else ["attention", "cross_attention",
                                                                  "mlp"]
        for index, name in enumerate(names):
            where = f"{role}.block.{{}}.layer.{index}"
            yield Entry((role, "layers", f"{name}_norm", "scale"), f"{where}.layer_norm.weight",
                        num_layers, (shape.d_model,))
            maps = _mlp(shape) if name == "mlp" else _attention(shape, name)
            for part, their_name, part_shape, rows in maps:
                yield Entry((role, "layers", name, part, "kernel"), f"{where}.{their_name}.weight",
                            num_layers, part_shape, rows)
        yield Entry((role, "final_norm", "scale"), f"{role}.final_layer_norm.weight", 0,
                    (shape.d_model,))
        yield Entry((role, "relative_bias", "embedding"),
                    f"{role}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 0,
                    (num_buckets, shape.num_heads))


def _attention(shape: Shape, name: str) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """(our name, theirs, our shape, input axes) of each projection."""
    heads = (shape.num_heads, shape.d_kv)
    module = "SelfAttention" if name == "attention" else "EncDecAttention"
    for theirs, ours in _PROJECTIONS.items():
        if ours == "out":
            yield ours, f"{module}.{theirs}", (*heads, shape.d_model), 2
        else:
            yield ours, f"{module}.{theirs}", (shape.d_model, *heads), 1


def _mlp(shape: Shape) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    yield "wi", "DenseReluDense.wi", (shape.d_model, shape.d_ff), 1
    yield "wo", "DenseReluDense.wo", (shape.d_ff, shape.d_model), 1


def _names(entry: Entry) -> list[str]:
    return [entry.name.format(layer) for layer in range(entry.layers)] or [entry.name]


def _num_buckets(state: Mapping[str, np.ndarray]) -> int:
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return _take(dict(state), name).shape[0]


def _take(state: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in state:
        raise InputError(f"weights '{name}'", "are missing", hint="check the shape's layers, and "
                         "that this is a T5 1.0 with ReLU")
    return np.asarray(state.pop(name))


def _ours(entry: Entry, name: str, array: np.ndarray) -> np.ndarray:
    expected = _their_shape(entry)
    if array.shape != expected:
        raise InputError(f"weights '{name}'", "have another shape", got=array.shape,
                         expected=expected)
    matrix = array.T if entry.rows else array  # [outputs, inputs] -> [inputs, outputs]
    return np.ascontiguousarray(matrix, np.float32).reshape(entry.shape)


def _theirs(entry: Entry, array: np.ndarray) -> np.ndarray:
    if not entry.rows:
        return array
    # [*inputs, *outputs] -> [outputs, inputs]
    return np.ascontiguousarray(array.reshape(_their_shape(entry)[::-1]).T)


def _their_shape(entry: Entry) -> tuple[int, ...]:
    if not entry.rows:
        return entry.shape
    inputs, outputs = entry.shape[:entry.rows], entry.shape[entry.rows:]
    return (int(np.prod(outputs)), int(np.prod(inputs)))


def put(params: Params, path: Path, array: np.ndarray) -> None:
    """Sets the array at `path` of a nested dict."""
    node = params
    for name in path[:-1]:
        node = node.setdefault(name, {})
    node[path[-1]] = array
