"""A study end to end on the toy modality: grid, records, stop and resume, failure, status."""

import dataclasses
import types

import numpy as np
import pytest
import toy

from deepnarrow import hookimpl
from deepnarrow.assemble import make_model
from deepnarrow.config import ModalityStudy, StudyConfig
from deepnarrow.errors import InputError, Preempted
from deepnarrow.merge import merge_into_archive, merge_into_workdir
from deepnarrow.plugins import load_plugins
from deepnarrow.protocol import Budget, FewShot, FineTune, OptimizerConfig, Protocol, RunOptions
from deepnarrow.rundir import load_params, read_run
from deepnarrow.signals import StopRequest
from deepnarrow.step import make_program
from deepnarrow.store import Store
from deepnarrow.study import dry_run, run_study, study_status
from deepnarrow.transfer.finetune import finetune, make_finetune
from deepnarrow.trialrows import finetune_seed
from deepnarrow.trials import open_data, plan_trials

SHAPES = ("tiny", "tiny-nl4", "tiny-ff64")
ADAMW = OptimizerConfig("adamw", 3e-3, "cosine", warmup_steps=5)


@pytest.fixture
def registry():
    """The toy as a plugin, beside the core's own."""
    return make_registry(toy.toy_modality())


def make_registry(modality):
    plugin = types.ModuleType("toy_plugin")

    @hookimpl
    def deepnarrow_register_modalities():
        return [modality]

    @hookimpl
    def deepnarrow_register_architectures():
        return [toy.toy_architecture()]

    vars(plugin).update(
        deepnarrow_register_modalities=deepnarrow_register_modalities,
        deepnarrow_register_architectures=deepnarrow_register_architectures,
    )
    return load_plugins([], extra=[plugin])


@pytest.fixture
def no_report(monkeypatch):
    """Drawing takes seconds; the tests that are not about the report leave it out."""
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])


def make_config(shapes=SHAPES, seeds=(0, 1), steps=40):
    protocol = Protocol(
        batch_size=16,
        budget=Budget("examples", 16 * steps),
        optimizer=ADAMW,
        few_shot=FewShot(("toy_task",), shots=(1, 5), seeds=2),
        fine_tune=FineTune(("toy_task",), examples=16 * 20, batch_size=16, optimizer=ADAMW),
    )
    study = ModalityStudy("toy", shapes, protocol, architectures=("toy_mlp",))
    return StudyConfig("toys", seeds, {"toy": study}, RunOptions(log_every=10, checkpoint_every=10))


def facts(workdir):
    """What a study found, without clocks: key -> metrics, curve, outcomes."""
    with Store(workdir / "records.sqlite", read_only=True) as store:
        return {r.key: (r.status, r.metrics, r.curve, r.outcomes) for r in store.records()}


def test_a_study_goes_on_elsewhere_from_its_merged_records(tmp_path, registry, no_report):
    halves = [make_config(seeds=(seed,), steps=10) for seed in (0, 1)]
    for seed, half in enumerate(halves):
        run_study(half, tmp_path / f"half{seed}", registry)
    archive = tmp_path / "records.jsonl.gz"
    merge_into_archive([str(tmp_path / "half0"), str(tmp_path / "half1")], archive)
    merge_into_workdir([str(archive)], tmp_path / "whole")
    whole = run_study(make_config(steps=10), tmp_path / "whole", registry)
    assert (whole.trained, dict(whole.counts)) == (0, {"done": 6})
    assert facts(tmp_path / "whole") == facts(tmp_path / "half0") | facts(tmp_path / "half1")
    more = run_study(make_config(seeds=(0, 1, 2), steps=10), tmp_path / "whole", registry)
    assert more.trained == 3


