"""The unsupervised objectives of Raffel et al. (JMLR 2020, table 3), in NumPy.

An objective turns a segment of text into inputs and targets, both ended by EOS. `span_corruption`
is T5's; lengths of the others are those of its released code: segments of `input_length` - 1
tokens.

| name | inputs | targets |
|---|---|---|
| `span_corruption` | spans of noise replaced by a sentinel each | sentinels and noise |
| `iid_replace_spans` | the same; every token is noise by itself | sentinels and noise |
| `iid_drop_tokens` | what is no noise | the noise |
| `mass_style` | every token of noise replaced by one and the same sentinel | the segment |
| `bert_style` | the same, a tenth of the noise by a random piece instead | the segment |
| `prefix_lm` | a prefix of random length | the rest |
| `deshuffling` | the segment's tokens in random order | the segment |
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Int

from deepnarrow.errors import InputError
from deepnarrow_text_t5.spans import (
    MIN_INPUT_LENGTH,
    SpanLengths,
    corrupt,
    lengths_of_inputs,
    lengths_of_raw,
    noise_mask,
)
from deepnarrow_text_t5.vocabulary import EOS_ID, NUM_SENTINELS, UNK_ID

BERT_RANDOM_SHARE = 0.1
# i.i.d. noise has no fixed length: room for this many standard deviations, as the released lengths
# leave (512 inputs: 192 targets there, 200 here); what is beyond is cut, 3 segments in 100,000.
LENGTH_DEVIATIONS = 4

Tokens = Int[np.ndarray, " raw"]
Sides = tuple[Int[np.ndarray, " inputs"], Int[np.ndarray, " targets"]]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of an objective's segments, all in tokens, EOS included.

    Attributes:
      raw: tokens of text in one segment, at most.
      inputs: tokens of the inputs, at most.
      targets: tokens of the targets, at most.
    """

    raw: int
    inputs: int
    targets: int


@dataclasses.dataclass(frozen=True)
class Noise:
    """What an objective may draw on.

    Attributes:
      density: the share of tokens that is noise.
      mean_span_length: tokens in a span of noise, of `span_corruption`.
      first_sentinel: id of the first sentinel; the others descend from it.
      num_pieces: ids below it are pieces.
    """

    density: float
    mean_span_length: float
    first_sentinel: int
    num_pieces: int


@dataclasses.dataclass(frozen=True)
class Objective:
    """One way to make examples of text.

    Attributes:
      name: its key in `OBJECTIVES`.
      lengths: `lengths(input_length, noise) -> Lengths | SpanLengths`; raises `InputError` where
        the sentinels do not suffice.
      make: `make(tokens, noise, rng) -> (inputs, targets)`, not padded.
    """

    name: str
    lengths: Callable[[int, Noise], Lengths | SpanLengths]
    make: Callable[[Tokens, Noise, np.random.Generator], Sides]


# --- lengths --------------------------------------------------------------------------------------
def _span_lengths(input_length: int, noise: Noise) -> SpanLengths:
    lengths = lengths_of_inputs(input_length, noise.density, noise.mean_span_length)
    _check_sentinels(input_length, lengths.noise_spans)
    return lengths


def _whole_lengths(input_length: int, noise: Noise) -> Lengths:
    """The targets are the whole segment."""
    del noise
    return Lengths(_raw(input_length), input_length, input_length)


def _prefix_lengths(input_length: int, noise: Noise) -> Lengths:
    del noise  # a prefix has 1 to raw - 1 tokens, and so has the rest
    return Lengths(_raw(input_length), input_length - 1, input_length - 1)


def _drop_lengths(input_length: int, noise: Noise) -> Lengths:
    raw, p = _raw(input_length), noise.density
    most = math.ceil(raw * p + LENGTH_DEVIATIONS * math.sqrt(raw * p * (1 - p)))
    return Lengths(raw, input_length, min(most, raw) + 1)


def _replace_lengths(input_length: int, noise: Noise) -> Lengths:
    """Targets hold the noise and a sentinel for each of its spans: m_i + m_i (1 - m_{i-1}).

    Its variance a token, for m_i of probability p, is v = p q (1 + 2 q) + s (1 - 2 p) - 3 s^2 with
    q = 1 - p and s = p q, the chance that a span begins; that of the spans alone is s - 3 s^2.
    """
    raw, p = _raw(input_length), noise.density
    start = p * (1 - p)
    variance = start * (1 + 2 * (1 - p)) + start * (1 - 2 * p) - 3 * start**2
    most = raw * (p + start) + LENGTH_DEVIATIONS * math.sqrt(raw * max(variance, 0.0))
    spans = raw * start + LENGTH_DEVIATIONS * math.sqrt(raw * max(start - 3 * start**2, 0.0))
    _check_sentinels(input_length, math.ceil(spans) + 1)
    return Lengths(raw, input_length, min(math.ceil(most), raw) + 2)


