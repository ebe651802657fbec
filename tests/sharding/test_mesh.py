"""The table of rules and the meshes: everything that is decided without JAX."""

import math

import pytest

from deepnarrow.assemble import count_costs
from deepnarrow.errors import InputError
from deepnarrow.mesh import (
    MESH_AXES,
    RULES,
    SMALL_VECTOR,
    MeshShape,
    choose_mesh,
    factored_specs,
    find_rules,
    parse_mesh,
    place_arrays,
    place_param,
    shard_shape,
    spec_of,
    without_batch_axes,
)
from deepnarrow.modality import LOGICAL_AXES
from deepnarrow.ops import resolve
from deepnarrow.plugins import registry
from deepnarrow.protocol import Sharding

SHAPES = [*(("text_t5", name) for name in ("small", "base", "large", "xl", "xxl", "base-nl36-skv")),
          *(("vision_vit", name) for name in ("B/16", "L/16", "g/14"))]


def arrays_of(modality, expression):
    found = registry()
    own = found.modality(modality)
    named = resolve(expression, found.vocabulary(own))
    options = own.options.copy_and_resolve_references()
    options.update(named.options({}, "options."))
    return count_costs(own, found.architecture("transformer"), named.shape, options).arrays


def test_the_table_knows_every_name():
    for rules in RULES.values():
        for logical, target in rules:
            assert logical in LOGICAL_AXES
            assert set([target] if isinstance(target, str) else target) <= set(MESH_AXES)


# --- meshes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "devices", "shape"), [
    ("fsdp=8", 8, MeshShape(fsdp=8)),
    ("fsdp=4", 8, MeshShape(data=2, fsdp=4)),
    ("tensor=2, fsdp=2", 8, MeshShape(data=2, fsdp=2, tensor=2)),
    ("data=4", 8, MeshShape(data=4)),
    ("data=1", 1, MeshShape()),
])
def test_meshes(text, devices, shape):
    assert parse_mesh(text, devices) == shape
    assert parse_mesh(str(shape), shape.size) == shape


@pytest.mark.parametrize(("text", "message"), [
    ("fsdp=16", "sharding: mesh fsdp=16 needs more devices than there are (got 16; expected at most"
     " 8). Hint: 'fsdp=8' would fit"),
    ("fsdp=3", "sharding: mesh fsdp=3 does not divide the devices (got 3; expected a divisor of 8)."
     " Hint: 'fsdp=2' would fit"),
    ("data=3,tensor=4", "sharding: mesh data=3,tensor=4 needs more devices than there are (got 12; "
     "expected at most 8). Hint: 'data=2,tensor=4' would fit"),
    ("fdsp=8", "sharding: mesh has an unknown axis (got 'fdsp'; expected one of data, fsdp, tensor)"
     ". Hint: did you mean 'fsdp'?"),
    ("expert=2", "sharding: mesh has the axis 'expert', which is reserved for experts to come "
     "(expected data, fsdp, tensor). Hint: leave it out"),
    ("fsdp=2,fsdp=4", "sharding: mesh has the axis 'fsdp' twice. Hint: keep one of them"),
    ("fsdp=0", "sharding: mesh has a size that cannot be for axis 'fsdp' (got 0; expected "
     "1..1048576)"),
    ("8", "sharding: mesh cannot be read (got '8'; expected AXIS=SIZE,..., e.g. "
     "'fsdp=4,tensor=2')"),
    ("fsdp=٣", "sharding: mesh cannot be read (got 'fsdp=٣'; expected AXIS=SIZE,..., e.g. "
     "'fsdp=4,tensor=2')"),
])
def test_wrong_meshes_say_what_would_do(text, message):
    with pytest.raises(InputError) as caught:
        parse_mesh(text, 8)
    assert str(caught.value) == message


def test_rules_must_use_every_axis_of_the_mesh():
    with pytest.raises(InputError, match=r"rules 'fsdp' never use the mesh axis 'tensor' \(got "
                       r"fsdp=2,tensor=4; expected tensor=1\). Hint: rules='fsdp\+tensor'"):
        find_rules("fsdp", MeshShape(fsdp=2, tensor=4))
    with pytest.raises(InputError, match=r"rules are unknown \(got 'fsd'.* did you mean 'fsdp'"):
        find_rules("fsd", MeshShape())
    assert find_rules("data", MeshShape(fsdp=8)) == RULES["data"]  # the batch lies on it


def test_without_a_mesh_all_devices_are_used_as_far_as_they_divide_the_batches():
    sizes = {"a": 96, "b": 64}
    assert choose_mesh(Sharding(), sizes, 8) == (MeshShape(data=8), [])
    assert choose_mesh(Sharding(rules="fsdp"), sizes, 8) == (MeshShape(fsdp=8), [])
    assert choose_mesh(Sharding(), {}, 6) == (MeshShape(data=6), [])
    assert choose_mesh(Sharding(), sizes, 1) == (MeshShape(), [])
    assert choose_mesh(Sharding(), {"a": 100}, 8) == (
        MeshShape(data=5), ["5 of 8 devices are used: no more divide the batches"])
    assert choose_mesh(Sharding(micro_batches=4), {"a": 16}, 8)[0] == MeshShape(data=4)


