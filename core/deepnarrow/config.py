"""Configs: a Python file with `get_config()`, made into frozen dataclasses, every error at once.

    load_config("configs/quickstart.py", ["run.log_every=5"])  ->  StudyConfig

A config is code that the user runs on purpose. What a workdir stores is the resolved config as JSON
(`to_json`, `from_json`): nothing is ever executed from there.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from deepnarrow.errors import InputError, InputErrors, shorten, suggest
from deepnarrow.protocol import Protocol, RunOptions

if TYPE_CHECKING:
    from ml_collections import ConfigDict

T = TypeVar("T")
MAX_FILE_BYTES = 1_000_000
MAX_VALUE_CHARACTERS = 10_000
MAX_DEPTH = 20
MAX_NAME = 100
_BAD = object()  # stands for a value whose error is already in the list


@dataclasses.dataclass(frozen=True)
class ModalityStudy:
    """One modality's part of a study.

    Attributes:
      modality: its registered name; in a config the key under `modalities` unless said.
      shapes: shape expressions, e.g. `("tiny", "tiny-nl8")`.
      protocol: budget, optimiser and transfer stages.
      architectures: names of architectures; every shape is built of each.
      options: model options laid over the modality's defaults.
      data: data options laid over the modality's defaults.
    """

    modality: str
    shapes: tuple[str, ...]
    protocol: Protocol
    architectures: tuple[str, ...] = ("transformer",)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_unique("modality", "shapes", self.shapes)
        _check_unique("modality", "architectures", self.architectures)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study: every shape of every modality, once a seed, under one protocol a modality.

    Attributes:
      name: the study's name.
      seeds: pre-training seeds, each in [0, 2^32).
      modalities: the modalities' parts, by key.
      run: how the runs are watched.
    """

    name: str
    seeds: tuple[int, ...]
    modalities: Mapping[str, ModalityStudy]
    run: RunOptions = dataclasses.field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > MAX_NAME or not self.name.isprintable():
            raise InputError("study", "name cannot be used", got=repr(shorten(self.name)),
                             expected=f"1 to {MAX_NAME} printable characters")
        _check_unique("study", "seeds", self.seeds)
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise InputError("study", "a seed is out of range", got=seed,
                                 expected=">= 0 and < 2^32")
        if not self.modalities:
            raise InputError("study", "modalities is empty", expected="at least one modality")


def _check_unique(where: str, name: str, values: Sequence[object]) -> None:
    if not values:
        raise InputError(where, f"{name} is empty", expected="at least one")
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise InputError(where, f"{name} has a value twice", got=twice[0], hint="keep one of them")