def _raw(input_length: int) -> int:
    if input_length < MIN_INPUT_LENGTH:
        raise InputError("text_t5 data", "input_length is too small", got=input_length,
                         expected=f">= {MIN_INPUT_LENGTH}")
    return input_length - 1


def _check_sentinels(input_length: int, spans: int) -> None:
    if spans > NUM_SENTINELS:
        raise InputError("text_t5 data", "input_length needs more sentinels than there are",
                         got=f"{input_length}, which has {spans} spans",
                         expected=f"at most {NUM_SENTINELS} spans",
                         hint="lower input_length or noise_density, or raise mean_span_length")


# --- examples -------------------------------------------------------------------------------------
def _span_corruption(tokens: Tokens, noise: Noise, rng: np.random.Generator) -> Sides:
    lengths = _raw_lengths(len(tokens), noise.density, noise.mean_span_length)
    return corrupt(tokens, noise_mask(lengths, rng), first_sentinel=noise.first_sentinel,
                   eos_id=EOS_ID)


_raw_lengths = functools.lru_cache(maxsize=4096)(lengths_of_raw)


def _iid_mask(tokens: Tokens, noise: Noise, rng: np.random.Generator) -> Bool[np.ndarray, " raw"]:
    return rng.random(len(tokens)) < noise.density


def _replace_spans(tokens: Tokens, noise: Noise, rng: np.random.Generator) -> Sides:
    mask = _iid_mask(tokens, noise, rng)
    starts = np.flatnonzero(np.diff(mask, prepend=False) & mask)
    # As good as never: what has no sentinel is kept. There may be a kept run more than spans.
    if len(starts) >= NUM_SENTINELS:
        mask[starts[NUM_SENTINELS - 1]:] = False
    return corrupt(tokens, mask, first_sentinel=noise.first_sentinel, eos_id=EOS_ID)


def _drop_tokens(tokens: Tokens, noise: Noise, rng: np.random.Generator) -> Sides:
    mask = _iid_mask(tokens, noise, rng)
    return _ended(tokens[~mask]), _ended(tokens[mask])


def _mass_style(tokens: Tokens, noise: Noise, rng: np.random.Generator) -> Sides:
    mask = _iid_mask(tokens, noise, rng)
    return _ended(np.where(mask, tokens.dtype.type(noise.first_sentinel), tokens)), _ended(tokens)


def _bert_style(tokens: Tokens, noise: Noise, rng: np.random.Generator) -> Sides:
    mask = _iid_mask(tokens, noise, rng)
    random = rng.random(len(tokens)) < BERT_RANDOM_SHARE
    pieces = rng.integers(UNK_ID + 1, noise.num_pieces, len(tokens), tokens.dtype)
    replaced = np.where(random, pieces, tokens.dtype.type(noise.first_sentinel))
    return _ended(np.where(mask, replaced, tokens)), _ended(tokens)


def _prefix_lm(tokens: Tokens, noise: Noise, rng: np.random.Generator) -> Sides:
    del noise
    cut = int(rng.integers(1, len(tokens)))
    return _ended(tokens[:cut]), _ended(tokens[cut:])


def _deshuffling(tokens: Tokens, noise: Noise, rng: np.random.Generator) -> Sides:
    del noise
    return _ended(rng.permutation(tokens)), _ended(tokens)


def _ended(tokens: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n_plus_1"]:
    row = np.empty(len(tokens) + 1, tokens.dtype)
    row[:-1] = tokens
    row[-1] = EOS_ID
    return row


OBJECTIVES: Mapping[str, Objective] = {objective.name: objective for objective in (
    Objective("span_corruption", _span_lengths, _span_corruption),
    Objective("iid_replace_spans", _replace_lengths, _replace_spans),
    Objective("iid_drop_tokens", _drop_lengths, _drop_tokens),
    Objective("mass_style", _whole_lengths, _mass_style),
    Objective("bert_style", _whole_lengths, _bert_style),
    Objective("prefix_lm", _prefix_lengths, _prefix_lm),
    Objective("deshuffling", _whole_lengths, _deshuffling),
)}
