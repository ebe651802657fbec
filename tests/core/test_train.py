"""One step by hand, and a loop that may be interrupted anywhere without a trace."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepnarrow.assemble import make_model
from deepnarrow.checkpoint import Checkpointer
from deepnarrow.data import TrainStream, eval_batches
from deepnarrow.errors import InputError, Preempted
from deepnarrow.meter import Meter
from deepnarrow.modality import LossOutput, Model, Source
from deepnarrow.protocol import OptimizerConfig, RunOptions
from deepnarrow.step import make_program, metric_names
from deepnarrow.steptimer import StepTimer
from deepnarrow.train import evaluate, train

STEPS = 12
ADAMW = OptimizerConfig("adamw", 0.01, "cosine", warmup_steps=2)
RUN = RunOptions(log_every=5, eval_every=4, checkpoint_every=3)


@pytest.fixture(scope="module")
def upstream(toy):
    modality, _ = toy
    return modality.upstream(modality.data_options, modality.options)


@pytest.fixture(scope="module")
def model(toy):
    modality, architecture = toy
    options = modality.options.copy_and_resolve_references()
    options.dropout_rate = 0.1
    return make_model(modality, architecture, modality.presets["tiny"].shape, options)


@pytest.fixture(scope="module")
def program(model):
    return make_program(model, ADAMW, STEPS)


def linear_model(loss_at=None) -> Model:
    """y = w x with squared error; `loss_at(batch, loss_sum)` may spoil the loss."""

    def loss(params, batch, key, *, train):
        weights = batch["example_mask"]
        error = (params["w"] * batch["x"] - batch["y"]) ** 2
        loss_sum = jnp.sum(error * weights)
        if loss_at is not None:
            loss_sum = loss_at(batch, loss_sum)
        return LossOutput(loss_sum, jnp.sum(weights), 0.25 * params["w"] ** 2,
                          {"noise": (jax.random.uniform(key) if train else 0.0, 1.0)})

    return Model(init=lambda key: {"w": jax.random.normal(key, ())}, loss=loss,
                 features=lambda params, batch: batch["x"][:, None],
                 param_axes={"w": ()}, predict=lambda params, batch: params["w"] * batch["x"])


def constant(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig("adamw", learning_rate, "constant")


def fingerprint(tree) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


# --- one step ------------------------------------------------------------------------------------
def test_gradient_is_that_of_the_mean_loss_plus_aux_loss():
    program = make_program(linear_model(), constant(1e-3), 10)
    batch = {"x": np.float32([1, 2, 5]), "y": np.float32([3, 3, 0]),
             "example_mask": np.float32([1, 1, 0])}
    state, metrics = program.step(program.start({"w": jnp.float32(2.0)}), batch, program.args(0))
    # loss = ((2 - 3)^2 + (4 - 3)^2) / 2 = 1; d/dw = (2*(-1)*1 + 2*1*2) / 2 + 0.5 * 2 = 2
    np.testing.assert_allclose(metrics["loss"], (2.0, 2.0))
    np.testing.assert_allclose(metrics["grad_norm"], (2.0, 1.0))
    np.testing.assert_allclose(metrics["finite"], (1.0, 1.0))
    # Adam's first update is the learning rate against the sign of the gradient.
    np.testing.assert_allclose(state.params["w"], 2.0 - 1e-3, rtol=1e-6)
    assert int(state.step) == 1


def test_randomness_depends_on_seed_and_step():
    program = make_program(linear_model(), constant(1e-3), 10)
    batch = {"x": np.zeros(1, np.float32), "y": np.zeros(1, np.float32),
             "example_mask": np.ones(1, np.float32)}
    seen = {}
    for seed in range(3):
        state = program.init(seed)
        seen[seed, "init"] = float(state.params["w"])
        for step in range(3):
            state, metrics = program.step(state, batch, program.args(seed))
            seen[seed, step] = float(metrics["noise"][0])
    assert len(set(seen.values())) == 12
    state, metrics = program.step(program.init(1), batch, program.args(1))
    assert float(metrics["noise"][0]) == seen[1, 0]


def test_a_batch_of_padding_only_changes_nothing_but_aux_loss():
    program = make_program(linear_model(), constant(1e-3), 10)
    batch = {"x": np.ones(2, np.float32), "y": np.ones(2, np.float32),
             "example_mask": np.zeros(2, np.float32)}
    state, metrics = program.step(program.start({"w": jnp.float32(2.0)}), batch, program.args(0))
    assert bool(state.finite)
    np.testing.assert_allclose(metrics["grad_norm"][0], 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_is_not_applied_and_is_the_last(bad):
    program = make_program(linear_model(), constant(1e-3), 10)
    good = {"x": np.ones(2, np.float32), "y": np.ones(2, np.float32),
            "example_mask": np.ones(2, np.float32)}
    state, _ = program.step(program.init(0), good, program.args(0))
    before = fingerprint(state[:3])
    state, metrics = program.step(state, good | {"x": np.float32([1, bad])}, program.args(0))
    assert float(metrics["finite"][0]) == 0.0
    assert fingerprint(state[:3]) == before
    state, metrics = program.step(state, good, program.args(0))
    assert float(metrics["finite"][0]) == 0.0
    assert fingerprint(state[:3]) == before


def test_the_moving_average_is_that_of_the_params_after_each_update():
    """Against the definition: weights 0.8^age, which add up to 1; the start has none."""
    decay, config = 0.8, OptimizerConfig("adamw", 0.1, "constant", ema_decay=0.8)
    program = make_program(linear_model(), config, 10)
    state, seen = program.start({"w": jnp.float32(50.0)}), []
    batch = {"x": np.float32([1, 2]), "y": np.float32([3, 3]),
             "example_mask": np.ones(2, np.float32)}
    assert float(state.eval_params["w"]) == 50.0
    for step in range(1, 7):
        state, _ = program.step(state, batch, program.args(0))
        seen.append(float(state.params["w"]))
        weights = decay ** np.arange(step)[::-1]
        np.testing.assert_allclose(state.ema["w"], np.average(seen, weights=weights), rtol=1e-6)
        assert state.eval_params is state.ema
    assert abs(seen[-1] - float(state.ema["w"])) > 0.1


def test_the_moving_average_is_what_is_evaluated_and_training_is_the_same(model, upstream):
    averaged = make_program(model, dataclasses.replace(ADAMW, ema_decay=0.9), STEPS)
    plain = make_program(model, ADAMW, STEPS)
    options = {"seed": 0, "batch_size": 8, "run": RUN, "validation": upstream.validation}
    a = train(averaged, upstream.train, **options)
    b = train(plain, upstream.train, **options)
    assert fingerprint(a.state.params) == fingerprint(b.state.params)
    assert b.state.ema is None
    assert fingerprint(b.state.eval_params) == fingerprint(b.state.params)
    last = {p.name: p.value for p in a.curve if p.step == STEPS}
    found = evaluate(averaged, a.state.ema, upstream.validation, 8)
    assert last["validation/loss"] == found["loss"]
    assert found["loss"] != {p.name: p.value for p in b.curve}["validation/loss"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_moving_average_stays_finite(bad):
    program = make_program(linear_model(), OptimizerConfig("adamw", 0.1, "constant",
                                                           ema_decay=0.5), 10)
    batch = {"x": np.float32([bad]), "y": np.float32([1]), "example_mask": np.float32([1])}
    state, _ = program.step(program.init(0), batch, program.args(0))
    assert np.isfinite(state.ema["w"])


@pytest.mark.parametrize("config", [
    dataclasses.replace(ADAMW, weight_decay=0.1, clip_norm=1.0, ema_decay=0.9),
    OptimizerConfig("adafactor", 0.1, "constant")], ids=lambda c: c.name)
def test_frozen_params_stay_as_they_are_and_have_no_optimiser_state(model, upstream, config):
    program = make_program(model, config, STEPS, trained_paths=(("head", "kernel"),))
    start = program.init(0)
    before = jax.tree.map(np.array, start.params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(start.opt_state) if leaf.ndim}
    assert shapes <= {before["head"]["kernel"].shape, (1,)}  # (1,): what Adafactor leaves out
    after = train(program, upstream.train, seed=0, batch_size=8, run=RUN, initial_params=before)
    for params in (after.state.params, after.state.eval_params):
        changed = {jax.tree_util.keystr(path, simple=True, separator="/")
                   for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(params),
                                               jax.tree.leaves(before), strict=True)
                   if not np.array_equal(new, old)}
        assert changed == {"head/kernel"}


def test_training_all_paths_is_training(program, model, upstream, unbroken):
    paths = [tuple(k.key for k in path) for path, _ in
             jax.tree_util.tree_leaves_with_path(program.init(0).params)]
    all_of_them = make_program(model, ADAMW, STEPS, trained_paths=paths)
    result = train(all_of_them, upstream.train, seed=3, batch_size=8, run=RUN)
    assert fingerprint(result.state) == fingerprint(unbroken.state)


def test_a_path_that_is_no_parameters_is_named(model):
    with pytest.raises(InputError, match=r"no such parameter .got head/kernle; .*head/kernel"):
        make_program(model, ADAMW, STEPS, trained_paths=(("head", "kernle"),))


def test_measurements_go_to_the_curve_with_the_evaluated_params(model, upstream):
    program = make_program(model, dataclasses.replace(ADAMW, ema_decay=0.9), STEPS)
    seen = {}

    def measure(step, params):
        seen[step] = fingerprint(params)
        return {"steps": float(step), "none": float("nan")}

    result = train(program, upstream.train, seed=0, batch_size=8, run=RUN, measure=measure)
    points = [(p.step, p.value) for p in result.curve if p.name == "validation/steps"]
    assert points == [(4, 4.0), (8, 8.0), (12, 12.0)]
    assert {p.value for p in result.curve if p.name == "validation/none"} == {None}
    assert seen[STEPS] == fingerprint(result.state.ema)


def test_the_seconds_of_the_loop_are_divided_into_parts(program, upstream, tmp_path):
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        result = train(program, upstream.train, seed=0, batch_size=8,
                       run=RunOptions(eval_every=2), validation=upstream.validation,
                       checkpointer=checkpointer)
    assert set(result.parts) == {"compile", "input", "step", "evaluation", "checkpoint"}
    assert all(seconds >= 0 for seconds in result.parts.values())
    assert result.parts["evaluation"] > 0
    assert result.parts["checkpoint"] > 0
    assert 0.5 * result.seconds < sum(result.parts.values()) < 1.05 * result.seconds


def test_seeds_and_steps_share_one_compiled_program(model, upstream):
    program = make_program(model, ADAMW, STEPS)
    for seed in (0, 1):
        train(program, upstream.train, seed=seed, batch_size=8, run=RUN)
    assert program.step._cache_size() == 1
    assert program.init._cache_size() == 1


def test_learning_rates_and_lengths_share_one_compiled_program(model, upstream):
    """And give what programs of their own give."""
    shared = make_program(model, ADAMW, STEPS)
    for rate, steps in ((ADAMW.learning_rate, STEPS), (2e-3, STEPS), (2e-3, STEPS + 3)):
        optimizer = dataclasses.replace(ADAMW, learning_rate=rate)
        options = {"seed": 0, "batch_size": 8, "run": RUN}
        found = train(shared.at(optimizer, steps), upstream.train, **options)
        alone = train(make_program(model, optimizer, steps), upstream.train, **options)
        assert found.steps == steps
        assert fingerprint(found.state) == fingerprint(alone.state)
    assert shared.step._cache_size() == 1


def test_a_program_refuses_a_length_that_its_schedule_does_not_fit(model):
    program = make_program(model, dataclasses.replace(ADAMW, warmup_steps=3), STEPS)
    with pytest.raises(InputError, match="warmup_steps"):
        program.at(dataclasses.replace(ADAMW, warmup_steps=3), 2)


def test_start_copies_the_params(program, upstream):
    params = program.init(0).params
    before = fingerprint(params)
    for seed in (0, 1):
        train(program, upstream.train, seed=seed, batch_size=8, run=RUN, initial_params=params)
    assert fingerprint(params) == before


# --- evaluation ----------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [1, 7, 30, 64])
def test_evaluation_weighs_every_example_once(program, model, upstream, batch_size):
    params = program.init(0).params
    values = evaluate(program, params, upstream.validation, batch_size)
    whole = next(eval_batches(upstream.validation, upstream.validation.num_examples))
    out = model.loss(params, whole, None, train=False)
    np.testing.assert_allclose(values["loss"], out.loss_sum / out.weight_sum, rtol=1e-5)
    np.testing.assert_allclose(values["accuracy"], out.metrics["accuracy"][0] / 30, rtol=1e-6)
    assert values.keys() == {"loss", "accuracy"}


def test_evaluation_stops_when_asked(program, upstream):
    answers = iter([False, True])
    with pytest.raises(Preempted):
        evaluate(program, program.init(0).params, upstream.validation, 8, lambda: next(answers))
    assert list(answers) == []


def test_metric_names_are_those_of_an_evaluation(program, upstream):
    batch = next(eval_batches(upstream.validation, 8))
    assert metric_names(program, batch) == {"loss", "accuracy"}
    linear = make_program(linear_model(), constant(1e-3), 10)
    batch = {name: np.zeros(4, np.float32) for name in ("x", "y", "example_mask")}
    assert metric_names(linear, batch) == {"loss", "noise"}


def test_meter_sums_in_float64_and_is_restored_from_its_totals():
    values = np.float32(np.random.default_rng(0).random(100))
    whole, first = Meter(), Meter()
    for value in values:
        whole.add({"loss": (value, np.float32(2))})
    for value in values[:40]:
        first.add({"loss": (value, np.float32(2))})
    second = Meter(first.totals())
    for value in values[40:]:
        second.add({"loss": (value, np.float32(2))})
    assert whole.totals() == second.totals()
    np.testing.assert_allclose(whole.means()["loss"], math.fsum(values) / 200, rtol=1e-14)
    assert math.isnan(Meter({"loss": (0.0, 0.0)}).means()["loss"])


# --- the loop ------------------------------------------------------------------------------------
def test_training_learns_the_toy(upstream, model):
    steps = 60
    program = make_program(model, OptimizerConfig("adamw", 0.02, "cosine", warmup_steps=5), steps)
    before = evaluate(program, program.init(0).params, upstream.validation, 30)
    result = train(program, upstream.train, seed=0, batch_size=32, run=RUN,
                   validation=upstream.validation)
    after = evaluate(program, result.state.params, upstream.validation, 30)
    assert result.status == "done"
    assert result.steps == int(result.state.step) == steps
    assert after["accuracy"] > 0.9 > before["accuracy"]
    assert after["loss"] < before["loss"] / 2
    assert result.step_time_s is not None
    assert 0 < result.step_time_s < result.seconds


def test_the_curve_holds_every_point_that_was_asked_for(program, upstream):
    logged = []
    result = train(program, upstream.train, seed=0, batch_size=8, run=RUN, stage="fine_tune",
                   validation=upstream.validation,
                   on_log=lambda step, values: logged.append((step, values)))
    names = {"loss", "accuracy", "grad_norm"}
    expected = {(s, f"train/{n}") for s in (5, 10, 12) for n in names}
    expected |= {(s, f"validation/{n}") for s in (4, 8, 12) for n in ("loss", "accuracy")}
    assert {(p.step, p.name) for p in result.curve} == expected
    assert len(result.curve) == len(expected)
    assert {p.stage for p in result.curve} == {"fine_tune"}
    curve = {(p.step, p.name): p.value for p in result.curve}
    assert [step for step, _ in logged] == [4, 5, 8, 10, 12, 12]
    assert {(step, name): x for step, values in logged for name, x in values.items()} == curve


def test_train_points_are_means_over_the_steps_since_the_last(model, upstream):
    fine = train(make_program(model, ADAMW, STEPS), upstream.train, seed=0, batch_size=8,
                 run=RunOptions(log_every=1))
    coarse = train(make_program(model, ADAMW, STEPS), upstream.train, seed=0, batch_size=8,
                   run=RunOptions(log_every=5))
    losses = [p.value for p in fine.curve if p.name == "train/loss"]
    means = [np.mean(losses[:5]), np.mean(losses[5:10]), np.mean(losses[10:])]
    found = [p.value for p in coarse.curve if p.name == "train/loss"]
    np.testing.assert_allclose(found, means, rtol=1e-12)


def test_eval_every_0_evaluates_the_last_step_only(program, upstream):
    result = train(program, upstream.train, seed=0, batch_size=8, run=RunOptions(),
                   validation=upstream.validation)
    assert {p.step for p in result.curve if p.name.startswith("validation")} == {STEPS}


# Asked before 12 steps and before 4 batches of validation after each of the steps 4, 8, 12.
QUESTIONS = STEPS + 3 * 4


def interrupted(program, upstream, directory, stops):
    """Trains, each run stopped at the question of that number; returns the last run's result."""
    results = []
    for stop in [*stops, None]:
        asked = iter(range(10**6))
        with Checkpointer(directory) as checkpointer:
            results.append(train(
                program, upstream.train, seed=3, batch_size=8, run=RUN,
                validation=upstream.validation, checkpointer=checkpointer,
                should_stop=lambda: next(asked) == stop))  # noqa: B023
            assert checkpointer.latest_step() == results[-1].steps
    assert [r.status for r in results] == ["preempted"] * len(stops) + ["done"]
    return results[-1]


