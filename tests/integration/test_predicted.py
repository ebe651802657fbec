"""Predicted step times of records: the roofline of each shape, counted by its modality."""

import pytest

from deepnarrow.assemble import count_costs
from deepnarrow.cost import summarize
from deepnarrow.errors import InputError
from deepnarrow.hardware import CHIPS, roofline_step_time
from deepnarrow.pareto import fronts
from deepnarrow.plugins import registry
from deepnarrow.predicted import with_predicted
from deepnarrow.records import MetricRow, Record
from deepnarrow.table import from_records


def record(modality, name, protocol):
    shape = registry().modality(modality).presets[name].shape
    return Record(f"{modality}/{name}", "s", modality, "transformer", name, shape.to_dict(), 0,
                  "done", {"options": {}, "protocol": protocol},
                  {"params_non_embedding": 1.0}, "matmul", {},
                  (MetricRow("upstream", "", "loss", "min", 1.0),))


@pytest.mark.parametrize("modality", ["text_t5", "vision_vit"])
def test_a_predicted_time_is_the_roofline_of_the_shape(modality):
    protocol = {"batch_size": 64, "optimizer": {"name": "adamw"}}
    records = [record(modality, "tiny", protocol)]
    table, name = with_predicted(from_records(records), records, CHIPS["h100"], registry())
    assert name == "step_time_s@h100"
    known = registry().modality(modality)
    costs = summarize(count_costs(known, registry().architecture("transformer"),
                                  known.presets["tiny"].shape, known.options))
    expected = roofline_step_time(costs, CHIPS["h100"], batch_size=64, optimizer="adamw",
                                  dtype=known.options.compute_dtype)
    front, = fronts(table, [name])
    assert [(point.name, point.cost) for point in front.points] == [("tiny", expected.step_time_s)]


def test_somebody_elses_weights_have_no_batch_to_predict_for():
    records = [record("vision_vit", "tiny", {})]
    table, name = with_predicted(from_records(records), records, CHIPS["v5e"], registry())
    front, = fronts(table, [name])
    assert front.points == ()
    assert list(front.left_out) == ["tiny"]


def test_files_alone_have_no_shape_to_predict_for():
    with pytest.raises(InputError, match="no source is one"):
        with_predicted(from_records([]), [], CHIPS["v5e"], registry())
