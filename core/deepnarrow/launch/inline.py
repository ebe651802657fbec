"""The launcher `inline`: unit after unit in this process, so that step times are undisturbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepnarrow.launch.session import Session
    from deepnarrow.trials import Unit


def run(units: Sequence[Unit], session: Session) -> None:
    """Runs `units` in order; stops where it is asked to."""
    for unit in units:
        if not session.run_unit(unit):
            return
