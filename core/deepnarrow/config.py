"""Configs: a Python file with `get_config()`, made into frozen dataclasses, every error at once.

    load_config("configs/quickstart.py", ["run.log_every=5"])  ->  StudyConfig

A config is code that the user runs on purpose. What a workdir stores is the resolved config as JSON
(`to_json`, `from_json`): nothing is ever executed from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import InputError, shorten, suggest
from deepnarrow.protocol import MAX_SEED, Launch, Pretraining, Protocol, RunOptions, Sharding
from deepnarrow.settings import Report, apply_settings, build, build_value, like, parse_settings

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MAX_FILE_BYTES = 1_000_000
MAX_NAME = 100


@dataclasses.dataclass(frozen=True)
class CheckpointSource:
    """A trained model that a study starts from instead of pre-training one.

    Attributes:
      name: what the records call it; one with a `step` is called `NAME@STEP`.
      format: one of the modality's checkpoint formats, or `run` for a run directory.
      path: the file or folder.
      step: pre-training step of an intermediate checkpoint; None for the final one.
    """

    name: str
    format: str
    path: str
    step: int | None = None

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > MAX_NAME or not self.name.isprintable():
            raise InputError("checkpoint", "name cannot be used", got=repr(shorten(self.name)),
                             expected=f"1 to {MAX_NAME} printable characters")
        if self.step is not None and self.step < 0:
            raise InputError("checkpoint", "step is out of range", got=self.step, expected=">= 0")

    @property
    def label(self) -> str:
        """`NAME`, or `NAME@STEP`."""
        return self.name if self.step is None else f"{self.name}@{self.step}"


@dataclasses.dataclass(frozen=True)
class ModalityStudy:
    """One modality's part of a study: shapes to pre-train, or checkpoints to start from.

    Attributes:
      modality: its registered name: the key under `modalities`, so a config need not repeat it.
      shapes: shape expressions, e.g. `("tiny", "tiny-nl8")`.
      protocol: budget, optimiser and transfer stages; with checkpoints only the latter.
      architectures: names of architectures; every shape is built of each.
      options: model options laid over the modality's defaults.
      data: data options laid over the modality's defaults.
      checkpoints: trained models, each a cell that is transferred as it is, once; its seeds are
        those of fine-tuning and of the shots.
      evaluate_upstream: measure the checkpoints on upstream's validation split, too.
    """

    modality: str
    shapes: tuple[str, ...] = ()
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    architectures: tuple[str, ...] = ("transformer",)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checkpoints: tuple[CheckpointSource, ...] = ()
    evaluate_upstream: bool = False

    def __post_init__(self) -> None:
        _check_unique("modality", "architectures", self.architectures)
        if self.checkpoints:
            self._check_checkpoints()
            return
        _check_unique("modality", "shapes", self.shapes)
        _ = self.protocol.pretraining  # raises where some of it is missing
        if self.evaluate_upstream:
            raise InputError("modality", "evaluate_upstream is for checkpoints, and there are none",
                             hint="leave it out; shapes are always evaluated")

    def _check_checkpoints(self) -> None:
        _check_unique("modality", "checkpoints", [source.label for source in self.checkpoints])
        if not (self.protocol.few_shot or self.protocol.fine_tune or self.evaluate_upstream):
            raise InputError("modality", "protocol has nothing to do with the checkpoints",
                             expected="few_shot, fine_tune or evaluate_upstream=True")
        if self.shapes:
            raise InputError("modality", "shapes do not go with checkpoints, which had another "
                             "pre-training", got=", ".join(self.shapes),
                             hint="make two studies, and compare them")
        given = [name for name in (*Pretraining._fields, "tune")
                 if getattr(self.protocol, name) is not None]
        if given:
            raise InputError("modality", f"protocol has {', '.join(given)}, but checkpoints are "
                             "not pre-trained", hint="leave it out")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study: every shape of every modality, once a seed, under one protocol a modality.

    Attributes:
      name: the study's name.
      seeds: pre-training seeds, each in [0, 2^31).
      modalities: the modalities' parts, by name.
      run: how the runs are watched.
      sharding: how devices share the work of one model.
      launch: how launchers run its units in processes of their own.
    """

    name: str
    seeds: tuple[int, ...]
    modalities: Mapping[str, ModalityStudy]
    run: RunOptions = dataclasses.field(default_factory=RunOptions)
    sharding: Sharding = dataclasses.field(default_factory=Sharding)
    launch: Launch = dataclasses.field(default_factory=Launch)

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > MAX_NAME or not self.name.isprintable():
            raise InputError("study", "name cannot be used", got=repr(shorten(self.name)),
                             expected=f"1 to {MAX_NAME} printable characters")
        _check_unique("study", "seeds", self.seeds)
        for seed in self.seeds:
            if not 0 <= seed <= MAX_SEED:
                raise InputError("study", "a seed is out of range", got=seed,
                                 expected=">= 0 and < 2^31")
        if not self.modalities:
            raise InputError("study", "modalities is empty", expected="at least one modality")
        for name, part in self.modalities.items():
            if part.modality != name:
                raise InputError("study", f"modalities {name!r} is another modality's name",
                                 got=repr(part.modality), hint="leave out 'modality'")
            tune = part.protocol.tune
            if tune and (both := sorted(set(tune.seeds) & set(self.seeds))):
                raise InputError("study", f"modalities {name!r} tunes with a seed that is reported",
                                 got=both[0], expected="tune.seeds that are none of seeds")
        for where, size in batch_sizes(self).items():
            if size % self.sharding.micro_batches:
                raise InputError("study", f"{where} does not divide among sharding.micro_batches",
                                 got=size, expected=f"a multiple of {self.sharding.micro_batches}")


