"""What the launchers `local`, `ray` and `slurm` share: units in processes of their own.

A unit is ordered; its process leaves a record for each trial, or ends without. What is missing is
ordered again: as often as `launch.max_preemptions` where its machine was taken away or it was asked
to stop, as often as `launch.max_failures` where it crashed or hung; then it is recorded as failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from deepnarrow.errors import InputError
from deepnarrow.launch.orders import Order, left, write_order
from deepnarrow.running import say_ended
from deepnarrow.signals import EXIT_PREEMPTED
from deepnarrow.watchdog import EXIT_HUNG

if TYPE_CHECKING:
    from deepnarrow.launch.session import Session
    from deepnarrow.trials import Unit

POLL_S = 0.1
GRACE_S = 120.0  # for workers to save once the study is asked to stop
EXIT_BAD_INPUT = 2
Outcome = Literal["ended", "preempted", "failed", "refused"]


def always_fits(need: int, used: Sequence[int]) -> bool:
    """For engines that queue by themselves."""
    del need, used
    return True


@dataclasses.dataclass(frozen=True)
class Engine:
    """Runs orders somewhere.

    Attributes:
      start: begins orders; returns a handle for each, in order.
      poll: returns how the order of a handle ended, with words for a person; None while it runs.
      stop: asks an order to save and end.
      kill: ends it at once.
      fits: whether a unit may begin beside those that run: `fits(bytes of it, bytes of those)`.
      resume: orders of an earlier call that may run still, with their handles.
      detached: whether its orders go on when the command is stopped.
    """

    start: Callable[[Sequence[Order], Sequence[int]], list[Any]]
    poll: Callable[[Any], tuple[Outcome, str] | None]
    stop: Callable[[Any], None]
    kill: Callable[[Any], None]
    fits: Callable[[int, Sequence[int]], bool] = always_fits
    resume: Callable[[], list[tuple[Order, Any]]] = list
    detached: bool = False


@dataclasses.dataclass
class _Job:
    """A unit with its budgets; `order` and `handle` while it runs."""

    unit: Unit
    memory: int
    preemptions: int = 0
    failures: int = 0
    order: Order | None = None
    handle: Any = None


def outcome_of(code: int) -> tuple[Outcome, str]:
    """Says what a worker's exit code means; negative ones are signals.

    >>> outcome_of(75)[0], outcome_of(-15)[0], outcome_of(-9)
    ('preempted', 'preempted', ('failed', 'was killed by SIGKILL (out of memory?)'))
    """
    if code in (EXIT_PREEMPTED, -signal.SIGTERM, -signal.SIGINT):
        return "preempted", "was asked to stop"
    if code == 0:
        return "ended", "ended"
    if code == EXIT_BAD_INPUT:
        return "refused", "could not carry out its order"  # nor could another
    if code == EXIT_HUNG:
        return "failed", "hung: no step or batch for run.hang_after_s"
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return "failed", f"was killed by {name}" + (
                " (out of memory?)" if name == "SIGKILL" else "")
    return "failed", f"ended with exit code {code}"


def run(units: Sequence[Unit], session: Session, engine: Engine) -> None:
    """Runs `units` by `engine` until each trial has a record, or the study is asked to stop.

    Raises:
      InputError: several processes are to train together, which only `inline` does.
    """
    if session.hosts.count > 1:
        raise InputError("--launcher", "runs units in processes of their own, but several "
                         "processes train together here", expected="inline")
    waiting = deque(_Job(unit, session.memory_bytes(unit)) for unit in units)
    running = _resumed(waiting, engine)
    collect(session)
    while waiting or running:
        if session.stop():
            _stop(running, session, engine)
            return
        _start(waiting, running, session, engine)
        for job in list(running):
            ended = engine.poll(job.handle)
            if ended is not None:
                running.remove(job)
                collect(session)
                _after(job, *ended, waiting, session)
        if running:
            time.sleep(POLL_S)


def collect(session: Session) -> None:
    """Stores what workers have left; what an attempt left that is fenced off is dropped, and said.

    A file goes once its record is committed: a command that is killed in between collects it twice,
    which changes nothing.
    """
    for path, record, attempt in left(session.workdir):
        if session.deliver(record, attempt):
            what = ", a try" if record.is_try else ""
            session.progress.ended(f"{record.modality} {record.name} seed {record.seed}{what}: "
                                   f"{record.status}")
        else:
            session.progress.note(f"note: {record.name} seed {record.seed}: attempt {attempt} came "
                                  "after a newer one had begun; its record is dropped")
        path.unlink(missing_ok=True)


def _resumed(waiting: deque[_Job], engine: Engine) -> list[_Job]:
    """Takes up the orders of an earlier call that run still: theirs are not begun again."""
    running = []
    for order, handle in engine.resume():
        for job in list(waiting):
            if {trial.key for trial in job.unit.trials} & order.attempts.keys():
                waiting.remove(job)
                running.append(dataclasses.replace(job, order=order, handle=handle))
    return running


def _missing(job: _Job, session: Session) -> list[Any]:
    return [trial for trial in job.unit.trials if trial.key not in session.ended]


def _start(
    waiting: deque[_Job], running: list[_Job], session: Session, engine: Engine
) -> None:
    begun: list[_Job] = []
    while waiting and engine.fits(waiting[0].memory, [job.memory for job in running + begun]):
        job = waiting.popleft()
        missing = _missing(job, session)
        if missing:
            job.order = write_order(
                session.workdir, session.config,
                {trial.key: session.claim(trial.key) for trial in missing},
                {trial.key: facts for trial in missing if (facts := trial.tuned_facts())})
            begun.append(job)
    if begun:
        orders = [job.order for job in begun if job.order is not None]
        for job, handle in zip(begun, engine.start(orders, [job.memory for job in begun]),
                               strict=True):
            job.handle = handle
            running.append(job)


def _after(job: _Job, outcome: Outcome, what: str, waiting: deque[_Job], session: Session) -> None:
    """Orders again what an ended process left without a record, or gives it up."""
    missing, order, limits = _missing(job, session), job.order, session.config.launch
    if not missing:
        return
    assert order is not None
    if outcome == "preempted":
        job.preemptions += 1
    else:
        job.failures += 1 if outcome != "refused" else limits.max_failures + 1
    first = missing[0]
    name = f"{first.modality} {first.shape.name} seed {first.seed}"
    if job.preemptions <= limits.max_preemptions and job.failures <= limits.max_failures:
        session.progress.note(f"note: {name}: its process {what}; it is begun again (log: "
                              f"{order.log})")
        waiting.append(job)
        return
    # The first one without a record ended the process; the others go on without it.
    session.give_up(first, order.attempts[first.key], f"its process {what}: {_last_line(order)}",
                    order.log)
    session.progress.ended(f"{name}: failed, its process {what}")
    if missing[1:]:
        waiting.append(dataclasses.replace(job, preemptions=0, failures=0))


def _last_line(order: Order) -> str:
    """The last line that a worker printed, for the record."""
    with contextlib.suppress(OSError):
        lines = order.log.read_text(errors="replace")[-10_000:].strip().splitlines()
        if lines:
            return lines[-1]
    return "it printed nothing"


def _stop(running: list[_Job], session: Session, engine: Engine) -> None:
    """Has the workers save and end, and keeps what they leave."""
    if engine.detached:
        session.progress.note(f"note: {len(running)} jobs go on; run the command again to take "
                              "them up")
        return
    for job in running:
        engine.stop(job.handle)
    deadline = time.monotonic() + GRACE_S
    while running and time.monotonic() < deadline:
        running[:] = [job for job in running if engine.poll(job.handle) is None]
        time.sleep(POLL_S)
    for job in running:
        engine.kill(job.handle)
    collect(session)
    say_ended(session.workdir)
