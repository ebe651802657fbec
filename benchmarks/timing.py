"""Timing side by side: contenders take turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Seconds = dict[str, list[float]]  # contender -> seconds a call, one value a round


def take_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1
) -> Seconds:
    """Calls every contender `calls` times a round, after one call that is not counted.

    The order is turned by one from round to round: nobody always comes after the same one.
    """
    names = list(contenders)
    for name in names:
        contenders[name]()
    seconds: Seconds = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            for _ in range(calls):
                contenders[name]()
            seconds[name].append((time.perf_counter() - began) / calls)
    return seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median over the rounds of theirs over ours."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