def test_batches_must_divide_and_no_process_may_be_left_out():
    with pytest.raises(InputError, match=r"^a: does not divide among the devices \(got 100; "
                       r"expected a multiple of 16 \(mesh fsdp=8, micro_batches 2\)\)"):
        choose_mesh(Sharding("fsdp=8", "fsdp", 2), {"b": 32, "a": 100}, 8)
    with pytest.raises(InputError, match="leaves out devices"):
        choose_mesh(Sharding("data=4"), {}, 8, num_processes=2)
    with pytest.raises(InputError, match="does not divide among the devices"):
        choose_mesh(Sharding(), {"a": 100}, 8, num_processes=2)


# --- placement ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("modality", "expression"), SHAPES)
@pytest.mark.parametrize(("preset", "mesh"), [
    ("fsdp", MeshShape(fsdp=16)), ("fsdp", MeshShape(data=2, fsdp=64)),
    ("fsdp+tensor", MeshShape(fsdp=16, tensor=4)),
    ("fsdp+tensor", MeshShape(data=2, fsdp=2, tensor=2)),
])
def test_every_parameter_above_a_mebibyte_is_split(modality, expression, preset, mesh):
    arrays = arrays_of(modality, expression)
    specs, left = place_arrays(arrays, RULES[preset], mesh)
    named = {whole.path for whole in left}
    total = 0
    for array in arrays:
        path = "/".join(array.path)
        part = shard_shape(array.shape, specs[path], mesh)
        if 4 * array.size > SMALL_VECTOR:
            assert math.prod(part) <= array.size // mesh.fsdp, path
        elif part == array.shape:
            assert path in named
        # A mesh axis splits one dimension of an array, and never the layers.
        used = [axis for target in specs[path] for axis in ([target] if target else [])]
        assert len(set(used)) == len(used)
        assert array.axes[:1] != ("layers",) or specs[path][0] is None
        total += math.prod(part)
    # What stays whole weighs next to nothing.
    assert total <= 1.2 * sum(a.size for a in arrays) / mesh.fsdp


def test_parameters_of_the_data_preset_stay_whole_and_that_is_no_news():
    specs, left = place_arrays(arrays_of("text_t5", "small"), RULES["data"], MeshShape(data=8))
    assert left == []
    assert {axis for spec in specs.values() for axis in spec} == {None}


def test_what_cannot_be_split_is_told_with_its_reason():
    mesh = MeshShape(fsdp=2, tensor=8)
    spec, left = place_param("q", ("layers", "embed", "heads", "kv"), (12, 768, 12, 64),
                             RULES["fsdp+tensor"], mesh)
    assert spec == (None, "fsdp", None, None)
    assert [tuple(whole) for whole in left] == [("q", "heads", 12, "does not divide by tensor=8")]
    spec, left = place_param("norm", ("layers", "embed"), (12, 768), RULES["fsdp"], mesh)
    assert spec == (None, None)
    assert [tuple(whole) for whole in left] == [("norm", None, 12 * 768, "a small vector")]
    spec, left = place_param("x", (None, "patch"), (4, 512), RULES["fsdp"], mesh)
    assert [whole.why for whole in left] == ["no rule for its axes"]
    # The first axis does not divide, the next one of the table does: nothing to tell.
    assert place_param("w", ("embed", "mlp"), (7, 64), RULES["fsdp"], mesh) == ((None, "fsdp"), [])


def test_a_batch_takes_its_axes_first_so_activations_follow_the_same_table():
    mesh, rules = MeshShape(data=2, fsdp=4, tensor=2), RULES["fsdp+tensor"]
    assert spec_of(("batch", "length", "embed"), (64, 7, 32), rules, mesh) == (
        ("data", "fsdp"), None, None)
    assert spec_of(("batch", "length", "heads", "kv"), (64, 7, 6, 8), rules, mesh) == (
        ("data", "fsdp"), None, "tensor", None)
    assert without_batch_axes(("fsdp", "tensor"), rules) == (None, "tensor")
    assert without_batch_axes((("data", "fsdp"), None), rules) == (None, None)


def test_factored_statistics_lie_where_the_rest_of_their_matrix_does():
    assert factored_specs((64, 64), ("fsdp", "tensor")) == (((64,), ("fsdp",)),
                                                            ((64,), ("tensor",)))
    assert factored_specs((256, 64), ("fsdp", "tensor")) == (((64,), ("tensor",)),
                                                             ((256,), ("fsdp",)))
