"""Two real processes with 4 devices each, against one process with 8."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from deepnarrow.errors import InputError
from deepnarrow.hosts import ALONE, ASK_EVERY, AgreedStop, Hosts, join
from deepnarrow.store import Store

HERE = pathlib.Path(__file__).parent
SCRIPT = HERE / "hosts_study.py"


def start(devices, *arguments):
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu",
                   "XLA_FLAGS": flags}
    return subprocess.Popen([sys.executable, SCRIPT, *map(str, arguments)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    address, said = f"127.0.0.1:{free_port()}", {}
    pair = [start(4, folder, address, index) for index in (0, 1)]
    for index, process in enumerate(pair):
        said[f"two{index}"] = process.communicate()
        assert process.returncode == 0, said[f"two{index}"][1][-4000:]
    one = start(8, folder)
    said["one"] = one.communicate()
    assert one.returncode == 0, said["one"][1][-4000:]
    return folder, said, {name: json.loads((folder / f"{name}.json").read_text()) for name in said}


def record_of(folder, name):
    with Store(folder / name / "records.sqlite", read_only=True) as store:
        (record,) = store.records()
    assert record.status == "done", record.environment
    return record


@pytest.mark.parametrize("other", ["two", "stopped"])
def test_two_processes_find_what_one_finds(found, other):
    one, two = record_of(found[0], "one"), record_of(found[0], other)
    assert one.key == two.key
    for rows in ("metrics", "curve"):
        a, b = getattr(one, rows), getattr(two, rows)
        assert [repr(row).replace(repr(row.value), "") for row in a] == [
            repr(row).replace(repr(row.value), "") for row in b]
        np.testing.assert_allclose([row.value for row in a], [row.value for row in b], rtol=1e-4,
                                   atol=1e-5)
    assert [o.values for o in one.outcomes] == [o.values for o in two.outcomes]


def test_the_record_says_how_the_work_was_shared(found):
    wanted = {"mesh": "data=2,fsdp=4", "rules": "fsdp", "processes": 1, "micro_batches": 2}
    assert record_of(found[0], "one").environment["sharding"] == wanted
    assert record_of(found[0], "two").environment["sharding"] == {**wanted, "processes": 2}
    assert "micro_batches" not in record_of(found[0], "one").config
    (run_dir,) = (found[0] / "two" / "runs").iterdir()
    left = json.loads((run_dir / "sharding.json").read_text())["left_whole"]
    assert {"path": "encoder/final_norm/scale", "axis": None, "size": 16,
            "why": "a small vector"} in left


def test_one_process_asks_to_stop_and_both_do_at_the_same_step(found):
    results = found[2]
    step, digest = results["two0"]["stopped"]
    # The signal comes at the second agreement; of the questions one is asked before the trial.
    assert step == ASK_EVERY - 1
    # The same bits in both processes, and in the one that went on from there.
    assert results["two1"]["stopped"] == [step, digest] == results["one"]["stopped"]


def test_only_the_first_process_writes_and_prints(found):
    _, said, results = found
    assert results["two0"]["counts"] == {"done": 1}
    assert results["two1"]["counts"] == {}
    assert results["two0"]["devices"] == results["two1"]["devices"] == [4, 8]
    assert "toy tiny seed 0: done" in said["two0"][1]
    assert "toy tiny" not in said["two1"][0] + said["two1"][1]


# --- flags and environment ------------------------------------------------------------------------
def test_nothing_said_is_one_process():
    assert join(None, None, None, {}) == ALONE
    assert ALONE.share({"a": 1}) == {"a": 1}
    assert [ALONE.any(flag) for flag in (True, False)] == [True, False]


@pytest.mark.parametrize(("given", "environ", "message"), [
    (("h:1", None, None), {}, "--num-processes is missing"),
    ((None, "2", None), {"JAX_PROCESS_ID": "0"}, "--coordinator is missing"),
    (("h", "2", "0"), {}, "--coordinator: is no address .got 'h'"),
    (("h:1", "0", "0"), {}, "--num-processes: is not an integer in range"),
    (("h:1", "2", "2"), {}, r"--process-id: is not an integer in range .got '2'; expected 0\.\.1"),
    (("h:1", "2", "-1"), {}, "--process-id: is not an integer in range"),
    (("auto", "2", "0"), {}, "--coordinator: is no address"),
])
def test_bad_flags(given, environ, message):
    with pytest.raises(InputError, match=message):
        join(*given, environ)


def test_a_stop_of_one_process_alone_is_at_once():
    answers = iter([False, True, True])
    stop = AgreedStop(lambda: next(answers), Hosts())
    assert [stop(), stop(), stop()] == [False, True, True]
