"""More figures: fitted laws with their extrapolation, effects side by side, upstream against
downstream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepnarrow.agreement import Agreement
from deepnarrow.compare import Comparison
from deepnarrow.lawforms import FORMS
from deepnarrow.laws import EXTRAPOLATION, Law, predict
from deepnarrow.report import text
from deepnarrow.report.charts import BLUE, COLORS, INK, MUTED, Spec, log_domain, log_ticks
from deepnarrow.table import Table, mean_by_shape, seed_values, shapes_of

LAW_SIZE = (292, 190)
SCATTER_SIZE = (250, 220)
EFFECT_WIDTH, EFFECT_ROW = 300, 19
BEYOND = 3.0  # how far beyond the extrapolation's limit a line is drawn, dashed
LINE_POINTS = 40
MAX_EFFECTS = 24
MAX_DRAWN = 250
PARTS = ("measured", "up to 10x beyond", "more than 10x beyond")


# --- laws ----------------------------------------------------------------------------------------
def drawn_laws(found: Sequence[Law]) -> list[Law]:
    """The laws that have a chart: identified, of one input; of one pair of axes the power law, or
    a floor where only that is determined.
    """
    places: dict[tuple[str, str], Law] = {}
    for law in found:
        if law.identified and list(law.inputs) == ["x"] and law.form in ("power", "power_floor"):
            places.setdefault((law.y, law.inputs["x"]), law)
    return list(places.values())


def law_chart(law: Law, table: Table) -> Spec:
    """Draws a law of one input over the means that it was fitted to, in log-log axes.

    The line is solid over what was measured, thin to ten times the largest, dashed beyond.
    """
    column = law.inputs["x"]
    shapes = shapes_of(table)
    x, y = mean_by_shape(table, shapes, column), seed_values(table, shapes, law.y).mean
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0))
    stride = max(1, math.ceil(len(known) / MAX_DRAWN))
    points = [{"x": float(x[i]), "y": float(y[i]), "says": f"{text.plain(shapes.names[i])}: "
               f"{text.cost(column, float(x[i]))}, {text.quality(float(y[i]))}"}
              for i in known[::stride]]
    line = _line(law)
    xs = [row["x"] for row in [*points, *line]]
    ys = [row[name] for row in line for name in ("y", "low", "high")] + [p["y"] for p in points]
    x_domain, y_domain = log_domain(xs), log_domain([v for v in ys if v > 0])
    x_axis = {"field": "x", "type": "quantitative", "title": text.cost_title(column),
              "scale": {"type": "log", "domain": x_domain, "nice": False},
              "axis": {"values": log_ticks(*x_domain), "format": ".3~s"}}
    y_axis = {"field": "y", "type": "quantitative", "title": text.plain(
        text.quality_title(law.y), 40), "scale": {"type": "log", "domain": y_domain, "nice": False},
        "axis": {"values": log_ticks(*y_domain), "format": ".3~g"}}
    dots = {"data": {"values": points}, "mark": {
        "type": "point", "filled": True, "size": 34, "color": INK, "opacity": 0.8},
        "encoding": {"x": x_axis, "y": y_axis, "description": {"field": "says", "type": "nominal"}}}
    return {"width": LAW_SIZE[0], "height": LAW_SIZE[1], "title": _law_title(law),
            "layer": [*_line_layers(line, law, x_axis, y_axis), dots]}


def _line(law: Law) -> list[dict[str, Any]]:
    form = next(form for form in FORMS if form.name == law.form)
    low, high = law.ranges["x"]
    limit = EXTRAPOLATION * high
    places = np.unique(np.concatenate([
        np.geomspace(low, high, LINE_POINTS), np.geomspace(high, limit, LINE_POINTS),
        np.geomspace(limit, BEYOND * limit, LINE_POINTS // 2)]))
    middle, lower, upper, far = predict(form, law, places[None])
    rows = []
    for i, place in enumerate(places):
        part = PARTS[2] if far[i] else PARTS[1] if place > high * (1 + 1e-9) else PARTS[0]
        row = {"x": float(place), "y": float(middle[i]), "low": float(max(lower[i], 1e-300)),
               "high": float(upper[i]), "part": part}
        if rows and rows[-1]["part"] != part:
            rows.append({**rows[-1], "part": part})  # so that the parts join
        rows.append(row)
    return rows


def _line_layers(line: list[dict[str, Any]], law: Law, x: Spec, y: Spec) -> list[Spec]:
    limit = EXTRAPOLATION * law.ranges["x"][1]
    parts = {"field": "part", "type": "nominal", "legend": None}
    data = {"data": {"values": line}}
    return [
        {**data, "mark": {"type": "area", "color": BLUE, "opacity": 0.13},
         "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}},
        {**data, "mark": {"type": "line", "color": BLUE},
         "encoding": {"x": x, "y": y, "strokeDash": {**parts, "scale": {
             "domain": PARTS, "range": [[1, 0], [1, 0], [4, 4]]}},
             "strokeWidth": {**parts, "scale": {"domain": PARTS, "range": [2, 1, 1]}}}},
        {"data": {"values": [{"x": limit, "label": "10x beyond"}]},
         "mark": {"type": "rule", "color": MUTED, "strokeDash": [2, 3]}, "encoding": {"x": x}},
        {"data": {"values": [{"x": limit, "label": "10× the largest"}]},
         "mark": {"type": "text", "align": "right", "dx": -4, "y": 8, "fontSize": 9,
                  "color": MUTED}, "encoding": {"x": x, "text": {"field": "label"}}}]


def _law_title(law: Law) -> Spec:
    exponent = law.params["exponent"]
    words = f"{law.form}, exponent {text.interval(exponent, '{:.3f}')}"
    if (exponent.low or 0.0) <= 0 <= (exponent.high or 0.0):
        words += ": no trend shown"
    return {"text": words, "fontSize": 11, "fontWeight": "normal", "anchor": "start", "offset": 6}


# --- domains -------------------------------------------------------------------------------------
def effects_charts(one: Comparison, *, labels: bool = False) -> list[Spec]:
    """One chart a domain: every operator's effect at equal cost, best first, with its interval.

    The first chart names the operators; with `labels` each does.
    """
    best: dict[str, float] = {}
    for effect in one.effects:
        best[effect.operator] = max(best.get(effect.operator, -math.inf),
                                    effect.effect.estimate or 0.0)
    order = sorted(best, key=lambda name: (name not in one.tau.operators, -best[name]))
    order = order[:MAX_EFFECTS]
    shown = {name: text.plain(name, 26) for name in order}
    charts = []
    for k, domain in enumerate(one.qualities):
        rows = [{"operator": shown[e.operator], "value": e.effect.estimate, "low": e.effect.low,
                 "high": e.effect.high, "says": f"{text.plain(e.operator)}, {text.plain(domain)}: "
                 f"{text.interval(e.effect)}"}
                for e in one.effects if e.domain == domain and e.operator in shown]
        charts.append(_effect_chart(rows, list(shown.values()), COLORS[k % len(COLORS)],
                                    _effect_title(one, domain), first=labels or k == 0))
    return charts


def _effect_title(one: Comparison, domain: str) -> str:
    quality = text.quality_title(one.qualities[domain][0])
    return f"{text.plain(domain, 30)}: {text.plain(quality, 40)}"


def _effect_chart(
    rows: list[dict[str, Any]], order: Sequence[str], color: str, title: str, *, first: bool
) -> Spec:
    y = {"field": "operator", "type": "nominal", "sort": None, "title": None,
         "scale": {"domain": list(order)},
         "axis": {"labels": first, "ticks": False, "grid": False, "labelLimit": 170}}
    x = {"type": "quantitative", "title": "better →", "axis": {"tickCount": 5, "format": "~g"},
         "scale": {"nice": True, "zero": True}}
    known = [row for row in rows if row["low"] is not None and row["high"] is not None]
    return {"width": EFFECT_WIDTH, "height": max(60, EFFECT_ROW * len(order)),
            "title": {"text": title, "fontSize": 11, "anchor": "start", "fontWeight": "normal"},
            "layer": [
                {"data": {"values": [{"zero": 0}]},
                 "mark": {"type": "rule", "color": MUTED, "strokeDash": [3, 3]},
                 "encoding": {"x": {**x, "field": "zero"}}},
                {"data": {"values": known}, "mark": {"type": "rule", "color": color,
                                                     "strokeWidth": 1.4},
                 "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}}},
                {"data": {"values": rows},
                 "mark": {"type": "point", "filled": True, "size": 46, "color": color},
                 "encoding": {"y": y, "x": {**x, "field": "value"},
                              "description": {"field": "says", "type": "nominal"}}}]}


# --- upstream against downstream -----------------------------------------------------------------
def agreement_chart(one: Agreement, table: Table) -> Spec:
    """Draws a downstream quality against the upstream one, both better to the top and right."""
    shapes = shapes_of(table)
    up, down = (seed_values(table, shapes, axis[0]).mean for axis in (one.upstream, one.downstream))
    known = np.flatnonzero(np.isfinite(up) & np.isfinite(down))
    stride = max(1, math.ceil(len(known) / MAX_DRAWN))
    rows = [{"x": float(up[i]), "y": float(down[i]), "says": f"{text.plain(shapes.names[i])}: "
             f"{text.quality(float(up[i]))}, {text.quality(float(down[i]))}"}
            for i in known[::stride]]

    def axis(field: str, side: tuple[str, str]) -> Spec:
        words = [text.plain(text.quality_title(side[0]), 38),
                 f"({'lower' if side[1] == 'min' else 'higher'} is better)"]
        return {"field": field, "type": "quantitative", "title": words,
                "scale": {"zero": False, "nice": True, "reverse": side[1] == "min"},
                "axis": {"tickCount": 5, "format": "~g"}}

    words = f"tau {text.interval(one.kendall, '{:.2f}')}"
    if one.decided is not None:
        words += f", {one.inverted} of {one.decided} turn around"
    return {"width": SCATTER_SIZE[0], "height": SCATTER_SIZE[1], "data": {"values": rows},
            "title": {"text": words, "fontSize": 11, "fontWeight": "normal", "anchor": "start"},
            "mark": {"type": "point", "filled": True, "size": 40, "color": BLUE, "opacity": 0.75},
            "encoding": {"x": axis("x", one.upstream), "y": axis("y", one.downstream),
                         "description": {"field": "says", "type": "nominal"}}}
