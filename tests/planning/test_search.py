"""Slices, estimates and the search among them: by hand where that can be, else as properties."""

import dataclasses

import pytest

from deepnarrow.errors import InputError
from deepnarrow.mesh import MeshShape
from deepnarrow.planning.cells import shape_cells
from deepnarrow.planning.estimate import Choice, estimate
from deepnarrow.planning.search import config_lines, reasons, search, smallest_slice, together
from deepnarrow.planning.topology import GENERATIONS, larger_slices, parse_topology
from deepnarrow.plugins import registry

GIB = 2.0**30


def step_of(modality, shape, batch_size=128):
    return shape_cells(registry(), modality, [shape], {}, batch_size, 0)[0].step


STEPS = {(modality, shape): step_of(modality, shape) for modality, shape in (
    ("text_t5", "base"), ("text_t5", "small-nl16"), ("text_t5", "xl-nl32"), ("text_t5", "xxl"),
    ("vision_vit", "B/16"))}
BASE, VIT, XXL = STEPS["text_t5", "base"], STEPS["vision_vit", "B/16"], STEPS["text_t5", "xxl"]


# --- slices --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "chips", "devices", "hbm"), [
    ("v5e:4x4", 16, 16, 15.75), ("v5p:4x4x4", 64, 64, 95.74), ("v3:4x4", 16, 32, 30.96),
    ("V6E:1x1", 1, 1, 31.25), ("v4:2x2x4", 16, 16, 30.75), (" v5e:16x16 ", 256, 256, 15.75),
])
def test_slices_by_name(text, chips, devices, hbm):
    topology = parse_topology(text)
    assert (topology.num_chips, topology.num_devices) == (chips, devices)
    assert topology.hbm_per_chip_bytes == pytest.approx(hbm * GIB)
    assert topology.name == text.strip().lower()
    # A program never gets more than the chip has.
    assert topology.hbm_per_chip_bytes <= 1.07 * topology.generation.chip.hbm_bytes


def test_a_core_of_v3_has_half_of_the_chip():
    topology = parse_topology("v3:2x2")
    assert topology.peak_flops("bfloat16") == 123e12 / 2
    assert topology.hbm_bandwidth == 450e9
    assert topology.interconnect_bandwidth == 200e9


