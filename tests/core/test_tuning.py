"""The choice of a learning rate is a function of what the tries gave, with values by hand."""

import itertools
import json
import math

import pytest

from deepnarrow.protocol import Tune
from deepnarrow.records import MetricRow, Record
from deepnarrow.tuning import (
    Choice,
    TryResult,
    best_rate,
    choice_facts,
    choice_from_json,
    choice_in,
    choice_rows,
    choose,
    grid,
    mean_losses,
    result_of,
    results_in,
)

INF = math.inf


def tried(loss, flops=10.0, seconds=2.0):
    return TryResult("diverged" if loss is None else "done", loss, flops, seconds)


def record(key="k", status="done", loss=0.5, *, is_try=True, **fields):
    rows = (MetricRow("upstream", "", "accuracy", "max", 0.9),
            MetricRow("upstream", "", "loss", "min", loss)) if status == "done" else ()
    known = {"config": {"try": True} if is_try else {}, "costs": {"flops_train_total": 7.0},
             "environment": {"seconds": 3.0}, "metrics": rows}
    return Record(key, "s", "m", "a", "tiny", {}, 1, status, flop_convention="matmul",
                  **{**known, **fields})


@pytest.mark.parametrize(("losses", "rate"), [
    ({0.1: 2.0, 0.3: 1.0, 1.0: 3.0}, 0.3),
    ({0.1: 1.0, 0.3: 1.0, 1.0: 3.0}, 0.1),  # of equal ones the smaller
    ({0.1: 3.0, 0.3: INF, 1.0: 2.0}, 1.0),
    ({0.1: INF, 0.3: INF, 1.0: 9.0}, 1.0),  # one that did not diverge, however bad
    ({0.1: INF, 0.3: INF}, 0.1),
])
def test_the_best_rate(losses, rate):
    for order in itertools.permutations(losses):
        assert best_rate({one: losses[one] for one in order}) == rate


def test_the_mean_over_seeds_waits_for_all_and_one_that_diverged_makes_it_the_worst():
    failed = TryResult("failed", None, 0.0, 0.0, "broken")
    found = mean_losses({
        0.1: [tried(1.0), tried(2.0)], 0.2: [tried(1.0)], 0.3: [tried(1.0), tried(None)],
        0.4: [tried(1.0), failed], 0.5: []}, seeds=2)
    assert found == {0.1: 1.5, 0.3: INF}


@pytest.mark.parametrize(("extend", "losses", "rates"), [
    (1, {}, (0.01, 0.1)),
    (1, {0.01: 1.0}, (0.01, 0.1)),  # not all known
    (0, {0.01: 1.0, 0.1: 2.0}, (0.01, 0.1)),
    (1, {0.01: 1.0, 0.1: 2.0}, (0.001, 0.01, 0.1)),
    (1, {0.01: 2.0, 0.1: 1.0}, (0.01, 0.1, 1.0)),
    (1, {0.01: 1.0, 0.1: 1.0}, (0.001, 0.01, 0.1)),
    (1, {0.01: 1.0, 0.1: 2.0, 0.001: 0.5}, (0.001, 0.01, 0.1)),  # used up
    (2, {0.01: 1.0, 0.1: 2.0, 0.001: 0.5}, (0.0001, 0.001, 0.01, 0.1)),
    (2, {0.01: 1.0, 0.1: 2.0, 0.001: 1.5}, (0.001, 0.01, 0.1)),  # inside
    (2, {0.01: 2.0, 0.1: 1.0, 1.0: INF}, (0.01, 0.1, 1.0)),  # what diverges is no optimum
    (1, {0.01: INF, 0.1: INF}, (0.001, 0.01, 0.1)),  # downwards
    (9, {0.01: 1.0, 0.1: 2.0, 7.0: 0.0}, (0.001, 0.01, 0.1)),  # of another grid
])
def test_the_grid_grows_at_the_edge_where_the_optimum_is(extend, losses, rates):
    assert grid(Tune((0.01, 0.1), (7,), extend=extend), losses) == rates


def test_a_rate_beyond_the_grid_has_no_noise_of_binary_fractions():
    tune = Tune((1e-3, 3e-3, 1e-2), (7,), extend=1)
    assert grid(tune, {1e-3: 1.0, 3e-3: 2.0, 1e-2: 3.0})[0] == 0.000333333
    assert grid(tune, {1e-3: 3.0, 3e-3: 2.0, 1e-2: 1.0})[-1] == 0.0333333


def test_the_choice_says_what_it_rests_on_and_cost():
    tune = Tune((0.1, 0.2, 0.4), (7, 8))
    results = {0.1: [tried(3.0), tried(1.0)], 0.2: [tried(1.0), tried(2.0)],
               0.4: [tried(1.0), tried(None, flops=4.0, seconds=0.5)]}
    choice = choose(tune, results)
    assert choice == Choice(0.2, ((0.1, 2.0), (0.2, 1.5), (0.4, None)), "", 6, 54.0, 10.5)
    assert choice.found
    assert choose(tune, {0.1: results[0.1], 0.2: results[0.2]}) is None
    edge = choose(Tune((0.1, 0.2), (7, 8)), results)
    assert edge is not None
    assert (edge.learning_rate, edge.edge) == (0.2, "high")
    none = choose(tune, {rate: [tried(None), tried(1.0)] for rate in results})
    assert none is not None
    assert not none.found


def test_what_a_record_gave():
    assert result_of(record()) == TryResult("done", 0.5, 7.0, 3.0)
    assert result_of(record(status="diverged")) == TryResult("diverged", None, 7.0, 3.0)
    assert result_of(record(loss=None)).loss is None  # not a number: as one that diverged
    failed = result_of(record(status="failed", costs={}, environment={
        "error": "broken", "bad_input": True}))
    assert failed == TryResult("failed", None, 0.0, 0.0, "broken", True)


def test_only_tries_that_ended_count():
    records = [record("a", "failed"), record("a"), record("b", "failed"), record("c", "failed"),
               record("d", is_try=False), record("e"), record("e", "failed")]
    found = results_in(records, {"b", "e"})
    assert {key: one.status for key, one in found.items()} == {
        "a": "done", "b": "failed", "e": "done"}


@pytest.mark.parametrize("choice", [
    Choice(0.2, ((0.1, 2.0), (0.2, 1.5), (0.4, None)), "", 6, 54.0, 10.5),
    Choice(1e-05, ((1e-05, 2.0), (0.000333333, 2.5)), "low", 2, 1.0, 1.0)])
def test_a_choice_reads_back_from_records_and_orders(choice):
    made = record(is_try=False, metrics=tuple(choice_rows(choice)),
                  environment={"tuning": choice_facts(choice)})
    assert choice_in(made) == choice
    assert choice_from_json(json.loads(json.dumps(vars(choice)))) == choice
    assert choice_in(record(is_try=False)) is None
