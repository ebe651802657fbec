"""Few-shot probes of one data set: ours beside big_vision's evaluator, and beside the matmul alone.

    PYTHONPATH=/path/to/big_vision python -m benchmarks.fewshot [--json] [--examples 50000]

All numbers of shots, seeds and strengths of the ridge, from given features. Runs alternate, and
medians and the medians of each round's ratios are printed. Without a checkout of big_vision its
column is left out. big_vision's evaluator is timed twice: as it is called
(`compute_fewshot_metrics` once a strength and seed), and in the order that its comments foresee
(`functions`: one decomposition for all strengths), which is the faster and the one to compare with.
`matmul` is the product of the test features with the weights of all probes, in chunks, by NumPy: no
evaluation that computes all scores can be faster on the same BLAS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.bigvision_fewshot import Arrays, accuracies, import_evaluator
from deepnarrow.transfer.fewshot import MAX_SCORES, probe

SHOTS, SEEDS, L2 = (1, 5, 10, 25), (0, 1, 2, 3, 4), (64.0, 1024.0, 16384.0)
SEPARATION = 0.15  # of the classes' centres, in standard deviations of the noise


def make_arrays(num_classes: int, d: int, n_train: int, n_test: int) -> Arrays:
    """Gaussian classes in float32."""
    rng = np.random.default_rng(0)
    centers = SEPARATION * rng.normal(size=(num_classes, d)).astype(np.float32)

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(num_classes, size=n)
        return centers[y] + rng.normal(size=(n, d)).astype(np.float32), y

    return *split(n_train), *split(n_test)


def ours(arrays: Arrays, num_classes: int) -> np.ndarray:
    """Accuracies [l2, shots, seeds]."""
    return probe(*arrays, num_classes=num_classes, shots=SHOTS, seeds=SEEDS, l2=L2).accuracy


def ours_auto(arrays: Arrays, num_classes: int) -> np.ndarray:
    """The same with 2^10 and the chosen strength, as a study probes."""
    return probe(*arrays, num_classes=num_classes, shots=SHOTS, seeds=SEEDS,
                 l2=(1024.0, "auto")).accuracy


def theirs_functions(arrays: Arrays, num_classes: int) -> np.ndarray:
    """big_vision's two jitted functions, the decomposition once for all strengths."""
    evaluator = import_evaluator()
    x, y, x_test, y_test = arrays
    found = np.empty((len(L2), len(SHOTS), len(SEEDS)))
    x_test, y_test = evaluator.u.put_cpu((x_test, y_test))
    for k, seed in enumerate(SEEDS):
        rng = np.random.default_rng(seed)
        classes = [rng.permutation(np.where(y == c)[0]) for c in range(num_classes)]
        for j, shots in enumerate(SHOTS):
            rows = np.concatenate([indices[:shots] for indices in classes])
            cache = evaluator._precompute_cache(*evaluator.u.put_cpu((x[rows], y[rows])),
                                                num_classes)
            for i, l2 in enumerate(L2):
                found[i, j, k] = evaluator._eig_fewshot_acc_fn(cache, x_test, y_test,
                                                               evaluator.u.put_cpu(l2))
    return found


def matmul(arrays: Arrays, num_classes: int) -> None:
    """The floor: all scores of all test examples, nothing else."""
    x = arrays[2]
    columns = len(L2) * len(SHOTS) * len(SEEDS) * num_classes
    weights = np.ones((x.shape[1], columns), np.float32)
    rows = max(1, MAX_SCORES // columns)
    scores = np.empty((rows, columns), np.float32)
    for start in range(0, len(x), rows):
        chunk = x[start : start + rows]
        np.matmul(chunk, weights, out=scores[: len(chunk)])


def measure(
    functions: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, Any]]:
    """Wall and CPU seconds, in alternating runs after one that is not counted; results."""
    results = {name: function() for name, function in functions.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds, results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("examples", 50_000), ("width", 768), ("classes", 100), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--exact", action="store_true",
                        help="run big_vision's once more in float64, for its accuracies")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    c = options.classes
    arrays = make_arrays(c, options.width, 100 * c, options.examples)
    functions: dict[str, Callable[[], Any]] = {
        "matmul": lambda: matmul(arrays, c), "ours": lambda: ours(arrays, c),
        "ours_l2_auto": lambda: ours_auto(arrays, c)}
    try:
        import_evaluator()
        functions["big_vision_functions"] = lambda: theirs_functions(arrays, c)
        functions["big_vision"] = lambda: accuracies(arrays, c, SHOTS, SEEDS, L2)
    except ImportError as error:
        print(f"big_vision is left out: {error}", file=sys.stderr)
    seconds, results = measure(functions, options.rounds)
    document: dict[str, Any] = {}
    for i, clock in enumerate(("wall", "cpu")):
        taken = {name: [times[i] for times in runs] for name, runs in seconds.items()}
        document[f"{clock}_seconds"] = {n: statistics.median(t) for n, t in taken.items()}
        document[f"{clock}_ratio_to_ours"] = {
            n: statistics.median(a / b for a, b in zip(t, taken["ours"], strict=True))
            for n, t in taken.items()}
    if options.exact and "big_vision" in results:
        results["big_vision in float64"] = accuracies(arrays, c, SHOTS, SEEDS, L2, precision=64)
    document["decided_otherwise"] = {
        name: _differences(results["ours"], found, options.examples)
        for name, found in results.items() if name.startswith("big_vision")}
    if options.json:
        print(json.dumps(document, indent=2))
        return
    for name in seconds:
        print(f"{name:22}" + "".join(
            f"{document[f'{clock}_seconds'][name]:8.2f} s {clock} "
            f"({document[f'{clock}_ratio_to_ours'][name]:.2f} x ours)"
            for clock in ("wall", "cpu")))
    for name, found in document["decided_otherwise"].items():
        print(f"against {name}: accuracies differ in {found['cells']} of {results['ours'].size} "
              f"cells, by at most {found['examples']} of {options.examples} examples")


def _differences(ours: np.ndarray, theirs: np.ndarray, examples: int) -> dict[str, int]:
    """Cells whose accuracy differs, and by how many examples at most."""
    counts = np.abs(np.rint(examples * ours) - np.rint(examples * theirs))
    return {"cells": int(np.count_nonzero(counts)), "examples": int(counts.max())}


if __name__ == "__main__":
    main()