def test_a_study_ends_with_every_record_and_never_runs_one_twice(tmp_path, registry):
    config = make_config()
    first = run_study(config, tmp_path, registry)
    assert (first.trained, dict(first.counts)) == (6, {"done": 6})
    before = facts(tmp_path)
    again = run_study(config, tmp_path, registry)
    assert again.trained == 0
    assert facts(tmp_path) == before
    for status, metrics, curve, outcomes in before.values():
        assert status == "done"
        seen = {(m.stage, m.metric, m.origin) for m in metrics}
        assert {
            ("upstream", "accuracy", "pretrained"),
            ("upstream", "loss", "pretrained"),
            ("few_shot", "accuracy", "pretrained"),
            ("few_shot", "accuracy", "untrained"),
            ("few_shot", "accuracy", "raw"),
            *(("few_shot", metric, origin) for metric in ("accuracy_l2_auto", "l2")
              for origin in ("pretrained", "untrained", "raw")),
            ("few_shot", "chance", "raw"),
            ("fine_tune", "accuracy", "pretrained"),
            ("fine_tune", "majority", "raw"),
        } <= seen
        assert {p.stage for p in curve} == {"upstream", "fine_tune"}
        assert {o.stage for o in outcomes} == {"few_shot", "fine_tune"}
        assert all(len(o.values) == 41 for o in outcomes)  # the toy's test split
    with Store(tmp_path / "records.sqlite", read_only=True) as store:
        costs = [record.costs for record in store.records()]
    for one in costs:  # 40 steps on one device
        assert one["chip_hours"] == pytest.approx(one["step_time_s"] * 40 / 3600)
    assert (tmp_path / "report" / "report.html").exists()
    for key in before:  # every trial is a run directory
        info = read_run(tmp_path / "runs" / key)
        assert (info.modality, info.source["key"]) == ("toy", key)
        params = load_params(tmp_path / "runs" / key, registry)
        assert params["encoder"]["layers"]["mlp"]["wi"]["kernel"].shape[2] == info.shape.d_ff


@pytest.mark.usefixtures("no_report")
def test_few_shot_probes_while_training_are_in_the_curve_and_change_nothing_else(
        tmp_path, registry):
    config = make_config(shapes=("tiny",), seeds=(0,))
    watched = dataclasses.replace(config, run=dataclasses.replace(config.run, few_shot_every=20))
    found = {}
    for name, one in (("plain", config), ("watched", watched)):
        run_study(one, tmp_path / name, registry)
        found[name] = facts(tmp_path / name)
    assert found["plain"].keys() == found["watched"].keys()
    [(status, metrics, curve, outcomes)] = found["watched"].values()
    probes = [p for p in curve if p.name.startswith("few_shot/")]
    assert [(p.step, p.name) for p in probes] == [
        (step, f"few_shot/toy_task/accuracy@{shots}") for step in (20, 40) for shots in (1, 5)]
    # After the last step the curve has what the stage then finds.
    for shots, point in zip((1, 5), probes[2:], strict=True):
        values = [m.value for m in metrics if (m.stage, m.metric, m.origin, m.shots) == (
            "few_shot", "accuracy", "pretrained", shots)]
        assert point.value == pytest.approx(np.mean(values), abs=1e-12)
    rest = tuple(p for p in curve if p not in probes)
    assert list(found["plain"].values()) == [(status, metrics, rest, outcomes)]


@pytest.mark.usefixtures("no_report")
def test_fine_tuning_from_scratch_is_the_untrained_network_fine_tuned(tmp_path, registry):
    config = make_config(shapes=("tiny",), seeds=(3,))
    study = config.modalities["toy"]
    stage = dataclasses.replace(study.protocol.fine_tune, scratch=True)
    protocol = dataclasses.replace(study.protocol, few_shot=None, fine_tune=stage)
    config = dataclasses.replace(
        config, modalities={"toy": dataclasses.replace(study, protocol=protocol)})
    run_study(config, tmp_path, registry)
    [(_, metrics, curve, outcomes)] = facts(tmp_path).values()
    modality, architecture = registry.modality("toy"), registry.architecture("toy_mlp")
    task = modality.tasks(modality.data_options, modality.options)["toy_task"]
    shape = modality.presets["tiny"].shape
    model = make_model(modality, architecture, shape, modality.options)
    untrained = make_program(model, protocol.optimizer, 40).init(np.int32(3)).params
    ft = make_finetune(modality, architecture, shape, modality.options, (task,), stage)
    expected = finetune(ft, untrained, seed=finetune_seed(3, 0)).tasks["toy_task"].scores["test"]
    by_origin = {m.origin: m.value for m in metrics
                 if (m.stage, m.metric) == ("fine_tune", "accuracy")}
    assert set(by_origin) == {"pretrained", "untrained"}
    assert by_origin["untrained"] == expected.metrics["accuracy"]
    values = {o.origin: o.values for o in outcomes}
    assert values["untrained"] == tuple(expected.per_example)
    assert values["pretrained"] != values["untrained"]
    names = {point.name for point in curve}
    assert {"toy_task/seed0/train/loss", "toy_task/seed0/untrained/train/loss"} <= names


