"""The report's tables as CSV files: what the page shows, whole, with the trials behind each row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from deepnarrow.export import COLUMNS, flat_rows
from deepnarrow.records import Record
from deepnarrow.report import results, tuned
from deepnarrow.report.findings import Findings
from deepnarrow.report.sheets import Sheet, Sources, safe, to_csv
from deepnarrow.report.tables import Curve, TransferTable

# By domain.
Measured = Mapping[str, tuple[Mapping[str, list[Curve]], Sequence[TransferTable], tuned.Tuned]]


def of(
    found: Findings, sources: Sources, trials: Sequence[Record], measured: Measured
) -> dict[str, bytes]:
    """Returns the files by name; one that would have no row is left out.

    Args:
      found: by the analyses.
      sources: of the shapes.
      trials: whose metrics are listed, each with its seeds.
      measured: learning curves, transfer and learning rates, by domain.
    """
    sheets: dict[str, list[Sheet]] = {}
    for domain in found.domains:
        name, claims = domain.name, domain.claims
        for sheet in (
            results.shapes(domain), results.qualities(domain), results.fronts(domain.fronts, name),
            *(make(claims, name) for make in (
                results.matches, results.savings, results.gains, results.depth_limits,
                results.rungs, results.steps)),
            results.agreement(domain.agreements, name), results.inversions(domain.agreements, name),
            results.laws(domain.laws, name), results.worth(domain.worths, name),
            *_measured(name, measured),
        ):
            sheets.setdefault(sheet.name, []).append(sheet)
    for make in (results.effects, results.verdicts, results.taus, results.deep_tests):
        sheet = make(found.comparisons)
        sheets[sheet.name] = [sheet]
    made = {f"{name}.csv": to_csv(group, sources) for name, group in sheets.items()
            if any(sheet.rows for sheet in group)}
    return made | ({"metrics.csv": _metrics(trials)} if trials else {})


def _measured(domain: str, measured: Measured) -> tuple[Sheet, ...]:
    curves, transfer, rates = measured.get(domain, ({}, [], ()))
    return (results.curves(curves, domain), results.transfer(transfer, domain),
            tuned.sheet(rates, domain))


def _metrics(trials: Sequence[Record]) -> bytes:
    """A row a trial and metric, with every seed in a column of its own."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    cells: Any
    for row in flat_rows(trials):
        cells = [safe(value) for value in row.values()]
        writer.writerow(cells)
    return file.getvalue().encode("utf-8", "backslashreplace")
