"""Typed settings: nested dicts made into dataclasses strictly, `a.b=value` texts laid over them.

Python is lenient where a study must not be: `True` passes for an int, "1e-3" for a number, a
misspelt key for a new one. Here each is an error, and all errors of one input are reported at once.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import types
import typing
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from deepnarrow.errors import InputError, InputErrors, shorten, suggest

T = TypeVar("T")
Keys = tuple[str | int, ...]  # a path through nested tables: names, and indices of lists
MAX_VALUE_CHARACTERS = 10_000
MAX_DEPTH = 20
_BAD: Any = object()  # stands for a value whose error is in the report
_TYPE_NAMES = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}


class Report:
    """Collects the errors of one input and says where each is: in the file, or in a `--set`."""

    def __init__(self, root: str, given: Collection[Keys] = ()):
        self.root, self.given = root, given
        self.errors: list[InputError] = []

    def place(self, keys: Keys) -> str:
        """`quickstart.py: run.log_every`, or `--set run.log_every` where that set it."""
        path = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).lstrip(".")
        if any(keys[:len(k)] == k for k in self.given):
            return f"--set {path}"
        return f"{self.root}: {path}" if path else self.root

    def add(self, keys: Keys, what: str, **facts: Any) -> Any:
        """Notes an error; returns the value that stands for a bad one."""
        self.errors.append(InputError(self.place(keys), what, **facts))
        return _BAD

    def add_unknown(self, keys: Keys, known: Iterable[str], kind: str = "key") -> Any:
        """Notes an unknown last key, with what is near it."""
        names = [str(name) for name in known]
        near = suggest(str(keys[-1]), names)
        return self.add(keys, f"unknown {kind}", expected=f"one of {', '.join(names) or 'none'}",
                        hint=f"did you mean {near}?" if near else None)

    def raise_any(self) -> None:
        """Raises what was noted: an `InputError`, or `InputErrors` of several."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise InputErrors(self.errors)


