"""Launchers: orders, attempts, the two budgets, fencing, memory; then real processes."""

import dataclasses
import json
import os
import pathlib
import signal
import time

import harness
import jobs
import pytest

from deepnarrow.errors import InputError
from deepnarrow.hosts import ALONE, AgreedStop, Hosts
from deepnarrow.launch import local, pool, slurm
from deepnarrow.launch.orders import leave, left, read_order, write_order
from deepnarrow.launch.pool import Engine
from deepnarrow.launch.session import Session
from deepnarrow.progress import StudyProgress
from deepnarrow.protocol import Launch, Tune
from deepnarrow.running import say_running, state_file
from deepnarrow.store import Store
from deepnarrow.study import run_study, study_status
from deepnarrow.trials import Unit, blank_record, count_cell, open_data, plan_trials
from deepnarrow.worker import main as worker_main


@pytest.fixture
def session(tmp_path):
    """A study of the toy with three seeds, planned and not run."""
    config = dataclasses.replace(jobs.toy_config(seeds=(0, 1, 2)),
                                 launch=Launch(max_failures=1, max_preemptions=3))
    registry = jobs.toy_registry()
    data = {"toy": open_data(config.modalities["toy"], registry)}
    trials, _ = plan_trials(config, registry, data)
    cells = {t.key: count_cell(t, registry, data["toy"]) for t in trials}
    with Store(tmp_path / "records.sqlite") as store, StudyProgress(3) as progress:
        made = Session(config, registry, data, cells, tmp_path, store, progress,
                       AgreedStop(lambda: False, ALONE), ALONE)
        made.trials = trials  # pyright: ignore[reportAttributeAccessIssue]
        yield made


def units(session):
    return [Unit((trial,)) for trial in session.trials]


def done(session, trial, **environment):
    record = blank_record(session.config.name, trial, session.cells[trial.key])
    return dataclasses.replace(record, status="done", environment=environment)


class Script:
    """An engine whose processes do at once what a script says for each attempt."""

    def __init__(self, session, *script):
        self.session, self.script, self.started = session, list(script), []
        self.trials = {trial.key: trial for trial in session.trials}

    def engine(self, **more):
        return Engine(self.start, self.poll, stop=lambda handle: None, kill=lambda handle: None,
                      **more)

    def start(self, orders, memories):
        handles = []
        for order in orders:
            what = self.script.pop(0) if self.script else "ended"
            self.started.append((tuple(order.attempts.items()), what))
            if what == "ended":
                for key, attempt in order.attempts.items():
                    leave(order.workdir, done(self.session, self.trials[key]), attempt)
            handles.append(what)
        return handles

    def poll(self, handle):
        return handle, f"did: {handle}"


def statuses(session):
    return {(r.seed, r.status) for r in session.store.records()}


def test_each_unit_is_ordered_once_and_its_record_collected(session):
    script = Script(session)
    pool.run(units(session), session, script.engine())
    assert statuses(session) == {(0, "done"), (1, "done"), (2, "done")}
    assert [attempts[0][1] for attempts, _ in script.started] == [1, 1, 1]
    assert list(left(session.workdir)) == []
    assert session.ended == {trial.key for trial in session.trials}


def test_preempted_and_failed_units_are_begun_again_on_budgets_of_their_own(session):
    script = Script(session, "preempted", "preempted", "preempted", "failed", "ended")
    pool.run(units(session)[:1], session, script.engine())
    assert statuses(session) == {(0, "done")}
    assert [attempts[0][1] for attempts, _ in script.started] == [1, 2, 3, 4, 5]
    assert session.store.attempts() == {session.trials[0].key: 5}


@pytest.mark.parametrize(("script", "attempts"), [
    (["failed", "failed"], 2), (["preempted"] * 4, 4),
    (["preempted", "failed", "preempted", "failed"], 4), (["refused"], 1)])
def test_a_budget_that_is_used_up_is_a_failed_record_and_the_study_goes_on(
        session, script, attempts):
    first, *rest = units(session)
    pool.run([first], session, Script(session, *script).engine())
    pool.run(rest, session, Script(session).engine())
    assert statuses(session) == {(0, "failed"), (1, "done"), (2, "done")}
    (failed,) = session.store.records(status="failed")
    assert failed.environment["attempt"] == attempts
    assert f"its process did: {script[-1]}" in failed.environment["error"]


