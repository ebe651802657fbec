"""The key of a trial: a hash of what determines its result, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Raised by every change of the code that changes what a trial gives by more than rounding, which
# differs between processors too: records made before it no longer count as finished.
REVISION = 4


def trial_key(config: Mapping[str, Any]) -> str:
    """Returns 32 hex digits of the sha256 of `config` as canonical JSON.

    >>> trial_key({"a": 1, "b": (2, 3)}) == trial_key({"b": [2, 3], "a": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
