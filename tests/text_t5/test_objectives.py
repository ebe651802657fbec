"""Objectives: equal to T5's own code on given noise, and laws over random segments."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import InputError
from deepnarrow_text_t5.objectives import OBJECTIVES, Noise
from deepnarrow_text_t5.spans import lengths_of_inputs, lengths_of_raw

# By T5's TensorFlow code; make_data_golden.py wrote it.
GOLDEN = json.loads(pathlib.Path(__file__).with_name("golden").joinpath("objectives.json")
                    .read_text())
EOS, PIECES, FIRST = 1, GOLDEN["pieces"], GOLDEN["first_sentinel"]
NOISE = Noise(0.15, 3.0, FIRST, PIECES)


class GivenDraws:
    """Stands for a generator whose draws were written down."""

    def __init__(self, *random, integers=None, permutation=None):
        self._random, self._integers, self._permutation = list(random), integers, permutation

    def random(self, size):
        draw = np.asarray(self._random.pop(0), float)
        assert draw.shape == (size,)
        return draw

    def integers(self, low, high, size=None, dtype=int):
        draw = np.asarray(self._integers, dtype)
        assert ((draw >= low) & (draw < high)).all()
        assert draw.shape == (() if size is None else (size,))
        return draw

    def permutation(self, tokens):
        return tokens[self._permutation]


@pytest.mark.parametrize(("inputs", "density", "mean", "raw", "targets"), GOLDEN["lengths"])
def test_lengths_are_those_of_t5(inputs, density, mean, raw, targets):
    """Where T5's helper rounds the number of spans to 0, its examples, which have one, overflow."""
    ours = lengths_of_inputs(inputs, density, mean)
    if round(round(raw * density) / mean) < 1:
        assert ours.inputs <= inputs < lengths_of_raw(raw, density, mean).inputs
    else:
        assert (ours.raw, ours.targets) == (raw, targets)


@pytest.mark.parametrize("case", GOLDEN["examples"],
                         ids=lambda c: f"{c['objective']}-{len(c['tokens'])}")
def test_examples_are_those_of_t5(case, monkeypatch):
    """T5 adds EOS in a later step."""
    mask = np.array(case["mask"], bool)
    monkeypatch.setattr("deepnarrow_text_t5.objectives.noise_mask", lambda lengths, rng: mask)
    draws = GivenDraws(np.where(mask, 0.0, 0.99))
    made = OBJECTIVES[case["objective"]].make(np.array(case["tokens"], np.int32), NOISE, draws)
    assert [side.tolist() for side in made] == [
        [*case["inputs"], EOS], [*case["targets"], EOS]]


def test_bert_style_by_hand():
    tokens = np.arange(11, 16, dtype=np.int32)
    draws = GivenDraws([0.1, 0.9, 0.14, 0.15, 0.0], [0.5, 0.0, 0.09, 0.0, 0.1],
                       integers=[3, 4, 5, 6, 7])
    made = OBJECTIVES["bert_style"].make(tokens, NOISE, draws)
    assert [side.tolist() for side in made] == [
        [FIRST, 12, 5, 14, FIRST, EOS], [11, 12, 13, 14, 15, EOS]]


def test_prefix_lm_and_deshuffling_by_hand():
    tokens = np.arange(11, 15, dtype=np.int32)
    made = OBJECTIVES["prefix_lm"].make(tokens, NOISE, GivenDraws(integers=3))
    assert [side.tolist() for side in made] == [[11, 12, 13, EOS], [14, EOS]]
    made = OBJECTIVES["deshuffling"].make(tokens, NOISE, GivenDraws(permutation=[2, 0, 3, 1]))
    assert [side.tolist() for side in made] == [[13, 11, 14, 12, EOS], [11, 12, 13, 14, EOS]]


@pytest.mark.parametrize("name", OBJECTIVES)
@given(st.integers(8, 560), st.integers(2, 600), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_every_objective_keeps_its_promises(name, input_length, raw, seed):
    """Whatever the segment's length: it fits, ends with EOS, repeats with its seed, loses no token.
    """
    objective = OBJECTIVES[name]
    lengths = objective.lengths(input_length, NOISE)
    text = np.random.default_rng(seed).integers(3, PIECES, min(raw, lengths.raw), dtype=np.int32)
    before = text.copy()
    inputs, targets = objective.make(text, NOISE, np.random.default_rng(seed))
    again = objective.make(text, NOISE, np.random.default_rng(seed))
    assert all((one == other).all() for one, other in zip((inputs, targets), again, strict=True))
    assert (text == before).all()
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs[-1] == targets[-1] == EOS
    assert len(inputs) <= lengths.inputs <= input_length
    kept = [side[:-1][side[:-1] < PIECES] for side in (inputs, targets)]
    if name in ("mass_style", "bert_style"):
        assert (targets[:-1] == text).all()
        assert len(inputs) == len(text) + 1
    elif name == "deshuffling":
        assert (targets[:-1] == text).all()
        assert sorted(kept[0]) == sorted(text)
    else:
        assert sorted(np.concatenate(kept)) == sorted(text)
    if name in ("span_corruption", "iid_replace_spans"):
        for side in (inputs, targets):
            sentinels = side[side >= PIECES]
            assert (sentinels == FIRST - np.arange(len(sentinels))).all()


@pytest.mark.parametrize(("name", "published"), [
    ("iid_replace_spans", 192), ("iid_drop_tokens", 104)])
def test_targets_of_iid_noise_hardly_ever_overflow(name, published):
    """Lengths are near the released gin files'; 4 deviations leave 3 in 100,000 outside."""
    objective = OBJECTIVES[name]
    lengths = objective.lengths(512, NOISE)
    assert published <= lengths.targets <= 1.1 * published
    rng, text = np.random.default_rng(0), np.arange(3, 514, dtype=np.int32)
    sizes = np.array([len(objective.make(text, NOISE, rng)[1]) for _ in range(2000)])
    assert (sizes <= lengths.targets).mean() > 0.999
    assert sizes.max() > 0.8 * lengths.targets


def test_noise_has_its_density():
    rng, text = np.random.default_rng(0), np.arange(3, 514, dtype=np.int32)
    for density in (0.1, 0.5):
        noise = Noise(density, 3.0, FIRST, PIECES)
        sizes = [len(OBJECTIVES["iid_drop_tokens"].make(text, noise, rng)[1]) - 1
                 for _ in range(400)]
        assert np.mean(sizes) / 511 == pytest.approx(density, abs=0.005)


def test_sentinels_never_run_out():
    """150 spans, 100 sentinels, of which one may end the targets: what has none is kept."""
    text = np.arange(3, 303, dtype=np.int32)
    inputs, targets = OBJECTIVES["iid_replace_spans"].make(
        text, NOISE, GivenDraws(np.tile([0.0, 0.9], 150)))
    assert inputs.min() >= 1
    assert (inputs >= PIECES).sum() == (targets >= PIECES).sum() == 99
    assert inputs[inputs >= PIECES].min() == FIRST - 98
    kept = np.concatenate([side[:-1][side[:-1] < PIECES] for side in (inputs, targets)])
    assert sorted(kept) == [*text]


@pytest.mark.parametrize(("name", "length", "message"), [
    ("span_corruption", 5000, "more sentinels"), ("iid_replace_spans", 900, "more sentinels"),
    *((name, 7, "too small") for name in OBJECTIVES)])
def test_lengths_that_cannot_be_are_refused(name, length, message):
    with pytest.raises(InputError, match=message):
        OBJECTIVES[name].lengths(length, NOISE)
