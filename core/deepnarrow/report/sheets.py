"""Sheets: tables of findings that are shown on the page and written as CSV, from the same rows.

A cell holds a value, never its looks: columns say how it is shown. An interval is one cell on the
page and four columns in the file. Every row names the trials that its numbers are made of.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from deepnarrow.bootstrap import Interval
from deepnarrow.report import text
from deepnarrow.report.text import escape

Kind = Literal["text", "shape", "number", "interval"]
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet would compute


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: `key` in the file, `title` on the page, and how a value that is there is shown.

    Kinds: `shape` cells are names of shapes of the row's domain (one, or a tuple of them).
    """

    key: str
    title: str
    kind: Kind = "text"
    show: Callable[[Any], str] = str


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Findings of one kind in one domain.

    Attributes:
      name: of the file; sheets of one name have the same columns and share the file.
      domain: its modality; "" where the rows say it themselves.
      columns, rows: the cells, None where there is nothing.
      title, note: on the page, plain text.
      shown: places of the rows on the page; all by default. The file has all.
    """

    name: str
    domain: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    title: str = ""
    note: str = ""
    shown: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a shape's numbers come from: its row on the page, and its trials (key, seed)."""

    anchor: str
    trials: tuple[tuple[str, str], ...]


Sources = Mapping[tuple[str, str], Source]  # by domain and shape


# --- files ---------------------------------------------------------------------------------------
def to_csv(sheets: Sequence[Sheet], sources: Sources) -> bytes:
    """The rows of sheets of one name as CSV (UTF-8): the modality first, the trials last.

    Text that a spreadsheet would take for a formula gets a leading apostrophe; numbers are written
    so that they read back exactly.
    """
    columns = sheets[0].columns
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    header = [name for column in columns for name in _names(column)]
    writer.writerow([*(["modality"] if sheets[0].domain or len(sheets) > 1 else []), *header,
                     "trials"])
    for sheet in sheets:
        for row in sheet.rows:
            start = [safe(sheet.domain)] if sheet.domain or len(sheets) > 1 else []
            cells = [cell for column, value in zip(columns, row, strict=True)
                     for cell in _cells(column, value)]
            writer.writerow([*start, *cells, safe(" ".join(_trials(sheet, row, sources)))])
    return file.getvalue().encode("utf-8", "backslashreplace")


def safe(value: Any) -> Any:
    """A cell of CSV: text is never a formula, numbers stay themselves, nothing is "".

    >>> safe("=1+1"), safe(-2.5), safe(None), safe(float("nan"))
    ("'=1+1", -2.5, '', '')
    """
    if isinstance(value, str):
        value = value.replace("\0", "")
        return "'" + value if value.lstrip(" ").startswith(FORMULA) else value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return value


def _names(column: Column) -> list[str]:
    if column.kind != "interval":
        return [column.key]
    return [column.key, *(f"{column.key}_{part}" for part in ("low", "high", "method"))]


def _cells(column: Column, value: Any) -> list[Any]:
    if column.kind == "interval":
        found = value or Interval(None, None, None, "")
        return [safe(cell) for cell in (found.estimate, found.low, found.high, found.method)]
    return [safe(" ".join(value) if isinstance(value, tuple) else value)]


def _trials(sheet: Sheet, row: Sequence[Any], sources: Sources) -> list[str]:
    keys: dict[str, None] = {}
    for column, value in zip(sheet.columns, row, strict=True):
        if column.kind == "shape" and value is not None:
            for name in value if isinstance(value, tuple) else (value,):
                source = sources.get((domain_of(sheet, row), name))
                keys |= dict.fromkeys(key for key, _ in source.trials) if source else {}
    return list(keys)


def domain_of(sheet: Sheet, row: Sequence[Any]) -> str:
    """The modality that a row's shapes are of."""
    if sheet.domain:
        return sheet.domain
    places = [i for i, column in enumerate(sheet.columns) if column.key == "domain"]
    return str(row[places[0]]) if places else ""


# --- page ----------------------------------------------------------------------------------------
def to_html(sheet: Sheet, sources: Sources, files: bool = True) -> str:
    """The sheet's shown rows as an HTML table, its title before it and what is not shown after."""
    shown = range(len(sheet.rows)) if sheet.shown is None else sheet.shown
    head = [column.title for column in sheet.columns]
    right = [column.kind in ("number", "interval") for column in sheet.columns]
    rows = [[_html(column, value, domain_of(sheet, sheet.rows[i]), sources)
             for column, value in zip(sheet.columns, sheet.rows[i], strict=True)] for i in shown]
    hidden = len(sheet.rows) - len(rows)
    more = f"{hidden:,} more in {sheet.name}.csv." if hidden and files else ""
    note = " ".join(filter(None, (sheet.note, more)))
    title = f"<h4>{escape(sheet.title)}</h4>" if sheet.title else ""
    below = f'<p class="note">{escape(note, 2000)}</p>' if note else ""
    return title + table(head, rows, right, label=sheet.title or sheet.name) + below


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], *, kind: str = "",
    label: str = "table", ids: Sequence[str] | None = None,
) -> str:
    """An HTML table that scrolls by itself; `head` is text, cells are HTML."""
    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f'<{tag}{_NUMBER if set_right else ""}>{cell}</{tag}>'
                       for cell, set_right in zip(cells, right, strict=True))

    body = "".join(f'<tr{_id(ids, i)}>{line(row, "td")}</tr>' for i, row in enumerate(rows))
    tall = " tall" if len(rows) > 30 else ""
    return (f'<div class="scroll{tall} {kind}" tabindex="0" role="region" '
            f'aria-label="{escape(label)}"><table><thead><tr>'
            f'{line([escape(cell) for cell in head], "th")}</tr></thead><tbody>{body}</tbody>'
            "</table></div>")


_NUMBER = ' class="number"'


def _id(ids: Sequence[str] | None, i: int) -> str:
    return f' id="{ids[i]}"' if ids is not None else ""


def without(sheet: Sheet, *keys: str) -> Sheet:
    """The sheet as the page shows it where its surroundings say what those columns hold."""
    kept = [i for i, column in enumerate(sheet.columns) if column.key not in keys]
    return dataclasses.replace(
        sheet, columns=tuple(sheet.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in sheet.rows))


def _html(column: Column, value: Any, domain: str, sources: Sources) -> str:
    if value is None:
        return text.NONE
    if column.kind != "shape":
        return escape(column.show(value))
    names = value if isinstance(value, tuple) else (value,)
    links = [link(name, sources.get((domain, name))) for name in names[:12]]
    return ", ".join(links) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def link(name: str, source: Source | None) -> str:
    """A shape's name as a link to its row, which lists its trials."""
    shown = f'<span class="name">{escape(name, 60)}</span>'
    return f'<a href="#{source.anchor}">{shown}</a>' if source is not None else shown
