"""Which mesh axis splits which dimension (stand-in until sharding.py lands)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepnarrow.modality import Axes, ParamArray
from deepnarrow.planning.state import StateArray

Rules = Sequence[tuple[str, str]]
PRESETS: Mapping[str, Rules] = {
    "data": (("batch", "data"),),
    "fsdp": (("batch", "data"), ("batch", "fsdp"), ("embed", "fsdp"), ("mlp", "fsdp"),
             ("vocab", "fsdp")),
    "fsdp+tensor": (("batch", "data"), ("batch", "fsdp"), ("heads", "tensor"), ("mlp", "tensor"),
                    ("vocab", "tensor"), ("embed", "fsdp"), ("mlp", "fsdp"), ("vocab", "fsdp")),
}


def place(shape: tuple[int, ...], axes: Axes, rules: Rules, mesh: Mapping[str, int]):
    placed: list[str | None] = [None] * len(shape)
    for logical, axis in rules:
        size = mesh.get(axis, 1)
        if size == 1 or axis in placed:
            continue
        for i, name in enumerate(axes):
            if name == logical and placed[i] is None and shape[i] % size == 0:
                placed[i] = axis
                break
    return tuple(placed)


def place_param(array: ParamArray, rules: Rules, mesh: Mapping[str, int]):
    return place(array.shape, array.axes, rules, mesh)


def place_state(array: StateArray, rules: Rules, mesh: Mapping[str, int]):
    return place(array.shape, array.axes, rules, mesh)
