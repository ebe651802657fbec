"""`deepnarrow pareto` and `deepnarrow report`: analysis of records, without JAX."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepnarrow.cli.output import Output
from deepnarrow.errors import InputError
from deepnarrow.records import Record

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.pareto import Front

# What "params" and "flops" stand for: a shape's own size, without the table of embeddings.
ALIASES = {"params": "params_non_embedding", "flops": "flops_forward_per_example"}


def load_records(sources: Sequence[str]) -> list[Record]:
    """Returns the records of the studies in `sources`, which are workdirs.

    Raises:
      InputError: a source is no workdir, or is given twice.
    """
    from deepnarrow.store import Store
    from deepnarrow.study import STORE_FILE, planned_keys

    records: list[Record] = []
    seen: set[Path] = set()
    for source in sources:
        path = Path(source) / STORE_FILE
        if not path.is_file():
            raise InputError(f"source '{source}'", "is no study's workdir",
                             expected=f"a folder with {STORE_FILE}",
                             hint="deepnarrow study CONFIG --workdir DIR makes one")
        if path.resolve() in seen:
            raise InputError(f"source '{source}'", "is given twice", hint="keep one of them")
        seen.add(path.resolve())
        with Store(path, read_only=True) as store:
            keys = planned_keys(Path(source))
            records += [r for r in store.records() if keys is None or r.key in keys]
    return records


def pareto(options: argparse.Namespace) -> Output:
    """Shows which shapes are on the front of each cost and quality."""
    from deepnarrow.pareto import FRONT_COSTS, fronts

    costs = [_axis("--cost", text) for text in options.cost]
    qualities = [_axis("--quality", text) for text in options.quality]
    for name, direction in costs:
        if direction == "max":
            raise InputError("--cost", "a cost is better where it is less", got=f"{name}:max",
                             expected=f"{name}:min")
    names = [ALIASES.get(name, name) for name, _ in costs] or list(FRONT_COSTS)
    records = load_records(options.sources)
    found = fronts(records, names, [name for name, _ in qualities] or None)
    for name, direction in qualities:
        _check_direction(name, direction, found)
    return Output({"fronts": [dataclasses.asdict(front) for front in found]},
                  lambda console: _show(console, found))


def _axis(flag: str, text: str) -> tuple[str, str | None]:
    """Splits `NAME[:min|max]`."""
    name, colon, direction = text.rpartition(":")
    if not colon:
        return text, None
    if direction not in ("min", "max") or not name:
        raise InputError(flag, "is no axis", got=repr(text), expected="NAME, NAME:min or NAME:max")
    return name, direction


def _check_direction(name: str, direction: str | None, found: Sequence[Front]) -> None:
    for front in found:
        if front.quality == name and direction not in (None, front.direction):
            raise InputError(f"--quality {name}", "is better the other way", got=direction,
                             expected=front.direction)


def _show(console: Console, found: Sequence[Front]) -> None:
    from deepnarrow.report.terminal import pareto_tables

    if not found:
        console.print("no finished runs")
    for made in pareto_tables(found):
        console.print(made)


def report(options: argparse.Namespace) -> Output:
    """Writes the HTML report and its figures."""
    out = Path(options.out)
    is_page = out.suffix.lower() == ".html"
    if is_page and out.is_dir():
        raise InputError("--out", "is a folder", got=repr(options.out), expected="a file's path",
                         hint=f"--out {out / 'report.html'}")
    if not is_page and out.is_file():
        raise InputError("--out", "is no folder", got=repr(options.out),
                         expected="a path that ends in .html, or a folder for report.html")
    records = load_records(options.sources)
    from deepnarrow.report import write_report

    title = ", ".join(dict.fromkeys(record.study for record in records)) or "no records"
    written = _write_page(records, out, title) if is_page else write_report(records, out, title)
    files = [str(path) for path in written]
    return Output({"files": files}, lambda console: _show_files(console, files))


def _write_page(records: Sequence[Record], page: Path, title: str) -> list[Path]:
    """Writes the report as `page`, its figures beside it; no other page there is touched."""
    from deepnarrow.report import write_report

    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=page.parent, prefix=f".{page.name}.") as folder:
            first, *figures = write_report(records, folder, title)
            places = [(figure, page.with_name(figure.name)) for figure in figures]
            for source, place in [(first, page), *places]:
                os.replace(source, place)
    except OSError as error:
        raise InputError("--out", f"cannot be written: {error.strerror or error}",
                         got=repr(str(page))) from error
    return [page, *(place for _, place in places)]


def _show_files(console: Console, files: Sequence[str]) -> None:
    for path in files:
        console.print(path, markup=False, soft_wrap=True)
