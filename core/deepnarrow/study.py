"""A study: grid -> trials -> records. A finished key is never run twice, wherever it finished.

This module plans, resumes and reports; `trial.py` trains. JAX is imported only when there is a
trial to run, so a finished study returns in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepnarrow.assemble import check_operators, count_costs
from deepnarrow.config import ModalityStudy, StudyConfig, resolve_options, to_json
from deepnarrow.cost import CostSummary, summarize
from deepnarrow.errors import InputError, Preempted
from deepnarrow.files import WorkdirLock, write_json
from deepnarrow.modality import Modality, Task, Upstream
from deepnarrow.ops import NamedShape, resolve
from deepnarrow.plugins import Registry
from deepnarrow.protocol import Protocol
from deepnarrow.store import Store
from deepnarrow.trialkey import trial_key

PLAN_FILE = "plan.json"
STORE_FILE = "records.sqlite"
STATE_FILE = "running.json"


@dataclasses.dataclass(frozen=True)
class ModalityData:
    """A modality's data, opened once for all of its cells."""

    modality: Modality
    upstream: Upstream
    tasks: Mapping[str, Task]
    hashes: Mapping[str, str]  # what was read -> sha256 of its content


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run with its transfers.

    Attributes:
      modality: name of the modality.
      architecture: name of the architecture.
      shape: the shape with its canonical name.
      options: the model's resolved options.
      data: content hashes of everything it reads.
      protocol: budgets and stages.
      seed: the pre-training seed.
    """

    modality: str
    architecture: str
    shape: NamedShape
    options: Mapping[str, Any]
    data: Mapping[str, str]
    protocol: Protocol
    seed: int

    def config(self) -> dict[str, Any]:
        """Everything that determines the result, JSON-able: what the key is a hash of."""
        return {
            "modality": self.modality,
            "architecture": self.architecture,
            "shape": self.shape.shape.to_dict(),
            "options": dict(self.options),
            "data": dict(self.data),
            "protocol": dataclasses.asdict(self.protocol),
            "seed": self.seed,
        }

    @property
    def key(self) -> str:
        """Hash of `config()`: no workdir, launcher, logging or device in it."""
        return trial_key(self.config())


@dataclasses.dataclass(frozen=True)
class Unit:
    """Trials that share compiled programs: the seeds of one cell."""

    trials: tuple[Trial, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a cell costs, before it is run."""

    trial: Trial
    costs: CostSummary
    steps: int

    @property
    def flops_train_total(self) -> float:
        """FLOPs of the whole pre-training."""
        examples = self.steps * self.trial.protocol.batch_size
        return self.costs.flops_train_per_example * examples


@dataclasses.dataclass(frozen=True)
class StudySummary:
    """How a call of `run_study` ended."""

    workdir: Path
    trained: int
    counts: Mapping[str, int]
    seconds: float
    files: Sequence[Path]


# --- planning ---------------------------------------------------------------------------------
def open_data(study: ModalityStudy, registry: Registry) -> ModalityData:
    """Opens upstream data and the tasks that the protocol names; hashes their content.

    Raises:
      InputError: a task that does not exist or does not serve the stage that asks for it.
    """
    modality = registry.modality(study.modality)
    where = f"modalities.{study.modality}"
    data = resolve_options(modality.data_options, study.data, f"{where}.data")
    options = resolve_options(modality.options, study.options, f"{where}.options")
    upstream = modality.upstream(data, options)
    known = {**modality.tasks(data, options), **registry.tasks.get(modality.name, {})}
    tasks, hashes = (
        {},
        {
            "upstream/train": upstream.train.content_hash,
            "upstream/validation": upstream.validation.content_hash,
        },
    )
    for kind, stage in (
        ("few_shot", study.protocol.few_shot),
        ("fine_tune", study.protocol.fine_tune),
    ):
        for name in stage.tasks if stage else ():
            tasks[name] = _find_task(known, name, kind, f"{where}.protocol.{kind}")
            splits = ("train", "test") if kind == "few_shot" else ("train", "validation", "test")
            hashes |= {f"{name}/{s}": tasks[name].examples(s).content_hash for s in splits}
    return ModalityData(modality, upstream, tasks, hashes)


def _find_task(known: Mapping[str, Task], name: str, kind: str, where: str) -> Task:
    serving = [n for n, task in known.items() if kind in task.kinds]
    if name not in serving:
        raise InputError(
            f"{where}.tasks",
            "no such task for this stage",
            got=name,
            expected=f"one of {', '.join(serving) or '(none)'}",
        )
    return known[name]


def _cell_options(study: ModalityStudy, data: ModalityData, named: NamedShape) -> dict[str, Any]:
    """The preset's defaults, then the user's options, the data's and the shape's name's.

    Raises:
      InputError: two of the last three contradict each other.
    """
    where = f"modalities.{study.modality}.options"
    decided = data.upstream.options
    chosen = named.options(study.options, f"{where}.")
    for name, value in decided.items():
        if (name in study.options or name in named.fixed) and chosen[name] != value:
            raise InputError(
                f"{where}.{name}" if name in study.options else f"shape {named.name!r}, {name}",
                "the data decides this option",
                got=chosen[name],
                expected=value,
                hint="leave it out",
            )
    return resolve_options(data.modality.options, {**chosen, **decided}, where).to_dict()


