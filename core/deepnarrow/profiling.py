"""What a run's time goes to: shares by part, and a trace of a few steps for Perfetto."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.monitoring

from deepnarrow.steptimer import WARMUP_STEPS

TRACE_FOLDER = "profile"  # in a run's folder
TRACED_STEPS = 10
_COMPILE_EVENTS = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration",
                   "backend_compile_duration")  # the last part of their names


class PartClock:
    """Seconds by part: `compile`, and what `timed` names without the compiling inside it.

    Used as a context manager: within it JAX says what it traces, lowers and compiles.
    """

    def __init__(self) -> None:
        self.seconds = {"compile": 0.0}

    def __enter__(self) -> PartClock:
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: object) -> None:
        if event.rpartition("/")[2] in _COMPILE_EVENTS:
            self.seconds["compile"] += duration_secs

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds of a part that were not compiling."""
        began, compiled = time.perf_counter(), self.seconds["compile"]
        try:
            yield
        finally:
            spent = time.perf_counter() - began - (self.seconds["compile"] - compiled)
            self.seconds[part] = self.seconds.get(part, 0.0) + max(spent, 0.0)


class StepTrace:
    """Traces `TRACED_STEPS` steps of a process, once it is warm, to a folder for Perfetto.

    Args:
      directory: where to; None to trace nothing.
    """

    def __init__(self, directory: Path | None):
        self.directory, self._steps, self._tracing = directory, 0, False

    def before_step(self) -> None:
        """Begins or ends the trace, if it is time."""
        if self.directory is None:
            return
        if self._steps == WARMUP_STEPS:
            jax.profiler.start_trace(self.directory, create_perfetto_trace=True)
            self._tracing = True
        elif self._steps == WARMUP_STEPS + TRACED_STEPS:
            self.close()
        self._steps += 1

    def close(self) -> None:
        """Ends the trace, where one is being taken."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
