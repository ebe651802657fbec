"""Scaling strategies: given a base shape and a budget, which shapes to walk through.

    result = walk(vocabulary, summary_of, strategy, "small", "params:220e6")
    result.steps[-1].name, result.stopped_because

A budget is `KIND:AMOUNT`. The amount is a number, or the expression of a shape, which stands for
what that shape costs: `flops:base` asks for the best use of what `base` costs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from deepnarrow.cost import CostSummary
from deepnarrow.errors import InputError, PluginError, ShapeError, suggest
from deepnarrow.hardware import Chip, StepTimeEstimate, roofline_step_time
from deepnarrow.ops import (
    Expression,
    NamedShape,
    Term,
    Vocabulary,
    apply,
    parse,
    resolve,
    round_half_up,
)
from deepnarrow.plugins import Strategy, Walk
from deepnarrow.shape import FLAG_FIELDS, Shape

FLATTENS_AT = 36  # layers of one stack; "Scale Efficiently" finds that gains flatten at 32-36
WIDTH_MULTIPLE = 8  # d_model and d_ff of a scaled shape are multiples of it
STEPS_PER_DOUBLING = 32  # of the scale along which a shape grows in several dimensions at once
MAX_STEPS = 100 * STEPS_PER_DOUBLING

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", re.IGNORECASE)
CostOf = Callable[[Shape], float]


# --- the rules -----------------------------------------------------------------------------------
def deepnarrow(base: Shape, cost_of: CostOf, budget: float) -> Walk:
    """Depth first: one more layer in every stack until the budget ends or gains flatten.

    Width, heads and MLP stay those of the base (Tay et al., Scale Efficiently, ICLR 2022: scale
    depth before the other dimensions; beyond 32-36 layers take a wider base instead).
    """
    deepest = max(base.num_encoder_layers, base.num_decoder_layers)

    def deeper(more: int) -> Shape:
        return base.replace(
            num_encoder_layers=base.num_encoder_layers + more * (base.num_encoder_layers > 0),
            num_decoder_layers=base.num_decoder_layers + more * (base.num_decoder_layers > 0))

    most = max(0, FLATTENS_AT - deepest)
    walk = _walk(base, map(deeper, range(1, most + 1)), cost_of, budget)
    if len(walk.shapes) <= most:
        return walk
    # The last shape that is worth trying: does depth end here, or would the budget, too?
    beyond = _walk(walk.shapes[-1], iter([deeper(most + 1)]), cost_of, budget)
    if beyond.next_cost is not None:
        return dataclasses.replace(walk, next_cost=beyond.next_cost)
    unspent = 1 - cost_of(walk.shapes[-1]) / budget
    return dataclasses.replace(walk, stopped_because=(
        f"gains flatten at 32-{FLATTENS_AT} layers (Tay et al., ICLR 2022); {unspent:.0%} of the "
        "budget is unspent: start from a wider base to spend it"))


@dataclasses.dataclass(frozen=True)
class Exponents:
    """How fast each dimension grows with a common scale t: depth ~ t**depth and so on.

    The number of heads grows with d_model, so that d_kv stays what it is.
    """

    depth: float
    d_model: float
    d_ff: float


def grow(exponents: Exponents, base: Shape, cost_of: CostOf, budget: float) -> Walk:
    """Grows all dimensions with a common scale, in 32 steps a doubling, until the budget ends.

    Layers and heads are rounded half up, d_model and d_ff to multiples of 8.
    """
    def candidates() -> Iterator[Shape]:
        last = base
        for step in range(1, MAX_STEPS + 1):
            shape = _scaled(base, exponents, 2 ** (step / STEPS_PER_DOUBLING))
            if shape != last:
                yield shape
                last = shape

    return _walk(base, candidates(), cost_of, budget)


def _scaled(base: Shape, exponents: Exponents, scale: float) -> Shape:
    def layers(number: int) -> int:
        return round_half_up(Fraction(number * scale**exponents.depth)) if number else 0

    def width(number: int, exponent: float) -> int:
        grown = number * scale**exponent
        nearest = WIDTH_MULTIPLE * round_half_up(Fraction(grown / WIDTH_MULTIPLE))
        return number if exponent == 0 else max(number, nearest)

    return base.replace(
        num_encoder_layers=layers(base.num_encoder_layers),
        num_decoder_layers=layers(base.num_decoder_layers),
        d_model=width(base.d_model, exponents.d_model),
        d_ff=width(base.d_ff, exponents.d_ff),
        num_heads=round_half_up(Fraction(base.num_heads * scale**exponents.d_model)),
    )


def _walk(base: Shape, candidates: Iterator[Shape], cost_of: CostOf, budget: float) -> Walk:
    """Takes candidates while they fit the budget; no reason where the candidates ran out."""
    shapes = [base]
    while True:
        try:
            shape = next(candidates, None)
            if shape is None:
                return Walk(tuple(shapes), "")
            cost = cost_of(shape)
        except InputError as error:
            return Walk(tuple(shapes), f"the next shape cannot be: {error}")
        if cost > budget:
            return Walk(tuple(shapes), "", next_cost=cost)
        shapes.append(shape)


def _growing(name: str, exponents: Exponents, source: str) -> Strategy:
    return Strategy(name, lambda base, cost_of, budget: grow(exponents, base, cost_of, budget),
                    source)


STRATEGIES: tuple[Strategy, ...] = (
    Strategy("deepnarrow", deepnarrow, "Tay et al., Scale Efficiently (ICLR 2022): DeepNarrow"),
    _growing("uniform", Exponents(1, 1, 1),
             "every dimension by the same factor, as T5's sizes grow (Raffel et al., JMLR 2020)"),
    _growing("width", Exponents(0, 1, 1), "d_model, d_ff and heads by the same factor; no deeper"),
    _growing("compound", Exponents(math.log2(1.2), math.log2(1.1), math.log2(1.1)),
             "Tan and Le, EfficientNet (ICML 2019), section 3.3: depth 1.2**phi, width 1.1**phi; "
             "that these factors suit a Transformer is an assumption"),
    _growing("sovit", Exponents(0.45, 0.22, 0.60),
             "Alabdulmohsin et al., Getting ViT in Shape (2023): MLP fastest, then depth, then "
             "width; the exponents 0.60, 0.45 and 0.22 are an assumption, and so are heads that "
             "grow with the width"),
)


# --- walking with names and budgets --------------------------------------------------------------
BUDGET_KINDS: Mapping[str, str] = {
    "params": "parameters",
    "params_non_embedding": "parameters without embeddings",
    "flops": "training FLOPs per example",
    "time": "seconds a training step, estimated",
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One shape on the way: its canonical name, the shape with its overrides, and what it costs."""

    name: str
    shape: NamedShape
    cost: float


