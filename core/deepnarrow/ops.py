"""Shape operators and the expression grammar `base-nl16-ff2k`, both ways.

    expression := preset [ "/" INT ] { "-" term }
    term       := symbol INT [ "k" ]        sets the operator's fields; "k" is x 1024
                | symbol "*" DECIMAL        scales them, rounded half up to an integer, at least 1
                | symbol                    switches a flag on (sh, skv, shkv)

Operators are written in lower case, integers in plain digits without a leading 0. Terms on
different fields commute; a field set twice is an error, never last-wins.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Literal

from deepnarrow.errors import InputError, ShapeError, shorten, suggest
from deepnarrow.lookalikes import character_hint
from deepnarrow.shape import FIELD_LIMITS, FLAG_FIELDS, Preset, Shape

MAX_EXPRESSION = 200
MAX_DIGITS = 9
MAX_FACTOR = 20  # characters of a scaling factor
MAX_OPTION = 1_048_576
_TERM = re.compile(r"([a-z]+)(.*)", re.DOTALL)
_INTEGER = re.compile(r"(0|[1-9][0-9]*)(k?)")
_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class ShapeOp:
    """One operator of the shape algebra. It means the same in every modality.

    Attributes:
      symbol: its name in the field's notation, upper case ("NL"); expressions use lower case.
      fields: the fields of `Shape` it acts on.
      acts_on: those fields in words, for messages ("decoder layers").
      source: where it is defined.
      option: the model option it acts on instead of a field, if any.
    """

    symbol: str
    fields: tuple[str, ...]
    acts_on: str
    source: str
    option: str | None = None

    @property
    def is_flag(self) -> bool:
        """True for operators without a number (SH, SKV, SHKV)."""
        return bool(self.fields) and all(f in FLAG_FIELDS for f in self.fields)

    @property
    def targets(self) -> tuple[str, ...]:
        """Everything it writes: fields, or the one option."""
        return (self.option,) if self.option else self.fields


_PAPER = "Tay et al., Scale Efficiently (ICLR 2022), section 3"
_ASSUMED = "assumption: named in Tay et al. (ICLR 2022), definition unpublished"
CORE_OPS: tuple[ShapeOp, ...] = (
    ShapeOp("NL", ("num_encoder_layers", "num_decoder_layers"), "layers of every stack", _PAPER),
    ShapeOp("EL", ("num_encoder_layers",), "encoder layers", _PAPER),
    ShapeOp("DL", ("num_decoder_layers",), "decoder layers", _PAPER),
    ShapeOp("DM", ("d_model",), "the model width", _PAPER),
    ShapeOp("FF", ("d_ff",), "the MLP width", _PAPER),
    ShapeOp("KV", ("d_kv",), "the width of a head", _PAPER),
    ShapeOp("NH", ("num_heads",), "the number of heads", _PAPER),
    ShapeOp("SH", ("share_heads",), "sharing of queries between heads", _ASSUMED),
    ShapeOp("SKV", ("share_kv",), "sharing of keys and values between heads", _ASSUMED),
    ShapeOp("SHKV", ("share_heads", "share_kv"), "sharing of all projections", _ASSUMED),
)


@dataclasses.dataclass(frozen=True)
class Term:
    """One operator with its value: `nl16` is ("NL", "set", 16), `nl*1.5` ("NL", "scale", 3/2).

    `column` is where it stood, counted from 1, if anybody wrote it.
    """

    symbol: str
    action: Literal["set", "scale", "flag"]
    value: Fraction = Fraction(1)
    column: int | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        if self.action == "flag":
            return self.symbol.lower()
        number = format_decimal(self.value)
        return f"{self.symbol.lower()}{'*' if self.action == 'scale' else ''}{number}"


@dataclasses.dataclass(frozen=True)
class Expression:
    """A parsed expression; `str(expression)` is its canonical form and parses back to it.

    `text` is what was parsed, for messages.
    """

    preset: str
    suffix: int | None = None
    terms: tuple[Term, ...] = ()
    text: str = dataclasses.field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        head = self.preset if self.suffix is None else f"{self.preset}/{self.suffix}"
        return "-".join([head, *map(str, self.terms)])


@dataclasses.dataclass(frozen=True)
class NamedShape:
    """What an expression stands for.

    Attributes:
      name: canonical.
      shape: the shape.
      overrides: the model options that come with it: those that the name fixes, and the preset's
        defaults.
      fixed: those of `overrides` that the name fixes: a suffix, an operator on an option,
        everything that comes with a released name. The others are only defaults.
      operators: symbols of the name's operators on fields of the shape; an architecture must know
        them. Operators on an option are the modality's own affair.
    """

    name: str
    shape: Shape
    overrides: Mapping[str, int]
    fixed: frozenset[str] = frozenset()
    operators: tuple[str, ...] = ()

    def options(self, given: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Lays `given` over the preset's defaults and returns all options that are then set.

        Args:
          given: model options that somebody else sets.
          place: what stands before an option's name in an error, e.g. `--set `.

        Raises:
          InputError: `given` contradicts what the name fixes.

        >>> shape = Shape(12, 0, d_model=384, d_ff=1536, d_kv=64, num_heads=6)
        >>> NamedShape("S", shape, {"patch_size": 16}).options({"patch_size": 32}, "--set ")
        {'patch_size': 32}
        """
        for option in given.keys() & self.fixed:
            if given[option] != self.overrides[option]:
                raise InputError(f"{place}{option}", f"the name {self.name!r} sets this option",
                                 got=given[option], expected=self.overrides[option])
        return {**self.overrides, **given}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The names an expression may use in one modality.

    Attributes:
      owner: the modality's name, for messages.
      presets: open names, which take operators.
      catalogue: closed names of released checkpoints, which take none.
      ops: operators by symbol.
      options: names of the modality's model options.
      suffix_option: the option that `/16` sets, or None.
      open_name: gives the open expression that a closed name stands for or would stand for, by the
        rules of the released names; None where it knows none.
    """

    owner: str
    presets: Mapping[str, Preset]
    catalogue: Mapping[str, Preset]
    ops: Mapping[str, ShapeOp]
    options: frozenset[str] = frozenset()
    suffix_option: str | None = None
    open_name: Callable[[str], str | None] | None = None


def format_decimal(value: Fraction) -> str:
    """Writes a fraction that came from a decimal: no exponent, no trailing 0.

    >>> format_decimal(Fraction("1.50")), format_decimal(Fraction(16))
    ('1.5', '16')
    """
    if value.denominator == 1:
        return str(value.numerator)
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = str((value * 10**places).numerator).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}"


def resolve(text: str, vocabulary: Vocabulary) -> NamedShape:
    """Returns the shape that `text` stands for.

    Args:
      text: an expression such as `base-nl16-ff2k`, `S/16-nl24`, or a released name.
      vocabulary: the modality's names.

    Raises:
      ShapeError: with the column of the fault, what is allowed and a suggestion. No string at all
        raises anything else.
    """
    if text in vocabulary.catalogue:
        preset = vocabulary.catalogue[text]
        return NamedShape(text, preset.shape, preset.overrides, frozenset(preset.overrides))
    return apply(parse(text, vocabulary), vocabulary)


def parse(text: str, vocabulary: Vocabulary) -> Expression:
    """Parses `text`; terms come back in the operators' own order, whatever order they stand in."""
    _check_characters(text)
    _check_closed(text, vocabulary)
    return _parse_open(text, vocabulary)


