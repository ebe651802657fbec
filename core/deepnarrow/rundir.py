"""A run directory: one model's weights with everything that says what they are.

    RUN_DIR/run.json        what it is: modality, architecture, shape, options, where it came from
    RUN_DIR/checkpoints/    Orbax: one folder a step, the params under `state/params`
    RUN_DIR/...             an imported checkpoint's own data files, e.g. a vocabulary

`deepnarrow import` makes one of a foreign checkpoint, a study makes one of every trial
(`WORKDIR/runs/KEY`). JAX is imported when weights are read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.assemble import count_costs
from deepnarrow.config import resolve_options
from deepnarrow.errors import InputError, ShapeError
from deepnarrow.files import write_json
from deepnarrow.modality import ParamArray, Params
from deepnarrow.ops import Expression, Vocabulary, apply
from deepnarrow.settings import build
from deepnarrow.shape import Shape
from deepnarrow.strategies import describe

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from deepnarrow.plugins import Registry

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
VERSION = 2
MAX_RUN_BYTES = 50_000_000  # a checkpoint of very many files has a long list of their hashes


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What `run.json` says.

    Attributes:
      modality: name of the modality.
      architecture: name of the architecture.
      name: the shape's, for people.
      shape: the shape.
      options: the model's options, all of them.
      data: the data's options that differ from the modality's defaults.
      source: where the weights came from: `kind` is `import` (with the format, the path, the
        files' sha256 and one over all of them) or `trial` (with the study, the key and the seed).
      format: version of this file.
      data_files: by data option, `path` and `sha256` of a file in this directory that belongs to
        the weights; None where they were imported without.
    """

    modality: str
    architecture: str
    name: str
    shape: Shape
    options: Mapping[str, Any]
    data: Mapping[str, Any]
    source: Mapping[str, Any]
    format: int = VERSION
    data_files: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_run(run_dir: Path, info: RunInfo) -> None:
    """Writes `run.json`, atomically."""
    write_json(run_dir / RUN_FILE, dataclasses.asdict(info))


def read_run(run_dir: str | Path) -> RunInfo:
    """Returns what a run directory is.

    Raises:
      InputError: it is none, or `run.json` is damaged or of a later version.
    """
    path = Path(run_dir) / RUN_FILE
    where = f"run directory '{run_dir}'"
    try:
        if path.stat().st_size > MAX_RUN_BYTES:
            raise InputError(where, f"{RUN_FILE} is too large", expected=f"<= {MAX_RUN_BYTES}")
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        hint = "deepnarrow import makes one; a study's are in WORKDIR/runs"
        raise InputError(where, f"is none: {RUN_FILE} is missing", hint=hint) from None
    except OSError as error:
        raise InputError(where, f"{RUN_FILE} cannot be read", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"{RUN_FILE} is no JSON", got=error) from error
    version = values.get("format") if isinstance(values, dict) else None
    if type(version) is int and version > VERSION:
        raise InputError(where, "is of a later version of deepnarrow", got=f"format {version}",
                         expected=f"at most {VERSION}", hint="upgrade deepnarrow")
    return build(RunInfo, values, str(path))


# --- its model ----------------------------------------------------------------------------------
def run_options(info: RunInfo, registry: Registry) -> ConfigDict:
    """Returns the model's options, checked against what the modality declares today."""
    modality = registry.modality(info.modality)
    return resolve_options(modality.options, info.options, f"{RUN_FILE}: options")


def newest_step(run_dir: str | Path) -> int:
    """Returns the newest step whose weights are whole.

    Raises:
      InputError: there is none yet.
    """
    folder = Path(run_dir) / CHECKPOINTS
    # Orbax gives a step's folder its name once everything in it is written.
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    if not steps:
        raise InputError(f"run directory '{run_dir}'", "has no weights",
                         hint="nothing has been saved there yet")
    return max(steps)


def load_params(run_dir: str | Path, registry: Registry, step: int | None = None) -> Params:
    """Returns the weights of a run directory that are evaluated and transferred; imports JAX.

    Args:
      run_dir: the run directory.
      registry: of the loaded plugins.
      step: whose weights; the newest unless told.

    Raises:
      InputError: there are none yet, or an array differs from the model's in path, shape or dtype;
        nothing has been read then.
    """
    from deepnarrow.checkpoint import restore_params

    info = read_run(run_dir)
    arrays = count_costs(registry.modality(info.modality), registry.architecture(info.architecture),
                         info.shape, run_options(info, registry)).arrays
    step = newest_step(run_dir) if step is None else step
    return restore_params(Path(run_dir) / CHECKPOINTS, step, abstract_params(arrays))


def abstract_params(arrays: Sequence[ParamArray]) -> Params:
    """Returns the params that `arrays` describe, as `jax.ShapeDtypeStruct`s."""
    import jax
    import numpy as np

    tree: Params = {}
    for array in arrays:
        node = tree
        for name in array.path[:-1]:
            node = node.setdefault(name, {})
        node[array.path[-1]] = jax.ShapeDtypeStruct(array.shape, np.float32)
    return tree


def shape_name(shape: Shape, options: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    """Returns the shortest expression for `shape`, suffix included; `custom` where there is none.

    >>> from deepnarrow.ops import CORE_OPS
    >>> from deepnarrow.shape import Preset
    >>> base = Shape(12, 12, d_model=768, d_ff=3072, d_kv=64, num_heads=12)
    >>> names = Vocabulary("text", {"base": Preset(base, "made up")}, {},
    ...                    {op.symbol: op for op in CORE_OPS})
    >>> shape_name(base.replace(d_ff=2048), {}, names)
    'base-ff2048'
    """
    suffix = options.get(vocabulary.suffix_option) if vocabulary.suffix_option else None
    names = []
    for preset in vocabulary.presets:
        try:
            named = apply(describe(Expression(preset, suffix, ()), shape, vocabulary), vocabulary)
        except ShapeError:
            continue
        if named.shape == shape:
            names.append(named.name)
    return min(names, key=lambda name: (name.count("-"), len(name)), default="custom")
