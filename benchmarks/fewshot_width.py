"""Is one strength of the ridge neutral to the width of the features? 2^10 beside the chosen one.

    python benchmarks/fewshot_width.py [--json]

Features: scikit-learn's handwritten digits (half to draw shots from, half to test) through one
layer of random weights and ReLU, of growing width; and the golden file of the tests, whose features
hardly separate the classes: the hard case. For each: mean test accuracy over seeds with 2^10, with
the strength that the shots choose (`ridge.choose_l2`), with the strongest strength whose
leave-one-out error is within a standard error of the smallest (a rule that was tried and not
taken), and with the one strength of the grid that is best on these very test examples, which
nobody could know.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from deepnarrow.transfer.fewshot import probe
from deepnarrow.transfer.ridge import L2_GRID, draw_shots, leave_one_out_errors, whiten

WIDTHS, SHOTS, SEEDS = (32, 128, 512, 2048), (1, 2, 5, 10, 25), tuple(range(8))
GOLDEN = Path(__file__).parents[1] / "tests" / "core" / "golden_fewshot.npz"
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_features(width: int) -> Arrays:
    """Digits through random weights and ReLU."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits.target))
    x = (digits.data - digits.data.mean()) / digits.data.std()
    weights = rng.normal(size=(x.shape[1], width)) * np.sqrt(2 / x.shape[1])
    x, y = np.maximum(x @ weights, 0)[order], digits.target[order]
    half = len(y) // 2
    return x[:half], y[:half], x[half:], y[half:]


def hard_features(name: str) -> Arrays:
    """A weakly transferring ViT's features, or pixels, of shifted digits."""
    with np.load(GOLDEN) as golden:
        x, y, x_test, y_test = (golden[f"{name}/{k}"] for k in ("x", "y", "x_test", "y_test"))
    return x.astype(np.float32), y, x_test.astype(np.float32), y_test


def within_one_standard_error(arrays: Arrays, num_classes: int, shots: int, seed: int) -> int:
    """Index in the grid of the strongest strength whose error is hardly above the smallest."""
    x, y, _, _ = arrays
    rows = draw_shots(y, num_classes, shots, seed).ravel()
    problem = whiten(np.asarray(x[rows], np.float32), y[rows], num_classes)
    errors = leave_one_out_errors(problem, L2_GRID)
    best = errors.mean(axis=1).argmin()
    limit = errors[best].mean() + errors[best].std() / np.sqrt(errors.shape[1])
    return int(np.flatnonzero(errors.mean(axis=1) <= limit)[-1])


def compare(name: str, arrays: Arrays) -> list[dict[str, Any]]:
    """One row for each number of shots."""
    num_classes = int(arrays[1].max()) + 1
    result = probe(*arrays, num_classes=num_classes, shots=SHOTS, seeds=SEEDS,
                   l2=(*L2_GRID, "auto"))
    rows = []
    for k, shots in enumerate(SHOTS):
        means = result.accuracy[:-1, k].mean(axis=-1)
        tried = [within_one_standard_error(arrays, num_classes, shots, s) for s in SEEDS]
        rows.append({
            "features": name, "width": arrays[0].shape[1], "shots": shots,
            "fixed": float(means[L2_GRID.index(1024.0)]),
            "auto": float(result.accuracy[-1, k].mean()),
            "one_standard_error": float(np.mean(result.accuracy[tried, k, range(len(SEEDS))])),
            "best_on_test": float(means.max()),
            "auto_log2": float(np.median(np.log2(result.strength[-1, k]))),
            "best_log2": float(np.log2(L2_GRID[int(means.argmax())])),
        })
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for width in WIDTHS for row in compare("random", random_features(width))]
    rows += [row for name in ("vit", "pixels") for row in compare(name, hard_features(name))]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("features  width  shots   2^10    auto  (2^)    one s.e.  best on test (2^)")
    for r in rows:
        print(f"{r['features']:8} {r['width']:6} {r['shots']:6}  {r['fixed']:.3f}   "
              f"{r['auto']:.3f}  {r['auto_log2']:4.0f}     {r['one_standard_error']:.3f}     "
              f"{r['best_on_test']:.3f} {r['best_log2']:4.0f}")


if __name__ == "__main__":
    main()
