"""The local launcher: unit after unit in this process, so that step times are undisturbed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepnarrow.study import Unit


def run(units: Sequence[Unit], run_unit: Callable[[Unit], bool]) -> None:
    """Runs `units` in order; stops where `run_unit` returns False."""
    for unit in units:
        if not run_unit(unit):
            return
