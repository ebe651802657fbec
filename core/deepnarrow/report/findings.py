"""What the analyses say about a table, as plain data: everything that a report shows but records.

Each analysis may refuse; what it says then stands in `problems`, so that nothing is missing without
a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from deepnarrow.agreement import Agreement, upstream_agreements
from deepnarrow.claims import Claims, claims_of
from deepnarrow.compare import Comparison, compare
from deepnarrow.dominance import Direction
from deepnarrow.errors import InputError
from deepnarrow.lawforms import CHINCHILLA, POWER, POWER_FLOOR, SHAPE
from deepnarrow.laws import Law, fit
from deepnarrow.operators import matching, operators_of
from deepnarrow.pareto import FRONT_COSTS, Front, fronts
from deepnarrow.records import TOTAL_PARAMS
from deepnarrow.summary import TIMES, headline_qualities
from deepnarrow.table import Table, domains, select
from deepnarrow.worth import Worth, worths

TOKENS = "tokens_seen"
BOOTSTRAP = 500  # of a law in a report
MAX_QUALITIES = 12  # of a domain, beyond the upstream ones, that claims and laws are made of


@dataclasses.dataclass(frozen=True)
class Domain:
    """One domain's findings.

    Attributes:
      name: its modality, "" where the table has none.
      table: its rows.
      qualities: what is shown, with directions: of one task's probes the one with most shots.
      fronts: of those qualities, one a cost.
      claims: of the same planes.
      agreements: upstream against every other quality.
      laws: of every quality, refused ones too.
      worths: of the qualities that were measured without pre-training as well.
      operators: by shape; "" for the reference family.
      problems: what an analysis refused, and why.
    """

    name: str
    table: Table
    qualities: tuple[tuple[str, Direction], ...]
    fronts: tuple[Front, ...]
    claims: tuple[Claims, ...]
    agreements: tuple[Agreement, ...]
    laws: tuple[Law, ...]
    worths: tuple[Worth, ...]
    operators: Mapping[str, str]
    problems: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Findings:
    """All domains, and what holds across them: `comparisons` with what each is of, in words."""

    domains: tuple[Domain, ...]
    comparisons: tuple[tuple[str, Comparison], ...]
    problems: tuple[str, ...]


def find(table: Table, reference: str | None = None) -> Findings:
    """Runs every analysis on `table`, whose `costs`, `qualities` and `directions` are known.

    Args:
      table: rows of any number of domains.
      reference: pattern of the reference family's shapes, see `operators.family_of`.

    Raises:
      InputError: `reference` matches no shape of any domain.
    """
    if reference is not None:
        matching(reference, list(table.name), "--reference")
    found = tuple(_domain(table, name, reference) for name in domains(table)) if len(table) else ()
    comparisons, problems = _comparisons(table, found, reference)
    return Findings(found, comparisons, problems)


def _domain(table: Table, name: str, reference: str | None) -> Domain:
    mine = select(table, table.domain == name)
    names = headline_qualities(one for one in table.qualities if _measured(mine, one))
    qualities: tuple[tuple[str, Direction], ...] = tuple(
        (one, table.directions[one]) for one in names[:MAX_QUALITIES])
    costs = [cost for cost in FRONT_COSTS if cost in table.costs] or list(table.costs)
    made = tuple(fronts(mine, costs, qualities)) if qualities else ()
    problems: dict[str, None] = {}
    claims = []
    for front in made:
        try:
            one = claims_of(mine, front, reference=reference)
        except InputError as error:
            problems[f"claims by {front.cost}: {error}"] = None
            continue
        claims += [one] if one is not None else []
    laws, refused = _laws(mine, [cost for cost in costs if cost not in TIMES], qualities)
    problems |= dict.fromkeys(refused)
    agreed = tuple(upstream_agreements(mine, qualities))
    return Domain(name, mine, qualities, made, tuple(claims), agreed, laws,
                  tuple(worths(mine, qualities)), operators_of(mine), tuple(problems))


def _measured(table: Table, quality: str) -> bool:
    written = table.non_finite.get(quality)
    return bool(np.isfinite(table.columns[quality]).any() or (written is not None and
                                                              written.any()))


def _laws(
    table: Table, costs: Sequence[str], qualities: Sequence[tuple[str, Direction]]
) -> tuple[tuple[Law, ...], list[str]]:
    wanted = [(POWER, {"x": cost}, quality, way) for quality, way in qualities for cost in costs]
    for quality, way in qualities[:1]:
        wanted += [(POWER_FLOOR, {"x": cost}, quality, way) for cost in costs]
        if way == "min" and {"params_non_embedding", TOKENS} <= set(table.columns):
            wanted.append((CHINCHILLA, {"n": "params_non_embedding", "d": TOKENS}, quality, way))
        if {"depth", "width"} <= set(table.columns):
            wanted += [(SHAPE, {"x": cost, "depth": "depth", "width": "width"}, quality, way)
                       for cost in costs]
    made, problems = [], []
    for form, inputs, quality, way in wanted:
        try:
            made.append(fit(table, form, inputs, quality, y_direction=way, bootstrap=BOOTSTRAP))
        except InputError as error:
            problems.append(f"law {form.name} of {quality}: {error}")
    return tuple(made), problems


def _comparisons(
    table: Table, found: Sequence[Domain], reference: str | None
) -> tuple[tuple[tuple[str, Comparison], ...], tuple[str, ...]]:
    """Upstream and after transfer, each by the first cost and by total parameters."""
    if len(found) < 2:
        return (), ()
    costs = [cost for cost in FRONT_COSTS if cost in table.costs][:1] or list(table.costs)[:1]
    costs += [TOTAL_PARAMS] if TOTAL_PARAMS in {*table.costs} - {*costs} else []
    made, problems = [], {}
    for words, qualities in _stages(found):
        for cost in costs:
            try:
                made.append((words, compare(table, cost, qualities, reference=reference)))
            except InputError as error:
                problems[f"comparison, {words}: {error}"] = None
    return tuple(made), tuple(problems)


def _stages(found: Sequence[Domain]) -> list[tuple[str, dict[str, tuple[str, Direction]]]]:
    stages = {"upstream": ("upstream/",), "after transfer": ("/fine_tune", "/few_shot")}
    made = []
    for words, marks in stages.items():
        chosen = {}
        for domain in found:
            for mark in marks:
                fits = [one for one in domain.qualities if mark in one[0]]
                if fits and domain.name not in chosen:
                    chosen[domain.name] = fits[0]
        if len(chosen) == len(found):
            made.append((words, chosen))
    if made:
        return made
    first = {domain.name: domain.qualities[0] for domain in found if domain.qualities}
    return [("by the first quality", first)] if len(first) == len(found) else []
