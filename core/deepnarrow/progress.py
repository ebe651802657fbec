"""Progress of long work on stderr: bars on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from deepnarrow.errors import shorten

SECONDS_A_LINE = 60.0


class StudyProgress:
    """Two bars: trials of the study, and steps of what runs now."""

    def __init__(self, total: int, quiet: bool = False):
        self._console = Console(stderr=True, quiet=quiet)
        self._quiet = quiet
        self._bars = self._console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._bars,
        )
        self._total, self._done, self._start = total, 0, time.monotonic()
        self._trials = self._progress.add_task("trials", total=total, note="")
        self._steps = self._progress.add_task("", total=None, note="")

    def __enter__(self) -> StudyProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        """Says what runs now."""
        self._progress.update(
            self._steps, description=shorten(text), completed=0, total=None, note=""
        )

    def steps(self, step: int, total: int, note: str) -> None:
        """Moves the lower bar to `step` of `total`."""
        self._progress.update(self._steps, completed=step, total=total, note=note)

    def note(self, text: str) -> None:
        """Leaves a line."""
        if self._bars:
            self._console.print(Text(text))
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def more(self, number: int) -> None:
        """There are so many more trials than was known."""
        self._total += number
        self._progress.update(self._trials, total=self._total)

    def ended(self, text: str) -> None:
        """Moves the upper bar by one trial and leaves a line."""
        self._done += 1
        self._progress.advance(self._trials)
        elapsed = time.monotonic() - self._start
        self.note(f"[{self._done}/{self._total}] {elapsed:6.1f} s  {shorten(text, 160)}")


class ShareProgress:
    """One bar for work whose share done is known; elsewhere than on a terminal a line a minute."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = console.is_terminal
        self._progress = Progress(
            BarColumn(), TextColumn("{task.percentage:>5.1f}%"), TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console, transient=True, disable=not self._bars,
        )
        self._task = self._progress.add_task("", total=1.0, note="")
        self._next_line = time.monotonic() + SECONDS_A_LINE

    def __enter__(self) -> ShareProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, share: float, note: str) -> None:
        """Shows that `share` (0 to 1) of the stage `note` is done."""
        if self._bars:
            self._progress.update(self._task, completed=share, note=shorten(note))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_A_LINE
            print(f"{100 * share:5.1f}%  {shorten(note, 160)}", file=sys.stderr, flush=True)
