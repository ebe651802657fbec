"""The peers' networks: big_vision's and T5X's from checkouts on PYTHONPATH.

Only networks are imported: the packages around big_vision's and T5X's need their whole training
stacks, TensorFlow among them, so empty packages stand in that lead to the checkouts' files.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


@functools.cache  # once, because `stand_in` hides what is looked for
def find_checkout(package: str) -> Path:
    """Returns the folder that holds `package`.

    Raises:
      ImportError: it is not on PYTHONPATH.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"a checkout of {package} is not on PYTHONPATH")
    return Path(next(iter(spec.submodule_search_locations))).parent


def stand_in(checkout: Path, *packages: str) -> None:
    """Registers empty packages that lead to a checkout's files."""
    for name in packages:
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, package)


@functools.cache
def import_big_vision(checkout: Path) -> Any:
    """Returns big_vision's `models.vit`."""
    # The last two load weights, which is not done here.
    stand_in(checkout, "big_vision", "big_vision.models", "big_vision.utils",
             "big_vision.models.common")
    from big_vision.models import vit

    return vit


@functools.cache
def import_t5x(checkout: Path) -> Any:
    """Returns T5X's minimal network, `examples.t5.network`."""
    stand_in(checkout, "t5x", "t5x.examples", "t5x.examples.t5")
    from t5x.examples.t5 import network

    return network
