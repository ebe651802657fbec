"""Which operator made a shape, and what it gains over the reference family at the same cost.

The *reference family* of a domain are the shapes without operators (presets: tiny, mini, small
...), or those that a pattern names. Its curve joins their means by straight lines over log cost. An
operator's *effect* is the quality of its shapes minus that curve at the same cost, better being
positive, inside the curve's range only: nothing is extrapolated. Both are weighted sums of the
shapes' means, so their intervals are exact pooled-t ones (`bootstrap.contrasts`).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from deepnarrow.bootstrap import Uncertain, restrict, uncertain
from deepnarrow.dominance import Direction
from deepnarrow.errors import InputError
from deepnarrow.ops import CORE_OPS
from deepnarrow.table import SeedValues, Table, mean_by_shape, missing, seed_values, shapes_of

FLAGS = ("sh", "skv", "shkv")
DEPTH_SYMBOLS = ("nl", "el", "dl")
PLAIN = ("", "reference", "base", "none")  # of a column `operator`
_TERM = re.compile(r"([a-z]+)(?:\*?[0-9][0-9.]*k?)")
_FIELD = {op.symbol.lower(): op.fields[0] for op in CORE_OPS if op.fields}
# Costs that differ by less are equal: a shape at the edge of the curve's range is inside.
COST_TOLERANCE = 0.05
# A shape is deep-narrow where depth / width is this much above the reference family's at its cost.
DEEPER = 1.25
ALL_SHAPES = "all shapes, least squares over log cost"
FAMILY = "reference family, straight lines over log cost"


@dataclasses.dataclass(frozen=True)
class Family:
    """The shapes of one domain by cost and quality, with operators and the reference curve.

    Attributes:
      domain: its name.
      names: [shapes].
      base: [shapes] the name without operators.
      operator: [shapes] which operator made it; "" for a shape of the reference family.
      cost: [shapes]; all are finite and positive, as are the means of `scores`.
      scores: means over seeds.
      sign: +1 where more quality is better, else -1.
      noise: of the means; None where every shape has one seed.
      reference: [shapes] True for the family that the curve joins.
      deep: [shapes] True for deep-narrow shapes.
      depth: [shapes] layers of all stacks; NaN where the table does not say.
      curve: how the curve is drawn, in words.
      left_out: shapes without a finite cost or quality, and why.
    """

    domain: str
    names: tuple[str, ...]
    base: tuple[str, ...]
    operator: tuple[str, ...]
    cost: np.ndarray
    scores: SeedValues
    sign: float
    noise: Uncertain | None
    reference: np.ndarray
    deep: np.ndarray
    depth: np.ndarray
    curve: str
    left_out: Mapping[str, str]


def family_of(
    table: Table, domain: str, cost: str, quality: str, direction: Direction,
    reference: str | None = None, deep: str | None = None,
) -> Family:
    """Reads the shapes of one domain's rows.

    Args:
      table: the rows of one domain.
      domain: its name.
      cost, quality: columns.
      direction: of the quality.
      reference: pattern (`fnmatch`) of the names in the reference family, instead of those without
        operators.
      deep: pattern of the deep-narrow shapes, instead of those whose depth / width says so.

    Raises:
      InputError: a cost that is not positive, or a pattern that matches nothing.
    """
    shapes = shapes_of(table)
    scores = seed_values(table, shapes, quality)
    places = mean_by_shape(table, shapes, cost)
    if (places <= 0).any():
        bad = int(np.flatnonzero(places <= 0)[0])
        raise InputError(f"cost {cost!r}", "is not positive, and costs are compared as logarithms",
                         got=f"{places[bad]:g} ({shapes.names[bad]})", expected="> 0")
    known = np.flatnonzero(np.isfinite(places) & np.isfinite(scores.mean))
    noise = uncertain(scores) if len(known) else None
    fields = _fields(table)
    bases, operators = _operators(table, shapes.names, shapes.index, fields)
    is_reference = np.array([one == "" for one in operators], dtype=bool)
    curve = FAMILY
    if reference is not None:
        is_reference = matching(reference, shapes.names, "--reference")
    elif is_reference.all() or not is_reference[known].any():
        is_reference[:], curve = True, ALL_SHAPES
        operators = [one or name for one, name in zip(operators, shapes.names, strict=True)]
    is_deep = (matching(deep, shapes.names, "--deep") if deep is not None else
               _deep(fields, places, is_reference, bases, operators, shapes.names))
    return Family(
        domain=domain, names=_at(shapes.names, known), base=_at(bases, known),
        operator=_at(operators, known), cost=places[known], scores=_pick(scores, known),
        sign=1.0 if direction == "max" else -1.0, noise=restrict(noise, known) if noise else None,
        reference=is_reference[known],
        deep=is_deep[known] & ~(is_reference[known] & (curve == FAMILY)),
        depth=fields.get("depth", np.full(len(places), math.nan))[known], curve=curve,
        left_out=missing(table, shapes, {cost: places, quality: scores.mean}))


def _at(values: Sequence[str], places: np.ndarray) -> tuple[str, ...]:
    return tuple([values[int(i)] for i in places])


def _pick(scores: SeedValues, places: np.ndarray) -> SeedValues:
    return SeedValues(tuple(scores.names[i] for i in places), scores.mean[places],
                      scores.sd[places], scores.n[places])


def matching(pattern: str, names: Sequence[str], flag: str) -> np.ndarray:
    """[names] True for those that one of `PATTERN,...` (`fnmatch`, of `flag`) matches.

    Raises:
      InputError: none matches.
    """
    found = np.array([any(fnmatch.fnmatchcase(name, one) for one in pattern.split(","))
                      for name in names], dtype=bool)
    if not found.any():
        raise InputError(flag, "matches no shape", got=pattern,
                         expected="names or patterns with commas between, e.g. 'tiny,small,base*'")
    return found


def operators_of(table: Table) -> dict[str, str]:
    """The operator that made each shape of one domain's rows; "" for one without."""
    shapes = shapes_of(table)
    _, operators = _operators(table, shapes.names, shapes.index, _fields(table))
    return dict(zip(shapes.names, operators, strict=True))


