"""The launcher `slurm`: units as jobs of SLURM arrays, by submitit.

The workdir must be on a file system that all nodes share. Jobs outlive the command: when it is
stopped they go on, and when it is run again it takes them up. A job whose time is over, or that
SLURM preempts, saves and is queued again by itself. submitit passes functions by pickle, in files
of its own below `WORKDIR/launch/`; nothing of ours reads one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import InputError
from deepnarrow.files import write_bytes, write_json
from deepnarrow.launch.local import start_worker
from deepnarrow.launch.orders import LAUNCH, Order, read_order
from deepnarrow.launch.pool import Engine, Outcome, outcome_of
from deepnarrow.launch.pool import run as run_pool

if TYPE_CHECKING:
    from deepnarrow.launch.session import Session
    from deepnarrow.protocol import Launch
    from deepnarrow.trials import Unit

JOBS_FILE = "slurm.json"  # orders and their jobs, for the next call
FOLDER = "submitit"
SAVE_S = 80.0  # SLURM gives 90 seconds (submitit's default) between its signal and the end
LOST = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
        "COMPLETED", "PREEMPTED", "FINISHED", "INTERRUPTED", "NO PROCESS AND NO RESULT")


def run(units: Sequence[Unit], session: Session) -> None:
    """Submits `units` to SLURM.

    Raises:
      InputError: submitit is not installed, or there is no SLURM here.
    """
    run_pool(units, session, slurm_engine(session.workdir, session.config.launch))


def slurm_engine(workdir: Path, limits: Launch, cluster: str = "slurm") -> Engine:
    """Returns the engine of an executor of submitit; tests take its `local` one.

    Raises:
      InputError: submitit is not installed, or there is no SLURM here; from `start`: SLURM does not
        take the jobs.
    """
    folder, executor = workdir.absolute() / LAUNCH, _executor(workdir, limits, cluster)
    jobs: dict[str, str] = {}

    def start(orders: Sequence[Order], memories: Sequence[int]) -> list[tuple[Order, Any]]:
        executor.update_parameters(mem_gb=max(1, -(-max(memories) // 10**9)))
        with _refusals(), executor.batch():
            submitted = [executor.submit(Job(str(order.path))) for order in orders]
        jobs.update({str(order.path): job.job_id
                     for order, job in zip(orders, submitted, strict=True)})
        write_json(folder / JOBS_FILE, jobs)
        return list(zip(orders, submitted, strict=True))

    def poll(handle: tuple[Order, Any]) -> tuple[Outcome, str] | None:
        order, job = handle
        code = _exit_code(order)
        state = "" if code is not None else str(job.state).partition(" ")[0]
        if code is None and (state in LOST or str(job.state) in LOST):
            time.sleep(0.2)  # its last file may be on its way
            code = _exit_code(order)
            if code is None:
                kind = "failed" if state == "OUT_OF_MEMORY" else "preempted"
                return kind, f"ended in state {job.state}"
        return None if code is None else outcome_of(code)

    def resume() -> list[tuple[Order, Any]]:
        found = _read_jobs(folder / JOBS_FILE)
        taken = [(read_order(path), job_id) for path, job_id in found.items()
                 if Path(path).is_file()]
        jobs.update({str(order.path): job_id for order, job_id in taken})
        kind = executor._executor.job_class
        return [(order, (order, kind(executor.folder, job_id))) for order, job_id in taken]

    def cancel(handle: tuple[Order, Any]) -> None:
        handle[1].cancel(check=False)

    return Engine(start, poll, stop=cancel, kill=cancel, resume=resume, detached=True)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    from submitit.core.utils import FailedJobError

    try:
        yield
    except FailedJobError as error:
        said = str(error).removeprefix("sbatch: error: ").splitlines() or ["nothing"]
        raise InputError("--launcher slurm", "SLURM does not take the jobs", got=said[0],
                         hint="launch.cpus, gpus, memory_gb, minutes and partition are what a unit "
                              "asks for") from error


def _executor(workdir: Path, limits: Launch, cluster: str) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise InputError("--launcher slurm", "needs submitit, which is not installed",
                         hint="pip install 'deepnarrow[slurm]'") from error
    try:
        made = submitit.AutoExecutor(workdir.absolute() / LAUNCH / FOLDER, cluster=cluster)
    except (RuntimeError, ValueError) as error:
        raise InputError("--launcher slurm", "there is no SLURM here", got=error,
                         expected="sbatch on the path") from error
    made.update_parameters(
        name="deepnarrow", timeout_min=limits.minutes, cpus_per_task=limits.cpus,
        gpus_per_node=limits.gpus,
        **({"slurm_partition": limits.partition} if limits.partition else {}))
    return made


class Job:
    """What a SLURM job runs: an order's worker. submitit calls `checkpoint` before its end."""

    def __init__(self, path: str):
        self.path = path
        self._pid: int | None = None

    def __call__(self) -> int:
        """Runs the worker; its exit code stands in a file when it has ended."""
        order = read_order(self.path)
        _exit_file(order).unlink(missing_ok=True)
        with start_worker(order) as process:
            self._pid = process.pid
            while not _has_ended(process.pid):
                time.sleep(0.1)
            code = process.wait()
        write_bytes(_exit_file(order), str(code).encode())
        return code

    def checkpoint(self) -> Any:
        """Has the worker save and end, and asks to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            deadline = time.monotonic() + SAVE_S
            while not _has_ended(self._pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        return DelayedSubmission(Job(self.path))


def _has_ended(pid: int) -> bool:
    # Without reaping it, and without Popen's lock: `checkpoint` runs in a signal handler, in the
    # middle of `__call__`.
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _exit_file(order: Order) -> Path:
    return order.path.with_suffix(".exit")


def _exit_code(order: Order) -> int | None:
    try:
        return int(_exit_file(order).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _read_jobs(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(order): str(job) for order, job in found.items()}