def test_the_trials_after_the_one_that_crashed_a_unit_are_run(session):
    script = Script(session, "failed", "failed", "ended")
    pool.run([Unit(tuple(session.trials))], session, script.engine())
    assert statuses(session) == {(0, "failed"), (1, "done"), (2, "done")}


def test_what_a_killed_command_left_is_collected_and_not_run_again(session):
    trial = session.trials[1]
    leave(session.workdir, done(session, trial), session.claim(trial.key))
    script = Script(session)
    pool.run(units(session), session, script.engine())
    assert len(script.started) == 2
    assert statuses(session) == {(0, "done"), (1, "done"), (2, "done")}
    assert len(session.store.records()) == 3


def test_collecting_twice_changes_nothing(session):
    trial = session.trials[0]
    attempt = session.claim(trial.key)
    for _ in range(2):  # killed between the store's commit and the removal of the file
        leave(session.workdir, done(session, trial), attempt)
        pool.collect(session)
    assert len(session.store.records()) == 1


def test_a_late_attempt_is_fenced_off(session, capsys):
    trial = session.trials[0]
    old, new = session.claim(trial.key), session.claim(trial.key)
    leave(session.workdir, dataclasses.replace(done(session, trial), status="diverged"), old)
    pool.collect(session)
    assert statuses(session) == set()
    assert f"attempt {old} came after a newer one had begun" in capsys.readouterr().err
    leave(session.workdir, done(session, trial), new)
    pool.collect(session)
    assert statuses(session) == {(0, "done")}


def test_orders_that_outlive_the_command_are_taken_up(session):
    trial = session.trials[0]
    order = write_order(session.workdir, session.config, {trial.key: session.claim(trial.key)}, {})
    script = Script(session)
    polled = []

    def poll(handle):
        if handle != "old":
            return script.poll(handle)
        polled.append(handle)
        if len(polled) < 3:
            return None
        leave(session.workdir, done(session, trial), order.attempts[trial.key])
        return "ended", "ended"

    engine = dataclasses.replace(script.engine(), poll=poll, resume=lambda: [(order, "old")])
    pool.run(units(session), session, engine)
    assert statuses(session) == {(0, "done"), (1, "done"), (2, "done")}
    assert len(script.started) == 2
    assert session.store.attempts()[trial.key] == 1


def test_a_stop_is_passed_on_and_what_is_saved_is_kept(session):
    script, stopped, polls = Script(session), [], []
    session.stop = lambda: len(polls) > 2

    def poll(handle):
        polls.append(handle)
        if not stopped:
            return None
        return "preempted", "stopped"

    engine = Engine(script.start, poll, stop=stopped.append, kill=lambda handle: None)
    pool.run(units(session), session, engine)
    assert len(stopped) == 3
    assert statuses(session) == {(0, "done"), (1, "done"), (2, "done")}  # they had left them


def test_no_more_run_together_than_memory_and_workers_allow():
    fits = local._admission(3, 10.0)
    assert fits(99, [])  # alone, whatever it needs
    assert fits(4, [6])
    assert not fits(5, [6])
    assert fits(1, [1, 1])
    assert not fits(1, [1, 1, 1])


def test_memory_is_estimated_from_the_params_or_set(session):
    unit = units(session)[0]
    params = session.cells[unit.trials[0].key].costs.params_total
    assert session.memory_bytes(unit) == 1_500_000_000 + 20 * params
    session.config = dataclasses.replace(session.config, launch=Launch(memory_gb=3))
    assert session.memory_bytes(unit) == 3_000_000_000


def test_several_processes_together_only_run_inline(session):
    session.hosts = Hosts(0, 2)
    with pytest.raises(InputError, match=r"several processes train together here \(expected inl"):
        pool.run(units(session), session, Script(session).engine())


def test_a_worker_without_signs_of_life_is_ended(session, tmp_path):
    import subprocess
    import sys

    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    engine = local.local_engine(1, 1e9, tmp_path, silent_s=0.5)
    process = subprocess.Popen(sleeper, stdin=subprocess.PIPE)
    assert engine.poll(process) is None  # it has not begun yet
    say_running(tmp_path, {"key": "k"})
    os.rename(state_file(tmp_path), state_file(tmp_path, pid=process.pid))
    assert engine.poll(process) is None
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.8)
    outcome, what = engine.poll(process)
    assert (outcome, what.startswith("showed no sign of life")) == ("failed", True)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors cannot be given here")