# --- `--set a.b=value` ----------------------------------------------------------------------------
def parse_settings(texts: Sequence[str], report: Report) -> dict[Keys, Any]:
    """Parses `a.b=value` texts to values by path; a path may be set once, and not inside another.

    >>> parse_settings(["run.log_every=5", "name=tiny study"], Report("example"))
    {('run', 'log_every'): 5, ('name',): 'tiny study'}
    """
    settings: dict[Keys, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        keys = tuple(key.strip().split("."))
        where = f"--set {key.strip()}"
        if not equals or not all(keys):
            report.errors.append(InputError("--set", "is not a setting", got=repr(shorten(text)),
                                            expected="key=value"))
        elif any(keys[:len(k)] == k or k[:len(keys)] == keys for k in settings):
            report.errors.append(InputError(where, "is set twice", hint="keep one of them"))
        elif len(value) > MAX_VALUE_CHARACTERS:
            report.errors.append(InputError(where, "value is too long",
                                            got=f"{len(value)} characters",
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
        with warnings.catch_warnings():  # an odd escape in a string is no program to warn about
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def apply_settings(
    values: Mapping[str, Any], settings: Mapping[Keys, Any], schema: Any, report: Report
) -> dict[str, Any]:
    """Returns `values` with `settings` laid over it; a path must lead to a field of `schema`.

    In free tables (`Mapping[str, Any]`) a value that is there keeps its type, and a new key is
    taken as it is: `config.resolve_options` checks it against the defaults that belong to it.
    """
    result = dict(values)
    for keys, value in settings.items():
        changed = _with_setting(result, schema, keys, 0, value, report)
        result = result if changed is _BAD else changed
    return result


def _with_setting(
    table: Mapping[str, Any], schema: Any, keys: Keys, depth: int, value: Any, report: Report
) -> Any:
    schema, key = _not_none(schema), str(keys[depth])
    here = keys[: depth + 1]
    known = _known_keys(schema, table)
    if known is not None and key not in known:
        return report.add_unknown(here, known)
    inner = _schema_of(schema, key)
    if depth == len(keys) - 1:
        if inner is Any and table.get(key) is not None:
            value = like(table[key], value, here, report)
        return _BAD if value is _BAD else {**table, key: value}
    child = table.get(key, {})
    if not isinstance(child, Mapping) or not _is_table(inner):
        return report.add(here, "is no table here, nothing inside it can be set",
                          got=repr(table.get(key)), hint=f"set {key} as a whole")
    changed = _with_setting(child, inner, keys, depth + 1, value, report)
    return _BAD if changed is _BAD else {**table, key: changed}


def _known_keys(schema: Any, table: Mapping[str, Any]) -> list[str] | None:
    """The keys that may be set in a table; None where any may."""
    if dataclasses.is_dataclass(schema):
        return [field.name for field in dataclasses.fields(schema)]
    return None if _schema_of(schema, "") is Any else list(table)


def _schema_of(schema: Any, key: str) -> Any:
    """The type of what lies under `key`."""
    if dataclasses.is_dataclass(schema):
        return typing.get_type_hints(schema)[key]
    return typing.get_args(schema)[1] if typing.get_origin(schema) is Mapping else Any


def _is_table(schema: Any) -> bool:
    kind = _not_none(schema)
    return kind is Any or dataclasses.is_dataclass(kind) or typing.get_origin(kind) is Mapping


def _not_none(schema: Any) -> Any:
    """Takes `None` off `X | None`."""
    if typing.get_origin(schema) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(schema) if a is not type(None))
    return schema


# --- building dataclasses -------------------------------------------------------------------------
def build(cls: type[T], values: object, where: str) -> T:
    """Builds a dataclass (and those inside it) from nested dicts, strictly by its field types.

    Fields may be `int`, `float` (takes an int), `bool`, `str`, `Literal`, `tuple[X, ...]` (takes a
    list), `Mapping[str, X]`, `X | None`, `X | Literal[...]` (words beside it), `Any` (plain
    JSON-able values) and dataclasses of those.

    Raises:
      InputErrors: every unknown or missing key, wrong type and value out of range, with its path.
    """
    report = Report(where)
    built = build_value(cls, values, (), report)
    report.raise_any()
    return built


def build_value(kind: Any, value: Any, keys: Keys, report: Report) -> Any:
    """Returns `value` as `kind`; what is wrong with it goes to `report`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, keys, report)
    if origin in (typing.Union, types.UnionType):
        return _build_union(arguments, value, keys, report)
    if origin is tuple:
        return _build_tuple(arguments[0], value, keys, report)
    if origin is Mapping:
        return _build_mapping(arguments[1], value, keys, report)
    if origin is Literal:
        return _build_choice(arguments, value, keys, report)
    return plain(value, keys, report) if kind is Any else _scalar(kind, value, keys, report)


def _build_dataclass(cls: Any, value: Any, keys: Keys, report: Report) -> Any:
    if not isinstance(value, Mapping):
        return _wrong_type("a table of settings", value, keys, report)
    hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    before = len(report.errors)
    for key in value:
        if key not in fields:
            report.add_unknown((*keys, str(key)), fields)
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            report.add((*keys, name), "is missing")
    built = {name: build_value(hints[name], value[name], (*keys, name), report)
             for name in fields if name in value}
    if len(report.errors) > before:
        return _BAD
    try:
        return cls(**built)
    except InputError as error:  # a range: the dataclass knows what is wrong, we know the path
        name, _, rest = error.what.partition(" ")
        keys, what = ((*keys, name), rest) if name in fields else (keys, error.what)
        return report.add(keys, what, got=error.got, expected=error.expected, hint=error.hint)


def _build_union(kinds: tuple[Any, ...], value: Any, keys: Keys, report: Report) -> Any:
    """`X | None`, or a type with words beside it: `float | Literal["auto"]`."""
    if value is None and type(None) in kinds:
        return None
    words = [w for k in kinds if typing.get_origin(k) is Literal for w in typing.get_args(k)]
    first = next(k for k in kinds if k is not type(None))
    if not words or not isinstance(value, str):
        return build_value(first, value, keys, report)
    near = suggest(value, words)
    return value if value in words else report.add(
        keys, "is unknown", got=repr(value), expected=f"{_TYPE_NAMES[first]} or {', '.join(words)}",
        hint=f"did you mean {near}?" if near else None)


def _build_tuple(kind: Any, value: Any, keys: Keys, report: Report) -> Any:
    if not isinstance(value, (list, tuple)):
        hint = f"write ({value!r},)" if isinstance(value, (int, str)) and value != "" else None
        return _wrong_type("a tuple or a list", value, keys, report, hint)
    built = tuple(build_value(kind, v, (*keys, i), report) for i, v in enumerate(value))
    return _BAD if any(v is _BAD for v in built) else built


def _build_mapping(kind: Any, value: Any, keys: Keys, report: Report) -> Any:
    if not isinstance(value, Mapping):
        return _wrong_type("a table of settings", value, keys, report)
    for key in value:
        if not isinstance(key, str) or not key.isprintable() or not key or "." in key:
            report.add(keys, "has a key that is no name", got=repr(key))
    built = {key: build_value(kind, v, (*keys, str(key)), report) for key, v in value.items()}
    return _BAD if any(v is _BAD for v in built.values()) else built


def _build_choice(choices: tuple[Any, ...], value: Any, keys: Keys, report: Report) -> Any:
    if not any(type(value) is type(c) and value == c for c in choices):
        near = suggest(value, choices) if isinstance(value, str) else None
        return report.add(keys, "is unknown", got=repr(value),
                          expected=f"one of {', '.join(map(str, choices))}",
                          hint=f"did you mean {near}?" if near else None)
    return value


def _scalar(kind: type, value: Any, keys: Keys, report: Report) -> Any:
    """`bool` is no int, a string is no number; an int is a float."""
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return report.add(keys, "is too large", got=value)
    if type(value) is kind:
        return value
    hint = None
    if isinstance(value, str) and kind in (int, float, bool):
        hint = "write it without quotes" if isinstance(parse_literal(value), kind) else None
    if kind is int and type(value) is float and value.is_integer():
        hint = f"write {int(value)}"
    return _wrong_type(_TYPE_NAMES[kind], value, keys, report, hint)


def _wrong_type(
    expected: str, value: Any, keys: Keys, report: Report, hint: str | None = None
) -> Any:
    return report.add(keys, f"has a wrong type, {type(value).__name__}", got=repr(value),
                      expected=expected, hint=hint)


def plain(value: Any, keys: Keys, report: Report) -> Any:
    """Returns a JSON-able value: lists become tuples, so that it survives a way through JSON."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else report.add(keys, "is not finite", got=value)
    if len(keys) > MAX_DEPTH:
        return report.add(keys[:3], "is nested too deep", expected=f"at most {MAX_DEPTH} levels")
    if isinstance(value, (list, tuple)):
        return _build_tuple(Any, value, keys, report)
    if isinstance(value, Mapping):
        return _build_mapping(Any, value, keys, report)
    return _wrong_type("None, True, False, a number, a string, a tuple or a table", value, keys,
                       report)


# --- options --------------------------------------------------------------------------------------
def like(default: Any, value: Any, keys: Keys, report: Report) -> Any:
    """Returns `value` with the type of `default`; anything plain where that is None.

    A tuple or list keeps the default's kind and, where the default's elements are of one type,
    their type; a table takes known keys only, any where the default is empty.
    """
    if default is None:
        return plain(value, keys, report)
    if isinstance(default, Mapping):
        return _like_table(default, value, keys, report)
    if isinstance(default, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return _wrong_type("a tuple or a list", value, keys, report)
        kinds = {type(v) for v in default}
        model = default[0] if len(kinds) == 1 else None
        items = [like(model, v, (*keys, i), report) for i, v in enumerate(value)]
        return _BAD if any(v is _BAD for v in items) else type(default)(items)
    value = _scalar(type(default), value, keys, report)
    if type(value) is float and not math.isfinite(value):
        return report.add(keys, "is not finite", got=value)
    return value


def _like_table(default: Mapping[str, Any], value: Any, keys: Keys, report: Report) -> Any:
    if not isinstance(value, Mapping) or not default:
        return _build_mapping(Any, value, keys, report)
    merged = dict(default)
    for key, v in value.items():
        if key not in default:
            merged[key] = report.add_unknown((*keys, str(key)), default)
        else:
            merged[key] = like(default[key], v, (*keys, key), report)
    return _BAD if any(v is _BAD for v in merged.values()) else merged
