"""Findings as sheets: one function a kind of table, each of one domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepnarrow.agreement import Agreement
from deepnarrow.bootstrap import Interval
from deepnarrow.claims import Claims, Match
from deepnarrow.compare import JOINT, Comparison
from deepnarrow.laws import Law
from deepnarrow.operators import split_name
from deepnarrow.pareto import Front
from deepnarrow.report import text
from deepnarrow.report.findings import Domain
from deepnarrow.report.sheets import Column, Sheet
from deepnarrow.report.tables import Curve, TransferTable, beyond
from deepnarrow.shape import FIELD_LIMITS
from deepnarrow.summary import Quality
from deepnarrow.table import mean_by_shape, seed_values, shapes_of
from deepnarrow.worth import Worth

MAX_SHOWN = 12  # rows of a table of claims on the page
Rows = list[tuple[Any, ...]]


def number(value: float) -> str:
    """A number to four digits."""
    return f"{value:.4g}"


def lead(one: Interval) -> str:
    """A difference of qualities with its interval, to three digits."""
    return text.interval(one, "{:+.3g}")


def percent(value: float) -> str:
    """A share in whole percent."""
    return f"{value:.0%}"


def _cost_column(key: str, title: str | None = None) -> Column:
    return Column(key, title or text.cost_title(key), "number",
                  lambda value: text.cost(key, value))


SHAPE = Column("shape", "Shape", "shape")
DOMAIN = Column("domain", "Domain", "text")
QUALITY = Column("quality", "Quality", "text", text.quality_title)
COST = Column("cost", "Cost", "text", text.cost_title)
SCORE = Column("quality_mean", "Mean", "number", text.quality)


# --- shapes and rows -----------------------------------------------------------------------------
def shapes(domain: Domain) -> Sheet:
    """One row a shape: operator, fields, costs."""
    found = shapes_of(domain.table)
    fields = [name for name in FIELD_LIMITS if name in domain.table.columns]
    costs = domain.table.costs
    columns = (SHAPE, Column("operator", "Operator"),
               *(Column(name, name, "number", number) for name in fields),
               *(_cost_column(name) for name in costs))
    cells: list[Sequence[Any]] = [
        found.names, [domain.operators[name] for name in found.names],
        *(_numbers(mean_by_shape(domain.table, found, name)) for name in [*fields, *costs])]
    return Sheet("shapes", domain.name, columns, tuple(zip(*cells, strict=True)))


def qualities(domain: Domain) -> Sheet:
    """One row a shape and quality, over training seeds."""
    found = shapes_of(domain.table)
    columns = (SHAPE, QUALITY, Column("direction", "Better"), SCORE,
               Column("quality_sd", "sd", "number", number), Column("seeds", "Seeds", "number"))
    rows: Rows = []
    for name in domain.table.qualities:
        one = seed_values(domain.table, found, name)
        rows += zip(found.names, (name,) * len(found.names),
                    (domain.table.directions[name],) * len(found.names), _numbers(one.mean),
                    _numbers(one.sd), one.n.tolist(), strict=True)
    return Sheet("qualities", domain.name, columns, tuple(row for row in rows if row[-1]))


def curves(found: Mapping[str, Sequence[Curve]], domain: str) -> Sheet:
    """One row a learning curve's point, mean over seeds."""
    columns = (Column("curve", "Curve"), SHAPE, Column("step", "Step", "number"),
               Column("mean", "Mean", "number", number), Column("seeds", "Seeds", "number"))
    rows = [(name, curve.label, step, value, curve.seeds) for name, group in found.items()
            for curve in group for step, value in curve.points]
    return Sheet("curves", domain, columns, tuple(rows))


def transfer(found: Sequence[TransferTable], domain: str) -> Sheet:
    """One row a task, stage and shape: pre-trained beside untrained."""
    columns = (Column("task", "Task"), Column("stage", "Stage"), SHAPE,
               *(Column(f"{origin}_{part}", f"{origin} {part}", "number", number)
                 for origin in ("pretrained", "untrained") for part in ("mean", "sd", "seeds")))
    rows: Rows = []
    for one in found:
        rows += [(one.task, column, label, *_quality(trained), *_quality(untrained))
                 for label, cells in one.rows
                 for column, (trained, untrained) in zip(one.columns, cells, strict=True)]
    return Sheet("transfer", domain, columns, tuple(rows))


