"""The plugin that is written installs, keeps every promise and runs a study."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from deepnarrow.cli import main
from deepnarrow.errors import InputError
from deepnarrow.newplugin import FILES, new_plugin

COMMAND = "import sys; from deepnarrow.cli import main; sys.exit(main(sys.argv[1:]))"


def deepnarrow(environment, *arguments):
    return subprocess.run([sys.executable, "-c", COMMAND, *arguments], env=environment,
                          capture_output=True, text=True, timeout=900, check=False)


def install(tmp_path, folder):
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
                    "--no-build-isolation", "--target", str(target), str(folder)], check=True,
                   capture_output=True, timeout=120)
    path = os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def test_it_installs_is_found_and_counts(tmp_path):
    folder = tmp_path / "new"
    assert main(["new-plugin", "sounds", "--out", str(folder)]) == 0
    environment = install(tmp_path, folder)
    done = deepnarrow(environment, "list", "--json")
    found = json.loads(done.stdout)
    assert any(row["name"] == "sounds" for row in found["modalities"])
    done = deepnarrow(environment, "shape", "sounds", "tiny", "tiny-nl8-dm32", "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_keeps_every_promise_and_runs_its_study(tmp_path):
    folder = tmp_path / "new"
    new_plugin("sounds", folder)
    environment = install(tmp_path, folder)
    done = deepnarrow(environment, "check", "sounds", "--json")
    assert [c for c in json.loads(done.stdout)["checks"] if c["outcome"] != "passed"] == []
    done = deepnarrow(environment, "study", str(folder / "study.py"), "--workdir",
                      str(tmp_path / "run"), "--json", "--set", "seeds=(0,)")
    assert json.loads(done.stdout)["counts"] == {"done": 3}, done.stderr


def tutorial():
    """The tutorial's commands and what each prints."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    block = text.split("```console\n")[1].split("```")[0]
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
    assert len(steps) == 6
    return [(shlex.split(command), expected) for command, expected in steps]


def check_tutorial(steps, tmp_path, monkeypatch):
    """Runs commands in an empty folder; what pip installs goes to a folder of the test's own."""
    work = tmp_path / "empty"
    work.mkdir()
    monkeypatch.chdir(work)
    environment = dict(os.environ)
    for (program, *arguments), expected in steps:
        if program == "pip":
            environment = install(tmp_path, work / arguments[-1].removesuffix("[dev]"))
            continue
        done = deepnarrow(environment, *arguments)
        assert done.returncode == 0, done.stderr
        parts = [re.escape(" ".join(part.split())) for part in expected.split("...")]
        assert re.fullmatch(".*".join(parts), " ".join(done.stdout.split())), done.stdout


def test_the_tutorials_quick_commands_print_what_it_says(tmp_path, monkeypatch):
    check_tutorial(tutorial()[:3], tmp_path, monkeypatch)


@pytest.mark.slow
def test_every_command_of_the_tutorial_prints_what_it_says(tmp_path, monkeypatch):
    check_tutorial(tutorial(), tmp_path, monkeypatch)


def test_it_is_whole_short_and_names_nothing_else(tmp_path):
    files = new_plugin("sounds", tmp_path / "new")
    assert len(files) == len(FILES)
    texts = [(tmp_path / "new" / path).read_text() for path in files]
    assert sum(len(text.splitlines()) for text in texts) < 300
    assert not any("@" + "NAME" in text or "@" + "PACKAGE" in text for text in texts)
    assert max(len(line) for text in texts for line in text.splitlines()) <= 120


@pytest.mark.parametrize(("name", "message"), [
    ("Sounds", "cannot be the name"), ("a-b", "cannot be the name"), ("", "cannot be the name"),
    ("../x", "cannot be the name"), ("text_t5", "is the name of a modality"),
    ("builtin", "or a plugin already"), ("sounds_", "no _ last"), ("a" * 41, "40 at most"),
])
def test_bad_names_write_nothing(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        new_plugin(name, tmp_path / "new", frozenset({"text_t5", "builtin"}))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match="exists already"):
        new_plugin("sounds", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