# --- loading -----------------------------------------------------------------------------------------
def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Runs a config file and returns the study that it describes.

    Args:
      path: a Python file with `get_config()`, which returns a ConfigDict or a dict.
      overrides: `a.b=value` texts, as `--set` takes them; values are Python literals, bare words are
        strings.

    Raises:
      InputErrors: everything that is wrong with the config and the overrides, at once.
      InputError: the file cannot be read or run.
    """
    values = _run_file(Path(path))
    errors: list[InputError] = []
    settings = parse_settings(overrides, errors)
    values = apply_settings(values, settings, StudyConfig, errors)
    places = {f"{path}: {'.'.join(keys)}": f"--set {'.'.join(keys)}" for keys in settings}
    built = _build(StudyConfig, _name_modalities(values), str(path), errors)
    _raise_all([_moved(error, places.get(error.where, error.where)) for error in errors])
    return built


def _name_modalities(values: dict[str, Any]) -> dict[str, Any]:
    """Fills in `modality`, which is the key unless said otherwise."""
    parts = values.get("modalities")
    if not isinstance(parts, Mapping):
        return values
    named = {key: {"modality": key, **part} if isinstance(part, Mapping) else part
             for key, part in parts.items()}
    return {**values, "modalities": named}


def _run_file(path: Path) -> dict[str, Any]:
    where = f"config '{shorten(path, 120)}'"
    code = _compile(path, where)
    module = types.ModuleType("deepnarrow_config")
    module.__file__ = str(path)
    try:
        # What a config prints must not spoil `--json` on stdout.
        with contextlib.redirect_stdout(sys.stderr):
            exec(code, module.__dict__)  # the user's own code, run on purpose
            get_config = getattr(module, "get_config", None)
            if callable(get_config):
                config = get_config()
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(path)]
        what = f"line {lines[-1] if lines else '?'} raised {type(error).__name__}"
        raise InputError(where, what, got=str(error) or None) from error
    if not callable(get_config):
        raise InputError(where, "has no function get_config()",
                         hint="define get_config() returning an ml_collections.ConfigDict")
    return _plain_config(config, where)


def _compile(path: Path, where: str) -> types.CodeType:
    if not path.exists():
        near = suggest(path.name, _siblings(path))
        raise InputError(where, "no such file",
                         hint=f"did you mean {path.with_name(near)}?" if near else None)
    if not path.is_file():
        raise InputError(where, "is not a file", expected="a Python file with get_config()")
    if path.suffix != ".py":
        raise InputError(where, "is not a Python file", got=repr(path.suffix), expected="'.py'")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(where, "is too large", got=f"{path.stat().st_size} bytes",
                         expected=f"at most {MAX_FILE_BYTES}")
    try:
        return compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise InputError(where, f"{line}is not valid Python", got=error.msg) from error
    except OSError as error:
        raise InputError(where, "cannot be read", got=error.strerror) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(where, "is not valid Python", got=str(error) or "too deep") from error


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []


def _plain_config(config: object, where: str) -> dict[str, Any]:
    """Returns a ConfigDict or dict as plain nested dicts, references resolved."""
    from ml_collections import ConfigDict
    from ml_collections.config_dict import RequiredValueError

    try:
        plain = config.to_dict() if isinstance(config, ConfigDict) else config
    except RequiredValueError as error:
        raise InputError(where, "a required value is not set", got=str(error)) from error
    if not isinstance(plain, dict):
        raise InputError(where, "get_config() returned a wrong type", got=type(config).__name__,
                         expected="an ml_collections.ConfigDict or a dict")
    return plain


# --- `--set` -----------------------------------------------------------------------------------------
def parse_settings(
    texts: Sequence[str], errors: list[InputError]
) -> dict[tuple[str, ...], Any]:
    """Parses `a.b=value` texts to values by path; a path given twice, or inside another, is an error.

    >>> parse_settings(["run.log_every=5", "name=tiny study"], [])
    {('run', 'log_every'): 5, ('name',): 'tiny study'}
    """
    settings: dict[tuple[str, ...], Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        keys = tuple(key.strip().split("."))
        where = f"--set {shorten(key.strip(), 100)}"
        if not equals or not all(keys):
            errors.append(InputError("--set", "is not a setting", got=repr(shorten(text)),
                                     expected="key=value, e.g. run.log_every=5"))
        elif any(keys[:len(k)] == k or k[:len(keys)] == keys for k in settings):
            errors.append(InputError(where, "is set twice", hint="keep one of them"))
        elif len(value) > MAX_VALUE_CHARACTERS:
            errors.append(InputError(where, "value is too long", got=f"{len(value)} characters",
                                     expected=f"at most {MAX_VALUE_CHARACTERS}"))
        else:
            settings[keys] = parse_literal(value)
    return settings


def parse_literal(text: str) -> Any:
    """Reads a Python literal; whatever is none is the text itself.

    >>> [parse_literal(t) for t in ("3", "1e-3", "(1, 2)", "None", "cosine", "'3'")]
    [3, 0.001, (1, 2), None, 'cosine', '3']
    """
    try:
        with warnings.catch_warnings():  # "'\d'" is a string here, not a program to warn about
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def apply_settings(
    values: Mapping[str, Any],
    settings: Mapping[tuple[str, ...], Any],
    schema: Any,
    errors: list[InputError],
) -> dict[str, Any]:
    """Returns `values` with `settings` laid over it.

    A path must lead through tables that exist to a field of `schema`. In free tables (`options`,
    `data`) a value that is there must keep its type; new keys are checked against the modality's
    defaults by `resolve_options`.
    """
    result = dict(values)
    for keys, value in settings.items():
        where = f"--set {'.'.join(keys)}"
        found: list[InputError] = []
        changed = _with_setting(result, schema, keys, value, where, found)
        errors += found
        result = result if found else changed
    return result


def _with_setting(
    table: Mapping[str, Any], schema: Any, keys: tuple[str, ...], value: Any, where: str,
    errors: list[InputError],
) -> dict[str, Any]:
    schema = _table_schema(schema)
    key, *rest = keys
    known = _known_keys(schema, table)
    if known is not None and key not in known:
        errors.append(_unknown(where, "key", key, known))
        return dict(table)
    inner = _schema_of(schema, key)
    if not rest:
        if inner is Any and table.get(key) is not None:
            value = _like(table[key], value, where, errors)
        return {**table, key: value}
    if key not in table and dataclasses.is_dataclass(_table_schema(inner)):
        child: Any = {}
    else:
        child = table.get(key, {} if inner is Any else None)
    if not isinstance(child, Mapping):
        errors.append(InputError(where, f"{key!r} is no table here", got=child,
                                 hint=f"set {key} as a whole"))
        return dict(table)
    return {**table, key: _with_setting(child, inner, tuple(rest), value, where, errors)}


def _table_schema(schema: Any) -> Any:
    """Takes `None` off `Optional[table]`."""
    if typing.get_origin(schema) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(schema) if a is not type(None))
    return schema


def _known_keys(schema: Any, table: Mapping[str, Any]) -> list[str] | None:
    """The keys that may be set in a table; None where any may."""
    if dataclasses.is_dataclass(schema):
        return [field.name for field in dataclasses.fields(schema)]
    return None if _schema_of(schema, "") is Any else list(table)


def _schema_of(schema: Any, key: str) -> Any:
    if isinstance(schema, type) and dataclasses.is_dataclass(schema):
        return typing.get_type_hints(schema)[key]
    if typing.get_origin(schema) is Mapping:
        return typing.get_args(schema)[1]
    return Any


# --- building ----------------------------------------------------------------------------------------
def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a dataclass (and those inside it) from nested dicts, strictly by its field types.

    Fields may be `int`, `float` (takes an int), `bool`, `str`, `Literal`, `tuple[X, ...]` (takes a
    list), `Mapping[str, X]`, `X | None`, `Any` (plain JSON-able values) and dataclasses of those.

    Raises:
      InputErrors: every unknown or missing key, wrong type and value out of range, with its path.
    """
    errors: list[InputError] = []
    built = _build(cls, values, where, errors)
    _raise_all(errors)
    return built


