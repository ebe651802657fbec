"""Arguments of a step without JAX against the real state's, and how the TPU lays arrays out."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from deepnarrow.assemble import make_model
from deepnarrow.mesh import MESH_AXES, MeshShape, find_rules
from deepnarrow.planning.cells import shape_cells
from deepnarrow.planning.state import argument_bytes, batch_arrays, state_arrays, tiled_bytes
from deepnarrow.planning.topology import GENERATIONS
from deepnarrow.plugins import registry
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.sharding import Layout
from deepnarrow.step import abstract_batch, abstract_state, make_program

CELLS = [("text_t5", "small"), ("text_t5", "tiny-el2-skv"), ("vision_vit", "S/16"),
         ("vision_vit", "tiny")]
LAYOUTS = [("data", MeshShape(data=8)), ("fsdp", MeshShape(data=2, fsdp=4)),
           ("fsdp+tensor", MeshShape(fsdp=4, tensor=2))]


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize(("modality", "shape"), CELLS)
def test_every_array_of_a_state_and_its_part(modality, shape, optimizer):
    """Shapes, parts and types are those of the program that trains, for every preset of rules."""
    cell = shape_cells(registry(), modality, [shape], {}, 64, 0)[0]
    model = make_model(cell.modality, cell.architecture, cell.shape.shape, cell.resolved("none"))
    for preset, mesh in LAYOUTS:
        layout = Layout(AbstractMesh(tuple(mesh.sizes.values()), MESH_AXES), mesh, preset)
        config = OptimizerConfig(optimizer, 0.1, "constant", ema_decay=0.9)
        program = make_program(model, config, 10, layout=layout)
        batch = abstract_batch(program, {
            name: jax.ShapeDtypeStruct((64, *spec.shape), spec.dtype)
            for name, spec in cell.step.arrays.items()})
        rules = find_rules(preset, mesh)
        expected = [*state_arrays(cell.step.costs["none"], optimizer, rules, mesh, average=True),
                    *batch_arrays(cell.step.arrays, 64, rules, mesh)]
        found = jax.tree.leaves((abstract_state(program), batch))
        assert Counter((one.shape, one.local, one.item_bytes) for one in expected) == Counter(
            (x.shape, x.sharding.shard_shape(x.shape), np.dtype(x.dtype).itemsize) for x in found)


def test_a_step_reads_what_the_modality_says():
    """The loss works with these arrays alone, and misses each that is left out."""
    for name in ("text_t5", "vision_vit"):
        cell = shape_cells(registry(), name, ["tiny"], {}, 2, 0)[0]
        model = make_model(cell.modality, cell.architecture, cell.shape.shape,
                           cell.resolved("none"))
        params = jax.eval_shape(model.init, jax.random.key(0))
        batch = {key: jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype)
                 for key, spec in cell.step.arrays.items()}

        def loss(params, batch, model=model):
            return model.loss(params, batch, None, train=True)

        jaxpr = jax.make_jaxpr(loss)(params, batch)
        read = {var for eqn in jaxpr.eqns for var in eqn.invars if not hasattr(var, "val")}
        assert set(jaxpr.jaxpr.invars) <= read


@pytest.mark.parametrize(("shape", "item", "expected"), [
    # Layouts in `entry_computation_layout` of a ViT-S/16 compiled for v5e:2x2 (libtpu 0.0.42).
    ((), 4, 512), ((), 1, 512),
    ((96,), 4, 512), ((250,), 4, 1024), ((384,), 4, 2048), ((3000,), 4, 3 * 4096),
    ((3, 1), 4, 512),  # {0,1:T(1,128)}
    ((12, 6, 16), 4, 12 * 8 * 128 * 4),  # {2,1,0:T(8,128)}
    ((12, 96, 6, 64), 4, 12 * 6 * 64 * 128 * 4),  # {1,3,2,0}: d_model innermost
    ((16, 16, 3, 96), 4, 16 * 3 * 16 * 128 * 4),  # {3,1,2,0}
    ((1, 196, 96), 4, 96 * 256 * 4),  # {1,2,0}
    ((32, 224, 224, 3), 4, 32 * 3 * 224 * 256 * 4),  # {2,1,3,0}: channels not innermost
    ((1, 49), 4, 512),  # {1,0:T(1,128)}
])
def test_arrays_lie_in_tiles(shape, item, expected):
    assert tiled_bytes(shape, item) == expected


@pytest.mark.parametrize(("shape", "item", "expected"), [
    # Argument sizes of programs of one argument compiled for v3:2x2 (libtpu 0.0.42).
    ((), 1, 1024), ((1,), 4, 1024), ((200,), 4, 1024), ((300,), 4, 2048), ((1, 128), 4, 1024),
    ((3, 128), 4, 2048), ((32, 1), 4, 1024), ((12, 1, 64), 4, 8192), ((1, 6, 64), 4, 4096),
    ((1, 196, 192), 4, 196608), ((1, 512), 4, 4096), ((1, 114), 4, 1024),
    ((8, 224, 224, 3), 1, 1376256), ((12, 1, 768), 4, 49152), ((6, 512, 8, 64), 4, 6291456),
])
def test_tiles_of_a_v3_have_two_rows(shape, item, expected):
    assert tiled_bytes(shape, item, GENERATIONS["v3"].min_rows) == expected


def test_bytes_add_up_by_kind():
    cell = shape_cells(registry(), "text_t5", ["large"], {}, 16, 0)[0]
    costs, mesh = cell.step.costs["none"], MeshShape(fsdp=4)
    rules = find_rules("fsdp", mesh)
    with_average = argument_bytes(state_arrays(costs, "adamw", rules, mesh, average=True))
    assert with_average["average"] == with_average["params"]
    assert with_average["optimizer"] > 1.9 * with_average["params"]
    whole = argument_bytes(state_arrays(costs, "adamw", find_rules("data", MeshShape()),
                                        MeshShape(), average=False))
    assert "average" not in whole
    assert whole["params"] >= 4 * sum(array.size for array in costs.arrays)
    # Small vectors stay whole; everything else is cut in four (a quarter of d_model still fills
    # the tiles of memory: smaller ones are padded).
    assert whole["params"] / 4 <= with_average["params"] < 1.05 * whole["params"] / 4
    assert dataclasses.replace(mesh, fsdp=1).size == 1
