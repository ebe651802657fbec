"""Run by the tests with 8 fake devices: trains one step in every arrangement, writes what it found.

    python arrangements.py OUT.json

Devices are a process's for its whole life, so that this is a process of its own; all cases are in
one, for starting JAX and tracing the references takes longer than most of them.
"""

import itertools
import json
import math
import pathlib
import re
import sys
import tempfile

import jax
import numpy as np

from deepnarrow.assemble import count_costs, make_model
from deepnarrow.checkpoint import Checkpointer
from deepnarrow.mesh import MeshShape, place_arrays, shard_shape
from deepnarrow.planning.cells import shape_cells
from deepnarrow.plugins import registry
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.shape import Shape
from deepnarrow.sharding import make_layout
from deepnarrow.step import abstract_batch, abstract_state, make_program

# Two layers a stack; widths that every mesh below divides, and that Adafactor factors.
MODELS = {
    "text_t5": (Shape(2, 2, d_model=128, d_ff=256, d_kv=16, num_heads=8),
                {"vocab_size": 256, "input_length": 16, "target_length": 8}),
    "vision_vit": (Shape(2, 0, d_model=128, d_ff=256, d_kv=16, num_heads=8),
                   {"image_size": 16, "patch_size": 8, "num_classes": 16}),
}
MESHES = {"data": MeshShape(data=8), "fsdp": MeshShape(data=2, fsdp=4),
          "fsdp+tensor": MeshShape(data=2, fsdp=2, tensor=2)}
LARGE = {
    "fsdp": (("vision_vit", "S/16-nl1", {"image_size": 32}), MeshShape(fsdp=8)),
    "fsdp+tensor": (("text_t5", "small-nl1", {"input_length": 16, "target_length": 8}),
                    MeshShape(fsdp=4, tensor=2)),
}
SPLITS = {"plain": {}, "pieces": {"micro_batches": 2, "remat": "full"}}
BATCH = 16
ADAMW, ADAFACTOR = (OptimizerConfig("adamw", 1e-2, "constant", weight_decay=1e-3),
                    OptimizerConfig("adafactor", 1e-2, "constant"))
SECOND_MOMENT = 1e-6  # where AdamW starts: see `warmed`


def make(modality, **options):
    """A model and its counted parameters."""
    found, (shape, sizes) = registry(), MODELS[modality]
    own = found.modality(modality)
    chosen = own.options.copy_and_resolve_references()
    chosen.update({**sizes, **options})
    architecture = found.architecture("transformer")
    return (make_model(own, architecture, shape, chosen),
            count_costs(own, architecture, shape, chosen).arrays)


def batch_of(modality):
    """A batch with padding in the inputs, in the targets, and of examples."""
    rng = np.random.default_rng(0)
    batch = {"example_mask": np.ones(BATCH, np.float32), "example_id": np.arange(BATCH)}
    batch["example_mask"][-3:] = 0
    if modality == "vision_vit":
        return batch | {"image": rng.normal(size=(BATCH, 16, 16, 3)).astype(np.float32),
                        "label": rng.integers(0, 16, BATCH).astype(np.int32)}
    inputs, targets = (rng.integers(2, 256, (BATCH, n)).astype(np.int32) for n in (16, 8))
    inputs[::2, 11:], targets[1::3, 5:] = 0, 0
    return batch | {"inputs": inputs, "targets": targets}


def warmed(state):
    """A first state whose second moments, if any, are as in the middle of training.

    From zero, AdamW's first update is the gradient over its own size: where that is all rounding,
    a sum in another order changes the update from -rate to +rate. So near zero moments no two
    arrangements can agree; from here an update moves by no more than its gradient does.
    """
    def one(path, leaf):
        is_second = any(getattr(key, "name", None) == "nu" for key in path)
        return np.full(leaf.shape, SECOND_MOMENT, leaf.dtype) if is_second else leaf

    return state._replace(opt_state=jax.tree_util.tree_map_with_path(one, state.opt_state))


def step(program, state, batch):
    """The state after one step, its metrics, and the bytes of the compiled step's arguments."""
    args = program.args(0)
    lowered = program.step.lower(abstract_state(program), abstract_batch(program, batch), args)
    compiled = lowered.compile()
    if program.shardings is not None:
        state = jax.device_put(state, program.shardings)
    state, metrics = compiled(state, program.put(batch), args)
    return state, metrics, compiled.memory_analysis().argument_size_in_bytes


def distance(found, wanted):
    """The largest difference of two trees of arrays, relative to each array's largest value."""
    def one(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))

    return max(map(one, jax.tree.leaves(found), jax.tree.leaves(wanted)), default=0.0)


