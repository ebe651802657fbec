"""The figures: Altair charts, rendered offline by vl-convert to SVG (page) and PNG (files).

Every chart has a fixed size and explicit scales, so that labels can be placed where they fit and
the two renderings agree. Colours are Okabe and Ito's (2008), distinguishable with any colour vision.
"""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

from deepnarrow.pareto import Front, FrontPoint
from deepnarrow.report import text
from deepnarrow.report.tables import Curve

FRONT_SIZE = (292, 208)  # pixels of the plot area: width, height
CURVE_SIZE = (430, 230)
MAX_POINTS = 200  # of a front, drawn; the front itself always is
MAX_CURVES = 21
MAX_STEPS = 160  # points of a curve, drawn
LABEL_LIMIT = 22
CHARACTER = 5.6  # pixels, mean width at the labels' size

# Vl-convert ships this font, so a PNG needs none from the system; browsers have its metric twins.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
INK, MUTED, GRID, BLUE = "#1f2933", "#5f6b7a", "#e4e8ed", "#0072B2"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ([1, 0], [6, 3], [2, 2])
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


def front_chart(front: Front) -> Any:
    """Draws quality against cost (log): shapes, sd over training seeds, the front as steps."""
    width, height = FRONT_SIZE
    points = drawn_points(front)
    scale = 1e3 if front.cost == "step_time_s" else 1.0  # seconds -> ms
    xs = [point.cost * scale for point in points]
    spans = [(p.quality_mean - (p.quality_sd or 0), p.quality_mean + (p.quality_sd or 0))
             for p in points]
    x_domain, y_domain = _log_domain(xs), _domain([y for span in spans for y in span])
    rows = [{"name": text.plain(p.name), "x": x, "y": p.quality_mean, "low": low, "high": high,
             "front": p.on_front, "says": _describe(front, p)}
            for p, x, (low, high) in zip(points, xs, spans, strict=True)]
    pixels = [(_place(math.log(row["x"]), *map(math.log, x_domain)) * width,
               (1 - _place(row["y"], *y_domain)) * height) for row in rows]
    labelled = [{**rows[i], **label} for i, label in _labels(rows, pixels).items()]
    x = alt.X("x:Q", title=_cost_title(front), scale=alt.Scale(type="log", domain=x_domain,
              nice=False), axis=alt.Axis(values=log_ticks(*x_domain), format=".3~s",
              labelExpr=_label_expression(front.cost)))
    y = alt.Y("y:Q", title=_quality_title(front), scale=alt.Scale(domain=y_domain, nice=False,
              zero=False), axis=alt.Axis(tickCount=5, format="~g"))
    layers = [
        _base([row for row in rows if row["front"]]).mark_line(
            interpolate="step-after", color=BLUE, strokeWidth=1.5, opacity=0.55).encode(x, y),
        _base([row for row in rows if row["high"] > row["low"]]).mark_rule(strokeWidth=1).encode(
            x, alt.Y("low:Q"), alt.Y2("high:Q"), color=_front_color(BLUE, "#9aa5b1")),
        _base(rows).mark_point(size=52, strokeWidth=1.4, opacity=1, filled=True).encode(
            x, y, fill=_front_color(BLUE, "#ffffff"), stroke=_front_color(BLUE, "#7b8794"),
            description="says:N"),
        # White first: a label stays readable over the grid.
        _text(labelled, stroke="white", strokeWidth=3).encode(x, y),
        _text(labelled).encode(x, y, color=_front_color(INK, MUTED)),
    ]
    return alt.layer(*layers).properties(width=width, height=height)


def _base(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.Data(values=list(rows)))


def _text(rows: Sequence[Mapping[str, Any]], **style: Any) -> alt.Chart:
    return _base(rows).mark_text(
        fontSize=10, align=alt.expr("datum.align"), baseline="middle", dx=alt.expr("datum.dx"),
        dy=alt.expr("datum.dy"), **style).encode(text="label:N")


