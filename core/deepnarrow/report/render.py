"""Drawing: Vega-Lite specifications to SVG for the page, and to SVG and PNG files, all offline."""

from __future__ import annotations

import functools
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import vl_convert
from PIL import Image

from deepnarrow.report import text
from deepnarrow.report.charts import GRID, INK, MUTED, Spec

# Vl-convert ships this font, so a PNG needs none from the system; browsers have its metric twins.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
GAP = 22  # pixels between charts of a file
TITLE = 34  # pixels of a file's heading


def themed(chart: Spec) -> Spec:
    axis = {"grid": True, "gridColor": GRID, "domainColor": "#c5ccd4", "tickColor": "#c5ccd4",
            "labelColor": MUTED, "titleColor": INK, "titleFontWeight": "normal",
            "titleFontSize": 11, "labelFontSize": 10, "tickSize": 4, "titlePadding": 8,
            "labelFlush": False}
    return {**chart, "background": "white", "padding": 6, "config": {
        "font": FONT, "view": {"stroke": None}, "axis": axis,
        "title": {"color": INK, "fontWeight": 600},
        "legend": {"labelColor": INK, "labelFontSize": 10.5, "columnPadding": 14}}}


@functools.lru_cache(maxsize=512)
def _drawn(specification: str) -> str:
    """Most charts are on the page and in a file: each is drawn once."""
    return vl_convert.vegalite_to_svg(specification)


def draw(chart: Spec) -> str:
    """Renders `chart` as SVG."""
    return _drawn(json.dumps(themed(chart)))


def to_svg(chart: Spec, label: str) -> str:
    """Renders `chart` as an SVG element for a page: it scales down, and points tell what they are.

    Args:
      chart: what to draw.
      label: what it shows, for those who cannot see it.
    """
    source = draw(chart)
    # Inside HTML the elements need no namespace, and the page then holds no address at all.
    root = ET.fromstring(re.sub(r' xmlns(:xlink)?="[^"]*"', "", source, count=2))
    width = root.attrib.pop("width")
    root.attrib.pop("height")
    root.attrib.update({"role": "img", "aria-label": text.plain(label),
                        "style": f"width:100%;max-width:{round(1.2 * float(width))}px"})
    for element in root.iter():
        if element.get("aria-roledescription") == "point":
            ET.SubElement(element, "title").text = element.get("aria-label")
        for name in ("role", "aria-roledescription", "aria-label", "aria-hidden"):
            if element is not root:
                element.attrib.pop(name, None)
    return ET.tostring(root, encoding="unicode")


def to_files(rows: Sequence[Sequence[Spec]], title: str) -> tuple[bytes, bytes]:
    """Renders charts in rows as one figure: PNG, at twice its size and in 128 colours (a tenth of
    the bytes), and SVG.
    """
    source = _grid([[draw(chart) for chart in row] for row in rows], text.escape(title, 100))
    drawn = Image.open(io.BytesIO(vl_convert.svg_to_png(source, scale=2))).convert("RGB")
    reduced = drawn.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    file = io.BytesIO()
    reduced.save(file, "PNG", optimize=True)
    return file.getvalue(), source.encode()


def _grid(rows: Sequence[Sequence[str]], title: str) -> str:
    """Puts SVGs into one; `title` is escaped."""
    parts, top, widest = [], TITLE, 0
    for row in rows:
        left = height = 0
        for source in row:
            width, tall = (int(float(size)) for size in re.findall(
                r'\b(?:width|height)="([\d.]+)"', source[: source.index(">")])[:2])
            parts.append(source.replace("<svg", f'<svg x="{left}" y="{top}"', 1))
            left, height = left + width + GAP, max(height, tall)
        top, widest = top + height + GAP, max(widest, left - GAP)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{widest}" height="{top - GAP}" '
            f'viewBox="0 0 {widest} {top - GAP}"><rect width="100%" height="100%" fill="white"/>'
            f'<text x="8" y="22" font-family="{FONT}" font-size="15" font-weight="600" '
            f'fill="{INK}">{title}</text>{"".join(parts)}</svg>')
