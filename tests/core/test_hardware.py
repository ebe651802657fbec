"""The chip table and the roofline estimate, by hand on a model of known size."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepnarrow.cost import summarize
from deepnarrow.errors import InputError
from deepnarrow.hardware import CHIPS, chip_named, roofline_step_time
from deepnarrow.modality import Costs, FlopTerm, ParamArray

PARAMS = 1000 * 2000
FORWARD = 2.0 * PARAMS * 64  # of one example of 64 positions
SUMMARY = summarize(Costs(
    (ParamArray(("w",), (1000, 2000), ("embed", "mlp"), "decoder/mlp"),),
    (FlopTerm("decoder/mlp", "weight", FORWARD, activation_floats=5000.0),),
    lengths={"decoder": 64}))


def test_the_table_is_complete_and_sourced():
    assert set(CHIPS) == {"v3", "v4", "v5e", "v5p", "v6e", "h100", "a100"}
    for name, chip in CHIPS.items():
        assert chip.name == name
        assert chip.source
        assert {"bfloat16", "float32"} <= set(chip.peak_flops)
        assert chip.peak_flops["float32"] <= chip.peak_flops["bfloat16"]
        # Orders of magnitude: tera-FLOP/s, tens of GB, hundreds of GB/s.
        assert 1e14 < chip.peak_flops["bfloat16"] < 1e15
        assert 1.5e10 < chip.hbm_bytes < 1.1e11
        assert 5e11 < chip.hbm_bandwidth < 5e12
        assert 1e11 < chip.interconnect_bandwidth < chip.hbm_bandwidth


@pytest.mark.parametrize(("name", "tera", "gigabytes", "gb_s", "links_gb_s"), [
    ("v3", 123, 32 * 1.073741824, 900, 400),
    ("v4", 275, 32 * 1.073741824, 1200, 281.25),
    ("v5e", 197, 16, 819, 200),
    ("v5p", 459, 95 * 2**30 / 1e9, 2765, 600),
    ("v6e", 918, 32, 1600, 400),
    ("h100", 989.5, 80, 3350, 450),
    ("a100", 312, 80, 2039, 300),
])
def test_published_numbers(name, tera, gigabytes, gb_s, links_gb_s):
    chip = chip_named(name.upper())
    assert chip.peak_flops["bfloat16"] == tera * 1e12
    assert chip.hbm_bytes == pytest.approx(gigabytes * 1e9, rel=1e-12)
    assert chip.hbm_bandwidth == gb_s * 1e9
    assert chip.interconnect_bandwidth == links_gb_s * 1e9


def test_an_unknown_chip_is_refused():
    with pytest.raises(InputError, match=r"chip: unknown \(got v5x; expected one of v3, .*"):
        chip_named("v5x")


def test_the_estimate_by_hand():
    chip = dataclasses.replace(CHIPS["v5e"], peak_flops={"bfloat16": 1e12, "float32": 5e11},
                               hbm_bandwidth=1e9, interconnect_bandwidth=1e8)
    estimate = roofline_step_time(SUMMARY, chip, batch_size=8, num_chips=4, optimizer="adamw")
    assert estimate.compute_s == pytest.approx(3 * FORWARD * 8 / 4 / 1e12, rel=1e-12)
    moved = 6 * 4 * PARAMS + 2 * 8 * PARAMS + 2 * 4 * 5000 * 8 / 4
    assert estimate.memory_s == pytest.approx(moved / 1e9, rel=1e-12)
    assert estimate.interconnect_s == pytest.approx(2 * 4 * PARAMS * 3 / 4 / 1e8, rel=1e-12)
    assert estimate.step_time_s == estimate.interconnect_s
    assert estimate.bound == "interconnect"
    needed = 2 * 4 * PARAMS + 8 * PARAMS + 4 * 5000 * 8 / 4
    assert (estimate.bytes_needed, estimate.bytes_there) == (needed, chip.hbm_bytes)
    assert estimate.fits == (needed <= chip.hbm_bytes)
    alone = roofline_step_time(SUMMARY, chip, batch_size=8, dtype="float32", optimizer="adafactor")
    assert alone.interconnect_s == 0
    assert alone.compute_s == pytest.approx(3 * FORWARD * 8 / 5e11, rel=1e-12)
    moved = 6 * 4 * PARAMS + 2 * 4 * (1000 + 2000) + 2 * 4 * 5000 * 8
    assert alone.memory_s == pytest.approx(moved / 1e9, rel=1e-12)


@given(batch=st.integers(1, 4096), chips=st.sampled_from([1, 2, 8, 64]),
       name=st.sampled_from(sorted(CHIPS)))
def test_no_more_chips_and_no_smaller_batch_take_longer_to_compute(batch, chips, name):
    def estimate(batch, chips):
        return roofline_step_time(SUMMARY, CHIPS[name], batch_size=batch, num_chips=chips)

    one = estimate(batch, chips)
    assert one.step_time_s == max(one.compute_s, one.memory_s, one.interconnect_s)
    assert estimate(batch + 1, chips).compute_s > one.compute_s
    assert estimate(batch, 2 * chips).compute_s < one.compute_s
    assert estimate(batch, 2 * chips).interconnect_s > one.interconnect_s


def test_the_estimate_counts_what_remat_repeats():
    repeated = summarize(dataclasses.replace(SUMMARY.costs, remat="full"))
    plain = roofline_step_time(SUMMARY, CHIPS["v4"], batch_size=8)
    remat = roofline_step_time(repeated, CHIPS["v4"], batch_size=8)
    assert remat.compute_s == pytest.approx(plain.compute_s * 4 / 3, rel=1e-12)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 8, "num_chips": 0}])
def test_batch_and_chips_are_positive(wrong):
    with pytest.raises(InputError, match="out of range"):
        roofline_step_time(SUMMARY, CHIPS["v4"], **wrong)
