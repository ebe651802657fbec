"""Reading a compiled program, on one made by hand whose counts are known."""

import math
import pathlib

import pytest

from deepnarrow.planning.hlo import (
    collectives,
    group_axes,
    instruction_flops,
    matmul_flops,
    parse_hlo,
    replica_groups,
    ring_bytes,
)

MODULE = parse_hlo((pathlib.Path(__file__).parent / "program.hlo").read_text())
MESH = {"fsdp": 4, "tensor": 2}
BY_NAME = {one.name: one for computation in MODULE.computations.values() for one in computation}


def test_loops_multiply_out():
    assert MODULE.entry == "main"
    assert MODULE.runs["main"] == 1
    assert MODULE.runs["body"] == 12
    assert MODULE.runs["fused_product"] == 12
    # A counter that goes up by 2 to 4, inside the loop of 12.
    assert MODULE.runs["windowed_dot_general_body_rs.1"] == 24


def test_a_loop_whose_trips_are_written_down_or_unknown():
    text = """ENTRY %main (x: f32[]) -> f32[] {
  %loop = f32[]{} while(%x), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"7"}}
  %other = f32[]{} while(%x), condition=%c, body=%b
}"""
    module = parse_hlo(text)
    assert [module.trips(one) for one in module.computations["main"]] == [7, 1]


def test_matmuls_count_as_often_as_they_run():
    product = 2 * 8 * 32 * 16
    maps = 2 * 2 * 3 * 5 * 7 * 64  # batch 2 x 3, as windows with holes
    back = 2 * 8 * 16 * 32
    assert matmul_flops(MODULE) == 12 * (product + back) + maps


@pytest.mark.parametrize(("left", "right", "output", "attributes", "flops"), [
    # A batch of 16 laid on the window's axis and dilated: only the diagonal meets real numbers.
    ("16,196,6,64", "16,196,6,64", "16,6,196,196",
     "window={size=16x6 stride=15x5 lhs_dilate=16x6}, dim_labels=0b1f_0o1i->01bf",
     2 * 16 * 6 * 196 * 196 * 64),
    # Heads as a window with padding: each output meets one.
    ("16,196,768,1", "6,64,768,1", "16,196,6,64",
     "window={size=1x6 pad=0_0x5_5 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
     2 * 16 * 196 * 6 * 64 * 768),
    # An ordinary convolution: 3 x 3, padding 1, on 8 x 8: the corners meet 4 places, edges 6.
    ("2,8,8,4", "3,3,4,5", "2,8,8,5", "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
     2 * 2 * 5 * 4 * (4 * 4 + 4 * 6 * 6 + 36 * 9)),
])
def test_windows_count_what_they_meet(left, right, output, attributes, flops):
    text = f"""ENTRY %main (x: f32[]) -> f32[] {{
  %l = bf16[{left}] parameter(0)
  %r = bf16[{right}] parameter(1)
  ROOT %c = bf16[{output}] convolution(%l, %r), {attributes}
}}"""
    lines = parse_hlo(text).computations["main"]
    assert instruction_flops(lines[2], lines) == flops


def test_collectives_by_kind_and_axis():
    found = {(one.kind, one.axes): one for one in collectives(MODULE, MESH)}
    gather = found["all-gather", "fsdp"]
    assert gather.count == 12  # the second of the same channel is the first, spread out
    assert gather.result_bytes == 12 * 16 * 32 * 2
    assert gather.sent_bytes == gather.result_bytes * 3 / 4
    reduce = found["all-reduce", "tensor"]
    assert (reduce.count, reduce.result_bytes) == (12, 12 * 8 * 32 * 2)
    assert reduce.sent_bytes == reduce.result_bytes  # 2 (n - 1) / n of two devices
    assert found["all-reduce", "fsdp+tensor"].count == 1
    # The fusion of a reduction and its slice; 24 permutations of a windowed one; a real one.
    scatter = found["reduce-scatter", "fsdp"]
    assert scatter.count == 1 + 24 + 0
    assert scatter.sent_bytes == 64 * 32 * 4 * 3 / 4 + 24 * 4 * 32 * 2
    assert found["reduce-scatter", "part of fsdp"].result_bytes == 2 * 4 * 4
    assert len(found) == 5


@pytest.mark.parametrize(("name", "groups"), [
    ("gathered", [(0, 2, 4, 6), (1, 3, 5, 7)]),
    ("shared", [(0, 1), (2, 3), (4, 5), (6, 7)]),
    ("all-reduce.9", [(0, 2, 4, 6), (1, 3, 5, 7)]),
    # Devices 0, 4, 1, 5, ... in four rows of two.
    ("tiny", [(0, 4), (1, 5), (2, 6), (3, 7)]),
])
def test_every_notation_of_groups(name, groups):
    assert replica_groups(BY_NAME[name], 8) == groups


def test_groups_that_are_not_written_are_all_devices():
    text = "ENTRY %main (x: f32[]) -> f32[] {\n  ROOT %a = f32[4] all-reduce(%x), to_apply=%add\n}"
    assert replica_groups(parse_hlo(text).computations["main"][0], 4) == [(0, 1, 2, 3)]


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4, "tensor": 2}, {"fsdp": 16}])
def test_the_groups_of_an_axis_are_named_after_it(sizes):
    names, numbers = list(sizes), list(sizes.values())
    strides = [math.prod(numbers[i + 1:]) for i in range(len(numbers))]
    for name, size, stride in zip(names, numbers, strides, strict=True):
        others = [d for d in range(math.prod(numbers)) if d // stride % size == 0]
        groups = [tuple(first + i * stride for i in range(size)) for first in others]
        assert group_axes(groups, sizes) == name
    assert group_axes([tuple(range(math.prod(numbers)))], sizes) == "+".join(names)


def test_ring_bytes():
    assert ring_bytes("all-gather", 100.0, 4) == 75
    assert ring_bytes("reduce-scatter", 100.0, 4) == 75
    assert ring_bytes("all-reduce", 100.0, 4) == 150
    assert ring_bytes("collective-permute", 100.0, 4) == 100


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        parse_hlo("nothing here")