def _quality(one: Quality | None) -> tuple[float | None, float | None, int | None]:
    return (None, None, None) if one is None else (one.mean, one.sd, one.n)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def fronts(found: Sequence[Front], domain: str) -> Sheet:
    """One row a shape and plane: place on the front, membership, margin."""
    columns = (QUALITY, COST, Column("machine", "Machine"), SHAPE,
               Column("cost_mean", "Cost", "number", number), SCORE,
               Column("quality_sd", "sd", "number", number), Column("seeds", "Seeds", "number"),
               Column("on_front", "On the front"), Column("on_any_front", "On any front"),
               Column("membership", "Membership", "number", percent),
               Column("margin", "Lead", "interval", lead))
    rows = [(front.quality, front.cost, front.machine, p.name, p.cost, p.quality_mean, p.quality_sd,
             p.n, p.on_front, p.on_any_front, p.membership, p.margin)
            for front in found for p in front.points]
    return Sheet("fronts", domain, columns, tuple(rows))


def members(group: Sequence[Front], domain: str) -> Sheet:
    """For one quality: who is on a front or may be, with the probability by cost."""
    places = [{point.name: point for point in front.points} for front in group]
    likely: dict[str, float] = {}
    for front in group:
        for p in front.points:
            share = p.membership if p.membership is not None else float(p.on_front)
            if p.on_front or share >= 0.05:
                likely[p.name] = max(likely.get(p.name, 0.0), share)
    names = [name for front in group for name in (p.name for p in front.points) if name in likely]
    columns: list[Column] = [SHAPE, SCORE, Column("sd", "sd", "number", number),
                             Column("seeds", "Seeds", "number")]
    for front in group:
        where = f" ({front.machine})" if front.machine else ""
        columns.append(_cost_column(front.cost, text.cost_title(front.cost) + where))
        columns.append(Column(f"{front.cost} membership", "on its front", "number"))
    rows: Rows = []
    for name in dict.fromkeys(names):
        first = next(place[name] for place in places if name in place)
        cells: list[Any] = [name, first.quality_mean, first.quality_sd, first.n]
        for place in places:
            point = place.get(name)
            cells += [None, None] if point is None else [point.cost, _membership(point)]
        rows.append(tuple(cells))
    note = ("Every shape that is on a front of the means (●), or on that of the true means with a "
            "probability of 5% or more. The cheapest shape always is. No percentage: one training "
            "seed, so the noise is not known.")
    return Sheet("fronts", domain, tuple(columns), tuple(rows), "Who is on the front", note,
                 tuple(range(min(len(rows), 3 * MAX_SHOWN))))


def _membership(point: Any) -> str:
    share = "" if point.membership is None else percent(point.membership)
    return f"● {share}".strip() if point.on_front else share or "–"


def worth_by_quality(found: Sequence[Worth]) -> Sheet:
    """What each quality loses between raw inputs and the pre-trained model, and where."""
    columns = (QUALITY, Column("pretrained", "Pre-trained", "number", text.quality),
               Column("untrained", "Untrained", "number", text.quality),
               Column("raw", "Raw inputs", "number", text.quality),
               Column("lost", "Untrained minus raw", "number", signed),
               Column("won", "Pre-trained minus untrained", "number", signed),
               Column("shapes", "Shapes that beat untrained", "number"),
               Column("over_raw", "that beat raw", "number"),
               Column("alike", "Order as untrained, tau", "interval",
                      lambda one: text.interval(one, "{:.2f}")))
    rows = tuple((
        one.quality, one.pretrained, one.untrained, one.raw, _lead(one, one.untrained, one.raw),
        _lead(one, one.pretrained, one.untrained),
        _beaten([shape.over_untrained for shape in one.shapes]),
        _beaten([shape.over_raw for shape in one.shapes]), one.alike) for one in found)
    return Sheet(
        "worth", "", columns, rows, "",
        "Means over shapes; differences are better where positive, taken within a training seed; "
        "'3 (1) of 6': three shapes are better beyond noise (90%) and one is worse. Untrained "
        "minus raw is what the network itself loses: a probe sees its few pooled numbers instead "
        "of the inputs. The records do not say whether longer pre-training, wider features or "
        "another probe would win it back.")


