"""The page: one HTML file that loads nothing; its figures and tables as files beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from deepnarrow import files
from deepnarrow.errors import InputError
from deepnarrow.records import Record, latest, reported
from deepnarrow.report import (
    charts,
    csvfiles,
    explorer,
    morecharts,
    recordsections,
    render,
    sections,
    tuned,
)
from deepnarrow.report.findings import Domain, Findings, find
from deepnarrow.report.recordsections import MAX_ROWS
from deepnarrow.report.sheets import Source, Sources
from deepnarrow.report.tables import (
    Counts,
    Curve,
    TransferTable,
    count_runs,
    mean_curves,
    transfer_tables,
)
from deepnarrow.report.text import escape, plural
from deepnarrow.summary import machine, shape_table
from deepnarrow.table import Table, concat, from_records, select, shapes_of

Grid = list[list[charts.Spec]]


@dataclasses.dataclass(frozen=True)
class Chapter:
    """One domain: what was found, and what only records hold."""

    domain: Domain
    curves: Mapping[str, list[Curve]]
    transfer: list[TransferTable]
    tuned: tuned.Tuned


@dataclasses.dataclass(frozen=True)
class Content:
    """All that a report is made of.

    Attributes:
      title: its heading.
      trials: the latest record of every key.
      counts: of all records.
      foreign: rows that are of no record: those done, and those not.
      found, chapters: by domain and across.
      sources: where a shape's numbers come from.
      anchors: by key, the row of a trial on the page.
    """

    title: str
    trials: Sequence[Record]
    counts: Counts
    foreign: tuple[int, int]
    found: Findings
    chapters: Sequence[Chapter]
    sources: Sources
    anchors: Mapping[str, str]


def write_files(
    records: Sequence[Record], directory: Path, title: str, tables: Sequence[Table] = (),
    reference: str | None = None,
) -> list[Path]:
    """See `report.write_report`."""
    content = _content(records, title, tables, reference)
    made = {"report.html": _page(content).encode("utf-8", "replace")}
    for name, (rows, heading) in _figures(content).items():
        made[f"{name}.png"], made[f"{name}.svg"] = render.to_files(rows, heading)
    made |= csvfiles.of(content.found, content.sources, content.trials, {
        one.domain.name: (one.curves, one.transfer, one.tuned) for one in content.chapters})
    try:
        for name, data in made.items():
            files.write_bytes(directory / name, data)
    except OSError as error:
        raise InputError(str(directory), f"cannot be written: {error.strerror or error}") from error
    return [directory / name for name in made]


def slug(name: str) -> str:
    """Returns a file name for `name`: itself if plain, else marked so that no two names meet.

    >>> slug("vision_vit"), slug("../x")
    ('vision_vit', 'x-d6b96a97')
    """
    if re.fullmatch(r"[a-z0-9_-]{1,60}", name):
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub(r'[^a-z0-9_]+', '-', name.lower()).strip('-')[:40]}-{mark}"


def _content(
    records: Sequence[Record], title: str, tables: Sequence[Table], reference: str | None
) -> Content:
    records = reported(records)
    trials = latest(records)
    rows = shape_table(trials)
    anchors = {trial.key: f"run-{i}" for i, trial in enumerate(trials[:MAX_ROWS])}
    whole = concat([*([from_records(trials)] if trials or not tables else []), *tables])
    found = find(whole, reference)
    chapters = []
    for domain in found.domains:
        own = [trial for trial in trials if trial.modality == domain.name]
        mine = [row for row in rows if row.modality == domain.name]
        chapters.append(Chapter(domain, mean_curves(own, mine), transfer_tables(own, mine),
                                tuned.tuned(own, mine)))
    done = [int(table.done.sum()) for table in tables]
    return Content(title, trials, count_runs(records, trials),
                   (sum(done), sum(map(len, tables)) - sum(done)), found, chapters,
                   _sources(whole), anchors)


def _sources(whole: Table) -> dict[tuple[str, str], Source]:
    """Every shape's trials: keys of records, else numbers of rows."""
    keys = whole.columns.get("key")
    found = {}
    for d, domain in enumerate(sorted(set(whole.domain))):
        places = np.flatnonzero(whole.domain == domain)
        shapes = shapes_of(select(whole, places))
        for i, name in enumerate(shapes.names):
            mine = places[shapes.index == i]
            trials = tuple((str(keys[k]) if keys is not None and keys.dtype == object and keys[k]
                            else f"row {k + 1}", str(whole.seed[k])) for k in mine)
            found[domain, name] = Source(f"shape-{d}-{i}", trials)
    return found


# --- figures -------------------------------------------------------------------------------------
def _figures(content: Content) -> dict[str, tuple[Grid, str]]:
    """The page's figures by name of file, one a kind and domain: charts in rows, and a heading."""
    made = {}
    for chapter in content.chapters:
        for kind, rows in _grids(chapter).items():
            rows = [row for row in rows if row]
            if rows:
                title = f"{chapter.domain.name or 'all rows'}: {sections.FIGURES[kind]}"
                made[f"{kind}-{slug(chapter.domain.name or 'all')}"] = (rows, title)
    effects = [row for _, one in content.found.comparisons
               if (row := morecharts.effects_charts(one))]
    if effects:
        made["effects"] = (effects, sections.FIGURES["effects"])
    return made


