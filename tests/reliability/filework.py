"""The file layer under crashes and errors, and the store under kills; without JAX, so it may fork.

    python filework.py crashes FOLDER            a crash before every call that changes the disk
    python filework.py errors FOLDER             every such call failing, once and for ever
    python filework.py writers FOLDER ROUNDS SEED    2 to 10 writers on one store, killed at random
    python filework.py lock FOLDER ROUNDS SEED   a second process on a locked workdir

Each prints one line of JSON: `{"n": ..., "failures": [...], ...}`.
"""

import contextlib
import errno
import json
import os
import pathlib
import random
import signal
import sqlite3
import sys
import time
import warnings

import numpy as np

import deepnarrow.files
from deepnarrow.errors import InputError
from deepnarrow.files import WorkdirLock, new_path, write_json
from deepnarrow.launch.orders import leave, left
from deepnarrow.manifest import Damaged, quarantine, verify, write_manifest
from deepnarrow.records import MetricRow, Record
from deepnarrow.running import say_ended, say_running
from deepnarrow.stepslog import StepsLog, read_lines
from deepnarrow.store import Store

KEY = "ab" * 16
ORDER = {"seed": 0, "batch_size": 2, "num_examples": 8}
ERRORS = ("EIO", "ENOSPC")
MODES = tuple(f"{name} {how}" for name in ERRORS for how in ("once", "ever"))


def record(key, value=0.5):
    """A small record that has finished."""
    return Record(key=key, study="s", modality="toy", architecture="toy_mlp", name="tiny",
                  shape={"d_model": 16}, seed=0, status="done", config={}, costs={},
                  flop_convention="matmul", environment={},
                  metrics=(MetricRow("upstream", "", "loss", "min", value),))


# --- every kind of write that a study makes, in the order in which it makes them -----------------
def ids(step):
    """The ids of a step's batch."""
    return np.array([step % 8, (step + 3) % 8])


def work(folder):
    """Writes all kinds of files; run again after any crash it ends in the same state."""
    write_json(folder / "study.json", {"version": 1})
    write_json(folder / "study.json", {"version": 2})
    say_running(folder, {"key": KEY})
    log = StepsLog(folder / "steps.jsonl", ORDER)
    log.open({"devices": 1})
    log.resume(0, None, ids)
    for step in range(1, 5):
        log.update(step, ids(step))
        log.write(step)
    step_folder = folder / "checkpoints" / "4"
    if not step_folder.exists():
        with new_path(step_folder) as made:
            made.mkdir()
            (made / "array").write_bytes(b"x" * 100)
    with contextlib.suppress(Damaged):
        verify(step_folder)
        return _leave(folder)
    write_manifest(step_folder, {"step": 4})
    return _leave(folder)


def _leave(folder):
    leave(folder, record(KEY), 1)
    if not (folder / "quarantine").exists() and not (folder / "old").exists():
        (folder / "old").mkdir()
    if (folder / "old").exists():
        quarantine(folder / "old", folder / "quarantine")
    say_ended(folder)