@pytest.mark.parametrize(("text", "message"), [
    ("v7:4x4", "unknown generation of TPU (got v7:4x4; expected GENERATION:SIDES with one of v3,"),
    ("v5:4x4", "Hint: did you mean v5p?"),
    ("v5e", "is no slice (got v5e; expected v5e: and A x B chips). Hint: v5e:2x2"),
    ("v5e:4*4", "is no slice"),
    ("v5e:4x4x4", "v5e has no such slice (got v5e:4x4x4; expected 1x1, 2x2, 2x4,"),
    ("v5p:4x4", "v5p has no such slice (got v5p:4x4; expected 2x2x1,"),
    ("v5e:3x4", "or 2 even sides up to 64"),
    ("v5e:128x4", "v5e has no such slice"),
    ("v5e:0x4", "v5e has no such slice"),
])
def test_what_is_no_slice_is_refused(text, message):
    with pytest.raises(InputError) as error:
        parse_topology(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_larger_slices_grow(generation):
    smallest = parse_topology(f"{generation}:{GENERATIONS[generation].slices[0]}")
    sizes = [one.num_chips for one in larger_slices(smallest)]
    assert sizes == sorted(set(sizes))
    assert sizes[0] > smallest.num_chips


# --- estimates -----------------------------------------------------------------------------------
def choice(**changes):
    return dataclasses.replace(Choice("fsdp", MeshShape(fsdp=16), "none", 1), **changes)


def test_the_roofline_by_hand():
    found = estimate(BASE, parse_topology("v5e:4x4"), choice())
    assert found.flops == BASE.model_flops  # without remat nothing runs twice
    assert found.compute_s == pytest.approx(found.flops / 16 / 197e12)
    gather, scatter, reduce = found.collectives
    assert (gather.kind, scatter.kind, reduce.kind) == (
        "all-gather", "reduce-scatter", "all-reduce")
    # Gathered twice, reduced once, in bfloat16; 15/16 of it is sent. Norms stay whole.
    split = 2 * sum(array.size for array in BASE.costs["none"].arrays if len(array.shape) > 1
                    and array.component != "position" and "norm" not in array.component)
    assert gather.sent_bytes == pytest.approx(2 * split * 15 / 16, rel=2e-3)
    assert scatter.sent_bytes == gather.sent_bytes / 2
    assert reduce.sent_bytes < 0.01 * gather.sent_bytes
    total = sum(one.sent_bytes for one in found.collectives)
    assert found.interconnect_s == pytest.approx(total / 200e9)
    assert found.step_time_s == max(found.compute_s, found.memory_s, found.interconnect_s)
    assert found.mfu_bound == pytest.approx(found.compute_s / found.step_time_s)


def test_tensor_parallel_products_are_summed():
    """Twice a block and layer, forward and backward; once more forward where all is repeated."""
    mesh = MeshShape(fsdp=8, tensor=2)
    layer = 196 * 768 * 2 * (128 / 8)  # bytes of one result on a device
    for remat, passes in (("none", 2), ("dots", 2), ("full", 3)):
        found = estimate(VIT, parse_topology("v5e:4x4"),
                         Choice("fsdp+tensor", mesh, remat, 1))
        reduced = [one for one in found.collectives if one.axes == "tensor"]
        assert [one.count for one in reduced] == [12 * 2 * passes]
        assert reduced[0].sent_bytes == pytest.approx(12 * 2 * passes * layer)


@pytest.mark.parametrize("step", [BASE, VIT])
def test_what_saves_memory_saves_it(step):
    topology = parse_topology("v5e:4x4")
    needs = [estimate(step, topology, choice(remat=remat)).memory.total
             for remat in ("none", "dots", "full")]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > 1.3 * needs[2]
    pieces = [estimate(step, topology, choice(micro_batches=n)).memory.parts.get("activations", 0)
              for n in (1, 2, 4)]
    assert pieces[0] == 2 * pieces[1] == 4 * pieces[2]
    whole = estimate(step, topology, Choice("data", MeshShape(data=16), "none", 1))
    split = estimate(step, topology, choice())
    # A sixteenth, but for the tiles that the parts are padded to.
    assert 10 < whole.memory.parts["params"] / split.memory.parts["params"] < 16
    assert whole.memory.parts["batch"] == split.memory.parts["batch"]


def test_what_is_repeated_costs_flops():
    topology = parse_topology("v5e:4x4")
    flops = [estimate(BASE, topology, choice(remat=remat)).flops
             for remat in ("none", "dots", "full")]
    assert flops == sorted(flops)
    # The layers' forward pass once more: a third of everything but the logits.
    assert 1.25 < flops[2] / flops[0] < 1.34


# --- the search ----------------------------------------------------------------------------------
@pytest.mark.parametrize("slice_name", ["v5e:4x4", "v5p:4x4x4", "v3:4x4", "v5e:2x2"])
@pytest.mark.parametrize("step", list(STEPS.values()), ids=lambda step: step.name)
def test_the_best_is_the_fastest_that_fits(step, slice_name):
    topology = parse_topology(slice_name)
    found = search(step, topology)
    fitting = [one for one in found.tried if one.fits]
    assert {one.fits for one in found.tried[:len(fitting)]} <= {True}
    if fitting:
        assert found.best is not None
        assert found.best.step_time_s == min(one.step_time_s for one in fitting)
    else:
        assert found.best is None
    for one in found.tried:
        assert one.choice.mesh.size == topology.num_devices
        assert step.batch_size % (one.choice.mesh.batch_ways * one.choice.micro_batches) == 0


def test_xxl_does_not_fit_four_chips_and_says_what_would_do():
    found = search(XXL, parse_topology("v5e:2x2"))
    assert found.best is None
    smallest = found.smallest
    # 11.3 billion float32 parameters, and their gradients, on four devices.
    params = 4 * sum(array.size for array in XXL.costs["none"].arrays) / 4
    assert smallest.memory.total > 2 * params > found.topology.hbm_per_chip_bytes
    larger = smallest_slice(XXL, found.topology)
    assert larger is not None
    assert larger.best is not None
    for between in larger_slices(found.topology):
        if between.num_chips < larger.topology.num_chips:
            assert search(XXL, between).best is None


def test_what_is_given_is_kept():
    mesh = MeshShape(data=2, fsdp=8)
    found = search(BASE, parse_topology("v5e:4x4"), mesh=mesh, remat="dots", micro_batches=4)
    assert [one.choice for one in found.tried] == [Choice("fsdp", mesh, "dots", 4)]


def test_reasons_name_what_was_not_chosen():
    found = search(STEPS["text_t5", "xl-nl32"], parse_topology("v5e:4x4"))
    assert found.best is not None
    said = reasons(found, found.best)
    assert said
    assert any("GiB more than a device has" in reason or "bound by" in reason for reason in said)
    assert not any(str(found.best.choice) in reason for reason in said)
    odd = search(step_of("text_t5", "base-nh6"), parse_topology("v5e:4x4"))
    assert any("is 6, which tensor=4 does not divide" in why for why in odd.rejected.values())


def test_a_batch_that_fits_no_mesh():
    with pytest.raises(InputError, match=r"no mesh can be tried .*a batch of 3 does not divide"):
        search(step_of("vision_vit", "tiny", batch_size=3), parse_topology("v5e:4x4"))


def test_the_papers_shapes_in_order():
    """Tay et al. 2022 on TPU v3: Small-16L trains about 40% faster than Base, XL-32L about 3 times
    as fast as XXL."""
    topology = parse_topology("v3:4x4")
    times = {name: search(step, topology).tried[0].step_time_s for (_, name), step in
             STEPS.items()}
    assert 1.3 < times["base"] / times["small-nl16"] < 1.75
    assert 2.5 < times["xxl"] / times["xl-nl32"] < 3.5


def test_cells_of_a_study_share_their_sharding():
    """Every way shares what a study has once, fits every cell, and none that is tried is faster."""
    topology = parse_topology("v5e:4x4")
    steps = [BASE, STEPS["text_t5", "xl-nl32"], VIT]
    found = [search(step, topology) for step in steps]
    names, weights = ["text_t5", "text_t5", "vision_vit"], [3.0, 1.0, 10.0]
    ways = together(found, names, weights)
    totals = [sum(w * one.step_time_s for w, one in zip(weights, way, strict=True)) for way in ways]
    assert totals == sorted(totals)
    assert totals[0] >= sum(w * one.best.step_time_s
                            for w, one in zip(weights, found, strict=True))
    for way in ways:
        assert all(one.fits for one in way)
        assert len({(c.preset, c.mesh, c.micro_batches) for c in (one.choice for one in way)}) == 1
        assert way[0].choice.remat == way[1].choice.remat
    # One cell alone has its own best.
    assert together(found[:1], names[:1], [1.0])[0] == (found[0].best,)
    # What fits nowhere fits with nobody.
    small = parse_topology("v5e:2x2")
    assert together([search(BASE, small), search(XXL, small)], names[:2], [1.0, 1.0]) == []


def test_the_choice_as_config():
    entries, settings = config_lines({"text_t5": choice(micro_batches=4)})
    assert entries == ['"sharding": {"mesh": "fsdp=16", "rules": "fsdp", "micro_batches": 4}',
                       '"modalities": {"text_t5": {"options": {"remat": "none"}}}']
    assert settings == [
        "sharding.mesh=fsdp=16", "sharding.rules=fsdp", "sharding.micro_batches=4",
        "modalities.text_t5.options.remat=none"]
