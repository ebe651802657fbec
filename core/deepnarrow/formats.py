"""Foreign layouts of weights, as a modality registers them; part of the contract."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deepnarrow.shape import Shape

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Params = Any  # a nested dict of float32 arrays


@dataclasses.dataclass(frozen=True)
class CheckpointHeader:
    """What a foreign checkpoint says without its numbers: read from configs and arrays' headers.

    Attributes:
      shape: the model's.
      options: the model options that the checkpoint decides (`vocab_size`, `patch_size`).
      files: every file that it is read from, in an order that the layout decides, as paths relative
        to its folder (its own name, where the checkpoint is one file); the core hashes their
        contents in this order.
      adjustable: options that may be set otherwise; `read` makes the params fit the header's.
      data_files: data options that name a file which belongs to the weights, with the checkpoint's
        own, a path like those of `files`; None where it came without. The core copies them on
        import and export, and holds a study's data to them: see `pretrained.settle_data`.
    """

    shape: Shape
    options: Mapping[str, Any]
    files: tuple[str, ...]
    adjustable: frozenset[str] = frozenset()
    data_files: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CheckpointFormat:
    """A foreign layout of weights. Reading one executes nothing and unpickles nothing.

    The core lays the header's options over the modality's, compares every array that `read` returns
    with what a model of that shape has (paths, shapes, float32), and puts what `write` made in
    place whole; see `rundir.py`.

    Attributes:
      inspect: `inspect(path) -> CheckpointHeader` of a file or folder; reads configs and headers,
        so that a study is planned in seconds.
      read: `read(path, header) -> params`: NumPy arrays, float32.
      write: `write(path, shape, options, params)` makes the file or folder `path`, which does not
        exist yet; None for a layout that is only read. Raises `NotApplicable` where the layout
        cannot hold such a model.
      architecture: the architecture whose params these are.
    """

    inspect: Callable[[str], CheckpointHeader]
    read: Callable[[str, CheckpointHeader], Params]
    write: Callable[[str, Shape, ConfigDict, Params], None] | None = None
    architecture: str = "transformer"


def format_in(module: str, *, writes: bool = True) -> CheckpointFormat:
    """Returns the format whose functions `inspect`, `read` and `write` a module has.

    The module is imported when one of them is called, so that registering a format costs nothing.
    """
    def call(name: str) -> Callable[..., Any]:
        return lambda *args: getattr(importlib.import_module(module), name)(*args)

    return CheckpointFormat(call("inspect"), call("read"), call("write") if writes else None)
