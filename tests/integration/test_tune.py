"""Learning rates chosen by tries: end to end on the toy, stopped and gone on with, elsewhere."""

import csv
import dataclasses
import math

import pytest
import toy

from deepnarrow import trial as module
from deepnarrow.config import ModalityStudy, StudyConfig
from deepnarrow.errors import InputError, Preempted
from deepnarrow.export import flat_rows
from deepnarrow.launch.orders import read_order, write_order
from deepnarrow.merge import merge_into_archive, merge_into_workdir
from deepnarrow.protocol import Budget, FewShot, OptimizerConfig, Protocol, RunOptions, Tune
from deepnarrow.records import reported
from deepnarrow.report.page import write_files
from deepnarrow.signals import StopRequest
from deepnarrow.store import Store
from deepnarrow.study import dry_run, planned_keys, run_study, study_status
from deepnarrow.summary import shape_table
from deepnarrow.table import from_records
from deepnarrow.trials import make_try, open_data, plan_trials
from deepnarrow.tuning import Choice, best_rate, choice_in
from deepnarrow.worker import ordered_trials

TUNE = Tune((1e-4, 1e-2, 3e-2), seeds=(1000,), fraction=0.5)


ADAMW = OptimizerConfig("adamw", 3e-3, "cosine", warmup_steps=5)


