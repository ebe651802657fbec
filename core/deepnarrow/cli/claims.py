"""`deepnarrow pareto --claims`: what the fronts say in words, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import table
from deepnarrow.errors import shorten
from deepnarrow.report.text import interval, ratio

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.agreement import Agreement
    from deepnarrow.claims import Claims
    from deepnarrow.dominance import Direction
    from deepnarrow.pareto import Front
    from deepnarrow.table import Table


def agreements_of(found: Table, fronts: Sequence[Front]) -> list[tuple[str, Agreement]]:
    """Upstream against the other qualities of `fronts`, by domain."""
    from deepnarrow.agreement import upstream_agreements
    from deepnarrow.table import select

    by_domain: dict[str, dict[str, Direction]] = {}
    for front in fronts:
        by_domain.setdefault(front.modality, {})[front.quality] = front.direction
    return [(domain, one) for domain, qualities in by_domain.items()
            for one in upstream_agreements(select(found, found.domain == domain),
                                           list(qualities.items()))]


def show_agreements(console: Console, made: Sequence[tuple[str, Agreement]]) -> None:
    """Prints one table of all domains."""
    rows = [(domain, one.upstream[0], one.downstream[0], interval(one.kendall, "{:.2f}"),
             interval(one.spearman, "{:.2f}"), one.inverted, one.decided) for domain, one in made]
    if rows:
        console.print(table(["domain", "upstream", "against", "Kendall's tau:", "Spearman's rho:",
                             "turn around:", "of decided pairs:"], rows,
                            "Upstream against downstream, better is positive"))


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
                [(m.shape, m.baseline, ratio(m.cost_ratio), interval(m.difference), m.verdict,
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