def _grids(chapter: Chapter) -> dict[str, Grid]:
    domain = chapter.domain
    scatters = [morecharts.agreement_chart(one, domain.table) for one in domain.agreements]
    laws: dict[str, list[charts.Spec]] = {}
    for law in morecharts.drawn_laws(domain.laws):
        laws.setdefault(law.y, []).append(morecharts.law_chart(law, domain.table))
    return {
        "fronts": [[charts.front_chart(front) for front in group if charts.drawn_points(front)]
                   for group in sections.by_quality(domain.fronts)],
        "curves": [[charts.curve_chart(curves, name) for name, curves in chapter.curves.items()]],
        "laws": list(laws.values()),
        "agreement": [scatters[i : i + 3] for i in range(0, len(scatters), 3)]}


# --- page ----------------------------------------------------------------------------------------
def _policy(script: str) -> str:
    """Nothing is loaded, and no script runs but the page's own, whatever a name holds."""
    return ("default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
            f"script-src {explorer.script_hash(script)}; base-uri 'none'; form-action 'none'")


def _page(content: Content) -> str:
    folder = resources.files("deepnarrow.report")
    script = explorer.script()
    body = [_header(content)]
    domains = [chapter.domain for chapter in content.chapters]
    if content.counts.statuses["done"] or content.foreign[0]:
        body += [explorer.MARKUP, sections.efficient(domains, content.sources),
                 sections.across(content.found, content.sources),
                 *(_chapter(chapter, content) for chapter in content.chapters)]
    else:
        body.append('<p class="empty">No finished runs: there is nothing to compare.</p>')
    body.append(recordsections.runs(content.trials, content.anchors) if content.trials
                or not any(content.foreign) else "")
    body.append(_notes(content.trials))
    if explorer.MARKUP in body:
        made = explorer.data(domains, content.sources, content.anchors)
        body.append(f'<script type="application/json" id="data">{explorer.as_json(made)}</script>'
                    f"\n<script>{script}</script>")
    shown = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<title>{escape(content.title)}</title>
<style>
{folder.joinpath("style.css").read_text("utf-8")}</style>
</head>
<body>
{shown}
</body>
</html>
"""


def _header(content: Content) -> str:
    shapes = len(content.sources)
    lede = "No trial has ended yet."
    if content.trials or any(content.foreign):
        names = " and ".join(escape(chapter.domain.name) for chapter in content.chapters[:6]
                             if chapter.domain.name)
        seeds = len({seed for one in content.sources.values() for _, seed in one.trials})
        lede = (f"{plural(shapes, 'shape')}{' of ' if names else ''}{names}, "
                f"{plural(seeds, 'training seed')}.")
    counts = content.counts
    tiles = [(counts.statuses["done"], "done"), (counts.statuses["diverged"], "diverged"),
             (counts.statuses["failed"], "failed")] if content.trials or not any(content.foreign) \
        else []
    if counts.statuses["preempted"]:
        tiles.append((counts.statuses["preempted"], "preempted"))
    if any(content.foreign):
        tiles += [(content.foreign[0], "rows of tables"), (content.foreign[1], "rows not done")]
    tiles.append((counts.non_finite + sum(
        int(bad.sum()) for chapter in content.chapters if not content.trials
        for bad in chapter.domain.table.non_finite.values()), "non-finite values"))
    good = ("done", "rows of tables")
    cards = "".join(
        f'<div class="{"" if label in good or not number else "warn"}">'
        f"<dt>{label}</dt><dd>{number:,}</dd></div>" for number, label in tiles)
    retried = (f"<p>{plural(counts.earlier_attempts, 'earlier attempt')} of trials that ran again "
               "left out.</p>" if counts.earlier_attempts else "")
    return (f'<header><p class="eyebrow">deepnarrow report</p><h1>{escape(content.title)}</h1>'
            f"<p>{lede}</p><dl>{cards}</dl>{retried}</header>")


def _chapter(chapter: Chapter, content: Content) -> str:
    domain, sources = chapter.domain, content.sources
    head = f'<section class="chapter"><h2>{escape(domain.name or "Findings")}</h2>'
    if not domain.table.done.any():
        return f'{head}<p class="empty">No finished runs.</p></section>'
    parts = [head, sections.front_figures(domain, sources), sections.claims(domain, sources),
             sections.agreement(domain, sources), sections.laws(domain, sources)]
    if chapter.transfer or chapter.curves or content.trials:
        parts += ["<h3>Learning curves</h3>", recordsections.curves(chapter.curves),
                  "<h3>Transfer</h3>", sections.worth(domain, sources),
                  *recordsections.transfer(chapter.transfer),
                  tuned.section(chapter.tuned, domain.name, sources)]
    parts += ["<h3>Shapes</h3>", recordsections.shapes(domain, sources, content.anchors),
              sections.problems(domain.problems), "</section>"]
    return "".join(parts)


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