def signed(value: float) -> str:
    """A difference to three digits, with its sign."""
    return f"{value:+.3g}"


def _lead(one: Worth, better: float | None, worse: float | None) -> float | None:
    if better is None or worse is None:
        return None
    return (better - worse) * (1 if one.direction == "max" else -1)


def _beaten(found: Sequence[Interval | None]) -> str | None:
    known = beyond(found)
    return None if known is None else f"{known[0]} ({known[1]}) of {known[2]}"


def worth(found: Sequence[Worth], domain: str) -> Sheet:
    """Every shape beside an untrained network of its own, and beside the raw inputs."""
    columns = (QUALITY, SHAPE, Column("pretrained", "Pre-trained", "number", text.quality),
               Column("over_untrained", "over its untrained network", "interval", lead),
               Column("over_raw", "over raw inputs", "interval", lead))
    rows = [(one.quality, shape.name, shape.pretrained, shape.over_untrained, shape.over_raw)
            for one in found for shape in one.shapes]
    return Sheet("worth", domain, columns, tuple(rows), "",
                 "Better is positive; 90% intervals of differences within a training seed.",
                 _first(rows, 3 * MAX_SHOWN))


# --- claims --------------------------------------------------------------------------------------
def matches(claims: Sequence[Claims], domain: str) -> Sheet:
    """A shape against a baseline that costs more."""
    columns = (QUALITY, COST, SHAPE, Column("baseline", "Baseline", "shape"),
               Column("cost_ratio", "of its cost", "number", text.ratio),
               Column("difference", "Quality minus baseline's", "interval", lead),
               Column("verdict", "Verdict"), Column("seeds_needed", "Seeds to decide", "number"))
    rows: Rows = []
    shown = []
    for one in claims:
        best = {id(match) for match in cheapest(one.matches)}
        for match in one.matches:
            if id(match) in best:
                shown.append(len(rows))
            rows.append((one.quality, one.cost, match.shape, match.baseline, match.cost_ratio,
                         match.difference, match.verdict, match.seeds_needed))
    return Sheet(
        "matches", domain, columns, tuple(rows), "Who matches a baseline for less",
        "For every baseline (a shape of the reference family) the cheapest shape that matches it "
        "(interval above -0.01), else the one that comes nearest. Seeds to decide: of both, were "
        "the estimate true.", tuple(shown[:2 * MAX_SHOWN]))


def cheapest(found: Sequence[Match]) -> list[Match]:
    """Of every baseline: the match of the lowest cost ratio, else the shape that comes nearest."""
    by_baseline: dict[str, list[Match]] = {}
    for match in found:
        by_baseline.setdefault(match.baseline, []).append(match)
    return [min(mine, key=lambda m: (m.verdict != "matches", m.cost_ratio if m.verdict == "matches"
                                     else -(m.difference.estimate or 0.0)))
            for mine in by_baseline.values()]


def savings(claims: Sequence[Claims], domain: str) -> Sheet:
    """What the interpolated front of the other shapes saves at a baseline's quality."""
    columns = (QUALITY, COST, Column("baseline", "Baseline", "shape"),
               Column("saving", "Saved at its quality", "interval", text.share),
               Column("at_least", "", show=lambda more: "or more" if more else ""))
    rows = [(one.quality, one.cost, saving.baseline, saving.saving, saving.at_least)
            for one in claims for saving in one.savings]
    return Sheet("savings", domain, columns, tuple(rows), "Savings at equal quality",
                 "Read off the front of all other shapes, straight lines over log cost; negative: "
                 "they need more.", _first(rows, 2 * MAX_SHOWN))