def _fields(table: Table) -> dict[str, np.ndarray]:
    """The shapes' fields that the table has, each [shapes]."""
    shapes = shapes_of(table)
    return {name: mean_by_shape(table, shapes, name)
            for name in (*sorted(set(_FIELD.values())), "depth", "width")
            if name in table.columns and table.columns[name].dtype != object}


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """Splits a shape's name into its base and its operators' terms.

    >>> split_name("tiny-nl8-dm32"), split_name("t5-efficient-base"), split_name("base-sh")
    (('tiny', ('nl8', 'dm32')), ('t5-efficient-base', ()), ('base', ('sh',)))
    """
    parts = name.split("-")
    first = len(parts)
    while first > 1 and (_TERM.fullmatch(parts[first - 1]) or parts[first - 1] in FLAGS):
        first -= 1
    return "-".join(parts[:first]), tuple(parts[first:])


def _operators(
    table: Table, names: Sequence[str], index: np.ndarray, fields: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """The base and the operator of each shape."""
    column = table.columns.get("operator")
    split = [split_name(name) for name in names]
    if column is not None and column.dtype == object:
        first = [str(column[np.flatnonzero(index == i)[0]]) for i in range(len(names))]
        return [base for base, _ in split], ["" if one.lower() in PLAIN else one for one in first]
    places = {name: i for i, name in enumerate(names)}
    return [base for base, _ in split], [
        _relative(terms, i, places.get(base), fields) for i, (base, terms) in enumerate(split)]


def _relative(
    terms: Sequence[str], shape: int, base: int | None, fields: Mapping[str, np.ndarray]
) -> str:
    """`nl8-dm32` on a base of fewer layers and more width -> `nl+ dm-`, so that bases compare."""
    marks = []
    for term in terms:
        match = _TERM.fullmatch(term)
        symbol = match[1] if match else term
        values = fields.get(_FIELD.get(symbol, ""))
        if match is None:
            marks.append(symbol)
        elif base is None or values is None or not np.isfinite(values[[shape, base]]).all():
            return "-".join(terms)
        else:
            marks.append(symbol + ("+" if values[shape] > values[base] else "-"))
    return " ".join(marks)


def _deep(
    fields: Mapping[str, np.ndarray], cost: np.ndarray, reference: np.ndarray, bases: Sequence[str],
    operators: Sequence[str], names: Sequence[str],
) -> np.ndarray:
    if "depth" in fields and "width" in fields:
        with np.errstate(divide="ignore", invalid="ignore"):
            aspect = np.log(fields["depth"] / fields["width"])
        usable = reference & np.isfinite(aspect) & np.isfinite(cost)
        if usable.any():
            order = np.flatnonzero(usable)[np.argsort(cost[usable])]
            expected = np.interp(np.log(cost), np.log(cost[order]), aspect[order])
            return np.nan_to_num(aspect - expected, nan=-1.0) > math.log(DEEPER)
    # Without fields: more layers cost more than the base has; operators on anything else are
    # unknown.
    places = {name: i for i, name in enumerate(names)}
    found = []
    for i, name in enumerate(names):
        terms = split_name(name)[1]
        depth_only = bool(terms) and all(
            (m := _TERM.fullmatch(term)) is not None and m[1] in DEPTH_SYMBOLS for term in terms)
        base = places.get(bases[i])
        found.append(bool(operators[i]) and depth_only and (base is None or cost[i] > cost[base]))
    return np.array(found, dtype=bool)


def beside_line(family: Family) -> int:
    """Shapes more than a line through all of them (a mean at one cost) runs through anyway."""
    own = family.cost[family.reference]
    return len(own) - min(len(np.unique(own)), 2)


def curve_weights(family: Family, cost: float) -> np.ndarray | None:
    """[shapes] the reference curve at `cost` as a weighted sum of the means, or None outside."""
    places = np.log(family.cost)
    target = math.log(cost)
    own = np.flatnonzero(family.reference)
    slack = math.log1p(COST_TOLERANCE)
    low, high = places[own].min(), places[own].max()
    if not low - slack <= target <= high + slack:
        return None
    target = min(max(target, low), high)
    weights = np.zeros(len(places))
    if family.curve == ALL_SHAPES:
        if not beside_line(family):
            return None
        design = np.column_stack([np.ones(len(own)), places[own] - target])
        weights[own] = np.linalg.pinv(design)[0]
        return weights
    levels = np.unique(places[own])
    right = min(int(np.searchsorted(levels, target)), len(levels) - 1)
    left = max(right - 1, 0)
    span = levels[right] - levels[left]
    share = (target - levels[left]) / span if span else 1.0
    for level, part in ((left, 1 - share), (right, share)):
        here = own[places[own] == levels[level]]
        weights[here] += part / len(here)
    return weights


@dataclasses.dataclass(frozen=True)
class Contrasts:
    """Effects as weighted sums: one row an operator.

    Attributes:
      operators: [effects].
      shapes: of each operator, those inside the curve's range.
      outside: shapes with an operator whose cost is outside.
      weights: [effects, shapes] on the means, better being positive.
    """

    operators: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]
    outside: tuple[str, ...]
    weights: np.ndarray


def effect_contrasts(family: Family, among: np.ndarray | None = None) -> Contrasts:
    """Returns the effect of every operator at equal cost, the mean over its shapes.

    Args:
      family: the domain.
      among: [shapes] which to look at; all by default.
    """
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    outside = []
    for i, operator in enumerate(family.operator):
        if not operator or (family.reference[i] and family.curve == FAMILY) or \
                (among is not None and not among[i]):
            continue
        curve = curve_weights(family, float(family.cost[i]))
        if curve is None:
            outside.append(family.names[i])
            continue
        row = -curve
        row[i] += 1
        found.setdefault(operator, []).append((family.names[i], family.sign * row))
    names = tuple(sorted(found))
    weights = np.array([np.mean([row for _, row in found[name]], axis=0) for name in names])
    return Contrasts(names, tuple(tuple(n for n, _ in found[name]) for name in names),
                     tuple(outside), weights.reshape(len(names), len(family.names)))
