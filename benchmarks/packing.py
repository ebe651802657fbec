"""Do seeds train faster packed? Four seeds in one program by `jax.vmap`, or one after another.

    python -m benchmarks.packing [--rounds 7] [--json]

The quickstart's shapes with their batches and optimisers; the training step alone, every seed with
a batch of its own. The step is pure, so packing it is one `jax.vmap`; nothing of the framework does
it, because of what this measures (docs/benchmarks.md). Rounds take turns. Needs nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.quickstart_cells import QuickstartCell, quickstart_cell, shapes
from deepnarrow.data import eval_batches
from deepnarrow.optim import optimizer_at
from deepnarrow.step import train_step

SEEDS, STEPS, CALLS = 4, 2**20, 3


def one_by_one(cell: QuickstartCell) -> Callable[[], None]:
    """A step of each seed, one after another."""
    program = cell.program(STEPS)
    batch = next(eval_batches(cell.source, cell.batch_size))
    states = [program.init(np.int32(seed)) for seed in range(SEEDS)]

    def run() -> None:
        for seed in range(SEEDS):
            states[seed], _ = program.step(states[seed], batch, program.args(seed))
        jax.block_until_ready(states)

    return run


def packed(cell: QuickstartCell) -> Callable[[], None]:
    """A step of all seeds at once."""
    axes = cell.model.param_axes
    step = functools.partial(
        train_step, model=cell.model,
        optimizer=lambda peak, steps: optimizer_at(cell.optimizer, peak, steps, axes),
        trained=jax.tree.map(lambda _: True, axes, is_leaf=lambda x: isinstance(x, tuple)),
        ema_decay=0.0)
    together = jax.jit(jax.vmap(step), donate_argnums=0)
    program = cell.program(STEPS)
    args = jax.tree.map(lambda *x: np.stack(x), *map(program.args, range(SEEDS)))
    state = jax.jit(jax.vmap(program.init))(args.seed)
    batch = {name: np.stack([x] * SEEDS) for name, x in
             next(eval_batches(cell.source, cell.batch_size)).items()}

    def run() -> None:
        nonlocal state
        state, _ = together(state, batch, args)
        jax.block_until_ready(state)

    return run


def measure_shape(modality: str, shape: str, rounds: int) -> dict[str, Any]:
    """Seconds of four updates either way, and how many times as fast packing is."""
    cell = quickstart_cell(modality, shape)
    sides = {"one_by_one": one_by_one(cell), "packed": packed(cell)}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(rounds + 1):  # the first compiles
        for name, run in sides.items():
            began = time.perf_counter(), time.process_time()
            for _ in range(CALLS):
                run()
            if turn:
                taken[name].append(((time.perf_counter() - began[0]) / CALLS,
                                    (time.process_time() - began[1]) / CALLS))
    row: dict[str, Any] = {"modality": modality, "shape": shape}
    for i, clock in enumerate(("wall", "cpu")):
        row[clock] = {name: statistics.median(pair[i] for pair in pairs)
                      for name, pairs in taken.items()}
        row[clock]["gain"] = statistics.median(
            alone[i] / both[i] for alone, both in
            zip(taken["one_by_one"], taken["packed"], strict=True))
    return row


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--modality", choices=("text_t5", "vision_vit"), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for modality in options.modality or ("text_t5", "vision_vit"):
        for shape in shapes(modality):
            row = measure_shape(modality, shape, options.rounds)
            rows.append(row)
            if not options.json:
                print(f"{modality} {shape}: " + "; ".join(
                    f"{clock} {row[clock]['one_by_one'] * 1e3:.0f} ms one by one, "
                    f"{row[clock]['packed'] * 1e3:.0f} ms packed, {row[clock]['gain']:.2f} x"
                    for clock in ("wall", "cpu")), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