def gains(claims: Sequence[Claims], domain: str) -> Sheet:
    """What every operator buys."""
    columns = (QUALITY, COST, Column("operator", "Operator"), Column("shapes", "Shapes", "shape"),
               Column("per_doubling", "Quality per doubling of cost", "interval", lead),
               Column("lift", "Over the front without it", "interval", lead))
    rows = [(one.quality, one.cost, gain.operator, gain.shapes, gain.per_doubling, gain.lift)
            for one in claims for gain in one.gains]
    return Sheet("gains", domain, columns, tuple(rows), "What every operator buys",
                 "Better is positive. The lift: how far its shapes lead the front of all "
                 "shapes without it at equal cost, on average. A negative gain per doubling: "
                 "dearer and worse, or cheaper and better; the lift tells which.",
                 _first(rows, 2 * MAX_SHOWN))


def depth_limits(claims: Sequence[Claims], domain: str) -> Sheet:
    """Where more layers stop paying at equal cost."""
    columns = (QUALITY, COST, Column("base", "Base"), Column("depths", "Layers measured"),
               Column("effects", "Quality over the reference at equal cost"),
               Column("best", "Best depth", "interval", lambda one: text.interval(one, "{:.0f}")))
    rows = [(one.quality, one.cost, limit.base, " ".join(map(str, limit.depths)),
             " ".join(f"{effect:+.3g}" for effect in limit.effects), limit.best)
            for one in claims for limit in one.depth_limits]
    return Sheet("depth", domain, columns, tuple(rows), "Where depth stops paying",
                 "At equal cost, by base. A '?' as the upper bound: the deepest may be the best, "
                 "so no end was seen.", _first(rows, MAX_SHOWN))


def rungs(claims: Sequence[Claims], domain: str) -> Sheet:
    """The operators of every size, best first."""
    columns = (QUALITY, COST, Column("base", "Base"),
               Column("rung_cost", "Its cost", "number", text.count),
               Column("operator", "Operator"),
               Column("effect", "Effect at equal cost", "interval", lead))
    rows = [(one.quality, one.cost, rung.base, rung.cost, operator, effect)
            for one in claims for rung in one.regions.rungs for operator, effect in rung.ranking]
    return Sheet("regions", domain, columns, tuple(rows), "Operators by size, best first", "",
                 _first(rows, 2 * MAX_SHOWN))


def steps(claims: Sequence[Claims], domain: str) -> Sheet:
    """Does the ranking of a small size hold at a larger one?"""
    columns = (QUALITY, COST, Column("small", "Smaller base"), Column("large", "Larger base"),
               Column("operators", "Operators on both"),
               Column("tau", "Kendall's tau", "interval",
                      lambda one: text.interval(one, "{:.2f}")),
               Column("chosen", "Best on the smaller"),
               Column("regret", "Regret on the larger", "interval",
                      lambda one: text.interval(one, "{:.3g}")))
    rows = [(one.quality, one.cost, step.small, step.large, ", ".join(step.operators), step.tau,
             step.chosen, step.regret) for one in claims for step in one.regions.steps]
    return Sheet("regions-steps", domain, columns, tuple(rows), "Does the ranking carry over?",
                 "Regret: what choosing the smaller size's best operator loses on the larger one.",
                 _first(rows, MAX_SHOWN))


def _first(rows: Sequence[Any], limit: int) -> tuple[int, ...]:
    return tuple(range(min(len(rows), limit)))


# --- upstream against downstream -----------------------------------------------------------------
def agreement(found: Sequence[Agreement], domain: str) -> Sheet:
    """Rank correlations of upstream with every other quality."""
    columns = (Column("upstream", "Upstream", "text", text.quality_title),
               Column("downstream", "Against", "text", text.quality_title),
               Column("transform", "Ranked"), Column("shapes", "Shapes", "number"),
               Column("kendall", "Kendall's tau", "interval",
                      lambda one: text.interval(one, "{:.2f}")),
               Column("spearman", "Spearman's rho", "interval",
                      lambda one: text.interval(one, "{:.2f}")),
               Column("inverted", "Pairs turned around", "number"),
               Column("decided", "of decided", "number"),
               Column("by_operator", "Operators in them"))
    rows = [(one.upstream[0], one.downstream[0], one.transform, one.shapes, one.kendall,
             one.spearman, one.inverted, one.decided,
             ", ".join(f"{name} ({n})" for name, n in one.by_operator[:8])) for one in found]
    return Sheet("agreement", domain, columns, tuple(rows), "",
                 "Better is positive on both sides. A pair is turned around where upstream and "
                 "downstream each tell the two shapes apart beyond seed noise, the other way; "
                 "decided are the pairs that both tell apart. A metric that saturates (accuracy) "
                 "and one that does not (loss) can disagree in ranks with the same models.")


