"""Real signals to real processes: a study that is killed or stopped loses and repeats nothing.

The numbers here are small; `scoreboard.py` runs the same cases with the numbers of
docs/reliability.md.
"""

import json
import signal
import subprocess
import sys
import time

import harness
import pytest
from jobs import PHASES

KILLS = 30


def test_killed_at_random_moments_it_ends_with_the_same_bits(zygote, unbroken, tmp_path):
    expected, seconds = unbroken
    done = harness.kill_until_done(zygote, tmp_path, KILLS, seconds, seed=8, transfer=False)
    assert sum(kills for _, kills, _ in done) == KILLS
    assert [found for _, _, found in done] == [expected] * len(done)


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_saves_and_exits_75(zygote, tmp_path, phase):
    number = signal.SIGINT if phase in ("train", "few_shot") else signal.SIGTERM
    code, _ = harness.signal_in_phase(zygote, tmp_path, phase, number)
    assert code == 75, (tmp_path / "log").read_text()[-2000:]
    # No step is lost: what had been trained when the signal came stands in the checkpoint.
    reached = {"compile": 0, "train": 2, "evaluation": 20, "save": 4, "few_shot": 20,
               "fine_tune": 20}[phase]
    assert harness.newest_step(tmp_path) >= reached


def test_a_second_sigint_leaves_at_once(tmp_path):
    code = ("import signal, time\nfrom deepnarrow.signals import StopRequest\n"
            "with StopRequest():\n    print('ready', flush=True)\n    time.sleep(60)\n"
            "    time.sleep(60)\n")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, env=harness.environment())
    assert child.stdout is not None
    with child:
        child.stdout.readline()
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            time.sleep(0.2)  # two that wait are one
        assert child.wait(30) == 75


def test_every_crash_of_the_file_layer_is_survived(tmp_path):
    found = filework("crashes", tmp_path / "crashes")
    assert found["failures"] == []
    assert found["n"] >= 60


def test_every_error_of_the_file_layer_is_told_and_survived(tmp_path):
    found = filework("errors", tmp_path / "errors")
    assert found["failures"] == []
    assert found["n"] >= 240


def test_killed_writers_lose_nothing_and_double_nothing(tmp_path):
    found = filework("writers", tmp_path / "store", "3", "0")
    assert found["failures"] == []
    assert found["acknowledged"] > 0


def test_a_second_process_is_refused_and_a_dead_holder_is_not_waited_for(tmp_path):
    assert filework("lock", tmp_path / "lock", "50", "0") == {"n": 50, "failures": []}


def filework(*arguments):
    done = subprocess.run(
        [sys.executable, str(harness.HERE / "filework.py"), *map(str, arguments)],
        capture_output=True, text=True, env=harness.environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
