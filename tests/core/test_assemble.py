"""What an architecture is told when it fills a modality's stacks."""

from __future__ import annotations

import dataclasses

import pytest

from deepnarrow.assemble import build_stacks
from deepnarrow.modality import Architecture, Costs, Stack


@pytest.mark.parametrize(("own", "expected"), [
    ({}, {"window": 8, "sides": 2}),
    ({"window": 3}, {"window": 3, "sides": 2}),
])
def test_an_architecture_finds_its_own_options(toy, own, expected):
    modality, _ = toy
    told = []

    def make_stack(shape, role, length, options):
        told.append(options)
        return Stack(None, None, None, Costs, length)

    def stack_specs(shape, options):
        return tuple(
            dataclasses.replace(spec, options=dataclasses.replace(spec.options, architecture=own))
            for spec in modality.stack_specs(shape, options))

    windowed = Architecture("windowed", make_stack, frozenset(), {"window": 8, "sides": 2})
    build_stacks(dataclasses.replace(modality, stack_specs=stack_specs), windowed,
                 modality.presets["tiny"].shape, modality.options)
    (options,) = told
    assert options.architecture == expected
    (spec,) = modality.stack_specs(modality.presets["tiny"].shape, modality.options)
    assert dataclasses.replace(options, architecture={}) == spec.options  # nothing else changed
