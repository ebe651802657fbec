"""The process of one unit: `python -m deepnarrow.worker ORDER [--with-parent]`.

Launchers start it. It trains what the order says and leaves each record in `WORKDIR/outbox/`; it
never opens the store. Exit codes as the command's: 0 all trials have a record, 2 the order cannot
be carried out, 70 hung, 75 asked to stop: the same order goes on.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Sequence

from deepnarrow.errors import InputError, InputErrors, shorten
from deepnarrow.hosts import ALONE
from deepnarrow.launch.orders import Order, leave, read_order
from deepnarrow.plugins import Registry, registry
from deepnarrow.running import say_ended
from deepnarrow.signals import EXIT_PREEMPTED, StopRequest
from deepnarrow.trials import Trial, Unit, count_cell, make_try, open_data, plan_trials
from deepnarrow.tuning import choice_from_json

EXIT_BAD_INPUT = 2
WITH_PARENT = "--with-parent"


def main(arguments: Sequence[str]) -> int:
    """Carries out an order; returns the exit code."""
    if WITH_PARENT in arguments:
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        with StopRequest() as stop:
            return 0 if carry_out(read_order(arguments[0]), stop) else EXIT_PREEMPTED
    except InputError as error:
        for one in error.errors if isinstance(error, InputErrors) else [error]:
            print(shorten(f"error: {one}", 4000), file=sys.stderr)
        return EXIT_BAD_INPUT


def carry_out(order: Order, stop: StopRequest) -> bool:
    """Runs the trials of an order one after the other; returns False when asked to stop.

    Raises:
      InputError: the config gives other trials here, as where the data are not those that the
        study was planned with.
    """
    loaded = registry()
    data = {name: open_data(study, loaded) for name, study in order.config.modalities.items()}
    trials = ordered_trials(order, plan_trials(order.config, loaded, data)[0], loaded)
    if unknown := sorted(order.attempts.keys() - trials.keys()):
        raise InputError(f"order '{order.path.name}'", "the config gives other trials here",
                         got=f"no trial {unknown[0]}",
                         hint="are data and plugins here those of the command?")
    mine = [trials[key] for key in order.attempts]
    cells = {t.key: count_cell(t, loaded, data[t.modality]) for t in mine}
    from deepnarrow.progress import StudyProgress
    from deepnarrow.trial import UnitRunner

    with StudyProgress(len(mine)) as progress:
        runner = UnitRunner(
            order.config, loaded, data, cells, order.workdir, lambda key: order.attempts[key],
            lambda record, attempt: leave(order.workdir, record, attempt), progress, stop, ALONE)
        try:
            return runner.run_unit(Unit(tuple(mine)))
        finally:
            say_ended(order.workdir)


def ordered_trials(order: Order, planned: Sequence[Trial], loaded: Registry) -> dict[str, Trial]:
    """Returns by key the trials that an order can name: the config's, with their choice, and tries.
    """
    found: dict[str, Trial] = {}
    for trial in planned:
        chosen = order.tuned.get(trial.key)
        found[trial.key] = trial if chosen is None else dataclasses.replace(
            trial, choice=choice_from_json(chosen))
    rates = {facts["learning_rate"] for key, facts in order.tuned.items() if key not in found}
    for trial in {t.cell: t for t in planned if t.protocol.tune}.values() if rates else ():
        assert trial.protocol.tune is not None
        for rate in rates:
            made = [make_try(trial, rate, seed, loaded) for seed in trial.protocol.tune.seeds]
            found |= {one.key: one for one in made}
    return found


def _end_with_parent() -> None:
    """Asks for a stop once the process that started this one is gone: its end of stdin closes."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
