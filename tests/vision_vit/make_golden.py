"""Makes `golden.npz`: logits, losses and gradients of big_vision's own ViT on random weights.

Run once, and again only if the cases change:

    git clone https://github.com/google-research/big_vision
    PYTHONPATH=big_vision python tests/vision_vit/make_golden.py tests/vision_vit/golden.npz

The committed file came from big_vision at commit 0127fb6 with jax 0.10.2 and flax 0.12.8 on a CPU.
Only `big_vision.models.vit` and the losses of `big_vision.utils` run; TensorFlow, which the latter
imports for file access, is replaced by an empty module where it is not installed.

All cases share one set of weights, of which each takes its part: `params/PATH`. A case
`POOL-POSITION` holds `logits`, `pre_logits`, `loss` and `grads/PATH` (of the mean loss).
`resample/GRID` holds the learned positions resampled to another grid.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepnarrow_vision_vit.layout import unflatten

WIDTH, DEPTH, HEADS, MLP_DIM = 32, 2, 4, 64
IMAGE_SIZE, PATCH, CHANNELS, CLASSES, BATCH = 16, 4, 3, 5, 3
GRIDS = (2, 3, 7)  # to resample the 4 x 4 grid to
# pool_type, position, loss, label smoothing
CASES = (
    ("gap", "learn", "softmax", 0.0),
    ("gap", "sincos2d", "softmax", 0.1),
    ("tok", "learn", "sigmoid", 0.0),
    ("tok", "sincos2d", "softmax", 0.0),
    ("map", "learn", "softmax", 0.0),
    ("map", "sincos2d", "sigmoid", 0.1),
)


def import_big_vision() -> tuple[Any, Any]:
    """Returns big_vision's `models.vit` and `utils`; ImportError where there is no checkout."""
    # Flax looks for TensorFlow too when it is imported, and must not find the empty module.
    import flax.training.checkpoints  # noqa: F401

    if importlib.util.find_spec("big_vision") is None:
        raise ImportError("big_vision is not on PYTHONPATH")
    stubs = {} if importlib.util.find_spec("tensorflow") else {
        name: types.ModuleType(name)
        for name in ("tensorflow", "tensorflow.io", "tensorflow.io.gfile")}
    if stubs:
        stubs["tensorflow.io"].gfile = stubs["tensorflow.io.gfile"]
    sys.modules.update(stubs)
    try:
        from big_vision import utils
        from big_vision.models import vit
    finally:  # nobody else shall take the empty modules for TensorFlow
        for name in stubs:
            del sys.modules[name]
    return vit, utils


def make_model(vit: Any, pool: str, position: str) -> Any:
    """big_vision's model of one case."""
    return vit.Model(num_classes=CLASSES, width=WIDTH, depth=DEPTH, mlp_dim=MLP_DIM,
                     num_heads=HEADS, patch_size=(PATCH, PATCH), pool_type=pool, posemb=position)


def make_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images [batch, size, size, channels] in [-1, 1] and labels [batch]."""
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (BATCH, IMAGE_SIZE, IMAGE_SIZE, CHANNELS)).astype(np.float32)
    return images, np.array([0, 3, 4])


def draw_params(vit: Any) -> dict[str, np.ndarray]:
    """Weights of all cases by path. No array is a constant, so that none can be mistaken."""
    shapes: dict[str, tuple[int, ...]] = {}
    for pool in ("tok", "map"):
        params = jax.eval_shape(make_model(vit, pool, "learn").init, jax.random.key(0),
                                jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, CHANNELS)))["params"]
        shapes |= {path: leaf.shape for path, leaf in leaves(params).items()}
    rng = np.random.default_rng(0)
    drawn = {}
    for path, shape in sorted(shapes.items()):
        normal = rng.normal(size=shape)
        if path.endswith("kernel"):
            to_heads = any(name in path for name in ("query", "key", "value"))
            inputs = shape[:1] if to_heads else shape[:-1]
            drawn[path] = normal * np.prod(inputs) ** -0.5
        else:
            drawn[path] = 0.2 * normal + path.endswith("scale")
    return {path: array.astype(np.float32) for path, array in drawn.items()}


def case_params(params: Mapping[str, np.ndarray], pool: str, position: str) -> dict[str, Any]:
    """The part of the weights that one case has, as big_vision's nested dict."""
    absent = {"cls": pool != "tok", "MAPHead_0": pool != "map",
              "pos_embedding": position != "learn"}
    return unflatten({path: array for path, array in params.items()
                      if not absent.get(path.split("/")[0], False)})


def run_case(
    modules: tuple[Any, Any], params: Mapping[str, Any], case: tuple[str, str, str, float]
) -> dict[str, np.ndarray]:
    """big_vision's results on one case."""
    vit, utils = modules
    pool, position, loss_name, smoothing = case
    model = make_model(vit, pool, position)
    images, labels = make_inputs()
    targets = np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits, out = model.apply({"params": params}, images)
        mean = getattr(utils, f"{loss_name}_xent")(logits=logits, labels=targets)
        return mean, (logits, out["pre_logits"])

    (mean, (logits, pre_logits)), grads = jax.jit(
        jax.value_and_grad(loss, has_aux=True))(params)
    results = {"loss": mean, "logits": logits, "pre_logits": pre_logits}
    results |= {f"grads/{path}": grad for path, grad in leaves(grads).items()}
    return {name: np.asarray(value, np.float32) for name, value in results.items()}


def leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a nested dict by path, joined with "/"."""
    return {"/".join(str(entry.key) for entry in path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def main(path: str) -> None:
    """Writes the golden file to `path`."""
    modules = import_big_vision()
    params = draw_params(modules[0])
    golden = {f"params/{name}": array for name, array in params.items()}
    for case in CASES:
        pool, position, *_ = case
        results = run_case(modules, case_params(params, pool, position), case)
        golden |= {f"{pool}-{position}/{name}": value for name, value in results.items()}
    for grid in GRIDS:
        golden[f"resample/{grid}"] = modules[0].resample_posemb(
            params["pos_embedding"], np.zeros((1, grid**2, WIDTH)))
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(sys.argv[1])
