"""The launcher `ray` on a real two-node cluster here: a node lost, the command killed twice."""

import os
import signal
import subprocess
import sys
import time

import harness
import jobs
import pytest

from deepnarrow.store import Store
from deepnarrow.study import run_study

SEEDS = (0, 1, 2, 3)
COMMAND = """
import sys, jobs, deepnarrow.report
from deepnarrow.study import run_study
deepnarrow.report.write_report = lambda *_, **__: []
summary = run_study(jobs.toy_config(seeds={seeds}, transfer=False), sys.argv[1],
                    jobs.toy_registry(), "ray")
print(dict(summary.counts))
"""
UNITS = "jobs.one_unit_a_seed()\n"  # seeds of a cell are one unit; here each is to be its own


def facts(workdir):
    with Store(workdir / "records.sqlite", read_only=True) as store:
        records = store.records()
    assert len({r.key for r in records}) == len(records)
    return {r.key: (r.status, r.metrics, r.curve, r.outcomes) for r in records}


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_node_removed_and_the_command_killed_twice(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    for name, value in harness.install_toy(tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])
    work = tmp_path / "work"
    code = COMMAND.format(seeds=SEEDS).replace("summary =", UNITS + "summary =")
    args = {"num_cpus": 1, "memory": 8 * 10**9, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=args)
    try:
        second = cluster.add_node(**args)
        cluster.wait_for_nodes()
        env = {**os.environ, "RAY_ADDRESS": cluster.address}

        def command():
            with open(tmp_path / "command.log", "ab") as log:
                return subprocess.Popen([sys.executable, "-c", code, str(work)], env=env,
                                        stdout=log, stderr=log)

        for _ in range(2):
            running = command()
            wait_for(lambda: list(work.glob("running/*.json")))
            running.send_signal(signal.SIGKILL)
            running.wait()
        running = command()
        wait_for(lambda: list(work.glob("running/*.json")))
        cluster.remove_node(second)
        assert running.wait(900) == 0, (tmp_path / "command.log").read_text()[-3000:]
    finally:
        cluster.shutdown()
    jobs.one_unit_a_seed(monkeypatch.setattr)
    run_study(jobs.toy_config(seeds=SEEDS, transfer=False), tmp_path / "inline",
              jobs.toy_registry())
    assert facts(work) == facts(tmp_path / "inline")
