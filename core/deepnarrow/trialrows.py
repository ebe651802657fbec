"""The rows of a trial's record: what each stage adds to it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.modality import Metric, Modality, Task
from deepnarrow.protocol import AUTO, FewShot
from deepnarrow.records import CurvePoint, MetricRow, Origin, Outcome, Record
from deepnarrow.train import TrainResult
from deepnarrow.transfer.fewshot import probe
from deepnarrow.transfer.finetune import FineTuneProgram, FineTuneResult, TaskResult
from deepnarrow.transfer.selection import quality

LOSS = "loss"  # on the test split, beside a task's own metrics
_FINETUNE = 1  # tells fine-tuning's seeds from pre-training's


def finetune_seed(seed: int, index: int) -> int:
    """Returns the seed of the `index`-th fine-tuning of pre-training seed `seed`.

    Hashed, so that it shares no stream of examples or dropout with any pre-training seed.
    """
    return int(np.random.SeedSequence((_FINETUNE, seed, index)).generate_state(1)[0] >> 1)


def finetune_rows(
    ft: FineTuneProgram, seed: int, result: FineTuneResult, origin: Origin
) -> Iterator[MetricRow]:
    """One row a task, split and metric; an empty one a task where fine-tuning diverged.

    A metric on `test` has its own name, on another split `SPLIT/METRIC`; beside it stands the
    `loss` on `test`.
    """
    for task in ft.tasks:
        metric, found = task.metric, result.tasks.get(task.name)
        if found is None:
            yield MetricRow("fine_tune", task.name, metric.name, metric.direction, None, origin,
                            finetune_seed=seed)
            continue
        for split, scores in found.scores.items():
            for name, value in scores.metrics.items():
                yield MetricRow("fine_tune", task.name,
                                name if split == "test" else f"{split}/{name}",
                                metric.direction, value, origin, finetune_seed=seed)
        if LOSS not in found.scores["test"].metrics:
            yield MetricRow("fine_tune", task.name, LOSS, "min", found.loss, origin,
                            finetune_seed=seed)


def average_rows(modality: Modality, rows: Sequence[MetricRow]) -> Iterator[MetricRow]:
    """The averages over tasks that a modality's papers report, each as a task `NAME` of its own.

    One row an average, origin, fine-tuning seed and split (the metric is `mean`, or `SPLIT/mean`);
    none where a task of it is missing or diverged. All metrics are better the same way.
    """
    if modality.averages is None:
        return
    groups: dict[tuple, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.stage == "fine_tune" and row.finetune_seed is not None \
                and row.value is not None and row.metric != LOSS:
            split, _, metric = row.metric.rpartition("/")
            key = (row.origin, row.finetune_seed, split, row.direction)
            groups[key][row.task][metric] = row.value
    for (origin, seed, split, direction), scores in groups.items():
        name = f"{split}/mean" if split else "mean"
        for average, value in modality.averages(scores).items():
            yield MetricRow("fine_tune", average, name, direction, value, origin,
                            finetune_seed=seed)


def finetune_outcomes(
    ft: FineTuneProgram, seed: int, result: FineTuneResult, origin: Origin
) -> Iterator[Outcome]:
    """The per-example values of each task on `test`."""
    for task in ft.tasks:
        found = result.tasks.get(task.name)
        values = found.scores["test"].per_example if found else None
        if values is not None:
            yield Outcome("fine_tune", task.name, task.metric.name, origin,
                          tuple(map(float, values)), finetune_seed=seed)


def finetune_curve(
    ft: FineTuneProgram, seed: int, result: FineTuneResult, origin: Origin
) -> Iterator[CurvePoint]:
    """The learning curve `NAME/seedN/...`, NAME a task or `mixture`, and the checkpoints chosen.

    From an untrained network it is `NAME/seedN/untrained/...`. A point
    `TASK/seedN/selected/SPLIT/METRIC` stands at the step of the checkpoint that was chosen by the
    task's metric on that split, and has its value.
    """
    run = run_name(seed, origin)
    for point in result.curve:
        yield dataclasses.replace(point, name=f"{ft.name}/{run}/{point.name}")
    for task in ft.tasks:
        if task.name in result.tasks:
            yield from _selected(task, run, result.tasks[task.name])


def run_name(seed: int, origin: Origin) -> str:
    """Returns what stands for one fine-tuning in the names of its points."""
    return f"seed{seed}" if origin == "pretrained" else f"seed{seed}/{origin}"


def _selected(task: Task, run: str, found: TaskResult) -> Iterator[CurvePoint]:
    for split, step in found.steps.items():
        if split != "test":
            yield CurvePoint("fine_tune", step, f"{task.name}/{run}/selected/{split}/"
                             f"{task.metric.name}", quality(task, found.scores[split]))


def check_metric(metric: Metric, known: set[str], modality: str) -> None:
    """Raises `InputError` where upstream's metric is none that the model measures."""
    if metric.name not in known:
        raise InputError(f"modality {modality!r}", "its model does not measure upstream's metric",
                         got=metric.name, expected=f"one of {', '.join(sorted(known))}")


def upstream_rows(metric: Metric, result: TrainResult) -> list[MetricRow]:
    """Quality on the validation split after the last step, which `train` has evaluated."""
    return quality_rows(metric, {
        p.name.removeprefix("validation/"): p.value for p in result.curve
        if p.name.startswith("validation/") and p.step == result.steps})


def quality_rows(metric: Metric, means: Mapping[str, float | None]) -> list[MetricRow]:
    """Upstream's metric and the loss."""
    rows = [MetricRow("upstream", "", metric.name, metric.direction, means[metric.name])]
    if metric.name != "loss":
        rows.append(MetricRow("upstream", "", "loss", "min", means["loss"]))
    return rows


def probe_rows(
    task: Task, stage: FewShot, train_xy: tuple[np.ndarray, np.ndarray],
    test_xy: tuple[np.ndarray, np.ndarray], origin: Origin,
) -> tuple[list[MetricRow], list[Outcome]]:
    """Probes all shots and seeds with every strength: a row and every test example's outcome."""
    assert task.num_classes is not None
    result = probe(*train_xy, *test_xy, num_classes=task.num_classes, shots=stage.shots,
                   seeds=range(stage.seeds), l2=stage.strengths)
    rows, outcomes = [], []
    for i, l2 in enumerate(result.l2):
        name = "accuracy_l2_auto" if l2 == AUTO else "accuracy"
        for j, shots in enumerate(result.shots):
            for k, seed in enumerate(result.seeds):
                rows.append(MetricRow("few_shot", task.name, name, "max",
                                      float(result.accuracy[i, j, k]), origin, shots, seed))
                outcomes.append(Outcome("few_shot", task.name, name, origin,
                                        tuple(map(float, result.correct[i, j, k])), shots, seed))
                if l2 == AUTO:
                    rows.append(MetricRow("few_shot", task.name, "l2", "min",
                                          float(result.strength[i, j, k]), origin, shots, seed))
    return rows, outcomes


def ended_line(record: Record) -> str:
    """What is said of a trial that has ended."""
    best = [f"{m.metric} {m.value:.4g}" for m in record.metrics
            if m.stage == "upstream" and m.value is not None]
    if record.status == "failed":
        best = [record.environment["error"], f"traceback in {record.environment['traceback']}"]
    what = f" at {record.config['protocol']['optimizer']['learning_rate']:g}, a try" \
        if record.is_try else ""
    head = f"{record.modality} {record.name} seed {record.seed}{what}: {record.status}"
    return ", ".join([head, *best])
