"""Learning rates chosen by tries: end to end on the toy, stopped and gone on with, elsewhere."""

import dataclasses
import math
import types

import pytest
import toy

from deepnarrow import hookimpl
from deepnarrow.config import ModalityStudy, StudyConfig
from deepnarrow.errors import InputError, Preempted
from deepnarrow.merge import merge_into_archive, merge_into_workdir
from deepnarrow.plugins import load_plugins
from deepnarrow.protocol import Budget, FewShot, OptimizerConfig, Protocol, RunOptions, Tune
from deepnarrow.records import reported
from deepnarrow.signals import StopRequest
from deepnarrow.store import Store
from deepnarrow.study import dry_run, planned_keys, run_study, study_status
from deepnarrow.table import from_records
from deepnarrow.tuning import best_rate, choice_in

TUNE = Tune((1e-4, 1e-2, 3e-2), seeds=(1000,), fraction=0.5)


ADAMW = OptimizerConfig("adamw", 3e-3, "cosine", warmup_steps=5)


@pytest.fixture
def registry():
    plugin = types.ModuleType("toy_plugin")

    @hookimpl
    def deepnarrow_register_modalities():
        return [toy.toy_modality()]

    @hookimpl
    def deepnarrow_register_architectures():
        return [toy.toy_architecture()]

    vars(plugin).update(
        deepnarrow_register_modalities=deepnarrow_register_modalities,
        deepnarrow_register_architectures=deepnarrow_register_architectures)
    return load_plugins([], extra=[plugin])


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])


def make_config(tune=TUNE, shapes=("tiny", "tiny-ff64"), seeds=(0, 1), optimizer=ADAMW, **fields):
    protocol = Protocol(batch_size=16, budget=Budget("examples", 16 * 20), optimizer=optimizer,
                        few_shot=FewShot(("toy_task",), shots=(1,), seeds=1), tune=tune)
    study = ModalityStudy("toy", shapes, protocol, architectures=("toy_mlp",))
    return StudyConfig("tuned", seeds, {"toy": study},
                       RunOptions(log_every=5, checkpoint_every=5), **fields)


def facts(workdir):
    """What a study found, without clocks: key -> metrics, curve, outcomes."""
    with Store(workdir / "records.sqlite", read_only=True) as store:
        return {r.key: (r.status, r.metrics, r.curve, r.outcomes) for r in store.records()}


def records(workdir):
    with Store(workdir / "records.sqlite", read_only=True) as store:
        found = store.records()
    return reported(found), [record for record in found if record.is_try]


def test_each_shape_takes_the_rate_of_its_best_try(tmp_path, registry):
    summary = run_study(make_config(), tmp_path, registry)
    assert (summary.trained, dict(summary.counts)) == (4, {"done": 4})
    trials, tries = records(tmp_path)
    assert (len(trials), len(tries)) == (4, 6)
    for name in ("tiny", "tiny-ff64"):
        mine = [one for one in tries if one.name == name]
        losses = {one.config["protocol"]["optimizer"]["learning_rate"]: next(
            row.value for row in one.metrics if row.metric == "loss") for one in mine}
        assert losses.keys() == set(TUNE.learning_rates)
        for trial in trials:
            if trial.name == name:
                choice = choice_in(trial)
                assert choice is not None
                assert choice.learning_rate == best_rate(losses)
                assert dict(choice.losses) == losses
                assert choice.tries == 3
                assert choice.train_flops == sum(one.costs["flops_train_total"] for one in mine)
                assert choice.seconds == pytest.approx(
                    sum(one.environment["seconds"] for one in mine))
                assert trial.config["protocol"]["optimizer"]["learning_rate"] is None
                assert trial.config["protocol"]["tune"]["seeds"] == [1000]
    for one in tries:  # half the budget, no transfer, a schedule of its own
        assert max(point.step for point in one.curve) == 10
        assert {row.stage for row in one.metrics} == {"upstream"}
        assert one.seed == 1000


def test_a_tuned_trial_is_the_one_that_is_given_the_rate(tmp_path, registry):
    """The choice decides nothing but the learning rate, and it does decide that."""
    run_study(make_config(shapes=("tiny",), seeds=(0,)), tmp_path / "tuned", registry)
    (trial,), _ = records(tmp_path / "tuned")
    choice = choice_in(trial)
    assert choice is not None
    given = dataclasses.replace(ADAMW, learning_rate=choice.learning_rate)
    run_study(make_config(None, ("tiny",), (0,), given), tmp_path / "given", registry)
    (other,), tries = records(tmp_path / "given")
    assert not tries and other.key != trial.key
    assert other.curve == trial.curve
    assert other.metrics == tuple(row for row in trial.metrics if row.stage != "tuning")


@pytest.mark.parametrize("stop_at", [2, 14, 31, 75])
def test_a_study_stopped_anywhere_ends_as_one_that_was_not(
        tmp_path, registry, monkeypatch, stop_at):
    config = make_config(shapes=("tiny",), seeds=(0, 1))
    run_study(config, tmp_path / "whole", registry)
    asked = iter(range(10**6))
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "__call__", lambda self: next(asked) >= stop_at)
        with pytest.raises(Preempted):
            run_study(config, tmp_path / "cut", registry)
    before = study_status(tmp_path / "cut")
    run_study(config, tmp_path / "cut", registry)
    assert facts(tmp_path / "cut") == facts(tmp_path / "whole")
    with Store(tmp_path / "cut" / "records.sqlite", read_only=True) as store:
        assert len(store.records()) == 5  # none twice
        # What had ended was not begun again: only what the stop cut was attempted twice.
        assert sorted(store.attempts().values()) == [1, 1, 1, 1, 2]
    assert before["tries"]["total"] == 3 and before["total"] == 2


