"""A study: grid -> trials -> records. A finished key is never run twice, wherever it finished.

`trials.py` plans, `trial.py` trains; this module resumes, launches and reports. JAX is imported
only when there is a trial to run, so a finished study returns in seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepnarrow.config import StudyConfig, batch_sizes, to_json
from deepnarrow.errors import InputError, Preempted
from deepnarrow.files import WorkdirLock, safe_join, write_json
from deepnarrow.hosts import ALONE, AgreedStop, Hosts
from deepnarrow.launch.tries import listed_tries, run_tries
from deepnarrow.mesh import choose_mesh
from deepnarrow.plugins import Registry
from deepnarrow.records import FINISHED, Record, latest, reported
from deepnarrow.resume import changes, judge
from deepnarrow.running import running, say_ended
from deepnarrow.stepslog import STEPS_FILE, read_lines
from deepnarrow.store import Store
from deepnarrow.trials import (
    Cell,
    ModalityData,
    Trial,
    Unit,
    count_cell,
    make_units,
    open_data,
    plan_trials,
    tries_of,
)
from deepnarrow.tuning import TryResult, results_in

PLAN_FILE = "plan.json"
CONFIG_FILE = "study.json"
STORE_FILE = "records.sqlite"
REPORT_DIGEST = "source.json"  # in the report's folder: what it was drawn from

# An assumption: small shapes reach about a third of the host's matmul speed; compile time and
# transfers come on top. The estimate orders cells, it does not promise minutes.
ASSUMED_EFFICIENCY = 0.33
CHECKPOINTS = 2  # kept of a run
MOMENTS = 2  # of float32 beside the params: an upper bound (Adafactor stores less)


@dataclasses.dataclass(frozen=True)
class StudySummary:
    """How a call of `run_study` ended.

    Attributes:
      workdir: where everything is.
      trained: trials that ended in this call.
      counts: trials in the workdir by status, those of earlier settings too.
      seconds: wall time of this call.
      files: of the report.
      exit_code: 0; where every trial of the study failed 2 if each by bad input, else 1.
    """

    workdir: Path
    trained: int
    counts: Mapping[str, int]
    seconds: float
    files: Sequence[Path]
    exit_code: int = 0


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """How a call of `train_one` ended.

    Attributes:
      workdir: where everything is.
      run_dir: the run's own folder.
      checkpoint: its newest checkpoint; None where there is none here.
      record: the run's record.
      trained: False where the run had ended before.
      steps: updates applied.
      total_steps: what the budget pays for.
    """

    workdir: Path
    run_dir: Path
    checkpoint: Path | None
    record: Record
    trained: bool
    steps: int
    total_steps: int


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything about a study that is known before it runs."""

    config: StudyConfig
    registry: Registry
    data: Mapping[str, ModalityData]
    trials: Sequence[Trial]
    cells: dict[str, Cell]  # by the trials' keys, those of tries too

    @property
    def tuned(self) -> bool:
        """Whether learning rates are chosen."""
        return any(trial.protocol.tune for trial in self.trials)


def _plan(config: StudyConfig, registry: Registry, hosts: Hosts = ALONE) -> _Plan:
    data = {name: open_data(study, registry) for name, study in config.modalities.items()}
    trials, notes = plan_trials(config, registry, data)
    for note in notes if hosts.first else ():
        print(f"note: {note}", file=sys.stderr)
    tries = listed_tries(trials, trials, {}, registry)
    cells = {t.key: count_cell(t, registry, data[t.modality]) for t in (*trials, *tries)}
    return _Plan(config, registry, data, trials, cells)


def dry_run(config: StudyConfig, registry: Registry) -> list[dict[str, Any]]:
    """Returns every cell with its costs, an estimate of its time and its disk; trains nothing."""
    from deepnarrow.hostspeed import measure_matmul_flops

    plan = _plan(config, registry)
    speed = measure_matmul_flops() * ASSUMED_EFFICIENCY
    rows = []
    for unit in make_units(plan.trials):
        trial, seeds = unit.trials[0], len(unit.trials)
        cell = plan.cells[trial.key]
        tries = [plan.cells[one.key] for one in tries_of(trial, {}, registry)[0]]
        rows.append({
            "modality": trial.modality,
            "architecture": trial.architecture,
            "name": trial.shape.name,
            "seeds": seeds,
            "steps": cell.steps,
            "params": cell.costs.params_total,
            "params_non_embedding": cell.costs.params_non_embedding,
            "flops_train_total": cell.flops_train_total,
            "seconds_estimate": seeds * cell.flops_train_total / speed,
            "tries": len(tries),
            "tries_seconds_estimate": sum(one.flops_train_total for one in tries) / speed,
            "disk_bytes_estimate": (seeds + len(tries)) * _checkpoint_bytes(cell),
        })
    return rows