@pytest.fixture(scope="module")
def unbroken(program, upstream):
    return train(program, upstream.train, seed=3, batch_size=8, run=RUN,
                 validation=upstream.validation)


@pytest.mark.parametrize("stops", [[k] for k in range(1, QUESTIONS)] + [[1, 2, 5, 2, 7, 1]],
                         ids=lambda stops: "-".join(map(str, stops)))
def test_a_resumed_run_ends_with_the_same_bits(program, upstream, tmp_path, unbroken, stops):
    result = interrupted(program, upstream, tmp_path, stops)
    assert fingerprint(result.state) == fingerprint(unbroken.state)
    assert result.curve == unbroken.curve


def test_probing_while_training_changes_nothing_and_survives_stops(
        program, upstream, tmp_path, unbroken):
    run = dataclasses.replace(RUN, few_shot_every=5)
    asked, runs = [], []

    def few_shot(step, params):
        asked.append((step, fingerprint(params)))
        if len(asked) in (2, 3):  # stopped in the probe after step 10, and there again
            raise Preempted("stopped while probing")
        return {"task/accuracy@1": step / 100}

    while not runs or runs[-1].status == "preempted":
        with Checkpointer(tmp_path) as checkpointer:
            runs.append(train(program, upstream.train, seed=3, batch_size=8, run=run,
                              validation=upstream.validation, checkpointer=checkpointer,
                              few_shot=few_shot))
    assert [r.steps for r in runs] == [10, 10, STEPS]
    assert [step for step, _ in asked] == [5, 10, 10, 10]
    assert asked[1] == asked[2] == asked[3]
    assert fingerprint(runs[-1].state) == fingerprint(unbroken.state)
    probes = [p for p in runs[-1].curve if p.name.startswith("few_shot/")]
    assert [(p.step, p.name, p.value) for p in probes] == [
        (5, "few_shot/task/accuracy@1", 0.05), (10, "few_shot/task/accuracy@1", 0.1)]
    assert tuple(p for p in runs[-1].curve if p not in probes) == unbroken.curve


