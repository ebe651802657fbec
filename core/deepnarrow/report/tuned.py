"""What a report says of tuning: how much worse each shape was with each learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deepnarrow.records import Record
from deepnarrow.report import text
from deepnarrow.report.results import SHAPE, number
from deepnarrow.report.sheets import Column, Sheet, Sources, link, table
from deepnarrow.report.text import escape
from deepnarrow.summary import ShapeRow
from deepnarrow.tuning import Choice, choice_in

Tuned = tuple[tuple[str, Choice], ...]  # by label of the shape


def tuned(trials: Sequence[Record], rows: Sequence[ShapeRow]) -> Tuned:
    """Returns the choice of each shape of one modality; its seeds share it."""
    choices: dict[tuple[str, str], Choice] = {}
    for trial in trials:
        choice = choice_in(trial)
        if choice is not None:
            choices.setdefault((trial.architecture, trial.name), choice)
    return tuple((row.label, choices[row.architecture, row.name]) for row in rows
                 if (row.architecture, row.name) in choices)


def sheet(found: Tuned, domain: str) -> Sheet:
    """One row a shape and rate that was tried."""
    columns = (SHAPE, Column("learning_rate", "Learning rate", "number", number),
               Column("loss", "Loss", "number", number),
               Column("over_best", "Over the best", "number", number),
               Column("chosen", "Chosen"), Column("edge", "Edge"))
    rows = [(label, rate, loss, _over(loss, choice), "yes" if rate == choice.learning_rate else "",
             choice.edge if rate == choice.learning_rate else "")
            for label, choice in found for rate, loss in choice.losses]
    return Sheet("tuning", domain, columns, tuple(rows))


def _over(loss: float | None, choice: Choice) -> float | None:
    known = [value for _, value in choice.losses if value is not None]
    return None if loss is None else loss - min(known)


def section(found: Tuned, domain: str, sources: Sources) -> str:
    """A row a shape, a column a rate: how far its loss is above the best one's."""
    if not found:
        return ""
    rates = sorted({rate for _, choice in found for rate, _ in choice.losses})
    head = ["Shape", "Chosen", "Edge", "Best loss", *(f"{rate:g}" for rate in rates)]
    rows = [[link(label, sources.get((domain, label))), *_cells(choice, rates)]
            for label, choice in found]
    right = [False, True, False, True, *(True for _ in rates)]
    return (f"<h3>Learning rates</h3><p>{escape(_words(found), 1000)}</p>"
            + table(head, rows, right, label="learning rates"))


def _cells(choice: Choice, rates: Sequence[float]) -> list[str]:
    known = dict(choice.losses)
    losses = [value for value in known.values() if value is not None]
    over = [text.NONE if rate not in known else "diverged" if known[rate] is None
            else f"{_over(known[rate], choice):+.3g}" for rate in rates]
    chosen = text.NONE if math.isnan(choice.learning_rate) else f"{choice.learning_rate:g}"
    return [chosen, choice.edge or text.NONE, text.quality(min(losses, default=None)), *over]


def _words(found: Tuned) -> str:
    choices = [choice for _, choice in found]
    edges = sum(bool(choice.edge) for choice in choices)
    flops = math.fsum(choice.train_flops for choice in choices)
    seconds = math.fsum(choice.seconds for choice in choices)
    at_edge = (f"{edges} of {text.plural(len(choices), 'shape')} took a rate at the edge of its "
               "grid: a better one may lie beyond." if edges else
               "No shape took a rate at the edge of its grid.")
    return ("Validation loss of each rate above the shape's best one, mean over the seeds of the "
            f"tries, none of which is reported. {at_edge} Tuning took "
            f"{sum(choice.tries for choice in choices):,} tries, "
            f"{text.cost('flops_train_total', flops)} training FLOPs and {seconds:.0f} s, which "
            "are in no shape's costs.")
