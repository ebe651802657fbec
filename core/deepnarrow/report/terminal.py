"""Pareto fronts as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from deepnarrow.pareto import Front, FrontPoint
from deepnarrow.report import text

MARK = "●"


def pareto_tables(fronts: Sequence[Front]) -> list[Table]:
    """Returns one table a (modality, quality): a row a shape, a column a cost.

    A cost with a dot after it: the shape is on the front of that cost and the quality.
    """
    groups: dict[tuple[str, str], list[Front]] = {}
    for front in fronts:
        groups.setdefault((front.modality, front.quality), []).append(front)
    return [_table(group) for group in groups.values()]


def _table(group: list[Front]) -> Table:
    one = group[0]
    better = "lower" if one.direction == "min" else "higher"
    table = Table(title=_cell(f"{one.modality}: {text.quality_title(one.quality)}"),
                  title_justify="left", caption=_caption(group), caption_justify="left")
    table.add_column("Shape", no_wrap=True)
    for front in group:
        machine = f" ({front.machine})" if front.machine else ""
        table.add_column(_cell(text.COST_TITLES[front.cost] + machine), justify="right")
    table.add_column(f"Mean ± sd ({better} is better)", justify="right")
    table.add_column("Seeds", justify="right")
    places = [{point.name: point for point in front.points} for front in group]
    known = {name: point for place in places for name, point in place.items()}
    for name, point in known.items():
        costs = [_cost(front, place.get(name)) for front, place in zip(group, places, strict=True)]
        quality = text.quality(point.quality_mean, point.quality_sd)
        table.add_row(_cell(name, 60), *costs, quality, str(point.n))
    return table


def _cost(front: Front, point: FrontPoint | None) -> Text:
    if point is None:
        return Text(text.NONE)
    mark = Text(f" {MARK}", style="bold green") if point.on_front else Text("  ")
    return Text(text.cost(front.cost, point.cost)) + mark


def _caption(group: list[Front]) -> Text:
    missing = list(dict.fromkeys(name for front in group for name in front.left_out))
    shown = ", ".join(text.plain(name, 40) for name in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    note = f"\nNo finite cost or quality: {shown}{more}" if missing else ""
    return Text(f"{MARK} on the Pareto front of that cost{note}")


def _cell(value: object, limit: int = 200) -> Text:
    # `Text` is not markup, so "[bold]" in a name stays those six characters.
    return Text(text.plain(value, limit))