def _parse_open(text: str, vocabulary: Vocabulary) -> Expression:
    preset, rest = _split_preset(text, vocabulary)
    suffix, tail = _split_suffix(text, rest, vocabulary)
    terms: list[Term] = []
    column = len(text) - len(tail) + 2  # of the first term, counted from 1
    # The tail is "" or "-nl16-ff2k": each term is looked at where it stands, for its column.
    for token in tail.split("-")[1:] if tail else ():
        terms.append(_parse_term(text, token, column, vocabulary))
        _check_twice(text, terms, column, vocabulary)
        column += len(token) + 1
    order = list(vocabulary.ops)
    terms.sort(key=lambda term: order.index(term.symbol))
    return Expression(preset, suffix, tuple(terms), text)


def apply(expression: Expression, vocabulary: Vocabulary) -> NamedShape:
    """Applies an expression's terms to its preset."""
    name = str(expression)
    preset = vocabulary.presets[expression.preset]
    overrides = dict(preset.overrides)
    fixed: set[str] = set()
    if expression.suffix is not None and vocabulary.suffix_option:
        overrides[vocabulary.suffix_option] = expression.suffix
        fixed.add(vocabulary.suffix_option)
    shape = preset.shape
    for term in expression.terms:
        op, where = vocabulary.ops[term.symbol], _where(expression.text or name, term.column)
        if op.option:
            overrides[op.option] = _option_value(where, op, term, overrides)
            fixed.add(op.option)
        else:
            shape = apply_term(shape, op, term, where=where, owner=vocabulary.owner)
    operators = tuple(t.symbol for t in expression.terms if not vocabulary.ops[t.symbol].option)
    return NamedShape(name, shape, overrides, frozenset(fixed), operators)


