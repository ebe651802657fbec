"""The documents say nothing that is not there."""

import re
from pathlib import Path

import pytest

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


def test_every_config_says_its_command_time_and_expectation():
    for path in (ROOT / "configs").rglob("*.py"):
        header = path.read_text().split('"""')[1].lower()
        assert all(word in header for word in ("deepnarrow study", "minutes", "expect")), path.name
