"""The launcher `local`: a process a unit on this machine, `launch.workers` at once.

No more run together than memory holds by their estimates; one always may. Each has processors of
its own: small models use one better than two (docs/benchmarks.md). A worker that is stopped, or
holds Python's lock for ever, shows no sign of life and is ended from here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepnarrow.launch.orders import Order
from deepnarrow.launch.pool import Engine, Outcome, outcome_of
from deepnarrow.launch.pool import run as run_pool
from deepnarrow.running import state_file

if TYPE_CHECKING:
    from deepnarrow.launch.session import Session
    from deepnarrow.trials import Unit

MEMORY_SHARE = 0.9  # of what is available when the study starts
SILENT_S = 60.0  # a worker whose state is older shows no sign of life


def run(units: Sequence[Unit], session: Session) -> None:
    """Runs `units` in processes of this machine."""
    run_pool(units, session, local_engine(
        session.config.launch.workers, MEMORY_SHARE * available_bytes(), session.workdir))


def local_engine(
    workers: int, memory: float, workdir: Path, silent_s: float = SILENT_S
) -> Engine:
    """Returns the engine of `workers` processes that together need at most `memory` bytes."""
    free = processor_shares(workers)
    taken: dict[int, set[int]] = {}

    def start(orders: Sequence[Order], memories: Sequence[int]) -> list[subprocess.Popen[bytes]]:
        del memories  # admitted by `fits`
        processes = [start_worker(order) for order in orders]
        for process in processes if free else ():
            taken[process.pid] = free.pop()
            # At once, before it has threads: they inherit it, and XLA counts what it may use.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, taken[process.pid])
        return processes

    def poll(process: subprocess.Popen[bytes]) -> tuple[Outcome, str] | None:
        code = process.poll()
        if code is not None:
            _let_go(process)
            free.extend([taken.pop(process.pid)] if process.pid in taken else [])
            return outcome_of(code)
        try:
            silence = time.time() - state_file(workdir, pid=process.pid).stat().st_mtime
        except FileNotFoundError:
            return None  # it has not begun yet
        if silence < silent_s:
            return None
        kill(process)
        free.extend([taken.pop(process.pid)] if process.pid in taken else [])
        return "failed", f"showed no sign of life for {silence:.0f} s"

    return Engine(start, poll, stop=lambda process: process.terminate(), kill=kill,
                  fits=_admission(workers, memory))


def processor_shares(workers: int) -> list[set[int]]:
    """Returns each worker's processors; nothing where there are fewer, or they cannot be given."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cpus = sorted(os.sched_getaffinity(0))
    return [set(cpus[i::workers]) for i in range(workers)] if len(cpus) >= workers else []


def _admission(workers: int, memory: float) -> Callable[[int, Sequence[int]], bool]:
    def fits(need: int, used: Sequence[int]) -> bool:
        return not used or (len(used) < workers and need + sum(used) <= memory)

    return fits


def start_worker(order: Order) -> subprocess.Popen[bytes]:
    """Starts the process of an order; it ends by itself when this one does."""
    with open(order.log, "ab") as log:
        # A session of its own: Ctrl-C reaches the command alone, which then asks its workers.
        return subprocess.Popen(
            [sys.executable, "-m", "deepnarrow.worker", str(order.path), "--with-parent"],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker at once."""
    process.kill()
    process.wait()
    _let_go(process)


def _let_go(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def available_bytes() -> float:
    """Returns the memory that programs can still take on this machine."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
