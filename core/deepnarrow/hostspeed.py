"""How fast this host multiplies matrices: the limit that time estimates start from."""

from __future__ import annotations

import time


def measure_matmul_flops(size: int = 768, repeats: int = 5) -> float:
    """Returns float32 FLOP/s of a square NumPy matmul (2 a multiply-add), best of `repeats`."""
    import numpy as np

    a = np.ones((size, size), np.float32)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        np.matmul(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
