"""Several processes that train one model together, by `jax.distributed`.

Every process runs the same commands in the same order; the first one alone writes files and
prints. Without any of this there is one process, `ALONE`, and JAX is not imported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from deepnarrow.errors import InputError, shorten

AUTO = "auto"
VARIABLES = {"coordinator": "JAX_COORDINATOR_ADDRESS", "num_processes": "JAX_NUM_PROCESSES",
             "process_id": "JAX_PROCESS_ID"}
MAX_PROCESSES = 2**20
ASK_EVERY = 8  # a stop is agreed on at every 8th step: agreeing waits for the devices


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This process among those that train together.

    Attributes:
      index: its number; 0 writes and prints.
      count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it writes and prints."""
        return self.index == 0

    def share(self, value: Any = None) -> Any:
        """Returns the first process's `value`, plain JSON, in every process."""
        if self.count == 1:
            return value
        import numpy as np
        from jax.experimental.multihost_utils import broadcast_one_to_all

        text = json.dumps(value).encode() if self.first else b""
        size = int(broadcast_one_to_all(np.int32(len(text))))
        buffer = np.frombuffer(text.ljust(size, b"\0")[:size], np.uint8)
        return json.loads(np.asarray(broadcast_one_to_all(buffer)).astype(np.uint8).tobytes())

    def any(self, flag: bool) -> bool:
        """Returns whether `flag` is set in any process."""
        if self.count == 1:
            return flag
        import numpy as np
        from jax.experimental.multihost_utils import process_allgather

        return bool(np.any(process_allgather(np.array(flag))))


ALONE = Hosts()


def join(
    coordinator: str | None, num_processes: str | None, process_id: str | None,
    environ: Mapping[str, str] | None = None,
) -> Hosts:
    """Joins the processes that train together, if anything says that there are several.

    Args:
      coordinator: `HOST:PORT` of process 0, or `auto`: JAX finds out all three by itself (TPU pods,
        SLURM, Open MPI, Kubernetes).
      num_processes: how many there are.
      process_id: this one's number, 0 to N - 1.
      environ: where values that are None are looked up, under the names in `VARIABLES`.

    Raises:
      InputError: some of the three are missing or cannot be; the coordinator does not answer.
    """
    environ = os.environ if environ is None else environ
    values = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    given = {name: value if value is not None else environ.get(VARIABLES[name])
             for name, value in values.items()}
    if not any(given.values()):
        return ALONE
    if given["coordinator"] == AUTO and not given["num_processes"] and not given["process_id"]:
        return _initialize({}, "--coordinator auto")
    return _initialize(_check(given), f"--coordinator {given['coordinator']}")


def _check(given: Mapping[str, str | None]) -> dict[str, Any]:
    for name, value in given.items():
        if not value:
            flag = f"--{name.replace('_', '-')}"
            raise InputError("several processes", f"{flag} is missing",
                             expected="--coordinator HOST:PORT --num-processes N --process-id I",
                             hint=f"or the environment variable {VARIABLES[name]}; --coordinator "
                             "auto alone, where JAX can find out")
    address, count, index = (str(given[name]) for name in VARIABLES)
    if not re.fullmatch(r"\S+:[0-9]{1,5}", address):
        raise InputError("--coordinator", "is no address", got=repr(shorten(address)),
                         expected="HOST:PORT of process 0, or auto alone")
    if not re.fullmatch(r"[0-9]{1,7}", count) or not 1 <= int(count) <= MAX_PROCESSES:
        raise InputError("--num-processes", "is not an integer in range",
                         got=repr(shorten(count)), expected=f"1..{MAX_PROCESSES}")
    if not re.fullmatch(r"[0-9]{1,7}", index) or int(index) >= int(count):
        raise InputError("--process-id", "is not an integer in range", got=repr(shorten(index)),
                         expected=f"0..{int(count) - 1}, with --num-processes {count}")
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}


def _initialize(settings: Mapping[str, Any], where: str) -> Hosts:
    import jax

    try:
        jax.distributed.initialize(**settings)
    except (RuntimeError, ValueError) as error:
        raise InputError(where, "the processes did not find each other",
                         got=str(error).splitlines()[0],
                         hint="start all of them, with the same address and number") from error
    return Hosts(jax.process_index(), jax.process_count())


class AgreedStop:
    """A request to stop that every process obeys at the same step.

    All of them ask equally often; every `ASK_EVERY`-th time they tell each other.
    """

    def __init__(self, requested: Callable[[], bool], hosts: Hosts):
        self._requested, self._hosts = requested, hosts
        self._asked, self._agreed = 0, False

    def __call__(self) -> bool:
        if self._hosts.count == 1:
            return self._requested()
        if self._asked % ASK_EVERY == 0:
            self._agreed = self._hosts.any(self._requested())
        self._asked += 1
        return self._agreed
