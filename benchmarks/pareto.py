"""Fronts of many points: ours beside moocore and paretoset, interleaved in one run.

    pip install paretoset moocore
    python -m benchmarks.pareto [--json]

Medians of `--repeats` rounds, CPU seconds; in a round every program sees the same points, one after
the other. paretoset (numba) compiles before the first round. Where a program is not installed its
column is empty. All must mark the same points. paretoset compares every point with the front so
far: on points that are all on the front it would take hours, so it is left out there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from deepnarrow.dominance import front_mask

Program = Callable[[np.ndarray], np.ndarray]


def programs() -> dict[str, Program]:
    """Each: [points, axes] -> [points], less is better on every axis."""
    found: dict[str, Program] = {
        "deepnarrow": lambda values: front_mask(values, ["min"] * values.shape[1])}
    if importlib.util.find_spec("moocore"):
        import moocore

        found["moocore"] = lambda values: moocore.is_nondominated(values, keep_weakly=True)
    if importlib.util.find_spec("paretoset"):
        from paretoset import paretoset

        found["paretoset"] = lambda values: np.asarray(paretoset(
            values, sense=["min"] * values.shape[1], distinct=False))
    return found


def cases(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random, tied and adversarial sets."""
    sphere = np.abs(rng.standard_normal((100_000, 4)))
    line = np.sort(rng.random(1_000_000))
    return {
        "1,000,000 x 2, random": rng.random((1_000_000, 2)),
        "1,000,000 x 2, ties": rng.integers(0, 1000, (1_000_000, 2)).astype(float),
        "1,000,000 x 2, all on the front": np.column_stack([line, -line]),
        "100,000 x 4, random": rng.random((100_000, 4)),
        "100,000 x 4, ties": rng.integers(0, 30, (100_000, 4)).astype(float),
        "100,000 x 4, all on the front": sphere / np.linalg.norm(sphere, axis=1, keepdims=True),
    }


def measure(
    known: dict[str, Program], values: np.ndarray, skip: str, repeats: int
) -> dict[str, Any]:
    """CPU seconds of each program, in turns; all must mark the same points."""
    seconds: dict[str, list[float]] = {one: [] for one in known if one != skip}
    masks = {}
    for _ in range(repeats):
        for one in seconds:
            start = time.process_time()
            masks[one] = known[one](values)
            seconds[one].append(time.process_time() - start)
    for one, mask in masks.items():
        assert np.array_equal(mask, masks["deepnarrow"]), f"{one} differs"
    return {"on_front": int(masks["deepnarrow"].sum()),
            "seconds": {one: statistics.median(times) for one, times in seconds.items()}}


def main() -> None:
    """Prints one row a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    known = programs()
    for program in known.values():
        program(np.random.default_rng(1).random((1000, 2)))
        program(np.random.default_rng(1).random((1000, 4)))
    rows = []
    for name, values in cases(np.random.default_rng(0)).items():
        skip = "paretoset" if "all on" in name else ""
        rows.append({"case": name, **measure(known, values, skip, options.repeats)})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| points x axes | on the front | " + " | ".join(f"{name}, s" for name in known) + " |")
    print("|---|---|" + "---|" * len(known))
    for row in rows:
        print(f"| {row['case']} | {row['on_front']:,} | " + " | ".join(
            f"{row['seconds'][name]:.3f}" if name in row["seconds"] else "–" for name in known)
            + " |")


if __name__ == "__main__":
    main()
