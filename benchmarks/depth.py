"""Step time a layer at 6, 24 and 96 layers of one width, and what a layer adds to memory.

    python -m benchmarks.depth [--rounds 3] [--json]

T5's encoder-decoder and the ViT in their `tiny` widths, scanned, float32. The time a layer is the
slope between depths, so that embedding and loss, which do not grow, are not spread over layers: the
time of L layers less that of 6, over L - 6; beside it the same of 24. CPU seconds of this process,
rounds taking turns. Memory is XLA's account of the compiled step's temporaries with `full` remat:
what a layer and an example add, from 12 and 48 layers and 64 and 128 examples, beside the carry of
a layer, which is what has to be kept. (With few examples the gradients are larger, and hold it.)
Needs nothing.
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

from deepnarrow.assemble import make_model
from deepnarrow.planning.cells import shape_cells
from deepnarrow.plugins import registry
from deepnarrow.step import abstract_batch, abstract_state, make_program

DEPTHS, BATCH_SIZE = (6, 24, 96), 4
MEMORY_DEPTHS, MEMORY_BATCHES = (12, 48), (64, 128)
D_MODEL, POSITIONS = 64, {"text_t5": 64 + 32, "vision_vit": 64}
OPTIONS: dict[str, dict[str, Any]] = {
    "text_t5": {"vocab_size": 1024, "input_length": 64, "target_length": 32},
    "vision_vit": {"image_size": 32, "patch_size": 4},
}


def make(modality: str, layers: int, batch_size: int, remat: Any) -> tuple[Any, Any]:
    """The program of a shape, and a batch."""
    settings = {**OPTIONS[modality], "compute_dtype": "float32"}
    shape = f"tiny-nl{layers}-dm{D_MODEL}-ff256-kv16-nh4"
    cell = shape_cells(registry(), modality, [shape], settings, batch_size, 0)[0]
    model = make_model(cell.modality, cell.architecture, cell.shape.shape, cell.resolved(remat))
    batch = {name: np.ones((batch_size, *spec.shape), spec.dtype)
             for name, spec in cell.step.arrays.items()}
    return make_program(model, cell.step.optimizer, 2**20), batch


def make_step(modality: str, layers: int) -> Callable[[], None]:
    """One update of a shape."""
    program, batch = make(modality, layers, BATCH_SIZE, "none")
    state = program.init(np.int32(0))

    def run() -> None:
        nonlocal state
        state, _ = program.step(state, batch, program.args(0))
        jax.block_until_ready(state)

    return run


def bytes_added(modality: str) -> float:
    """Temporaries that one more layer needs for one more example, with `full` remat."""

    def temporaries(layers: int, batch_size: int) -> int:
        program, batch = make(modality, layers, batch_size, "full")
        lowered = program.step.lower(
            abstract_state(program), abstract_batch(program, batch), program.args(0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = MEMORY_DEPTHS
    less, more = (temporaries(many, size) - temporaries(few, size) for size in MEMORY_BATCHES)
    return (more - less) / (many - few) / (MEMORY_BATCHES[1] - MEMORY_BATCHES[0])


def measure(modality: str, rounds: int) -> list[dict[str, Any]]:
    """A row a depth."""
    made = {layers: make_step(modality, layers) for layers in DEPTHS}
    seconds: dict[int, list[float]] = {layers: [] for layers in DEPTHS}
    for turn in range(rounds + 1):
        for layers, run in made.items():
            began = time.process_time()
            for _ in range(3):
                run()
            if turn:
                seconds[layers].append((time.process_time() - began) / 3)
    few = DEPTHS[0]

    def per_layer(layers: int) -> list[float]:
        return [(many - least) / (layers - few)
                for many, least in zip(seconds[layers], seconds[few], strict=True)]

    middle, added = per_layer(DEPTHS[1]), bytes_added(modality)
    carry = POSITIONS[modality] * D_MODEL * 4
    return [{"modality": modality, "layers": layers, "cpu_s": statistics.median(seconds[layers]),
             "full_remat_bytes_a_layer_and_example": added, "carry_bytes": carry,
             **({} if layers == few else {
                 "cpu_s_a_layer": statistics.median(per_layer(layers)),
                 "per_layer_over_24": statistics.median(
                     a / b for a, b in zip(per_layer(layers), middle, strict=True))})}
            for layers in DEPTHS]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for modality in OPTIONS for row in measure(modality, options.rounds)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in row.items()))


if __name__ == "__main__":
    main()
