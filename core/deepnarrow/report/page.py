"""The page: one HTML file without scripts or addresses, and the figures as PNG beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from deepnarrow.errors import InputError
from deepnarrow.pareto import FRONT_COSTS, Front, fronts
from deepnarrow.records import Record, latest
from deepnarrow.report import charts, text
from deepnarrow.report.tables import (
    BASELINES,
    Counts,
    Curve,
    TransferTable,
    count_runs,
    mean_curves,
    transfer_tables,
)
from deepnarrow.report.text import escape
from deepnarrow.summary import (
    STEP_TIME,
    Quality,
    ShapeRow,
    headline_qualities,
    machine,
    quality_order,
    shape_table,
)
from deepnarrow.table import from_records

MAX_ROWS = 500  # of a table on the page
# Nothing may run or be loaded, whatever a name in the records holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclasses.dataclass(frozen=True)
class Chapter:
    """Everything the page says about one modality."""

    modality: str
    rows: list[ShapeRow]
    fronts: list[Front]  # the charted ones
    curves: Mapping[str, list[Curve]]
    transfer: list[TransferTable]


def write_files(records: Sequence[Record], directory: Path, title: str) -> list[Path]:
    """See `report.write_report`."""
    trials = latest(records)
    chapters = _chapters(trials)
    files = {"report.html": _page(records, trials, chapters, title).encode()}
    for chapter in chapters:
        for kind, rows in (("fronts", _front_grid(chapter)), ("curves", _curve_grid(chapter))):
            if rows:
                figure = charts.grid(rows, f"{chapter.modality}: {FIGURES[kind]}")
                files[f"{kind}-{slug(chapter.modality)}.png"] = charts.to_png(figure)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            partial = directory / f".{name}.{os.getpid()}.partial"
            partial.write_bytes(content)
            os.replace(partial, directory / name)
    except OSError as error:
        raise InputError(str(directory), f"cannot be written: {error.strerror or error}") from error
    return [directory / name for name in files]


FIGURES = {"fronts": "quality against cost", "curves": "learning curves"}


def slug(name: str) -> str:
    """Returns a file name for `name`: itself if plain, else marked so that no two names meet.

    >>> slug("vision_vit"), slug("../x")
    ('vision_vit', 'x-d6b96a97')
    """
    if re.fullmatch(r"[a-z0-9_-]{1,60}", name):
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub(r'[^a-z0-9_]+', '-', name.lower()).strip('-')[:40]}-{mark}"


def _chapters(trials: Sequence[Record]) -> list[Chapter]:
    rows = shape_table(trials)
    found = fronts(from_records(trials))
    chapters = []
    for modality in dict.fromkeys(row.modality for row in rows):
        mine = [row for row in rows if row.modality == modality]
        own = [trial for trial in trials if trial.modality == modality]
        charted = headline_qualities({name for row in mine for name in row.qualities})
        chapters.append(Chapter(
            modality, mine,
            [f for f in found if f.modality == modality and f.quality in charted],
            mean_curves(own, mine), transfer_tables(own, mine)))
    return chapters


def _front_grid(chapter: Chapter) -> list[list[charts.Spec]]:
    rows = [[charts.front_chart(front) for front in group if charts.drawn_points(front)]
            for group in _by_quality(chapter.fronts)]
    return [row for row in rows if row]


def _curve_grid(chapter: Chapter) -> list[list[charts.Spec]]:
    row = [charts.curve_chart(curves, name) for name, curves in chapter.curves.items()]
    return [row] if row else []


def _by_quality(found: Sequence[Front]) -> list[list[Front]]:
    groups: dict[str, list[Front]] = {}
    for front in found:
        groups.setdefault(front.quality, []).append(front)
    return list(groups.values())


# --- page ---------------------------------------------------------------------------------------
def _page(
    records: Sequence[Record], trials: Sequence[Record], chapters: Sequence[Chapter], title: str
) -> str:
    style = resources.files("deepnarrow.report").joinpath("style.css").read_text("utf-8")
    counts = count_runs(records, trials)
    body = [_header(trials, counts, chapters, title)]
    if counts.statuses["done"]:
        body += [_efficient(chapters), *(_chapter(chapter) for chapter in chapters)]
    else:
        body.append('<p class="empty">No finished runs: there is nothing to compare.</p>')
    body += [_runs(trials), _notes(trials)]
    content = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
{content}
</body>
</html>
"""


