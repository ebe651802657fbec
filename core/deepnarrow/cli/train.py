"""`deepnarrow train`: one training run, with the transfers that its config names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table
from deepnarrow.cli.study import duration
from deepnarrow.errors import InputError, InputErrors, shorten

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.config import StudyConfig
    from deepnarrow.study import TrainSummary

EXIT_DIVERGED = 3


def run(options: argparse.Namespace) -> Output:
    """Trains, or goes on with training, or shows how it ended."""
    from deepnarrow.config import load_config
    from deepnarrow.hosts import join
    from deepnarrow.plugins import registry
    from deepnarrow.study import exit_code_of, train_one

    extra = ["run.profile=True"] if options.profile else []
    config = load_config(options.config, [*options.settings, *extra])
    check_single(config)
    hosts = join(options.coordinator, options.num_processes, options.process_id)
    summary = train_one(config, options.workdir, registry(), hosts)
    status = summary.record.status
    if status == "failed" and hosts.first:
        print(f"error: {shorten(summary.record.environment['error'], 500)}", file=sys.stderr)
    code = {"failed": exit_code_of([summary.record]), "diverged": EXIT_DIVERGED}.get(status, 0)
    document = _document(summary)
    return Output(document, lambda console: _show(console, document), exit_code=code,
                  quiet=not hosts.first)


def check_single(config: StudyConfig) -> None:
    """Checks that a config describes one cell and one seed.

    Raises:
      InputErrors: it describes several; each error says of what, and how to narrow it.
    """
    errors = [
        InputError("deepnarrow train", f"takes one training run, but {what} has {len(values)}",
                   got=", ".join(map(str, values)), expected="one", hint=hint)
        for what, values, hint in _lists(config) if len(values) > 1]
    if errors:
        raise InputErrors(errors)


def _lists(config: StudyConfig) -> Iterator[tuple[str, tuple[object, ...], str]]:
    """What a study lists, and the `--set` that leaves its first."""
    names = tuple(config.modalities)
    others = " ".join(f"--set modalities.{name}=None" for name in names[1:])
    yield "modalities", names, others
    yield "seeds", config.seeds, f'--set "seeds=({config.seeds[0]},)"'
    for name, part in config.modalities.items():
        for field, values in (("shapes", part.shapes), ("architectures", part.architectures)):
            place = f"modalities.{name}.{field}"
            yield place, values, f"--set \"{place}=('{values[0]}',)\""


def _document(summary: TrainSummary) -> dict[str, Any]:
    record = summary.record
    loss = next((m.value for m in record.metrics if (m.stage, m.metric) == ("upstream", "loss")),
                None)
    trace = summary.run_dir / "profile"
    return {
        "workdir": str(summary.workdir), "run_dir": str(summary.run_dir),
        "checkpoint": str(summary.checkpoint) if summary.checkpoint else None,
        "key": record.key, "modality": record.modality, "architecture": record.architecture,
        "name": record.name, "seed": record.seed, "status": record.status,
        "error": record.environment.get("error"), "trained_now": summary.trained,
        "steps": summary.steps, "total_steps": summary.total_steps, "loss": loss,
        "seconds": record.environment.get("seconds"),
        "step_time_s": record.costs.get("step_time_s"),
        "parts_s": record.environment.get("parts", {}),
        "profile": str(trace) if trace.exists() else None,
        "metrics": [{"stage": m.stage, "task": m.task, "metric": m.metric, "value": m.value,
                     "origin": m.origin, "shots": m.shots, "shot_seed": m.shot_seed,
                     "finetune_seed": m.finetune_seed} for m in record.metrics],
    }


def _show(console: Console, document: dict[str, Any]) -> None:
    rows = [(name, document[name]) for name in ("modality", "architecture", "name", "seed",
                                                "status", "error") if document[name] is not None]
    rows.append(("steps", f"{document['steps']} of {document['total_steps']}"))
    rows += [(f"upstream {m['metric']}", _number(m["value"])) for m in document["metrics"]
             if m["stage"] == "upstream"]
    if document["seconds"] is not None:
        rows.append(("time", duration(document["seconds"])))
    if document["step_time_s"] is not None:
        rows.append(("step time", f"{document['step_time_s'] * 1000:.3g} ms"))
    console.print(table(["run", "value"], rows))
    if document["profile"]:
        console.print(_parts(document["parts_s"]))
        console.print(f"trace: {document['profile']} (open its perfetto_trace.json.gz at "
                      "ui.perfetto.dev)", markup=False, soft_wrap=True)
    transfers = sum(m["stage"] != "upstream" for m in document["metrics"])
    if transfers:
        console.print(f"transfer: {transfers} numbers; deepnarrow report {document['workdir']} "
                      "--out FOLDER draws them", markup=False, soft_wrap=True)
    if document["checkpoint"]:
        console.print(f"checkpoint: {document['checkpoint']}", markup=False, soft_wrap=True)


_PARTS = {
    "build": "making the programs, the step compiled", "compile": "compiling in the loop",
    "input": "waiting for input", "step": "training steps", "evaluation": "evaluation",
    "checkpoint": "checkpoints",
}


def _parts(seconds: dict[str, float]) -> Any:
    """What the wall time of pre-training went to."""
    total = sum(seconds.values()) or 1.0
    return table(["pre-training's time", "seconds", "share"],
                 [(title, f"{seconds.get(part, 0.0):.2f}", f"{seconds.get(part, 0.0) / total:.1%}")
                  for part, title in _PARTS.items()])


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
