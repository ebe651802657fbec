"""Examples-proportional mixing: one source out of the training sources of several tasks.

Raffel et al. 2020, section 3.5.2: of N tasks with e_1 ... e_N examples, task m is drawn with the
rate r_m = min(e_m, K) / sum over n of min(e_n, K), K being an artificial limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from deepnarrow.errors import InputError
from deepnarrow.modality import Example, Source

_PROBE_SEED = 0  # of the examples that are only looked at


def mixing_rates(sizes: Mapping[str, int], limit: int) -> dict[str, float]:
    """Returns the share of each task among the examples.

    >>> mixing_rates({"rte": 100, "mnli": 5000}, limit=300)
    {'rte': 0.25, 'mnli': 0.75}
    """
    total = sum(min(size, limit) for size in sizes.values())
    return {name: min(size, limit) / total for name, size in sizes.items()}


def mix(sources: Mapping[str, Source], limit: int) -> Source:
    """Returns the mixture of `sources`, of sum(min(e_m, limit)) examples.

    An epoch of it holds every task's share exactly: each example of a task within the limit once;
    of a larger one `limit` examples drawn with the stream's random numbers. So element i of the
    training stream depends on (seed, i) alone, and the order is the same on any number of hosts.

    Examples keep the fields that all tasks have: tasks of free text have no `label`.

    Raises:
      InputError: a source is empty, or a field differs in shape or dtype between two tasks.
    """
    names, parts = list(sources), list(sources.values())
    shares = [min(source.num_examples, limit) for source in parts]
    if min(shares) < 1:
        raise InputError(f"task {names[int(np.argmin(shares))]!r}", "has no training examples")
    fields = _common_fields(sources)
    ends = np.cumsum(shares)

    def load(index: int, rng: np.random.Generator) -> Example:
        part = int(np.searchsorted(ends, index, side="right"))
        source, within = parts[part], index - int(ends[part]) + shares[part]
        if source.num_examples > shares[part]:
            within = int(rng.integers(source.num_examples))
        example = source.load(within, rng)
        return {name: example[name] for name in fields}

    facts = [(name, source.content_hash) for name, source in sources.items()]
    digest = hashlib.sha256(repr(("mixture", limit, facts)).encode())
    return Source(num_examples=int(ends[-1]), load=load, content_hash=digest.hexdigest())


def _common_fields(sources: Mapping[str, Source]) -> list[str]:
    """The fields that the tasks share, which are alike in all of them."""
    first = {name: {field: np.asarray(value) for field, value in
                    source.load(0, np.random.default_rng(_PROBE_SEED)).items()}
             for name, source in sources.items()}
    model, *others = first
    fields = [field for field in first[model] if all(field in first[name] for name in others)]
    for name in others:
        for field in fields:
            have, want = _describe(first[name][field]), _describe(first[model][field])
            if have != want:
                raise InputError(
                    f"task {name!r}, field {field!r}", f"does not mix with task {model!r}",
                    got=have, expected=want, hint="mixture='single' trains a model for each task")
    return fields


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"