@dataclasses.dataclass(frozen=True)
class StrategyResult:
    """Where a strategy went.

    Attributes:
      strategy: its name.
      source: where its rule comes from.
      kind: of the budget, a key of `BUDGET_KINDS`.
      budget: the amount.
      steps: from the base to the chosen shape, which is the last.
      stopped_because: why it went no further.
    """

    strategy: str
    source: str
    kind: str
    budget: float
    steps: tuple[Step, ...]
    stopped_because: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """What step times are estimated for."""

    chip: Chip
    batch_size: int = 128
    num_chips: int = 1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    optimizer: Literal["adafactor", "adamw"] = "adafactor"

    def estimate(self, summary: CostSummary) -> StepTimeEstimate:
        """Estimates one training step."""
        return roofline_step_time(
            summary, self.chip, batch_size=self.batch_size, num_chips=self.num_chips,
            dtype=self.dtype, optimizer=self.optimizer)


def walk(
    vocabulary: Vocabulary,
    summary_of: Callable[[NamedShape], CostSummary],
    strategy: Strategy,
    base: str,
    budget: str,
    machine: Machine | None = None,
) -> StrategyResult:
    """Has `strategy` walk from `base` as far as `budget` goes.

    Args:
      vocabulary: of the modality.
      summary_of: costs of a named shape under the caller's options and FLOP convention.
      strategy: from the registry.
      base: the expression to start from; a released name stands for its open name.
      budget: `KIND:AMOUNT`, e.g. `params:220e6`, `flops:base`, `time:0.5`.
      machine: for `time` budgets: on what.

    Raises:
      ShapeError: an expression that is none.
      InputError: a budget that is none, or less than the base costs.
      PluginError: the strategy broke its contract.
    """
    kind, amount = parse_budget(budget, vocabulary, summary_of, machine)
    start = _open_expression(base, vocabulary)

    def named(shape: Shape) -> NamedShape:
        return apply(describe(start, shape, vocabulary), vocabulary)

    def cost_of(shape: Shape) -> float:
        return _cost(kind, summary_of(named(shape)), machine)

    first = apply(start, vocabulary)
    if (cost := cost_of(first.shape)) > amount:
        raise InputError(f"budget {budget!r}", f"{first.name} alone costs more",
                         got=amount_text(kind, amount),
                         expected=f"at least {amount_text(kind, cost)}",
                         hint="start from a smaller base")
    walked = strategy.propose(first.shape, cost_of, amount)
    steps = tuple(Step(named(s).name, named(s), cost_of(s)) for s in walked.shapes)
    _check_walk(strategy, steps, amount)
    reason = walked.stopped_because
    if walked.next_cost is not None:
        reason = (f"the next shape costs {amount_text(kind, walked.next_cost)}, more than the "
                  f"budget of {amount_text(kind, amount)}")
    return StrategyResult(strategy.name, strategy.source, kind, amount, steps, reason)


