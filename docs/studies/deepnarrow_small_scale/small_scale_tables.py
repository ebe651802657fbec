"""`numbers.json` as Markdown tables, for the write-up to quote; a pure function of the document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NONE = "–"


def pages(document: Mapping[str, Any]) -> str:
    """All tables, with headings."""
    parts = [
        "# The numbers\n\nMade by `python docs/studies/deepnarrow_small_scale/numbers.py`; not to "
        "be edited. Effects and differences: better is positive. Brackets: 90% intervals; of "
        "DeepNarrow's tests simultaneous 95% ones.",
        _statuses(document["statuses"]), _hypotheses(document["hypotheses"]),
        *(_compared(name, document["hypotheses"][name]) for name in ("H1", "H2", "H3")),
        _width(document["hypotheses"]["H4"]), _transfer(document["hypotheses"]["H6"]),
        _tuning(document["hypotheses"]["H7"]), _slopes(document["slopes"]),
        *(_rates(name, one) for name, one in document["rates"].items()), _cost(document["cost"]),
        *_fronts(document["fronts"])]
    return "\n\n".join(part for part in parts if part)


def number(value: float | None, digits: int = 4) -> str:
    """`value` with so many significant digits, large ones with separators.

    >>> number(None), number(607123.0, 7), number(0.012346)
    ('–', '607,123', '0.01235')
    """
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1e4 and abs(value) < 1e9 else f"{value:.{digits}g}"


def interval(one: Mapping[str, float | None] | None, form: str = "+.4f") -> str:
    """An estimate with its bounds in brackets.

    >>> interval({"estimate": 0.5, "low": 0.25, "high": None}, ".2f")
    '0.50 [0.25, –]'
    """
    if one is None or one["estimate"] is None:
        return NONE
    shown = [NONE if one[k] is None else f"{one[k]:{form}}" for k in ("estimate", "low", "high")]
    return shown[0] if shown[1] == shown[2] == NONE else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """One Markdown table under its heading; empty without rows."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    rule = "|" + "---|" * len(head)
    return "\n".join([f"## {title}", "", f"| {' | '.join(head)} |", rule, *lines]) if lines else ""


# --- what ran and what it says -------------------------------------------------------------------
def _statuses(one: Mapping[str, Any]) -> str:
    words = ("done", "diverged", "failed", "preempted", "missing")
    rows = [(name, mine["planned"], *(mine["trials"].get(word, 0) for word in words),
             ", ".join(f"{trial}: {how}" for trial, how in mine["not_done"].items()) or NONE,
             mine["trials_begun_more_than_once"], sum(mine["tries"].values()),
             ", ".join(mine["tries_not_done"]) or NONE) for name, mine in one["domains"].items()]
    return table(f"Trials: {one['ended']} of {one['planned']} planned have ended", (
        "domain", "planned", *words, "which", "begun more than once", "tries", "tries not done"),
        rows)


def _hypotheses(found: Mapping[str, Any]) -> str:
    rows = [(name, one["hypothesis"], f"**{one['verdict']}**",
             one["so_far"] if one["verdict"] == "not yet" else NONE, one["reason"] or NONE)
            for name, one in found.items()]
    tau = found["H5"].get("tau")
    extra = "" if tau is None else (
        f"\n\nH5's tau of {len(found['H5']['shapes'])} shapes: {interval(tau, '.3f')}, p = "
        f"{number(found['H5']['p'], 3)}.")
    return table("Verdicts", ("", "hypothesis", "verdict", "so far", "reason"), rows) + extra


def _compared(name: str, one: Mapping[str, Any]) -> str:
    if "domains" not in one:
        return ""
    domains = one["domains"]
    effects = {(domain, row["shape"]): row for domain, mine in domains.items()
               for row in mine["effects"]}
    shapes = {shape: row["way"] for (_, shape), row in effects.items()}
    head = ("shape", "made", *(f"{domain}: {mine['quality']}" for domain, mine in domains.items()))
    rows = [(shape, way, *(
        interval(effects.get((domain, shape), {}).get("effect"))
        + ("*" if shape in mine["short_of_seeds"] else "") for domain, mine in domains.items()))
        for shape, way in shapes.items()]
    tests = [(domain, test["shape"], number(test["cost"], 6), number(test["reference_cost"], 6),
              interval(test["difference"]))
             for domain, mine in domains.items() for test in mine["tests"]]
    marks = [f"{domain}: {mine['verdict'] or 'no verdict'}"
             + "".join(f"; {what} {', '.join(mine[key])}" for key, what in (
                 ("outside", "outside the reference's range:"), ("left_out", "left out:"),
                 ("short_of_seeds", "fewer seeds (*):"),
                 ("rate_at_edge", "rate at the edge of its grid:")) if mine[key])
             for domain, mine in domains.items()]
    return "\n\n".join([
        table(f"{name}: effects at equal {one['cost']}", head, rows),
        table(f"{name}: deep-narrow shapes against the uniform curve at 1 / {1 - one['saving']:g} "
              f"of their cost, margin {one['margin']:g}",
              ("domain", "shape", one["cost"], "reference's", "difference"), tests),
        "; ".join(marks) + f". Tau of the effects: {interval(one['tau'], '.3f')}."])


