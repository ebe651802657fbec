"""The launcher `ray`: units as tasks of a Ray cluster that is there, or of `ray start --head`.

The workdir must be on a file system that all nodes share. Ray says where a unit runs and when its
node is lost; whether a trial has ended only our records say.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import InputError, shorten
from deepnarrow.launch.local import start_worker
from deepnarrow.launch.orders import read_order
from deepnarrow.launch.pool import Engine, Outcome, outcome_of
from deepnarrow.launch.pool import run as run_pool

if TYPE_CHECKING:
    from deepnarrow.launch.orders import Order
    from deepnarrow.launch.session import Session
    from deepnarrow.protocol import Launch
    from deepnarrow.trials import Unit


def run(units: Sequence[Unit], session: Session) -> None:
    """Runs `units` on the Ray cluster at `RAY_ADDRESS`, or the one that this machine belongs to.

    Raises:
      InputError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--launcher ray", "needs Ray, which is not installed",
                         hint="pip install 'deepnarrow[ray]'") from error
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError("--launcher ray", "there is no Ray cluster here", got=address,
                             hint="ray start --head starts one; RAY_ADDRESS names another") from (
                                 error)
    run_pool(units, session, ray_engine(session.config.launch))


def ray_engine(limits: Launch) -> Engine:
    """Returns the engine that runs orders as tasks of the Ray cluster this process is part of."""
    import ray
    from ray import exceptions

    remote = ray.remote(max_retries=0)(carry_out)

    def start(orders: Sequence[Order], memories: Sequence[int]) -> list[Any]:
        most = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]),
                   default=0)  # a task that wants more would wait for ever
        return [remote.options(num_cpus=limits.cpus, num_gpus=limits.gpus,
                               memory=int(min(memory, most))).remote(str(order.path))
                for order, memory in zip(orders, memories, strict=True)]

    def poll(task: Any) -> tuple[Outcome, str] | None:
        if not ray.wait([task], timeout=0)[0]:
            return None
        try:
            return outcome_of(ray.get(task))
        except exceptions.TaskCancelledError:
            return "preempted", "was asked to stop"
        except (exceptions.RayTaskError, exceptions.OutOfMemoryError) as error:
            return "failed", f"failed in Ray: {shorten(error, 200)}"
        except exceptions.RayError as error:
            return "preempted", f"lost its node ({type(error).__name__})"

    return Engine(start, poll, stop=ray.cancel, kill=lambda task: ray.cancel(task, force=True))


def carry_out(path: str) -> int:
    """Runs an order's worker on this node, and returns its exit code."""
    with start_worker(read_order(path)) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # `ray.cancel`
            process.terminate()
            return process.wait()