def _checkpoint_bytes(cell: Cell) -> int:
    if not cell.steps:
        return 0  # a checkpoint stays where it is
    averages = bool(cell.trial.protocol.pretraining.optimizer.ema_decay)
    return CHECKPOINTS * 4 * cell.costs.params_total * (1 + MOMENTS + averages)


# --- running ----------------------------------------------------------------------------------
def run_study(
    config: StudyConfig, workdir: str | Path, registry: Registry, launcher: str = "inline",
    hosts: Hosts = ALONE,
) -> StudySummary:
    """Runs every trial that has not finished, then writes the report.

    A trial that fails is recorded as `failed` and the study goes on; the next call retries it.
    Where several processes train together each of them calls this, with a workdir that all see;
    the first one writes, and the others' summaries have neither counts nor files.

    Raises:
      InputError: bad config, data or workdir; nothing was trained.
      Preempted: asked to stop before every trial had ended; everything so far is saved.
    """
    start = time.monotonic()
    workdir = Path(workdir)
    if launcher not in registry.launchers:
        raise InputError("--launcher", "unknown launcher", got=launcher,
                         expected=f"one of {', '.join(registry.launchers)}")
    plan = _plan(config, registry, hosts)
    _check_devices(config, hosts)
    with _records(workdir, hosts) as store:
        todo = _run_missing(plan, workdir, store, launcher, hosts)
        files = _report(plan, store, workdir) if store else ()
        counts = _statuses(store) if store else {}
        code = hosts.share(_exit_code(plan, store) if store else None)
    return StudySummary(workdir, len(todo), counts, time.monotonic() - start, files, code)


def _statuses(store: Store) -> dict[str, int]:
    """Number of trials by status, without the tries."""
    return dict(sorted(Counter(r.status for r in latest(reported(store.records()))).items()))


def _exit_code(plan: _Plan, store: Store) -> int:
    """0 unless every trial failed: then 2 where each had bad input, 1 where something else."""
    keys = {trial.key for trial in plan.trials}
    records = latest(r for r in store.records() if r.key in keys)
    if any(record.status in FINISHED for record in records):
        return 0
    return exit_code_of(records)


def exit_code_of(failed: Sequence[Record]) -> int:
    """Returns the exit code of failed trials: 2 where each had bad input, else 1."""
    return 2 if all(record.environment.get("bad_input") for record in failed) else 1


def train_one(
    config: StudyConfig, workdir: str | Path, registry: Registry, hosts: Hosts = ALONE
) -> TrainSummary:
    """Runs the only trial of a config, unless it has finished; draws no report.

    Raises:
      InputError: bad config, data or workdir, or more than one trial; nothing was trained.
      Preempted: asked to stop; everything so far is saved.
    """
    workdir, plan = Path(workdir), _plan(config, registry, hosts)
    if len(plan.trials) != 1:
        raise InputError("config", "describes more than one training run", got=len(plan.trials))
    (trial,) = plan.trials
    _check_devices(config, hosts)
    with _records(workdir, hosts) as store:
        todo = _run_missing(plan, workdir, store, "inline", hosts)
        hosts.share()  # the record is in the store when all are here
        with contextlib.nullcontext(store) if store else Store(
                workdir / STORE_FILE, read_only=True) as found:
            record = next(r for r in latest(found.records()) if r.key == trial.key)
        hosts.share()
    run_dir = workdir / "runs" / trial.key
    steps = [p.step for p in record.curve if p.stage == "upstream" and p.value is not None]
    return TrainSummary(workdir, run_dir, _newest_checkpoint(run_dir), record, bool(todo),
                        max(steps, default=0), plan.cells[trial.key].steps)


def _newest_checkpoint(run_dir: Path) -> Path | None:
    steps = [path for path in (run_dir / "checkpoints").glob("*") if path.name.isdecimal()]
    return max(steps, key=lambda path: int(path.name), default=None)