@pytest.fixture(scope="module")
def registry():
    return toy.toy_registry()


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Drawing takes seconds."""
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])


def make_config(tune: Tune | None = TUNE, shapes=("tiny",), seeds=(0,), optimizer=ADAMW,
                few_shot=None):
    protocol = Protocol(batch_size=16, budget=Budget("examples", 16 * 20), optimizer=optimizer,
                        few_shot=few_shot, tune=tune)
    study = ModalityStudy("toy", shapes, protocol, architectures=("toy_mlp",))
    return StudyConfig("tuned", seeds, {"toy": study},
                       RunOptions(log_every=5, checkpoint_every=10))


TWO = make_config(shapes=("tiny", "tiny-ff64"), seeds=(0, 1),
                  few_shot=FewShot(("toy_task",), shots=(1,), seeds=1))


@pytest.fixture(scope="module")
def study(tmp_path_factory, registry):
    """A study of two shapes and two seeds that has ended."""
    workdir = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("deepnarrow.report.write_report", lambda *_, **__: [])
        summary = run_study(TWO, workdir, registry)
    return workdir, summary


def facts(workdir):
    """What a study found, without clocks: key -> metrics, curve, outcomes."""
    with Store(workdir / "records.sqlite", read_only=True) as store:
        return {r.key: (r.status, r.metrics, r.curve, r.outcomes) for r in store.records()}


def chosen(record):
    choice = choice_in(record)
    assert choice is not None
    return choice


def records(workdir):
    with Store(workdir / "records.sqlite", read_only=True) as store:
        found = store.records()
    return reported(found), [record for record in found if record.is_try]


def test_each_shape_takes_the_rate_of_its_best_try(study):
    workdir, summary = study
    assert (summary.trained, dict(summary.counts)) == (4, {"done": 4})
    trials, tries = records(workdir)
    assert (len(trials), len(tries)) == (4, 6)
    for trial in trials:
        mine = [one for one in tries if one.name == trial.name]
        losses = {one.config["protocol"]["optimizer"]["learning_rate"]: next(
            row.value for row in one.metrics if row.metric == "loss") for one in mine}
        assert losses.keys() == set(TUNE.learning_rates)
        choice = chosen(trial)
        assert choice.learning_rate == best_rate(losses)
        assert dict(choice.losses) == losses
        assert choice.tries == 3
        assert choice.train_flops == sum(one.costs["flops_train_total"] for one in mine)
        assert choice.seconds == pytest.approx(sum(one.environment["seconds"] for one in mine))
        assert trial.config["protocol"]["optimizer"]["learning_rate"] is None
        assert trial.config["protocol"]["tune"]["seeds"] == [1000]
        assert {row.stage for row in trial.metrics} == {"upstream", "few_shot", "tuning"}
    for one in tries:  # half the budget, no transfer
        assert max(point.step for point in one.curve) == 10
        assert {row.stage for row in one.metrics} == {"upstream"}
        assert one.seed == 1000


def test_analysis_sees_no_tries(study):
    trials, tries = records(study[0])
    table = from_records([*tries, *trials])
    assert set(table.seed) == {"0", "1"}
    assert len(table) == 4
    assert not [name for name in table.qualities if "tuning" in name or "learning" in name]
    assert [row.statuses for row in shape_table([*tries, *trials])] == [{"done": 2}] * 2
    assert planned_keys(study[0]) == {one.key for one in trials}
    assert {row["key"] for row in flat_rows([*tries, *trials])} == {one.key for one in trials}
    assert study_status(study[0])["tries"]["done"] == 6
    assert study_status(study[0])["done"] == 4


def test_the_report_shows_what_each_rate_gave(study, tmp_path):
    trials, tries = records(study[0])
    made = {path.name: path for path in write_files([*tries, *trials], tmp_path, "tuned")}
    page = made["report.html"].read_text()
    assert "<h3>Learning rates</h3>" in page
    assert "6 tries" in page
    rows = list(csv.DictReader(made["tuning.csv"].read_text().splitlines()))
    assert len(rows) == 6
    choice = chosen(trials[0])
    (mine,) = [row for row in rows if row["shape"] == trials[0].name and row["chosen"] == "yes"]
    assert float(mine["learning_rate"]) == choice.learning_rate
    assert (float(mine["over_best"]), mine["edge"]) == (0.0, choice.edge)
    assert all(float(row["over_best"]) >= 0 for row in rows)


def test_tries_move_with_an_archive(study, tmp_path, registry):
    archive = tmp_path / "records.jsonl.gz"
    merge_into_archive([str(study[0])], archive)
    merge_into_workdir([str(archive)], tmp_path / "there")
    assert facts(tmp_path / "there") == facts(study[0])
    more = dataclasses.replace(TWO, seeds=(0, 1, 2))
    assert run_study(more, tmp_path / "there", registry).trained == 2
    with Store(tmp_path / "there" / "records.sqlite", read_only=True) as store:
        assert list(store.attempts().values()) == [1, 1]  # the new seed's trials alone


def test_a_tuned_trial_is_the_one_that_is_given_the_rate(tmp_path, registry):
    """The choice decides nothing but the learning rate, and it does decide that."""
    run_study(make_config(), tmp_path / "tuned", registry)
    (trial,), _ = records(tmp_path / "tuned")
    choice = chosen(trial)
    given = dataclasses.replace(ADAMW, learning_rate=choice.learning_rate)
    run_study(make_config(None, optimizer=given), tmp_path / "given", registry)
    (other,), tries = records(tmp_path / "given")
    assert not tries
    assert other.key != trial.key
    assert other.curve == trial.curve
    assert other.metrics == tuple(row for row in trial.metrics if row.stage != "tuning")


def test_a_study_stopped_anywhere_ends_as_one_that_was_not(tmp_path, registry, monkeypatch):
    config = make_config(Tune((1e-3, 1e-2), seeds=(1000,), fraction=0.5))
    asked = [0]
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "__call__", lambda self: asked.append(0))
        run_study(config, tmp_path / "whole", registry)
    for stop_at in (len(asked) // 3, len(asked) - 4):  # in the second try, in the trial
        workdir, questions = tmp_path / f"cut{stop_at}", iter(range(stop_at))
        with monkeypatch.context() as patched:
            patched.setattr(
                StopRequest, "__call__", lambda self, left=questions: next(left, None) is None)
            with pytest.raises(Preempted):
                run_study(config, workdir, registry)
        assert study_status(workdir)["tries"]["total"] == 2
        run_study(config, workdir, registry)
        assert facts(workdir) == facts(tmp_path / "whole")
        with Store(workdir / "records.sqlite", read_only=True) as store:
            assert len(store.records()) == 3  # none twice
            # What had ended was not begun again: only what the stop cut was attempted twice.
            assert sorted(store.attempts().values()) == [1, 1, 2]


def test_an_optimum_at_the_edge_is_flagged_or_extends_the_grid(tmp_path, registry):
    low = Tune((1e-6, 1e-5), seeds=(1000, 1001))  # of rates that are far too small the larger wins
    run_study(make_config(low), tmp_path, registry)
    (trial,), tries = records(tmp_path)
    assert (chosen(trial).edge, chosen(trial).learning_rate, len(tries)) == ("high", 1e-5, 4)
    grown = make_config(dataclasses.replace(low, extend=2))
    run_study(grown, tmp_path, registry)
    (_, trial), tries = records(tmp_path)
    assert [rate for rate, _ in chosen(trial).losses] == [1e-6, 1e-5, 1e-4, 1e-3]
    # What the smaller grid had tried was not tried again.
    assert (chosen(trial).edge, chosen(trial).tries, len(tries)) == ("high", 8, 8)
    assert run_study(grown, tmp_path, registry).trained == 0
    assert study_status(tmp_path)["tries"] == {
        "total": 8, "done": 8, "diverged": 0, "failed": 0, "running": 0, "todo": 0}
    assert set(from_records([trial]).columns["tuning_edge"]) == {"high"}


def test_a_rate_that_diverges_is_the_worst_and_where_all_do_the_trials_fail(tmp_path, registry):
    hot = OptimizerConfig("adamw", 1.0, "constant")
    some = make_config(Tune((1e-2, 1e30), (1000,)), optimizer=hot)
    run_study(some, tmp_path, registry)
    (trial,), tries = records(tmp_path)
    assert sorted(one.status for one in tries) == ["diverged", "done"]
    assert chosen(trial).learning_rate == 1e-2
    assert dict(chosen(trial).losses)[1e30] is None
    every = make_config(Tune((1e29, 1e30), (1000,)), optimizer=hot)
    assert run_study(every, tmp_path, registry).exit_code == 1
    (_, trial), tries = records(tmp_path)
    assert sorted(one.status for one in tries) == ["diverged", "diverged", "done"]
    assert trial.status == "failed"
    assert trial.environment["error"] == "tuning: every learning rate diverged"
    assert math.isnan(chosen(trial).learning_rate)


def test_a_try_that_fails_fails_its_trials_and_is_tried_again(tmp_path, registry, monkeypatch):
    config = make_config(Tune((1e-3, 1e-2), (1000,), fraction=0.5))
    calls, real = [], module.train

    def broken(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("planted")
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(module, "train", broken)
        assert run_study(config, tmp_path, registry).exit_code == 1
    (trial,), _ = records(tmp_path)
    assert trial.status == "failed"
    assert "the try of 0.01 failed: RuntimeError: planted" in trial.environment["error"]
    assert len(calls) == 2  # the trial was not begun
    assert dict(run_study(config, tmp_path, registry).counts) == {"done": 1}
    with Store(tmp_path / "records.sqlite", read_only=True) as store:
        assert sorted(store.attempts().values()) == [1, 2, 2]  # the good try once


def test_tries_and_trials_of_a_shape_share_its_compiled_step(tmp_path, registry, monkeypatch):
    steps, real = [], module.build_programs

    def build(*arguments, **options):
        built = real(*arguments, **options)
        steps.append(built.program.step)
        return built

    monkeypatch.setattr(module, "build_programs", build)
    run_study(make_config(seeds=(0, 1)), tmp_path, registry)
    trials, tries = records(tmp_path)
    assert (len(trials), len(tries)) == (2, 3)
    # One executable from the one call that asked for the step's memory, and one that trained.
    assert [step._cache_size() for step in steps] == [1]


def test_a_dry_run_counts_the_tries(registry):
    cells = dry_run(TWO, registry)
    assert [cell["tries"] for cell in cells] == [3, 3]
    for cell in cells:  # three of half a budget against two whole ones
        assert cell["tries_seconds_estimate"] == pytest.approx(0.75 * cell["seconds_estimate"])
    assert dry_run(make_config(None), registry)[0]["tries"] == 0


def test_seeds_that_are_reported_are_refused_for_tries():
    with pytest.raises(InputError, match="tunes with a seed that is reported"):
        make_config(Tune((1e-3, 1e-2), seeds=(7, 1)), seeds=(0, 1))


def test_a_warm_up_that_does_not_fit_a_try_is_refused(registry):
    config = make_config(Tune((1e-3, 1e-2), (1000,), fraction=0.25))  # 5 steps, warm-up of 5
    with pytest.raises(InputError, match=r"a try of tune.optimizer.warmup_steps"):
        dry_run(config, registry)


def test_a_worker_knows_the_trials_of_its_order(registry, tmp_path):
    """Also tries of rates that no grid has, and trials with the choice that was made for them."""
    config = make_config(seeds=(0, 1))
    data = {"toy": open_data(config.modalities["toy"], registry)}
    trial, other = plan_trials(config, registry, data)[0]
    choice = Choice(0.02, ((0.01, None), (0.02, 0.5)), "high", 2, 1e9, 3.5)
    ready = dataclasses.replace(trial, choice=choice)
    beyond = make_try(trial, 0.09, 1000, registry)
    made = [ready, beyond]
    path = write_order(tmp_path, config, {one.key: 1 for one in made},
                       {one.key: one.tuned_facts() for one in made}).path
    found = ordered_trials(read_order(path), [trial, other], registry)
    assert [found[one.key] for one in made] == made
    assert ready.key == trial.key
    assert ready.optimizer == dataclasses.replace(ADAMW, learning_rate=0.02)
    assert beyond.optimizer.learning_rate == 0.09
    assert found[other.key] == other


def test_the_key_has_the_grid_and_not_the_rate(registry):
    def key(config):
        data = {"toy": open_data(config.modalities["toy"], registry)}
        return plan_trials(config, registry, data)[0][0].key

    tuned, other = key(make_config()), dataclasses.replace(ADAMW, learning_rate=0.5)
    assert key(make_config(optimizer=other)) == tuned
    assert key(make_config(None)) != tuned
    for changed in ({"learning_rates": (1e-4, 1e-2)}, {"seeds": (1001,)}, {"fraction": 0.4},
                    {"extend": 1}):
        assert key(make_config(dataclasses.replace(TUNE, **changed))) != tuned
    assert key(make_config(None, optimizer=other)) != key(make_config(None))
