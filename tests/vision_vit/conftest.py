"""Makes `image_files` importable for the tests of this folder (see tests/conftest.py for why)."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

if "image_files" not in sys.modules:
    _path = pathlib.Path(__file__).with_name("image_files.py")
    _spec = importlib.util.spec_from_file_location("image_files", _path)
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["image_files"] = _module
    _spec.loader.exec_module(_module)
