"""T5's span corruption, in NumPy (Raffel et al., JMLR 2020, sections 3.1.4 and 3.3.4).

A segment of tokens is cut into alternating runs, kept and noise, the first kept and the last noise.
The inputs hold the kept runs with one sentinel for each noise run; the targets hold, for each noise
run, its sentinel and its tokens. Both end with EOS. All lengths follow from the segment's length,
so that every example of a corpus has the same shapes and nothing is padded.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Int

from deepnarrow.errors import InputError

NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3.0
MIN_INPUT_LENGTH = 8


@dataclasses.dataclass(frozen=True)
class SpanLengths:
    """Lengths that belong together, all in tokens.

    Attributes:
      raw: tokens of text in one segment.
      inputs: kept tokens, sentinels and EOS.
      targets: noise tokens, sentinels and EOS.
      noise_tokens: tokens of the segment that are noise.
      noise_spans: runs of noise, each with a sentinel of its own.
    """

    raw: int
    inputs: int
    targets: int
    noise_tokens: int
    noise_spans: int


def lengths_of_raw(
    raw: int, noise_density: float = NOISE_DENSITY, mean_span_length: float = MEAN_SPAN_LENGTH
) -> SpanLengths:
    """Returns the lengths that corrupting `raw` tokens gives; counts are rounded half to even.

    At least one token is noise and at least one is kept; there are no more spans than kept tokens.

    >>> lengths_of_raw(568)
    SpanLengths(raw=568, inputs=512, targets=114, noise_tokens=85, noise_spans=28)
    """
    if raw < 2:
        raise InputError("span corruption", "the segment is too short", got=raw, expected=">= 2")
    noise_tokens = min(max(round(raw * noise_density), 1), raw - 1)
    noise_spans = min(max(round(noise_tokens / mean_span_length), 1), raw - noise_tokens)
    return SpanLengths(raw, raw - noise_tokens + noise_spans + 1, noise_tokens + noise_spans + 1,
                       noise_tokens, noise_spans)


@functools.cache
def lengths_of_inputs(
    inputs: int, noise_density: float = NOISE_DENSITY, mean_span_length: float = MEAN_SPAN_LENGTH
) -> SpanLengths:
    """Returns the lengths of the longest segment whose corrupted inputs fit into `inputs` tokens.

    For most values of `inputs` they fill it; where rounding skips a value, one position is padding
    and `SpanLengths.inputs` is smaller than asked for.

    Raises:
      InputError: fewer than 8 positions leave no room for a span.

    >>> lengths_of_inputs(512).raw, lengths_of_inputs(512).targets
    (568, 114)
    """
    if inputs < MIN_INPUT_LENGTH:
        raise InputError("span corruption", "input_length is too small", got=inputs,
                         expected=f">= {MIN_INPUT_LENGTH}")
    raw = 2
    while lengths_of_raw(raw + 1, noise_density, mean_span_length).inputs <= inputs:
        raw += 1
    lengths = lengths_of_raw(raw, noise_density, mean_span_length)
    if noise_density == 0.5 and lengths.targets > lengths.inputs:
        # As the released code has it: half noise gives inputs and targets of equal length.
        return lengths_of_raw(raw - 1, noise_density, mean_span_length)
    return lengths


def random_cuts(
    num_items: int, num_segments: int, rng: np.random.Generator
) -> Int[np.ndarray, " num_segments"]:
    """Cuts `num_items` into `num_segments` runs of at least one item, every way equally likely.

    Returns:
      Where each run ends; the last is `num_items`.
    """
    ends = np.empty(num_segments, np.int64)
    ends[:-1] = rng.choice(num_items - 1, num_segments - 1, replace=False)
    ends[-1] = num_items - 1
    ends.sort()
    ends += 1
    return ends


def noise_mask(lengths: SpanLengths, rng: np.random.Generator) -> Bool[np.ndarray, " raw"]:
    """Returns a mask that is True at noise: `noise_spans` runs, the first run of all being kept."""
    kept_ends = random_cuts(lengths.raw - lengths.noise_tokens, lengths.noise_spans, rng)
    noise_ends = random_cuts(lengths.noise_tokens, lengths.noise_spans, rng)
    flips = np.zeros(lengths.raw + 1, np.bool_)
    span_ends = kept_ends + noise_ends
    flips[span_ends] = True
    kept_ends[1:] += noise_ends[:-1]  # now where each span of noise begins
    flips[kept_ends] = True
    return np.logical_xor.accumulate(flips)[:-1]  # [raw + 1] -> [raw]


def corrupt(
    tokens: Int[np.ndarray, " raw"], mask: Bool[np.ndarray, " raw"], *, first_sentinel: int,
    eos_id: int,
) -> tuple[Int[np.ndarray, " inputs"], Int[np.ndarray, " targets"]]:
    """Returns inputs and targets; sentinels descend from `first_sentinel`.

    As the released code: in the inputs a sentinel stands for each run of noise, in the targets for
    each run of kept tokens. Where text begins with kept tokens and ends with noise, as `noise_mask`
    has it, every run of noise follows its own sentinel in the targets.

    >>> text, mask = np.array([11, 12, 13, 14, 15]), np.array([0, 1, 1, 0, 1], bool)
    >>> [side.tolist() for side in corrupt(text, mask, first_sentinel=99, eos_id=1)]
    [[11, 99, 14, 98, 1], [99, 12, 13, 98, 15, 1]]
    """
    row, removed = np.empty(len(tokens) + 1, tokens.dtype), np.empty(len(tokens) + 1, np.bool_)
    row[:-1], removed[:-1] = tokens, mask  # [raw] -> [raw + 1]
    row[-1], removed[-1] = eos_id, False
    inputs = _replace_runs(row, removed, first_sentinel)
    np.logical_not(mask, out=removed[:-1])
    return inputs, _replace_runs(row, removed, first_sentinel)


def _replace_runs(
    row: Int[np.ndarray, " n"], removed: Bool[np.ndarray, " n"], first_sentinel: int
) -> Int[np.ndarray, " m"]:
    """Replaces each run of `removed` tokens by a sentinel; [n] -> [n - removed + runs]."""
    starts = removed.copy()
    np.greater(removed[1:], removed[:-1], out=starts[1:])
    (where,) = starts.nonzero()
    replaced = row.copy()
    replaced[where] = np.arange(first_sentinel, first_sentinel - len(where), -1)
    return replaced[starts | ~removed]
