"""Span corruption: published lengths, examples by hand, and laws over random segments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import InputError
from deepnarrow_text_t5.spans import (
    corrupt,
    lengths_of_inputs,
    lengths_of_raw,
    noise_mask,
    random_cuts,
)

EOS, FIRST_SENTINEL = 1, 32_099


def test_published_lengths():
    """T5: 512 input tokens are 568 raw ones and 114 targets (Raffel et al., released gin files)."""
    lengths = lengths_of_inputs(512)
    assert (lengths.raw, lengths.inputs, lengths.targets) == (568, 512, 114)


@pytest.mark.parametrize(("mask", "inputs", "targets"), [
    # "Thank you [for inviting] me to your party [last] week": figure 2 of Raffel et al., where the
    # targets end with a third sentinel.
    ([0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
     [10, 11, 99, 14, 15, 16, 17, 98, 19, EOS], [99, 12, 13, 98, 18, 97, EOS]),
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [*range(10, 19), 99, EOS], [99, 19, EOS]),
    ([0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
     [10, 99, 12, 98, 14, 97, 16, 96, 18, 95, EOS],
     [99, 11, 98, 13, 97, 15, 96, 17, 95, 19, EOS]),
    ([0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [10, 99, EOS], [99, *range(11, 20), EOS]),
])
def test_examples_by_hand(mask, inputs, targets):
    made = corrupt(np.arange(10, 20), np.array(mask, bool), first_sentinel=99, eos_id=EOS)
    assert [side.tolist() for side in made] == [inputs, targets]


def test_lengths_by_hand():
    # 17 tokens: round(2.55) = 3 noise tokens, 1 span.
    lengths = lengths_of_inputs(16)
    assert (lengths.raw, lengths.noise_tokens, lengths.noise_spans) == (17, 3, 1)
    assert (lengths.inputs, lengths.targets) == (17 - 3 + 1 + 1, 3 + 1 + 1)


@given(st.integers(8, 2000))
@settings(deadline=None)
def test_lengths_are_the_longest_that_fit(inputs):
    lengths = lengths_of_inputs(inputs)
    assert lengths.inputs <= inputs < lengths_of_raw(lengths.raw + 1).inputs
    assert lengths.raw + 2 * lengths.noise_spans + 2 == lengths.inputs + lengths.targets
    assert 1 <= lengths.noise_spans <= lengths.noise_tokens < lengths.raw


@given(st.integers(2, 700), st.integers(0, 2**32))
@settings(deadline=None)
def test_every_token_appears_once_and_the_text_can_be_put_together(raw, seed):
    rng = np.random.default_rng(seed)
    lengths = lengths_of_raw(raw)
    text = rng.integers(2, 32_000, raw, dtype=np.int32)
    mask = noise_mask(lengths, rng)
    inputs, targets = corrupt(text, mask, first_sentinel=FIRST_SENTINEL, eos_id=EOS)

    assert (len(mask), mask.sum()) == (raw, lengths.noise_tokens)
    assert not mask[0]
    assert mask[-1]
    assert (len(inputs), len(targets)) == (lengths.inputs, lengths.targets)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs[-1] == targets[-1] == EOS
    wanted = FIRST_SENTINEL - np.arange(lengths.noise_spans)
    for side in (inputs, targets):
        sentinels = side[side > 32_000]
        assert (sentinels == wanted).all()
    assert put_together(inputs, targets) == text.tolist()


def put_together(inputs, targets):
    """Fills each sentinel of the inputs with what follows it in the targets."""
    spans, text = {}, []
    for token in targets[:-1]:
        if token > 32_000:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    for token in inputs[:-1]:
        text += spans.pop(token) if token > 32_000 else [token]
    assert not spans
    return text


@given(st.integers(1, 50), st.data())
def test_segments_are_not_empty_and_add_up(items, data):
    count = data.draw(st.integers(1, items))
    ends = random_cuts(items, count, np.random.default_rng(data.draw(st.integers(0))))
    segments = np.diff(ends, prepend=0)
    assert len(segments) == count
    assert segments.min() >= 1
    assert segments.sum() == items


def test_all_segmentations_are_equally_likely():
    rng = np.random.default_rng(0)
    draws = [tuple(random_cuts(5, 3, rng)) for _ in range(6000)]
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    assert len(counts) == 6  # 4 choose 2 ways
    assert np.abs(counts - 1000).max() < 150  # five standard deviations


def test_the_same_draws_give_the_same_mask():
    lengths = lengths_of_inputs(64)
    first, again, other = (noise_mask(lengths, np.random.default_rng(s)) for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("make", [lambda: lengths_of_inputs(7), lambda: lengths_of_raw(1)])
def test_too_short_is_refused(make):
    with pytest.raises(InputError, match="too s"):
        make()