def test_a_resumed_run_has_the_same_moving_average(model, upstream, tmp_path):
    program = make_program(model, dataclasses.replace(ADAMW, ema_decay=0.9), STEPS)
    unbroken = train(program, upstream.train, seed=3, batch_size=8, run=RUN,
                     validation=upstream.validation)
    result = interrupted(program, upstream, tmp_path, [6])
    assert fingerprint(result.state) == fingerprint(unbroken.state)
    assert result.curve == unbroken.curve


def test_a_killed_run_goes_on_from_its_last_checkpoint(program, upstream, tmp_path, unbroken):
    class Killed(Exception):
        pass

    def die(step, values):
        raise Killed

    with Checkpointer(tmp_path) as checkpointer, pytest.raises(Killed):
        train(program, upstream.train, seed=3, batch_size=8, run=RUN,
              validation=upstream.validation, checkpointer=checkpointer, on_log=die)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 3
    result = interrupted(program, upstream, tmp_path, [])
    assert fingerprint(result.state) == fingerprint(unbroken.state)
    assert result.curve == unbroken.curve


def test_a_finished_run_trains_nothing(program, upstream, tmp_path, unbroken):
    interrupted(program, upstream, tmp_path, [])
    again = interrupted(program, upstream, tmp_path, [])
    assert fingerprint(again.state) == fingerprint(unbroken.state)
    assert again.curve == unbroken.curve
    assert again.steps == STEPS


