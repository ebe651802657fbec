"""What the host knows of a run of training: its curve, its times, how far it is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deepnarrow.meter import Meter
from deepnarrow.records import CurvePoint, Stage
from deepnarrow.stepslog import StepsLog
from deepnarrow.steptimer import StepTimer

PROGRESS_SECONDS = 0.5  # between two reports of progress


@dataclasses.dataclass
class RunLog:
    """What the host knows of a run; saved beside the state, so it survives an interruption.

    `steps` is the log of the order of data, where there is one; its chain is saved with the rest.
    """

    stage: Stage
    curve: list[CurvePoint]
    meter: Meter
    timer: StepTimer
    seconds_before: float
    steps: StepsLog | None = None
    began: float = dataclasses.field(default_factory=time.perf_counter)

    @classmethod
    def make(
        cls, stage: Stage, extra: Mapping[str, Any], steps: StepsLog | None = None
    ) -> RunLog:
        """Goes on from the `extra` of a checkpoint; from nothing where that is empty."""
        points = [CurvePoint(stage, *point) for point in extra.get("curve", ())]
        return cls(stage, points, Meter(extra.get("totals")), StepTimer(extra.get("step_time_s")),
                   extra.get("seconds", 0.0), steps)

    def extra(self) -> dict[str, Any]:
        """What is saved beside the state, JSON-able."""
        return {"curve": [[p.step, p.name, p.value] for p in self.curve],
                "totals": self.meter.totals(), "step_time_s": self.timer.median(),
                "seconds": self.seconds(),
                "order": None if self.steps is None else self.steps.chain}

    def seconds(self) -> float:
        """Wall time so far, from before any interruption too."""
        return self.seconds_before + time.perf_counter() - self.began

    def add_points(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds points `SPLIT/NAME` to the curve; a value that is not finite is None there."""
        for name, value in sorted(values.items()):
            finite = float(value) if np.isfinite(value) else None
            self.curve.append(CurvePoint(self.stage, step, f"{split}/{name}", finite))


@dataclasses.dataclass
class RunProgress:
    """Tells the caller how far training is, not more often than a person can read."""

    report: Callable[[int, int, str], None] | None
    total: int
    batch_size: int
    step: int
    loss: float | None = None
    when: float = dataclasses.field(default_factory=time.perf_counter)

    def update(self, step: int, *, now: bool = False) -> None:
        """Notes that `step` updates are made; reports them if it is time, or `now`."""
        seconds = time.perf_counter() - self.when
        if self.report is None or not (now or seconds >= PROGRESS_SECONDS):
            return
        rate = (step - self.step) * self.batch_size / seconds if seconds > 0 else 0.0
        text = f"{rate:,.0f} examples/s" if rate else ""
        text = text if self.loss is None else f"loss {self.loss:.4g}  {text}"
        self.report(step, self.total, text)
        self.step, self.when = step, time.perf_counter()
