"""Proportional mixing: T5's rates in every epoch, each element from (seed, position) alone."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from deepnarrow.data import TrainStream
from deepnarrow.errors import InputError
from deepnarrow.modality import Source
from deepnarrow.transfer.mixture import mix, mixing_rates

SIZES = {"rte": 7, "mnli": 50, "cb": 1}


def source(number, size, digest="0", **fields):
    """Examples that say whose they are; loading draws from the stream's generator."""
    def load(index, rng):
        values = {"task": np.int64(number), "index": np.int64(index), "noise": rng.random(2)}
        return values | {name: np.asarray(value) for name, value in fields.items()}

    return Source(size, load, digest)


def sources(**changes):
    return {name: source(i, size, **changes) for i, (name, size) in enumerate(SIZES.items())}


def epoch(mixture, seed, number=0):
    """The (task, index) pairs of one pass."""
    n = mixture.num_examples
    with TrainStream(mixture, seed=seed, batch_size=n, start_step=number) as stream:
        batch = next(stream)
    return list(zip(batch["task"].tolist(), batch["index"].tolist(), strict=True)), batch["noise"]


@pytest.mark.parametrize("limit", [1, 5, 7, 20, 50, 2**21])
def test_rates_are_t5s_in_every_epoch(limit):
    """r_m = min(e_m, K) / sum of min(e_n, K): Raffel et al. 2020, section 3.5.2."""
    mixture = mix(sources(), limit)
    total = sum(min(size, limit) for size in SIZES.values())
    assert mixture.num_examples == total
    for number in range(3):
        counts = collections.Counter(task for task, _ in epoch(mixture, 0, number)[0])
        for i, (name, size) in enumerate(SIZES.items()):
            rate = min(size, limit) / total
            assert mixing_rates(SIZES, limit)[name] == pytest.approx(rate)
            assert counts[i] / total == pytest.approx(rate)


def test_tasks_within_the_limit_come_whole_and_once():
    pairs, _ = epoch(mix(sources(), 2**19), seed=3)
    assert sorted(pairs) == [(i, j) for i, n in enumerate(SIZES.values()) for j in range(n)]


def test_a_larger_task_shows_other_examples_in_other_epochs():
    mixture = mix(sources(), 20)
    seen = set()
    for number in range(20):
        drawn = {index for task, index in epoch(mixture, 0, number)[0] if task == 1}
        assert len(drawn) > 10
        seen |= drawn
    assert seen == set(range(SIZES["mnli"]))


def test_an_element_depends_on_seed_and_position_alone():
    mixture = mix(sources(), 20)
    with TrainStream(mixture, seed=5, batch_size=4) as stream:
        whole = [next(stream) for _ in range(30)]
    for step in (1, 7, 13, 29):
        with TrainStream(mixture, seed=5, batch_size=4, start_step=step) as stream:
            again = next(stream)
        for name, values in again.items():
            np.testing.assert_array_equal(values, whole[step][name])
    for host in range(2):
        with TrainStream(mixture, seed=5, batch_size=4, start_step=9,
                         rows=(2 * host, 2 * host + 1)) as stream:
            rows = next(stream)
        np.testing.assert_array_equal(rows["noise"], whole[9]["noise"][2 * host:2 * host + 2])
    assert epoch(mixture, 5)[0] != epoch(mixture, 6)[0]


def test_tasks_with_and_without_labels_mix_by_the_fields_they_share():
    mixed = mix({"a": source(0, 3, label=np.int32(1)), "b": source(1, 3)}, 10)
    assert mixed.load(0, np.random.default_rng(0)).keys() == {"task", "index", "noise"}


def test_the_hash_is_of_what_is_mixed():
    hashes = [mix(s, k).content_hash for s, k in (
        (sources(), 20), (sources(), 20), (sources(), 21), (sources(digest="1"), 20),
        ({"other": source(0, 7)}, 20))]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(("other", "got"), [
    (np.zeros(3, np.int32), r"int32\[3\]"), (np.zeros(2, np.float32), r"float32\[2\]")])
def test_fields_that_do_not_stack_are_named(other, got):
    parts = {"rte": source(0, 3, inputs=np.zeros(2, np.int32)), "cb": source(1, 3, inputs=other)}
    with pytest.raises(InputError, match=rf"task 'cb', field 'inputs': does not mix with task "
                                         rf"'rte' \(got {got}; expected int32\[2\]\)"):
        mix(parts, 10)


def test_an_empty_task_is_named():
    with pytest.raises(InputError, match="task 'b': has no training examples"):
        mix({"a": source(0, 3), "b": source(1, 0)}, 10)