class StopAfter(StopRequest):
    """A stop request that somebody makes after so many polls."""

    def __init__(self, polls):
        super().__init__()
        self.polls = polls

    def __call__(self):
        self.polls -= 1
        if self.polls <= 0:
            self.requested = True
        return self.requested


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("polls", [3, 25, 47, 70])
def test_stopped_anywhere_and_run_again_ends_with_the_same_records(
    tmp_path, registry, monkeypatch, polls
):
    config = make_config(shapes=("tiny", "tiny-ff64"), seeds=(0,))
    run_study(config, tmp_path / "unbroken", registry)
    monkeypatch.setattr("deepnarrow.signals.StopRequest", lambda: StopAfter(polls))
    with pytest.raises(Preempted):
        run_study(config, tmp_path / "broken", registry)
    monkeypatch.undo()
    run_study(config, tmp_path / "broken", registry)
    assert facts(tmp_path / "broken") == facts(tmp_path / "unbroken")


@pytest.mark.usefixtures("no_report")
def test_a_cell_that_fails_is_recorded_and_retried_and_the_study_goes_on(
    tmp_path, registry, monkeypatch
):
    import deepnarrow.programs

    real = deepnarrow.programs.make_model

    def make_model(modality, architecture, shape, options):
        if shape.d_ff == 64:
            raise RuntimeError("planted")
        return real(modality, architecture, shape, options)

    monkeypatch.setattr(deepnarrow.programs, "make_model", make_model)
    config = make_config(seeds=(0,))
    summary = run_study(config, tmp_path, registry)
    assert dict(summary.counts) == {"done": 2, "failed": 1}
    status = study_status(tmp_path)
    assert (status["done"], status["failed"], status["todo"]) == (2, 1, 1)  # it will be retried
    with Store(tmp_path / "records.sqlite", read_only=True) as store:
        (failed,) = store.records(status="failed")
    assert failed.environment["error"] == "RuntimeError: planted"
    trace = (tmp_path / failed.environment["traceback"]).read_text()
    assert 'raise RuntimeError("planted")' in trace
    monkeypatch.undo()
    assert run_study(config, tmp_path, registry).trained == 1
    assert study_status(tmp_path)["done"] == 3


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("error", "code"), [
    (RuntimeError("planted"), 1), (InputError("model", "cannot be"), 2)])
def test_a_study_whose_every_trial_failed_says_so_by_its_exit_code(
        tmp_path, registry, monkeypatch, error, code):
    def make_model(modality, architecture, shape, options):
        raise error

    monkeypatch.setattr("deepnarrow.programs.make_model", make_model)
    summary = run_study(make_config(seeds=(0,)), tmp_path, registry)
    assert (dict(summary.counts), summary.exit_code) == ({"failed": 3}, code)


def test_keys_hash_what_determines_the_result_and_nothing_else(registry):
    def keys(config):
        data = {name: open_data(study, registry) for name, study in config.modalities.items()}
        return [t.key for t in plan_trials(config, registry, data)[0]]

    config = make_config()
    assert len(set(keys(config))) == 6
    relaxed = dataclasses.replace(config, name="other", run=RunOptions(log_every=1))
    assert keys(relaxed) == keys(config)
    equal_shapes = make_config(shapes=("tiny", "tiny-nl2"))
    assert len(keys(equal_shapes)) == 2  # `tiny` has two layers: run once a seed
    noisier = dataclasses.replace(config.modalities["toy"], data={"noise": 0.7})
    other = dataclasses.replace(config, modalities={"toy": noisier})
    assert set(keys(other)).isdisjoint(keys(config))


def test_equal_shapes_are_run_once_and_it_is_said(registry, capsys):
    rows = dry_run(make_config(shapes=("tiny", "tiny-nl2")), registry)
    assert [r["name"] for r in rows] == ["tiny"]
    assert "note: toy: tiny-nl2 is tiny; it is run once" in capsys.readouterr().err


