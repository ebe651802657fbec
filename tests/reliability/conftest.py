"""The reliability tests import each other, as the scoreboard does."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from harness import Zygote, finished


@pytest.fixture(scope="session")
def zygote():
    """A process that forks children; started once."""
    with Zygote() as made:
        yield made


@pytest.fixture(scope="session")
def unbroken(zygote, tmp_path_factory):
    """What the toy study leaves when nothing happens to it, and the seconds it takes."""
    folder = tmp_path_factory.mktemp("warm")
    finished(zygote, folder, transfer=False)  # compiles
    return finished(zygote, tmp_path_factory.mktemp("unbroken"), transfer=False)