def test_workers_have_processors_of_their_own_which_the_next_ones_get(tmp_path, monkeypatch):
    import subprocess
    import sys

    def sleeper(order):
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    monkeypatch.setattr(local, "start_worker", sleeper)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7, 8})
    given = {}
    monkeypatch.setattr(os, "sched_setaffinity", given.__setitem__)
    engine = local.local_engine(2, 1e9, tmp_path)
    first, second = engine.start([None, None], [0, 0])
    assert sorted(map(sorted, given.values())) == [[3, 7], [5, 8]]
    engine.kill(first)
    assert engine.poll(first)[0] == "failed"
    (third,) = engine.start([None], [0])
    assert given[third.pid] == given[first.pid]
    for process in (second, third):
        engine.kill(process)
    assert local.processor_shares(5) == []  # fewer processors than workers: as the system does


@pytest.mark.parametrize(("text", "message"), [
    (None, "cannot be read"), ("{", "is no JSON"), ("[" * 100_000, "is no JSON"),
    ("{}", "is no order"), ('{"workdir": "w", "attempts": {"k": true}}', "is no order"),
    ('{"workdir": "w", "attempts": {"k": 1}, "tuned": {}, "config": {"name": 3}}', "name")])
def test_orders_that_are_none_are_refused(tmp_path, text, message, capsys):
    path = tmp_path / "order.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_order(path)
    assert worker_main([str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_order_of_trials_that_the_config_does_not_give_is_refused(session, capsys, monkeypatch):
    monkeypatch.setattr("deepnarrow.worker.registry", jobs.toy_registry)
    order = write_order(session.workdir, session.config, {"0" * 32: 1}, {})
    assert worker_main([str(order.path)]) == 2
    assert "the config gives other trials here" in capsys.readouterr().err


def test_a_file_in_the_outbox_that_is_not_what_its_name_says_is_named(session):
    trial = session.trials[0]
    leave(session.workdir, done(session, trial), 1)
    (path,) = (session.workdir / "outbox").iterdir()
    path.rename(path.with_name(f"{'0' * 32}-1.jsonl.gz"))
    with pytest.raises(InputError, match="is not the record that its name says"):
        pool.collect(session)


# --- real processes ------------------------------------------------------------------------------
@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The toy as a distribution that workers find."""
    for name, value in harness.install_toy(tmp_path / "site").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])


def facts(workdir):
    with Store(workdir / "records.sqlite", read_only=True) as store:
        return {r.key: (r.status, r.metrics, r.curve, r.outcomes) for r in store.records()}


@pytest.mark.usefixtures("installed")
def test_local_gives_what_inline_gives(tmp_path):
    config, registry = jobs.toy_config(transfer=False), jobs.toy_registry()
    run_study(config, tmp_path / "inline", registry)
    summary = run_study(config, tmp_path / "local", registry, "local")
    assert dict(summary.counts) == {"done": 1}
    assert facts(tmp_path / "local") == facts(tmp_path / "inline")
    status = study_status(tmp_path / "local")
    assert (status["running"], status["data_order"]) == ([], {"checked": 1, "damaged": []})


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_local_tunes_as_inline_does(tmp_path):
    """Three processes of tries, one of them beyond the grid, then the trial's."""
    config, registry = jobs.toy_config(transfer=False), jobs.toy_registry()
    part = config.modalities["toy"]
    tune = Tune((1e-5, 1e-4), seeds=(1000,), fraction=0.5, extend=1)
    part = dataclasses.replace(part, protocol=dataclasses.replace(part.protocol, tune=tune))
    config = dataclasses.replace(config, modalities={"toy": part})
    run_study(config, tmp_path / "inline", registry)
    summary = run_study(config, tmp_path / "local", registry, "local")
    assert dict(summary.counts) == {"done": 1}
    assert facts(tmp_path / "local") == facts(tmp_path / "inline")
    assert study_status(tmp_path / "local")["tries"]["done"] == 3


@pytest.fixture
def one_trial(session):
    """The session of a study of one trial without transfers, for real processes."""
    session.config = jobs.toy_config(transfer=False)
    session.data = {"toy": open_data(session.config.modalities["toy"], session.registry)}
    session.trials, _ = plan_trials(session.config, session.registry, session.data)
    (trial,) = session.trials
    session.cells = {trial.key: count_cell(trial, session.registry, session.data["toy"])}
    return session


@pytest.fixture
def submitit_engine(one_trial):
    """The engine of submitit's local executor; its processes are waited for in the end."""
    pytest.importorskip("submitit")
    engine, handles = slurm.slurm_engine(one_trial.workdir, Launch(), cluster="local"), []

    def start(orders, memories):
        handles.extend(engine.start(orders, memories))
        return handles[-len(orders):]

    yield dataclasses.replace(engine, start=start), handles
    for _, job in handles:
        job._process.wait(60)


@pytest.mark.usefixtures("installed")
def test_submitit_runs_a_unit_and_the_next_command_finds_its_job(one_trial, submitit_engine):
    engine, _ = submitit_engine
    pool.run(units(one_trial), one_trial, engine)
    assert statuses(one_trial) == {(0, "done")}
    launch = one_trial.workdir / "launch"
    (path,) = launch.glob("*.exit")
    assert path.read_text() == "0"
    again = slurm.slurm_engine(one_trial.workdir, Launch(), cluster="local")
    [(order, handle)] = again.resume()
    assert {str(order.path)} == json.loads((launch / "slurm.json").read_text()).keys()
    assert again.poll(handle) == ("ended", "ended")


def test_what_slurm_does_not_take_is_told_in_its_words(one_trial, monkeypatch):
    submitit = pytest.importorskip("submitit")

    def refuse(self, *arguments):
        raise submitit.core.utils.FailedJobError(
            "sbatch: error: Memory specification can not be satisfied\nsbatch: error: and more")

    monkeypatch.setattr(submitit.AutoExecutor, "_internal_process_submissions", refuse)
    engine = slurm.slurm_engine(one_trial.workdir, Launch(), cluster="local")
    with pytest.raises(InputError, match=r"got Memory specification can not be satisfied\)"):
        pool.run(units(one_trial), one_trial, engine)
    assert statuses(one_trial) == set()


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_preempted_job_saves_and_is_queued_again_by_submitit(one_trial, submitit_engine):
    engine, handles = submitit_engine
    polls = []

    def poll(handle):
        if not polls and list((one_trial.workdir / "running").glob("*.json")):
            polls.append(handle)
            controller = handles[0][1]._process.pid
            task = pathlib.Path(f"/proc/{controller}/task/{controller}/children").read_text()
            os.kill(int(task.split()[0]), signal.SIGUSR2)  # as SLURM does before it takes a node
        return engine.poll(handle)

    pool.run(units(one_trial), one_trial, dataclasses.replace(engine, poll=poll))
    assert polls
    assert statuses(one_trial) == {(0, "done")}
    assert one_trial.store.attempts() == {one_trial.trials[0].key: 1}  # the same attempt went on
    (log,) = (one_trial.workdir / "launch").glob("*.log")
    assert "SIGTERM: saving, then stopping" in log.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_local_workers_that_are_killed_and_a_command_that_is_killed(tmp_path):
    """Two seeds; the first worker is killed, then the command itself twice; the grid ends once."""
    import subprocess
    import sys

    config = jobs.toy_config(seeds=(0, 1), transfer=False)
    code = ("import sys, jobs, deepnarrow.report\nfrom deepnarrow.study import run_study\n"
            "deepnarrow.report.write_report = lambda *_, **__: []\n"
            "run_study(jobs.toy_config(seeds=(0, 1), transfer=False), sys.argv[1], "
            "jobs.toy_registry(), 'local')\n")
    for _ in range(2):
        command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "work")])
        deadline = time.monotonic() + 300
        while not list((tmp_path / "work").glob("running/*.json")) and (
                time.monotonic() < deadline):
            time.sleep(0.05)
        command.kill()
        command.wait()
    run_study(config, tmp_path / "work", jobs.toy_registry(), "local")
    run_study(config, tmp_path / "inline", jobs.toy_registry())
    assert facts(tmp_path / "work") == facts(tmp_path / "inline")
    with Store(tmp_path / "work" / "records.sqlite", read_only=True) as store:
        assert len(store.records()) == 2


def test_a_launcher_that_is_unknown_lists_what_there_is(tmp_path):
    with pytest.raises(InputError, match=r"unknown launcher \(got kubernetes; expected one of "
                       "inline, local, ray, slurm"):
        run_study(jobs.toy_config(), tmp_path / "work", jobs.toy_registry(), "kubernetes")
    assert not (tmp_path / "work").exists()
