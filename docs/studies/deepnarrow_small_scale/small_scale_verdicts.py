"""H1 to H7 of the plan, each with its verdict and the numbers behind it.

H6's rank correlation is Kendall's tau, as H5's is; Spearman's rho stands beside. H7 is over all
pairs of shapes on a rung; a pair whose losses are equal with one of the rates is not turned around.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from small_scale_plan import PRIMARY, UNIFORM, WAYS, Planned, Study, short

from deepnarrow.agreement import Agreement, agreements
from deepnarrow.bootstrap import Interval, contrasts
from deepnarrow.compare import JOINT, Comparison, compare
from deepnarrow.errors import InputError
from deepnarrow.operators import effect_contrasts, family_of
from deepnarrow.records import UPSTREAM_LOSS
from deepnarrow.table import Table, direction_of, find_column, select
from deepnarrow.tuning import Choice

PARAMS = "params_non_embedding"
WORDS = {
    "H1": "DeepNarrow, upstream, at equal parameters",
    "H2": "DeepNarrow, upstream, at equal FLOPs",
    "H3": "DeepNarrow, after fine-tuning, at equal parameters",
    "H4": "width first beats depth first at equal parameters",
    "H5": "domains rank the eight shapes alike",
    "H6": "upstream predicts downstream",
    "H7": "tuning the learning rate matters",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the evidence says of one hypothesis; `reason`: why it is refused or undecided."""

    verdict: str
    reason: str
    evidence: Mapping[str, Any]


def hypotheses(study: Study) -> dict[str, dict[str, Any]]:
    """The verdicts, by number. While planned trials (of H7: tries) lack, a verdict is `not yet`,
    and `so_far` what the records there are say."""
    compared = {name: _or_error(lambda name=name: comparison(study, *COMPARED[name]))
                for name in COMPARED}
    made: dict[str, Callable[[], Verdict]] = {
        name: lambda name=name: _deep_narrow(study, _or_raise(compared[name])) for name in COMPARED}
    made |= {"H4": lambda: _width(study), "H5": lambda: _tau(_or_raise(compared["H1"])),
             "H6": lambda: _transfer(study), "H7": lambda: _tuning(study)}
    found = {}
    for name in sorted(made):
        one = _or_error(made[name])
        if isinstance(one, InputError):
            one = Verdict("refused", str(one), {})
        lacking = _untuned(study) if name == "H7" else study.lacking
        found[name] = {
            "hypothesis": WORDS[name], "verdict": "not yet" if lacking else one.verdict,
            "so_far": one.verdict, "reason": "; ".join(filter(None, (lacking, one.reason))),
            **one.evidence}
    return found


COMPARED: dict[str, tuple[str, Mapping[str, str]]] = {  # cost, and quality by domain
    "H1": ("params_non_embedding", dict.fromkeys(PRIMARY, UPSTREAM_LOSS)),
    "H2": ("flops", dict.fromkeys(PRIMARY, UPSTREAM_LOSS)),
    "H3": ("params_non_embedding", {domain: f"{task}/fine_tune"
                                    for domain, task in PRIMARY.items()}),
}


def comparison(study: Study, cost: str, qualities: Mapping[str, str]) -> Comparison:
    """`deepnarrow compare R --cost COST --quality DOMAIN=QUALITY ... --reference U`.

    Raises:
      InputError: as `deepnarrow.compare.compare` does.
    """
    rows = study.rows
    columns = {name: find_column(rows, qualities[name], "quality")
               for name in sorted(set(rows.domain))}
    return compare(rows, find_column(rows, cost, "cost"), {
        name: (column, direction_of(rows, column, None)) for name, column in columns.items()},
        reference=UNIFORM)


def span(one: Interval) -> dict[str, float | None]:
    """An interval as plain values; how it was made is said once for all of a kind."""
    return {"estimate": one.estimate, "low": one.low, "high": one.high}