def test_an_optimum_at_the_edge_extends_the_grid_or_is_flagged(tmp_path, registry):
    low = Tune((1e-6, 1e-5), seeds=(1000, 1001))  # of rates that are far too small the larger wins
    one = {"shapes": ("tiny",), "seeds": (0,)}
    run_study(make_config(low, **one), tmp_path / "flagged", registry)
    (trial,), tries = records(tmp_path / "flagged")
    assert (choice_in(trial).edge, choice_in(trial).learning_rate, len(tries)) == ("high", 1e-5, 4)
    grown = make_config(dataclasses.replace(low, extend=2), **one)
    run_study(grown, tmp_path / "grown", registry)
    (trial,), tries = records(tmp_path / "grown")
    assert [rate for rate, _ in choice_in(trial).losses] == [1e-6, 1e-5, 1e-4, 1e-3]
    assert (choice_in(trial).edge, choice_in(trial).tries, len(tries)) == ("high", 8, 8)
    assert study_status(tmp_path / "grown")["tries"] == {
        "total": 8, "done": 8, "diverged": 0, "failed": 0, "todo": 0}
    assert run_study(grown, tmp_path / "grown", registry).trained == 0
    assert study_status(tmp_path / "grown")["tries"]["total"] == 8


def test_a_rate_that_diverges_is_the_worst_and_where_all_do_the_trials_fail(tmp_path, registry):
    hot = OptimizerConfig("adamw", 1.0, "constant")
    some = make_config(Tune((1e-2, 1e30), (1000,)), ("tiny",), (0,), hot)
    run_study(some, tmp_path / "some", registry)
    (trial,), tries = records(tmp_path / "some")
    assert sorted(one.status for one in tries) == ["diverged", "done"]
    assert choice_in(trial).learning_rate == 1e-2 and dict(choice_in(trial).losses)[1e30] is None
    every = make_config(Tune((1e29, 1e30), (1000,)), ("tiny",), (0,), hot)
    summary = run_study(every, tmp_path / "every", registry)
    (trial,), tries = records(tmp_path / "every")
    assert summary.exit_code == 1 and [one.status for one in tries] == ["diverged"] * 2
    assert trial.status == "failed"
    assert trial.environment["error"] == "tuning: every learning rate diverged"
    assert math.isnan(choice_in(trial).learning_rate)


def test_a_try_that_fails_fails_its_trials_and_is_tried_again(tmp_path, registry, monkeypatch):
    config = make_config(seeds=(0,))
    calls = iter(range(100))

    def broken(*arguments, **options):
        if next(calls) == 1:
            raise RuntimeError("planted")
        return built(*arguments, **options)

    from deepnarrow import trial as module
    built = module.make_program
    with monkeypatch.context() as patched:
        patched.setattr(module, "make_program", broken)
        run_study(config, tmp_path, registry)
    trials, _ = records(tmp_path)
    assert {one.name: one.status for one in trials} == {"tiny": "failed", "tiny-ff64": "done"}
    assert "the try of 0.01 failed: RuntimeError: planted" in trials[0].environment["error"]
    again = run_study(config, tmp_path, registry)
    assert (again.trained, dict(again.counts)) == (1, {"done": 2})


def test_analysis_sees_no_tries(tmp_path, registry):
    run_study(make_config(), tmp_path, registry)
    trials, tries = records(tmp_path)
    table = from_records([*tries, *trials])
    assert set(table.seed) == {"0", "1"} and len(table) == 4
    assert not [name for name in table.qualities if "tuning" in name or "learning" in name]
    assert planned_keys(tmp_path) == {one.key for one in trials}


def test_tries_move_with_an_archive(tmp_path, registry):
    config = make_config(shapes=("tiny",), seeds=(0,))
    run_study(config, tmp_path / "here", registry)
    merge_into_archive([str(tmp_path / "here")], tmp_path / "records.jsonl.gz")
    merge_into_workdir([str(tmp_path / "records.jsonl.gz")], tmp_path / "there")
    assert facts(tmp_path / "there") == facts(tmp_path / "here")
    more = make_config(shapes=("tiny",), seeds=(0, 1))
    run_study(more, tmp_path / "there", registry)
    with Store(tmp_path / "there" / "records.sqlite", read_only=True) as store:
        assert list(store.attempts().values()) == [1]  # the new seed alone


def test_a_dry_run_counts_the_tries(registry):
    cells = dry_run(make_config(), registry)
    assert [cell["tries"] for cell in cells] == [3, 3]
    for cell in cells:  # three of half a budget against two whole ones
        assert cell["tries_seconds_estimate"] == pytest.approx(0.75 * cell["seconds_estimate"])
    assert dry_run(make_config(None), registry)[0]["tries"] == 0


def test_seeds_that_are_reported_are_refused_for_tries():
    with pytest.raises(InputError, match="tunes with a seed that is reported"):
        make_config(Tune((1e-3, 1e-2), seeds=(7, 1)))


def test_a_warm_up_that_does_not_fit_a_try_is_refused(registry):
    config = make_config(Tune((1e-3, 1e-2), (1000,), fraction=0.25))  # 5 steps, warm-up of 5
    with pytest.raises(InputError, match=r"a try of tune.optimizer.warmup_steps"):
        dry_run(config, registry)