def compare(modality, optimizer, cases):
    """What one step gives in every case, against one device; and the states of the last ones."""
    model, arrays = make(modality)
    batch, one = batch_of(modality), make_program(model, optimizer, 10)
    start = warmed(jax.device_get(one.init(np.int32(0))))
    state, metrics, _ = step(one, start, batch)
    rows, states = [], {"one": (one, state)}
    for preset, split in cases:
        changes = dict(SPLITS[split])
        pieces = changes.pop("micro_batches", 1)
        model = make(modality, **changes)[0]
        layout = make_layout(MESHES[preset], preset)
        program = make_program(model, optimizer, 10, layout=layout, micro_batches=pieces)
        found, measured, bytes_ = step(program, start, batch)
        specs, _ = place_arrays(arrays, layout.rules, layout.shape)
        rows.append({
            "case": f"{modality} {optimizer.name} {preset} {split}",
            "loss": distance(measured["loss"], metrics["loss"]),
            "metrics": distance(measured, metrics),
            # Of AdamW the first moment, a tenth of the gradient, is in it.
            "opt_state": distance(found.opt_state, state.opt_state),
            "params": distance(found.params, state.params),
            "moved": distance(state.params, start.params),
            "argument_bytes": bytes_,
            "param_bytes": sum(4 * int(np.prod(shard_shape(a.shape, specs["/".join(a.path)],
                                                           layout.shape))) for a in arrays),
            "state_bytes": sum(int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize for x, s in
                               zip(jax.tree.leaves(abstract_state(program)),
                                   jax.tree.leaves(program.shardings), strict=True)),
            # jit drops what the step does not read: the seed without dropout, and the number of
            # steps where the rate does not depend on it.
            "number_bytes": 4 * (1 + optimizer.ends),
            # `example_id` is for people.
            "batch_bytes": sum(x.nbytes for name, x in batch.items()
                               if name != "example_id") // layout.shape.batch_ways,
            "placed": all(x.sharding == s for x, s in
                          zip(jax.tree.leaves(found), jax.tree.leaves(program.shardings),
                              strict=True)),
            "split_statistics": sorted({
                key[-1].key for key, s in jax.tree_util.tree_leaves_with_path(
                    program.shardings.opt_state)
                if any(s.spec) and any(getattr(k, "name", "") in ("v_row", "v_col") for k in key)}),
        })
        states[preset] = (program, found)
    return rows, states


def large_parameters(modality, shape, settings, preset, mesh):
    """Parameters above 1 MiB: path, bytes, and bytes of the compiled step's argument.

    Real widths, one layer a stack.
    """
    cell = shape_cells(registry(), modality, [shape], settings, BATCH, 0)[0]
    model = make_model(cell.modality, cell.architecture, cell.shape.shape, cell.resolved("none"))
    program = make_program(model, cell.step.optimizer, 2**20, layout=make_layout(mesh, preset))
    batch = {name: jax.ShapeDtypeStruct((BATCH, *spec.shape), spec.dtype)
             for name, spec in cell.step.arrays.items()}
    state = abstract_state(program)
    compiled = program.step.lower(state, abstract_batch(program, batch), program.args(0)).compile()
    entry = re.search(r"entry_computation_layout=\{\((.*?)\)->", compiled.as_text()).group(1)
    taken = [tuple(map(int, filter(None, dims.split(","))))
             for dims in re.findall(r"\b[a-z]+[0-9]*\[([0-9,]*)\]", entry)]
    leaves = jax.tree_util.tree_leaves_with_path(state)
    assert all(x.sharding.shard_shape(x.shape) == dims
               for (_, x), dims in zip(leaves, taken, strict=False))  # the state comes first
    return [[jax.tree_util.keystr(path), 4 * math.prod(x.shape), 4 * math.prod(dims)]
            for (path, x), dims in zip(leaves, taken, strict=False)
            if 4 * math.prod(x.shape) > 2**20 and jax.tree_util.keystr(path).startswith(".params")]


def compare_scores(modality, states):
    """How far candidates' log-likelihoods are from those of one device, by arrangement."""
    targets = np.random.default_rng(1).integers(2, 256, (BATCH, 3, 8)).astype(np.int32)
    params = jax.device_get(states["one"][1].params)
    scores = {preset: program.on_host(program.score)(
        program.put_params(params), batch_of(modality), {"targets": targets})
              for preset, (program, _) in states.items()}
    assert scores["one"].shape == (BATCH, 3)
    return {preset: distance(found, scores["one"]) for preset, found in scores.items()
            if preset != "one"}


def restore_everywhere(states, folder):
    """Saves each state and restores it in each other arrangement; returns the unequal ones."""
    unequal = []
    for saved, (_, state) in states.items():
        with Checkpointer(folder / saved) as checkpointer:
            checkpointer.save(1, state)
            for restored, (program, _) in states.items():
                found, _ = checkpointer.restore(abstract_state(program))
                same = all(np.array_equal(a, b) for a, b in zip(
                    jax.tree.leaves(jax.device_get(found)),
                    jax.tree.leaves(jax.device_get(state)), strict=True))
                placed = program.shardings is None or all(
                    x.sharding == s for x, s in zip(
                        jax.tree.leaves(found), jax.tree.leaves(program.shardings), strict=True))
                if not (same and placed):
                    unequal.append(f"{saved} -> {restored}")
    return unequal


def main(out):
    """Runs every case."""
    rows = []
    for modality in MODELS:
        rows += compare(modality, ADAMW, itertools.product(MESHES, SPLITS))[0]
    found, states = compare("text_t5", ADAFACTOR, [(preset, "plain") for preset in MESHES])
    with tempfile.TemporaryDirectory() as folder:
        unequal = restore_everywhere(states, pathlib.Path(folder))
    scores = compare_scores("text_t5", states)
    large = {preset: large_parameters(*case, preset, mesh)
             for preset, (case, mesh) in LARGE.items()}
    out.write_text(json.dumps({"devices": jax.device_count(), "rows": rows + found,
                               "unequal": unequal, "scores": scores, "large": large}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