def _header(
    trials: Sequence[Record], counts: Counts, chapters: Sequence[Chapter], title: str
) -> str:
    shapes = sum(len(chapter.rows) for chapter in chapters)
    lede = "No trial has ended yet."
    if trials:
        names = " and ".join(escape(chapter.modality) for chapter in chapters[:6])
        seeds = len({trial.seed for trial in trials})
        lede = f"{_plural(shapes, 'shape')} of {names}, {_plural(seeds, 'training seed')}."
    tiles = [(counts.statuses["done"], "done"), (counts.statuses["diverged"], "diverged"),
             (counts.statuses["failed"], "failed")]
    if counts.statuses["preempted"]:
        tiles.append((counts.statuses["preempted"], "preempted"))
    tiles.append((counts.non_finite, "non-finite values"))
    cards = "".join(
        f'<div class="{"" if label == "done" or not number else "warn"}">'
        f"<dt>{label}</dt><dd>{number:,}</dd></div>" for number, label in tiles)
    retried = (f"<p>{_plural(counts.earlier_attempts, 'earlier attempt')} of trials that ran again "
               "left out.</p>" if counts.earlier_attempts else "")
    return (f'<header><p class="eyebrow">deepnarrow report</p><h1>{escape(title)}</h1>'
            f"<p>{lede}</p><dl>{cards}</dl>{retried}</header>")


def _efficient(chapters: Sequence[Chapter]) -> str:
    head = ["Modality", "Quality", *(text.COST_TITLES[cost] for cost in FRONT_COSTS)]
    rows = []
    for chapter in chapters:
        for group in _by_quality(chapter.fronts):
            by_cost: dict[str, list[str]] = {cost: [] for cost in FRONT_COSTS}
            for front in group:
                names = [f"<span>{escape(p.name, 60)}</span>" for p in front.points if p.on_front]
                more = ", ..." if len(names) > 12 else ""
                by_cost[front.cost].append(", ".join(names[:12]) + more + _sub(front.machine))
            cells = ["".join(filter(None, found)) or text.NONE for found in by_cost.values()]
            rows.append([escape(chapter.modality), escape(text.quality_title(group[0].quality)),
                         *cells])
    return ("<section><h2>Pareto-efficient shapes</h2><p>For each cost, the shapes that no other "
            "shape beats in quality at the same cost or less, by means over training seeds.</p>"
            f'{_table(head, rows, text_columns=5, kind="efficient")}</section>')


def _chapter(chapter: Chapter) -> str:
    parts = [f'<section class="chapter"><h2>{escape(chapter.modality)}</h2>']
    if not any(row.statuses.get("done") for row in chapter.rows):
        return f'{parts[0]}<p class="empty">No finished runs.</p></section>'
    for group in _by_quality(chapter.fronts):
        figures = "".join(_front_figure(front) for front in group if charts.drawn_points(front))
        parts.append(f"<h3>{escape(text.quality_title(group[0].quality))}</h3>"
                     f'<div class="fronts">{figures}</div>{_left_out(group)}')
    parts += ["<h3>Learning curves</h3>", _curves(chapter)]
    parts += ["<h3>Transfer</h3>", *_transfer(chapter)]
    parts += ["<h3>Shapes</h3>", _shapes(chapter.rows), "</section>"]
    return "".join(parts)


def _front_figure(front: Front) -> str:
    names = [point.name for point in front.points if point.on_front]
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    label = (f"{text.quality_title(front.quality)} against {text.COST_TITLES[front.cost]}; "
             f"on the front: {shown}")
    return f"<figure>{charts.to_svg(charts.front_chart(front), label)}</figure>"


def _left_out(group: Sequence[Front]) -> str:
    missing = list(dict.fromkeys(name for front in group for name in front.left_out))
    hidden = max(len(front.points) - len(charts.drawn_points(front)) for front in group)
    notes = []
    if missing:
        names = ", ".join(escape(name, 60) for name in missing[:12])
        more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
        notes.append(f"Missing where a finite cost or quality is missing: {names}{more}.")
    if hidden:
        notes.append(f"Not drawn: up to {hidden:,} shapes that are dominated or cost nothing.")
    return f'<p class="note">{" ".join(notes)}</p>' if notes else ""


