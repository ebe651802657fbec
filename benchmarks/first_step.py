"""Time to trace and compile the train step of 96 layers against that of 6, same width, on the CPU.

    python benchmarks/first_step.py [--repeats 3]

Layers are scanned, so that a program's size does not depend on their number. CPU seconds of this
process, interleaved, caches cleared before each, medians of ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np

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
    lowered = step.lower(abstract_state(program), abstract_batch(program, batch), np.int32(0))
    traced = time.process_time()
    lowered.compile()
    return traced - began, time.process_time() - traced


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    for modality in SHAPES:
        seconds(modality, FEW)  # imports, first uses
        pairs = [(seconds(modality, FEW), seconds(modality, MANY)) for _ in range(repeats)]
        ratios = [sum(many) / sum(few) for few, many in pairs]
        few, many = pairs[0]
        print(f"{modality}: {MANY} layers {many[0]:.2f} + {many[1]:.2f} s, {FEW} layers "
              f"{few[0]:.2f} + {few[1]:.2f} s (trace + compile); ratio "
              f"{statistics.median(ratios):.2f} (median of {repeats})", flush=True)


if __name__ == "__main__":
    main()
