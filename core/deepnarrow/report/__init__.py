"""Pictures and tables of records: `write_report` (HTML and PNG), `terminal.pareto_tables`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deepnarrow.records import Record


def write_report(records: Iterable[Record], directory: str | Path, title: str) -> list[Path]:
    """Writes `report.html` and the same figures as PNG into `directory`, which is made if absent.

    The page holds everything it shows: it opens offline, runs no script and loads nothing. The same
    records give the same bytes. Names in records are data: whatever they hold, they stay text.

    Args:
      records: trials of one study, or of several under one protocol; may be empty.
      directory: where the files go; files of the same names are replaced.
      title: the page's heading.

    Returns:
      The files, `report.html` first.

    Raises:
      InputError: the directory cannot be written, or the records mix settings (see
        `summary.shape_table`).
    """
    # Drawing takes a second to import; the tables for the terminal do not need it.
    from deepnarrow.report.page import write_files

    return write_files(list(records), Path(directory), title)
