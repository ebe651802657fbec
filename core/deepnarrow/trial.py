"""Running one trial: pre-train, evaluate, probe, fine-tune, record."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from deepnarrow import environment
from deepnarrow.checkpoint import Checkpointer
from deepnarrow.config import StudyConfig, batch_sizes, resolve_options
from deepnarrow.errors import InputError, Preempted, shorten
from deepnarrow.files import WorkdirLock, write_json
from deepnarrow.hosts import Hosts
from deepnarrow.mesh import MeshShape, choose_mesh
from deepnarrow.modality import Task
from deepnarrow.observers import OnLog, observer, trial_facts
from deepnarrow.planning.here import slice_here, spread_here
from deepnarrow.profiling import TRACE_FOLDER
from deepnarrow.programs import CellPrograms, build_programs
from deepnarrow.records import CurvePoint, MetricRow, Origin, Outcome, Record, Stage
from deepnarrow.resume import changes, judge, plugin_versions
from deepnarrow.rundir import CHECKPOINTS, RunInfo, write_run
from deepnarrow.running import say_running, touch
from deepnarrow.sharding import Layout, make_layout
from deepnarrow.step import Program
from deepnarrow.stepslog import STEPS_FILE, StepsLog
from deepnarrow.train import TrainResult, evaluate, train
from deepnarrow.transfer.fewshot import chance, extract_features, majority_accuracy, probe
from deepnarrow.transfer.finetune import finetune, majority, task_labels
from deepnarrow.trialkey import REVISION
from deepnarrow.trialrows import (
    average_rows,
    check_metric,
    ended_line,
    finetune_curve,
    finetune_outcomes,
    finetune_rows,
    finetune_seed,
    probe_rows,
    quality_rows,
    run_name,
    upstream_rows,
)
from deepnarrow.trials import blank_record
from deepnarrow.tuning import choice_facts, choice_rows
from deepnarrow.watchdog import Watchdog

if TYPE_CHECKING:
    from deepnarrow.plugins import Registry
    from deepnarrow.progress import StudyProgress
    from deepnarrow.protocol import FewShot, FineTune
    from deepnarrow.trials import Cell, ModalityData, Trial, Unit

EVAL_BATCH = 256
STACKS_FILE = "stacks.txt"  # in the workdir: of all threads, where a trial hung
SHARDING_FILE = "sharding.json"  # in a run's folder: what was split, and what could not be
LEAVE_WAIT_S = 120.0  # for the process of an earlier attempt to save and leave
MAX_NAMED = 3  # arrays that a note names


@dataclasses.dataclass
class Measured:
    """What the stages of one trial have measured so far."""

    metrics: list[MetricRow] = dataclasses.field(default_factory=list)
    curve: list[CurvePoint] = dataclasses.field(default_factory=list)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds of a stage."""
        start = time.monotonic()
        yield
        self.seconds[stage] = time.monotonic() - start


