"""big_vision's few-shot evaluator, run on given features; also writes the tests' golden file.

    PYTHONPATH=/path/to/big_vision python benchmarks/bigvision_fewshot.py golden_fewshot.npz

needs a checkout of github.com/google-research/big_vision (the golden file in tests/core is from
0127fb6, jax 0.10.2, CPU) and no TensorFlow. The features are of the installed plugin vision_vit:
its smallest model, trained for 300 steps on its embedded digits, applied to digits of classes that
it was not trained on; and those images' pixels.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # train x and y, test x and y
# Readers of data, which the solver does not use and which need TensorFlow.
STUBS = ("tensorflow", "tensorflow.io", "tensorflow.io.gfile", "big_vision.input_pipeline",
         "big_vision.pp.builder")
SHOTS, SEEDS, L2 = (1, 5, 10, 25), (0, 1, 2), (64.0, 1024.0)


@functools.cache
def import_evaluator() -> Any:
    """Returns big_vision's `evaluators.fewshot_lsr`; ImportError where there is no checkout."""
    # Flax looks for TensorFlow when it is imported, and must not find the empty module.
    import flax.training.checkpoints  # noqa: F401

    if importlib.util.find_spec("big_vision") is None:
        raise ImportError("big_vision is not on PYTHONPATH")
    stubs = {name: types.ModuleType(name) for name in STUBS}
    for name, module in stubs.items():
        parent, _, child = name.rpartition(".")
        owner = stubs.get(parent) or (importlib.import_module(parent) if parent else None)
        if owner is not None:
            setattr(owner, child, module)
        sys.modules[name] = module
    try:
        return importlib.import_module("big_vision.evaluators.fewshot_lsr")
    finally:  # nobody else shall take the empty modules for TensorFlow
        for name in STUBS:
            del sys.modules[name]


def accuracies(
    arrays: Arrays, num_classes: int, shots: Sequence[int], seeds: Sequence[int],
    l2: Sequence[float], precision: int = 32,
) -> np.ndarray:
    """Returns its accuracies [l2, shots, seeds], by its own `compute_fewshot_metrics`.

    It computes in the precision of the features, float32 in its own use; 64 shows what of a
    difference is rounding.
    """
    x, y, x_test, y_test = arrays
    if precision == 64:
        with jax.enable_x64(True):
            arrays = (x.astype(np.float64), y, x_test.astype(np.float64), y_test)
            return accuracies(arrays, num_classes, shots, seeds, l2)
    evaluator = object.__new__(import_evaluator().Evaluator)  # it would open datasets
    evaluator.shots = shots
    evaluator._repr = {"task": (x, y, x_test, y_test, num_classes)}
    found = np.empty((len(l2), len(shots), len(seeds)))
    for i, strength in enumerate(l2):
        evaluator.l2_reg = strength
        for k, seed in enumerate(seeds):
            results = evaluator.compute_fewshot_metrics(None, seed, "task", "", "")
            found[i, :, k] = [results[n] for n in shots]
    return found


def weights(x: np.ndarray, y: np.ndarray, num_classes: int, l2: float) -> np.ndarray:
    """Returns its weights on whitened features, the bias's last [d + 1, classes]."""
    cache = import_evaluator()._precompute_cache(x, y, num_classes)
    return np.asarray((cache["lhs"] / (cache["eigs"] + l2)) @ cache["rhs"])


# --- the golden file -----------------------------------------------------------------------------
def vit_features() -> tuple[Arrays, Arrays]:
    """Features of a small trained ViT, and the pixels, of digits of new classes."""
    from deepnarrow.assemble import make_model
    from deepnarrow.config import resolve_options
    from deepnarrow.plugins import registry
    from deepnarrow.protocol import OptimizerConfig, RunOptions
    from deepnarrow.step import make_program
    from deepnarrow.train import train
    from deepnarrow.transfer.fewshot import extract_features

    modality = registry().modality("vision_vit")
    data = modality.data_options
    upstream = modality.upstream(data, modality.options)
    options = resolve_options(modality.options, {**upstream.options, "patch_size": 3}, "options")
    model = make_model(modality, registry().architecture("transformer"),
                       modality.presets["tiny"].shape, options)
    optimizer = OptimizerConfig("adamw", 1e-3, "cosine", warmup_steps=30)
    program = make_program(model, optimizer, 300)
    params = train(program, upstream.train, seed=0, batch_size=64, run=RunOptions()).state.params
    task = modality.tasks(data, modality.options)["digits_new_classes"]
    features: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    for split in ("train", "test"):
        source = task.examples(split)
        assert source.labels is not None
        assert task.baseline is not None
        y = np.asarray(source.labels())
        features += [extract_features(program.features, params, source, 256), y]
        pixels += [task.baseline(split), y]
    return tuple(features), tuple(pixels)


def main(path: str) -> None:
    """Writes features, accuracies and weights to `path`."""
    golden: dict[str, Any] = {"shots": SHOTS, "seeds": SEEDS, "l2": L2}
    for name, (x, y, x_test, y_test) in zip(("vit", "pixels"), vit_features(), strict=True):
        # Half precision keeps the file small; what is stored is what is probed.
        arrays = (x.astype(np.float16), y, x_test.astype(np.float16), y_test)
        golden |= {f"{name}/{key}": value
                   for key, value in zip(("x", "y", "x_test", "y_test"), arrays, strict=True)}
        x, x_test = (a.astype(np.float32) for a in (arrays[0], arrays[2]))
        num_classes = int(y.max()) + 1
        golden[f"{name}/accuracy"] = accuracies((x, y, x_test, y_test), num_classes, SHOTS, SEEDS,
                                                L2)
        for shots in (1, 25):
            rows = np.concatenate([np.flatnonzero(y == c)[:shots] for c in range(num_classes)])
            for precision in (32, 64):
                with jax.enable_x64(precision == 64):
                    found = weights(x[rows].astype(f"f{precision // 8}"), y[rows], num_classes,
                                    1024.0)
                golden[f"{name}/weights{precision}@{shots}"] = found
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(sys.argv[1])