def by_intervals(found: Sequence[Interval]) -> str:
    """`holds`: all are above 0; `fails`: one is below; else `undecided`, or `refused` without one.

    >>> by_intervals([Interval(1.0, 0.5, 2.0, ""), Interval(1.0, -0.5, 2.0, "")])
    'undecided'
    """
    if any(one.high is not None and one.high < 0 for one in found):
        return "fails"
    if not found or any(one.low is None for one in found):
        return "refused"
    return "holds" if all(one.low is not None and one.low > 0 for one in found) else "undecided"


def _or_error(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except InputError as error:
        return error


def _or_raise(one: Any) -> Any:
    if isinstance(one, InputError):
        raise one
    return one


# --- H1, H2, H3 and H5 ---------------------------------------------------------------------------
def _deep_narrow(study: Study, made: Comparison) -> Verdict:
    verdict = made.verdicts[JOINT]
    return Verdict(verdict or "refused", made.reasons.get(JOINT, ""), {
        "cost": made.cost, "margin": made.margin, "saving": made.saving,
        "domains": {name: {
            "quality": quality, "direction": direction, "curve": made.curves[name],
            "verdict": made.verdicts[name], "reason": made.reasons.get(name, ""),
            "tests": [{"shape": short(one.shape), "cost": one.cost,
                       "reference_cost": one.reference_cost, "difference": span(one.difference)}
                      for one in made.tests if one.domain == name],
            "effects": _effects(study.planned[name], made),
            "outside": [short(shape) for shape in made.outside.get(name, ())],
            "left_out": {short(shape): why for shape, why in made.left_out.get(name, {}).items()},
            "short_of_seeds": study.short_of_seeds(name),
            "rate_at_edge": [short(shape) for shape in made.at_edge.get(name, ())],
        } for name, (quality, direction) in made.qualities.items()},
        "tau": dataclasses.asdict(made.tau) | {
            "operators": [short(f"-{one}") for one in made.tau.operators]},
        "non_finite": made.non_finite})


def _effects(planned: Planned, made: Comparison) -> list[dict[str, Any]]:
    """By the plan's order; each operator is one shape."""
    order = list(planned.shapes)
    mine = [one for one in made.effects if one.domain == planned.name]
    return [{"shape": short(shape), "way": planned.way[shape], "effect": span(one.effect)}
            for one in sorted(mine, key=lambda one: order.index(one.shapes[0]))
            for shape in one.shapes]


def _tau(made: Comparison) -> Verdict:
    tau = made.tau
    return Verdict(
        by_intervals([Interval(tau.estimate, tau.low, tau.high, tau.method)]),
        "" if tau.low is not None else tau.method,
        {"tau": span(Interval(tau.estimate, tau.low, tau.high, "")), "p": tau.p,
         "shapes": [short(f"-{one}") for one in tau.operators], "method": tau.method})


# --- H4 ------------------------------------------------------------------------------------------
def _width(study: Study) -> Verdict:
    found = {name: width_minus_depth(study.rows, planned)
             for name, planned in study.planned.items()}
    return Verdict(by_intervals([one["width first minus depth first"] for one in found.values()]),
                   "", {"quality": UPSTREAM_LOSS, "cost": PARAMS,
                        "method": next(iter(found.values()))["depth first"].method,
                        "domains": {name: {what: span(one) for what, one in values.items()}
                                    for name, values in found.items()}})


def width_minus_depth(rows: Table, planned: Planned) -> dict[str, Interval]:
    """Mean effects of one domain's deep and wide shapes, in loss, and their difference.

    An effect is measured from the reference curve at each shape's own cost, better being positive;
    the intervals are pooled-t ones of these weighted sums of means.

    Raises:
      InputError: a shape has no result, or the noise of seeds is not known.
    """
    mine = select(rows, rows.domain == planned.name)
    if not len(mine):
        raise InputError(f"domain {planned.name!r}", "no finished runs")
    family = family_of(mine, planned.name, PARAMS, UPSTREAM_LOSS, "min", UNIFORM)
    found = effect_contrasts(family)
    row_of = {shapes[0]: row for shapes, row in zip(found.shapes, found.weights, strict=True)}
    mean = {}
    for way in WAYS[1:3]:
        lost = [short(shape) for shape in planned.made(way) if shape not in row_of]
        if lost:
            raise InputError(f"domain {planned.name!r}", f"shapes made {way} have no effect",
                             got=", ".join(lost))
        mean[way] = np.mean([row_of[shape] for shape in planned.made(way)], axis=0)  # [shapes]
    if family.noise is None:
        raise InputError(f"domain {planned.name!r}", "one training seed: the noise is not known")
    mean["width first minus depth first"] = mean["width first"] - mean["depth first"]
    return dict(zip(mean, contrasts(family.noise, np.stack(list(mean.values()))), strict=True))


# --- H6 ------------------------------------------------------------------------------------------
def _transfer(study: Study) -> Verdict:
    found = [(name, task, agreement_of(study.rows, name, f"{task}/fine_tune"))
             for name, planned in study.planned.items() for task in planned.tasks]
    return Verdict(
        by_intervals([one.kendall for _, _, one in found]),
        "; ".join(f"{task}: {one.kendall.method}" for _, task, one in found
                  if one.kendall.low is None), {
            "by_spearman": by_intervals([one.spearman for _, _, one in found]),
            "method": found[0][2].kendall.method,
            "tasks": [{"domain": name, "task": task, **_ranks(one)} for name, task, one in found]})


def _ranks(one: Agreement) -> dict[str, Any]:
    return {"shapes": one.shapes, "kendall": span(one.kendall), "spearman": span(one.spearman),
            "inverted": one.inverted, "decided": one.decided}


def agreement_of(rows: Table, domain: str, quality: str) -> Agreement:
    """Ranks of upstream's loss against ranks of another quality, better being positive.

    Raises:
      InputError: too few shapes have both.
    """
    mine = select(rows, rows.domain == domain)
    column = find_column(mine, quality, "quality")
    found = agreements(mine, (UPSTREAM_LOSS, "min"), [(column, direction_of(mine, column, None))])
    if not found:
        raise InputError(f"domain {domain!r}", f"too few shapes have {UPSTREAM_LOSS} and {quality}")
    return found[0]


# --- H7 ------------------------------------------------------------------------------------------
def _tuning(study: Study) -> Verdict:
    found = {name: turned(planned, study.choices) for name, planned in study.planned.items()}
    several = sum(bool(one["turned"]) for one in found.values())
    verdict = "holds" if several >= 2 else "undecided" if several or _untuned(study) else "fails"
    return Verdict(verdict, "in one domain only" if several == 1 else "", {"domains": found})


def _untuned(study: Study) -> str:
    lacking = {name: sum((name, shape) not in study.choices for shape in planned.shapes)
               for name, planned in study.planned.items()}
    return "; ".join(f"{name}: tries of {number} of {len(study.planned[name].shapes)} shapes lack"
                     for name, number in lacking.items() if number)


def turned(planned: Planned, choices: Mapping[tuple[str, str], Choice]) -> dict[str, Any]:
    """The pairs of shapes on a rung that one rate for all orders otherwise than tuned rates do."""
    middle = planned.tune.learning_rates[len(planned.tune.learning_rates) // 2]
    pairs, found = 0, []
    for rung in planned.rungs:
        known = [shape for shape in rung if (planned.name, shape) in choices]
        for one, other in itertools.combinations(known, 2):
            pairs += 1
            losses = [_losses(choices[planned.name, shape], middle) for shape in (one, other)]
            (fixed, tuned), (fixed_other, tuned_other) = losses
            if (fixed < fixed_other and tuned > tuned_other) or (
                    fixed > fixed_other and tuned < tuned_other):
                found.append({"shapes": [short(one), short(other)],
                              "one_rate": fixed - fixed_other, "tuned": tuned - tuned_other})
    return {"one_rate": middle, "pairs": pairs, "turned": found}


def _losses(choice: Choice, rate: float) -> tuple[float, float]:
    """Of a shape with one rate, and with its own; infinite where it diverged."""
    losses = {one: math.inf if loss is None else loss for one, loss in choice.losses}
    return losses[rate], min(losses.values())
