"""Sections of the page that show findings: across domains, and of one domain."""

from __future__ import annotations

from collections.abc import Sequence

from deepnarrow.laws import EXTRAPOLATION
from deepnarrow.pareto import Front
from deepnarrow.report import charts, morecharts, render, results, text
from deepnarrow.report.findings import Domain, Findings
from deepnarrow.report.sheets import Sheet, Sources, link, table, to_html, without
from deepnarrow.report.tables import left_out, raw_wins, warnings, worth_words
from deepnarrow.report.text import escape

FIGURES = {"fronts": "quality against cost", "curves": "learning curves",
           "laws": "scaling laws", "agreement": "upstream against downstream",
           "effects": "effects of operators at equal cost"}


def by_quality(found: Sequence[Front]) -> list[list[Front]]:
    """The fronts of each quality."""
    groups: dict[str, list[Front]] = {}
    for front in found:
        groups.setdefault(front.quality, []).append(front)
    return list(groups.values())


def figure(chart: charts.Spec, label: str) -> str:
    """A figure of the page."""
    return f"<figure>{render.to_svg(chart, label)}</figure>"


# --- across domains ------------------------------------------------------------------------------
def efficient(domains: Sequence[Domain], sources: Sources) -> str:
    """Which shapes are on which front."""
    costs = list(dict.fromkeys(front.cost for domain in domains for front in domain.fronts))
    head = ["Modality", "Quality", *(text.cost_title(cost) for cost in costs)]
    rows = []
    for domain in domains:
        for group in by_quality(domain.fronts):
            by_cost: dict[str, list[str]] = {cost: [] for cost in costs}
            for front in group:
                names = [link(p.name, sources.get((domain.name, p.name)))
                         for p in front.points if p.on_front]
                more = ", ..." if len(names) > 12 else ""
                where = f'<span class="sub">{escape(front.machine)}</span>' if front.machine else ""
                by_cost[front.cost].append(", ".join(names[:12]) + more + where)
            cells = ["".join(filter(None, found)) or text.NONE for found in by_cost.values()]
            said = "raw inputs are better" if raw_wins(group) else ""
            rows.append([escape(domain.name), escape(text.quality_title(group[0].quality))
                         + (f'<span class="sub">{said}</span>' if said else ""), *cells])
    return ("<section><h2>Pareto-efficient shapes</h2><p>For each cost, the shapes that no other "
            "shape beats in quality at the same cost or less, by means over training seeds.</p>"
            + table(head, rows, [False] * len(head), kind="efficient", label="efficient shapes")
            + "</section>")


def across(found: Findings, sources: Sources) -> str:
    """Does what holds in one domain hold in another?"""
    if len(found.domains) < 2:
        return ""
    parts = ['<section><h2>Across domains</h2><p>The same operators in every domain: what each '
             "gains over the reference family's curve at equal cost, inside its range only, and "
             "whether the domains rank them alike (Kendall's tau-b; p of no association). "
             "DeepNarrow's verdict, by a margin and a saving set beforehand: some deep-narrow "
             "shape is at most the margin below the reference curve at a cost that much higher. "
             "<b>holds</b> and <b>fails</b> are right together with 95%; everything else is "
             "<b>undecided</b>, and fewer than five shared operators give no verdict.</p>"]
    if found.comparisons:
        parts += [to_html(results.verdicts_by_domain(found.comparisons), sources),
                  to_html(results.taus(found.comparisons), sources)]
    seen = set()
    for stage, one in found.comparisons:
        title = f"Effects {stage}, at equal {text.cost_title(one.cost).lower()}"
        body = to_html(results.side_by_side(one), sources)
        drawn = "".join(
            figure(chart, f"{title}: {domain}") for domain, chart in zip(
                one.qualities, morecharts.effects_charts(one, labels=True), strict=True)
            if one.effects)
        notes = [f"{len(names)} shapes of {domain} cost more or less than any reference shape"
                 for domain, names in one.outside.items()]
        notes += [f"{len(names)} shapes of {domain} have no finite cost or quality"
                  for domain, names in one.left_out.items()]
        said = f'<p class="note">Left out: {escape("; ".join(notes), 600)}.</p>' if notes else ""
        edges = "; ".join(f"{domain}: {', '.join(names)}" for domain, names in one.at_edge.items())
        said += (f'<p class="note">Learning rate at the edge of what was tried: '
                 f'{escape(edges, 600)}.</p>' if edges else "")
        parts.append(f'<details{"" if stage in seen else " open"}><summary>{escape(title)}'
                     f'</summary><div class="effects">{drawn}</div>{body}{said}</details>')
        seen.add(stage)
    tests = results.deep_tests(found.comparisons)
    if tests.rows:
        parts.append(to_html(tests, sources))
    return "".join(parts) + problems(found.problems) + "</section>"


def problems(found: Sequence[str]) -> str:
    """What an analysis refused."""
    if not found:
        return ""
    items = "".join(f"<li>{escape(one, 500)}</li>" for one in found[:20])
    more = f"<li>and {len(found) - 20} more</li>" if len(found) > 20 else ""
    return f'<div class="problems"><p>Not analysed:</p><ul>{items}{more}</ul></div>'