def _labels(
    rows: Sequence[Mapping[str, Any]], pixels: Sequence[tuple[float, float]]
) -> dict[int, dict[str, Any]]:
    """Labels for shapes on the front first, for the others where there are few."""
    front = [i for i, row in enumerate(rows) if row["front"]]
    others = [i for i, row in enumerate(rows) if not row["front"] and len(rows) <= 24]
    steps = [pixels[i] for i in front]
    lines = []
    for (x, y), (next_x, next_y) in itertools.pairwise(steps):
        lines += [(x, y, next_x, y), (next_x, min(y, next_y), next_x, max(y, next_y))]
    names = {i: text.plain(rows[i]["name"], LABEL_LIMIT) for i in front + others}
    return place_labels(pixels, names, FRONT_SIZE, lines)


def _front_color(yes: str, no: str) -> Any:
    return alt.condition("datum.front", alt.value(yes), alt.value(no))


def _describe(front: Front, point: FrontPoint) -> str:
    seeds = f"{point.n} seed" + ("s" if point.n != 1 else "")
    place = "on the front" if point.on_front else "dominated"
    return (f"{text.plain(point.name)}: {text.cost(front.cost, point.cost)}, "
            f"{text.quality(point.quality_mean, point.quality_sd)} ({seeds}), {place}")


def _cost_title(front: Front) -> str:
    title = COST_AXES.get(front.cost, text.COST_TITLES[front.cost])
    return f"{title}, {text.plain(front.machine, 40)}" if front.machine else title


def _quality_title(front: Front) -> list[str]:
    better = "lower" if front.direction == "min" else "higher"
    return [text.plain(text.quality_title(front.quality), 44), f"({better} is better)"]


def _label_expression(cost: str) -> str:
    # Parameters are counted in billions (B), everything else in SI's giga (G).
    return "replace(datum.label, 'G', 'B')" if cost.startswith("params") else "datum.label"


def _place(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def _domain(values: Sequence[float]) -> list[float]:
    """Linear limits around `values` with room for labels; never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    return [low - room, high + room]


def _log_domain(values: Sequence[float]) -> list[float]:
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
    first = math.ceil(low / step)
    return [float(f"{i * step:.6g}") for i in range(first, math.floor(high / step) + 1)]


def place_labels(
    points: Sequence[tuple[float, float]], names: Mapping[int, str], size: tuple[int, int],
    lines: Sequence[tuple[float, float, float, float]] = (),
) -> dict[int, dict[str, Any]]:
    """Finds a place beside each point where its label covers no point, line or other label.

    Args:
      points: pixels of every point, y downwards.
      names: labels by index of their point, the important ones first.
      size: the plot's width and height.
      lines: horizontal and vertical ones, as (left, top, right, bottom).

    Returns:
      By index: `label`, `align`, `dx`, `dy`; a label that fits nowhere is left out.
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points] + list(lines)
    found: dict[int, dict[str, Any]] = {}
    for i, name in names.items():
        x, y = points[i]
        length = len(name) * CHARACTER
        for align, dx, dy in (("left", 8, 0), ("right", -8, 0), ("left", 6, -9), ("left", 6, 10),
                              ("right", -6, -9), ("right", -6, 10), ("center", 0, -12),
                              ("center", 0, 13)):
            left = x + dx - {"left": 0.0, "center": length / 2, "right": length}[align]
            box = (left, y + dy - 6, left + length, y + dy + 6)
            inside = box[0] >= 1 and box[1] >= 0 and box[2] <= size[0] + 12 and box[3] <= size[1]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found[i] = {"label": name, "align": align, "dx": dx, "dy": dy}
                break
    return found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


# --- learning curves -----------------------------------------------------------------------------
def drawn_curves(curves: Sequence[Curve]) -> list[Curve]:
    """Returns the curves that a chart shows: those that end lowest, in the order given."""
    best = sorted(curves, key=lambda curve: curve.points[-1][1])[:MAX_CURVES]
    return [curve for curve in curves if curve in best]


