"""Sums of metrics over steps, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import metrics as clu_metrics

Metrics = Mapping[str, tuple[Any, Any]]  # name -> (sum, weight), each a float32 scalar


class Meter:
    """Sums metrics over steps on the host, in float64; converting waits until it is asked for."""

    def __init__(self, totals: Mapping[str, tuple[float, float]] | None = None):
        self._totals = {name: _average(*pair) for name, pair in (totals or {}).items()}
        self._pending: list[Metrics] = []

    def add(self, metrics: Metrics) -> None:
        """Takes one step's metrics without waiting for them."""
        self._pending.append(metrics)

    def collect(self, leave: int = 0) -> None:
        """Adds up all but the last `leave` steps' metrics; waits for the device to finish them."""
        ready = self._pending[: len(self._pending) - leave]
        self._pending = self._pending[len(ready):]
        for metrics in jax.device_get(ready):
            for name, pair in metrics.items():
                new = _average(*pair)
                old = self._totals.get(name)
                self._totals[name] = new if old is None else old.merge(new)

    def totals(self) -> dict[str, tuple[float, float]]:
        """Returns (sum, weight) by name."""
        self.collect()
        return {name: (float(a.total), float(a.count)) for name, a in self._totals.items()}

    def means(self) -> dict[str, float]:
        """Returns the weighted mean of each metric; NaN where nothing was counted."""
        self.collect()
        return {name: float(a.compute()) if a.count else float("nan")
                for name, a in self._totals.items()}


def _average(total: Any, count: Any) -> clu_metrics.Average:
    # float64 on the host: float32 sums drift over the batches of a large source.
    make: Any = clu_metrics.Average  # a dataclass, which type checkers cannot see
    return make(total=np.float64(total), count=np.float64(count))