def plan_trials(
    config: StudyConfig, registry: Registry, data: Mapping[str, ModalityData]
) -> list[Trial]:
    """Returns the grid's trials, cell by cell, seeds innermost; equal shapes are run once."""
    trials: dict[str, Trial] = {}
    for name, study in config.modalities.items():
        vocabulary = registry.vocabulary(data[name].modality)
        for architecture in study.architectures:
            built_of = registry.architecture(architecture)
            for expression in study.shapes:
                named = resolve(expression, vocabulary)
                check_operators(named, built_of)
                options = _cell_options(study, data[name], named)
                for seed in config.seeds:
                    trial = Trial(
                        study.modality,
                        architecture,
                        named,
                        options,
                        data[name].hashes,
                        study.protocol,
                        seed,
                    )
                    trials.setdefault(trial.key, trial)
    return list(trials.values())


def count_cell(trial: Trial, registry: Registry, data: ModalityData) -> Cell:
    """Counts a trial's costs in closed form and the steps its budget pays for."""
    options = resolve_options(data.modality.options, trial.options, "options")
    architecture = registry.architecture(trial.architecture)
    costs = summarize(count_costs(data.modality, architecture, trial.shape.shape, options))
    steps = trial.protocol.budget.steps(
        trial.protocol.batch_size,
        data.upstream.train.tokens_per_example,
        costs.flops_train_per_example,
    )
    _check_steps(trial, steps)
    return Cell(trial, costs, steps)


