"""What is told of a run while it trains: a line of JSON in its folder, and the plugins' hooks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.files import append_json
from deepnarrow.plugins import Registry, notify
from deepnarrow.records import Stage

if TYPE_CHECKING:
    from deepnarrow.config import StudyConfig
    from deepnarrow.trials import Trial

CURVE_FILE = "curve.jsonl"  # in a run's folder: every point of its curves, as it was measured
OnLog = Callable[[int, Mapping[str, float]], None]


def trial_facts(trial: Trial, config: StudyConfig, workdir: Path) -> dict[str, Any]:
    """Returns whose an observer's numbers are: what both observer hooks are told."""
    return {
        "trial_key": trial.key, "study": config.name, "workdir": str(workdir),
        "modality": trial.modality, "architecture": trial.architecture,
        "shape": trial.shape.name, "seed": trial.seed,
        "config": json.loads(json.dumps(trial.config())),
        "tensorboard": config.run.tensorboard,
    }


def observer(
    registry: Registry, directory: Path, facts: Mapping[str, Any], stage: Stage, total_steps: int,
    prefix: str = "",
) -> OnLog:
    """Returns `on_log(step, metrics)`, which tells a stage's points as they are measured.

    Args:
      registry: whose observers are told, by `deepnarrow_step_end`.
      directory: the run's; `curve.jsonl` is appended to. After an interruption the steps behind the
        checkpoint come again there: of two lines of one stage, step and name the last one holds.
      facts: from `trial_facts`.
      stage: of the points.
      total_steps: of the stage.
      prefix: of the points' names.
    """
    def on_log(step: int, metrics: Mapping[str, float]) -> None:
        named = {prefix + name: value for name, value in metrics.items()}
        finite = {name: x if math.isfinite(x) else None for name, x in named.items()}
        append_json(directory / CURVE_FILE, {"stage": stage, "step": step, **finite})
        notify(registry, "deepnarrow_step_end", info={
            **facts, "stage": stage, "step": step, "total_steps": total_steps, "metrics": named})

    return on_log