def _curves(chapter: Chapter) -> str:
    if not chapter.curves:
        return '<p class="empty">No learning curves were recorded.</p>'
    figures, hidden = [], 0
    for name, curves in chapter.curves.items():
        svg = charts.to_svg(charts.curve_chart(curves, name), f"Learning curves: {name}")
        figures.append(f"<figure>{svg}</figure>")
        hidden = max(hidden, len(curves) - len(charts.drawn_curves(curves)))
    note = (f'<p class="note">{_plural(hidden, "shape")} that end higher are not drawn.</p>'
            if hidden else "")
    return f'<div class="curves">{"".join(figures)}</div>{note}'


def _transfer(chapter: Chapter) -> list[str]:
    if not chapter.transfer:
        return ['<p class="empty">No transfer was measured.</p>']
    parts = ["<p>Means over training seeds, each the mean of its own shot or fine-tuning seeds. "
             "Untrained: the same shape with random parameters.</p>"]
    for table in chapter.transfer:
        head = ["Shape", *(text.stage_title(column) for column in table.columns)]
        rows = [[escape(label, 60), *(_pair(*cell) for cell in cells)]
                for label, cells in table.rows]
        rows += [[f"<i>{name}</i>", *(text.quality(value) for value in values)]
                 for name, values in table.baselines]
        parts.append(f"<h4>{escape(table.task)}</h4>" + _table(head, rows) + _verdict(table))
    return parts


def _verdict(table: TransferTable) -> str:
    """Says in words whether pre-training helped the probe, comparison by comparison.

    A comparison (one shape, one number of shots) counts where the means differ by more than both
    standard deviations over training seeds.
    """
    pairs = [(one, other) for _, cells in table.rows for one, other in cells
             if one and other and one.mean is not None and other.mean is not None]
    if not pairs:
        return ""
    gains = [(one.mean or 0.0) - (other.mean or 0.0) for one, other in pairs]
    spreads = [max(one.sd or 0.0, other.sd or 0.0) for one, other in pairs]
    better = sum(gain > spread for gain, spread in zip(gains, spreads, strict=True))
    worse = sum(-gain > spread for gain, spread in zip(gains, spreads, strict=True))
    trained, untrained = (
        text.quality(math.fsum(side[i].mean or 0.0 for side in pairs) / len(pairs)) for i in (0, 1))
    raw = [value for name, values in table.baselines if name == BASELINES["raw"]
           for value, (_, column) in zip(values, enumerate(table.columns), strict=True)
           if value is not None and column.startswith("few_shot")]
    words = (f"In {better} of {len(pairs)} comparisons (shapes x shots) pre-trained features beat "
             f"those of an untrained network by more than the spread over training seeds, in "
             f"{worse} they lose; on average {trained} against {untrained}")
    words += f", raw inputs {text.quality(math.fsum(raw) / len(raw))}." if raw else "."
    if better <= len(pairs) / 2:
        words += (" This budget is too small for the probe to show that pre-training is worth "
                  "anything.")
    return f"<p>{words}</p>"


def _pair(pretrained: Quality | None, untrained: Quality | None) -> str:
    below = f"untrained {text.quality(untrained.mean)}" if untrained else ""
    return _quality(pretrained) + _sub(below)


def _shapes(rows: Sequence[ShapeRow]) -> str:
    names = sorted({name for row in rows for name in row.qualities
                    if name.startswith("upstream/")}, key=quality_order)
    costs = ("params_total", *FRONT_COSTS)
    head = ["Shape", "Layers", "d_model", "d_ff", "Heads × d_kv",
            *(text.COST_TITLES[cost] for cost in costs), "Seeds",
            *(text.quality_title(name) for name in names)]
    cells = [[escape(row.label, 60), *_size(row.shape),
              *(text.cost(cost, row.costs[cost]) for cost in costs), _seeds(row),
              *(_quality(row.qualities.get(name)) for name in names)] for row in rows]
    return _table(head, cells)


