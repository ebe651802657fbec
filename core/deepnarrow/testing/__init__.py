"""The kit that says whether a modality keeps its promises, and what its author must change.

    from deepnarrow.testing import parametrize_with_checks

    @parametrize_with_checks(["my_modality"])
    def test_my_modality(check):
        check()

or `deepnarrow check my_modality`, or `check_modality(...)` in a notebook. Every `check_*` is one
promise; it runs on the preset `tiny`, the general architecture and the modality's own data.
"""

from deepnarrow.testing.checks import CHECKS
from deepnarrow.testing.run import (
    CheckResult,
    check_modality,
    modality_checks,
    parametrize_with_checks,
)
from deepnarrow.testing.subject import CheckFailed, Subject, make_subject

__all__ = [
    "CHECKS",
    "CheckFailed",
    "CheckResult",
    "Subject",
    "check_modality",
    "make_subject",
    "modality_checks",
    "parametrize_with_checks",
]
