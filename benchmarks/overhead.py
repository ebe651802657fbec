"""What the training loop costs over its bare jitted step, and how the time of a step divides.

    python -m benchmarks.overhead [--rounds 7] [--steps 200] [--json]

`train` with its input stream, metrics, curve, logging every 20 steps and progress, against calling
the same compiled step on one batch held in memory as often. The model is the quickstart's ViT
`tiny-nl2` at its batch of 64, a step of about 20 ms on two cores. Rounds take turns; CPU time says
what the loop costs where other work shares the cores. Needs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.quickstart_cells import QuickstartCell, quickstart_cell
from deepnarrow.data import eval_batches
from deepnarrow.protocol import RunOptions
from deepnarrow.step import Program
from deepnarrow.train import train


def bare(cell: QuickstartCell, program: Program) -> Callable[[], None]:
    """The jitted step alone, the host one step ahead as in the loop."""
    batch = next(eval_batches(cell.source, cell.batch_size))

    def run() -> None:
        state, previous = program.init(np.int32(0)), None
        for _ in range(program.total_steps):
            state, metrics = program.step(state, batch, program.args(0))
            if previous is not None:
                bool(previous["finite"][0])
            previous = metrics
        jax.block_until_ready(state)

    return run


def looped(cell: QuickstartCell, program: Program) -> Callable[[], None]:
    """The loop of a study without evaluation and checkpoints."""
    options = RunOptions(log_every=20)

    def run() -> None:
        result = train(program, cell.source, seed=0, batch_size=cell.batch_size, run=options,
                       progress=lambda *_: None, on_log=lambda *_: None)
        jax.block_until_ready(result.state)

    return run


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Wall and CPU seconds of both, a step, and their ratios round by round."""
    cell = quickstart_cell("vision_vit", "tiny-nl2")
    program = cell.program(steps)
    sides = {"bare": bare(cell, program), "loop": looped(cell, program)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(rounds + 1):  # the first compiles
        for name, run in sides.items():
            began = time.perf_counter(), time.process_time()
            run()
            if turn:
                seconds[name].append(((time.perf_counter() - began[0]) / steps,
                                      (time.process_time() - began[1]) / steps))
    found: dict[str, Any] = {"steps": steps, "rounds": rounds}
    for i, clock in enumerate(("wall", "cpu")):
        pairs = [(b[i], a[i]) for a, b in zip(seconds["bare"], seconds["loop"], strict=True)]
        ratios = [loop / alone for loop, alone in pairs]
        found[clock] = {"loop_s": statistics.median(p[0] for p in pairs),
                        "bare_s": statistics.median(p[1] for p in pairs),
                        "loop_over_bare": statistics.median(ratios),
                        "range": [min(ratios), max(ratios)]}
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds, options.steps)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for clock in ("wall", "cpu"):
        row = found[clock]
        print(f"{clock}: loop {row['loop_s'] * 1e3:.2f} ms a step, bare {row['bare_s'] * 1e3:.2f} "
              f"ms; {row['loop_over_bare']:.3f} ({row['range'][0]:.3f} to {row['range'][1]:.3f})")


if __name__ == "__main__":
    main()
