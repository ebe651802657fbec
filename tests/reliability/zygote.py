"""A process that has imported everything and forks a child for each job: a start in milliseconds.

Run by `harness.Zygote`. Lines of JSON come in, `{"job": NAME, "args": {...}, "log": PATH}`; lines
go out, `{"pid": N}` when the child runs and `{"exit": CODE}` when it has ended. JAX makes its
threads when it is first used, which is in the children alone, so forking here is safe.
"""

import json
import os
import pathlib
import sys
import traceback
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import jobs

import deepnarrow.trial  # JAX, Orbax, Grain: imported once


def serve():
    """Serves jobs until the input ends."""
    assert deepnarrow.trial is not None
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for line in sys.stdin:
        order = json.loads(line)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # there are no threads yet
            pid = os.fork()
        if not pid:
            _child(order)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


def _child(order):
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.setsid()
    code = 1
    try:
        code = jobs.JOBS[order["job"]](**order["args"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    serve()
