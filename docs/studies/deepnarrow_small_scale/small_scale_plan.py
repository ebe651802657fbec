"""What the plan says will be run, and what of it is there: shapes, trials, tries of tuning.

The shapes, rungs, tasks and grids are those of `configs/studies/deepnarrow_small_scale.py`; what
else the plan (`../deepnarrow_small_scale.md`) names stands here as constants.
"""

from __future__ import annotations

import dataclasses
import runpy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepnarrow.errors import InputError
from deepnarrow.protocol import Tune
from deepnarrow.records import UPSTREAM_LOSS, Record, latest, reported
from deepnarrow.table import Table, from_records
from deepnarrow.tuning import Choice, TryResult, choose, result_of

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "studies" / "deepnarrow_small_scale.py"
DOMAINS = {"text_t5": "text", "vision_vit": "vision", "peptides": "peptides"}  # and its function
SEEDS = (0, 1, 2)
# The plan's U: the uniform shapes, which are the reference family.
UNIFORM = "*-nl2-dm32-*,*-nl3-dm36-*,*-nl4-dm44-*,*-nl5-dm56-*,*-nl6-dm60-*"
# H3's tasks.
PRIMARY = {"text_t5": "novel", "vision_vit": "digits", "peptides": "antimicrobial"}
ENDED = ("done", "diverged", "failed")
WAYS: tuple[str, ...] = ("uniform", "depth first", "width first", "between")


@dataclasses.dataclass(frozen=True)
class Planned:
    """One domain of the plan.

    Attributes:
      name: its modality.
      shapes: all thirteen, by size.
      way: how each was made, one of `WAYS`.
      rungs: the shapes of equal cost, where there are several.
      tasks: what it is transferred to.
      shots: of the probes.
      tune: how the learning rate is chosen.
    """

    name: str
    shapes: tuple[str, ...]
    way: Mapping[str, str]
    rungs: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]
    shots: tuple[int, ...]
    tune: Tune

    def made(self, way: str) -> list[str]:
        """The shapes that were made in one way."""
        return [shape for shape in self.shapes if self.way[shape] == way]

    @property
    def qualities(self) -> list[str]:
        """What is measured: upstream's loss, then fine-tuning and probes of every task."""
        return [UPSTREAM_LOSS, *(f"{task}/fine_tune" for task in self.tasks),
                *(f"{task}/few_shot@{shots}" for task in self.tasks for shots in self.shots)]


@dataclasses.dataclass(frozen=True)
class Study:
    """The plan beside what is there.

    Attributes:
      planned: by domain.
      records: all of them, attempts that failed or were cut off too.
      trials: by domain, shape and seed.
      choices: by domain and shape, as far as all its tries have finished.
      table: the trials as rows; None where none has ended well.
    """

    planned: Mapping[str, Planned]
    records: Sequence[Record]
    trials: Mapping[tuple[str, str, int], Record]
    choices: Mapping[tuple[str, str], Choice]
    table: Table | None

    def statuses(self, domain: str) -> dict[str, str]:
        """How each planned trial of a domain ended, or `missing`, by shape and seed."""
        found = {}
        for shape in self.planned[domain].shapes:
            for seed in SEEDS:
                record = self.trials.get((domain, shape, seed))
                found[f"{short(shape)}, seed {seed}"] = record.status if record else "missing"
        return found

    def short_of_seeds(self, domain: str) -> dict[str, int]:
        """Shapes of which a seed has not ended well, with the number of those that have."""
        done = {shape: sum((record := self.trials.get((domain, shape, seed))) is not None
                           and record.status == "done" for seed in SEEDS)
                for shape in self.planned[domain].shapes}
        return {short(shape): number for shape, number in done.items() if number < len(SEEDS)}

    @property
    def lacking(self) -> str:
        """Which domains lack planned trials, in words; empty where none does."""
        ended = {name: [status in ENDED for status in self.statuses(name).values()]
                 for name in self.planned}
        return "; ".join(f"{name}: {sum(one)} of {len(one)} trials have ended"
                         for name, one in ended.items() if not all(one))

    @property
    def rows(self) -> Table:
        """The table.

        Raises:
          InputError: there is none.
        """
        if self.table is None:
            raise InputError("records", "no trial has ended well")
        return self.table


def short(shape: str) -> str:
    """`tiny-nl4-dm32-ff128-kv8-nh4` -> `nl4-dm32`, which no other shape of the plan is called."""
    return "-".join(shape.split("-")[1:3])


def plan() -> dict[str, Planned]:
    """Reads the config: the domains, in the plan's order."""
    config = runpy.run_path(str(CONFIG))
    uniform = (config["BASE"], *config["UNIFORM"], config["BEYOND"])
    made = (uniform, config["DEEP"], config["WIDE"], config["DEEPER"])
    ways: dict[str, Sequence[str]] = dict(zip(WAYS, made, strict=True))
    return {name: _planned(name, config[function](), config, ways)
            for name, function in DOMAINS.items()}


def _planned(
    name: str, settings: Mapping[str, Any], config: Mapping[str, Any],
    ways: Mapping[str, Sequence[str]],
) -> Planned:
    full = dict(zip(config["SHAPES"], settings["shapes"], strict=True))
    protocol = settings["protocol"]
    return Planned(
        name, tuple(full.values()), {full[one]: way for way, made in ways.items() for one in made},
        tuple(tuple(full[one] for one in rung) for rung in config["RUNGS"]),
        protocol["few_shot"]["tasks"], protocol["few_shot"]["shots"], Tune(**protocol["tune"]))


def read(records: Iterable[Record]) -> Study:
    """Sorts the records into the plan.

    Raises:
      InputError: a record is of no planned trial or try, or two are of one.
    """
    records, planned = list(records), plan()
    trials: dict[tuple[str, str, int], Record] = {}
    for record in latest(reported(records)):
        place = (record.modality, record.name, record.seed)
        if record.modality not in planned or record.seed not in SEEDS \
                or record.name not in planned[record.modality].shapes:
            raise InputError("records", "have a trial that is not in the plan", got=place)
        if place in trials:
            raise InputError("records", "have two trials of one shape and seed", got=place)
        trials[place] = record
    done = any(record.status == "done" for record in trials.values())
    return Study(planned, records, trials, _choices(planned, records),
                 from_records(trials.values()) if done else None)


def tries(records: Iterable[Record]) -> dict[tuple[str, str], dict[float, list[TryResult]]]:
    """What the tries gave, by domain and shape, then by rate."""
    found: dict[tuple[str, str], dict[float, list[TryResult]]] = {}
    for record in latest(record for record in records if record.is_try):
        rate = float(record.config["protocol"]["optimizer"]["learning_rate"])
        rates = found.setdefault((record.modality, record.name), {})
        rates.setdefault(rate, []).append(result_of(record))
    return found


def _choices(
    planned: Mapping[str, Planned], records: Sequence[Record]
) -> dict[tuple[str, str], Choice]:
    found = {}
    for (domain, shape), results in tries(records).items():
        if domain not in planned or shape not in planned[domain].shapes:
            raise InputError("records", "have a try that is not in the plan", got=(domain, shape))
        if any(len(one) > len(planned[domain].tune.seeds) for one in results.values()):
            raise InputError("records", "have two tries of one rate", got=(domain, shape))
        choice = choose(planned[domain].tune, results)
        if choice is not None:
            found[domain, shape] = choice
    return found


def count(statuses: Iterable[str]) -> dict[str, int]:
    """Number of each status; those that the plan asks to be counted are there always."""
    return {"done": 0, "diverged": 0, "failed": 0} | dict(Counter(statuses))
