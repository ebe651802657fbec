"""Time to trace and compile the train step of 96 layers against that of 6, same width, on the CPU.

    python -m benchmarks.first_step [--repeats 3] [--json]

Layers are scanned, so that a program's size does not depend on their number. CPU seconds of this
process, interleaved, caches cleared before each, medians of ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import jax

from deepnarrow.assemble import make_model
from deepnarrow.planning.cells import shape_cells
from deepnarrow.plugins import registry
from deepnarrow.step import abstract_batch, abstract_state, make_program

SHAPES = {"text_t5": "tiny-nl{}", "vision_vit": "tiny-nl{}"}
FEW, MANY, BATCH_SIZE = 6, 96, 8


def seconds(modality: str, layers: int) -> tuple[float, float]:
    """CPU seconds to trace (and lower) the step, and to compile it."""
    shape = SHAPES[modality].format(layers)
    cell = shape_cells(registry(), modality, [shape], {}, BATCH_SIZE, 0)[0]
    model = make_model(cell.modality, cell.architecture, cell.shape.shape, cell.resolved("none"))
    jax.clear_caches()
    began = time.process_time()
    program = make_program(model, cell.step.optimizer, 2**20)
    batch = {name: jax.ShapeDtypeStruct((BATCH_SIZE, *spec.shape), spec.dtype)
             for name, spec in cell.step.arrays.items()}
    step: Any = program.step
    lowered = step.lower(abstract_state(program), abstract_batch(program, batch), program.args(0))
    traced = time.process_time()
    lowered.compile()
    return traced - began, time.process_time() - traced


def measure(modality: str, repeats: int) -> dict[str, Any]:
    """Seconds of both depths, (trace, compile) a repeat, and the median of their ratios."""
    seconds(modality, FEW)  # imports, first uses
    pairs = [(seconds(modality, FEW), seconds(modality, MANY)) for _ in range(repeats)]
    return {"modality": modality, f"{FEW}_layers": [few for few, _ in pairs],
            f"{MANY}_layers": [many for _, many in pairs],
            "ratio": statistics.median(sum(many) / sum(few) for few, many in pairs)}


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for modality in SHAPES:
        row = measure(modality, options.repeats)
        rows.append(row)
        if not options.json:
            few, many = row[f"{FEW}_layers"][0], row[f"{MANY}_layers"][0]
            print(f"{modality}: {MANY} layers {many[0]:.2f} + {many[1]:.2f} s, {FEW} layers "
                  f"{few[0]:.2f} + {few[1]:.2f} s (trace + compile); ratio "
                  f"{row['ratio']:.2f} (median of {options.repeats})", flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
