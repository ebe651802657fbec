"""Pareto fronts as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from deepnarrow.pareto import Front, FrontPoint, JointFront
from deepnarrow.report import text
from deepnarrow.report.tables import left_out, warnings

MARK = "●"
MAX_ROWS = 200


def pareto_tables(fronts: Sequence[Front]) -> list[Table]:
    """Returns one table a (modality, quality): a row a shape, a column a cost.

    A cost with a dot after it: the shape is on the front of that cost and the quality; the number
    after the dot is the probability that it is on the front of the true means.
    """
    groups: dict[tuple[str, str], list[Front]] = {}
    for front in fronts:
        groups.setdefault((front.modality, front.quality), []).append(front)
    return [_table(group) for group in groups.values()]


def _table(group: list[Front]) -> Table:
    one = group[0]
    better = "lower" if one.direction == "min" else "higher"
    where = f"{one.modality}: " if one.modality else ""
    table = Table(title=_cell(f"{where}{text.quality_title(one.quality)}"),
                  title_justify="left", caption=_caption(group), caption_justify="left")
    table.add_column("Shape", no_wrap=True)
    for front in group:
        machine = f" ({front.machine})" if front.machine else ""
        table.add_column(_cell(text.cost_title(front.cost) + machine), justify="right")
    table.add_column(f"Mean ± sd ({better} is better)", justify="right")
    table.add_column("Seeds", justify="right")
    places = [{point.name: point for point in front.points} for front in group]
    known = {name: point for place in places for name, point in place.items()}
    for name, point in list(known.items())[:MAX_ROWS]:
        costs = [_cost(front, place.get(name)) for front, place in zip(group, places, strict=True)]
        quality = text.quality(point.quality_mean, point.quality_sd)
        table.add_row(_cell(name, 60), *costs, quality, str(point.n))
    return table


def _cost(front: Front, point: FrontPoint | None) -> Text:
    if point is None:
        return Text(text.NONE)
    mark = Text(f" {MARK}" if point.on_front else "  ", style="bold green")
    share = Text("" if point.membership is None else f" {point.membership:4.0%}", style="dim")
    return Text(text.cost(front.cost, point.cost)) + mark + share


def _caption(group: list[Front]) -> Text:
    return Text(f"{MARK} on the Pareto front of that cost"
                + ("; %: probability to be on the front of the true means (of the cheapest always "
                   "100%)" if any(front.method for front in group) else "")
                + _warnings(group) + _missing(group)
                + _more(max(len(front.points) for front in group)))


def _missing(group: Sequence[Front | JointFront]) -> str:
    lines = [f"Left out: {text.plain(names, 400)} ({text.plain(why)})"
             for why, names in left_out(group)]
    bad = max(front.non_finite for front in group)
    lines += [f"{text.plural(bad, 'value')} not finite"] if bad else []
    return "".join(f"\n{line}" for line in lines)


def _warnings(group: Sequence[Front]) -> str:
    """What makes a front less than it looks."""
    return "".join(f"\n{line}" for line in warnings(group))


def _more(points: int) -> str:
    return f"\nThe first {MAX_ROWS} of {points} shapes; --json has all" if points > MAX_ROWS else ""


def joint_tables(fronts: Sequence[JointFront]) -> list[Table]:
    """Returns one table a domain: a row a shape, a column an axis."""
    return [_joint_table(front) for front in fronts]


def _joint_table(front: JointFront) -> Table:
    where = f"{front.modality}: " if front.modality else ""
    note = f"{MARK} on the front of all axes together" + _missing([front])
    table = Table(title=_cell(f"{where}joint front"), title_justify="left",
                  caption=_cell(note, 600), caption_justify="left")
    table.add_column("Shape", no_wrap=True)
    for name in front.cost:
        table.add_column(_cell(text.cost_title(name)), justify="right")
    for name, way in zip(front.quality, front.directions[len(front.cost) :], strict=True):
        better = "lower" if way == "min" else "higher"
        table.add_column(_cell(f"{text.quality_title(name)} ({better} is better)"), justify="right")
    table.add_column("Front", justify="right")
    for point in front.points[:MAX_ROWS]:
        costs = [text.cost(name, value)
                 for name, value in zip(front.cost, point.values, strict=False)]
        scores = [text.quality(value) for value in point.values[len(front.cost) :]]
        share = "" if point.membership is None else f" {point.membership:4.0%}"
        table.add_row(_cell(point.name, 60), *costs, *scores,
                      (MARK if point.on_front else " ") + share)
    return table


def _cell(value: object, limit: int = 200) -> Text:
    # `Text` is not markup, so "[bold]" in a name stays those six characters.
    return Text(text.plain(value, limit))
