"""The documents say nothing that is not there."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from deepnarrow import hookspecs
from deepnarrow.modality import Modality
from deepnarrow.testing import CHECKS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(path):
    text = path.read_text()
    assert not re.findall(r"@[A-Z_]+@", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_module_of_the_core_stands_on_the_map():
    text = (ROOT / "docs" / "architecture.md").read_text()
    core = ROOT / "core" / "deepnarrow"
    names = {p.name for p in core.glob("*.py")} - {"__init__.py"}
    names |= {f"{p.parent.name}/" for p in core.glob("*/__init__.py")}
    assert sorted(name for name in names if name not in text) == []


def test_every_hook_is_documented_with_its_signature():
    text = (ROOT / "docs" / "plugins.md").read_text()
    hooks = [hook for name, hook in vars(hookspecs).items() if name.startswith("deepnarrow_")]
    assert len(hooks) == text.count("### `deepnarrow_")
    for hook in hooks:
        signature = str(inspect.signature(hook)).replace("'", "")
        assert f"### `{hook.__name__}{signature}`" in text


def test_every_check_of_the_kit_is_documented_with_its_promise():
    text = (ROOT / "docs" / "plugins.md").read_text()
    for name, check in CHECKS.items():
        assert f"| `{name}` | {(check.__doc__ or '').splitlines()[0]} |" in text


def test_every_member_a_modality_must_have_is_documented():
    text = (ROOT / "docs" / "plugins.md").read_text()
    names = [field.name for field in dataclasses.fields(Modality)]
    assert [name for name in names if f"`{name}" not in text] == ["name"]


def test_every_config_says_its_command_time_and_expectation():
    for path in (ROOT / "configs").rglob("*.py"):
        header = path.read_text().split('"""')[1].lower()
        assert all(word in header for word in ("deepnarrow study", "minutes", "expect")), path.name
