"""Running one trial: pre-train, evaluate, probe, fine-tune, record."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow import environment
from deepnarrow.assemble import make_model
from deepnarrow.checkpoint import Checkpointer
from deepnarrow.config import StudyConfig, resolve_options
from deepnarrow.data import eval_batches
from deepnarrow.errors import InputError, Preempted, shorten
from deepnarrow.files import write_json
from deepnarrow.modality import AnyArchitecture, Metric, Scores, Task
from deepnarrow.records import CurvePoint, MetricRow, Origin, Outcome, Record
from deepnarrow.store import Store
from deepnarrow.train import Program, TrainResult, make_program, step_bytes, train
from deepnarrow.transfer.fewshot import extract_features, majority_accuracy, probe
from deepnarrow.transfer.finetune import (
    FineTuneProgram,
    finetune,
    make_finetune,
    task_labels,
)

if TYPE_CHECKING:
    from deepnarrow.plugins import Registry
    from deepnarrow.progress import StudyProgress
    from deepnarrow.protocol import FewShot, FineTune
    from deepnarrow.signals import StopRequest
    from deepnarrow.study import Cell, ModalityData, Trial, Unit

EVAL_BATCH = 256


@dataclasses.dataclass
class Measured:
    """What the stages of one trial have measured so far."""

    metrics: list[MetricRow] = dataclasses.field(default_factory=list)
    curve: list[CurvePoint] = dataclasses.field(default_factory=list)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class CellPrograms:
    """The compiled programs that the seeds of one cell share."""

    program: Program
    finetunes: Mapping[str, FineTuneProgram]
    peak_bytes: float | None


class UnitRunner:
    """Runs units of one study in this process and stores their records."""

    def __init__(
        self,
        config: StudyConfig,
        registry: Registry,
        data: Mapping[str, ModalityData],
        cells: Mapping[str, Cell],
        workdir: Path,
        store: Store,
        progress: StudyProgress,
        stop: StopRequest,
    ):
        self.config, self.registry, self.data, self.cells = config, registry, data, cells
        self.workdir, self.store, self.progress, self.stop = workdir, store, progress, stop
        environment.enable_compilation_cache()
        # Raw inputs do not depend on shape or seed: one probe a modality and task.
        self.raw_probe = functools.cache(self._raw_probe)

    def run_unit(self, unit: Unit) -> bool:
        """Runs a unit's trials; returns False when asked to stop."""
        programs: CellPrograms | None = None
        for trial in unit.trials:
            if self.stop.requested:
                return False
            start = time.monotonic()
            self._say(trial)
            try:
                programs = programs or self._build(trial)
                record = self._run(trial, programs, start)
            except Preempted:
                return False
            except InputError:
                raise
            except Exception as error:  # the cell fails, the study goes on
                record = self._failed(trial, error, time.monotonic() - start)
            self.store.add(record)
            self.registry.hooks.deepnarrow_run_end(record=record.to_dict())
            self.progress.ended(self._line(record))
        return True

    def _say(self, trial: Trial) -> None:
        self.progress.stage(f"{trial.modality} {trial.shape.name} seed {trial.seed}")
        write_json(
            self.workdir / "running.json",
            {
                "pid": os.getpid(),
                "key": trial.key,
                "modality": trial.modality,
                "name": trial.shape.name,
                "seed": trial.seed,
            },
        )

    def _line(self, record: Record) -> str:
        best = [
            f"{m.metric} {m.value:.4g}"
            for m in record.metrics
            if m.stage == "upstream" and m.value is not None
        ]
        return f"{record.modality} {record.name} seed {record.seed}: {record.status}" + (
            f", {', '.join(best)}" if best else ""
        )

    def _build(self, trial: Trial) -> CellPrograms:
        data = self.data[trial.modality]
        architecture = self.registry.architecture(trial.architecture)
        options = resolve_options(data.modality.options, trial.options, "options")
        model = make_model(data.modality, architecture, trial.shape.shape, options)
        program = make_program(model, trial.protocol.optimizer, self.cells[trial.key].steps)
        finetunes = self._finetunes(trial, architecture, options)
        batches = eval_batches(data.upstream.train, trial.protocol.batch_size)
        return CellPrograms(program, finetunes, step_bytes(program, next(batches)))

    def _finetunes(
        self, trial: Trial, architecture: AnyArchitecture, options: Any
    ) -> dict[str, FineTuneProgram]:
        stage, data = trial.protocol.fine_tune, self.data[trial.modality]
        if stage is None:
            return {}
        return {
            name: make_finetune(
                data.modality, architecture, trial.shape.shape, options, data.tasks[name], stage
            )
            for name in stage.tasks
        }

    # --- stages --------------------------------------------------------------------------------
    def _run(self, trial: Trial, programs: CellPrograms, start: float) -> Record:
        measured, directory = Measured(), self.workdir / "runs" / trial.key
        result, seconds = self._upstream(trial, programs.program, measured, directory)
        if result.status == "done":
            params = result.state.params
            if trial.protocol.few_shot:
                began = time.monotonic()
                self._few_shot(trial, trial.protocol.few_shot, programs.program, params, measured)
                seconds["few_shot"] = time.monotonic() - began
            if trial.protocol.fine_tune:
                began = time.monotonic()
                self._fine_tune(trial, trial.protocol.fine_tune, programs, params, measured)
                seconds["fine_tune"] = time.monotonic() - began
        seconds["total"] = time.monotonic() - start
        return self._record(trial, programs, measured, result, seconds)

    def _upstream(
        self, trial: Trial, program: Program, measured: Measured, directory: Path
    ) -> tuple[TrainResult, dict[str, float]]:
        upstream = self.data[trial.modality].upstream
        with Checkpointer(directory / "checkpoints") as checkpointer:
            result = train(
                program,
                upstream.train,
                seed=trial.seed,
                batch_size=trial.protocol.batch_size,
                run=self.config.run,
                validation=upstream.validation,
                checkpointer=checkpointer,
                progress=self.progress.steps,
                on_log=self._observer(trial, program),
                should_stop=self.stop,
            )
        self._stop_if(result.status == "preempted")
        measured.curve.extend(result.curve)
        if result.status == "done":
            measured.metrics.extend(_upstream_rows(upstream.metric, result))
        return result, {"upstream": result.seconds}

    def _observer(
        self, trial: Trial, program: Program
    ) -> Callable[[int, Mapping[str, float]], None]:
        def on_log(step: int, metrics: Mapping[str, float]) -> None:
            self.registry.hooks.deepnarrow_step_end(
                info={
                    "trial_key": trial.key,
                    "modality": trial.modality,
                    "shape": trial.shape.name,
                    "seed": trial.seed,
                    "step": step,
                    "total_steps": program.total_steps,
                    "metrics": metrics,
                }
            )

        return on_log

    def _few_shot(
        self, trial: Trial, stage: FewShot, program: Program, params: Any, measured: Measured
    ) -> None:
        """The probe on pre-trained features, on an untrained network's, and on raw inputs."""
        untrained = program.init(trial.seed).params
        for name in stage.tasks:
            self.progress.stage(f"{trial.modality} {trial.shape.name}: few-shot {name}")
            task = self.data[trial.modality].tasks[name]
            origins: list[tuple[Origin, Any]] = [("pretrained", params), ("untrained", untrained)]
            for origin, network in origins:
                train_xy, test_xy = (
                    extract_features(program.features, network, task.examples(split), EVAL_BATCH)
                    for split in ("train", "test")
                )
                self._stop_if(self.stop.requested)
                rows, outcomes = _probe_rows(task, stage, train_xy, test_xy, origin)
                measured.metrics.extend(rows)
                measured.outcomes.extend(outcomes if origin == "pretrained" else ())
            measured.metrics.extend(self.raw_probe(trial.modality, name, stage))

    def _raw_probe(self, modality: str, name: str, stage: FewShot) -> list[MetricRow]:
        """Raw inputs under the same probe, and what guessing gets."""
        task = self.data[modality].tasks[name]
        labels = {s: task_labels(task, s) for s in ("train", "test")}
        metric = task.metric
        rows = [
            MetricRow("few_shot", name, "chance", metric.direction, 1 / task.num_classes, "raw"),
            MetricRow(
                "few_shot",
                name,
                "majority",
                metric.direction,
                majority_accuracy(labels["train"], labels["test"]),
                "raw",
            ),
        ]
        if task.baseline is not None:
            train_xy, test_xy = ((task.baseline(s), labels[s]) for s in ("train", "test"))
            rows += _probe_rows(task, stage, train_xy, test_xy, "raw")[0]
        return rows

    def _fine_tune(
        self, trial: Trial, stage: FineTune, programs: CellPrograms, params: Any, measured: Measured
    ) -> None:
        for name, program in programs.finetunes.items():
            metric, majority = program.task.metric, None
            for seed in range(stage.seeds):
                self.progress.stage(f"{trial.modality} {trial.shape.name}: fine-tune {name}")
                result = finetune(program, params, seed=_finetune_seed(trial.seed, seed),
                                  should_stop=self.stop, progress=self.progress.steps)
                self._stop_if(result.status == "preempted")
                majority = result.majority
                measured.curve.extend(
                    dataclasses.replace(p, name=f"{name}/seed{seed}/{p.name}")
                    for p in result.curve
                )
                measured.metrics.extend(_score_rows(name, metric, seed, result.scores))
                measured.outcomes.extend(_score_outcomes(name, metric, seed, result.scores))
            measured.metrics.append(
                MetricRow("fine_tune", name, "majority", metric.direction, majority, "raw"))

    # --- records -------------------------------------------------------------------------------
    def _stop_if(self, stop: bool) -> None:
        if stop:
            raise Preempted

    def _record(
        self, trial: Trial, programs: CellPrograms, measured: Measured, result: TrainResult,
        seconds: Mapping[str, float],
    ) -> Record:
        cell, upstream = self.cells[trial.key], self.data[trial.modality].upstream
        examples = result.steps * trial.protocol.batch_size
        summary = cell.costs
        costs = {
            "params_total": float(summary.params_total),
            "params_non_embedding": float(summary.params_non_embedding),
            "flops_forward_per_example": summary.flops_forward_per_example,
            "flops_train_total": summary.flops_train_per_example * examples,
            "tokens_seen": float(examples * upstream.train.tokens_per_example),
            "step_time_s": result.step_time_s,
            "peak_bytes": programs.peak_bytes,
        }
        return Record(
            trial.key,
            self.config.name,
            trial.modality,
            trial.architecture,
            trial.shape.name,
            trial.shape.shape.to_dict(),
            trial.seed,
            "diverged" if result.status == "diverged" else "done",
            json.loads(json.dumps(trial.config())),
            costs,
            summary.convention,
            {**environment.describe(), "seconds": seconds["total"], "stages": dict(seconds)},
            tuple(measured.metrics),
            tuple(measured.curve),
            tuple(measured.outcomes),
        )

    def _failed(self, trial: Trial, error: Exception, seconds: float) -> Record:
        directory = self.workdir / "runs" / trial.key
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "error.txt").write_text("".join(traceback.format_exception(error)))
        summary = self.cells[trial.key].costs
        return Record(
            trial.key,
            self.config.name,
            trial.modality,
            trial.architecture,
            trial.shape.name,
            trial.shape.shape.to_dict(),
            trial.seed,
            "failed",
            json.loads(json.dumps(trial.config())),
            {"params_total": float(summary.params_total)},
            summary.convention,
            {
                **environment.describe(),
                "seconds": seconds,
                "error": shorten(f"{type(error).__name__}: {error}", 500),
            },
        )


