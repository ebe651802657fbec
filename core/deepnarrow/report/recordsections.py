"""Sections of the page that need records or rows: curves, transfer, shapes, runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from deepnarrow.pareto import FRONT_COSTS
from deepnarrow.records import Record
from deepnarrow.report import charts, render, text
from deepnarrow.report.findings import Domain
from deepnarrow.report.sheets import Sources, table
from deepnarrow.report.tables import Curve, TransferTable
from deepnarrow.report.text import escape
from deepnarrow.summary import STEP_TIME, Quality, machine
from deepnarrow.table import SeedValues, Table, mean_by_shape, seed_values, shapes_of

MAX_ROWS = 500  # of a table on the page
MAX_COLUMNS = 6  # of a table of transfer
MAX_TRIALS = 8  # of a shape, named in its row
FIELDS = ("d_model", "d_ff", "num_heads", "d_kv")


def sub(value: str) -> str:
    """A second line of a cell."""
    return f'<span class="sub">{escape(value, 160)}</span>' if value else ""


def _numbers(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    return table(head, rows, [i > 0 for i in range(len(head))], label=label)


# --- curves and transfer -------------------------------------------------------------------------
def curves(found: Mapping[str, Sequence[Curve]]) -> str:
    if not found:
        return '<p class="empty">No learning curves were recorded.</p>'
    figures, hidden = [], 0
    for name, mine in found.items():
        svg = render.to_svg(charts.curve_chart(mine, name), f"Learning curves: {name}")
        figures.append(f"<figure>{svg}</figure>")
        hidden = max(hidden, len(mine) - len(charts.drawn_curves(mine)))
    note = (f'<p class="note">{text.plural(hidden, "shape")} that end higher are not drawn.</p>'
            if hidden else "")
    return f'<div class="curves">{"".join(figures)}</div>{note}'


def transfer(found: Sequence[TransferTable]) -> list[str]:
    if not found:
        return ['<p class="empty">No transfer was measured.</p>']
    parts = ["<p>Means over training seeds, each the mean of its own shot or fine-tuning seeds. "
             "Untrained: the same shape with random parameters.</p>"]
    for one in found:
        parts.append(f"<h4>{escape(one.task)}</h4>")
        parts += [_transfer_table(one, places) for places in _columns(one.columns)]
    return parts


def _columns(names: Sequence[str]) -> list[list[int]]:
    """Places of the columns, one table if they are few, else one for every stage and metric."""
    if len(names) <= MAX_COLUMNS:
        return [list(range(len(names)))]
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(re.sub("@[0-9]+", "", name), []).append(i)
    return list(groups.values())


def _transfer_table(one: TransferTable, places: Sequence[int]) -> str:
    head = ["Shape", *(text.stage_title(one.columns[i]) for i in places)]
    rows = [[escape(label, 60), *(_pair(*cells[i]) for i in places)] for label, cells in one.rows]
    rows += [[f"<i>{name}</i>", *(text.quality(values[i]) for i in places)]
             for name, values in one.baselines if any(values[i] is not None for i in places)]
    return _numbers(head, rows, one.task)


def _pair(pretrained: Quality | None, untrained: Quality | None) -> str:
    below = f"untrained {text.quality(untrained.mean)}" if untrained else ""
    return _quality(pretrained) + sub(below)


def _quality(quality: Quality | None) -> str:
    return text.quality(quality.mean, quality.sd) if quality else text.NONE


# --- shapes --------------------------------------------------------------------------------------
def shapes(domain: Domain, sources: Sources, anchors: Mapping[str, str]) -> str:
    """One row a shape, which lists its trials."""
    rows = domain.table
    found = shapes_of(rows)
    known = [name for name in rows.costs if np.isfinite(rows.columns[name]).any()]
    costs = [name for name in ("params_total", *FRONT_COSTS) if name in known] or known
    shown = [name for name in rows.qualities if name.startswith("upstream/")] or \
        list(rows.qualities[:6])
    columns = {**_sizes([mean_by_shape(rows, found, name) if name in rows.columns else None
                         for name in ("num_encoder_layers", "num_decoder_layers", *FIELDS)])}
    for cost in costs:
        columns[text.cost_title(cost)] = [
            text.cost(cost, value) for value in mean_by_shape(rows, found, cost).tolist()]
    columns["Seeds"] = _statuses(rows, found.index, len(found.names))
    for name in shown:
        columns[text.quality_title(name)] = _scores(seed_values(rows, found, name))
    cells, ids = [], []
    for i, name in enumerate(found.names[:MAX_ROWS]):
        source = sources[domain.name, name]
        ids.append(source.anchor)
        cells.append([f'<span class="name">{escape(name, 60)}</span>',
                      escape(domain.operators[name] or "–", 40),
                      *(escape(column[i]) for column in columns.values()),
                      _trials(source.trials, anchors)])
    head = ["Shape", "Operator", *columns, "Trials"]
    right = [False, False, *(True for _ in columns), False]
    hidden = len(found.names) - len(cells)
    more = (f'<p class="note">{text.plural(hidden, "more row")} not shown; shapes.csv has them.</p>'
            if hidden else "")
    return table(head, cells, right, label="shapes", ids=ids) + more


def _sizes(values: Sequence[np.ndarray | None]) -> dict[str, list[str]]:
    """Layers and widths, where the table has them."""
    encoder, decoder, *rest = values
    made = {}
    if encoder is not None:
        both = decoder if decoder is not None else np.zeros(len(encoder))
        made["Layers"] = [_whole(e) + (f" + {_whole(d)}" if d > 0 else "")
                          for e, d in zip(encoder, both, strict=True)]
    for name, column in zip(FIELDS, rest, strict=True):
        if column is not None:
            made[name] = [_whole(value) for value in column]
    return made


def _whole(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else text.NONE


def _statuses(rows: Table, index: np.ndarray, size: int) -> list[str]:
    known = rows.columns.get("status")
    words = known if known is not None and known.dtype == object else \
        np.where(rows.done, "done", "not done")
    found = [Counter(map(str, words[index == i])) for i in range(size)]
    return [", ".join([str(one.pop("done", 0)), *(f"{n} {status}" for status, n in one.items())])
            for one in found]


def _scores(one: SeedValues) -> list[str]:
    return [text.quality(float(mean), float(sd) if math.isfinite(sd) else None)
            for mean, sd in zip(one.mean, one.sd, strict=True)]


def _trials(found: Sequence[tuple[str, str]], anchors: Mapping[str, str]) -> str:
    links = []
    for key, seed in found[:MAX_TRIALS]:
        words = f"{escape(seed, 20)}: <code>{escape(key, 13)}</code>"
        links.append(f'<a href="#{anchors[key]}">{words}</a>' if key in anchors else words)
    more = f" and {len(found) - MAX_TRIALS} more" if len(found) > MAX_TRIALS else ""
    return f'<span class="trials">{", ".join(links)}{more}</span>'


# --- runs ----------------------------------------------------------------------------------------
def runs(trials: Sequence[Record], anchors: Mapping[str, str]) -> str:
    """One row a trial."""
    upstream = {row.metric: None for t in trials for row in t.metrics if row.stage == "upstream"}
    costs = ("params_total", "flops_train_total", "tokens_seen", STEP_TIME, "peak_bytes")
    head = ["Run", "Modality", "Seed", "Status", *(f"Upstream {text.plain(m)}" for m in upstream),
            *(text.COST_TITLES[cost] for cost in costs), "Machine", "Key"]
    rows = []
    for trial in trials[:MAX_ROWS]:
        values = {row.metric: row.value for row in trial.metrics if row.stage == "upstream"}
        error = trial.environment.get("error")
        status = f'<span class="{trial.status}">{trial.status}</span>{sub(error or "")}'
        rows.append([
            f'<span class="name">{escape(trial.name, 60)}</span>{sub(trial.architecture)}',
            escape(trial.modality), str(trial.seed), status,
            *(_run_value(values, metric) for metric in upstream),
            *(text.cost(cost, trial.costs.get(cost)) for cost in costs),
            escape(machine(trial), 60), f"<code>{escape(trial.key, 40)}</code>"])
    if not rows:
        return '<section><h2>Runs</h2><p class="empty">No runs.</p></section>'
    right = [False] * 4 + [True] * (len(upstream) + len(costs)) + [False, False]
    hidden = len(trials) - len(rows)
    more = (f'<p class="note">{text.plural(hidden, "more row")} not shown; metrics.csv has.</p>'
            if hidden else "")
    ids = [anchors[trial.key] for trial in trials[:MAX_ROWS]]
    return ("<section><h2>Runs</h2>" + table(head, rows, right, label="runs", ids=ids) + more
            + "</section>")


def _run_value(values: Mapping[str, float | None], metric: str) -> str:
    if metric not in values:
        return text.NONE
    return text.quality(values[metric]) if values[metric] is not None else "not finite"
