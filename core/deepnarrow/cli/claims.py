"""`deepnarrow pareto --claims`: what the fronts say in words, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import table
from deepnarrow.errors import shorten

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.bootstrap import Interval
    from deepnarrow.claims import DepthLimit, Gain, Match, Saving
    from deepnarrow.pareto import Front
    from deepnarrow.table import Table


@dataclasses.dataclass(frozen=True)
class Claims:
    """All claims of one front's plane."""

    modality: str
    cost: str
    quality: str
    matches: list[Match]
    savings: list[Saving]
    gains: list[Gain]
    depth_limits: list[DepthLimit]


def claims_of(found: Table, fronts: Sequence[Front], margin: float) -> list[Claims]:
    """Returns the claims of each plane; step times of several machines make none."""
    from deepnarrow import claims
    from deepnarrow.operators import family_of
    from deepnarrow.table import select

    made = []
    for front in fronts:
        if front.machine or not front.points:
            continue
        rows = select(found, found.domain == front.modality)
        family = family_of(rows, front.modality, front.cost, front.quality, front.direction)
        made.append(Claims(front.modality, front.cost, front.quality,
                           claims.matches(family, margin), claims.savings(family),
                           claims.gains(family), claims.depth_limits(family)))
    return made


def document(made: Sequence[Claims]) -> list[dict[str, Any]]:
    """The claims as plain values."""
    return [dataclasses.asdict(one) for one in made]


def show(console: Console, made: Sequence[Claims]) -> None:
    """Prints one table a kind of claim."""
    for one in made:
        where = " ".join(shorten(part, 60) for part in (one.modality, one.quality, "by", one.cost)
                         if part)
        if one.matches:
            console.print(table(
                ["shape", "baseline", "of its cost:", "quality minus baseline's:", "verdict",
                 "seeds needed:"],
                [(m.shape, m.baseline, f"{m.cost_ratio:.0%}", interval(m.difference), m.verdict,
                  m.seeds_needed) for m in one.matches[:60]], f"Claims, {where}"))
        if one.savings:
            console.print(table(
                ["baseline", "saved by the other shapes' front at its quality:", ""],
                [(s.baseline, interval(s.saving, "{:.0%}"), "or more" if s.at_least else "")
                 for s in one.savings]))
        if one.gains:
            console.print(table(
                ["operator", "quality per doubling of cost:", "over the front without it:"],
                [(g.operator, interval(g.per_doubling), interval(g.lift)) for g in one.gains]))
        for limit in one.depth_limits:
            end = f"{limit.best.high:.0f}" if limit.best.high is not None else "not seen"
            console.print(f"{shorten(limit.base)}: at equal cost best at {limit.best.estimate:.0f} "
                          f"layers [{limit.best.low or 0:.0f}, {end}]", markup=False)


def interval(one: Interval | None, form: str = "{:+.4g}") -> str:
    """An estimate with its bounds, "?" for a bound outside what was measured."""
    if one is None or (one.estimate is None and one.low is None and one.high is None):
        return "–"
    middle, low, high = ("?" if v is None else form.format(v)
                         for v in (one.estimate, one.low, one.high))
    return middle if low == high == "?" else f"{middle} [{low}, {high}]"