def amount_text(kind: str, amount: float) -> str:
    """Shows a cost or a budget: parameters to the last one, the others to four digits.

    >>> amount_text("params", 222903552.0), amount_text("flops", 1.23456e12)
    ('222,903,552', '1.235e+12')
    """
    if kind.startswith("params") and amount < 1e15:
        return f"{amount:,.0f}"
    return f"{amount:.4g} s" if kind == "time" else f"{amount:.4g}"


def _check_walk(strategy: Strategy, steps: Sequence[Step], amount: float) -> None:
    if not steps or any(step.cost > amount for step in steps):
        raise PluginError(f"strategy {strategy.name!r}", "returned none, or one over the budget",
                          expected=f"at least the base, each at most {amount:.10g}")


def ladder(
    vocabulary: Vocabulary,
    summary_of: Callable[[NamedShape], CostSummary],
    strategy: Strategy,
    base: str,
    budgets: Sequence[str],
    machine: Machine | None = None,
) -> tuple[StrategyResult, ...]:
    """Returns one walk for each budget; the last steps are the rungs. Errors as in `walk`."""
    return tuple(walk(vocabulary, summary_of, strategy, base, budget, machine)
                 for budget in budgets)


def parse_budget(
    text: str,
    vocabulary: Vocabulary,
    summary_of: Callable[[NamedShape], CostSummary],
    machine: Machine | None = None,
) -> tuple[str, float]:
    """Returns (kind, amount) of a budget `KIND:AMOUNT`; errors as in `walk`."""
    kind, colon, amount = text.partition(":")
    kinds = ", ".join(BUDGET_KINDS)
    if not colon:
        raise InputError(f"budget {text!r}", "no kind", hint="e.g. params:220e6 or flops:base",
                         expected=f"KIND:AMOUNT, KIND one of {kinds}")
    if kind not in BUDGET_KINDS:
        near = suggest(kind, BUDGET_KINDS)
        raise InputError(f"budget {text!r}", "unknown kind", got=kind, expected=f"one of {kinds}",
                         hint=f"did you mean {near}?" if near else None)
    if kind == "time" and machine is None:
        raise InputError(f"budget {text!r}", "no chip to estimate the time for",
                         expected="a machine", hint="give the chip that a step is to run on")
    if re.match(r"[+.\-0-9\s]|(nan|inf(inity)?)$", amount, re.IGNORECASE) or not amount:
        number = float(amount) if _NUMBER.fullmatch(amount) else math.nan
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"budget {text!r}", "no positive number", got=repr(amount),
                             expected="e.g. 220e6, or the expression of a shape")
        return kind, number
    return kind, _cost(kind, summary_of(resolve(amount, vocabulary)), machine)


def _cost(kind: str, summary: CostSummary, machine: Machine | None) -> float:
    if kind == "time":
        assert machine is not None  # parse_budget has seen to it
        return machine.estimate(summary).step_time_s
    return float({
        "params": summary.params_total,
        "params_non_embedding": summary.params_non_embedding,
        "flops": summary.flops_train_per_example,
    }[kind])


def _open_expression(text: str, vocabulary: Vocabulary) -> Expression:
    """Parses an expression, or the open name of a released one."""
    if text not in vocabulary.catalogue:
        return parse(text, vocabulary)
    open_name = vocabulary.catalogue[text].open_name
    if open_name is None:
        raise ShapeError(f"shape {text!r}", "is a released name without an open one",
                         hint="start from a preset")
    return parse(open_name, vocabulary)


def describe(start: Expression, shape: Shape, vocabulary: Vocabulary) -> Expression:
    """Returns the expression of `shape` over the preset, suffix and options of `start`.

    `apply` of it gives `shape` back.
    """
    preset = vocabulary.presets[start.preset].shape
    changed = {field for field, value in shape.to_dict().items() if value != getattr(preset, field)}
    terms = [term for term in start.terms if vocabulary.ops[term.symbol].option]
    # Operators on several fields come first where one number serves all: nl before el and dl.
    for op in sorted(vocabulary.ops.values(), key=lambda op: -len(op.fields)):
        fields = [field for field in op.fields if getattr(preset, field) or field in FLAG_FIELDS]
        values = {getattr(shape, field) for field in fields}
        if not fields or not changed.issuperset(fields) or len(values) != 1:
            continue
        value = values.pop()
        terms.append(Term(op.symbol, "flag") if op.is_flag
                     else Term(op.symbol, "set", Fraction(value)))
        changed -= set(fields)
    order = list(vocabulary.ops)
    return Expression(start.preset, start.suffix,
                      tuple(sorted(terms, key=lambda term: order.index(term.symbol))))