def _upstream_rows(metric: Metric, result: TrainResult) -> list[MetricRow]:
    """Quality on the validation split after the last step, which `train` has evaluated."""
    last = {p.name: p.value for p in result.curve
            if p.name.startswith("validation/") and p.step == result.steps}
    value = last[f"validation/{metric.name}"]
    rows = [MetricRow("upstream", "", metric.name, metric.direction, value)]
    if metric.name != "loss":
        rows.append(MetricRow("upstream", "", "loss", "min", last["validation/loss"]))
    return rows


def _probe_rows(
    task: Task,
    stage: FewShot,
    train_xy: tuple[np.ndarray, np.ndarray],
    test_xy: tuple[np.ndarray, np.ndarray],
    origin: Origin,
) -> tuple[list[MetricRow], list[Outcome]]:
    """Probes all shots and seeds; one row each, and the outcome of every test example."""
    seeds = tuple(range(stage.seeds))
    result = probe(
        *train_xy,
        *test_xy,
        num_classes=task.num_classes,
        shots=stage.shots,
        seeds=seeds,
        l2=(stage.l2,),
    )
    rows, outcomes = [], []
    for i, shots in enumerate(stage.shots):
        for j, seed in enumerate(seeds):
            rows.append(
                MetricRow(
                    "few_shot",
                    task.name,
                    "accuracy",
                    "max",
                    float(result.accuracy[0, i, j]),
                    origin,
                    shots,
                    seed,
                )
            )
            outcomes.append(
                Outcome(
                    "few_shot",
                    task.name,
                    "accuracy",
                    origin,
                    tuple(float(v) for v in result.correct[0, i, j]),
                    shots,
                    seed,
                )
            )
    return rows, outcomes


def _finetune_seed(seed: int, finetune_seed: int) -> int:
    """Fine-tuning draws its own numbers for each pre-training seed; below 2^31."""
    return (seed * 1009 + finetune_seed) % 2**31


def _score_rows(
    name: str, metric: Metric, seed: int, scores: Mapping[str, Scores]
) -> list[MetricRow]:
    """One row a metric and split; an empty one where fine-tuning diverged."""
    if not scores:
        return [MetricRow("fine_tune", name, metric.name, metric.direction, None,
                          finetune_seed=seed)]
    return [
        MetricRow("fine_tune", name, key if split == "test" else f"{split}/{key}",
                  metric.direction, value, finetune_seed=seed)
        for split, score in scores.items() for key, value in score.metrics.items()
    ]


def _score_outcomes(
    name: str, metric: Metric, seed: int, scores: Mapping[str, Scores]
) -> list[Outcome]:
    values = scores["test"].per_example if "test" in scores else None
    if values is None:
        return []
    return [Outcome("fine_tune", name, metric.name, "pretrained", tuple(map(float, values)),
                    finetune_seed=seed)]
