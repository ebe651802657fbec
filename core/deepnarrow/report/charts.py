"""The figures: Vega-Lite specifications, which `render.py` draws.

They are plain dicts: to build them through Altair took three times as long as to draw them (it
validates and copies every part); the tests validate them with Altair instead. Every chart has a
fixed size and explicit scales, so that labels can be placed where they fit. Colours are Okabe and
Ito's (2008), distinguishable with any colour vision.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepnarrow.pareto import Front, FrontPoint
from deepnarrow.report import text
from deepnarrow.report.tables import Curve

Spec = dict[str, Any]  # of Vega-Lite
FRONT_SIZE = (292, 208)  # pixels of the plot area: width, height
CURVE_SIZE = (352, 210)
MAX_POINTS = 200  # of a front, drawn; the front itself always is
MAX_CURVES = 21
MAX_STEPS = 160  # points of a curve, drawn
LABEL_LIMIT = 22
CHARACTER = 5.6  # pixels, mean width at the labels' size

INK, MUTED, GRID, BLUE = "#1f2933", "#5f6b7a", "#e4e8ed", "#0072B2"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ([1, 0], [6, 3], [2, 2])
WARN, RAW = "#a34700", "raw inputs"
COST_AXES = {
    "params_non_embedding": "Non-embedding parameters",
    "flops_forward_per_example": "Forward FLOPs per example",
    "step_time_s": "Median step time (ms)",
}


# --- fronts --------------------------------------------------------------------------------------
def drawn_points(front: Front) -> list[FrontPoint]:
    """Returns the points of `front` that its chart shows: positive costs, the rest thinned."""
    points = [point for point in front.points if point.cost > 0]
    others = [point for point in points if not point.on_front]
    stride = max(1, math.ceil(len(others) / MAX_POINTS))
    keep = {id(point) for point in others[::stride]}
    return [point for point in points if point.on_front or id(point) in keep]


def front_chart(front: Front) -> Spec:
    """Draws quality against cost (log): shapes, sd over training seeds, the front as steps."""
    points = drawn_points(front)
    scale = 1e3 if front.cost == "step_time_s" else 1.0  # seconds -> ms
    rows = [{"name": text.plain(p.name), "x": p.cost * scale, "y": p.quality_mean,
             "low": p.quality_mean - (p.quality_sd or 0),
             "high": p.quality_mean + (p.quality_sd or 0),
             "front": p.on_front, "says": _describe(front, p)} for p in points]
    x_domain = log_domain([row["x"] for row in rows])
    raw = [front.beside["raw"]] if "raw" in front.beside else []
    y_domain = linear_domain([row[end] for row in rows for end in ("low", "high")] + raw)
    x = {"field": "x", "type": "quantitative", "title": _cost_title(front),
         "scale": {"type": "log", "domain": x_domain, "nice": False},
         "axis": {"values": log_ticks(*x_domain), "format": ".3~s",
                  "labelExpr": _label_expression(front.cost)}}
    y = {"field": "y", "type": "quantitative", "title": _quality_title(front),
         "scale": {"domain": y_domain, "nice": False, "zero": False},
         "axis": {"tickCount": 5, "format": "~g"}}
    return {"width": FRONT_SIZE[0], "height": FRONT_SIZE[1],
            "layer": [*_raw_layers(raw, y), *_front_layers(
                rows, _labels(rows, x_domain, y_domain, raw), x, y)]}


def _raw_layers(raw: Sequence[float], y: Spec) -> list[Spec]:
    """A line where raw inputs are: below it features are worse than none."""
    data = {"data": {"values": [{"y": value, "label": RAW} for value in raw]}}
    return [{**data, "mark": {"type": "rule", "color": WARN, "strokeDash": [5, 3]},
             "encoding": {"y": y}},
            {**data, "mark": {"type": "text", "align": "right", "x": FRONT_SIZE[0] - 3, "dy": -6,
                              "fontSize": 9, "color": WARN},
             "encoding": {"y": y, "text": {"field": "label", "type": "nominal"}}}] if raw else []


def _front_layers(
    rows: list[dict[str, Any]], labels: Mapping[int, dict[str, Any]], x: Spec, y: Spec
) -> list[Spec]:
    named = {"values": [{**rows[i], **label} for i, label in labels.items()]}
    label = {"type": "text", "fontSize": 10, "baseline": "middle",
             **{name: {"expr": f"datum.{name}"} for name in ("align", "dx", "dy")}}
    words = {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}}
    return [
        {"data": {"values": [row for row in rows if row["front"]]}, "encoding": {"x": x, "y": y},
         "mark": {"type": "line", "interpolate": "step-after", "color": BLUE, "strokeWidth": 1.5,
                  "opacity": 0.55}},
        {"data": {"values": [row for row in rows if row["high"] > row["low"]]},
         "mark": {"type": "rule", "strokeWidth": 1},
         "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"},
                      "color": _front_color(BLUE, "#9aa5b1")}},
        {"data": {"values": rows},
         "mark": {"type": "point", "size": 52, "strokeWidth": 1.4, "opacity": 1, "filled": True},
         "encoding": {"x": x, "y": y, "fill": _front_color(BLUE, "#ffffff"),
                      "stroke": _front_color(BLUE, "#7b8794"),
                      "description": {"field": "says", "type": "nominal"}}},
        # White first: a label stays readable over the grid.
        {"data": named, "mark": {**label, "stroke": "white", "strokeWidth": 2}, "encoding": words},
        {"data": named, "mark": label, "encoding": {**words, "color": _front_color(INK, MUTED)}},
    ]


def _labels(
    rows: Sequence[Mapping[str, Any]], x_domain: Sequence[float], y_domain: Sequence[float],
    raw: Sequence[float],
) -> dict[int, dict[str, Any]]:
    """Labels for shapes on the front first, for the others where there are few."""
    def pixel(x: float, y: float) -> tuple[float, float]:
        return (_place(math.log(x), *map(math.log, x_domain)) * FRONT_SIZE[0],
                (1 - _place(y, *y_domain)) * FRONT_SIZE[1])

    points = [pixel(row["x"], row["y"]) for row in rows]
    front = [i for i, row in enumerate(rows) if row["front"]]
    others = [i for i, row in enumerate(rows) if not row["front"] and len(rows) <= 24]
    lines = [(*pixel(row["x"], row["high"]), *pixel(row["x"], row["low"])) for row in rows]
    reach = [(bottom - top) / 2 for _, top, _, bottom in lines]
    for (x, y), (next_x, next_y) in itertools.pairwise(points[i] for i in front):
        lines += [(x, y, next_x, y), (next_x, min(y, next_y), next_x, max(y, next_y))]
    height = [(1 - _place(value, *y_domain)) * FRONT_SIZE[1] for value in raw]
    lines += [(0, y, FRONT_SIZE[0], y) for y in height]
    lines += [(FRONT_SIZE[0] - len(RAW) * CHARACTER, y - 12, FRONT_SIZE[0], y) for y in height]
    names = {i: text.plain(rows[i]["name"], LABEL_LIMIT) for i in front + others}
    return place_labels(points, names, FRONT_SIZE, reach, lines)


def _front_color(yes: str, no: str) -> Spec:
    return {"condition": {"test": "datum.front", "value": yes}, "value": no}


def _describe(front: Front, point: FrontPoint) -> str:
    seeds = f"{point.n} seed" + ("s" if point.n != 1 else "")
    place = "on the front" if point.on_front else "dominated"
    return (f"{text.plain(point.name)}: {text.cost(front.cost, point.cost)}, "
            f"{text.quality(point.quality_mean, point.quality_sd)} ({seeds}), {place}")


def _cost_title(front: Front) -> str:
    title = COST_AXES.get(front.cost, text.cost_title(front.cost))
    return f"{title}, {text.plain(front.machine, 40)}" if front.machine else title


def _quality_title(front: Front) -> list[str]:
    better = "lower" if front.direction == "min" else "higher"
    return [text.plain(text.quality_title(front.quality), 44), f"({better} is better)"]


def _label_expression(cost: str) -> str:
    # Parameters are counted in billions (B), everything else in SI's giga (G).
    return "replace(datum.label, 'G', 'B')" if cost.startswith("params") else "datum.label"


def _place(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def linear_domain(values: Sequence[float]) -> list[float]:
    """Linear limits around `values` with room for labels; never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    return [low - room, high + room]