def _raise_all(errors: list[InputError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputErrors(errors)


def _build(kind: Any, value: Any, where: str, errors: list[InputError]) -> Any:
    """Returns `value` as `kind`, or `_BAD` with the reason added to `errors`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where, errors)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _build(_table_schema(kind), value, where, errors)
    if origin is tuple:
        return _build_tuple(arguments[0], value, where, errors)
    if origin is Mapping:
        return _build_mapping(arguments[1], value, where, errors)
    if origin is Literal:
        return _build_choice(arguments, value, where, errors)
    if kind is Any:
        return _plain(value, where, errors)
    return _build_scalar(kind, value, where, errors)


def _build_dataclass(cls: Any, value: Any, where: str, errors: list[InputError]) -> Any:
    if not isinstance(value, Mapping):
        return _wrong(errors, where, value, "a table")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    count = len(errors)
    errors += [_unknown(where, "key", key, fields) for key in value if key not in fields]
    errors += [InputError(where, f"{name!r} is missing") for name, field in fields.items()
               if name not in value and _is_required(field)]
    built = {name: _build(hints[name], value[name], f"{where}: {name}" if count_dots(where) else
             f"{where}.{name}", errors) for name in fields if name in value}
    if len(errors) > count:
        return _BAD
    try:
        return cls(**built)
    except InputError as error:
        errors.append(_moved(error, where))
        return _BAD