def apply_term(shape: Shape, op: ShapeOp, term: Term, *, where: str, owner: str) -> Shape:
    """Applies one operator to a shape.

    An operator on layers acts on the stacks that exist; one whose stacks all have 0 layers does not
    apply.

    Raises:
      ShapeError: the operator does not apply, or its value is out of the field's range.
    """
    if op.is_flag:
        return shape.replace(**dict.fromkeys(op.fields, True))
    fields = [f for f in op.fields if getattr(shape, f) > 0]
    if not fields:
        raise ShapeError(where, f"{op.symbol.lower()} acts on {op.acts_on}; {owner} has none",
                         hint="leave it out, or use el or nl for the encoder")
    values = {f: _field_value(where, op, term, getattr(shape, f), f) for f in fields}
    return shape.replace(**values)


def round_half_up(value: Fraction) -> int:
    """Rounds to the nearest integer, halves up, and never below 1: the rule of scaling operators.

    >>> [round_half_up(Fraction(v)) for v in ("0.2", "2.4", "2.5", "3.5")]
    [1, 2, 3, 4]
    """
    return max(1, (2 * value.numerator + value.denominator) // (2 * value.denominator))


def _field_value(where: str, op: ShapeOp, term: Term, current: int, field: str) -> int:
    value = int(term.value) if term.action == "set" else round_half_up(current * term.value)
    high = FIELD_LIMITS[field][1]
    if not 1 <= value <= high:
        raise ShapeError(where, f"{op.symbol.lower()} is out of range for {field}", got=value,
                         expected=f"1..{high}", hint=f"{op.symbol.lower()}{high} is the most")
    return value


def _option_value(where: str, op: ShapeOp, term: Term, overrides: Mapping[str, int]) -> int:
    assert op.option is not None
    if term.action == "scale" and op.option not in overrides:
        raise ShapeError(where, f"{op.symbol.lower()}* has no value to scale",
                         expected=f"{op.symbol.lower()} with a number")
    scaled = overrides.get(op.option, 1) * term.value
    value = int(term.value) if term.action == "set" else round_half_up(scaled)
    if not 1 <= value <= MAX_OPTION:
        raise ShapeError(where, f"{op.symbol.lower()} is out of range", got=value,
                         expected=f"1..{MAX_OPTION}",
                         hint=f"{op.symbol.lower()}{MAX_OPTION} is the most")
    return value


def _where(text: str, column: int | None = None) -> str:
    place = f"shape '{shorten(text, 60)}'"
    return place if column is None else f"{place}, column {column}"


def _check_characters(text: str) -> None:
    if not text.strip():
        raise ShapeError(_where(text), "no shape given", expected="a preset, then operators",
                         hint="e.g. base-nl16")
    if len(text) > MAX_EXPRESSION:
        raise ShapeError(_where(text), "expression too long", got=f"{len(text)} characters",
                         expected=f"at most {MAX_EXPRESSION}")
    for column, char in enumerate(text, start=1):
        if not (char.isascii() and (char.isalnum() or char in "-*./_")):
            raise ShapeError(_where(text, column), f"character U+{ord(char):04X} is not allowed",
                             expected="a-z, A-Z, 0-9 and - * . / _", hint=character_hint(char))


def _check_closed(text: str, vocabulary: Vocabulary) -> None:
    """Released names take no operators, and an unreleased one is no name."""
    owners = [n for n in vocabulary.catalogue
              if text.startswith(n) and text[len(n):][:1] in ("-", "/")]
    if not owners:
        return
    owner = max(owners, key=len)
    column = len(owner) + 1
    raise ShapeError(_where(text, column), "no checkpoint of that name is released; "
                     f"{owner} is a released name and takes no operators",
                     hint=_open_hint(text, owners, vocabulary))


def _open_hint(text: str, owners: list[str], vocabulary: Vocabulary) -> str | None:
    """An open expression that works and means what the closed name tried to say."""
    guesses: list[str | None] = []
    for owner in sorted(owners, key=len, reverse=True):
        open_name = vocabulary.catalogue[owner].open_name
        guesses += [f"{open_name}{text[len(owner):]}"] if open_name else []
    if vocabulary.open_name:
        # The plain size alone says less than the rules for whole names; a longer name says more.
        guesses.insert(len(owners) - 1, vocabulary.open_name(text))
    for guess in filter(None, guesses):
        try:
            expression = _parse_open(guess, vocabulary)
            return f"the open name is {apply(expression, vocabulary).name}"
        except ShapeError:
            continue
    near = suggest(text, vocabulary.catalogue)
    return f"did you mean {near}?" if near else None


def _split_preset(text: str, vocabulary: Vocabulary) -> tuple[str, str]:
    """Takes the longest preset name off the front (names may contain "-": `g-opt`)."""
    fits = [n for n in vocabulary.presets if text.startswith(n) and text[len(n):][:1] in "-/"]
    if fits:
        preset = max(fits, key=len)
        return preset, text[len(preset):]
    word = re.split(r"[-/]", text)[0]
    match = _TERM.fullmatch(word.lower())
    if match and _symbol_of(match[1], vocabulary):
        first = next(iter(vocabulary.presets))
        raise ShapeError(_where(text, 1),
                         f"starts with an operator, not a preset of {vocabulary.owner}",
                         got=repr(shorten(word)), expected=_preset_names(vocabulary),
                         hint=f"write the preset first: {first}-{shorten(text, 40)}")
    near = _near_preset(word, vocabulary)
    rest = text[len(word):]
    if near is None and (near := suggest(text, vocabulary.catalogue)):
        word, rest = text, ""
    raise ShapeError(_where(text, 1), f"unknown preset of {vocabulary.owner}",
                     got=repr(shorten(word)), expected=_preset_names(vocabulary),
                     hint=f"did you mean {near}{shorten(rest, 40)}?" if near else None)


def _preset_names(vocabulary: Vocabulary) -> str:
    names = f"one of {', '.join(vocabulary.presets)}"
    return f"{names}, or a released name" if vocabulary.catalogue else names


def _near_preset(word: str, vocabulary: Vocabulary) -> str | None:
    """The preset `word` is near to: in another case, with the suffix run in ("B16"), misspelt."""
    by_lower = {name.lower(): name for name in vocabulary.presets}
    letters = word.rstrip("0123456789")
    if word.lower() in by_lower:
        return by_lower[word.lower()]
    if vocabulary.suffix_option and letters != word and letters.lower() in by_lower:
        return f"{by_lower[letters.lower()]}/{word[len(letters):]}"
    return suggest(word, vocabulary.presets)


def _split_suffix(text: str, rest: str, vocabulary: Vocabulary) -> tuple[int | None, str]:
    if not rest.startswith("/"):
        return None, rest
    column = len(text) - len(rest) + 1
    if vocabulary.suffix_option is None:
        raise ShapeError(_where(text, column), f"'/' means nothing in {vocabulary.owner}",
                         hint=f"write {text[: column - 1]}")
    token, dash, tail = rest[1:].partition("-")
    if "/" in token:
        raise ShapeError(_where(text, column + 1 + token.index("/")), "a second '/'",
                         expected="one, right after the preset", hint=f"write {text[:column - 1]}/"
                         f"{token.partition('/')[0]}")
    value = _parse_integer(text, token, column + 1, f"'/' ({vocabulary.suffix_option})", MAX_OPTION)
    return value, dash + tail


def _symbol_of(word: str, vocabulary: Vocabulary) -> str | None:
    return word.upper() if word.upper() in vocabulary.ops else None


def _parse_term(text: str, token: str, column: int, vocabulary: Vocabulary) -> Term:
    if "/" in token and vocabulary.suffix_option:
        raise ShapeError(_where(text, column + token.index("/")), "'/' stands in the wrong place",
                         expected=f"right after the preset, e.g. {text.split('-')[0]}/16-nl4"
                         if "/" not in text.split("-")[0] else "once, right after the preset")
    match = _TERM.fullmatch(token)
    symbol = _symbol_of(match[1], vocabulary) if match else None
    if match is None or symbol is None:
        raise _unknown_term(text, token, column, vocabulary)
    op, value, name = vocabulary.ops[symbol], match[2], match[1]
    _check_option(text, op, column, vocabulary)
    if op.is_flag:
        if value:
            raise ShapeError(_where(text, column), f"{name} is a flag and takes no value",
                             got=repr(shorten(value)), expected=name)
        return Term(symbol, "flag", column=column)
    if value.startswith("*"):
        factor = _parse_decimal(text, value[1:], column + len(name) + 1, name)
        return Term(symbol, "scale", factor, column)
    high = MAX_OPTION if op.option else min(FIELD_LIMITS[f][1] for f in op.fields)
    number = _parse_integer(text, value, column + len(name), name, high)
    return Term(symbol, "set", Fraction(number), column)


def _check_option(text: str, op: ShapeOp, column: int, vocabulary: Vocabulary) -> None:
    if op.option and op.option not in vocabulary.options:
        raise ShapeError(_where(text, column),
                         f"{op.symbol.lower()} acts on {op.acts_on}; {vocabulary.owner} has none")


def _unknown_term(text: str, token: str, column: int, vocabulary: Vocabulary) -> ShapeError:
    known = [s.lower() for s in vocabulary.ops]
    if not token:
        return ShapeError(_where(text, column), "an operator is missing after '-'",
                          expected=f"one of {', '.join(known)}")
    lower = _TERM.fullmatch(token.lower())
    if lower and _symbol_of(lower[1], vocabulary):
        return ShapeError(_where(text, column), "operators are written in lower case",
                          got=repr(shorten(token)), expected=repr(shorten(token.lower())))
    near = suggest(lower[1] if lower else token, known)
    return ShapeError(_where(text, column), "unknown operator", got=repr(shorten(token)),
                      expected=f"one of {', '.join(known)}",
                      hint=f"did you mean {near}?" if near else None)


def _parse_integer(text: str, token: str, column: int, name: str, high: int) -> int:
    match = _INTEGER.fullmatch(token)
    if match is None:
        what = f"{name} needs a positive integer in plain digits 0-9 without a leading 0"
        seen = token or text[column - 1:]  # of nl-5 the token ends before the dash
        raise ShapeError(_where(text, column), what, got=repr(shorten(seen)),
                         expected=f"1..{high}, or a number with k for x 1024")
    value = int(match[1]) * (1024 if match[2] else 1) if len(match[1]) <= MAX_DIGITS else None
    if value is None or not 1 <= value <= high:
        bound = f"{name} must be at least 1" if value == 0 else f"{name} must be at most {high}"
        raise ShapeError(_where(text, column), bound, got=shorten(token), expected=f"1..{high}")
    return value


def _parse_decimal(text: str, token: str, column: int, name: str) -> Fraction:
    if len(token) > MAX_FACTOR:
        raise ShapeError(_where(text, column), f"{name}* has too long a factor",
                         got=f"{len(token)} characters", expected=f"at most {MAX_FACTOR}")
    if _DECIMAL.fullmatch(token) is None or Fraction(token) == 0:
        raise ShapeError(_where(text, column), f"{name}* needs a positive decimal factor",
                         got=repr(shorten(token or text[column - 1:])), expected="e.g. 2 or 1.5")
    return Fraction(token)


def _check_twice(text: str, terms: list[Term], column: int, vocabulary: Vocabulary) -> None:
    *before, last = terms
    targets = set(vocabulary.ops[last.symbol].targets)
    for term in before:
        both = targets & set(vocabulary.ops[term.symbol].targets)
        if both:
            raise ShapeError(_where(text, column),
                             f"{last.symbol.lower()} and {term.symbol.lower()} both set "
                             f"{', '.join(sorted(both))}", hint="keep one of them")
