"""Do 90% intervals cover the truth? Synthetic studies with a planted one, at few seeds and few
shapes.

    python benchmarks/interval_coverage.py --studies 500 --json coverage.json

Every study draws true means of `shapes` shapes (half of them a reference family on a line over log
cost, half deep-narrow ones between them; each with an effect of its own), adds Gaussian noise of
`seeds` training seeds, and calls the library as the commands do. The truth of each number is the
same function of the true means. Two processes, minutes; with `--json`, what is done is kept and a
second call goes on. Nothing here is tuned to the outcome: noise and effects are fixed below, and
every figure is printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from deepnarrow import files
from deepnarrow.bootstrap import Interval, contrasts
from deepnarrow.claims import front_cost, gains, savings
from deepnarrow.compare import (
    MARGIN,
    MIN_SHARED,
    SAVING,
    judge,
    kendall_tau,
    kendall_variance,
    rank_interval,
)
from deepnarrow.lawforms import POWER
from deepnarrow.laws import fit
from deepnarrow.operators import Family, curve_weights, effect_contrasts, family_of
from deepnarrow.pareto import fronts, margin_of
from deepnarrow.table import Table

SHAPES = (4, 6, 12, 21)  # of the shipped configs with more than two; one modality's
SEEDS = (2, 3, 5)
BATCH = 50  # studies a process takes at a time
SLOPE = 0.04  # of quality over log2 cost
SHAPE_SD, SEED_SD, DEEP = 0.01, 0.006, 0.02  # effects of shapes, of seeds; of being deep-narrow
EXPONENT, LOG_SD = -0.1, 0.01


def grid(shapes: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Costs, names, and which are deep-narrow; the two families alternate over 1.5 decades."""
    costs = 1e6 * 10 ** np.linspace(0, 1.5, shapes)
    deep = np.arange(shapes) % 2 == 1
    return costs, [f"p{i // 2}-nl{i}" if one else f"p{i // 2}" for i, one in enumerate(deep)], deep


def table(means: np.ndarray, seeds: int, costs: np.ndarray, names: list[str], deep: np.ndarray,
          sd: float, rng: np.random.Generator, domain: str = "") -> Table:
    """One row a shape and seed: quality `means` plus noise."""
    size = len(means)
    rows = np.repeat(np.arange(size), seeds)
    values = means[rows] + sd * rng.standard_normal(len(rows))

    def texts(found: list[str]) -> np.ndarray:
        return np.array([*found, None], dtype=object)[:-1]

    return Table(
        {"params": costs[rows], "quality": values, "depth": np.where(deep, 12.0, 2.0)[rows],
         "width": np.where(deep, 64.0, 128.0)[rows]},
        texts([domain] * len(rows)), texts([names[i] for i in rows]),
        texts([str(i) for _ in range(size) for i in range(seeds)]), np.ones(len(rows), dtype=bool))


def covers(interval: Interval | None, truth: float) -> bool:
    """True where the truth is inside; a bound that is None is open."""
    assert interval is not None
    low = -math.inf if interval.low is None else interval.low
    high = math.inf if interval.high is None else interval.high
    return low - 1e-12 <= truth <= high + 1e-12


def study(shapes: int, seeds: int, number: int) -> Iterator[tuple[str, float]]:
    """Yields (what, 1 if covered or true else 0) of one synthetic study."""
    rng = np.random.default_rng([shapes, seeds, number])
    costs, names, deep = grid(shapes)
    truth = 0.5 + SLOPE * np.log2(costs / costs[0]) + DEEP * deep + SHAPE_SD * rng.standard_normal(
        shapes)
    rows = table(truth, seeds, costs, names, deep, SEED_SD, rng)
    yield from _slopes(shapes, seeds, rng)
    yield from _savings(rows, truth)
    yield from _effects(rows, truth)
    front, = fronts(rows, ["params"], [("quality", "max")], draws=2000)
    margins = margin_of(truth[None], costs)[0]
    for point in front.points:
        i = names.index(point.name)
        if point.margin is not None:
            yield "membership: margin", covers(point.margin, float(margins[i]))
        assert point.membership is not None
        yield f"on the true front, membership {_bin(point.membership)}", float(margins[i] >= 0)
    yield from _null(shapes, seeds, rng)
    if shapes >= MIN_SHARED:
        yield from _tau(shapes, rng)


