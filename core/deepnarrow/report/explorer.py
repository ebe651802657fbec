"""The explorer: one chart a modality whose axes, scales and shapes the reader chooses.

Its data stand in the page as JSON, its script in `explorer.js`. Without a script the section stays
hidden and the page's own figures show the same fronts.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from deepnarrow.pareto import FRONT_COSTS, cost_axes, quality_beside
from deepnarrow.report import text
from deepnarrow.report.findings import Domain
from deepnarrow.report.sheets import Sources
from deepnarrow.summary import STEP_TIME
from deepnarrow.table import Table, seed_values, shapes_of

MARKUP = """<section id="explorer" hidden><h2>Explore</h2>
<form aria-label="What the charts show">
<label>Horizontal <select name="x"></select></label>
<label><input type="checkbox" name="xLog"> log scale</label>
<label>Vertical <select name="y"></select></label>
<label><input type="checkbox" name="yLog"> log scale</label>
<fieldset class="domains"><legend>Modality</legend></fieldset>
<details><summary>Filter by operator</summary>
<fieldset class="operators"><legend>Made by operator</legend></fieldset></details>
</form>
<svg width="0" height="0" aria-hidden="true"></svg>
<div class="panels"></div><div class="details" aria-live="polite"></div></section>"""


def script() -> str:
    """The page's only script."""
    return resources.files("deepnarrow.report").joinpath("explorer.js").read_text("utf-8")


def script_hash(source: str) -> str:
    """What a Content-Security-Policy lets run: this script, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def as_json(value: Any) -> str:
    """JSON that cannot end the element it stands in, nor open one.

    >>> as_json(["</script>", "a&b"])
    '["\\\\u003c/script\\\\u003e","a\\\\u0026b"]'
    """
    written = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only
    for mark in "<>&":
        written = written.replace(mark, f"\\u{ord(mark):04x}")
    return written


def data(domains: Sequence[Domain], sources: Sources, anchors: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the explorer draws.

    Args:
      domains: what was found.
      sources: of the shapes.
      anchors: by key, the row of a trial on the page, where it has one.
    """
    axes: dict[str, dict[str, str]] = {}
    values = {domain.name: _values(domain.table, axes) for domain in domains}
    place = {name: i for i, name in enumerate(axes)}
    return {"axes": list(axes.values()), "domains": [
        {"name": text.plain(domain.name), "raw": _raw(domain.table, place), "shapes": _shapes(
            domain, values[domain.name], place, sources, anchors)} for domain in domains]}


def _raw(table: Table, place: Mapping[str, int]) -> dict[int, float]:
    """By axis: what raw inputs get."""
    means = {name: quality_beside(table, name).get("raw") for name in table.qualities}
    return {place[name]: mean for name, mean in means.items()
            if mean is not None and name in place}


Cells = dict[str, list[Any] | None]  # by axis: mean, sd, seeds


def _values(table: Table, axes: dict[str, dict[str, str]]) -> dict[str, Cells]:
    """By shape; what axes there are is added to `axes`, costs first."""
    shapes = shapes_of(table)
    found: dict[str, Cells] = {name: {} for name in shapes.names}
    for cost in sorted(table.costs, key=lambda name: name not in FRONT_COSTS):
        for axis in cost_axes(table, shapes, cost):
            name, machine, mean = axis.label, axis.machine, axis.values
            if len(np.unique(mean[np.isfinite(mean)])) < 2:
                continue  # a cost on which all agree decides nothing
            title = text.cost_title(cost) + (f", {text.plain(machine, 40)}" if machine else "")
            axes.setdefault(name, {"id": text.plain(name), "title": title, "kind": "cost",
                                   "better": "min", "unit": _unit(cost)})
            for shape, value in zip(shapes.names, mean, strict=True):
                found[shape][name] = [float(value), None, 0] if np.isfinite(value) else None
    for quality in table.qualities:
        one = seed_values(table, shapes, quality)
        if not np.isfinite(one.mean).any():
            continue
        axes.setdefault(quality, {
            "id": text.plain(quality), "title": text.quality_title(quality), "kind": "quality",
            "better": table.directions[quality], "unit": ""})
        for i, shape in enumerate(shapes.names):
            sd = float(one.sd[i]) if np.isfinite(one.sd[i]) else None
            found[shape][quality] = [float(one.mean[i]), sd, int(one.n[i])] if one.n[i] else None
    return found


def _unit(cost: str) -> str:
    if cost.startswith(STEP_TIME):
        return "s"
    return "B" if cost == "peak_bytes" else "params" if cost.startswith("params") else ""


def _shapes(
    domain: Domain, values: Mapping[str, Cells], place: Mapping[str, int], sources: Sources,
    anchors: Mapping[str, str],
) -> list[dict[str, Any]]:
    membership: dict[str, dict[str, float]] = {}
    for front in domain.fronts:
        cost = f"{front.cost} on {front.machine}" if front.machine else front.cost
        for point in front.points:
            if point.membership is not None:
                key = f"{text.plain(cost)}|{text.plain(front.quality)}"
                membership.setdefault(point.name, {})[key] = round(point.membership, 4)
    made = []
    for name, cells in values.items():
        source = sources[domain.name, name]
        row: list[Any] = [None] * len(place)
        for axis, cell in cells.items():
            row[place[axis]] = cell
        made.append({
            "name": text.plain(name, 80), "operator": text.plain(domain.operators[name], 60),
            "anchor": source.anchor, "values": row, "membership": membership.get(name, {}),
            "trials": [[text.plain(key, 60), text.plain(seed, 20), anchors.get(key)]
                       for key, seed in source.trials]})
    return made
