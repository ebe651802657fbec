"""Pictures and tables of records: `write_report` (page, figures, CSV), `terminal.pareto_tables`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepnarrow.records import Record

if TYPE_CHECKING:
    from deepnarrow.table import Table


def write_report(
    records: Iterable[Record], directory: str | Path, title: str, tables: Sequence[Table] = (),
    reference: str | None = None,
) -> list[Path]:
    """Writes `report.html`, its figures as PNG and SVG, and its tables as CSV into `directory`.

    The directory is made if absent. The page holds everything it shows: it opens offline and loads
    nothing; its one script, which the page's policy names by hash, lets the reader choose axes and
    shapes, and without it the figures stand. The same input gives the same bytes. Names in records
    are data: whatever they hold, they stay text.

    Args:
      records: trials of one study, or of several under one protocol; may be empty.
      directory: where the files go; files of the same names are replaced.
      title: the page's heading.
      tables: rows of other people, whose `costs`, `qualities` and `directions` are known.
      reference: pattern of the reference family's shapes, see `operators.family_of`.

    Returns:
      The files, `report.html` first.

    Raises:
      InputError: the directory cannot be written, the records mix settings (see
        `summary.shape_table`), or `reference` matches no shape.
    """
    # Drawing takes a second to import; the tables for the terminal do not need it.
    from deepnarrow.report.page import write_files

    return write_files(list(records), Path(directory), title, tables, reference)