def _width(one: Mapping[str, Any]) -> str:
    rows = [(domain, *(interval(value) for value in mine.values()))
            for domain, mine in one.get("domains", {}).items()]
    head = ("domain", *next(iter(one.get("domains", {}).values()), {}))
    return table("H4: mean effects of three shapes each, in loss", head, rows)


def _transfer(one: Mapping[str, Any]) -> str:
    rows = [(mine["domain"], mine["task"], mine["shapes"], interval(mine["kendall"], ".3f"),
             interval(mine["spearman"], ".3f"),
             NONE if mine["decided"] is None else f"{mine['inverted']} of {mine['decided']}")
            for mine in one.get("tasks", ())]
    return table("H6: upstream's loss against fine-tuned accuracy", (
        "domain", "task", "shapes", "Kendall's tau", "Spearman's rho",
        "pairs turned around, of decided"), rows)


def _tuning(one: Mapping[str, Any]) -> str:
    rows = [(domain, mine["one_rate"], mine["pairs"], len(mine["turned"]), ", ".join(
        f"{' / '.join(pair['shapes'])} ({number(pair['one_rate'], 3)}, {number(pair['tuned'], 3)})"
        for pair in mine["turned"]) or NONE) for domain, mine in one.get("domains", {}).items()]
    return table("H7: pairs on a rung that one rate orders otherwise than tuned rates", (
        "domain", "the one rate", "pairs", "turned around",
        "which (first's loss minus second's: one rate, tuned)"), rows)


def _slopes(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [(one["domain"], one["x"], interval(one["parameters"]["exponent"], ".4f"),
             interval(one["alpha"], ".4f"), one["sizes"], number(one["decades"], 3),
             ", ".join(one["flags"]) or NONE)
            if one["identified"] else (one["domain"], one["x"], NONE, NONE, NONE, NONE,
                                       one["reason"]) for one in found]
    return table("Slopes of upstream's loss, a power law through all shapes", (
        "domain", "against", "exponent", "alpha", "sizes", "decades", "note"), rows)


# --- learning rates, cost ------------------------------------------------------------------------
def _rates(domain: str, one: Mapping[str, Any]) -> str:
    tried = sorted({rate for shape in one["shapes"].values() for rate in shape["losses"]},
                   key=float)
    rows = [(name, f"{shape['chosen']:g}" if shape["chosen"] is not None else NONE,
             shape["edge"] or NONE, number(shape["best"], 5),
             *(_over(shape, rate) for rate in tried)) for name, shape in one["shapes"].items()]
    return table(f"{domain}: losses of the tries over the best", (
        "shape", "chosen", "edge", "best", *tried), rows)


def _over(shape: Mapping[str, Any], rate: str) -> str:
    if rate not in shape["losses"]:
        return NONE
    loss = shape["losses"][rate]
    return "diverged" if loss is None else f"{loss - shape['best']:+.4f}"


def _cost(one: Mapping[str, Any]) -> str:
    rows = [(domain, what, *_bill(mine)) for domain, both in one["domains"].items()
            for what, mine in both.items()] + [("all", "", *_bill(one["all"]))]
    return table("What it cost", ("domain", "", "records", "core hours", "of which building",
                                  "training FLOPs"), rows)


def _bill(one: Mapping[str, Any]) -> tuple[object, ...]:
    return (one["records"], f"{one['core_hours']:.2f}", f"{one['building'] / 3600:.2f}",
            f"{one['flops']:.3g}")


# --- fronts --------------------------------------------------------------------------------------
def _fronts(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table a domain and quality: each shape with its membership on the front of each cost."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for front in found:
        groups.setdefault((front["domain"], front["quality"]), []).append(front)
    return [_front(domain, quality, group) for (domain, quality), group in groups.items()]


def _front(domain: str, quality: str, group: Sequence[Mapping[str, Any]]) -> str:
    by_cost = [{point["shape"]: point for point in front["points"]} for front in group]
    rows = []
    for shape, point in by_cost[0].items():
        cells = [cell for points in by_cost for cell in (
            number(points[shape]["cost"], 6),
            ("**on**, " if points[shape]["on_front"] else "") + number(
                points[shape]["membership"], 3))]
        rows.append((shape, number(point["mean"], 5), number(point["sd"], 2), point["seeds"],
                     *cells))
    head = ("shape", "mean", "sd", "seeds",
            *(cell for front in group for cell in (front["cost"], "on its front, membership")))
    beside = ", ".join(f"{origin} {number(value)}" for origin, value in group[0]["beside"].items())
    lost = ", ".join(f"{shape} ({why})" for shape, why in group[0]["left_out"].items())
    notes = [text for text in (f"Without pre-training: {beside}." if beside else "",
                               f"Left out: {lost}." if lost else "") if text]
    return "\n\n".join([table(f"{domain}: {quality} ({group[0]['direction']})", head, rows),
                        *notes])