def inversions(found: Sequence[Agreement], domain: str) -> Sheet:
    """The pairs that turn around beyond seed noise."""
    columns = (Column("downstream", "Against", "text", text.quality_title),
               Column("upstream_better", "Better upstream", "shape"),
               Column("downstream_better", "Better downstream", "shape"),
               Column("operator", "Operators"),
               Column("upstream", "Upstream lead", "interval", lead),
               Column("difference", "Downstream lead", "interval", lead))
    rows = [(one.downstream[0], pair.upstream_better, pair.downstream_better,
             " / ".join("-".join(split_name(name)[1]) or "none" for name in (
                 pair.upstream_better, pair.downstream_better)), pair.upstream, pair.downstream)
            for one in found for pair in one.inversions]
    return Sheet("inversions", domain, columns, tuple(rows), "Pairs that turn around", "",
                 _first(rows, MAX_SHOWN))


# --- laws ----------------------------------------------------------------------------------------
def laws(found: Sequence[Law], domain: str) -> Sheet:
    """One row a parameter of a fitted law; one a refused law, with the reason."""
    columns = (Column("form", "Form"), Column("y", "Of", "text", text.quality_title),
               Column("inputs", "Against"), Column("sizes", "Sizes", "number"),
               Column("parameter", "Parameter"),
               Column("value", "Value", "interval", lambda one: text.interval(one, "{:.4g}")),
               Column("identified", "Identified", show=lambda yes: "yes" if yes else "no"),
               Column("why", "Why not, what would mend it; notes"))
    rows: Rows = []
    for law in found:
        start = (law.form, law.y, _inputs(law), law.sizes)
        if not law.identified:
            words = f"{law.reason}. To mend it: {law.mend}" if law.mend else law.reason
            rows.append((*start, None, None, False, words))
            continue
        values = list(law.params.items())
        if law.alpha is not None:
            values.append((law.alpha.name, law.alpha.value))
        if law.optimum is not None:
            values.append(("best depth / width", law.optimum))
        for i, (name, value) in enumerate(values):
            is_alpha = law.alpha is not None and name == law.alpha.name
            said = law.alpha.transform if law.alpha is not None and is_alpha else (
                _notes(law) if i == 0 else None)
            rows.append((*start, name, value, True, said))
    return Sheet("laws", domain, columns, tuple(rows), "",
                 "90% intervals. A law that the data do not determine has no numbers and draws no "
                 "line. A row's alphas are slopes between natural logarithms of the axes named, in "
                 "the notation of Tay et al. 2022.")


def _inputs(law: Law) -> str:
    if list(law.inputs) == ["x"]:
        return text.cost_title(law.inputs["x"])
    return ", ".join(f"{name} = {text.cost_title(column)}" for name, column in law.inputs.items())


def _notes(law: Law) -> str:
    notes = list(law.flags)
    if law.hold_out is not None:
        largest = text.plural(law.hold_out.points, "largest size")
        notes.append(f"without the {largest} a fit misses them by "
                     f"{law.hold_out.error:.2%}, {law.hold_out.factor:.3g}x beyond what it saw")
    if law.non_finite:
        notes.append(f"{text.plural(law.non_finite, 'value')} not finite")
    return "; ".join(notes)


# --- domains -------------------------------------------------------------------------------------
def effects(found: Sequence[tuple[str, Comparison]]) -> Sheet:
    """Effects of every operator in every domain, one row each."""
    columns = (Column("stage", "Stage"), COST, DOMAIN, QUALITY, Column("operator", "Operator"),
               Column("shapes", "Shapes", "shape"),
               Column("effect", "Effect at equal cost", "interval", lead))
    rows = [(stage, one.cost, effect.domain, one.qualities[effect.domain][0], effect.operator,
             effect.shapes, effect.effect) for stage, one in found for effect in one.effects]
    return Sheet("effects", "", columns, tuple(rows))


