"""`new_plugin`: a distribution that registers a modality, complete, installable and passing."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from deepnarrow.errors import InputError, shorten
from deepnarrow.files import new_path

# Template -> where it goes; @NAME@ and @PACKAGE@ are replaced in both.
FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "study.py.txt": "study.py",
    "test_plugin.py.txt": "tests/test_plugin.py",
    "__init__.py.txt": "@PACKAGE@/__init__.py",
    "plugin.py.txt": "@PACKAGE@/plugin.py",
    "data.py.txt": "@PACKAGE@/data.py",
    "model.py.txt": "@PACKAGE@/model.py",
}


def new_plugin(name: str, directory: str | Path, taken: frozenset[str] = frozenset()) -> list[Path]:
    """Writes a new distribution, whole or not at all.

    Args:
      name: of the modality.
      directory: made; must not exist.
      taken: names of modalities and entry points that are registered.

    Returns:
      The files, relative to `directory`.

    Raises:
      InputError: the name cannot be one or is taken, or the directory exists or cannot be written.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9_]{0,38}[a-z0-9])?", name):
        raise InputError("new-plugin NAME", "cannot be the name of a modality and of its package",
                         got=repr(shorten(name)),
                         expected="a letter a-z, then letters, digits and _; no _ last; 40 at most")
    if name in taken:
        raise InputError("new-plugin NAME", "is the name of a modality or a plugin already",
                         got=name, hint="choose another name, or uninstall its plugin")
    words = {"@NAME@": name, "@PACKAGE@": f"deepnarrow_{name}"}
    written = []
    with new_path(Path(directory)) as made:
        for template, target in FILES.items():
            text = resources.files("deepnarrow.template").joinpath(template).read_text("utf-8")
            for word, value in words.items():
                text, target = text.replace(word, value), target.replace(word, value)
            path = made / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(Path(target))
    return written