class UnitRunner:
    """Runs units of one study in this process and hands over their records.

    Args:
      config: of the study.
      registry: of the loaded plugins.
      data: of each modality.
      cells: by the trials' keys.
      workdir: of the study.
      claim: called with the key when a trial begins; returns the number of this attempt.
      deliver: called with the record and that number when it has ended.
      progress: what a person sees.
      stop: asked before each step and batch.
      hosts: the processes that train together; the first one alone claims and delivers.
    """

    def __init__(
        self, config: StudyConfig, registry: Registry, data: Mapping[str, ModalityData],
        cells: Mapping[str, Cell], workdir: Path, claim: Callable[[str], int],
        deliver: Callable[[Record, int], object], progress: StudyProgress,
        stop: Callable[[], bool], hosts: Hosts,
    ):
        self.config, self.registry, self.data, self.cells = config, registry, data, cells
        self.workdir, self.claim, self.deliver = workdir, claim, deliver
        self.progress, self.hosts, self._asked = progress, hosts, stop
        self._watchdog: Watchdog | None = None
        self._built: tuple[str, CellPrograms | None] = "", None
        self.spread = spread_here(
            config, registry, data, [cell.trial for cell in cells.values()],
            slice_here(jax.devices()[0].device_kind, jax.device_count()))
        self.layout = self._layout()
        environment.enable_compilation_cache()
        # Raw inputs do not depend on shape or seed: one probe a modality and task.
        self.raw_probe = functools.cache(self._raw_probe)

    def stop(self) -> bool:
        """Whether to stop; the question itself is a sign of progress."""
        if self._watchdog is not None:
            self._watchdog.beat()
        return self._asked()

    def run_unit(self, unit: Unit) -> bool:
        """Runs a unit's trials; returns False when asked to stop."""
        run = self.config.run
        with Watchdog(run.hang_after_s, run.compile_within_s, self.workdir / STACKS_FILE,
                      lambda: touch(self.workdir)) as self._watchdog:
            return self._run_trials(unit)

    def _run_trials(self, unit: Unit) -> bool:
        for trial in unit.trials:
            if self.stop():
                return False
            self._say(trial)
            attempt = self.claim(trial.key) if self.hosts.first else 0
            try:
                with self._alone(trial):
                    record = self._run(trial, self._programs(trial))
            except Preempted:
                return False
            except Exception as error:  # the trial fails, the study goes on
                record = self._failed(trial, error)
            if self.hosts.first:
                record = dataclasses.replace(
                    record, environment={**record.environment, "attempt": attempt})
                self.deliver(record, attempt)
            self.progress.ended(ended_line(record))
        return True

    def _alone(self, trial: Trial) -> contextlib.AbstractContextManager[Any]:
        """Holds the run directory: the process of an earlier attempt may still be saving there."""
        if not self.hosts.first:
            return contextlib.nullcontext()
        return WorkdirLock(self._directory(trial), wait_s=LEAVE_WAIT_S)

    def _say(self, trial: Trial) -> None:
        what = f" at {trial.optimizer.learning_rate:g}, a try" if trial.is_try else ""
        self.progress.stage(f"{trial.modality} {trial.shape.name} seed {trial.seed}{what}")
        if self.hosts.first:
            say_running(self.workdir, {"key": trial.key, "modality": trial.modality,
                                       "name": trial.shape.name, "seed": trial.seed})

    def _layout(self) -> Layout | None:
        """How the devices that are here share the work; None for one of them."""
        shape, notes = choose_mesh(self.spread.sharding, batch_sizes(self.config),
                                   jax.device_count(), self.hosts.count)
        for note in [*notes, *filter(None, [self.spread.note])]:
            self.progress.note(f"note: {note}")
        return make_layout(shape, self.spread.sharding.rules) if shape.size > 1 else None

    def _programs(self, trial: Trial) -> CellPrograms:
        """The trial's programs: those of the trial before, where they can be shared."""
        steps = self.cells[trial.key].steps
        key, built = self._built
        if built is not None and key == trial.programs:
            return built.of(trial, steps)
        self._built = "", None  # what is not needed any more goes before the next is built
        built = build_programs(
            trial, steps, self.data[trial.modality], self.registry, layout=self.layout,
            remat=self.spread.remats.get(trial.modality),
            micro_batches=self.spread.sharding.micro_batches)
        self._say_whole(trial, built.program)
        self._built = trial.programs, built
        return built

    # --- stages -------------------------------------------------------------------------------
    def _run(self, trial: Trial, programs: CellPrograms) -> Record:
        measured, result = Measured(), None
        if trial.checkpoint is None:
            result = self._upstream(trial, programs.program, measured)
            params = result.state.eval_params
        else:
            params = self._checkpoint(trial, programs.program, measured)
        if result is None or result.status == "done":
            if trial.protocol.few_shot:
                with measured.timed("few_shot"):
                    self._few_shot(trial, trial.protocol.few_shot, programs.program, params,
                                   measured)
            if trial.protocol.fine_tune:
                with measured.timed("fine_tune"):
                    self._fine_tune(trial, trial.protocol.fine_tune, programs, params, measured)
        return self._record(trial, programs, measured, result)

    def _upstream(self, trial: Trial, program: Program, measured: Measured) -> TrainResult:
        upstream = self.data[trial.modality].upstream
        if self.hosts.first:
            write_run(self._directory(trial), self._run_info(trial))
        steps = self._open_steps(trial)
        with Checkpointer(self._directory(trial) / CHECKPOINTS) as checkpointer:
            result = train(
                program, upstream.train, seed=trial.seed,
                batch_size=trial.protocol.pretraining.batch_size, run=self.config.run,
                validation=upstream.validation, checkpointer=checkpointer,
                progress=self.progress.steps, should_stop=self.stop,
                on_log=self._watch(trial, "upstream", program.total_steps),
                few_shot=self._few_shot_curve(trial, program), steps_log=steps,
                trace_to=self._directory(trial) / TRACE_FOLDER if self.config.run.profile else None)
        _stop_if(result.status == "preempted")
        measured.curve.extend(result.curve)
        measured.seconds["upstream"] = result.seconds
        if result.status == "done":
            measured.metrics.extend(upstream_rows(upstream.metric, result))
        return result

    def _open_steps(self, trial: Trial) -> StepsLog:
        """Opens the run's log, and compares what it was begun with to what is here now."""
        batch_size = trial.protocol.pretraining.batch_size
        path = self._directory(trial) / STEPS_FILE
        log = StepsLog(path if self.hosts.first else None, {
            "seed": trial.seed, "batch_size": batch_size,
            "num_examples": self.data[trial.modality].upstream.train.num_examples})
        conditions = {
            **self._sharding(), "revision": REVISION, "versions": environment.versions(),
            "plugins": plugin_versions(self.registry, trial.modality, trial.architecture),
            "devices": jax.device_count(), "device": jax.devices()[0].device_kind,
            "platform": jax.devices()[0].platform, "run": dataclasses.asdict(self.config.run)}
        if log.lines.opened:
            told = judge(f"run {trial.key}", changes(log.lines.opened[-1], conditions))
            if told is not None:
                self.progress.note(f"note: {told}")
        log.open(conditions)
        return log

    def _checkpoint(self, trial: Trial, program: Program, measured: Measured) -> Any:
        """Reads the checkpoint that stands for pre-training, adapted to the data's options."""
        data = self.data[trial.modality]
        found = data.pretrained[trial.shape.name]
        options = resolve_options(data.modality.options, trial.options, "options")
        drawn: Sequence[tuple[str, ...]] = ()
        with measured.timed("upstream"):
            params = found.load()
            if options.to_dict() != found.options.to_dict():
                key = jax.random.key(trial.seed)
                params, drawn = data.modality.adapt(params, found.options, options, key)
            if self.config.modalities[trial.modality].evaluate_upstream:
                if drawn:
                    raise InputError(
                        f"checkpoint {trial.shape.name!r}", "cannot be evaluated upstream: it "
                        "predicts something else", got=f"new {'/'.join(drawn[0])}",
                        hint="set evaluate_upstream=False")
                upstream = data.upstream
                means = evaluate(program, program.put_params(params), upstream.validation,
                                 self._eval_batch(), self.stop)
                check_metric(upstream.metric, set(means), trial.modality)
                measured.metrics.extend(quality_rows(upstream.metric, means))
            return program.put_params(params)

    def _watch(
        self, trial: Trial, stage: Stage, total_steps: int, prefix: str = ""
    ) -> OnLog | None:
        if not self.hosts.first:
            return None
        facts = trial_facts(trial, self.config, self.workdir)
        return observer(self.registry, self._directory(trial), facts, stage, total_steps, prefix)

    def _few_shot(
        self, trial: Trial, stage: FewShot, program: Program, params: Any, measured: Measured
    ) -> None:
        """The probe on pre-trained features, on an untrained network's, and on raw inputs."""
        untrained = program.init(np.int32(trial.seed)).params
        origins: list[tuple[Origin, Any]] = [("pretrained", params), ("untrained", untrained)]
        for name in stage.tasks:
            self.progress.stage(f"{trial.modality} {trial.shape.name}: few-shot {name}")
            task = self.data[trial.modality].tasks[name]
            for origin, network in origins:
                train_xy, test_xy = self._features(task, program, network)
                rows, outcomes = probe_rows(task, stage, train_xy, test_xy, origin)
                measured.metrics.extend(rows)
                measured.outcomes.extend(outcomes if origin == "pretrained" else ())
            measured.metrics.extend(self.raw_probe(trial.modality, name, stage))

    def _features(
        self, task: Task, program: Program, params: Any
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Features and labels of the train and of the test split."""
        size = self._eval_batch()
        train_xy, test_xy = (
            (extract_features(program.on_host(program.features), params, task.examples(split), size,
                              should_stop=self.stop, rows=program.rows(size)),
             task_labels(task, split)) for split in ("train", "test"))
        return train_xy, test_xy

    def _few_shot_curve(
        self, trial: Trial, program: Program
    ) -> Callable[[int, Any], dict[str, float]] | None:
        """What is probed while training: the mean over seeds, with the first strength alone."""
        stage = trial.protocol.few_shot
        if stage is None or not self.config.run.few_shot_every:
            return None

        def measure(step: int, params: Any) -> dict[str, float]:
            del step
            points = {}
            for name in stage.tasks:
                task = self.data[trial.modality].tasks[name]
                assert task.num_classes is not None
                train_xy, test_xy = self._features(task, program, params)
                result = probe(*train_xy, *test_xy, num_classes=task.num_classes,
                               shots=stage.shots, seeds=range(stage.seeds), l2=stage.strengths[:1])
                points |= {f"{name}/accuracy@{shots}": float(accuracy.mean())
                           for shots, accuracy in zip(stage.shots, result.accuracy[0], strict=True)}
            return points

        return measure

    def _raw_probe(self, modality: str, name: str, stage: FewShot) -> list[MetricRow]:
        """Raw inputs under the same probe, and what guessing gets."""
        task = self.data[modality].tasks[name]
        labels = {split: task_labels(task, split) for split in ("train", "test")}
        direction = task.metric.direction
        assert task.num_classes is not None  # registration has seen to it: it serves few_shot
        guess = majority_accuracy(labels["train"], labels["test"])
        rows = [
            MetricRow("few_shot", name, "chance", direction, chance(task.num_classes), "raw"),
            MetricRow("few_shot", name, "majority", direction, guess, "raw"),
        ]
        if task.baseline is not None:
            train_xy, test_xy = ((task.baseline(s), labels[s]) for s in ("train", "test"))
            rows += probe_rows(task, stage, train_xy, test_xy, "raw")[0]
        return rows

    def _fine_tune(
        self, trial: Trial, stage: FineTune, programs: CellPrograms, params: Any, measured: Measured
    ) -> None:
        starts: list[tuple[Origin, Any]] = [("pretrained", params)]
        if stage.scratch:
            starts.append(("untrained", programs.program.init(np.int32(trial.seed)).params))
        for ft in programs.finetunes:
            for origin, start in starts:
                for seed in range(stage.seeds):
                    self.progress.stage(
                        f"{trial.modality} {trial.shape.name}: fine-tune {ft.name}")
                    tell = self._watch(trial, "fine_tune", ft.program.total_steps,
                                       f"{ft.name}/{run_name(seed, origin)}/")
                    result = finetune(ft, start, seed=finetune_seed(trial.seed, seed),
                                      should_stop=self.stop, progress=self.progress.steps,
                                      on_log=tell)
                    _stop_if(result.status == "preempted")
                    measured.curve.extend(finetune_curve(ft, seed, result, origin))
                    measured.metrics.extend(finetune_rows(ft, seed, result, origin))
                    measured.outcomes.extend(finetune_outcomes(ft, seed, result, origin))
            for task in ft.tasks:
                guess = majority(task)
                if guess is not None:
                    measured.metrics.append(MetricRow(
                        "fine_tune", task.name, "majority", task.metric.direction, guess, "raw"))
        modality = self.data[trial.modality].modality
        measured.metrics.extend(list(average_rows(modality, measured.metrics)))

    def _eval_batch(self) -> int:
        """Examples of a batch that is only evaluated: `EVAL_BATCH`, or what devices can share."""
        ways = 1 if self.layout is None else self.layout.shape.batch_ways
        return -(-EVAL_BATCH // ways) * ways

    # --- records ------------------------------------------------------------------------------
    def _directory(self, trial: Trial) -> Path:
        return self.workdir / "runs" / trial.key

    def _run_info(self, trial: Trial) -> RunInfo:
        return RunInfo(
            trial.modality, trial.architecture, trial.shape.name, trial.shape.shape, trial.options,
            self.config.modalities[trial.modality].data,
            {"kind": "trial", "study": self.config.name, "key": trial.key, "seed": trial.seed})

    def _record(
        self, trial: Trial, programs: CellPrograms, measured: Measured, result: TrainResult | None
    ) -> Record:
        costs = self.cells[trial.key].costs
        # What somebody else's pre-training took is not known.
        examples = result and result.steps * trial.protocol.pretraining.batch_size
        return dataclasses.replace(
            blank_record(self.config.name, trial, self.cells[trial.key]),
            status="diverged" if result and result.status == "diverged" else "done",
            costs={
                "params_total": float(costs.params_total),
                "params_non_embedding": float(costs.params_non_embedding),
                "flops_forward_per_example": costs.flops_forward_per_example,
                "flops_train_total": examples and costs.flops_train_per_example * examples,
                "tokens_seen": examples and float(examples * costs.tokens_per_example),
                "step_time_s": result and result.step_time_s,
                "peak_bytes": programs.peak_bytes,
                "chip_hours": result and result.step_time_s and (
                    result.step_time_s * result.steps * self._devices() / 3600),
            },
            environment={**environment.describe(), "sharding": self._sharding(),
                         "seconds": sum(measured.seconds.values()),
                         "stages": dict(measured.seconds),
                         **({"tuning": choice_facts(trial.choice)} if trial.choice else {}),
                         "parts": {} if result is None else {
                             "build": programs.build_seconds, **result.parts}},
            metrics=(*measured.metrics, *(choice_rows(trial.choice) if trial.choice else ())),
            curve=tuple(measured.curve),
            outcomes=tuple(measured.outcomes),
        )

    def _devices(self) -> int:
        return 1 if self.layout is None else self.layout.shape.size

    def _sharding(self) -> dict[str, Any]:
        """How the devices shared the work, for the record."""
        mesh = MeshShape() if self.layout is None else self.layout.shape
        return {"mesh": str(mesh), "rules": self.spread.sharding.rules, "processes":
                self.hosts.count, "micro_batches": self.spread.sharding.micro_batches,
                **({"remat": dict(self.spread.remats)} if self.spread.remats else {})}

    def _say_whole(self, trial: Trial, program: Program) -> None:
        """Says what could not be split, in a line and in the run's `sharding.json`."""
        if self.layout is None or not self.hosts.first:
            return
        left = program.left_whole
        write_json(self._directory(trial) / SHARDING_FILE, {
            **self._sharding(), "left_whole": [whole._asdict() for whole in left]})
        named = [whole for whole in left if whole.axis is not None]
        shown = "; ".join(f"{whole.path}: {whole.axis} {whole.size} {whole.why}"
                          for whole in named[:MAX_NAMED])
        more = f"; and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
        self.progress.note(
            f"{trial.modality} {trial.shape.name}: mesh {self.layout.shape}, rules "
            f"{self.layout.preset}; whole: {len(left) - len(named)} small vectors or without a "
            f"rule, {len(named)} that cannot be split" + (f" ({shown}{more})" if shown else ""))

    def _failed(self, trial: Trial, error: Exception) -> Record:
        directory = self._directory(trial)
        if self.hosts.first:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "error.txt").write_text("".join(traceback.format_exception(error)))
        what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return dataclasses.replace(
            blank_record(self.config.name, trial, self.cells[trial.key]),
            costs={"params_total": float(self.cells[trial.key].costs.params_total)},
            environment={**environment.describe(), "error": shorten(what, 500),
                         "bad_input": isinstance(error, InputError),
                         "traceback": str((directory / "error.txt").relative_to(self.workdir))})


def _stop_if(stop: bool) -> None:
    if stop:
        raise Preempted