def test_stopping_before_the_first_step_trains_nothing(program, upstream, tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        result = train(program, upstream.train, seed=0, batch_size=8, run=RUN,
                       checkpointer=checkpointer, should_stop=lambda: True)
    assert (result.status, result.steps) == ("preempted", 0)


def test_a_checkpoint_of_a_longer_run_is_refused(program, model, upstream, tmp_path):
    interrupted(program, upstream, tmp_path, [])
    short = make_program(model, ADAMW, STEPS - 1)
    with (Checkpointer(tmp_path) as checkpointer,
          pytest.raises(InputError, match=r"holds a longer run .*got step 12; expected <= 11")):
        train(short, upstream.train, seed=3, batch_size=8, run=RUN, checkpointer=checkpointer)


@pytest.mark.parametrize("bad_step", [1, 2, 6, 8, 11, 12])
def test_a_diverging_run_stops_with_its_last_finite_state(tmp_path, bad_step):
    clean = Source(4 * STEPS, lambda index, rng: {"x": np.float32(1), "y": np.float32(1)}, "")
    with TrainStream(clean, seed=0, batch_size=4, start_step=bad_step - 1) as stream:
        bad = set(next(stream)["example_id"].tolist())

    def load(index, rng):
        return {"x": np.float32("nan" if index in bad else 1), "y": np.float32(1)}

    poisoned = Source(4 * STEPS, load, "")
    program = make_program(linear_model(), constant(1e-3), STEPS)
    with Checkpointer(tmp_path) as checkpointer:
        result = train(program, poisoned, seed=0, batch_size=4, run=RUN,
                       checkpointer=checkpointer)
        assert (checkpointer.latest_step() or 0) == (bad_step - 1) // 3 * 3
    assert (result.status, result.steps) == ("diverged", bad_step - 1)
    assert np.isfinite(result.state.params["w"])
    assert (result.curve[-1].step, result.curve[-1].name, result.curve[-1].value) == (
        bad_step, "train/loss", None)
    assert all(p.value is not None for p in result.curve[:-1])


def test_progress_reaches_the_end(program, upstream):
    seen = []
    train(program, upstream.train, seed=0, batch_size=8, run=RUN,
          progress=lambda *args: seen.append(args))
    assert seen[0] == (0, STEPS, "")
    assert [step for step, _, _ in seen] == sorted(step for step, _, _ in seen)
    step, total, text = seen[-1]
    assert (step, total) == (STEPS, STEPS)
    assert text.startswith("loss ")
    assert text.endswith(" examples/s")


def test_step_time_needs_twenty_steps_after_the_warm_up():
    timer = StepTimer(saved=9.0)
    for _ in range(3 + 20):
        timer.completed()
    assert timer.median() == 9.0
    timer.completed()
    assert 0 <= timer.median() < 1


def test_step_time_leaves_out_pauses(monkeypatch):
    clock = iter([0, 1, 2, 3, *range(4, 30), 1000, 1001])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timer = StepTimer()
    for _ in range(30):
        timer.completed()
    timer.pause()
    timer.completed()
    timer.completed()
    assert timer.median() == 1
    assert len(timer._seconds) == 27


@pytest.mark.parametrize(("log_every", "timed"), [(1, False), (2, True)])
def test_step_time_leaves_out_logging(model, upstream, log_every, timed):
    """Of two steps, the one that is logged is not timed; where all are logged, none is."""
    program = make_program(model, ADAMW, 60)
    slow = 0.02
    result = train(program, upstream.train, seed=0, batch_size=8, run=RunOptions(log_every),
                   on_log=lambda step, values: time.sleep(slow))
    assert result.seconds > 60 // log_every * slow
    assert (result.step_time_s is not None) == timed
    assert not timed or result.step_time_s < slow / 2


def test_threads_end_with_training(program, upstream):
    before = threading.active_count()
    train(program, upstream.train, seed=0, batch_size=8, run=RUN, validation=upstream.validation)
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before


@pytest.mark.parametrize(("options", "words"), [
    ({"seed": -1}, "seed is out of range"),
    ({"seed": 2**40}, "seed is out of range"),
    ({"batch_size": 0}, "batch_size is out of range"),
])
def test_bad_arguments(program, upstream, options, words):
    with pytest.raises(InputError, match=words):
        train(program, upstream.train, **{"seed": 0, "batch_size": 8, "run": RUN} | options)
