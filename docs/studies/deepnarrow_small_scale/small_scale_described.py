"""What is reported beside the hypotheses: fronts, slopes, sensitivity to the rate, statuses, cost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from small_scale_plan import SEEDS, Planned, Study, count, short, tries
from small_scale_verdicts import span

from deepnarrow.errors import InputError
from deepnarrow.lawforms import POWER
from deepnarrow.laws import Law, fit
from deepnarrow.pareto import Front, fronts
from deepnarrow.records import UPSTREAM_LOSS, Record, latest, reported
from deepnarrow.summary import machine
from deepnarrow.table import select
from deepnarrow.tuning import Choice, choice_in

COSTS = ("params", "flops")


def quality_fronts(study: Study) -> list[dict[str, Any]]:
    """`deepnarrow pareto R --cost params --cost flops --quality ...`, of all planned qualities."""
    if study.table is None:
        return []
    found = []
    for planned in study.planned.values():
        mine = select(study.table, study.table.domain == planned.name)
        chosen = [(name, None) for name in planned.qualities
                  if name in mine.columns and np.isfinite(mine.columns[name]).any()]
        found += [_front(one) for one in (fronts(mine, COSTS, chosen) if chosen else [])]
    return found


def _front(front: Front) -> dict[str, Any]:
    return {
        "domain": front.modality, "cost": front.cost, "quality": front.quality,
        "direction": front.direction, "method": front.method, "beside": dict(front.beside),
        "left_out": {short(shape): why for shape, why in front.left_out.items()},
        "points": [{"shape": short(one.name), "cost": one.cost, "mean": one.quality_mean,
                    "sd": one.quality_sd, "seeds": one.n, "on_front": one.on_front,
                    "membership": one.membership} for one in front.points]}


def slopes(study: Study) -> list[dict[str, Any]]:
    """`deepnarrow fit R --domain D --form power --x params --y upstream/loss`, and `--x flops`."""
    found = []
    for domain in study.planned:
        for cost in COSTS:
            one: dict[str, Any] = {"domain": domain, "x": cost, "y": UPSTREAM_LOSS}
            try:
                law = fit(study.rows, POWER, {"x": cost}, UPSTREAM_LOSS, domain=domain)
            except InputError as error:
                found.append(one | {"identified": False, "reason": str(error)})
            else:
                found.append(one | _law(law))
    return found


def _law(law: Law) -> dict[str, Any]:
    alpha = law.alpha
    return {
        "x": law.inputs["x"], "identified": law.identified, "reason": law.reason,
        "sizes": law.sizes, "decades": law.spans["x"], "residual": law.residual,
        "parameters": {name: span(one) for name, one in law.params.items()},
        "method": next(iter(law.params.values())).method,
        "alpha": None if alpha is None else {"name": alpha.name, **span(alpha.value)},
        "hold_out": None if law.hold_out is None else dataclasses.asdict(law.hold_out),
        "flags": list(law.flags)}


# --- learning rates ------------------------------------------------------------------------------
def rates(study: Study) -> dict[str, Any]:
    """By domain and shape: the loss of each rate, which was taken, and whether it is at an edge."""
    return {name: _rates(study, planned) for name, planned in study.planned.items()}


def _rates(study: Study, planned: Planned) -> dict[str, Any]:
    grid = planned.tune.learning_rates
    middle = grid[len(grid) // 2]
    shapes = {short(shape): _sensitivity(choice, middle) for shape in planned.shapes
              if (choice := study.choices.get((planned.name, shape))) is not None}
    made_with = [(short(shape), seed) for (domain, shape, seed), record in study.trials.items()
                 if domain == planned.name and _other_rate(record, study.choices.get(
                     (domain, shape)))]
    over = [one["middle_over_best"] for one in shapes.values()
            if one["middle_over_best"] is not None]
    return {"grid": list(grid), "middle": middle, "shapes": shapes,
            "at_edge": [shape for shape, one in shapes.items() if one["edge"]],
            "chosen": {f"{rate:g}": sum(one["chosen"] == rate for one in shapes.values())
                       for rate in sorted({one["chosen"] for one in shapes.values()})},
            "largest_middle_over_best": max(over, default=None),
            "trials_with_another_rate": [f"{shape}, seed {seed}" for shape, seed in made_with]}


def _sensitivity(choice: Choice, middle: float) -> dict[str, Any]:
    known = [loss for _, loss in choice.losses if loss is not None]
    best = min(known, default=math.nan)
    at_middle = dict(choice.losses)[middle]
    return {
        "losses": {f"{rate:g}": loss for rate, loss in choice.losses},
        "chosen": choice.learning_rate, "edge": choice.edge, "best": best,
        "range": max(known, default=math.nan) - best,
        "diverged": [rate for rate, loss in choice.losses if loss is None],
        "middle_over_best": None if at_middle is None else at_middle - best}


def _other_rate(record: Record, choice: Choice | None) -> bool:
    """Whether a trial says that it took another rate than the tries that are here choose."""
    own = choice_in(record)
    return own is not None and choice is not None and own.learning_rate != choice.learning_rate


# --- what ran ------------------------------------------------------------------------------------
def statuses(study: Study) -> dict[str, Any]:
    """Planned trials and tries, how they ended, and those that did not end well by name."""
    made: dict[str, Any] = {}
    for name, planned in study.planned.items():
        ended = study.statuses(name)
        mine = [record for record in latest(r for r in study.records if r.is_try)
                if record.modality == name]
        here = [record for (domain, _, _), record in study.trials.items() if domain == name]
        made[name] = {
            "planned": len(ended), "trials": count(ended.values()),
            "not_done": {trial: status for trial, status in ended.items()
                         if status not in ("done", "missing")},
            "tries_planned_at_least": len(planned.shapes) * len(planned.tune.learning_rates)
            * len(planned.tune.seeds),
            "tries": count(record.status for record in mine),
            "tries_not_done": [_try_name(record) for record in mine if record.status != "done"],
            "shapes_tuned": sum((name, shape) in study.choices for shape in planned.shapes),
            "trials_begun_more_than_once": sum(_attempts(record) > 1 for record in here)}
    return {"seeds": list(SEEDS), "planned": sum(one["planned"] for one in made.values()),
            "ended": sum(sum(one["trials"].values()) - one["trials"].get("missing", 0)
                         - one["trials"].get("preempted", 0) for one in made.values()),
            "domains": made}


def _try_name(record: Record) -> str:
    rate = record.config["protocol"]["optimizer"]["learning_rate"]
    return f"{short(record.name)}, rate {rate:g}: {record.status}"


def _attempts(record: Record) -> int:
    return int(record.environment.get("attempt") or 1)


def cost(study: Study) -> dict[str, Any]:
    """What all records took, earlier attempts included.

    `seconds`: wall time of the stages in one process, of which each had a core; `building`: of
    making and compiling programs, once for those that trials share. FLOPs: of pre-training, as
    `flops_train_total` counts them (the plan's convention); transfer's are not counted.
    """
    trials = reported(study.records)
    found = {}
    for name in study.planned:
        for what, records in (("tries", [r for r in study.records if r.is_try]),
                              ("trials", trials)):
            mine = [record for record in records if record.modality == name]
            found.setdefault(name, {})[what] = _cost(mine)
    whole = _cost(study.records)
    return {"domains": found, "all": whole,
            "machines": sorted({machine(record) for record in study.records}),
            "versions": _versions(study.records), "rates_tried": _rates_tried(study)}


def _cost(records: Sequence[Record]) -> dict[str, Any]:
    stages: dict[str, float] = {}
    building: dict[tuple[str, str, float], None] = {}
    for record in records:
        for stage, seconds in (record.environment.get("stages") or {}).items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        built = (record.environment.get("parts") or {}).get("build")
        if built is not None:
            building[record.modality, record.name, built] = None
    seconds = math.fsum(stages.values())
    built = math.fsum(one for _, _, one in building)
    return {"records": len(records), "seconds": seconds, "stages": stages, "building": built,
            "core_hours": (seconds + built) / 3600, "flops": math.fsum(
                record.costs.get("flops_train_total") or 0.0 for record in records)}


def _versions(records: Iterable[Record]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for record in records:
        for name, version in (record.environment.get("versions") or {}).items():
            found.setdefault(name, set()).add(str(version))
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def _rates_tried(study: Study) -> dict[str, int]:
    """Number of rates tried, by domain: grids grow where the best rate is at their edge."""
    found = tries(study.records)
    return {name: sum(len(rates) for (domain, _), rates in found.items() if domain == name)
            for name in study.planned}
