"""Trained models that a study starts from: foreign checkpoints and run directories alike.

Opening one reads configs and headers and hashes its files; its arrays are read when its cell runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow import foreign
from deepnarrow.config import CheckpointSource
from deepnarrow.errors import InputError, suggest
from deepnarrow.modality import Modality, Params
from deepnarrow.rundir import CHECKPOINTS, load_params, newest_step, read_run, run_options
from deepnarrow.shape import Shape

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from deepnarrow.plugins import Registry

RUN_FORMAT = "run"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained model, ready to be read.

    Attributes:
      architecture: its architecture's name.
      shape: its shape.
      options: the options of its model.
      facts: what the trial's key and the record say of it: format, sha256, pre-training step.
      load: reads its params; imports JAX.
    """

    architecture: str
    shape: Shape
    options: ConfigDict
    facts: Mapping[str, Any]
    load: Callable[[], Params]


def open_pretrained(
    source: CheckpointSource, modality: Modality, registry: Registry, where: str
) -> Pretrained:
    """Opens the model that a config's line names; `where` is that line.

    Raises:
      InputError: there is none, it is damaged, or of another modality.
    """
    if source.format == RUN_FORMAT:
        return _open_run(source, modality, registry, where)
    formats = (RUN_FORMAT, *modality.checkpoint_formats)
    if source.format not in formats:
        near = suggest(source.format, formats)
        raise InputError(f"{where}.format", f"{modality.name} has no such checkpoint format",
                         got=source.format, expected=f"one of {', '.join(formats)}",
                         hint=f"did you mean {near}?" if near else None)
    if not Path(source.path).exists():
        raise InputError(f"{where}.path", f"no such file or folder for {source.label!r}",
                         got=source.path, hint="download it, and name where it is")
    found = foreign.inspect(modality, source.format, source.path)
    return Pretrained(
        found.format.architecture, found.header.shape, found.options,
        _facts(source, found.content_hash),
        lambda: foreign.read_foreign(found, modality, registry))


def _open_run(
    source: CheckpointSource, modality: Modality, registry: Registry, where: str
) -> Pretrained:
    info = read_run(source.path)
    if info.modality != modality.name:
        raise InputError(f"{where}.path", "is a run of another modality", got=info.modality,
                         expected=modality.name)
    step = newest_step(source.path)
    return Pretrained(
        info.architecture, info.shape, run_options(info, registry),
        _facts(source, _hash_step(Path(source.path) / CHECKPOINTS / str(step))),
        lambda: load_params(source.path, registry, step))


def _facts(source: CheckpointSource, sha256: str) -> dict[str, Any]:
    return {"format": source.format, "sha256": sha256, "step": source.step}


def _hash_step(folder: Path) -> str:
    """Hash of the names and contents of every file of one step."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            total.update(f"{name}\n{foreign.sha256_of(path)}\n".encode())
    return total.hexdigest()