def _tau(shapes: int, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """Rank correlation of operators that two domains rank alike to a degree, normal or mixed."""
    for tau in (0.0, 0.5, 0.9):
        rho = math.sin(math.pi / 2 * tau)  # of normal pairs with that tau
        one, other = rng.standard_normal((2, shapes))
        other = rho * one + math.sqrt(1 - rho ** 2) * other
        found = float(kendall_tau(one, other))
        low, high = rank_interval(found, kendall_variance(shapes), np.array([found]))
        yield f"tau, {tau:g} planted", low <= tau <= high


def _bin(share: float) -> str:
    edges = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    place = min(int(np.searchsorted(edges, share, side="right")) - 1, len(edges) - 2)
    return f"{edges[place]:.2f}-{edges[place + 1]:.2f}"


def _slopes(shapes: int, seeds: int, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    costs, names, deep = grid(shapes)
    rows = table(EXPONENT * np.log(costs) + 3, seeds, costs, names, deep, LOG_SD, rng)
    rows.columns["quality"][:] = np.exp(rows.columns["quality"])
    law = fit(rows, POWER, {"x": "params"}, "quality", bootstrap=100)
    yield "slope (power)", covers(law.params["exponent"], EXPONENT)


def _savings(rows: Table, truth: np.ndarray) -> Iterator[tuple[str, float]]:
    family = family_of(rows, "", "params", "quality", "max")
    assert list(family.names) == list(dict.fromkeys(rows.name))
    for found in savings(family):
        i = family.names.index(found.baseline)
        rest = np.delete(np.arange(len(truth)), i)
        cost = front_cost(truth[None, rest], family.cost[rest], truth[None, i])[0]
        yield "saving at equal quality", covers(found.saving, float(1 - cost / family.cost[i]))


def _effects(rows: Table, truth: np.ndarray) -> Iterator[tuple[str, float]]:
    family = family_of(rows, "", "params", "quality", "max")
    made = effect_contrasts(family)
    assert family.noise is not None
    for interval, row in zip(contrasts(family.noise, made.weights), made.weights, strict=True):
        yield "effect of an operator", covers(interval, float(row @ truth))
    for gain in gains(family):
        if gain.per_doubling is not None:
            yield "gain per doubling", covers(gain.per_doubling, _gain(family, gain.shapes, truth))


def _gain(family: Family, shapes: tuple[str, ...], truth: np.ndarray) -> float:
    top = bottom = 0.0
    for name in shapes:
        i, base = family.names.index(name), family.names.index(name.split("-")[0])
        doublings = math.log2(family.cost[i] / family.cost[base])
        top += doublings * (truth[i] - truth[base])
        bottom += doublings ** 2
    return top / bottom


def _null(shapes: int, seeds: int, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """Two domains where every deep-narrow shape is exactly the margin worse: none may hold."""
    costs, names, deep = grid(shapes)
    base = 0.5 + SLOPE * np.log2(costs / costs[0])
    families = {}
    for domain in ("one", "two"):
        exact = table(base, 2, costs, names, deep, 1e-9, rng)
        probe = family_of(exact, domain, "params", "quality", "max")
        truth = base.copy()
        for i in np.flatnonzero(deep):
            weights = curve_weights(probe, float(costs[i]) / (1 - SAVING))
            if weights is not None:
                truth[i] = float(np.where(deep, 0, weights) @ base) - MARGIN
        families[domain] = family_of(table(truth, seeds, costs, names, deep, SEED_SD, rng), domain,
                                     "params", "quality", "max")
    tests, verdicts, _ = judge(families, MARGIN, SAVING)
    assert tests
    yield "false holds, any domain", float("holds" in (verdicts["one"], verdicts["two"]))
    yield "false holds, one domain", float(verdicts["one"] == "holds")
    yield "false holds, jointly", float(verdicts["joint"] == "holds")


def cell(arguments: tuple[int, int, range]) -> dict[str, tuple[float, int]]:
    """Sums and counts of some studies of one cell."""
    shapes, seeds, numbers = arguments
    found: dict[str, list[float]] = {}
    for number in numbers:
        for what, value in study(shapes, seeds, number):
            found.setdefault(what, []).append(float(value))
    return {what: (sum(values), len(values)) for what, values in found.items()}


def main() -> None:
    """Runs the cells that are not done and prints one table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first study, its seed: "
                        "figures are reported of studies that nothing was chosen with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    last = options.first + options.studies
    done: dict[str, dict[str, tuple[float, int]]] = {}
    if options.json and options.json.exists():
        done = json.loads(options.json.read_text())
    parts = {f"{k} shapes, {n} seeds, studies {first}+": (
        k, n, range(first, min(first + BATCH, last)))
        for k, n in itertools.product(SHAPES, SEEDS) for first in range(options.first, last, BATCH)}
    todo = [name for name in parts if name not in done]
    with ProcessPoolExecutor(2) as pool:
        for name, made in zip(todo, pool.map(cell, [parts[one] for one in todo]), strict=True):
            done[name] = made
            if options.json:
                files.write_json(options.json, done)
    show(done)


def show(done: dict[str, dict[str, tuple[float, int]]]) -> None:
    """Prints shares with the number of intervals, a column a cell."""
    columns: dict[str, dict[str, tuple[float, int]]] = {}
    for name, made in done.items():
        column = columns.setdefault(name.partition(", studies")[0], {})
        for what, (inside, count) in made.items():
            before = column.get(what, (0.0, 0))
            column[what] = (before[0] + inside, before[1] + count)
    print("| what | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for what in sorted({what for one in columns.values() for what in one}):
        shown = [one.get(what) for one in columns.values()]
        print(f"| {what} | " + " | ".join(
            "–" if one is None else f"{one[0] / one[1]:.3f} ({one[1]})" for one in shown) + " |")


if __name__ == "__main__":
    main()