# --- one domain ----------------------------------------------------------------------------------
def front_figures(domain: Domain, sources: Sources) -> str:
    """Every front, and who is on it with which probability."""
    parts = []
    said: set[str] = set()  # what holds for several qualities is said once
    for group in by_quality(domain.fronts):
        notes = [note for note in _notes(group) if note not in said]
        said.update(notes)
        drawn = "".join(figure(charts.front_chart(front), _front_label(front))
                        for front in group if charts.drawn_points(front))
        parts.append(f"<h3>{escape(text.quality_title(group[0].quality))}</h3>"
                     f'<div class="fronts">{drawn}</div>'
                     + "".join(f'<p class="note">{escape(note, 1000)}</p>' for note in notes) +
                     f"<details><summary>Who is on the front, how surely</summary>"
                     f"{to_html(results.members(group, domain.name), sources)}</details>")
    return "".join(parts)


def _front_label(front: Front) -> str:
    names = [point.name for point in front.points if point.on_front]
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return (f"{text.quality_title(front.quality)} against {text.cost_title(front.cost)}; "
            f"on the front: {shown}")


def _notes(group: Sequence[Front]) -> list[str]:
    hidden = max(len(front.points) - len(charts.drawn_points(front)) for front in group)
    bad = max(front.non_finite for front in group)
    notes = [f"{line[0].upper()}{line[1:]}." for line in warnings(group)]
    notes += [f"Left out: {names} ({why})." for why, names in left_out(group)]
    if bad:
        notes.append(f"{text.plural(bad, 'value')} of cost or quality not finite.")
    if hidden:
        notes.append(f"Not drawn: up to {hidden:,} shapes that are dominated or cost nothing.")
    return notes


def claims(domain: Domain, sources: Sources) -> str:
    """Savings, matches, operators, depth and compute regions, one fold a quality."""
    if not domain.claims:
        return '<p class="empty">No claims: no plane of a cost and a quality was measured.</p>'
    made = (results.savings, results.matches, results.gains, results.depth_limits, results.rungs,
            results.steps)
    parts = ["<h3>What the fronts say, and compute regions</h3><p>Differences of quality are in "
             "its own unit and better is positive; in brackets the 90% interval, ? for a bound "
             "outside what was measured.</p>"]
    for i, quality in enumerate(dict.fromkeys(one.quality for one in domain.claims)):
        mine = [one for one in domain.claims if one.quality == quality]
        body = "".join(_group(make(mine, domain.name), sources) for make in made)
        parts.append(f'<details{"" if i else " open"}><summary>'
                     f"{escape(text.quality_title(quality))}</summary>{body}</details>")
    return "".join(parts)


NOTHING = {
    "savings": "No baseline costs more than another shape.",
    "matches": "No baseline costs more than another shape.",
    "gains": "No shape was made by an operator.",
    "depth": "No base was measured at three depths inside the reference family's range of costs.",
    "regions": "No shape was made by an operator inside the reference family's range of costs.",
    "regions-steps": "No two sizes share two operators.",
}


def _group(sheet: Sheet, sources: Sources) -> str:
    if not sheet.rows:
        return (f"<h4>{escape(sheet.title)}</h4>"
                f'<p class="empty">{NOTHING[sheet.name]}</p>')
    return to_html(without(sheet, "quality"), sources)


def worth(domain: Domain, sources: Sources) -> str:
    """Was pre-training worth anything, and where is quality lost?"""
    if not domain.worths:
        return ""
    return ("<h4>Was pre-training worth anything?</h4><p>The same measurement of a network of the "
            "same shape with random parameters, and of the raw inputs. "
            f"{escape(worth_words(domain.worths), 1500)}</p>"
            f"{to_html(results.worth_by_quality(domain.worths), sources)}"
            f"<details><summary>By shape</summary>"
            f"{to_html(results.worth(domain.worths, domain.name), sources)}</details>")


def agreement(domain: Domain, sources: Sources) -> str:
    """Does what is better upstream transfer better?"""
    if not domain.agreements:
        return ('<h3>Upstream against downstream</h3><p class="empty">Fewer than three shapes have '
                "both.</p>")
    drawn = "".join(figure(morecharts.agreement_chart(one, domain.table),
                           f"{text.quality_title(one.downstream[0])} against upstream")
                    for one in domain.agreements)
    pairs = results.inversions(domain.agreements, domain.name)
    return (f'<h3>Upstream against downstream</h3><div class="scatters">{drawn}</div>'
            + to_html(without(results.agreement(domain.agreements, domain.name), "upstream",
                              "transform"), sources)
            + (to_html(pairs, sources) if pairs.rows else
               '<p class="note">No pair of shapes turns around beyond seed noise.</p>'))


def laws(domain: Domain, sources: Sources) -> str:
    """The laws, drawn where they have one input."""
    if not domain.laws:
        return '<h3>Scaling laws</h3><p class="empty">No law could be tried.</p>'
    figures = "".join(figure(morecharts.law_chart(law, domain.table),
                             f"{law.form}: {text.quality_title(law.y)} against "
                             f"{text.cost_title(law.inputs['x'])}")
                      for law in morecharts.drawn_laws(domain.laws))
    return ('<h3>Scaling laws</h3><p>Points are means over seeds, the band is the 90% interval of '
            "the line. The line is solid over what was measured and thin beyond it; more than "
            f"{EXTRAPOLATION:g}× beyond the largest measured it is dashed: an extrapolation "
            "nobody should build on.</p>"
            + (f'<div class="fronts">{figures}</div>' if figures else
               '<p class="empty">The data determine no power law, so no line is drawn.</p>')
            + to_html(results.laws(domain.laws, domain.name), sources))
