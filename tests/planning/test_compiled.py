"""The real compiler against the closed forms; slow, and only where libtpu is installed."""

import importlib.util

import pytest

from deepnarrow.errors import InputError
from deepnarrow.mesh import MeshShape
from deepnarrow.planning.cells import shape_cells
from deepnarrow.planning.compiled import Refused, compile_choice, compile_step, devices
from deepnarrow.planning.estimate import Choice, estimate
from deepnarrow.planning.hlo import matmul_flops, parse_hlo
from deepnarrow.planning.topology import Topology, parse_topology
from deepnarrow.plugins import registry

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")]
SLICE = parse_topology("v5e:2x2")


def cell_of(modality, shape, **settings):
    return shape_cells(registry(), modality, [shape], settings, 32, 0)[0]


# Repeating a layer, the compiler leaves out its last product, which no gradient needs; the estimate
# counts the whole layer again. S/16-nl2: 2 FLOPs x 32 images x 196 patches x 2 layers.
LAST_PRODUCTS = 2 * 32 * 196 * 2 * 1536 * 384


@pytest.mark.parametrize(("modality", "shape", "choice", "left_out"), [
    ("vision_vit", "S/16-nl2", Choice("fsdp", MeshShape(fsdp=4), "none", 1), 0),
    ("vision_vit", "S/16-nl2", Choice("fsdp+tensor", MeshShape(fsdp=2, tensor=2), "full", 2),
     LAST_PRODUCTS),
    ("text_t5", "small-nl2", Choice("fsdp", MeshShape(data=2, fsdp=2), "dots", 1), 0),
])
def test_the_estimate_is_what_the_compiler_says(modality, shape, choice, left_out):
    cell = cell_of(modality, shape)
    expected = estimate(cell.step, SLICE, choice)
    found = compile_step(cell, SLICE, expected)
    assert found.compiled
    assert found.memory.arguments == expected.memory.arguments
    assert found.flops + left_out == pytest.approx(expected.flops, rel=0.05)
    gathered = [sum(one.sent_bytes for one in plan.collectives
                    if (one.kind, one.axes) == ("all-gather", "fsdp"))
                for plan in (found, expected)]
    assert gathered[0] <= 1.1 * gathered[1]


def test_our_count_is_xlas_where_nothing_loops():
    """Unscanned, XLA's own cost analysis counts every layer: the matmuls are nearly all of it."""
    cell = cell_of("vision_vit", "S/16-nl2", scan=False)
    compiled = compile_choice(cell, SLICE, Choice("data", MeshShape(data=4), "none", 1),
                              options={"exec_time_optimization_effort": -1.0})
    assert not isinstance(compiled, Refused)
    counted = matmul_flops(parse_hlo(compiled.as_text()))
    assert counted == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


def test_a_program_too_large_is_refused_with_its_size():
    cell = shape_cells(registry(), "text_t5", ["xxl-nl4"], {}, 128, 0)[0]
    choice = Choice("data", MeshShape(data=4), "none", 1)
    found = compile_step(cell, SLICE, estimate(cell.step, SLICE, choice))
    assert not found.fits
    assert found.compiled


def test_a_slice_that_the_compiler_does_not_know():
    with pytest.raises(InputError, match=r"v5e:3x3: the TPU's compiler refuses it"):
        devices(Topology(SLICE.generation, (3, 3)))
