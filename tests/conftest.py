"""What every test shares: the toy modality, and a compilation cache.

pytest imports test files one by one (`--import-mode=importlib`), so `tests` is no package. The toy
lives in `tests/toy.py`; this file loads it once under the name `toy`. A test reaches it by

    def test_x(toy):                       # the fixture: a (modality, architecture) pair
        modality, architecture = toy

or, where a fixture does not reach (parametrisation, module level), by `import toy`. A child process
of a test must put this folder on its own path to import it.

JAX is not imported here: tests of the parts that work without it stay quick. Only variables are set
that JAX reads when something imports it.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import pathlib
import sys
import tempfile
import types

import pytest

# XLA compiles most of what the tests run once a machine: programs are kept in a folder of the user.
# DEEPNARROW_TEST_CACHE moves it; JAX's own variable wins over both.
_CACHE = os.environ.get("DEEPNARROW_TEST_CACHE") or os.path.join(
    tempfile.gettempdir(), f"deepnarrow-test-cache-{getpass.getuser()}"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _load_toy() -> types.ModuleType:
    path = pathlib.Path(__file__).with_name("toy.py")
    spec = importlib.util.spec_from_file_location("toy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = module
    spec.loader.exec_module(module)
    return module


_TOY = _load_toy()


@pytest.fixture(scope="session")
def toy():
    """The toy (modality, architecture)."""
    return _TOY.toy_modality(), _TOY.toy_architecture()
