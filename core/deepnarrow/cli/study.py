"""`deepnarrow study` and `deepnarrow status`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table
from deepnarrow.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.study import StudySummary


def run(options: argparse.Namespace) -> Output:
    """Runs a study, or shows what it would do."""
    from deepnarrow.config import load_config
    from deepnarrow.hosts import join
    from deepnarrow.plugins import registry
    from deepnarrow.study import dry_run, run_study

    if options.dry_run:
        cells = dry_run(load_config(options.config, options.settings), registry())
        return Output({"cells": cells}, lambda console: _show_cells(console, cells))
    if not options.workdir:
        raise InputError("deepnarrow study", "--workdir is missing",
                         expected="a folder for records and report", hint="--workdir runs/NAME")
    config = load_config(options.config, options.settings)
    hosts = join(options.coordinator, options.num_processes, options.process_id)
    summary = run_study(config, options.workdir, registry(), options.launcher, hosts)
    document = {"workdir": str(summary.workdir), "trained": summary.trained,
                "counts": dict(summary.counts), "seconds": summary.seconds,
                "files": [str(path) for path in summary.files]}
    return Output(document, lambda console: _show_summary(console, summary),
                  exit_code=summary.exit_code, quiet=not hosts.first)


def _show_cells(console: Console, cells: list[dict[str, Any]]) -> None:
    from deepnarrow.report.text import cost, count

    rows = [(c["modality"], c["architecture"], c["name"], c["seeds"], c["steps"],
             count(c["params"], "B"), count(c["params_non_embedding"], "B"),
             count(c["flops_train_total"]), duration(c["seconds_estimate"]),
             cost("peak_bytes", c["disk_bytes_estimate"])) for c in cells]
    console.print(table(["modality", "architecture", "shape", "seeds:", "steps:", "params:",
                         "non-embedding:", "train FLOPs:", "time (estimate):", "disk (at most):"],
                        rows))
    total, tuning = (sum(c[name] for c in cells)
                     for name in ("seconds_estimate", "tries_seconds_estimate"))
    console.print(f"{len(cells)} cells, about {duration(total + tuning)} without compiling and "
                  "transfer")
    if tries := sum(c["tries"] for c in cells):
        console.print(f"of that {tries} tries of learning rates, about {duration(tuning)}, if no "
                      "grid is extended")


def _show_summary(console: Console, summary: StudySummary) -> None:
    from deepnarrow.cli.analysis import load_records
    from deepnarrow.pareto import fronts
    from deepnarrow.report.terminal import pareto_tables
    from deepnarrow.summary import headline_qualities
    from deepnarrow.table import from_records

    found = fronts(from_records(load_records([str(summary.workdir)])))
    shown = headline_qualities({front.quality for front in found})
    for made in pareto_tables([front for front in found if front.quality in shown]):
        console.print(made)
    counts = ", ".join(f"{number} {status}" for status, number in summary.counts.items())
    console.print(f"trained {summary.trained} trials in {duration(summary.seconds)}; in the "
                  f"workdir: {counts or 'no records'}", markup=False)
    for path in summary.files:
        if path.suffix == ".html":
            console.print(f"report: {path}", markup=False, soft_wrap=True)


def status(options: argparse.Namespace) -> Output:
    """Shows how far a study is, also while it runs."""
    from deepnarrow.study import study_status

    state = study_status(options.workdir)
    return Output(state, lambda console: _show_status(console, state))


def _show_status(console: Console, state: dict[str, Any]) -> None:
    left = state["seconds_left"]
    busy = len(state["running"]) - state["tries"]["running"]
    rows = [(name, busy if name == "running" else value) for name, value in state.items()
            if name not in ("seconds_left", "data_order", "tries")]
    console.print(table(["trials", "number:"], rows))
    if state["tries"]["total"]:
        console.print(table(["tries", "number:"], list(state["tries"].items())))
    for trial in state["running"]:
        known = (trial.get(key) for key in ("modality", "name", "seed"))
        console.print("now: " + " ".join(str(v) for v in known if v is not None), markup=False)
    order = state["data_order"]
    console.print(f"logs of the order of data: {order['checked']}, damaged: "
                  f"{len(order['damaged'])}")
    for message in order["damaged"]:
        console.print(f"damaged: {message}", markup=False)
    console.print(f"time left: {'unknown yet' if left is None else 'about ' + duration(left)}")


def duration(seconds: float) -> str:
    """Shows a duration for people.

    >>> duration(5.25), duration(75), duration(7200)
    ('5.2 s', '1 min 15 s', '2 h 0 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