def _check_devices(config: StudyConfig, hosts: Hosts) -> None:
    """Refuses a mesh that the devices cannot make, before anything is written."""
    if config.sharding.mesh is not None:
        import jax

        choose_mesh(config.sharding, batch_sizes(config), jax.device_count(), hosts.count)


@contextlib.contextmanager
def _records(workdir: Path, hosts: Hosts) -> Iterator[Store | None]:
    """Locks the workdir and opens its records: in the first process, the others have None."""
    if not hosts.first:
        yield None
        return
    with WorkdirLock(workdir), Store(workdir / STORE_FILE) as store:
        yield store


def _run_missing(
    plan: _Plan, workdir: Path, store: Store | None, launcher: str, hosts: Hosts
) -> Sequence[Trial]:
    """Runs the trials that have not finished, and returns them."""
    if store:
        _note_changes(plan.config, workdir)
        write_json(workdir / CONFIG_FILE, to_json(plan.config))
    finished = hosts.share(sorted(store.finished_keys()) if store else None)
    todo = [t for t in plan.trials if t.key not in finished]
    if store:
        _write_plan(plan, todo, workdir, results_in(store.records(), set()) if plan.tuned else {})
    try:
        if todo:
            _launch(plan, todo, workdir, store, launcher, hosts)
    finally:
        if store:
            say_ended(workdir)
    return todo


def _note_changes(config: StudyConfig, workdir: Path) -> None:
    """Says what differs from the config that the workdir was last run with, by `resume.RULES`."""
    try:
        before = json.loads((workdir / CONFIG_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # none, or none that can be read: it is about to be written anew
    if isinstance(before, dict):
        told = judge(f"workdir '{workdir}'", changes(before, to_json(config), "config"))
        if told is not None:
            print(f"note: {told}", file=sys.stderr)


def _launch(
    plan: _Plan, todo: Sequence[Trial], workdir: Path, store: Store | None, launcher: str,
    hosts: Hosts,
) -> None:
    from deepnarrow.launch.session import Session
    from deepnarrow.progress import StudyProgress
    from deepnarrow.signals import StopRequest

    with StopRequest() as stop, StudyProgress(len(todo), quiet=not hosts.first) as progress:
        session = Session(plan.config, plan.registry, plan.data, plan.cells, workdir, store,
                          progress, AgreedStop(stop, hosts), hosts)

        def launch(units: Sequence[Unit]) -> None:
            plan.registry.launchers[launcher].run(units, session)

        ready: Sequence[Trial] | None = todo
        if plan.tuned:
            ready = run_tries(todo, session, launch, lambda results: _write_plan(
                plan, todo, workdir, results) if store else None)
        if ready:
            launch(make_units(ready))
    if any(trial.key not in session.ended for trial in todo):
        raise Preempted(f"study {plan.config.name!r} in {workdir}")


def _write_plan(
    plan: _Plan, todo: Sequence[Trial], workdir: Path, results: Mapping[str, TryResult]
) -> None:
    """Writes what the study consists of: its trials and, as far as they are known, its tries."""
    tries = listed_tries(plan.trials, todo, results, plan.registry)
    write_json(workdir / PLAN_FILE, [_plan_row(trial) for trial in (*plan.trials, *tries)])


def _plan_row(trial: Trial) -> dict[str, Any]:
    return {"key": trial.key, "modality": trial.modality, "architecture": trial.architecture,
            "name": trial.shape.name, "seed": trial.seed, "try": trial.is_try}


def _report(plan: _Plan, store: Store, workdir: Path) -> Sequence[Path]:
    """Writes the report, unless the one that is there was drawn from the same records."""
    directory = workdir / "report"
    keys = {t.key for t in plan.trials}
    records = [r for r in store.records() if r.key in keys]
    source = {"title": plan.config.name, "records": sorted([r.key, r.status] for r in records)}
    digest = directory / REPORT_DIGEST
    drawn = digest.exists() and (directory / "report.html").exists()
    if drawn and digest.read_text() == json.dumps(source):
        return sorted(p for p in directory.iterdir() if p != digest)
    from deepnarrow.report import write_report

    digest.unlink(missing_ok=True)
    files = write_report(records, directory, title=plan.config.name)
    directory.mkdir(parents=True, exist_ok=True)
    digest.write_text(json.dumps(source))  # last: a report cut short is drawn again
    return files


# --- status -----------------------------------------------------------------------------------
def study_status(workdir: str | Path) -> dict[str, Any]:
    """Returns how far a study is, from its files alone; works while it runs.

    `seconds_left` extrapolates the finished trials' mean seconds per modality; None before one
    ended.

    Raises:
      InputError: the workdir is none, or its plan cannot be read.
    """
    workdir = Path(workdir)
    plan = _read_plan(workdir)
    if plan is None:
        raise InputError(f"workdir '{workdir}'", f"is no study's workdir: {PLAN_FILE} is missing",
                         hint="deepnarrow study CONFIG --workdir DIR makes one")
    ended: dict[str, Record] = {}
    if (workdir / STORE_FILE).exists():
        with Store(workdir / STORE_FILE, read_only=True) as store:
            ended = {r.key: r for r in store.records()}
    trials, tries = ([row for row in plan if bool(row.get("try")) == kind]
                     for kind in (False, True))
    todo = [row for row in plan
            if row["key"] not in ended or ended[row["key"]].status not in FINISHED]
    unfinished = {row["key"] for row in todo}
    now = [state for state in running(workdir) if state["key"] in unfinished]
    return {**_progress(trials, ended, now), "running": now, "tries": _progress(tries, ended, now),
            "seconds_left": _seconds_left(todo, plan, ended),
            "data_order": _check_logs(workdir, [row["key"] for row in plan])}


def _progress(
    rows: Sequence[Mapping[str, Any]], ended: Mapping[str, Record],
    now: Sequence[Mapping[str, Any]],
) -> dict[str, int]:
    """How many trials, or tries, there are, by how they ended, and how many are left."""
    keys = {row["key"] for row in rows}
    statuses = Counter(ended[key].status for key in keys & ended.keys())
    counts = {status: statuses[status] for status in ("done", "diverged", "failed")}
    busy = len(keys & {state["key"] for state in now})
    return {"total": len(keys), **counts, "running": busy,
            "todo": len(keys) - sum(statuses[status] for status in FINISHED) - busy}


def _read_plan(workdir: Path) -> list[dict[str, Any]] | None:
    """The rows of the plan, None where there is none."""
    try:
        rows = json.loads((workdir / PLAN_FILE).read_text())
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and {"key", "modality"} <= row.keys()
            and isinstance(row["key"], str) for row in rows
        ):
            raise ValueError("it is no list of trials")
        return rows
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"workdir '{workdir}'", f"{PLAN_FILE} cannot be read", got=error,
                         hint="run deepnarrow study again: it writes the plan anew") from error


