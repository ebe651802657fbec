"""The shipped modalities keep every promise that the kit checks; minutes, and so slow."""

import pytest

from deepnarrow.testing import check_modality, fake_devices, make_subject


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_t5", "vision_vit"])
def test_a_shipped_modality_keeps_every_promise(name):
    fake_devices()
    results = check_modality(make_subject(name), on_fail="return")
    assert len(results) >= 32
    assert {r.name: r.message for r in results if r.outcome != "passed"} == {}
