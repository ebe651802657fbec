"""What a launcher is given: a study under way, its records and the means to run and to record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepnarrow.config import StudyConfig
from deepnarrow.errors import shorten
from deepnarrow.hosts import AgreedStop, Hosts
from deepnarrow.observers import trial_facts
from deepnarrow.plugins import Registry, notify
from deepnarrow.records import Record
from deepnarrow.store import Store
from deepnarrow.trials import Cell, ModalityData, Trial, Unit, blank_record
from deepnarrow.tuning import choice_facts, choice_rows

if TYPE_CHECKING:
    from deepnarrow.progress import StudyProgress
    from deepnarrow.trial import UnitRunner

PROCESS_BYTES = 1_500_000_000  # of a process that has imported JAX and opened data: an assumption
MOMENTS = 2  # of float32 beside the params, their gradients and the update: an upper bound


@dataclasses.dataclass
class Session:
    """A study under way.

    Attributes:
      config: of the study.
      registry: of the loaded plugins.
      data: of each modality.
      cells: by the trials' keys.
      workdir: of the study.
      store: its records; None in all but the first of several processes that train together.
      progress: what a person sees.
      stop: whether to stop; asked often.
      hosts: the processes that train together.
      ended: keys of the trials that have a record since this call began.
    """

    config: StudyConfig
    registry: Registry
    data: Mapping[str, ModalityData]
    cells: dict[str, Cell]
    workdir: Path
    store: Store | None
    progress: StudyProgress
    stop: AgreedStop
    hosts: Hosts
    ended: set[str] = dataclasses.field(default_factory=set)

    @functools.cached_property
    def _runner(self) -> UnitRunner:
        from deepnarrow.trial import (
            UnitRunner,  # imports JAX: only where trials run in this process
        )

        return UnitRunner(self.config, self.registry, self.data, self.cells, self.workdir,
                          self.claim, self.deliver, self.progress, self.stop, self.hosts)

    def run_unit(self, unit: Unit) -> bool:
        """Runs a unit in this process; returns False when asked to stop."""
        runner = self._runner
        gone_on = runner.run_unit(unit)
        if not self.hosts.first and gone_on:
            self.ended |= {trial.key for trial in unit.trials}
        return gone_on

    def claim(self, key: str) -> int:
        """Begins an attempt at a trial, and fences off those before; returns its number."""
        assert self.store is not None
        return self.store.claim(key)

    def deliver(self, record: Record, attempt: int) -> bool:
        """Stores what an attempt gave, and tells observers; False where it was fenced off."""
        assert self.store is not None
        kept = self.store.add_claimed(record, attempt)
        if kept:
            self.ended.add(record.key)
            notify(self.registry, "deepnarrow_run_end", record=record.to_dict(), info=trial_facts(
                self.cells[record.key].trial, self.config, self.workdir))
        return kept

    def give_up(self, trial: Trial, attempt: int, why: str, log: Path) -> None:
        """Records a trial as failed whose process left no record."""
        record = dataclasses.replace(
            blank_record(self.config.name, trial, self.cells[trial.key]),
            costs={"params_total": float(self.cells[trial.key].costs.params_total)},
            environment={"error": shorten(why, 500), "bad_input": False, "attempt": attempt,
                         "traceback": str(log.relative_to(self.workdir))})
        self.deliver(record, attempt)

    def refuse(self, trial: Trial, why: str, bad_input: bool) -> None:
        """Records a trial as failed that cannot be begun."""
        attempt = self.claim(trial.key)
        record = dataclasses.replace(
            blank_record(self.config.name, trial, self.cells[trial.key]),
            costs={"params_total": float(self.cells[trial.key].costs.params_total)},
            metrics=tuple(choice_rows(trial.choice)) if trial.choice else (),
            environment={"error": shorten(why, 500), "bad_input": bad_input, "attempt": attempt,
                         **({"tuning": choice_facts(trial.choice)} if trial.choice else {})})
        self.deliver(record, attempt)
        self.progress.ended(f"{trial.modality} {trial.shape.name} seed {trial.seed}: failed, {why}")

    def memory_bytes(self, unit: Unit) -> int:
        """Returns what a unit's process needs: `launch.memory_gb`, else params, optimiser, base.

        Activations are not known without compiling, so it is a floor for large batches.
        """
        if self.config.launch.memory_gb:
            return int(self.config.launch.memory_gb * 1e9)
        params = max(self.cells[trial.key].costs.params_total for trial in unit.trials)
        return PROCESS_BYTES + 4 * params * (3 + MOMENTS)
