"""The time of a training step, completion to completion."""

from __future__ import annotations

import statistics
import time

WARMUP_STEPS = 3  # left out of the step time: compilation, cold caches
MIN_TIMED_STEPS = 20  # fewer make no step time


class StepTimer:
    """Times steps from completion to completion, so that running ahead hides nothing."""

    def __init__(self, saved: float | None = None):
        self._saved, self._last, self._skip = saved, None, WARMUP_STEPS
        self._seconds: list[float] = []

    def completed(self) -> None:
        """Notes that a step has just been completed."""
        now = time.perf_counter()
        if self._last is not None:
            if self._skip:
                self._skip -= 1
            else:
                self._seconds.append(now - self._last)
        self._last = now

    def pause(self) -> None:
        """Leaves out the time until the next completion: something else was done."""
        self._last = None

    def median(self) -> float | None:
        """Returns the median, that of before an interruption where too few were timed since."""
        enough = len(self._seconds) >= MIN_TIMED_STEPS
        return statistics.median(self._seconds) if enough else self._saved
