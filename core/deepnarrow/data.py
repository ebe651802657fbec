"""Batches from a source, by Grain: shuffled and endless for training, each example once otherwise.

Element i of the training stream depends on (seed, i) alone: which example it is, and the random
numbers its loading draws. So the stream needs no state but its step, may start anywhere, and has
the same global order on any number of hosts: each loads its own rows of every global batch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from types import TracebackType

import grain
import numpy as np
from grain.experimental import index_shuffle

from deepnarrow.errors import InputError
from deepnarrow.modality import EXAMPLE_ID, EXAMPLE_MASK, Example, Source
from deepnarrow.protocol import MAX_SEED

NumpyBatch = dict[str, np.ndarray]

_EVAL_SEED = 2**32  # no training seed reaches it
_MAX_STEPS = 2**40
# Large sources are shuffled by a cipher, index by index and without memory. It walks until it falls
# below the size, which takes milliseconds an index where the size is far below 2^16: there a table.
_MAX_TABLE = 2**16
_SHUFFLE_ROUNDS = 4  # of the cipher; Grain's own shuffle takes 4


class TrainStream:
    """An endless iterator of training batches; its state is `step`.

    Every batch has the keys of the examples, stacked along a leading axis of `batch_size` (of as
    many as `rows` are), and `example_id` (int64, index in the source) and `example_mask` (float32,
    1).
    Each epoch runs through the whole source in an order of its own; a batch may span epochs.
    Threads load ahead; `close()` (or leaving the `with` block) ends them.

    Args:
      source: what to read.
      seed: of the order and of the examples' random numbers.
      batch_size: examples of a global batch, over all hosts.
      start_step: the stream begins where a fresh one would be after so many batches.
      rows: of every global batch, those that this host loads; None for all.

    Raises:
      InputError: the source is empty, or a number is out of range.
    """

    def __init__(
        self, source: Source, *, seed: int, batch_size: int, start_step: int = 0,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        _check_source(source, batch_size)
        check_seed(seed)
        if not 0 <= start_step < _MAX_STEPS:
            raise InputError("data", "start_step is out of range", got=start_step,
                             expected=f"0..{_MAX_STEPS - 1}")
        self._step = start_step
        own = _own_rows(rows, batch_size)

        def load(step: int) -> NumpyBatch:
            return _load_train(source, seed, [step * batch_size + row for row in own])

        steps = grain.MapDataset.range(start_step, _MAX_STEPS)
        self._batches = iter(steps.map(load).to_iter_dataset(_read_options()))

    @property
    def step(self) -> int:
        """Batches taken so far, those before `start_step` included."""
        return self._step

    def __iter__(self) -> TrainStream:
        return self

    def __next__(self) -> NumpyBatch:
        batch = next(self._batches)
        self._step += 1
        return batch

    def close(self) -> None:
        """Ends the loading threads."""
        self._batches.close()

    def __enter__(self) -> TrainStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def eval_batches(
    source: Source, batch_size: int, rows: Sequence[int] | np.ndarray | None = None
) -> Iterator[NumpyBatch]:
    """Yields each example once, in order, in batches of one static shape.

    The last batch is filled up by repeating the last example with `example_mask` 0.

    Args:
      source: what to read.
      batch_size: examples of a global batch, over all hosts.
      rows: of every global batch, those that this host loads; None for all.

    Raises:
      InputError: the source is empty or a number is out of range.
    """
    _check_source(source, batch_size)
    return _eval_batches(source, batch_size, _own_rows(rows, batch_size))


def example_ids(source: Source, seed: int, batch_size: int, step: int) -> np.ndarray:
    """Returns the ids of the global batch of `step`, counted from 1; nothing is loaded.

    Returns:
      [batch_size] int64: what `TrainStream` gives as `example_id` of its rows.
    """
    first = (step - 1) * batch_size
    return np.array([_shuffled_index(source.num_examples, seed, position)
                     for position in range(first, first + batch_size)], np.int64)


def _own_rows(rows: Sequence[int] | np.ndarray | None, batch_size: int) -> list[int]:
    own = list(range(batch_size)) if rows is None else [int(row) for row in rows]
    if not own or len(set(own)) < len(own) or not set(own) <= set(range(batch_size)):
        raise InputError("data", "rows are not rows of a batch", got=own,
                         expected=f"each once, in 0..{batch_size - 1}")
    return own


def _eval_batches(source: Source, batch_size: int, rows: Sequence[int]) -> Iterator[NumpyBatch]:
    last = source.num_examples - 1

    def load(start: int) -> NumpyBatch:
        wanted = [start + row for row in rows]
        indices = [min(i, last) for i in wanted]
        unique = list(dict.fromkeys(indices))
        examples = {i: source.load(i, rng) for i, rng in
                    zip(unique, _element_rngs(_EVAL_SEED, unique), strict=True)}
        batch = _stack([examples[i] for i in indices], indices)
        batch[EXAMPLE_MASK][:] = np.array(wanted) <= last
        return batch

    starts = grain.MapDataset.range(0, source.num_examples, batch_size)
    batches = iter(starts.map(load).to_iter_dataset(_read_options()))
    try:
        yield from batches
    finally:
        batches.close()


def check_seed(seed: int) -> None:
    """Raises `InputError` unless `seed` fits everywhere a seed goes."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError("data", "seed is out of range", got=seed, expected=f"0..{MAX_SEED}")


