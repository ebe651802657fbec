"""The watchdog: ends what stands still, with stacks; never what makes progress or compiles."""

import os
import signal
import subprocess
import sys
import time
import types

import pytest

from deepnarrow.watchdog import EXIT_HUNG, Watchdog

HANG = 0.3


def watch(tmp_path, work, hang=HANG, compile_within=0.0):
    left = []
    with Watchdog(hang, compile_within, tmp_path / "stacks.txt", leave=left.append) as dog:
        work(dog)
    return left


def test_progress_is_let_alone(tmp_path):
    def work(dog):
        for _ in range(30):
            time.sleep(HANG / 6)
            dog.beat()

    assert watch(tmp_path, work) == []
    assert not (tmp_path / "stacks.txt").exists()


def test_standing_still_ends_it_with_the_stacks_of_all_threads(tmp_path, capfd):
    start = time.monotonic()

    def stand_still_here(dog):
        while not (tmp_path / "stacks.txt").exists() and time.monotonic() - start < 60:
            time.sleep(0.01)
        time.sleep(HANG)  # the file is written before the dump is complete

    assert watch(tmp_path, stand_still_here) == [EXIT_HUNG]
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "no step or batch for" in stacks
    assert "stand_still_here" in stacks
    assert "_watch" in stacks  # the other thread, too
    assert "stacks in" in capfd.readouterr().err


def test_asking_whether_to_stop_is_progress(tmp_path):
    def work(dog):
        ask = dog.polled(lambda: False)
        for _ in range(20):
            time.sleep(HANG / 4)
            assert ask() is False

    assert watch(tmp_path, work) == []


def compiling(seconds):
    """A call in a frame of JAX's compiler."""
    code = compile("def compile_it():\n    time.sleep(seconds)\n",
                   "/anywhere/jax/_src/compiler.py", "exec")
    scope = {"time": time, "seconds": seconds}
    exec(code, scope)
    assert isinstance(scope["compile_it"], types.FunctionType)
    return scope["compile_it"]


def test_compiling_has_its_own_bound(tmp_path):
    assert watch(tmp_path, lambda dog: compiling(4 * HANG)()) == []
    assert watch(tmp_path, lambda dog: compiling(8 * HANG)(), compile_within=3 * HANG) == [
        EXIT_HUNG]


def test_a_real_compilation_is_seen_as_one(tmp_path):
    jax = pytest.importorskip("jax")
    seen = []

    def work(dog):
        def body(x):
            seen.append(dog._compiles())
            return x + 1

        jax.jit(body)(1.0)

    assert watch(tmp_path, work, hang=60) == []
    assert seen == [True]  # tracing counts: a program of many layers takes minutes


def test_zero_is_never(tmp_path):
    assert watch(tmp_path, lambda dog: time.sleep(3 * HANG), hang=0) == []


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_stopped_process_is_no_false_alarm_when_it_goes_on(tmp_path):
    code = f"""
import pathlib, time
from deepnarrow.watchdog import Watchdog
with Watchdog(2.0, 0, pathlib.Path({str(tmp_path / "stacks.txt")!r})) as dog:
    print("ready", flush=True)
    for _ in range(12):
        time.sleep(0.1)
        dog.beat()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"ready\n"
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(child.pid, signal.SIGCONT)
        child.stdout.read()
    assert child.returncode == 0
