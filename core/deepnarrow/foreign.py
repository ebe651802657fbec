"""Foreign checkpoints in and out: found, inspected, hashed, read strictly, written whole.

The modality knows the layouts (`CheckpointFormat`); what must hold for all of them is here. JAX is
imported when arrays are read or written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.assemble import count_costs
from deepnarrow.config import resolve_options
from deepnarrow.errors import InputError, suggest
from deepnarrow.files import check_new, new_path, safe_join
from deepnarrow.formats import CheckpointFormat, CheckpointHeader
from deepnarrow.modality import Modality, Params
from deepnarrow.rundir import (
    CHECKPOINTS,
    RunInfo,
    abstract_params,
    load_params,
    read_run,
    run_options,
    shape_name,
    write_run,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from deepnarrow.plugins import Registry

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A foreign checkpoint that has been inspected; no array of it has been read.

    Attributes:
      path: where it is.
      format_name: name of its format.
      format: the format.
      header: its shape, options and files.
      options: the model's options, the header's laid over the defaults.
      sha256: of each file, by name.
      data_files: by data option: `path` and `sha256` of the checkpoint's own file, or None.
    """

    path: str
    format_name: str
    format: CheckpointFormat
    header: CheckpointHeader
    options: ConfigDict
    sha256: Mapping[str, str]
    data_files: Mapping[str, Mapping[str, str] | None]

    @property
    def content_hash(self) -> str:
        """Hash of all files' contents, in the header's order; part of a trial's key."""
        return hashlib.sha256("".join(self.sha256.values()).encode()).hexdigest()

    def source(self) -> dict[str, Any]:
        """Where the weights come from, as `run.json` has it."""
        files = tuple({"path": name, "sha256": digest} for name, digest in self.sha256.items())
        return {"kind": "import", "format": self.format_name, "path": os.path.abspath(self.path),
                "sha256": self.content_hash, "files": files}


def find_format(modality: Modality, name: str) -> CheckpointFormat:
    """Returns a format of `modality` by name.

    Raises:
      InputError: there is none of that name; it lists what there is.
    """
    formats = modality.checkpoint_formats
    if name not in formats:
        near = suggest(name, formats)
        raise InputError(f"checkpoint format {name!r}", f"{modality.name} has no such format",
                         expected=f"one of {', '.join(formats) or '(none)'}",
                         hint=f"did you mean {near}?" if near else None)
    return formats[name]


def inspect(
    modality: Modality, format_name: str, path: str | Path,
    settings: Mapping[str, Any] | None = None,
) -> Foreign:
    """Reads a foreign checkpoint's config and headers and hashes its files.

    Args:
      modality: whose checkpoint it is.
      format_name: of its layout.
      path: a file or folder.
      settings: model options that the user sets.

    Raises:
      InputError: no such format or path; it is damaged, of another layout, or holds links;
        `settings` contradict the checkpoint.
    """
    found, settings = find_format(modality, format_name), settings or {}
    where = f"checkpoint '{path}'"
    if not Path(path).exists():
        raise InputError(where, "no such file or folder")
    header = found.inspect(str(path))
    adjusted = {name: value for name, value in settings.items() if name in header.adjustable}
    header = dataclasses.replace(header, options={**header.options, **adjusted})
    for name in settings.keys() & header.options.keys():
        if settings[name] != header.options[name]:
            raise InputError(f"{where}, {name}", "the checkpoint decides this option",
                             got=settings[name], expected=header.options[name],
                             hint="leave it out")
    options = resolve_options(modality.options, {**settings, **header.options}, f"{where}, options")
    header = dataclasses.replace(header, options={n: options[n] for n in header.options})
    own = {option: None if name is None else
           {"path": name, "sha256": sha256_of(checked_file(path, name))}
           for option, name in header.data_files.items()}
    return Foreign(str(path), format_name, found, header, options, _hash_files(path, header), own)


