"""Records: what a trial cost and how good it was. Analysis reads these and nothing else.

`store.py` keeps them in one SQLite file, `records.sqlite`, in a study's workdir. Non-finite numbers
are None there, beside the record's status, and counted in every report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Status = Literal["done", "diverged", "failed", "preempted"]
# A trial that diverged would diverge again: its key is finished. One that failed or was preempted
# is run again.
FINISHED: tuple[Status, ...] = ("done", "diverged")
COSTS = (
    "params_total", "params_non_embedding", "flops_forward_per_example", "flops_train_total",
    "tokens_seen", "step_time_s", "peak_bytes", "chip_hours",
)
# Shown beside parameters outside embeddings: a table of embeddings shrinks with d_model.
TOTAL_PARAMS = "params_total"
# What pre-training is judged by where nothing else is asked for.
UPSTREAM_LOSS = "upstream/loss"
# `tuning`: the learning rate that was chosen and the tries' losses (tuning.py); no quality.
Stage = Literal["upstream", "few_shot", "fine_tune", "tuning"]
# What a transfer number was measured on: the pre-trained model; a network of the same shape with
# random parameters; or the raw inputs (pixels, bag of pieces).
Origin = Literal["pretrained", "untrained", "raw"]


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """One measured number. Seeds of different kinds have columns of their own."""

    stage: Stage
    task: str  # "" for upstream
    metric: str
    direction: Literal["min", "max"]
    value: float | None
    origin: Origin = "pretrained"
    shots: int | None = None
    shot_seed: int | None = None
    finetune_seed: int | None = None


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """One point of a learning curve."""

    stage: Stage
    step: int
    name: str  # "train/loss", "validation/loss", ...
    value: float | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Per-example values of one evaluation, in the order of the examples, for bootstraps."""

    stage: Stage
    task: str
    metric: str
    origin: Origin
    values: tuple[float, ...]
    shots: int | None = None
    shot_seed: int | None = None
    finetune_seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """One ended trial.

    Attributes:
      key: the trial's key: a hash of what determines the result.
      study: the study's name.
      modality: the modality's name.
      architecture: the architecture's name.
      name: canonical name of the shape, e.g. `tiny-nl8`.
      shape: the eight fields of `Shape`.
      seed: the pre-training seed.
      status: how it ended.
      config: the resolved trial (options, data, protocol), JSON-able.
      costs: `params_total`, `params_non_embedding`, `flops_forward_per_example`,
        `flops_train_total`, `tokens_seen`, `step_time_s`, `peak_bytes`, `chip_hours` (median step
        time of pre-training x steps x devices); value or None.
      flop_convention: the convention of the FLOPs in `costs`.
      environment: versions, device, host, seconds of each stage, error text where there was one.
      metrics: every number measured.
      curve: learning curves.
      outcomes: per-example values.
    """

    key: str
    study: str
    modality: str
    architecture: str
    name: str
    shape: Mapping[str, Any]
    seed: int
    status: Status
    config: Mapping[str, Any]
    costs: Mapping[str, float | None]
    flop_convention: str
    environment: Mapping[str, Any]
    metrics: tuple[MetricRow, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    outcomes: tuple[Outcome, ...] = ()

    @property
    def is_try(self) -> bool:
        """Whether it chose a learning rate; such a run is never reported."""
        return bool(self.config.get("try"))

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON-able values."""
        return dataclasses.asdict(self)


def reported(records: Iterable[Record]) -> list[Record]:
    """Returns the records of trials, without those of tuning's tries."""
    return [record for record in records if not record.is_try]


def latest(records: Iterable[Record]) -> list[Record]:
    """Returns one record a key, in order of first appearance: its finished one, else its last."""
    found: dict[str, Record] = {}
    for record in records:
        earlier = found.get(record.key)
        if earlier is None or earlier.status not in FINISHED:
            found[record.key] = record
    return list(found.values())
