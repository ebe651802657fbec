"""What may differ when a run is resumed: the table, and what is said."""

import fnmatch

import pytest

from deepnarrow.config import ModalityStudy, StudyConfig, to_json
from deepnarrow.errors import InputError
from deepnarrow.protocol import Budget, OptimizerConfig, Protocol
from deepnarrow.resume import RULES, changes, judge, rule_of


def config(**changed):
    protocol = Protocol(batch_size=changed.pop("batch_size", 16), budget=Budget("steps", 10),
                        optimizer=OptimizerConfig("adamw", 1e-3, "constant"))
    study = ModalityStudy("toy", changed.pop("shapes", ("tiny",)), protocol)
    return to_json(StudyConfig(**{"name": "s", "seeds": (0,), "modalities": {"toy": study},
                                  **changed}))


@pytest.mark.parametrize(("key", "kind"), [
    ("plugins.acme", "fatal"), ("revision", "fatal"), ("devices", "warn"), ("processes", "warn"),
    ("mesh", "warn"), ("rules", "warn"), ("micro_batches", "warn"), ("platform", "warn"),
    ("device", "warn"), ("versions.jax", "warn"), ("run.log_every", "free"),
    ("config.name", "warn"), ("config.seeds", "free"), ("config.run.hang_after_s", "free"),
    ("config.launch.workers", "free"), ("config.sharding.mesh", "free"),
    ("config.modalities.toy.shapes", "free"),
    ("config.modalities.toy.protocol.batch_size", "warn"),
    ("config.modalities.toy.data.noise", "warn"), ("config.modalities.toy.options.x", "warn"),
    ("something.new", "warn"),
])
def test_every_key_has_a_kind(key, kind):
    assert rule_of(key).kind == kind


def test_no_rule_is_hidden_by_an_earlier_one():
    for i, rule in enumerate(RULES):
        example = rule.pattern.replace("*", "x")
        earlier = [r.pattern for r in RULES[:i] if fnmatch.fnmatchcase(example, r.pattern)]
        assert earlier == []


def test_what_is_fatal_is_refused_with_both_values():
    found = changes({"plugins": {"acme": "1.2"}, "devices": 1},
                    {"plugins": {"acme": "1.3"}, "devices": 2})
    with pytest.raises(InputError, match=r"run k: was begun with another plugins.acme "
                       r"\(got 1.3; expected 1.2\).*fresh run directory"):
        judge("run k", found)


def test_a_plugin_that_is_gone_is_fatal_too():
    with pytest.raises(InputError, match=r"another plugins.acme \(expected 1.2\)"):
        judge("run k", changes({"plugins": {"acme": "1.2"}}, {"plugins": {}}))


def test_other_device_and_process_counts_are_told_with_both_numbers():
    told = judge("run k", changes({"devices": 1, "processes": 1, "run": {"log_every": 1}},
                                  {"devices": 8, "processes": 2, "run": {"log_every": 2}}))
    assert told == ("run k: changed: devices 1 -> 8; processes 1 -> 2 (the order of the data is "
                    "equal; sums are rounded otherwise)")


def test_a_grid_that_grows_is_no_news_but_another_protocol_is():
    before = config()
    assert judge("w", changes(before, config(seeds=(0, 1), shapes=("tiny", "tiny-nl4")),
                              "config")) is None
    told = judge("w", changes(before, config(batch_size=32), "config"))
    assert told is not None
    assert told.startswith("w: changed: config.modalities.toy.protocol.batch_size 16 -> 32 (these")
    assert changes(before, config(), "config") == []
