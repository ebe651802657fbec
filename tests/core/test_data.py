"""Element i of a stream depends on (seed, i) alone: every other promise follows from it."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import numpy as np
import pytest

from deepnarrow.data import TrainStream, eval_batches
from deepnarrow.errors import InputError
from deepnarrow.modality import Source

SIZE = 13


def counting_source(num_examples: int = SIZE) -> Source:
    """A source whose examples show their index and their random draw."""

    def load(index, rng):
        return {"index": np.int32(index), "draw": rng.random(2)}

    return Source(num_examples, load, content_hash="0" * 64)


def take(count: int, **options) -> list[dict[str, np.ndarray]]:
    with TrainStream(counting_source(), **options) as stream:
        return list(itertools.islice(stream, count))


def rows(batches) -> dict[str, np.ndarray]:
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 4, 13, 32])
def test_every_epoch_holds_each_example_once(batch_size):
    epochs = 3
    found = rows(take(-(-epochs * SIZE // batch_size), seed=5, batch_size=batch_size))
    for epoch in range(epochs):
        ids = found["example_id"][epoch * SIZE : (epoch + 1) * SIZE]
        np.testing.assert_array_equal(np.sort(ids), np.arange(SIZE))
    np.testing.assert_array_equal(found["index"], found["example_id"])
    np.testing.assert_array_equal(found["example_mask"], np.ones(len(found["index"])))
    assert found["example_id"].dtype == np.int64
    assert found["example_mask"].dtype == np.float32


@pytest.mark.parametrize("size", [2**16, 2**16 + 1])
def test_large_sources_are_permuted_too(size):
    source = counting_source(size)
    with TrainStream(source, seed=3, batch_size=512) as stream:
        first = rows(list(itertools.islice(stream, 2)))["example_id"]
    with TrainStream(source, seed=3, batch_size=512, start_step=size // 512) as stream:
        second = rows(list(itertools.islice(stream, 2)))["example_id"]
    assert len(set(first.tolist())) == 1024
    assert 0 <= first.min() < size / 50
    assert size * 49 / 50 < first.max() < size
    assert np.mean(first == second) < 0.01


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = set()
    for seed in range(6):
        ids = rows(take(4, seed=seed, batch_size=SIZE))["example_id"].reshape(4, SIZE)
        orders |= {tuple(epoch) for epoch in ids.tolist()}
    assert len(orders) == 24


def test_order_does_not_depend_on_the_batch_size():
    assert_equal(rows(take(12, seed=3, batch_size=2)), rows(take(3, seed=3, batch_size=8)))


def test_random_draws_are_never_repeated():
    draws = np.concatenate([rows(take(8, seed=s, batch_size=SIZE))["draw"] for s in range(4)])
    assert len(np.unique(draws)) == draws.size == 4 * 8 * SIZE * 2
    assert abs(draws.mean() - 0.5) < 0.05


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_global_order_is_the_same_on_any_number_of_hosts(hosts):
    whole = take(5, seed=1, batch_size=8)
    shards = [take(5, seed=1, batch_size=8, rows=own)
              for own in np.split(np.arange(8), hosts)]
    for step, batch in enumerate(whole):
        assert all(len(shard[step]["index"]) == 8 // hosts for shard in shards)
        assert_equal(batch, rows([shard[step] for shard in shards]))


@pytest.mark.parametrize("k", [0, 1, 3, 7])
def test_starting_at_k_equals_skipping_k(k):
    resumed = take(9 - k, seed=2, batch_size=4, start_step=k)
    for left, right in zip(take(9, seed=2, batch_size=4)[k:], resumed, strict=True):
        assert_equal(left, right)


def test_step_counts_the_batches_taken():
    with TrainStream(counting_source(), seed=0, batch_size=4, start_step=6) as stream:
        assert stream.step == 6
        next(stream)
        next(stream)
        assert stream.step == 8


def test_batches_are_loaded_ahead_and_by_other_threads():
    threads, loaded = set(), threading.Semaphore(0)

    def load(index, rng):
        threads.add(threading.current_thread())
        loaded.release()
        return {"index": np.int32(index)}

    source = Source(SIZE, load, content_hash="")
    with TrainStream(source, seed=0, batch_size=2) as stream:
        next(stream)
        # One batch was asked for; two are loaded without anybody asking.
        for _ in range(4):
            assert loaded.acquire(timeout=10)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("num_examples", [1, 7, 8, 9])
def test_eval_batches_hold_each_example_once(num_examples):
    batches = list(eval_batches(counting_source(num_examples), 4))
    found = rows(batches)
    real = found["example_mask"] == 1
    np.testing.assert_array_equal(found["example_id"][real], np.arange(num_examples))
    assert {len(b["index"]) for b in batches} == {4}
    assert not real[num_examples:].any()
    np.testing.assert_array_equal(found["index"][num_examples:], num_examples - 1)
    assert_equal(found, rows(list(eval_batches(counting_source(num_examples), 4))))


def test_source_of_one_example_trains():
    with TrainStream(counting_source(1), seed=0, batch_size=3) as stream:
        np.testing.assert_array_equal(next(stream)["example_id"], [0, 0, 0])


@pytest.mark.parametrize(("options", "words"), [
    ({"batch_size": 0}, "batch_size is out of range"),
    ({"batch_size": -4}, "batch_size is out of range"),
    ({"rows": [0, 4]}, "rows are not rows of a batch"),
    ({"rows": [1, 1]}, "rows are not rows of a batch"),
    ({"rows": []}, "rows are not rows of a batch"),
    ({"seed": -1}, "seed is out of range"),
    ({"seed": 2**31}, "seed is out of range"),
    ({"start_step": -1}, "start_step is out of range"),
])
def test_bad_arguments(options, words):
    with pytest.raises(InputError, match=words):
        TrainStream(counting_source(), **{"seed": 0, "batch_size": 4} | options)


def test_empty_source():
    source = dataclasses.replace(counting_source(), num_examples=0)
    with pytest.raises(InputError, match="has no examples"):
        TrainStream(source, seed=0, batch_size=4)
    with pytest.raises(InputError, match="has no examples"):
        eval_batches(source, 4)
    with pytest.raises(InputError, match="batch_size is out of range"):
        eval_batches(counting_source(), 0)


def test_examples_of_unequal_shapes_are_named():
    source = Source(4, lambda index, rng: {"ids": np.zeros(index)}, content_hash="")
    with (pytest.raises(InputError, match="'ids': examples do not stack"),
          TrainStream(source, seed=0, batch_size=4) as stream):
        next(stream)


def test_an_error_of_the_source_is_raised_as_it_is():
    def load(index, rng):
        raise OSError("disk gone")

    source = Source(4, load, content_hash="")
    with (pytest.raises(OSError, match="disk gone"),
          TrainStream(source, seed=0, batch_size=4) as stream):
        next(stream)