def _check_source(source: Source, batch_size: int) -> None:
    if source.num_examples < 1:
        raise InputError("data", "the source has no examples", got=source.num_examples,
                         expected=">= 1", hint="is the split empty, or its path wrong?")
    if batch_size < 1:
        raise InputError("data", "batch_size is out of range", got=batch_size, expected=">= 1")


def _read_options() -> grain.ReadOptions:
    # Buffered elements are whole batches, so a few are enough to stay ahead of the device.
    threads = min(4, os.cpu_count() or 1)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)


def _load_train(source: Source, seed: int, positions: Sequence[int]) -> NumpyBatch:
    """Loads the elements at `positions` of the global stream."""
    indices = [_shuffled_index(source.num_examples, seed, i) for i in positions]
    examples = [source.load(index, rng) for index, rng in
                zip(indices, _element_rngs(seed, positions), strict=True)]
    return _stack(examples, indices)


def _shuffled_index(num_examples: int, seed: int, position: int) -> int:
    """Returns which example stands at `position`; within an epoch this is a permutation."""
    epoch, index = divmod(position, num_examples)
    if num_examples <= _MAX_TABLE:
        return int(_epoch_table(num_examples, seed, epoch)[index])
    return index_shuffle(index, max_index=num_examples - 1, seed=_epoch_seed(seed, epoch),
                         rounds=_SHUFFLE_ROUNDS)


def _epoch_seed(seed: int, epoch: int) -> int:
    """Mixes both numbers: with `seed + epoch`, epoch 1 of seed 0 would be epoch 0 of seed 1."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@functools.lru_cache(maxsize=16)
def _epoch_table(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(_epoch_seed(seed, epoch)).permutation(num_examples)


def _element_rngs(seed: int, positions: Sequence[int]) -> Iterator[np.random.Generator]:
    """Yields each element's generator: counter-based, so that any is known without the others.

    It is one object, set anew: a new Philox asks the system for entropy though it has a key, which
    takes 24 microseconds against 2.
    """
    bits = np.random.Philox(key=np.zeros(2, np.uint64))
    state, rng = bits.state, np.random.Generator(bits)
    for position in positions:
        state["state"]["key"] = np.array([seed, position], np.uint64)
        bits.state = state
        yield rng


def _stack(examples: Sequence[Example], indices: Sequence[int]) -> NumpyBatch:
    batch: NumpyBatch = {}
    for name in examples[0]:
        try:
            batch[name] = np.stack([example[name] for example in examples])
        except (KeyError, ValueError) as error:
            raise InputError(f"data, field {name!r}", "examples do not stack to a batch",
                             got=error, expected="the same fields and shapes in every example",
                             ) from error
    batch[EXAMPLE_ID] = np.asarray(indices, np.int64)
    batch[EXAMPLE_MASK] = np.ones(len(examples), np.float32)
    return batch
