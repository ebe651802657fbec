"""`deepnarrow compare`: does what holds in one domain hold in another?"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.analysis import axis, load_table
from deepnarrow.cli.output import Output, table
from deepnarrow.cli.parser import number
from deepnarrow.errors import InputError, shorten
from deepnarrow.records import TOTAL_PARAMS, UPSTREAM_LOSS
from deepnarrow.report.text import interval, plural

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.compare import Comparison
    from deepnarrow.table import Table

COST_NAMES = ("params", "flops", "cost")
QUALITY_NAMES = ("quality", "accuracy", "score", "loss")
# Columns that describe a row; what is left of a table of numbers may be a quality.
DESCRIPTIONS = {"seed", "shot_seed", "finetune_seed", "shots", "depth", "width"}


def run(options: argparse.Namespace) -> Output:
    """Compares the domains of the sources."""
    margin = _at_least_zero("--margin", options.margin)
    saving = _at_least_zero("--saving", options.saving)
    if saving >= 1:
        raise InputError("--saving", "is not below 1", got=options.saving, expected="0 ... 0.99")
    named = [_domain_axis(text) for text in options.quality]
    found = load_table(options.sources, options.by)
    from deepnarrow.compare import compare

    cost = _cost(found, options.cost)
    qualities = _qualities(found, cost, named)
    settings = {"margin": margin, "saving": saving, "reference": options.reference,
                "deep": options.deep}
    made = compare(found, cost, qualities, **settings)
    beside = None
    if options.cost is None and cost != TOTAL_PARAMS and TOTAL_PARAMS in found.columns:
        beside = compare(found, TOTAL_PARAMS, qualities, **settings)
    return Output(_document(made, beside), lambda console: _show(console, made, beside))


def _at_least_zero(flag: str, text: str) -> float:
    return 0.0 if text in ("0", "0.0") else number(flag, text)


def _domain_axis(text: str) -> tuple[str | None, str, str | None]:
    """Splits `[DOMAIN=]NAME[:min|max]`."""
    domain, equals, rest = text.partition("=")
    name, direction = axis("--quality", rest if equals else text)
    return (domain if equals else None), name, direction


def _cost(found: Table, given: str | None) -> str:
    from deepnarrow.records import COSTS
    from deepnarrow.table import find_column

    if given is not None:
        name, direction = axis("--cost", given)
        if direction == "max":
            raise InputError("--cost", "a cost is better where it is less", got=given,
                             expected=f"{name}:min")
        return find_column(found, name, "cost")
    if found.costs:
        return "params_non_embedding"
    known = [name for name in (*COST_NAMES, *COSTS) if name in found.columns]
    if not known:
        raise InputError("--cost", "is missing", expected=", ".join(_numeric(found)) or None,
                         hint="name the column, e.g. --cost params")
    return find_column(found, known[0], "cost")


def _numeric(found: Table) -> list[str]:
    return [shorten(name, 40) for name, values in found.columns.items() if values.dtype != object]


def _qualities(
    found: Table, cost: str, named: Sequence[tuple[str | None, str, str | None]]
) -> dict[str, Any]:
    from deepnarrow.table import direction_of, domains, find_column

    chosen: dict[str, tuple[str, str | None]] = {}
    names = domains(found)
    for domain, name, direction in named:
        if domain is not None and domain not in names:
            raise InputError("--quality", "no rows of this domain", got=domain,
                             expected=f"one of {', '.join(shorten(one) for one in names)}")
        for one in names if domain is None else [domain]:
            chosen[one] = (name, direction)
    default = _default_quality(found, cost) if set(names) - set(chosen) else ""
    made = {}
    for one in names:
        name, direction = chosen.get(one, (default, None))
        column = find_column(found, name, "quality")
        made[one] = (column, direction_of(found, column, direction))
    return made


def _default_quality(found: Table, cost: str) -> str:
    from deepnarrow.records import COSTS

    if UPSTREAM_LOSS in found.qualities:
        return UPSTREAM_LOSS
    rest = [name for name in _numeric(found)
            if name not in {cost, *COSTS, *COST_NAMES, *DESCRIPTIONS}]
    known = [name for name in QUALITY_NAMES if name in rest]
    if len(known) == 1 or len(rest) == 1:
        return (known or rest)[0]
    raise InputError("--quality", "is missing", expected=f"one of {', '.join(rest)}" if rest else
                     "a column of numbers", hint="name the column, e.g. --quality accuracy:max")


def _document(made: Comparison, beside: Comparison | None) -> dict[str, Any]:
    found = dataclasses.asdict(made)
    effects = [{"domain": one.domain, "operator": one.operator, "shapes": list(one.shapes),
                **dataclasses.asdict(one.effect)} for one in made.effects]
    found |= {"effects": effects, "qualities": {
        domain: {"quality": name, "direction": way} for domain, (name, way) in
        made.qualities.items()}}
    if beside is not None:
        found["beside"] = {"cost": beside.cost, "tau": dataclasses.asdict(beside.tau),
                           "verdicts": dict(beside.verdicts)}
    return found


def _show(console: Console, made: Comparison, beside: Comparison | None) -> None:
    domains = list(made.qualities)
    by_place = {(one.domain, one.operator): one.effect for one in made.effects}
    operators = list(dict.fromkeys(one.operator for one in made.effects))
    operators.sort(key=lambda name: -max(
        (by_place[d, name].estimate or -math.inf) for d in domains if (d, name) in by_place))
    columns = [f"{domain} ({made.qualities[domain][0]}):" for domain in domains]
    rows = [(name, *(interval(by_place.get((domain, name))) for domain in domains))
            for name in operators]
    console.print(table(["operator", *columns], rows, "Effect of each operator at equal "
                        f"{made.cost}, better is positive [90% interval]"))
    _show_tau(console, made)
    if beside is not None:
        console.print(f"the same at equal {beside.cost}:", markup=False)
        _show_tau(console, beside)
    for domain, verdict in made.verdicts.items():
        reason = made.reasons.get(domain)
        console.print(f"DeepNarrow, {shorten(domain)}: {verdict or 'no verdict'}"
                      + (f" ({reason})" if reason else ""), markup=False)
    console.print(f"(at most {made.margin:g} worse at <= {1 - made.saving:.0%} of the cost; 95% "
                  "intervals, simultaneous over shapes and domains)", markup=False)
    for domain in [one for one in domains if one in made.outside or one in made.left_out]:
        what = [f"{len(made.outside.get(domain, ()))} outside the reference's range",
                f"{len(made.left_out.get(domain, ()))} without finite cost or quality"]
        console.print(f"not compared in {shorten(domain)}: {', '.join(what)}", markup=False)
    for domain, names in made.at_edge.items():
        console.print(f"learning rate at the edge of what was tried in {shorten(domain)}: "
                      f"{shorten(', '.join(names), 300)}", markup=False)
    if made.non_finite:
        console.print(f"{plural(made.non_finite, 'value')} not finite, left out", markup=False)


def _show_tau(console: Console, made: Comparison) -> None:
    from deepnarrow.bootstrap import Interval

    tau = made.tau
    if tau.estimate is None:
        console.print(f"Kendall's tau-b: none ({tau.method})", markup=False)
        return
    shown = interval(Interval(tau.estimate, tau.low, tau.high, ""), "{:.2f}")
    console.print(f"Kendall's tau-b of {len(tau.operators)} shared operators: {shown}, "
                  f"p = {tau.p:.3g} ({tau.method})", markup=False)