def curve_chart(curves: Sequence[Curve], name: str) -> Any:
    """Draws the loss against the step, one line a shape."""
    shown = drawn_curves(curves)
    rows = [{"label": text.plain(curve.label, 30), "step": step, "y": value}
            for curve in shown for step, value in _thinned(curve.points)]
    labels = [text.plain(curve.label, 30) for curve in shown]
    colors = list(itertools.islice(itertools.cycle(COLORS), len(labels)))
    dashes = [DASHES[i // len(COLORS)] for i in range(len(labels))]
    legend = alt.Legend(orient="bottom", title=None, columns=3, symbolType="stroke",
                        symbolStrokeWidth=2.5, symbolSize=220, labelLimit=150)
    kind = {"train": "Training loss", "validation": "Validation loss"}.get(
        name.partition("/")[0], text.plain(name, 44))
    width, height = CURVE_SIZE
    few = len(rows) <= 12 * len(shown)
    return _base(rows).mark_line(
        strokeWidth=1.6, point=alt.OverlayMarkDef(size=14) if few else False).encode(
        alt.X("step:Q", title="Training step", axis=alt.Axis(tickCount=6, format=",")),
        alt.Y("y:Q", title=f"{kind}, mean over seeds", axis=alt.Axis(tickCount=5, format="~g"),
              scale=alt.Scale(zero=False)),
        color=alt.Color("label:N", legend=legend, scale=alt.Scale(domain=labels, range=colors)),
        strokeDash=alt.StrokeDash("label:N", legend=legend,
                                  scale=alt.Scale(domain=labels, range=dashes)),
    ).properties(width=width, height=height)


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = max(1, math.ceil(len(points) / MAX_STEPS))
    return [*points[:-1:stride], points[-1]]


# --- rendering -----------------------------------------------------------------------------------
def grid(rows: Sequence[Sequence[Any]], title: str) -> Any:
    """Puts charts into one figure, each with scales of its own."""
    lines = [alt.hconcat(*row, spacing=28).resolve_scale(
        color="independent", strokeDash="independent") for row in rows]
    return alt.vconcat(*lines, spacing=26).properties(
        title=alt.TitleParams(text.plain(title, 100), anchor="start", fontSize=15, offset=14))


def _spec(chart: Any) -> dict[str, Any]:
    axis = {"grid": True, "gridColor": GRID, "domainColor": "#c5ccd4", "tickColor": "#c5ccd4",
            "labelColor": MUTED, "titleColor": INK, "titleFontWeight": "normal",
            "titleFontSize": 11, "labelFontSize": 10, "tickSize": 4, "titlePadding": 8,
            "labelFlush": False}
    return {**chart.to_dict(), "background": "white", "padding": 6, "config": {
        "font": FONT, "view": {"stroke": None}, "axis": axis,
        "title": {"color": INK, "fontWeight": 600},
        "legend": {"labelColor": INK, "labelFontSize": 10.5, "columnPadding": 14}}}


def to_png(chart: Any) -> bytes:
    """Renders `chart` at twice its size."""
    return vl_convert.vegalite_to_png(_spec(chart), scale=2)


def to_svg(chart: Any, label: str) -> str:
    """Renders `chart` as an SVG element for a page: it scales down, and points tell what they are.

    Args:
      chart: what to draw.
      label: what it shows, for those who cannot see it.
    """
    source = vl_convert.vegalite_to_svg(_spec(chart))
    # Inside HTML the elements need no namespace, and the page then holds no address at all.
    root = ET.fromstring(re.sub(r' xmlns(:xlink)?="[^"]*"', "", source, count=2))
    width = root.attrib.pop("width")
    root.attrib.pop("height")
    root.attrib.update({"role": "img", "aria-label": text.plain(label),
                        "style": f"width:100%;max-width:{width}px"})
    for element in root.iter():
        if element.get("aria-roledescription") == "point":
            ET.SubElement(element, "title").text = element.get("aria-label")
        for name in ("role", "aria-roledescription", "aria-label", "aria-hidden"):
            if element is not root:
                element.attrib.pop(name, None)
    return ET.tostring(root, encoding="unicode")
