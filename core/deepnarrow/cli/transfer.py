"""`deepnarrow transfer`: few-shot probe and fine-tuning of one trained model."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table
from deepnarrow.errors import InputError, Preempted, shorten, suggest

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.config import StudyConfig
    from deepnarrow.modality import Modality
    from deepnarrow.plugins import Registry
    from deepnarrow.records import Record
    from deepnarrow.rundir import RunInfo

EXIT_FAILED = 1
STAGES = ("few_shot", "fine_tune")
# Without a config: the T5 paper's optimiser and dropout, and a budget for small tasks.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "few_shot": {"shots": (1, 5, 10), "seeds": 3},
    "fine_tune": {"examples": 20_000, "batch_size": 32, "seeds": 3, "dropout_rate": 0.1,
                  "optimizer": {"name": "adafactor", "learning_rate": 1e-3,
                                "schedule": "constant"}},
}


def run(options: argparse.Namespace) -> Output:
    """Transfers the model of a run directory to tasks, and shows what it got."""
    from deepnarrow.plugins import registry
    from deepnarrow.rundir import read_run
    from deepnarrow.study import train_one

    info = read_run(options.run_dir)
    config = transfer_config(info, options.run_dir, registry(), tasks=options.tasks,
                             config=options.config, settings=options.settings)
    with _workdir(options.workdir) as workdir:
        record = train_one(config, workdir, registry()).record
    failed = record.status == "failed"
    if failed:
        print(f"error: {shorten(record.environment['error'], 500)}", file=sys.stderr)
    document = _document(options.run_dir, info, record)
    return Output(document, lambda console: _show(console, document),
                  exit_code=EXIT_FAILED if failed else 0)


@contextlib.contextmanager
def _workdir(given: str | None) -> Iterator[str]:
    """The user's folder, where the same command goes on, or one for this time only."""
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="deepnarrow-transfer-") as made:
        try:
            yield made
        except Preempted as stop:  # what it has saved goes with the folder
            raise KeyboardInterrupt("nothing is kept; with --workdir DIR the same command would go "
                                    "on from here") from stop


def transfer_config(
    info: RunInfo, run_dir: str, registry: Registry, *, tasks: str | None = None,
    config: str | None = None, settings: Sequence[str] = (),
) -> StudyConfig:
    """Returns the study of one checkpoint that the command runs.

    Args:
      info: what the run directory says.
      run_dir: the run directory.
      registry: of the loaded plugins.
      tasks: names with commas between them; the config's unless given.
      config: a study's config, whose transfer stages and data are used; the defaults without.
      settings: `a.b=value` texts inside the modality's part, e.g. `data.source=digits`.

    Raises:
      InputErrors: whatever is wrong with them.
    """
    from deepnarrow.config import ModalityStudy, from_json
    from deepnarrow.settings import Report, apply_settings, parse_settings

    if not tasks and not config:
        raise InputError("deepnarrow transfer", "--tasks is missing", expected="a task, or several "
                         "with commas between", hint="deepnarrow list tasks; or give --config")
    report = Report("deepnarrow transfer")
    given = parse_settings(settings, report)
    report.given = given.keys()
    part = _part_of_config(config, info) if config else {
        "protocol": {stage: {"tasks": (), **DEFAULTS[stage]} for stage in STAGES},
        "data": dict(info.data)}
    part = apply_settings(part, given, ModalityStudy, report)
    report.raise_any()
    modality = registry.modality(info.modality)
    if tasks:
        part["protocol"] = _with_tasks(part, tasks.split(","), modality, registry)
    part |= {"modality": info.modality,
             "checkpoints": [{"name": info.name, "format": "run", "path": run_dir}]}
    return from_json({"name": "transfer", "seeds": [0], "modalities": {info.modality: part}},
                     "deepnarrow transfer")


def _part_of_config(path: str, info: RunInfo) -> dict[str, Any]:
    """The transfer stages, data and options of the config's part for the run's modality."""
    from deepnarrow.config import load_config, to_json

    parts = to_json(load_config(path))["modalities"]
    if info.modality not in parts:
        raise InputError(f"config '{path}'", "has no part for the run's modality",
                         got=", ".join(parts), expected=info.modality)
    part = parts[info.modality]
    return {"protocol": {stage: part["protocol"][stage] for stage in STAGES},
            "data": part["data"], "options": part["options"]}


def _with_tasks(
    part: Mapping[str, Any], names: Sequence[str], modality: Modality, registry: Registry
) -> dict[str, Any]:
    """The protocol with each task in the stages that it serves; a stage without tasks is left out.

    Raises:
      InputError: there is no such task.
    """
    from deepnarrow.config import resolve_options

    data = resolve_options(modality.data_options, part.get("data", {}), "data")
    known = {**modality.tasks(data, modality.options), **registry.tasks.get(modality.name, {})}
    for name in names:
        if name not in known:
            near = suggest(name, known)
            raise InputError("--tasks", f"{modality.name} has no such task", got=repr(name),
                             expected=f"one of {', '.join(known)}",
                             hint=f"did you mean {near}?" if near else None)
    protocol: dict[str, Any] = {}
    for stage in STAGES:
        serving = [name for name in names if stage in known[name].kinds]
        wanted = part["protocol"].get(stage)
        protocol[stage] = {**wanted, "tasks": serving} if wanted and serving else None
    return protocol


# --- what is shown --------------------------------------------------------------------------------
def _document(run_dir: str, info: RunInfo, record: Record) -> dict[str, Any]:
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in record.metrics:
        key = (row.stage, row.task, row.metric, row.shots, row.origin)
        groups.setdefault(key, []).extend([] if row.value is None else [row.value])
    results = [
        {"stage": stage, "task": task, "metric": metric, "shots": shots, "origin": origin,
         "mean": statistics.fmean(found) if found else None,
         "sd": statistics.stdev(found) if len(found) > 1 else None, "values": found}
        for (stage, task, metric, shots, origin), found in groups.items()]
    protocol = {stage: record.config["protocol"][stage] for stage in STAGES}
    return {"run_dir": run_dir, "modality": info.modality, "name": info.name,
            "source": dict(info.source), "status": record.status,
            "error": record.environment.get("error"), "protocol": protocol,
            "seconds": record.environment.get("seconds"), "results": results}


def _show(console: Console, document: dict[str, Any]) -> None:
    from deepnarrow.cli.study import duration
    from deepnarrow.report.text import quality

    for stage, settings in document["protocol"].items():
        said = "left out" if settings is None else ", ".join(
            f"{name} {_plain(value)}" for name, value in settings.items())
        console.print(f"{stage}: {said}", markup=False, soft_wrap=True)
    rows = [(row["task"], row["stage"], row["metric"], row["shots"], row["origin"],
             quality(row["mean"], row["sd"]), len(row["values"])) for row in document["results"]]
    console.print(table(["task", "stage", "metric", "shots:", "network", "value:", "runs:"], rows))
    time = f" in {duration(document['seconds'])}" if document["seconds"] is not None else ""
    console.print(f"{document['name']}: {document['status']}{time}; mean and sd over draws of the "
                  "shots, or fine-tunings", markup=False)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name} {_plain(v)}' for name, v in value.items())})"
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