def planned_keys(workdir: Path) -> set[str] | None:
    """Returns the keys of the study that a workdir last ran, or None where it has no plan.

    A workdir keeps the records of earlier settings too; an analysis must not mix them.
    """
    plan = _read_plan(workdir)
    return None if plan is None else {row["key"] for row in plan if not row.get("try")}


def _check_logs(workdir: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Verifies the logs of the order of data: how many there are, and which are damaged."""
    checked, damaged = 0, []
    for key in keys:
        path = safe_join(workdir / "runs", f"{key}/{STEPS_FILE}", PLAN_FILE)
        if path.exists():
            checked += 1
            try:
                read_lines(path)
            except (InputError, OSError) as error:
                damaged.append(str(error))
    return {"checked": checked, "damaged": damaged}


def _seconds_left(
    todo: Sequence[Mapping[str, Any]], plan: Sequence[Mapping[str, Any]],
    ended: Mapping[str, Record],
) -> float | None:
    seconds: dict[tuple[str, bool], list[float]] = {}
    for row in plan:
        record = ended.get(row["key"])
        if record is not None and record.status in FINISHED:
            seconds.setdefault(_kind(row), []).append(record.environment["seconds"])
    if any(_kind(row) not in seconds for row in todo):
        return None
    means = {kind: sum(found) / len(found) for kind, found in seconds.items()}
    return sum((means[_kind(row)] for row in todo), 0.0)


def _kind(row: Mapping[str, Any]) -> tuple[str, bool]:
    """Runs that take about as long: a modality's trials, or its tries."""
    return row["modality"], bool(row.get("try"))
