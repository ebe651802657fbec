"""Trained models that a study starts from: foreign checkpoints and run directories alike.

Opening one reads configs and headers and hashes its files; its arrays are read when its cell runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deepnarrow import foreign
from deepnarrow.config import CheckpointSource, resolve_options
from deepnarrow.errors import InputError, suggest
from deepnarrow.modality import Modality, Params
from deepnarrow.rundir import CHECKPOINTS, load_params, newest_step, read_run, run_options
from deepnarrow.shape import Shape

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from deepnarrow.plugins import Registry

RUN_FORMAT = "run"


class DataFile(NamedTuple):
    """A file that belongs to a checkpoint, and the sha256 (hex) of its content."""

    path: Path
    sha256: str


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained model, ready to be read.

    Attributes:
      architecture: its architecture's name.
      shape: its shape.
      options: the options of its model.
      facts: what the trial's key and the record say of it: format, sha256 (of its data files too,
        where it has any), pre-training step.
      load: reads its params; imports JAX.
      data_files: by data option: the file that belongs to the weights; None where it is not there.
    """

    architecture: str
    shape: Shape
    options: ConfigDict
    facts: Mapping[str, Any]
    load: Callable[[], Params]
    data_files: Mapping[str, DataFile | None] = dataclasses.field(default_factory=dict)


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
    own = _data_files(source.path, found.data_files)
    return Pretrained(
        found.format.architecture, found.header.shape, found.options,
        _facts(source, found.content_hash, own),
        lambda: foreign.read_foreign(found, modality, registry), own)


def _open_run(
    source: CheckpointSource, modality: Modality, registry: Registry, where: str
) -> Pretrained:
    info = read_run(source.path)
    if info.modality != modality.name:
        raise InputError(f"{where}.path", "is a run of another modality", got=info.modality,
                         expected=modality.name)
    step = newest_step(source.path)
    own = _data_files(source.path, info.data_files)
    for option, file in own.items():
        if file and foreign.sha256_of(file.path) != file.sha256:
            raise InputError(f"checkpoint file '{file.path}'", "is not the one that was imported",
                             got="another sha256", expected=file.sha256,
                             hint=f"import the checkpoint again; it decides data.{option}")
    return Pretrained(
        info.architecture, info.shape, run_options(info, registry),
        _facts(source, _hash_step(Path(source.path) / CHECKPOINTS / str(step)), own),
        lambda: load_params(source.path, registry, step), own)


def _data_files(
    root: str, files: Mapping[str, Mapping[str, str] | None]
) -> dict[str, DataFile | None]:
    return {option: None if own is None else
            DataFile(foreign.checked_file(root, own["path"]), own["sha256"])
            for option, own in files.items()}


def _facts(
    source: CheckpointSource, sha256: str, data_files: Mapping[str, DataFile | None]
) -> dict[str, Any]:
    known = {option: file.sha256 for option, file in data_files.items() if file}
    return {"format": source.format, "sha256": sha256, "step": source.step,
            **({"data_files": known} if known else {})}


def settle_data(
    data: ConfigDict, modality: Modality, pretrained: Mapping[str, Pretrained], where: str
) -> ConfigDict:
    """Returns a study's data options with the files that its checkpoints decide.

    An option left at its default becomes the checkpoints' own file; a file that is named must have
    the same content.

    Args:
      data: the study's data options, the modality's defaults among them.
      modality: the study's.
      pretrained: its checkpoints by label.
      where: the place of the modality's part in the config.

    Raises:
      InputError: the file that is named is another one than a checkpoint's, or two checkpoints came
        with different ones.
    """
    settled: dict[str, Any] = {}
    first: dict[str, tuple[str, DataFile]] = {}
    for label, found in pretrained.items():
        for option, file in found.data_files.items():
            if file is None:
                continue
            other, shared = first.setdefault(option, (label, file))
            if shared.sha256 != file.sha256:
                raise InputError(f"{where}.checkpoints", f"came with different files for "
                                 f"data.{option}", got=f"{shared.path} and {file.path}",
                                 hint=f"make {other!r} and {label!r} studies of their own")
            value = data[option]
            if value == modality.data_options[option]:
                settled[option] = str(shared.path)
                continue
            path = Path(value).expanduser()
            if path.is_file() and foreign.sha256_of(path) != file.sha256:
                raise InputError(f"{where}.data.{option}",
                                 f"is another file than checkpoint {label!r} came with", got=value,
                                 expected=file.path, hint="leave the option out: the checkpoint's "
                                 "own file is used then")
    return resolve_options(modality.data_options, {**data.to_dict(), **settled}, f"{where}.data")


def unchecked(pretrained: Mapping[str, Pretrained]) -> list[str]:
    """Says of which checkpoints nobody knows whether the data fit them."""
    return [f"checkpoint {label} came without a file for data.{option}, so nothing checks that it "
            "was trained with the study's" for label, found in pretrained.items()
            for option, file in found.data_files.items() if file is None]


def _hash_step(folder: Path) -> str:
    """Hash of the names and contents of every file of one step."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            total.update(f"{name}\n{foreign.sha256_of(path)}\n".encode())
    return total.hexdigest()
