"""Fronts equal the definition and an independent implementation; records reduce seed by seed."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time

import moocore
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from deepnarrow.dominance import front_mask
from deepnarrow.errors import InputError
from deepnarrow.hypervolume import hypervolume
from deepnarrow.pareto import FRONT_COSTS, joint_fronts
from deepnarrow.pareto import fronts as table_fronts
from deepnarrow.records import MetricRow, Record
from deepnarrow.report.tables import warnings
from deepnarrow.summary import (
    Quality,
    headline_qualities,
    quality_name,
    shape_table,
    summarize,
)
from deepnarrow.table import from_records

SHAPE = {"num_encoder_layers": 2, "num_decoder_layers": 0, "d_model": 64, "d_ff": 256, "d_kv": 16,
         "num_heads": 4, "share_heads": False, "share_kv": False}

# Small integers force ties on every axis, duplicates and constant axes.
costs = arrays(np.int8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24),
               elements=st.integers(-2, 2)).filter(lambda a: a.shape[1] <= 4).map(np.float64)


def oracle(values, directions):
    signed = np.where(np.array(directions) == "min", values, -values)
    return np.array([
        np.isfinite(p).all() and not any(
            np.isfinite(q).all() and (q <= p).all() and (q < p).any() for q in signed)
        for p in signed], dtype=bool)


def directions_of(values):
    return ["min", "max", "max", "min"][: values.shape[1]]


def fronts(records, costs=FRONT_COSTS, qualities=None):
    named = None if qualities is None else [(name, None) for name in qualities]
    return table_fronts(from_records(records), costs, named, draws=200)


# --- front_mask ----------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(costs)
def test_front_equals_the_definition_and_moocore(values):
    directions = directions_of(values)
    mask = front_mask(values, directions)
    np.testing.assert_array_equal(mask, oracle(values, directions))
    np.testing.assert_array_equal(mask, moocore.is_nondominated(
        values, maximise=[d == "max" for d in directions], keep_weakly=True))


@settings(max_examples=80, deadline=None)
@given(costs, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_order_scale_or_itself(values, random):
    directions = directions_of(values)
    mask = front_mask(values, directions)
    order = list(range(len(values)))
    random.shuffle(order)
    np.testing.assert_array_equal(front_mask(values[order], directions), mask[order])
    # Strictly increasing maps of an axis, and a flipped axis with the other direction.
    np.testing.assert_array_equal(front_mask(np.exp(values) * 7, directions), mask)
    flipped = ["max" if d == "min" else "min" for d in directions]
    np.testing.assert_array_equal(front_mask(-values, flipped), mask)
    assert front_mask(values[mask], directions).all()
    constant = np.column_stack([values, np.full(len(values), 3.0)])
    np.testing.assert_array_equal(front_mask(constant, [*directions, "max"]), mask)


@settings(max_examples=80, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 16), st.integers(1, 3)),
              elements=st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0])))
@example(np.array([[math.nan, 0.0], [1.0, 1.0]]))
@example(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]]))
def test_non_finite_points_are_off_and_zeros_are_equal(values):
    directions = directions_of(values)
    mask = front_mask(values, directions)
    np.testing.assert_array_equal(mask, oracle(values, directions))
    finite = np.isfinite(values).all(axis=1)
    assert not mask[~finite].any()
    assert mask.any() == finite.any()


@settings(max_examples=80, deadline=None)
@given(costs, st.data())
def test_front_of_a_union_is_the_front_of_fronts(values, data):
    directions = directions_of(values)
    cut = data.draw(st.integers(0, len(values)))
    parts = [part[front_mask(part, directions)] for part in (values[:cut], values[cut:])]
    merged = np.concatenate(parts)
    whole = values[front_mask(values, directions)]
    again = merged[front_mask(merged, directions)]
    assert sorted(map(tuple, whole)) == sorted(map(tuple, again))


@pytest.mark.parametrize(("values", "mask"), [
    (np.empty((0, 2)), []),
    ([[1, 1]], [True]),
    ([[2, 2]] * 3, [True] * 3),
    ([[1, 5], [2, 6], [2, 6], [2, 5], [3, 6], [4, 7]], [True, True, True, False, False, True]),
])
def test_small_fronts_by_hand(values, mask):
    assert front_mask(np.array(values), ["min", "max"]).tolist() == mask


def test_a_million_points_take_under_a_second():
    values = np.random.default_rng(0).integers(0, 10_000, (1_000_000, 2)).astype(float)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        mask = front_mask(values, ["min", "max"])
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0
    assert values[mask][:, 1].max() == values[:, 1].max()


@pytest.mark.parametrize(("values", "directions", "message"), [
    ([[1, 2]], ["min"], "not one column a direction"),
    ([1, 2], ["min", "max"], "not one column a direction"),
    ([[]], [], "not one column a direction"),
    ([[1, 2]], ["min", "up"], "unknown direction.*got up; expected min or max"),
])
def test_bad_tables_are_named(values, directions, message):
    with pytest.raises(InputError, match=message):
        front_mask(np.array(values), directions)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["random", "ties", "sphere", "chain"])
def test_many_points_of_many_axes_equal_moocore(kind, seed):
    rng = np.random.default_rng(seed)
    axes = 3 + seed % 3
    values = rng.random((3000, axes))
    if kind == "ties":
        values = np.floor(values * 5)
    if kind == "sphere":
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    if kind == "chain":
        values = np.repeat(np.sort(values[:, :1], axis=0), axes, axis=1) + (values > 0.999)
    directions = ["min", "max", "min", "max", "min"][:axes]
    np.testing.assert_array_equal(front_mask(values, directions), moocore.is_nondominated(
        values, maximise=[d == "max" for d in directions], keep_weakly=True))


def test_a_hundred_thousand_points_of_four_axes_take_under_ten_seconds():
    rng = np.random.default_rng(0)
    values = np.abs(rng.standard_normal((100_000, 4)))
    values /= np.linalg.norm(values, axis=1, keepdims=True)  # all on the front
    start = time.process_time()
    assert front_mask(values, ["min"] * 4).all()
    assert time.process_time() - start < 10


# --- hypervolume ---------------------------------------------------------------------------------
@settings(max_examples=80, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 14), st.integers(1, 4)),
              elements=st.sampled_from([-1.5, -1.0, -0.0, 0.0, 0.25, 1.0, 2.0, 3.0, math.nan])))
def test_hypervolume_equals_moocores(values):
    directions = directions_of(values)
    reference = [2.5 if d == "min" else -1.25 for d in directions]
    known = values[np.isfinite(values).all(axis=1)]
    # moocore wants two axes: a constant one adds a factor of 1.
    wide = np.column_stack([known, np.zeros(len(known))])
    expected = moocore.hypervolume(wide, ref=[*reference, 1.0], maximise=[
        d == "max" for d in [*directions, "min"]]) if len(known) else 0.0
    assert hypervolume(values, directions, reference) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_hypervolume_of_many_points(axes):
    values = np.random.default_rng(0).random((150, axes))
    expected = moocore.hypervolume(values, ref=[1.0] * axes)
    assert hypervolume(values, ["min"] * axes, [1.0] * axes) == pytest.approx(expected, rel=1e-9)


def test_hypervolume_wants_a_reference():
    with pytest.raises(InputError, match="one finite number an axis"):
        hypervolume(np.ones((2, 2)), ["min", "min"], [1.0])


# --- membership ----------------------------------------------------------------------------------
def seeds(name, params, losses):
    return [make(name, s, params=params, loss=loss) for s, loss in enumerate(losses)]


def test_membership_is_the_share_of_true_fronts():
    records = [*seeds("a", 1.0, (3.0, 3.1)), *seeds("b", 2.0, (2.0, 2.1)),
               *seeds("c", 3.0, (2.0, 2.1)), *seeds("d", 4.0, (2.5, 2.6))]
    front, = table_fronts(from_records(records), ["params_non_embedding"], draws=4000)
    shares = {point.name: point.membership for point in front.points}
    assert shares["a"] == 1.0
    assert shares["b"] > 0.99
    assert shares["c"] == pytest.approx(0.5, abs=0.03)  # as good as b, and dearer
    assert shares["d"] < 0.05
    margins = {point.name: point.margin for point in front.points}
    assert margins["a"] is None  # nothing costs as little
    assert margins["c"].low < 0 < margins["c"].high
    assert margins["d"].high < 0 < margins["b"].low
    assert front.method == "pooled-t"
    again, = table_fronts(from_records(records[::-1]), ["params_non_embedding"], draws=4000)
    assert {p.name: p.on_front for p in again.points} == {
        p.name: p.on_front for p in front.points}


def test_one_seed_has_no_membership():
    front, = fronts([make("a", params=1.0), *seeds("b", 2.0, (0.5, 0.6))], ["params_non_embedding"])
    assert [(p.name, p.membership is None) for p in front.points] == [("a", True), ("b", False)]
    front, = fronts([make("a"), make("b", params=2.0)], ["params_non_embedding"])
    assert {p.membership for p in front.points} == {None}
    assert front.method is None


def test_the_papers_definition_stands_beside_the_strict_one():
    records = [make("a", params=1.0, step_time=3.0, loss=2.0),
               make("b", params=2.0, step_time=1.0, loss=2.0),
               make("c", params=3.0, step_time=2.0, loss=2.5)]
    found = fronts(records, ["params_non_embedding", "step_time_s"])
    assert [[(p.name, p.on_front, p.on_any_front) for p in f.points] for f in found] == [
        [("a", True, True), ("b", False, True), ("c", False, False)],
        [("b", True, True), ("c", False, False), ("a", False, True)]]


def test_fronts_have_the_hypervolume_up_to_their_worst_values():
    front, = fronts([make("a", params=1.0, loss=3.0), make("b", params=2.0, loss=2.0),
                     make("c", params=4.0, loss=2.5)], ["params_non_embedding"])
    assert front.reference == (4.0, 3.0)
    assert front.hypervolume == 2.0


def test_joint_fronts_hold_all_axes():
    records = [make("a", params=1.0, step_time=3.0, loss=2.0, metrics=(probe(0.1),)),
               make("b", params=2.0, step_time=1.0, loss=2.0, metrics=(probe(0.2),)),
               make("c", params=3.0, step_time=4.0, loss=1.9, metrics=(probe(0.1),)),
               make("d", params=3.0, step_time=4.0, loss=2.5, metrics=(probe(0.15),)),
               make("e", params=1.0)]
    front, = joint_fronts(from_records(records), ["params_non_embedding", "step_time_s"])
    assert front.quality == ("upstream/loss", "digits/few_shot@5")
    assert front.directions == ("min", "min", "min", "max")
    assert {p.name: p.on_front for p in front.points} == {
        "a": True, "b": True, "c": True, "d": False}
    assert front.left_out == {"e": "digits/few_shot@5 is missing"}
    assert front.hypervolume is not None
    several = [dataclasses.replace(r, seed=s, key=f"{r.key}/{s}") for r in records[:4]
               for s in (0, 1)]
    front, = joint_fronts(from_records(several), ["params_non_embedding", "step_time_s"])
    assert {p.name: p.membership for p in front.points} == {"a": 1, "b": 1, "c": 1, "d": 0}


# --- records to shapes ---------------------------------------------------------------------------
def make(name="tiny", seed=0, *, loss=1.0, params=100.0, step_time=0.1, status="done",
         modality="vision", architecture="transformer", environment=None, metrics=(), key=None):
    return Record(
        key=key or f"{modality}/{architecture}/{name}/{seed}/{status}", study="s",
        modality=modality, architecture=architecture, name=name, shape=SHAPE, seed=seed,
        status=status, config={},
        costs={"params_non_embedding": params, "step_time_s": step_time,
               "flops_forward_per_example": 2 * params},
        flop_convention="matmul", environment=environment or {"device": "cpu", "host": "h"},
        metrics=(MetricRow("upstream", "", "loss", "min", loss), *metrics))


def probe(value, shots=5, shot_seed=0, origin="pretrained", metric="accuracy"):
    return MetricRow("few_shot", "digits", metric, "max", value, origin, shots, shot_seed)


@pytest.mark.parametrize(("row", "name"), [
    (MetricRow("upstream", "", "loss", "min", 1.0), "upstream/loss"),
    (MetricRow("upstream", "", "accuracy", "max", 1.0), "upstream/accuracy"),
    (probe(1.0), "digits/few_shot@5"),
    (probe(1.0, metric="accuracy_l2_auto"), "digits/few_shot@5/accuracy_l2_auto"),
    (MetricRow("fine_tune", "digits", "accuracy", "max", 1.0, finetune_seed=3), "digits/fine_tune"),
    (MetricRow("fine_tune", "squad", "f1", "max", 1.0), "squad/fine_tune/f1"),
])
def test_names_of_qualities(row, name):
    assert quality_name(row) == name


def test_shot_seeds_are_averaged_within_a_training_seed():
    # Shot seeds spread by 0.5 about a mean that differs by 0.1 between training seeds.
    records = [make(seed=0, metrics=(probe(0.25), probe(0.75, shot_seed=1))),
               make(seed=1, metrics=(probe(0.35), probe(0.85, shot_seed=1)))]
    quality = summarize(records)["digits/few_shot@5"]
    assert quality.n == 2
    assert quality.mean == pytest.approx(0.55)
    assert quality.sd == pytest.approx(statistics.stdev([0.5, 0.6]))


def test_fine_tuning_seeds_are_averaged_within_a_training_seed():
    rows = [MetricRow("fine_tune", "digits", "accuracy", "max", v, finetune_seed=i)
            for i, v in enumerate((0.5, 0.9))]
    assert summarize([make(metrics=tuple(rows))])["digits/fine_tune"] == Quality(
        "max", pytest.approx(0.7), None, 1)


def test_origins_are_kept_apart_and_references_are_no_quality():
    rows = (probe(0.9), probe(0.4, origin="untrained"), probe(0.6, origin="raw"),
            probe(0.1, origin="raw", metric="chance"), probe(0.2, origin="raw", metric="majority"))
    records = [make(metrics=rows)]
    assert summarize(records)["digits/few_shot@5"].mean == 0.9
    assert {k: v.mean for k, v in summarize(records, "untrained").items()} == {
        "digits/few_shot@5": 0.4}
    assert {k: v.mean for k, v in summarize(records, "raw").items()} == {"digits/few_shot@5": 0.6}


def test_how_strong_a_ridge_was_is_no_quality():
    rows = (probe(0.9), probe(0.8, metric="accuracy_l2_auto"), probe(64.0, metric="l2"))
    assert list(summarize([make(metrics=rows)])) == [
        "upstream/loss", "digits/few_shot@5", "digits/few_shot@5/accuracy_l2_auto"]


def test_headlines_are_the_most_shots_with_both_strengths():
    names = [f"digits/few_shot@{k}{metric}" for k in (10, 5, 1)
             for metric in ("/accuracy_l2_auto", "")]
    assert headline_qualities(names) == [
        "digits/few_shot@10", "digits/few_shot@10/accuracy_l2_auto"]


def test_only_finite_values_of_done_trials_count():
    rows = shape_table([
        make(seed=0, loss=1.0), make(seed=1, loss=3.0), make(seed=2, loss=None),
        make(seed=3, loss=99.0, status="diverged"), make(seed=4, loss=99.0, status="failed")])
    assert len(rows) == 1
    assert rows[0].qualities["upstream/loss"] == Quality(
        "min", 2.0, pytest.approx(math.sqrt(2)), 2)
    assert rows[0].statuses == {"done": 3, "diverged": 1, "failed": 1}


def test_an_earlier_attempt_of_a_finished_key_is_not_counted():
    rows = shape_table([make(status="failed", key="a"), make(status="done", key="a")])
    assert rows[0].statuses == {"done": 1}


def test_one_seed_twice_under_other_settings_is_refused():
    with pytest.raises(InputError, match=r"shape 'tiny' of vision.*two finished runs.*seed 0"):
        shape_table([make(key="a"), make(key="b")])


def with_config(record, **config):
    return dataclasses.replace(record, config=config)


def test_records_of_one_shape_differ_in_nothing_but_the_seed():
    same = [with_config(make(seed=i), seed=i, options={"remat": "none"}) for i in (0, 1)]
    assert shape_table(same)[0].statuses == {"done": 2}
    assert len(shape_table([*same, make(seed=2)])) == 1  # says nothing about its settings
    other = with_config(make(seed=3), seed=3, options={"remat": "full"})
    with pytest.raises(InputError, match=(
            r"^shape 'tiny' of vision: records differ in options.remat \(got none and full; .*"
            r"Hint: these records mix studies")):
        shape_table([*same, other])
    # Other shapes and architectures may have options of their own.
    elsewhere = [with_config(make("wide"), options={"remat": "full"}),
                 with_config(make(architecture="mixer"), options={"remat": "full"})]
    assert len(shape_table([*same, *elsewhere])) == 3


@pytest.mark.parametrize(("one", "other", "expected"), [
    ({"protocol": {"budget": {"amount": 100}, "few_shot": None}},
     {"protocol": {"budget": {"amount": 200}, "few_shot": None}},
     "protocol.budget.amount (got 100 and 200;"),
    ({"protocol": {"few_shot": None}}, {"protocol": {"few_shot": {"shots": [5]}}},
     "protocol.few_shot (got None and {'shots': [5]};"),
    ({"data": {"upstream/train": "aa"}}, {"data": {"upstream/train": "bb"}},
     "data.upstream/train (got aa and bb;"),
    ({"data": {"upstream/train": "aa"}}, {"data": {"upstream/train": "aa", "digits/test": "cc"}},
     "data.digits/test (got nothing and cc;"),
])
def test_shapes_of_one_modality_share_protocol_and_data(one, other, expected):
    first, second = with_config(make("a"), **one), with_config(make("b"), **other)
    for function in (shape_table, fronts):
        with pytest.raises(InputError) as error:
            function([first, second])
        assert str(error.value).startswith(f"modality 'vision': records differ in {expected}")
    assert len(shape_table([first, dataclasses.replace(second, modality="text")])) == 2
    assert len(shape_table([first, with_config(second, **one)])) == 2


def test_architectures_and_modalities_are_rows_of_their_own():
    rows = shape_table([make(), make(architecture="mixer"), make(modality="text"),
                        make("wide", params=50.0)])
    assert [(r.modality, r.label) for r in rows] == [
        ("text", "tiny"), ("vision", "transformer wide"), ("vision", "mixer tiny"),
        ("vision", "transformer tiny")]


# --- fronts of records ---------------------------------------------------------------------------
def test_fronts_by_hand():
    records = [make("a", params=1.0, loss=3.0), make("b", params=2.0, loss=2.0),
               make("c", params=3.0, loss=2.5), make("d", params=4.0, loss=None),
               make("e", params=5.0, status="diverged")]
    front, = fronts(records, costs=["params_non_embedding"])
    assert (front.modality, front.quality, front.direction) == ("vision", "upstream/loss", "min")
    assert [(p.name, p.on_front) for p in front.points] == [("a", True), ("b", True), ("c", False)]
    assert front.left_out == {"d": "upstream/loss is not finite",
                              "e": "no finished run (1 diverged)"}


def test_fronts_have_a_direction_a_modality_and_every_cost():
    records = [make("a", params=1.0, metrics=(probe(0.2),)),
               make("b", params=2.0, metrics=(probe(0.1),)),
               make("a", modality="text", params=1.0)]
    found = fronts(records)
    assert [(f.modality, f.quality, f.cost) for f in found] == [
        (modality, quality, cost)
        for modality, quality in [("text", "upstream/loss"), ("vision", "upstream/loss"),
                                  ("vision", "digits/few_shot@5")]
        for cost in ("params_non_embedding", "flops_forward_per_example", "step_time_s")]
    probed = fronts(records, ["params_non_embedding"], ["digits/few_shot@5"])
    assert [[(p.name, p.on_front) for p in f.points] for f in probed] == [
        [("a", True), ("b", False)]]


def test_machines_never_share_a_time_axis():
    records = [make("a", 0, step_time=0.1, environment={"device": "cpu", "host": "one"}),
               make("a", 1, step_time=0.9, environment={"device": "tpu", "host": "two"}),
               make("b", 0, step_time=0.2, environment={"device": "cpu", "host": "one"})]
    found = fronts(records, ["step_time_s"])
    assert [(f.machine, [(p.name, p.cost) for p in f.points], f.left_out) for f in found] == [
        ("cpu on one", [("a", 0.1), ("b", 0.2)], {}), ("tpu on two", [("a", 0.9)], {
            "b": "step_time_s on tpu on two was not measured: it needs 20 timed training steps"})]
    alone, = fronts(records[::2], ["step_time_s"])
    assert alone.machine == ""


@pytest.mark.parametrize(("records", "points"), [
    ([], None), ([make()], [("tiny", True)]), ([make(status="failed")], None),
    ([make(loss=None)], [])])
def test_few_or_no_records(records, points):
    found = fronts(records, ["params_non_embedding"])
    assert [[(p.name, p.on_front) for p in f.points] for f in found] == (
        [] if points is None else [points])


def test_unknown_names_are_suggested():
    with pytest.raises(InputError, match="did you mean step_time_s"):
        fronts([make()], costs=["step_time"])
    with pytest.raises(InputError, match=r"quality: no record has.*did you mean upstream/loss"):
        fronts([make()], qualities=["upstream/los"])


def test_ties_stand_on_the_front_together():
    records = [make("a", params=1.0, loss=2.0), make("b", params=1.0, loss=2.0),
               make("c", params=1.0, loss=3.0)]
    front, = fronts(records, ["params_non_embedding"])
    assert [(p.name, p.on_front) for p in front.points] == [("a", True), ("b", True), ("c", False)]


def test_the_average_over_probed_tasks_is_a_quality():
    both = (probe(0.2), dataclasses.replace(probe(0.4), task="mnist"),
            dataclasses.replace(probe(0.5), task="mnist", origin="raw"))
    table = from_records([make("a", metrics=both)])
    assert table.directions["average/few_shot@5"] == "max"
    assert table.columns["average/few_shot@5"].tolist() == pytest.approx([0.3])
    assert "average/few_shot@5" not in table.beside["raw"]  # of one task only
    one_is_gone = (probe(0.2), dataclasses.replace(probe(None), task="mnist"))
    assert np.isnan(from_records([make("a", metrics=one_is_gone)]).columns["average/few_shot@5"])
    assert "average/few_shot@5" not in from_records([make("a", metrics=both[:1])]).columns


def test_what_needs_no_pre_training_and_unsteady_costs_stand_beside_a_front():
    rows = (probe(0.2), dataclasses.replace(probe(0.4), origin="raw"),
            dataclasses.replace(probe(0.1), origin="untrained"))
    records = [make("a", seed, step_time=time, metrics=rows)
               for seed, time in enumerate((0.1, 0.2, 0.15))]
    front, = fronts(records, ["step_time_s"], ["digits/few_shot@5"])
    assert front.beside == {"untrained": pytest.approx(0.1), "raw": pytest.approx(0.4)}
    assert front.cost_spread == pytest.approx(2.0)
    said = " ".join(warnings([front]))
    assert "differs up to 2x between trials" in said
    assert "no shape beats raw inputs" in said
