"""Data: an example is a function of its index, and no split shares one with another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from deepnarrow.data import TrainStream
from deepnarrow.modality import Source
from deepnarrow.testing.subject import Subject, expect, load, spread

ROWS, LATER = 8, 3  # of a batch; the step that a resumed stream begins at


def check_loading_is_a_function(subject: Subject) -> None:
    """An example depends on its index and the generator it gets, and on nothing before it."""
    for name, source in _sources(subject).items():
        indices = [0, min(1, source.num_examples - 1), source.num_examples - 1]
        forwards = [load(source, i) for i in indices]
        backwards = [load(source, i) for i in reversed(indices)][::-1]
        for index, one, other in zip(indices, forwards, backwards, strict=True):
            same = one.keys() == other.keys() and all(
                np.array_equal(one[k], other[k]) for k in one)
            expect(same, f"{name}: example {index} is another one when loaded again; draw only "
                   "from the `rng` that load gets, and keep no state between calls")


def check_examples_have_one_form(subject: Subject) -> None:
    """All examples of a source have the same arrays, of the same shapes and types."""
    for name, source in _sources(subject).items():
        forms = {index: {k: (np.shape(v), np.asarray(v).dtype) for k, v in load(
            source, index).items()} for index in _spread(source)}
        first = forms[0]
        for index, form in forms.items():
            expect(form == first, f"{name}: example {index} has {form}, example 0 {first}; pad or "
                   "cut to one shape")
        objects = [key for key, (_, dtype) in first.items() if dtype.hasobject]
        expect(not objects, f"{name}: {objects} hold objects; load must return numbers")


def check_content_hash(subject: Subject) -> None:
    """Made again, a source has the same hash; training and validation have different ones."""
    again = subject.modality.upstream(subject.data_options, subject.modality.options)
    for split in ("train", "validation"):
        first, second = getattr(subject.upstream, split), getattr(again, split)
        expect(first.content_hash == second.content_hash, f"upstream {split} has another "
               "content_hash when made again; hash the data's bytes and options, nothing else")
    expect(again.train.content_hash != again.validation.content_hash,
           "upstream's training and validation splits have one content_hash; hash the examples")


def check_splits_share_no_example(subject: Subject) -> None:
    """No example of upstream's validation or of a task's test split is in the training split."""
    upstream = subject.upstream
    shared = _shared(upstream.train, upstream.validation)
    expect(not shared, f"upstream: example {shared[:1]} of validation is in the training split; "
           "remove repeats, and split by a hash of the content")
    for name, task in subject.tasks.items():
        if task.num_classes is None:
            continue
        shared = _shared(task.examples("train"), task.examples("test"))
        expect(not shared, f"task {name}: example {shared[:1]} of the test split is in the "
               "training split; remove repeats, and split by a hash of the content")


def check_labels(subject: Subject) -> None:
    """`labels()` says what the examples say, and every class is there to draw shots from."""
    for name, task in subject.tasks.items():
        if task.num_classes is None:
            continue
        source = task.examples("train")
        labels = None if source.labels is None else np.asarray(source.labels())
        expect(labels is not None and labels.shape == (source.num_examples,),
               f"task {name}: the source's labels are missing or too few; give `labels`")
        assert labels is not None
        for index in _spread(source):
            expect(int(load(source, index)["label"]) == int(labels[index]), f"task {name}: example "
                   f"{index} has another label than labels() says; keep them in one order")
        classes = set(np.unique(labels).tolist())
        expect(classes == set(range(task.num_classes)), f"task {name}: labels are "
               f"{sorted(classes)[:5]}, num_classes is {task.num_classes}; number them from 0")


def _sources(subject: Subject) -> Mapping[str, Source]:
    found = {"upstream train": subject.upstream.train,
             "upstream validation": subject.upstream.validation}
    for (name, task), split in itertools.product(subject.tasks.items(), ("train", "test")):
        found[f"task {name} {split}"] = task.examples(split)
    return found


def _spread(source: Source, count: int = 16) -> list[int]:
    """Up to `count` indices over the whole source, the first and the last among them."""
    return sorted(set(spread(source, count)))


def _shared(train: Source, held_out: Source) -> list[int]:
    """Indices of `held_out` whose examples are in `train` too, of some hundreds of each.

    All are loaded with one and the same generator, so that what is drawn of equal content is equal.
    """
    def digest(source: Source, index: int) -> tuple[tuple[str, bytes], ...]:
        return _digest(source.load(index, np.random.default_rng(0)))

    seen = {digest(train, i) for i in _spread(train, 512)}
    return [i for i in _spread(held_out, 512) if digest(held_out, i) in seen]


def _digest(example: Mapping[str, Any]) -> tuple[tuple[str, bytes], ...]:
    return tuple((k, np.asarray(v).tobytes()) for k, v in sorted(example.items()) if k != "label")


def check_stream_is_one_for_all_hosts(subject: Subject) -> None:
    """A batch is the same whoever loads which rows of it, and where the stream began."""
    for name, source in (("train", subject.upstream.train),
                         ("validation", subject.upstream.validation)):
        with TrainStream(source, seed=0, batch_size=ROWS) as stream:
            whole = [next(stream) for _ in range(LATER + 1)][-1]
        parts = []
        for rows in (range(1, ROWS, 2), range(0, ROWS, 2)):
            with TrainStream(source, seed=0, batch_size=ROWS, start_step=LATER,
                             rows=rows) as stream:
                parts.append(next(stream))
        for key, values in whole.items():
            # The hosts' rows, dealt back: [rows, ...]
            joined = np.stack([parts[1][key], parts[0][key]], axis=1).reshape(values.shape)
            expect(np.array_equal(values, joined), f"upstream {name}: {key!r} of a batch differs "
                   "when two hosts load half of its rows each; load must return new arrays that "
                   "depend on index and rng only, not on what else this process loads")