def state(folder):
    """What a study would find: everything whole, or None where it is not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = read_lines(folder / "steps.jsonl")
    config = folder / "study.json"
    checkpoint = folder / "checkpoints" / "4"
    manifest = None
    if (checkpoint / "manifest.json").exists():
        manifest = verify(checkpoint)["step"]
    found = list(left(folder))
    return {
        "config": json.loads(config.read_text())["version"] if config.exists() else None,
        "chains": dict(lines.chains),
        "checkpoint": (checkpoint / "array").read_bytes() if checkpoint.exists() else None,
        "manifest": manifest,
        "left": [(r, attempt) for _, r, attempt in found],
        "quarantine": (folder / "quarantine" / "old").exists(),
    }


def check_prefix(found, whole):
    """Returns what is wrong with a state in the middle: neither old nor new."""
    wrong = []
    if found["config"] not in (None, 1, 2):
        wrong.append("config")
    if not found["chains"].items() <= whole["chains"].items():
        wrong.append("chains")
    for name in ("checkpoint", "manifest", "left"):
        if found[name] not in (None, [], whole[name]):
            wrong.append(name)
    if found["left"] and found["manifest"] is None:
        wrong.append("order: a record before its manifest")
    return wrong


# --- faults --------------------------------------------------------------------------------------
def faulty(call, mode, fired):
    """The function that stands before every call that changes the disk."""
    calls = iter(range(1, 10**9))
    name, _, how = mode.partition(" ")

    def before(what):
        number = next(calls)
        fired["calls"] = number
        if number == call or (how == "ever" and number > call):
            fired["what"] = what
            if mode == "crash":
                os._exit(137)
            if mode != "count":
                raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    return before


def _number_of_calls(folder):
    fired = {}
    deepnarrow.files.before_io = faulty(0, "count", fired)
    work(folder)
    deepnarrow.files.before_io = deepnarrow.files._nothing
    return fired["calls"], state(folder)


def _quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def crashes(folder):
    """A crash before every call; then the same work again, with no more crash."""
    total, whole = _number_of_calls(_new(folder, "whole"))
    failures = []
    for call in range(1, total + 1):
        place = _new(folder, f"crash{call}")
        if not (pid := os.fork()):
            deepnarrow.files.before_io = faulty(call, "crash", {})
            _quietly(work, place)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            wrong = check_prefix(state(place), whole)
            _quietly(work, place)
            wrong += [] if state(place) == whole else ["not the same after it was run again"]
        except Exception as error:
            wrong = [repr(error)]
        if code != 137 or wrong:
            failures.append([call, code, wrong])
    return {"n": total, "failures": failures}


def errors(folder):
    """Every call failing, once and for ever: never silently, and what was there stays."""
    total, whole = _number_of_calls(_new(folder, "whole"))
    failures, n = [], 0
    for mode in MODES:
        for call in range(1, total + 1):
            n += 1
            place, fired = _new(folder, f"{mode} {call}".replace(" ", "-")), {}
            deepnarrow.files.before_io = faulty(call, mode, fired)
            wrong = []
            try:
                _quietly(work, place)
                wrong.append("no error was raised")
            except (OSError, InputError) as error:
                if "No space left" not in str(error) and "Input/output" not in str(error):
                    wrong.append(f"the error does not say why: {error}")
            deepnarrow.files.before_io = deepnarrow.files._nothing
            try:
                wrong += check_prefix(state(place), whole)
                _quietly(work, place)
                wrong += [] if state(place) == whole else ["not the same after it was run again"]
            except Exception as error:
                wrong.append(repr(error))
            if wrong or "what" not in fired:
                failures.append([mode, call, fired.get("what"), wrong])
    return {"n": n, "failures": failures}


def _new(folder, name):
    (folder / name).mkdir(parents=True)
    return folder / name


# --- the store -----------------------------------------------------------------------------------
def _write_for_ever(path, log, name):
    with Store(path) as store, open(log, "a", buffering=1) as acknowledged:
        for number in range(10**6):
            key = f"{name:08x}{number:024x}"
            assert store.add_claimed(record(key), store.claim(key))
            acknowledged.write(f"{key}\n")


def writers(folder, rounds, seed):
    """Writers that are killed in the middle of their transactions; none waits for another's end."""
    rng, path, log = random.Random(seed), folder / "records.sqlite", folder / "acknowledged"
    folder.mkdir(parents=True, exist_ok=True)
    failures, kills, name = [], 0, 0
    Store(path).close()
    for number in range(rounds):
        children = []
        for _ in range(rng.randint(2, 10)):
            name += 1
            if not (pid := os.fork()):
                try:
                    _write_for_ever(path, log, name)
                finally:
                    os._exit(1)
            children.append(pid)
        time.sleep(rng.uniform(0.05, 0.5))
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            kills += 1
            if code != -signal.SIGKILL:
                failures.append([number, "a writer ended with", code])
    # A line that a kill cut short acknowledges nothing.
    lines = log.read_text().split("\n")
    acknowledged = [line for line in lines if len(line) == 32]
    with Store(path, read_only=True) as store:
        stored = [r.key for r in store.records()]
    lost = set(acknowledged) - set(stored)
    doubled = len(stored) - len(set(stored))
    with contextlib.closing(sqlite3.connect(path)) as db:
        intact = db.execute("PRAGMA integrity_check").fetchone()[0]
    if lost or doubled or intact != "ok":
        failures.append([sorted(lost)[:3], doubled, intact])
    return {"n": kills, "failures": failures, "acknowledged": len(acknowledged),
            "lost": len(lost), "doubled": doubled}


def lock(folder, rounds, seed):
    """A holder and a second process that comes at a random moment; then the holder is killed."""
    rng, failures = random.Random(seed), []
    for number in range(rounds):
        read, write = os.pipe()
        if not (pid := os.fork()):
            with WorkdirLock(folder):
                os.write(write, b"x")
                time.sleep(60)
            os._exit(0)
        os.read(read, 1)
        time.sleep(rng.uniform(0, 0.05))
        start = time.monotonic()
        try:
            with WorkdirLock(folder):
                failures.append([number, "two held it"])
        except InputError as error:
            if f"pid {pid} on " not in str(error) or time.monotonic() - start > 5:
                failures.append([number, str(error)])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with WorkdirLock(folder):  # freed by the kernel
            pass
        os.close(read)
        os.close(write)
    return {"n": rounds, "failures": failures}


def main(what, folder, *numbers):
    """Runs one of the cases above."""
    print(json.dumps(globals()[what](pathlib.Path(folder), *map(int, numbers))))


if __name__ == "__main__":
    main(*sys.argv[1:])
