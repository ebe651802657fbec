"""Tuning: the learning rates that a shape is tried with, and the one that its trials take.

Everything here is a pure function of what the tries gave, so whoever has their records chooses the
same rate: a study that was killed, another machine, another launcher.

    record                what it says of tuning
    a try's               its config has `"try": true`, its own learning rate and its own budget
    a trial's             its config, and so its key, has the grid (`protocol.tune`) but no rate;
                          its metrics of stage `tuning` are `learning_rate` and, a rate,
                          `loss@RATE` (None: diverged); its environment has `tuning`: `edge`, cost
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from deepnarrow.protocol import Tune
from deepnarrow.records import FINISHED, MetricRow, Record

Edge = Literal["", "low", "high"]
LEARNING_RATE, LOSS_AT = "learning_rate", "loss@"
DIGITS = 6  # of a rate that is added to a grid


@dataclasses.dataclass(frozen=True)
class TryResult:
    """What one try gave.

    Attributes:
      status: of its record.
      loss: on upstream's validation split after the last step; None unless it is done.
      train_flops: what it cost.
      seconds: what it took.
      error: why it failed, where it did.
      bad_input: whether bad input was why.
    """

    status: str
    loss: float | None
    train_flops: float
    seconds: float
    error: str = ""
    bad_input: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """The learning rate of one shape's trials, and what it rests on.

    Attributes:
      learning_rate: with the lowest mean loss over the tries' seeds; of equal ones the smallest.
      losses: each rate of the grid, increasing, with that mean; None where a try diverged.
      edge: the end of the grid where the rate is, `low` or `high`; else empty.
      tries: how many there were.
      train_flops: of all tries.
      seconds: of all tries.
    """

    learning_rate: float
    losses: tuple[tuple[float, float | None], ...]
    edge: Edge
    tries: int
    train_flops: float
    seconds: float

    @property
    def found(self) -> bool:
        """Whether a rate did not diverge."""
        return any(loss is not None for _, loss in self.losses)


def result_of(record: Record) -> TryResult:
    """Returns what a try's record says."""
    losses = [row.value for row in record.metrics
              if row.stage == "upstream" and row.metric == "loss"]
    loss = losses[0] if record.status == "done" and losses else None
    return TryResult(
        record.status, loss if loss is not None and math.isfinite(loss) else None,
        record.costs.get("flops_train_total") or 0.0, record.environment.get("seconds") or 0.0,
        str(record.environment.get("error") or ""), bool(record.environment.get("bad_input")))


def mean_losses(results: Mapping[float, Sequence[TryResult]], seeds: int) -> dict[float, float]:
    """Returns the mean loss of each rate whose `seeds` tries have all finished; inf: one diverged.

    >>> done = TryResult("done", 0.5, 1e9, 2.0)
    >>> mean_losses({0.1: [done], 0.2: [done, TryResult("diverged", None, 1e8, 1.0)]}, seeds=2)
    {0.2: inf}
    """
    made = {}
    for rate, tries in results.items():
        if len(tries) == seeds and all(one.status in FINISHED for one in tries):
            made[rate] = math.fsum(math.inf if one.loss is None else one.loss
                                   for one in tries) / seeds
    return made


def best_rate(losses: Mapping[float, float]) -> float:
    """Returns the rate with the lowest loss, of equal ones the smallest.

    >>> best_rate({0.3: 1.5, 0.1: 1.5, 1.0: float("inf")})
    0.1
    """
    return min(losses, key=lambda rate: (losses[rate], rate))