def test_token_budgets_pay_by_the_positions_of_the_cell(registry):
    config = make_config(shapes=("tiny",), seeds=(0,))
    toys = config.modalities["toy"]
    protocol = dataclasses.replace(
        toys.protocol, budget=Budget("tokens", 16 * toy.LENGTH * 30), fine_tune=None)
    study = dataclasses.replace(toys, protocol=protocol)
    config = dataclasses.replace(config, modalities={"toy": study})
    assert dry_run(config, registry)[0]["steps"] == 30


def test_more_shots_than_a_class_has_are_refused_before_training(tmp_path, registry):
    config = make_config()
    toys = config.modalities["toy"]
    few_shot = FewShot(("toy_task",), shots=(16,))
    study = dataclasses.replace(toys, protocol=dataclasses.replace(
        toys.protocol, few_shot=few_shot))
    with pytest.raises(InputError, match=r"class 0 of 'toy_task' has too few .*got 16.*<= 15"):
        run_study(dataclasses.replace(config, modalities={"toy": study}), tmp_path, registry)


def with_protocol(**changes):
    config = make_config()
    toys = config.modalities["toy"]
    study = dataclasses.replace(toys, protocol=dataclasses.replace(toys.protocol, **changes))
    return dataclasses.replace(config, modalities={"toy": study})


def test_a_batch_of_more_than_there_is_is_refused(registry):
    assert dry_run(with_protocol(batch_size=96), registry)
    with pytest.raises(InputError, match=r"protocol.batch_size: .*got 97; expected <= 96"):
        dry_run(with_protocol(batch_size=97), registry)
    tuned = with_protocol().modalities["toy"].protocol.fine_tune
    too_many = dataclasses.replace(tuned, batch_size=1000)
    with pytest.raises(InputError, match=r"fine_tune.batch_size: .*got 1000; expected <= \d+ exa"):
        dry_run(with_protocol(fine_tune=too_many), registry)


def test_a_class_without_training_examples_is_refused(registry, monkeypatch):
    modality = registry.modality("toy")

    def without_class_1(data_options, options):
        task = modality.tasks(data_options, options)["toy_task"]

        def examples(split):
            source = task.examples(split)
            labels = source.labels()
            return dataclasses.replace(
                source, labels=lambda: np.where(labels == 1, 0, labels) if split == "train"
                else labels)

        return {"toy_task": dataclasses.replace(task, examples=examples)}

    lacking = make_registry(dataclasses.replace(modality, tasks=without_class_1))
    with pytest.raises(InputError, match=r"task 'toy_task', train: class 1 has no example"):
        dry_run(with_protocol(few_shot=None), lacking)


def test_a_checkpoint_that_does_not_fit_the_task_is_refused_before_training(registry, tmp_path):
    modality = registry.modality("toy")

    def forgetful(params, source_options, target_options, key):
        adapted, new = modality.adapt(params, source_options, target_options, key)
        return {name: value for name, value in adapted.items() if name != "head"}, new

    broken = make_registry(dataclasses.replace(modality, adapt=forgetful))
    summary = run_study(make_config(shapes=("tiny",), seeds=(0,)), tmp_path, broken)
    assert summary.counts == {"failed": 1}
    with Store(tmp_path / "records.sqlite", read_only=True) as store:
        (record,) = store.records()
    assert "the adapted checkpoint does not fit the task's model" in str(record.environment)
    assert record.curve == ()  # nothing was trained


def test_a_report_follows_the_records_it_is_of(tmp_path, registry, monkeypatch):
    drawn = []
    monkeypatch.setattr("deepnarrow.report.write_report",
                        lambda records, *_, **__: drawn.append(len(records)) or [])
    run_study(make_config(shapes=("tiny",)), tmp_path, registry)
    run_study(make_config(shapes=("tiny",)), tmp_path, registry)
    run_study(make_config(shapes=("tiny",), seeds=(0,)), tmp_path, registry)
    # The same records, but no page there: drawn again; fewer seeds: drawn again.
    assert drawn == [2, 2, 1]
    (tmp_path / "report" / "report.html").write_text("")
    run_study(make_config(shapes=("tiny",), seeds=(0,)), tmp_path, registry)
    assert drawn == [2, 2, 1]  # the same records and the page is there: left alone


