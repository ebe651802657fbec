"""A watchdog on progress: work that stands still is ended, with the stacks of all threads.

Alive is not enough: a process that waits for ever answers every ping. So steps and batches count,
each time the loops ask whether to stop.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

EXIT_HUNG = 70
TICK_S = 1.0
# A frame of one of these in the working thread's stack: JAX traces, lowers or compiles.
_COMPILING = ("jax/_src/compiler.py", "jax/_src/interpreters/partial_eval.py",
              "jax/_src/interpreters/mlir.py")


class Watchdog:
    """Context that ends the process with `EXIT_HUNG` when nothing beats for too long.

    The time in which the process itself is stopped (SIGSTOP, a debugger, a suspended machine) does
    not count: its ticks stop, too. Compiling has its own bound.

    Args:
      hang_after_s: longest time between two beats; 0 for any.
      compile_within_s: the same while JAX compiles; 0 for any.
      stacks: file that the stacks are written to; stderr has them too.
      tick: called about once a second from the watching thread, for signs of life.
      leave: what ends the process.
    """

    def __init__(
        self, hang_after_s: float, compile_within_s: float, stacks: Path,
        tick: Callable[[], None] = lambda: None, leave: Callable[[int], object] = os._exit,
    ):
        self.hang_after_s, self.compile_within_s = hang_after_s, compile_within_s
        self.stacks, self._tick, self._leave = stacks, tick, leave
        self._beats, self._ended = 0, threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Notes progress: cheap enough for every step."""
        self._beats += 1

    def polled(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Returns `stop` such that each question counts as progress."""
        def ask() -> bool:
            self.beat()
            return stop()

        return ask

    def __enter__(self) -> Watchdog:
        self._watched = threading.get_ident()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        waits = [s for s in (self.hang_after_s, self.compile_within_s) if s] or [TICK_S * 10]
        wait = min(TICK_S, min(waits) / 5)
        beats, still, last = self._beats, 0.0, time.monotonic()
        while not self._ended.wait(wait):
            now = time.monotonic()
            still, last = still + min(now - last, 2 * wait), now
            with contextlib.suppress(OSError):
                self._tick()
            if self._beats != beats:
                beats, still = self._beats, 0.0
                continue
            if self.hang_after_s and still > self.hang_after_s:
                limit = self.compile_within_s if self._compiles() else self.hang_after_s
                if limit and still > limit:
                    return self._end(still, limit)
        return None

    def _compiles(self) -> bool:
        frame = sys._current_frames().get(self._watched)
        while frame is not None:
            if frame.f_code.co_filename.replace(os.sep, "/").endswith(_COMPILING):
                return True
            frame = frame.f_back
        return False

    def _end(self, still: float, limit: float) -> None:
        text = (f"\nerror: no step or batch for {still:.0f} s (run.hang_after_s or "
                f"run.compile_within_s is {limit:g}); stacks in {self.stacks}; the same command "
                "goes on from the last checkpoint\n")
        with contextlib.suppress(OSError):
            self.stacks.parent.mkdir(parents=True, exist_ok=True)
            with open(self.stacks, "w") as file:
                file.write(text)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        with contextlib.suppress(OSError, ValueError):
            os.write(2, text.encode())
            faulthandler.dump_traceback(2, all_threads=True)
        self._leave(EXIT_HUNG)