def batch_sizes(config: StudyConfig) -> dict[str, int]:
    """Returns the examples a training step of every stage, by their place in the config."""
    found: dict[str, int] = {}
    for name, part in config.modalities.items():
        place, stage = f"modalities.{name}.protocol", part.protocol.fine_tune
        if part.protocol.batch_size is not None:
            found[f"{place}.batch_size"] = part.protocol.batch_size
        if stage is not None:
            found[f"{place}.fine_tune.batch_size"] = stage.batch_size
    return found


def _check_unique(where: str, name: str, values: Sequence[object]) -> None:
    if not values:
        raise InputError(where, f"{name} is empty", expected="at least one")
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise InputError(where, f"{name} has a value twice", got=twice[0], hint="keep one of them")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Runs a config file and returns the study that it describes.

    Args:
      path: a Python file with `get_config()`, which returns a ConfigDict or a dict.
      overrides: `a.b=value` texts, as `--set` takes them; values are Python literals, bare words
        are strings.

    Raises:
      InputErrors: everything that is wrong with the config and the overrides, at once.
      InputError: the file cannot be read or run.
    """
    values = _run_file(Path(path))
    report = Report(str(path))
    settings = parse_settings(overrides, report)
    report.given = settings.keys()
    values = apply_settings(values, settings, StudyConfig, report)
    config = build_value(StudyConfig, _name_modalities(values), (), report)
    report.raise_any()
    return config


def to_json(config: StudyConfig) -> dict[str, Any]:
    """The resolved config as plain JSON-able values; `from_json` builds it back."""
    return _jsonable(dataclasses.asdict(config))


def from_json(values: object, where: str = "config") -> StudyConfig:
    """Builds the config that `to_json` wrote.

    Raises:
      InputErrors: the values are no config; `where` names their file.
    """
    return build(StudyConfig, values, where)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(v) for key, v in value.items()}
    return [_jsonable(v) for v in value] if isinstance(value, (list, tuple)) else value


def resolve_options(defaults: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
    """Returns `defaults` with `overrides` laid over it, every value of its default's type, locked.

    >>> from ml_collections import ConfigDict
    >>> resolve_options(ConfigDict({"patch_size": 16}), {"patch_size": 4}, "options").patch_size
    4

    Raises:
      InputErrors: every unknown key and wrong type, at `where.key`.
    """
    from ml_collections import ConfigDict

    report = Report(where)
    resolved = like(defaults.to_dict(), overrides, (), report)
    report.raise_any()
    return ConfigDict(resolved).lock()


# --- the file -------------------------------------------------------------------------------------
def _name_modalities(values: dict[str, Any]) -> dict[str, Any]:
    """Fills in `modality`, which is the key unless said otherwise; None leaves a modality out."""
    parts = values.get("modalities")
    if not isinstance(parts, Mapping):
        return values
    named = {key: {"modality": key, **part} if isinstance(part, Mapping) else part
             for key, part in parts.items() if part is not None}
    return {**values, "modalities": named}


def _run_file(path: Path) -> dict[str, Any]:
    """Runs the user's own file and returns what its `get_config()` says, as nested dicts."""
    where = f"config '{shorten(path, 120)}'"
    code = _compile(path, where)
    module = types.ModuleType("deepnarrow_config")
    module.__file__ = str(path)
    try:
        # What a config prints must not spoil `--json` on stdout.
        with contextlib.redirect_stdout(sys.stderr):
            exec(code, module.__dict__)
            get_config = getattr(module, "get_config", None)
            config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(path)]
        place = f"line {lines[-1]}" if lines else "get_config()"
        raise InputError(where, f"{place} raised {type(error).__name__}",
                         got=str(error) or None) from error
    if not callable(get_config):
        raise InputError(where, "has no function get_config()",
                         hint="define get_config() returning an ml_collections.ConfigDict")
    return _nested_dicts(config, where)


def _compile(path: Path, where: str) -> types.CodeType:
    try:
        _check_file(path, where)
        return compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise InputError(where, f"{line}is not valid Python", got=error.msg) from error
    except OSError as error:
        raise InputError(where, "cannot be read", got=error.strerror) from error
    except InputError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes; brackets without end
        raise InputError(where, "is not valid Python", got=str(error) or "too deep") from error


def _check_file(path: Path, where: str) -> None:
    if not path.exists():
        near = suggest(path.name, (p.name for p in path.parent.glob("*.py")))
        raise InputError(where, "no such file",
                         hint=f"did you mean {path.with_name(near)}?" if near else None)
    if not path.is_file():
        raise InputError(where, "is not a file", expected="a Python file with get_config()")
    if path.suffix != ".py":
        raise InputError(where, "is not a Python file", got=repr(path.suffix), expected="'.py'")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(where, "is too large", got=f"{path.stat().st_size} bytes",
                         expected=f"at most {MAX_FILE_BYTES}")


def _nested_dicts(config: object, where: str) -> dict[str, Any]:
    from ml_collections import ConfigDict
    from ml_collections.config_dict import RequiredValueError

    try:
        values = config.to_dict() if isinstance(config, ConfigDict) else config
    except RequiredValueError as error:
        raise InputError(where, "a required value is not set", got=error) from error
    if not isinstance(values, dict):
        raise InputError(where, "get_config() returned a wrong type", got=type(config).__name__,
                         expected="an ml_collections.ConfigDict or a dict")
    return _without_config_dicts(values)


def _without_config_dicts(value: Any) -> Any:
    """A plain dict may hold ConfigDicts, in lists too."""
    from ml_collections import ConfigDict

    if isinstance(value, ConfigDict):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _without_config_dicts(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_without_config_dicts(v) for v in value)
    return value