def _check_steps(trial: Trial, steps: int) -> None:
    where = f"modalities.{trial.modality}.protocol"
    protocol = trial.protocol
    if protocol.optimizer.warmup_steps >= steps:
        raise InputError(
            f"{where}.optimizer.warmup_steps",
            "warm-up does not fit the budget",
            got=protocol.optimizer.warmup_steps,
            expected=f"< {steps} steps",
            hint="lower warmup_steps or raise budget.amount",
        )
    tune = protocol.fine_tune
    if tune and tune.optimizer.warmup_steps >= max(1, tune.examples // tune.batch_size):
        raise InputError(
            f"{where}.fine_tune.optimizer.warmup_steps",
            "warm-up does not fit the budget",
            got=tune.optimizer.warmup_steps,
            expected=f"< {tune.examples // tune.batch_size} steps",
        )


def dry_run(config: StudyConfig, registry: Registry) -> list[dict[str, Any]]:
    """Returns every cell with its costs, an estimate of its time and its disk; trains nothing."""
    from deepnarrow.hostspeed import measure_matmul_flops

    data = {name: open_data(study, registry) for name, study in config.modalities.items()}
    speed = measure_matmul_flops() * ASSUMED_EFFICIENCY
    rows, seen = [], set()
    for trial in plan_trials(config, registry, data):
        cell_key = (trial.modality, trial.architecture, trial.shape.name)
        if cell_key in seen:
            continue
        seen.add(cell_key)
        cell = count_cell(trial, registry, data[trial.modality])
        rows.append(
            {
                "modality": trial.modality,
                "architecture": trial.architecture,
                "name": trial.shape.name,
                "seeds": len(config.seeds),
                "steps": cell.steps,
                "params": cell.costs.params_total,
                "params_non_embedding": cell.costs.params_non_embedding,
                "flops_train_total": cell.flops_train_total,
                "seconds_estimate": len(config.seeds) * cell.flops_train_total / speed,
                "disk_bytes_estimate": len(config.seeds)
                * cell.costs.params_total
                * CHECKPOINT_BYTES,
            }
        )
    return rows


# An assumption: small shapes reach about a third of the host's matmul speed; compile time and
# transfers come on top. The estimate orders cells, it does not promise minutes.
ASSUMED_EFFICIENCY = 0.33
# Two checkpoints of float32 params and two moments: an upper bound (Adafactor stores less).
CHECKPOINT_BYTES = 2 * 3 * 4


# --- running ----------------------------------------------------------------------------------
def run_study(
    config: StudyConfig, workdir: str | Path, registry: Registry, launcher: str = "local"
) -> StudySummary:
    """Runs every trial that has not finished, then writes the report.

    Raises:
      InputError: bad config, data or workdir; nothing was trained.
      Preempted: asked to stop; everything so far is saved.
    """
    start = time.monotonic()
    workdir = Path(workdir)
    if launcher not in registry.launchers:
        raise InputError(
            "--launcher",
            "unknown launcher",
            got=launcher,
            expected=f"one of {', '.join(registry.launchers)}",
        )
    data = {name: open_data(study, registry) for name, study in config.modalities.items()}
    trials = plan_trials(config, registry, data)
    cells = {t.key: count_cell(t, registry, data[t.modality]) for t in trials}
    with WorkdirLock(workdir):
        write_json(workdir / "study.json", to_json(config))
        write_json(workdir / PLAN_FILE, [_plan_row(t) for t in trials])
        store = Store(workdir / STORE_FILE)
        todo = [t for t in trials if t.key not in store.finished_keys()]
        try:
            if todo:
                _launch(config, registry, data, cells, todo, workdir, store, launcher)
        finally:
            (workdir / STATE_FILE).unlink(missing_ok=True)
        files = _report(config, store, {t.key for t in trials}, workdir, changed=bool(todo))
        return StudySummary(workdir, len(todo), store.statuses(), time.monotonic() - start, files)


def _launch(
    config: StudyConfig,
    registry: Registry,
    data: Mapping[str, ModalityData],
    cells: Mapping[str, Cell],
    todo: Sequence[Trial],
    workdir: Path,
    store: Store,
    launcher: str,
) -> None:
    from deepnarrow.progress import StudyProgress
    from deepnarrow.signals import StopRequest
    from deepnarrow.trial import UnitRunner

    with StopRequest() as stop, StudyProgress(total=len(todo)) as progress:
        runner = UnitRunner(config, registry, data, cells, workdir, store, progress, stop)
        registry.launchers[launcher].run(_units(todo), runner.run_unit)
        if stop.requested:
            raise Preempted(f"study {config.name!r} in {workdir}")


def _units(trials: Sequence[Trial]) -> list[Unit]:
    """Groups trials by cell: seeds share compiled programs."""
    by_cell: dict[str, list[Trial]] = {}
    for trial in trials:
        cell = trial_key({**trial.config(), "seed": None})
        by_cell.setdefault(cell, []).append(trial)
    return [Unit(tuple(group)) for group in by_cell.values()]


def _plan_row(trial: Trial) -> dict[str, Any]:
    return {
        "key": trial.key,
        "modality": trial.modality,
        "architecture": trial.architecture,
        "name": trial.shape.name,
        "seed": trial.seed,
    }


def _report(
    config: StudyConfig, store: Store, keys: set[str], workdir: Path, *, changed: bool
) -> Sequence[Path]:
    directory = workdir / "report"
    if not changed and (directory / "report.html").exists():
        return sorted(directory.iterdir())
    from deepnarrow.report import write_report

    records = [r for r in store.records() if r.key in keys]
    return write_report(records, directory, title=config.name)


# --- status -----------------------------------------------------------------------------------
def study_status(workdir: str | Path) -> dict[str, Any]:
    """Returns how far a study is, from its files alone; works while it runs.

    `seconds_left` extrapolates the finished trials' mean seconds per modality; None before one
    ended.
    """
    workdir = Path(workdir)
    try:
        plan = json.loads((workdir / PLAN_FILE).read_text())
    except FileNotFoundError:
        raise InputError(
            f"workdir '{workdir}'",
            "is no study's workdir: plan.json is missing",
            hint="deepnarrow study CONFIG --workdir DIR makes one",
        ) from None
    ended = {}
    if (workdir / STORE_FILE).exists():
        with Store(workdir / STORE_FILE, read_only=True) as store:
            ended = {r.key: r for r in store.records()}
    state = _running(workdir)
    keys = [row["key"] for row in plan]
    counts = {
        status: sum(1 for k in keys if k in ended and ended[k].status == status)
        for status in ("done", "diverged", "failed")
    }
    todo = [row for row in plan if row["key"] not in ended or ended[row["key"]].status == "failed"]
    return {
        "total": len(plan),
        **counts,
        "running": state,
        "todo": len([r for r in todo if r["key"] not in ended]),
        "seconds_left": _seconds_left(todo, [ended[k] for k in keys if k in ended]),
    }


def planned_keys(workdir: Path) -> set[str] | None:
    """Returns the keys of the study that a workdir last ran, or None where it has no plan.

    A workdir keeps the records of earlier settings too; an analysis must not mix them.
    """
    try:
        return {row["key"] for row in json.loads((workdir / PLAN_FILE).read_text())}
    except FileNotFoundError:
        return None


def _running(workdir: Path) -> list[dict[str, Any]]:
    """The trial that runs now; none where the process that said so is gone."""
    try:
        state = json.loads((workdir / STATE_FILE).read_text())
        os.kill(state["pid"], 0)
    except (OSError, ValueError, KeyError):
        return []
    return [state]


def _seconds_left(todo: Sequence[Mapping[str, Any]], ended: Sequence[Any]) -> float | None:
    seconds: dict[str, list[float]] = {}
    for record in ended:
        seconds.setdefault(record.modality, []).append(record.environment.get("seconds", 0.0))
    means = {m: sum(v) / len(v) for m, v in seconds.items()}
    if not todo:
        return 0.0
    if any(row["modality"] not in means for row in todo):
        return None
    return sum(means[row["modality"]] for row in todo)
