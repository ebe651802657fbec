"""Architectures of other libraries: each fills somebody else's encoder and passes the kit."""

import dataclasses
import importlib
import pathlib
import sys

import pytest
import toy

from deepnarrow.errors import NotApplicable
from deepnarrow.modality import StackOptions
from deepnarrow.plugins import load_plugins
from deepnarrow.testing import Subject, check_modality

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
NAMES = ("linen_mixer", "jax_averaging")


@pytest.fixture(params=NAMES)
def registry(request, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / request.param)
    module = importlib.import_module(f"deepnarrow_{request.param}.plugin")
    yield request.param, load_plugins([], extra=[module], strict=True)
    for name in [name for name in sys.modules if name.startswith(f"deepnarrow_{request.param}")]:
        del sys.modules[name]


def test_it_keeps_every_promise_in_another_plugins_modality(registry):
    name, found = registry
    modality = toy.toy_modality()
    found = dataclasses.replace(found, modalities={"toy": modality})
    results = check_modality(Subject(modality, found.architecture(name), found), on_fail="return")
    assert [(r.name, r.message) for r in results if r.outcome != "passed"] == []


def test_it_says_what_it_cannot_be(registry):
    name, found = registry
    shape = toy.toy_modality().presets["tiny"].shape
    make_stack = found.architecture(name).make_stack
    for role, options in (("decoder", StackOptions()), ("encoder", StackOptions(causal=True))):
        with pytest.raises(NotApplicable, match=name):
            make_stack(shape, role, 4, options)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_distribution_with_an_entry_point(name):
    text = (EXAMPLES / name / "pyproject.toml").read_text()
    assert f'{name} = "deepnarrow_{name}.plugin"' in text
