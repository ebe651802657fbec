"""`deepnarrow pareto` and `deepnarrow report`: analysis of records and tables, without JAX."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.cli import claims
from deepnarrow.cli.output import Output
from deepnarrow.cli.parser import number
from deepnarrow.errors import InputError, shorten
from deepnarrow.recordfile import SUFFIX
from deepnarrow.records import Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Shown

    from deepnarrow.table import Table


def load_records(sources: Sequence[str]) -> list[Record]:
    """Returns the records of the studies in `sources`: workdirs, and archives NAME.jsonl.gz.

    Raises:
      InputError: a source is neither, or is given twice.
    """
    _refuse_twice(sources)
    return [record for source in sources for record in _records_of(source)]


def is_table(source: str) -> bool:
    """Whether a source is a file with rows, not with records."""
    return Path(source).is_file() and not source.endswith(SUFFIX)


def load_table(sources: Sequence[str], by: str | None = None) -> Table:
    """Returns the rows of `sources`: workdirs and archives of studies, CSV and Parquet files.

    Args:
      sources: paths.
      by: the column of a file that says the domain.

    Raises:
      InputError: a source cannot be read or is given twice, or there is not one finished run.
    """
    from deepnarrow.table import concat, from_records
    from deepnarrow.tablefile import read_table

    _refuse_twice(sources)
    files = [source for source in sources if is_table(source)]
    records = [r for s in sources if s not in files for r in _records_of(s)]
    tables = [read_table(source, by) for source in files]
    tables += [from_records(records)] if records else []
    table = concat(tables) if tables else None
    if table is None or not table.done.any():
        where = ", ".join(f"source '{shorten(source)}'" for source in sources)
        if len(files) == len(sources) and not len(table or ()):
            raise InputError(where, "no finished runs: it has no rows",
                             hint="add rows below the header, one a shape and training seed")
        raise InputError(where, "no finished runs",
                         hint="deepnarrow status WORKDIR says how far a study is")
    return table


def _refuse_twice(sources: Sequence[str]) -> None:
    seen: set[Path] = set()
    for source in sources:
        if Path(source).resolve() in seen:
            raise InputError(f"source '{source}'", "is given twice", hint="keep one of them")
        seen.add(Path(source).resolve())


def _records_of(source: str) -> list[Record]:
    from deepnarrow.recordfile import read_archive
    from deepnarrow.store import Store
    from deepnarrow.study import STORE_FILE, planned_keys

    path = Path(source) / STORE_FILE
    if not Path(source).exists():
        raise InputError(f"source '{shorten(source)}'", "does not exist",
                         expected=f"a study's workdir or archive (NAME{SUFFIX}), or a CSV or "
                         "Parquet file")
    if Path(source).is_file():
        return read_archive(source)
    if not path.is_file():
        raise InputError(f"source '{source}'", "is no study's workdir",
                         expected=f"a folder with {STORE_FILE}, an archive (NAME{SUFFIX}), or a "
                         "CSV or Parquet file",
                         hint="deepnarrow study CONFIG --workdir DIR makes one")
    with Store(path, read_only=True) as store:
        keys = planned_keys(Path(source))
        return [r for r in store.records() if keys is None or r.key in keys]


def pareto(options: argparse.Namespace) -> Output:
    """Shows which shapes are on the front of each cost and quality, and how surely."""
    from deepnarrow.claims import claims_of
    from deepnarrow.pareto import fronts, joint_fronts
    from deepnarrow.report.terminal import joint_tables, pareto_tables

    if options.joint and options.claims:
        raise InputError("--claims", "is about one cost and one quality", hint="leave out --joint")
    costs = [axis("--cost", text) for text in options.cost]
    qualities = [axis("--quality", text) for text in options.quality]
    for name, direction in costs:
        if direction == "max":
            raise InputError("--cost", "a cost is better where it is less", got=f"{name}:max",
                             expected=f"{name}:min")
    _refuse_repeats(costs, qualities)
    table = load_table(options.sources)
    names = [name for name, _ in costs] or default_costs(table)
    chosen = qualities or default_qualities(table)
    if options.chip is not None:
        table, predicted = _predicted(table, options.sources, options.chip)
        names.append(predicted)
    if options.joint:
        joint = joint_fronts(table, names, chosen)
        return Output({"fronts": [dataclasses.asdict(front) for front in joint]},
                      lambda console: _show(console, joint_tables(joint)))
    found = fronts(table, names, chosen)
    document: dict[str, Any] = {"fronts": [dataclasses.asdict(front) for front in found]}
    if not options.claims:
        return Output(document, lambda console: _show(console, pareto_tables(found)))
    margin = number("--margin", options.margin)
    made = [one for front in found if (one := claims_of(table, front, margin)) is not None]
    agreed = claims.agreements_of(table, found)
    document |= {"claims": claims.document(made), "agreements": [
        {"modality": domain, **dataclasses.asdict(one)} for domain, one in agreed]}

    def show(console: Console) -> None:
        _show(console, pareto_tables(found))
        claims.show(console, made)
        claims.show_agreements(console, agreed)

    return Output(document, show)


def _refuse_repeats(
    costs: Sequence[tuple[str, str | None]], qualities: Sequence[tuple[str, str | None]]
) -> None:
    flags = [("--cost", name) for name, _ in costs] + [("--quality", name) for name, _ in qualities]
    seen: dict[str, str] = {}
    for flag, name in flags:
        if name in seen:
            raise InputError(flag, "is given twice" if seen[name] == flag else
                             "is a cost already", got=shorten(name), hint="leave one out")
        seen[name] = flag


def _predicted(table: Table, sources: Sequence[str], chip: str) -> tuple[Table, str]:
    from deepnarrow.hardware import chip_named
    from deepnarrow.plugins import registry
    from deepnarrow.predicted import with_predicted

    records = load_records([source for source in sources if not is_table(source)])
    return with_predicted(table, records, chip_named(chip), registry())


def axis(flag: str, text: str) -> tuple[str, str | None]:
    """Splits `NAME[:min|max]`."""
    name, colon, direction = text.rpartition(":")
    if not colon:
        return text, None
    if direction not in ("min", "max") or not name:
        raise InputError(flag, "is no axis", got=repr(text), expected="NAME, NAME:min or NAME:max")
    return name, direction


def default_costs(table: Table) -> list[str]:
    """The costs that are looked at where none are named.

    Raises:
      InputError: the table is somebody's own and has no cost column of a known name.
    """
    from deepnarrow.pareto import FRONT_COSTS
    from deepnarrow.records import COSTS
    from deepnarrow.table import ALIASES

    if table.costs:
        return list(FRONT_COSTS)
    known = [name for name in (*ALIASES, *COSTS, "cost") if name in table.columns]
    if not known:
        raise InputError("--cost", "is missing", expected=_numeric(table),
                         hint="name the column, e.g. --cost params:min")
    return known


def default_qualities(table: Table) -> list[tuple[str, str | None]] | None:
    """None, for all known ones.

    Raises:
      InputError: the table is somebody's own: which columns are qualities?
    """
    if table.qualities:
        return None
    raise InputError("--quality", "is missing", expected=_numeric(table),
                     hint="name the column, e.g. --quality accuracy:max")


def _numeric(table: Table) -> str:
    names = [shorten(name, 40) for name, values in table.columns.items() if values.dtype != object]
    return f"one of {', '.join(names)}" if names else "a column of numbers"


def _show(console: Console, tables: Sequence[Shown]) -> None:
    for made in tables:
        console.print(made)


def report(options: argparse.Namespace) -> Output:
    """Writes the HTML report, its figures and its tables."""
    out = Path(options.out)
    is_page = out.suffix.lower() == ".html"
    if is_page and out.is_dir():
        raise InputError("--out", "is a folder", got=repr(options.out), expected="a file's path",
                         hint=f"--out {out / 'report.html'}")
    if not is_page and out.is_file():
        raise InputError("--out", "is no folder", got=repr(options.out),
                         expected="a path that ends in .html, or a folder for report.html")
    costs = [axis("--cost", text) for text in options.cost]
    qualities = [axis("--quality", text) for text in options.quality]
    files = [source for source in options.sources if is_table(source)]
    records = load_records([source for source in options.sources if source not in files])
    if not files and (costs or qualities or options.by):
        raise InputError("--cost, --quality and --by", "say what columns of a file are", expected=
                         "a CSV or Parquet file among the sources", hint="leave them out")
    tables = _tables(files, options.by, [name for name, _ in costs], qualities)
    from deepnarrow.report import write_report

    names = [*(record.study for record in records), *(Path(source).stem for source in files)]
    title = ", ".join(dict.fromkeys(names)) or "no records"
    written = [str(path) for path in (
        _write_page(records, out, title, tables, options.reference) if is_page
        else write_report(records, out, title, tables, options.reference))]
    return Output({"files": written}, lambda console: _show_files(console, written))


def _tables(
    sources: Sequence[str], by: str | None, costs: Sequence[str],
    qualities: Sequence[tuple[str, str | None]],
) -> list[Table]:
    """Returns the tables of files, each with its costs, qualities and directions known."""
    from deepnarrow.pareto import quality_columns
    from deepnarrow.table import find_column
    from deepnarrow.tablefile import read_table

    _refuse_twice(sources)
    made = []
    for source in sources:
        found = read_table(source, by)
        if not found.done.any():
            raise InputError(f"source '{shorten(source)}'", "no finished runs")
        if not found.qualities:
            chosen = quality_columns(found, qualities or default_qualities(found))
            columns = [find_column(found, name, "cost") for name in costs or default_costs(found)]
            found = dataclasses.replace(
                found, costs=tuple(columns), qualities=tuple(name for name, _ in chosen),
                directions=dict(chosen))
        made.append(found)
    return made


def _write_page(
    records: Sequence[Record], page: Path, title: str, tables: Sequence[Table],
    reference: str | None,
) -> list[Path]:
    """Writes the report as `page`, its figures beside it; no other page there is touched."""
    from deepnarrow.report import write_report

    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=page.parent, prefix=f".{page.name}.") as folder:
            first, *figures = write_report(records, folder, title, tables, reference)
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
