"""Running the checks: as a list, as results, as pytest's parameters."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from deepnarrow.errors import InputError, shorten, suggest
from deepnarrow.modality import Modality
from deepnarrow.testing.checks import CHECKS
from deepnarrow.testing.numerics import check_it_learns
from deepnarrow.testing.subject import CheckFailed, Subject, make_subject

LONG = {check_it_learns}  # so many steps that compiling well pays off
# What the others build on: without one form there is no batch, without names no sharding.
FOUNDATIONS = ("registration", "loading_is_a_function", "examples_have_one_form",
               "params_are_counted", "axes")
Outcome = Literal["passed", "failed", "follows", "expected", "unexpected"]


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """How one check ended.

    Attributes:
      name: of the check, without `check_`.
      outcome: `passed`; `failed`; `follows`, it failed after one that it may build on; `expected`,
        it failed as its author said it would; `unexpected`, it passed though its author said it
        would fail.
      message: what must change; why it was expected to fail; else "".
      seconds: that it took.
    """

    name: str
    outcome: Outcome
    message: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the modality is as its author says."""
        return self.outcome in ("passed", "expected")


def modality_checks(
    subject: Subject, only: Sequence[str] = ()
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields every check of a modality, or those named: a name, what raises `CheckFailed`."""
    for name, check in CHECKS.items():
        if not only or name in only:
            yield name, functools.partial(_quickly, check, subject)


def check_modality(
    modality: str | Modality | Subject,
    *,
    only: Sequence[str] = (),
    expected_failures: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "return"] = "raise",
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Runs every check of a modality, or some.

    Args:
      modality: registered by that name, given, or a subject with an architecture and data options.
      only: names of the checks to run; empty for all.
      expected_failures: check -> reason why it cannot pass yet. It is run all the same.
      on_fail: raise at the first that is not as expected, or return all results.
      on_result: called after each check.

    Raises:
      CheckFailed: a check failed, or one passed that was expected to fail.
      InputError: `only` or `expected_failures` names no check.
    """
    subject = modality if isinstance(modality, Subject) else make_subject(modality)
    expected = expected_failures or {}
    known_checks("only", only)
    known_checks("expected_failures", expected)
    results = []
    for name, check in modality_checks(subject, only):
        result = _run(name, check, expected.get(name))
        broken = [r.name for r in results if r.outcome == "failed" and r.name in FOUNDATIONS]
        if result.outcome == "failed" and broken:
            result = dataclasses.replace(
                result, outcome="follows",
                message=f"mend {broken[0]} first; this may follow from it: {result.message}")
        results.append(result)
        if on_result is not None:
            on_result(result)
        if on_fail == "raise" and not result.ok:
            raise CheckFailed(f"check_{name}: {result.message}")
    return results


def known_checks(where: str, names: Iterable[str]) -> None:
    """Raises `InputError` where a name is no check's."""
    for name in names:
        if name not in CHECKS:
            near = suggest(name, CHECKS)
            raise InputError(where, "no check has that name", got=repr(shorten(name)),
                             expected=None if near else f"one of {', '.join(CHECKS)}",
                             hint=f"did you mean {near}?" if near else None)


def parametrize_with_checks(modalities: Sequence[str | Modality | Subject]) -> Any:
    """A pytest decorator: the test gets `check`, once for every check of every modality."""
    import pytest

    subjects = [m if isinstance(m, Subject) else make_subject(m) for m in modalities]
    return pytest.mark.parametrize("check", [
        pytest.param(check, id=f"{subject.modality.name}-{name}")
        for subject in subjects for name, check in modality_checks(subject)])


def _quickly(check: Callable[[Subject], None], subject: Subject) -> None:
    """Runs a check with programs compiled for a few tiny steps: in half the time for most."""
    import jax

    if check in LONG:
        check(subject)
        return

    config: Any = jax.config
    before = config.values["jax_disable_most_optimizations"]
    config.update("jax_disable_most_optimizations", True)
    try:
        check(subject)
    finally:
        config.update("jax_disable_most_optimizations", before)


def _run(name: str, check: Callable[[], None], expected: str | None) -> CheckResult:
    start = time.monotonic()
    try:
        check()
    except CheckFailed as error:
        failure: str | None = str(error)
    except Exception as error:
        # A plugin may raise anything: that is a failure of this check, and the next ones go on.
        failure = f"{type(error).__name__} while it ran: {shorten(error, 300)}"
    else:
        failure = None
    seconds = time.monotonic() - start
    if failure is None:
        if expected is None:
            return CheckResult(name, "passed", "", seconds)
        return CheckResult(name, "unexpected", f"passes now, though it was expected to fail: "
                           f"{expected}", seconds)
    if expected is None:
        return CheckResult(name, "failed", failure, seconds)
    return CheckResult(name, "expected", f"{expected} ({failure})", seconds)