def log_domain(values: Sequence[float]) -> list[float]:
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    room = max((high / low) ** 0.14, 1.12)
    return [low / room, high * room]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: the coarsest choice that has three within limits.

    >>> log_ticks(90, 2e6)
    [100.0, 1000.0, 10000.0, 100000.0, 1000000.0]
    >>> log_ticks(2.1e5, 9e5)
    [300000.0, 400000.0, 600000.0, 800000.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6, 8)):
        ticks = [float(f"{m}e{d}") for d in decades for m in mantissas]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 7)]
    # Less than a factor of two: three numbers of two digits.
    step = 10.0 ** math.floor(math.log10(high - low)) / 2
    while (high - low) / step > 5:
        step *= 2
    multiples = range(math.ceil(low / step), math.floor(high / step) + 1)
    ticks = [float(f"{i * step:.6g}") for i in multiples]
    return [tick for tick in ticks if low <= tick <= high]


def place_labels(
    points: Sequence[tuple[float, float]], names: Mapping[int, str], size: tuple[int, int],
    reach: Sequence[float], lines: Sequence[tuple[float, float, float, float]] = (),
) -> dict[int, dict[str, Any]]:
    """Finds a place beside each point where its label covers no point, line or other label.

    Args:
      points: pixels of every point, y downwards.
      names: labels by index of their point, the important ones first.
      size: the plot's width and height.
      reach: how far each point's error bar goes up and down.
      lines: horizontal and vertical ones, as (left, top, right, bottom).

    Returns:
      By index: `label`, `align`, `dx`, `dy`; a label that fits nowhere is left out.
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points] + list(lines)
    found: dict[int, dict[str, Any]] = {}
    for i, name in names.items():
        x, y = points[i]
        length = len(name) * CHARACTER
        for align, dx, dy in _places(reach[i]):
            left = x + dx - {"left": 0.0, "center": length / 2, "right": length}[align]
            box = (left, y + dy - 7, left + length, y + dy + 7)
            inside = box[0] >= 1 and box[1] >= 0 and box[2] <= size[0] + 12 and box[3] <= size[1]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found[i] = {"label": name, "align": align, "dx": dx, "dy": dy}
                break
    return found


def _places(reach: float) -> list[tuple[str, float, float]]:
    """Places for a label in order of preference: alignment, and pixels from its point."""
    near: list[tuple[str, float, float]] = [
        ("left", 8, 0), ("right", -8, 0), ("left", 6, -10), ("left", 6, 11), ("right", -6, -10),
        ("right", -6, 11)]
    beyond = [(align, 0.0, side * (reach + 13)) for side in (-1, 1)
              for align in ("center", "right", "left")]
    return near + beyond


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


# --- learning curves -----------------------------------------------------------------------------
def drawn_curves(curves: Sequence[Curve]) -> list[Curve]:
    """Returns the curves that a chart shows: those that end lowest, in the order given."""
    best = sorted(curves, key=lambda curve: curve.points[-1][1])[:MAX_CURVES]
    return [curve for curve in curves if curve in best]


def curve_chart(curves: Sequence[Curve], name: str) -> Spec:
    """Draws the loss against the step, one line a shape."""
    shown = drawn_curves(curves)
    rows = [{"label": text.plain(curve.label, 30), "step": step, "y": value}
            for curve in shown for step, value in _thinned(curve.points)]
    labels = [text.plain(curve.label, 30) for curve in shown]
    colors = [COLORS[i % len(COLORS)] for i in range(len(labels))]
    dashes = [DASHES[i // len(COLORS)] for i in range(len(labels))]
    by_label = {"field": "label", "type": "nominal", "legend": {
        "orient": "bottom", "title": None, "columns": 2, "symbolType": "stroke",
        "symbolStrokeWidth": 2.5, "symbolSize": 220, "labelLimit": 150}}
    few = len(rows) <= 12 * len(shown)
    return {
        "width": CURVE_SIZE[0], "height": CURVE_SIZE[1], "data": {"values": rows},
        "mark": {"type": "line", "strokeWidth": 1.6, "point": {"size": 14} if few else False},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "Training step",
                  "axis": {"tickCount": 6, "format": ",d"}},
            "y": {"field": "y", "type": "quantitative", "title": _curve_title(name),
                  "axis": {"tickCount": 5, "format": "~g"}, "scale": {"zero": False}},
            "color": {**by_label, "scale": {"domain": labels, "range": colors}},
            "strokeDash": {**by_label, "scale": {"domain": labels, "range": dashes}},
        },
    }


def _curve_title(name: str) -> str:
    kinds = {"train": "Training loss", "validation": "Validation loss"}
    kind = kinds.get(name.partition("/")[0], text.plain(name, 44))
    return f"{kind}, mean over seeds"


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = max(1, math.ceil(len(points) / MAX_STEPS))
    return [*points[:-1:stride], points[-1]]