def grid(tune: Tune, losses: Mapping[float, float]) -> tuple[float, ...]:
    """Returns the rates that are to be tried, as far as the known `losses` (inf: diverged) say.

    While the best rate is at an edge, and `tune.extend` allows, the grid grows there by its ratio;
    downwards too where every rate diverged.

    >>> tune = Tune((0.01, 0.1), seeds=(7,), extend=2)
    >>> grid(tune, {}), grid(tune, {0.01: 2.0, 0.1: 3.0})
    ((0.01, 0.1), (0.001, 0.01, 0.1))
    >>> grid(tune, {0.001: 2.5, 0.01: 2.0, 0.1: 3.0})
    (0.001, 0.01, 0.1)
    """
    rates = tune.learning_rates
    for _ in range(tune.extend):
        if any(rate not in losses for rate in rates):
            break
        edge = edge_of(rates, best_rate({rate: losses[rate] for rate in rates}))
        if edge == "low":
            rates = (_rounded(rates[0] / rates[1] * rates[0]), *rates)
        elif edge == "high":
            rates = (*rates, _rounded(rates[-1] / rates[-2] * rates[-1]))
        else:
            break
    return rates


def edge_of(rates: Sequence[float], rate: float) -> Edge:
    """Returns the end of increasing `rates` at which `rate` is, if it is at one."""
    return "low" if rate == rates[0] else "high" if rate == rates[-1] else ""


def _rounded(rate: float) -> float:
    """Without the last digits that binary fractions make: a rate is part of a try's key."""
    return float(f"{rate:.{DIGITS}g}")


def choose(tune: Tune, results: Mapping[float, Sequence[TryResult]]) -> Choice | None:
    """Returns a shape's choice; None while tries of its grid have not finished."""
    losses = mean_losses(results, len(tune.seeds))
    rates = grid(tune, losses)
    if any(rate not in losses for rate in rates):
        return None
    rate = best_rate({rate: losses[rate] for rate in rates})
    tries = [one for rate in rates for one in results[rate]]
    return Choice(
        rate, tuple((r, losses[r] if math.isfinite(losses[r]) else None) for r in rates),
        edge_of(rates, rate), len(tries), math.fsum(one.train_flops for one in tries),
        math.fsum(one.seconds for one in tries))


# --- records ------------------------------------------------------------------------------------
def choice_rows(choice: Choice) -> list[MetricRow]:
    """Returns what a trial's metrics say of its tuning."""
    chosen = [MetricRow("tuning", "", LEARNING_RATE, "min", choice.learning_rate)]
    return (chosen if choice.found else []) + [
        MetricRow("tuning", "", f"{LOSS_AT}{rate!r}", "min", loss) for rate, loss in choice.losses]


def choice_facts(choice: Choice) -> dict[str, Any]:
    """Returns what a trial's environment says of its tuning."""
    return {"edge": choice.edge, "tries": choice.tries, "train_flops": choice.train_flops,
            "seconds": choice.seconds}


def choice_in(record: Record) -> Choice | None:
    """Returns the choice that a trial's record tells of; None where nothing was tuned."""
    rows = {row.metric: row.value for row in record.metrics if row.stage == "tuning"}
    facts = record.environment.get("tuning")
    if not rows or not isinstance(facts, Mapping):
        return None
    losses = tuple(sorted((float(name.removeprefix(LOSS_AT)), value) for name, value in rows.items()
                          if name.startswith(LOSS_AT)))
    edge = facts.get("edge")
    return Choice(
        rows.get(LEARNING_RATE) or math.nan, losses, edge if edge in ("low", "high") else "",
        *(facts.get(name) or 0 for name in ("tries", "train_flops", "seconds")))


def choice_from_json(values: Mapping[str, Any]) -> Choice:
    """Builds the choice that `dataclasses.asdict` and JSON made of one."""
    return Choice(**{**values, "losses": tuple((rate, loss) for rate, loss in values["losses"])})


def results_in(records: Iterable[Record], ended: set[str]) -> dict[str, TryResult]:
    """Returns by key what tries gave: those that finished, and of those `ended` the failed too."""
    found: dict[str, TryResult] = {}
    for record in records:
        if record.is_try and (record.status in FINISHED or record.key in ended) and (
                record.key not in found or found[record.key].status not in FINISHED):
            found[record.key] = result_of(record)
    return found
