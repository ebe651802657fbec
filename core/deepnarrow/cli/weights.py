"""`deepnarrow import` and `deepnarrow export`: weights from and to foreign layouts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.rundir import RunInfo


def import_(options: argparse.Namespace) -> Output:
    """Makes a run directory of a foreign checkpoint."""
    from deepnarrow.foreign import import_checkpoint
    from deepnarrow.plugins import registry
    from deepnarrow.settings import Report, parse_settings

    report = Report("deepnarrow import")
    settings = {".".join(map(str, keys)): value
                for keys, value in parse_settings(options.settings, report).items()}
    report.raise_any()
    info = import_checkpoint(options.modality, options.format, options.source, options.run_dir,
                             registry(), settings)
    return _output(info, options.run_dir)


def export(options: argparse.Namespace) -> Output:
    """Writes a run's weights in a foreign layout."""
    from deepnarrow.foreign import export_checkpoint
    from deepnarrow.plugins import registry

    info = export_checkpoint(options.run_dir, options.format, options.target, registry())
    return _output(info, options.target)


def _output(info: RunInfo, written: str) -> Output:
    document = {"written": written, "modality": info.modality, "architecture": info.architecture,
                "name": info.name, "shape": info.shape.to_dict(), "options": dict(info.options),
                "source": dict(info.source), "data_files": dict(info.data_files)}
    return Output(document, lambda console: _show(console, document))


def _show(console: Console, document: dict[str, Any]) -> None:
    rows = [(name, document[name]) for name in ("modality", "architecture", "name")]
    rows += document["shape"].items()
    rows += [(f"options.{name}", value) for name, value in document["options"].items()]
    rows += [(f"data.{option}", own["path"] if own else "came without")
             for option, own in document["data_files"].items()]
    console.print(table(["", "value"], rows))
    console.print(f"written: {document['written']}", markup=False, soft_wrap=True)