def side_by_side(one: Comparison) -> Sheet:
    """One comparison's effects, a column a domain."""
    domains = list(one.qualities)
    by_place = {(effect.domain, effect.operator): effect.effect for effect in one.effects}
    operators = sorted({effect.operator for effect in one.effects}, key=lambda name: (
        name not in one.tau.operators, -max(
            (found.estimate or 0.0) for d in domains
            if (found := by_place.get((d, name))) is not None)))
    columns = (Column("operator", "Operator"), *(
        Column(name, f"{text.plain(name, 40)}: {text.quality_title(one.qualities[name][0])}",
               "interval", lead) for name in domains))
    rows = tuple((name, *(by_place.get((d, name)) for d in domains)) for name in operators)
    return Sheet("effects", "", columns, rows, "", "", _first(rows, 3 * MAX_SHOWN))


def verdicts(found: Sequence[tuple[str, Comparison]]) -> Sheet:
    """Tau and DeepNarrow's verdict, a row a domain and one for all."""
    columns = (Column("stage", "Stage"), COST, Column("where", "Domain"),
               Column("verdict", "DeepNarrow", show=str),
               Column("reason", "Reason"), Column("margin", "Margin", "number", number),
               Column("saving", "Saving", "number", percent))
    rows = tuple((stage, one.cost, where, verdict or "no verdict", one.reasons.get(where),
                  one.margin, one.saving)
                 for stage, one in found for where, verdict in one.verdicts.items())
    return Sheet("verdicts", "", columns, rows)


def verdicts_by_domain(found: Sequence[tuple[str, Comparison]]) -> Sheet:
    """The same, a row a comparison, with the reasons below."""
    names = list(dict.fromkeys(name for _, one in found for name in one.verdicts))
    columns = (Column("stage", "Stage"), COST,
               *(Column(name, text.plain(name, 40), "text", str) for name in names))
    rows = tuple((stage, one.cost, *(one.verdicts.get(name) or "no verdict" for name in names))
                 for stage, one in found)
    reasons = dict.fromkeys(f"{text.plain(where, 60)}: {reason}" for _, one in found
                            for where, reason in one.reasons.items() if where != JOINT)
    margins = dict.fromkeys(f"margin {one.margin:g}, saving {one.saving:.0%}" for _, one in found)
    return Sheet("verdicts", "", columns, rows, "DeepNarrow's verdicts",
                 f"Set beforehand: {'; '.join(margins)}. {'; '.join(reasons)}")


def taus(found: Sequence[tuple[str, Comparison]]) -> Sheet:
    """Kendall's tau of the operators' ranking, a row a comparison."""
    columns = (Column("stage", "Stage"), COST, Column("shared", "Operators shared", "number"),
               Column("tau", "Kendall's tau-b", "interval",
                      lambda one: text.interval(one, "{:.2f}")),
               Column("p", "p", "number", lambda p: f"{p:.3g}"), Column("method", "How"))
    rows = tuple((stage, one.cost, len(one.tau.operators), _tau(one), one.tau.p, one.tau.method)
                 for stage, one in found)
    return Sheet("tau", "", columns, rows)


def _tau(one: Comparison) -> Any:
    return Interval(one.tau.estimate, one.tau.low, one.tau.high, one.tau.method)


def deep_tests(found: Sequence[tuple[str, Comparison]]) -> Sheet:
    """The tests behind the verdicts."""
    columns = (Column("stage", "Stage"), COST, DOMAIN, SHAPE,
               Column("shape_cost", "Its cost", "number", text.count),
               Column("reference_cost", "Reference's cost", "number", text.count),
               Column("difference", "Quality minus the reference's (95%, simultaneous)", "interval",
                      lead))
    rows = tuple((stage, one.cost, test.domain, test.shape, test.cost, test.reference_cost,
                  test.difference) for stage, one in found for test in one.tests)
    return Sheet("deepnarrow-tests", "", columns, rows, "Tests behind the verdicts", "",
                 _first(rows, MAX_SHOWN))
