"""Tries before trials: a study's learning rates are tried, by any launcher, and then chosen.

All shapes are tuned before the first trial begins. What is missing follows from the store alone, so
that a study that was killed anywhere goes on with the tries that are left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from deepnarrow.records import FINISHED
from deepnarrow.trials import Trial, Unit, count_cell, make_units, tries_of
from deepnarrow.tuning import TryResult, results_in

if TYPE_CHECKING:
    from deepnarrow.launch.session import Session
    from deepnarrow.plugins import Registry


def listed_tries(
    trials: Sequence[Trial], todo: Sequence[Trial], results: Mapping[str, TryResult],
    registry: Registry,
) -> list[Trial]:
    """Returns the tries of a study, each once: all that `todo` needs, of others what is here."""
    unfinished = {trial.cell for trial in todo}
    found: dict[str, Trial] = {}
    for cell, trial in {trial.cell: trial for trial in trials if trial.protocol.tune}.items():
        for one in tries_of(trial, results, registry)[0]:
            if cell in unfinished or one.key in results:
                found[one.key] = one
    return list(found.values())


def run_tries(
    todo: Sequence[Trial], session: Session, launch: Callable[[Sequence[Unit]], None],
    say_plan: Callable[[Mapping[str, TryResult]], None],
) -> list[Trial] | None:
    """Runs the tries that `todo` needs and have not finished.

    A trial without a rate is recorded as failed: one of its tries failed, or all diverged.

    Args:
      todo: the trials that have not finished.
      session: of the study.
      launch: runs units; returns when each has a record, or the study was asked to stop.
      say_plan: told of all results whenever the plan may hold more tries than before.

    Returns:
      The trials that can begin, with their rates; None where the study was asked to stop.
    """
    while True:
        results = _results(session)
        say_plan(results)
        tries = listed_tries(todo, todo, results, session.registry)
        missing = [one for one in tries if one.key not in results]
        if not missing:
            return _with_choices(todo, results, session)
        session.progress.more(len(missing))
        session.cells |= {one.key: count_cell(one, session.registry, session.data[one.modality])
                          for one in missing}
        launch(make_units(missing))
        if any(one.key not in session.ended for one in missing):
            return None


def _results(session: Session) -> dict[str, TryResult]:
    """What the tries have given, the same in all processes that train together."""
    found = None
    if session.store is not None:
        results = results_in(session.store.records(), session.ended)
        found = {key: dataclasses.asdict(one) for key, one in results.items()}
    return {key: TryResult(**one) for key, one in session.hosts.share(found).items()}


def _with_choices(
    todo: Sequence[Trial], results: Mapping[str, TryResult], session: Session
) -> list[Trial]:
    ready = []
    for trial in todo:
        tries, choice = tries_of(trial, results, session.registry)
        if trial.protocol.tune is None or (choice is not None and choice.found):
            ready.append(dataclasses.replace(trial, choice=choice))
            continue
        trial = dataclasses.replace(trial, choice=choice)
        failed = [one for one in tries if results[one.key].status not in FINISHED]
        if session.hosts.first:
            session.refuse(trial, *_why(failed, results))
        session.ended.add(trial.key)
    return ready


def _why(failed: Sequence[Trial], results: Mapping[str, TryResult]) -> tuple[str, bool]:
    """Why there is no rate, and whether bad input is the reason."""
    if not failed:
        return "tuning: every learning rate diverged", False
    one = failed[0]
    return (f"tuning: the try of {one.optimizer.learning_rate:g} failed: {results[one.key].error}",
            all(results[each.key].bad_input for each in failed))