def read_foreign(foreign: Foreign, modality: Modality, registry: Registry) -> Params:
    """Returns the arrays of a foreign checkpoint as our params; imports JAX.

    Raises:
      InputError: an array is missing, left over, or of another shape than the model's.
    """
    from deepnarrow.checkpoint import check_like

    architecture = registry.architecture(foreign.format.architecture)
    arrays = count_costs(modality, architecture, foreign.header.shape, foreign.options).arrays
    params = foreign.format.read(foreign.path, foreign.header)
    check_like(f"checkpoint '{foreign.path}'", params, abstract_params(arrays))
    return params


def import_checkpoint(
    modality_name: str, format_name: str, path: str | Path, run_dir: str | Path,
    registry: Registry, settings: Mapping[str, Any] | None = None,
) -> RunInfo:
    """Makes the run directory `run_dir` of a foreign checkpoint, whole or not at all.

    Raises:
      InputError: as `inspect` and `read_foreign`; `run_dir` exists.
    """
    modality = registry.modality(modality_name)
    find_format(modality, format_name)
    check_new(Path(run_dir))
    foreign = inspect(modality, format_name, path, settings)
    params = read_foreign(foreign, modality, registry)
    shape, vocabulary = foreign.header.shape, registry.vocabulary(modality)
    info = RunInfo(modality.name, foreign.format.architecture,
                   shape_name(shape, foreign.options.to_dict(), vocabulary), shape,
                   foreign.options.to_dict(), data={}, source=foreign.source(),
                   data_files=foreign.data_files)
    with new_path(Path(run_dir)) as made:
        save_run(made, info, params)
        _copy_data_files(info, path, made)
    return info


def save_run(directory: Path, info: RunInfo, params: Params) -> None:
    """Writes a run directory of finished weights; imports JAX."""
    from deepnarrow.checkpoint import Checkpointer

    with Checkpointer(directory / CHECKPOINTS) as checkpointer:
        checkpointer.save(0, {"params": params})
    write_run(directory, info)


def export_checkpoint(
    run_dir: str | Path, format_name: str, path: str | Path, registry: Registry
) -> RunInfo:
    """Writes the weights of a run directory in a foreign layout, whole or not at all.

    Raises:
      InputError: no such format, or it is only read; `path` exists; there are no weights.
      NotApplicable: the layout cannot hold this model.
    """
    info = read_run(run_dir)
    modality = registry.modality(info.modality)
    found = find_format(modality, format_name)
    if found.write is None:
        writable = [n for n, f in modality.checkpoint_formats.items() if f.write]
        raise InputError(f"checkpoint format {format_name!r}", "is only read, not written",
                         expected=f"one of {', '.join(writable) or '(none)'}")
    if info.architecture != found.architecture:
        raise InputError(f"checkpoint format {format_name!r}", "holds another architecture",
                         got=info.architecture, expected=found.architecture)
    check_new(Path(path))
    options, params = run_options(info, registry), load_params(run_dir, registry)
    with new_path(Path(path)) as made:
        found.write(str(made), info.shape, options, params)
        if made.is_dir():
            _copy_data_files(info, run_dir, made)
    return info


def _copy_data_files(info: RunInfo, source: str | Path, target: Path) -> None:
    for own in filter(None, info.data_files.values()):
        copy = safe_join(target, own["path"], f"output '{target}'")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checked_file(source, own["path"]), copy)


# --- files --------------------------------------------------------------------------------------
def _hash_files(path: str | Path, header: CheckpointHeader) -> dict[str, str]:
    return {name: sha256_of(checked_file(path, name)) for name in header.files}


def checked_file(root: str | Path, name: str) -> Path:
    """Returns the path of a checkpoint's own file; `root` is its folder, or the file itself.

    Raises:
      InputError: the name leads out of the folder, or the file is missing, a link or no file.
    """
    root = Path(root)
    path = safe_join(root, name, f"checkpoint '{root}'") if root.is_dir() else root
    if not path.is_file():
        raise InputError(f"checkpoint file '{path}'",
                         "is no file" if path.exists() else "is missing")
    return path


def sha256_of(path: Path) -> str:
    """Returns the sha256 (hex) of a file's content."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total.update(chunk)
    except OSError as error:
        raise InputError(f"checkpoint file '{path}'", "cannot be read",
                         got=error.strerror) from error
    return total.hexdigest()
