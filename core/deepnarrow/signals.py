"""Stopping on request: the first SIGINT or SIGTERM sets a flag, a second one leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType

EXIT_PREEMPTED = 75


class StopRequest:
    """Context in which SIGINT and SIGTERM ask for a stop instead of raising.

    Long work polls `requested` (a step, an evaluation batch), saves, and returns.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __call__(self) -> bool:
        return self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested:
            # The user asks twice: no clean-up, what was committed stays.
            os._exit(EXIT_PREEMPTED)
        self.requested = True
        name = signal.Signals(number).name
        # Not sys.stderr: the signal may have come in the middle of a write to it, and a buffered
        # stream refuses to be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{name}: saving, then stopping; once more leaves at once\n".encode())

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