def _size(shape: Mapping[str, object]) -> list[str]:
    encoder, decoder = shape.get("num_encoder_layers"), shape.get("num_decoder_layers")
    layers = f"{encoder} + {decoder}" if decoder else f"{encoder}"
    return [escape(value) for value in (
        layers, shape.get("d_model"), shape.get("d_ff"),
        f"{shape.get('num_heads')} × {shape.get('d_kv')}")]


def _seeds(row: ShapeRow) -> str:
    others = ", ".join(f"{n} {status}" for status, n in row.statuses.items() if status != "done")
    return f"{row.statuses.get('done', 0)}" + _sub(others)


def _quality(quality: Quality | None) -> str:
    return text.quality(quality.mean, quality.sd) if quality else text.NONE


def _runs(trials: Sequence[Record]) -> str:
    upstream = {row.metric: None for t in trials for row in t.metrics if row.stage == "upstream"}
    costs = ("params_total", "flops_train_total", "tokens_seen", STEP_TIME, "peak_bytes")
    head = ["Run", "Modality", "Seed", "Status", *(f"Upstream {text.plain(m)}" for m in upstream),
            *(text.COST_TITLES[cost] for cost in costs), "Machine"]
    rows = []
    for trial in trials[:MAX_ROWS]:
        values = {row.metric: row.value for row in trial.metrics if row.stage == "upstream"}
        error = trial.environment.get("error")
        status = f'<span class="{trial.status}">{trial.status}</span>{_sub(error or "")}'
        rows.append([
            escape(trial.name, 60) + _sub(trial.architecture), escape(trial.modality),
            str(trial.seed), status, *(_run_value(values, metric) for metric in upstream),
            *(text.cost(cost, trial.costs.get(cost)) for cost in costs),
            escape(machine(trial), 60)])
    if not rows:
        return '<section><h2>Runs</h2><p class="empty">No runs.</p></section>'
    table = _table(head, rows, text_columns=4, total=len(trials))
    return f"<section><h2>Runs</h2>{table}</section>"


def _run_value(values: Mapping[str, float | None], metric: str) -> str:
    if metric not in values:
        return text.NONE
    return text.quality(values[metric]) if values[metric] is not None else "not finite"


def _notes(trials: Sequence[Record]) -> str:
    conventions = sorted({escape(trial.flop_convention, 40) for trial in trials})
    machines = sorted({escape(machine(trial), 60) for trial in trials})
    studies = sorted({escape(trial.study, 60) for trial in trials})
    facts = [("Study", studies), ("Machine", machines), ("FLOP convention", conventions)]
    rows = "".join(f"<dt>{name}</dt><dd>{', '.join(values[:10])}"
                   f"{' ...' if len(values) > 10 else ''}</dd>" for name, values in facts if values)
    return ('<section class="how"><h2>How to read this</h2><ul>'
            "<li>Filled points and the stepped line are the Pareto front; open points are "
            "dominated. Hover over a point for its name and numbers; a name without room beside "
            "its point is left out.</li>"
            "<li>± and error bars: one sample standard deviation over training seeds; none where "
            "there is one seed. The front is drawn from the means, so shapes closer than their "
            "spread may trade places.</li>"
            "<li>Cost axes are logarithmic. Step times are medians; machines never share an axis."
            "</li>"
            "<li>Runs that diverged or failed are counted above and are in no mean.</li>"
            f'</ul><dl class="facts">{rows}</dl></section>')


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1,
    total: int | None = None, kind: str = "",
) -> str:
    """`head` is text, cells are HTML; the first `text_columns` are set left, the others right."""
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f'<{tag}{"" if i < text_columns else _NUMBER}>{cell}</{tag}>'
                       for i, cell in enumerate(row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[:MAX_ROWS])
    hidden = (total or len(rows)) - min(len(rows), MAX_ROWS)
    note = (f'<p class="note">{_plural(hidden, "more row")} not shown; the records hold them.</p>'
            if hidden else "")
    head_cells = cells([escape(cell) for cell in head], "th")
    return (f'<div class="scroll {kind}" tabindex="0"><table><thead><tr>{head_cells}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{note}")


_NUMBER = ' class="number"'


def _sub(value: str) -> str:
    return f'<span class="sub">{escape(value, 160)}</span>' if value else ""


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