def test_fine_tuning_shares_no_seed_with_pre_training():
    seeds = {finetune_seed(seed, index) for seed in range(100) for index in range(20)}
    assert len(seeds) == 2000
    assert not seeds & set(range(100))
    assert max(seeds) < 2**31


def test_dry_run_counts_every_cell_and_trains_nothing(tmp_path, registry):
    rows = dry_run(make_config(), registry)
    assert [r["name"] for r in rows] == list(SHAPES)
    tiny = rows[0]
    # By hand: embedding 4 x 16, two layers of 16 x 32 + 32 + 32 x 16, head 16 x 3 + 3.
    assert tiny["params"] == 64 + 2 * (512 + 32 + 512) + 51
    assert tiny["steps"] == 40
    assert all(r["seconds_estimate"] > 0 for r in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ("tiny-dl3",)}, "dl acts on decoder layers; toy has none"),
        ({"shapes": ("tinny",)}, "did you mean tiny?"),
        ({"modality": "tooy"}, "modality 'tooy': no plugin registers this modality"),
        ({"architectures": ("transfomer",)}, "did you mean transformer?"),
        ({"options": {"num_classes": 7}}, "the data decides this option (got 7; expected 3)"),
        ({"options": {"num_clases": 7}}, "num_classes"),
        ({"shapes": ("tiny-kv4",)}, "'tiny-kv4': kv means nothing in architecture 'toy_mlp' "
         "(expected operators dm, el, ff, nl)"),
    ],
)
def test_bad_studies_are_refused_before_anything_is_written(tmp_path, registry, change, message):
    config = make_config()
    study = dataclasses.replace(config.modalities["toy"], **change)
    config = dataclasses.replace(config, modalities={study.modality: study})
    with pytest.raises(InputError) as error:
        run_study(config, tmp_path / "new", registry)
    assert message in str(error.value)
    assert not (tmp_path / "new").exists()


def windowed(**given):
    """Options of the cells of a toy whose preset has a default `window`, and how a name sets it."""
    made = toy.toy_modality()
    options = made.options.copy_and_resolve_references().unlock()
    options.window = 4
    modality = dataclasses.replace(
        made, options=options.lock(), suffix_option="window",
        presets={"tiny": dataclasses.replace(made.presets["tiny"], overrides={"window": 8})})
    registry = make_registry(modality)
    config = make_config(seeds=(0,))
    study = dataclasses.replace(config.modalities["toy"], **given)
    config = dataclasses.replace(config, modalities={"toy": study})
    data = {"toy": open_data(study, registry)}
    return [trial.options["window"] for trial in plan_trials(config, registry, data)[0]]


def test_a_users_option_wins_over_a_presets_default_and_must_not_contradict_a_name():
    assert windowed(shapes=("tiny", "tiny/2")) == [8, 2]
    assert windowed(shapes=("tiny", "tiny-nl4"), options={"window": 16}) == [16, 16]
    assert windowed(shapes=("tiny/2",), options={"window": 2}) == [2]
    with pytest.raises(InputError, match=r"modalities.toy.options.window: the name 'tiny/2' sets "
                       r"this option \(got 16; expected 2\)"):
        windowed(shapes=("tiny", "tiny/2"), options={"window": 16})


def test_warm_up_longer_than_the_budget_is_refused(tmp_path, registry):
    with pytest.raises(InputError, match=r"warmup_steps: warm-up does not fit the budget \(got 5"):
        run_study(make_config(steps=4), tmp_path / "new", registry)


@pytest.mark.parametrize("plan", ["[1, 2]", '{"a": 1}', "{", "[[]]"])
def test_status_of_a_damaged_plan_is_bad_input(tmp_path, plan):
    (tmp_path / "plan.json").write_text(plan)
    with pytest.raises(InputError, match=r"plan.json cannot be read"):
        study_status(tmp_path)


@pytest.mark.parametrize("state", ["[]", '{"pid": 99999999999999999999, "key": ""}', '{"pid": 1}'])
def test_status_ignores_a_damaged_running_file(tmp_path, state):
    (tmp_path / "plan.json").write_text('[{"key": "k", "modality": "toy"}]')
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "here-1.json").write_text(state)
    status = study_status(tmp_path)
    assert (status["running"], status["todo"], status["seconds_left"]) == ([], 1, None)


def test_status_of_something_else_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"is no study's workdir: plan.json is missing"):
        study_status(tmp_path)
