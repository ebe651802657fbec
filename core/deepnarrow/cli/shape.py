"""`deepnarrow shape`: parameters and FLOPs of shapes, in closed form.

`--json` prints a list with an object for each shape:

    name     canonical
    shape    the eight fields of `Shape`
    params   {total, embedding, non_embedding}
    flops    {convention, forward_per_example, train_per_example}

With `--ledger` each also has `tokens`, the positions of each stack (an example's tokens), and
`ledger`, a list with an object for each component:

    component, params, flops_forward_per_example, flops_train_per_example,
    flops_forward_per_token, flops_train_per_token, activation_bytes_per_example,
    optimizer_bytes, optimizer

With `--chip` each also has `step_time`, a roofline estimate of one training step on one chip:

    chip, batch_size, dtype, optimizer, seconds (the longest of the next three), compute_s,
    memory_s, interconnect_s, bytes_needed, bytes_there, bound (which of the three), fits

With `--strategy` the list has an object for each budget instead:

    strategy, source   the rule and where it comes from
    budget             {kind, amount, unit, chip, batch_size}; the last two are null but for `time`
    steps              from the base to the chosen shape, which is the last: objects of a shape as
                       above, with `depth` (layers of all stacks) and `cost` (in the budget's unit)
    stopped_because    why it went no further
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from deepnarrow.assemble import check_operators, count_costs
from deepnarrow.cli.output import Output, table
from deepnarrow.cli.parser import integer
from deepnarrow.config import resolve_options
from deepnarrow.cost import CostSummary, convention_named, ledger, summarize
from deepnarrow.errors import InputError, ShapeError, suggest
from deepnarrow.hardware import CHIPS, chip_named
from deepnarrow.modality import AnyArchitecture, Modality
from deepnarrow.ops import NamedShape, Vocabulary, resolve
from deepnarrow.plugins import registry
from deepnarrow.settings import Report, like, parse_settings
from deepnarrow.strategies import BUDGET_KINDS, Machine, StrategyResult, amount_text, ladder

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from rich.console import Console

WHERE = "deepnarrow shape"
WALK_HINT = "--strategy deepnarrow --from base --budget params:220e6"
MAX_BATCH = 2**30
Counted = list[tuple[NamedShape, CostSummary]]
Optimizer = Literal["adafactor", "adamw"]


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts shapes of one modality under the options of the command line, each shape once."""

    modality: Modality
    architecture: AnyArchitecture
    convention: str
    settings: Mapping[str, Any]
    resolved: dict[str, ConfigDict] = dataclasses.field(default_factory=dict)
    counted: dict[str, CostSummary] = dataclasses.field(default_factory=dict)

    def __call__(self, named: NamedShape) -> CostSummary:
        """Returns the costs of a shape.

        Raises:
          InputError: it cannot be, or not with these options or this architecture.
        """
        if named.name not in self.counted:
            check_operators(named, self.architecture)
            self.counted[named.name] = self._count(named, self._options(named))
        return self.counted[named.name]

    def _options(self, named: NamedShape) -> ConfigDict:
        """The model options of one shape; shapes that set the same ones share them."""
        overrides = named.options(self.settings, "--set ")
        key = repr(sorted(overrides.items()))
        if key not in self.resolved:
            self.resolved[key] = resolve_options(self.modality.options, overrides,
                                                 f"shape {named.name!r}")
        return self.resolved[key]

    def _count(self, named: NamedShape, options: ConfigDict) -> CostSummary:
        try:
            return summarize(count_costs(self.modality, self.architecture, named.shape, options),
                             self.convention)
        except InputError as error:  # of several shapes it must say which
            where = f"shape {named.name!r}"
            if not isinstance(error, ShapeError):
                where += f", {error.where}"
            raise type(error)(where, error.what, got=error.got, expected=error.expected,
                              hint=error.hint) from error


def run(options: argparse.Namespace) -> Output:
    """Counts every shape that was asked for, or the shapes that a strategy walks through."""
    _check_arguments(options)
    found = registry()
    modality = found.modality(options.modality)
    architecture = found.architecture(options.architecture)
    convention_named(options.convention)
    optimizer = _optimizer(options.optimizer)
    counter = Counter(modality, architecture, options.convention,
                      option_settings(modality, options.settings))
    vocabulary = found.vocabulary(modality)
    machine = _machine(options, counter, optimizer)
    if options.strategy is not None:
        return _walk(options, counter, vocabulary, machine)
    counted = _count_all(options.expressions, counter, vocabulary)
    document = [_document(*pair) for pair in counted]
    for one, (_, costs) in zip(document, counted, strict=True):
        if options.ledger:
            one["tokens"] = dict(costs.costs.lengths)
            one["ledger"] = [{**dataclasses.asdict(row), "optimizer": optimizer}
                             for row in ledger(costs, optimizer)]
        if machine:
            one["step_time"] = _time_document(machine, costs)
    return Output(document, lambda console: _show(
        console, counted, optimizer if options.ledger else None, machine))


def _count_all(expressions: Sequence[str], counter: Counter, vocabulary: Vocabulary) -> Counted:
    """Counts all shapes; all that cannot be are named at once."""
    counted, report = [], Report("shape")
    for expression in expressions:
        try:
            named = resolve(expression, vocabulary)
            counted.append((named, counter(named)))
        except InputError as error:
            report.errors.append(error)
    report.raise_any()
    return counted


# --- arguments -----------------------------------------------------------------------------------
def _check_arguments(options: argparse.Namespace) -> None:
    """Refuses flags that would be ignored, and a strategy that lacks one."""
    walks = {"--from": options.base, "--budget": options.budget}
    timed = {"--chip": options.chip, "--batch-size": options.batch_size}
    if options.strategy is None:
        _refuse(walks, "means nothing without --strategy", WALK_HINT)
        if options.chip is None:
            _refuse({"--batch-size": options.batch_size}, "means nothing without --chip",
                    "--chip v5e --batch-size 128")
            if not options.ledger:
                _refuse({"--optimizer": options.optimizer},
                        "means nothing without --ledger or --chip", "--ledger --optimizer adamw")
        if not options.expressions:
            raise InputError(WHERE, "the following arguments are required: EXPR",
                             hint=f"{WHERE} --help")
        return
    if options.expressions:
        raise InputError(f"{WHERE} --strategy", "finds the shapes itself and takes no EXPR",
                         got=repr(options.expressions[0]), hint=WALK_HINT)
    missing = [flag for flag, value in walks.items() if value is None]
    if missing:
        raise InputError(f"{WHERE} --strategy", f"{' and '.join(missing)} missing", hint=WALK_HINT)
    if options.ledger:
        raise InputError(f"{WHERE} --ledger", "means nothing with --strategy",
                         hint=f"{WHERE} {options.modality} EXPR --ledger for a shape it found")
    kind = options.budget.partition(":")[0]
    if kind in BUDGET_KINDS and kind != "time":
        _refuse({**timed, "--optimizer": options.optimizer}, "means nothing without a time budget",
                "--budget time:0.5 --chip v5e")


def _refuse(flags: Mapping[str, str | None], what: str, hint: str) -> None:
    for flag, value in flags.items():
        if value is not None:
            raise InputError(f"{WHERE} {flag}", what, got=value, hint=hint)


def _optimizer(name: str | None) -> Optimizer:
    if name is None or name == "adafactor":
        return "adafactor"
    if name == "adamw":
        return "adamw"
    near = suggest(name, ("adafactor", "adamw"))
    raise InputError("--optimizer", "unknown", got=name, expected="one of adafactor, adamw",
                     hint=f"did you mean {near}?" if near else None)


def option_settings(modality: Modality, texts: list[str]) -> dict[str, Any]:
    """The model options of `--set`, checked by themselves first, so that each is named once."""
    report = Report("--set")
    settings = parse_settings(texts, report)
    report.given = settings.keys()
    values: dict[str, Any] = {}
    for (key, *inner), value in settings.items():
        for name in reversed(inner):
            value = {name: value}
        values[str(key)] = {**values.get(str(key), {}), **value} if inner else value
    report.raise_any()
    like(modality.options.to_dict(), values, (), report)
    report.raise_any()
    return values


# --- strategies ----------------------------------------------------------------------------------
def _walk(
    options: argparse.Namespace, counter: Counter, vocabulary: Vocabulary, machine: Machine | None
) -> Output:
    """Has a strategy spend each budget."""
    strategy = registry().strategy(options.strategy)
    walks = ladder(vocabulary, counter, strategy, options.base, _budgets(options.budget), machine)
    document = [_walk_document(walked, counter, machine) for walked in walks]
    return Output(document, lambda console: _show_walks(console, walks, counter))


def _budgets(text: str) -> list[str]:
    """Splits `params:60e6,220e6` into a budget for each amount."""
    kind, colon, amounts = text.partition(":")
    if ":" in amounts:
        raise InputError("--budget", "has several kinds; a ladder has one", got=text,
                         expected="KIND:AMOUNT,AMOUNT,...", hint=f"{kind}:100e6,220e6")
    budgets = [f"{kind}{colon}{amount}" for amount in amounts.split(",")]
    if len(set(budgets)) < len(budgets):
        raise InputError("--budget", "has an amount twice", got=text, hint="keep one of them")
    return budgets


def _machine(
    options: argparse.Namespace, counter: Counter, optimizer: Optimizer
) -> Machine | None:
    """What step times are estimated for; matmuls run in the model's own `compute_dtype`."""
    if options.chip is None:
        if options.strategy is not None and options.budget.partition(":")[0] == "time":
            raise InputError("--budget", "a time budget needs a chip to estimate the time for",
                             expected=f"--chip with one of {', '.join(CHIPS)}", hint="--chip v5e")
        return None
    dtype = {**counter.modality.options.to_dict(), **counter.settings}["compute_dtype"]
    batch_size = Machine.batch_size
    if options.batch_size is not None:
        batch_size = integer("--batch-size", options.batch_size, 1, MAX_BATCH)
    return Machine(chip_named(options.chip), batch_size, optimizer=optimizer, dtype=dtype)


def _walk_document(
    walked: StrategyResult, counter: Counter, machine: Machine | None
) -> dict[str, Any]:
    return {
        "strategy": walked.strategy,
        "source": walked.source,
        "budget": {"kind": walked.kind, "amount": walked.budget, "unit": BUDGET_KINDS[walked.kind],
                   "chip": machine.chip.name if machine else None,
                   "batch_size": machine.batch_size if machine else None},
        "steps": [{**_document(step.shape, counter(step.shape)),
                   "depth": step.shape.shape.num_layers, "cost": step.cost}
                  for step in walked.steps],
        "stopped_because": walked.stopped_because,
    }


def _show_walks(console: Console, walks: Sequence[StrategyResult], counter: Counter) -> None:
    """Every step of one walk, or the last step of each of several."""
    from deepnarrow.report.text import count, plain

    first = walks[0]
    steps = [(walked, step) for walked in walks
             for step in (walked.steps if len(walks) == 1 else walked.steps[-1:])]
    rows = []
    for walked, step in steps:
        shape, costs = step.shape.shape, counter(step.shape)
        rows.append((step.name, shape.num_encoder_layers, shape.num_decoder_layers,
                     amount_text(walked.kind, step.cost), amount_text(walked.kind, walked.budget),
                     f"{costs.params_total:,}", count(costs.flops_forward_per_example),
                     count(costs.flops_train_per_example)))
    columns = ["name", "el:", "dl:", "cost:", "budget:", "params:", "forward:", "train:"]
    console.print(table(columns, rows, title=f"{first.strategy} from {first.steps[0].name}"))
    lines = [f"stopped at {walked.steps[-1].name} with a budget of "
             f"{amount_text(walked.kind, walked.budget)}: {walked.stopped_because}"
             for walked in walks]
    lines += [f"{first.strategy}: {first.source}", f"cost: {BUDGET_KINDS[first.kind]}",
              _convention_line(counter.convention)]
    for line in lines:
        console.print(plain(line, 1000), markup=False, soft_wrap=True)


# --- documents and tables ------------------------------------------------------------------------
def _document(named: NamedShape, costs: CostSummary) -> dict[str, Any]:
    return {
        "name": named.name,
        "shape": named.shape.to_dict(),
        "params": {"total": costs.params_total, "embedding": costs.params_embedding,
                   "non_embedding": costs.params_non_embedding},
        "flops": {"convention": costs.convention,
                  "forward_per_example": costs.flops_forward_per_example,
                  "train_per_example": costs.flops_train_per_example},
    }


def _time_document(machine: Machine, costs: CostSummary) -> dict[str, Any]:
    estimate = machine.estimate(costs)
    return {"chip": machine.chip.name, "batch_size": machine.batch_size, "dtype": machine.dtype,
            "optimizer": machine.optimizer, "seconds": estimate.step_time_s,
            **dataclasses.asdict(estimate), "bound": estimate.bound, "fits": estimate.fits}


def _show(
    console: Console, counted: Counted, ledger_of: Optimizer | None, machine: Machine | None
) -> None:
    """A table of the shapes, the ledger of each where asked for, and what the numbers are."""
    from deepnarrow.report.text import count

    rows = []
    for named, costs in counted:
        shape = named.shape
        flags = (("sh", shape.share_heads), ("skv", shape.share_kv))
        shared = "+".join(name for name, flag in flags if flag)
        rows.append((
            named.name, shape.num_encoder_layers, shape.num_decoder_layers, shape.d_model,
            shape.d_ff, shape.d_kv, shape.num_heads, shared, f"{costs.params_total:,}",
            count(costs.params_embedding, "B"), count(costs.params_non_embedding, "B"),
            count(costs.flops_forward_per_example), count(costs.flops_train_per_example)))
    columns = ["name", "el:", "dl:", "dm:", "ff:", "kv:", "nh:", "shared", "params:", "embed:",
               "other:", "forward:", "train:"]
    console.print(table(columns, rows))
    if ledger_of:
        for named, costs in counted:
            _show_ledger(console, named.name, costs, ledger_of)
        console.print("activations: bytes per example that are kept for the backward pass; "
                      f"{ledger_of}: bytes of its statistics")
    if machine:
        _show_times(console, counted, machine)
    console.print(_convention_line(counted[0][1].convention))


def _show_times(console: Console, counted: Counted, machine: Machine) -> None:
    from deepnarrow.report.text import cost, seconds

    rows = []
    for named, costs in counted:
        estimate = machine.estimate(costs)
        rows.append((named.name, seconds(estimate.step_time_s), estimate.bound,
                     seconds(estimate.compute_s), seconds(estimate.memory_s),
                     cost("peak_bytes", estimate.bytes_needed),
                     "yes" if estimate.fits else "no"))
    title = f"a training step on one {machine.chip.name}, batch {machine.batch_size}"
    columns = ["name", "step (estimate):", "bound by", "compute:", "memory:", "needs:", "fits"]
    console.print(table(columns, rows, title=title))
    console.print(f"estimate: matmuls at the {machine.dtype} peak against bytes through memory "
                  f"({machine.optimizer}); most steps take longer. needs: parameters, gradients, "
                  "statistics and activations; remat and more chips lower it")


def _show_ledger(console: Console, name: str, costs: CostSummary, optimizer: Optimizer) -> None:
    from deepnarrow.report.text import cost, count

    components = ledger(costs, optimizer)
    numbers = [dataclasses.astuple(row)[1:] for row in components]
    total = tuple(map(sum, zip(*numbers, strict=True)))
    names = [row.component for row in components]
    rows = []
    for component, (params, *flops, activations, statistics) in zip(
            [*names, "total"], [*numbers, total], strict=True):
        rows.append((component, f"{params:,}", *map(count, flops),
                     cost("peak_bytes", activations), cost("peak_bytes", statistics)))
    columns = ["component", "params:", "forward:", "train:", "forward/token:", "train/token:",
               "activations:", f"{optimizer}:"]
    console.print(table(columns, rows, title=f"{name}, by component"))
    stacks = " + ".join(f"{length:,} ({role})" for role, length in costs.costs.lengths.items())
    console.print(f"per token: divided by the positions of an example, {stacks}", markup=False)


def _convention_line(convention: str) -> str:
    return f"forward and train: FLOPs per example, convention {convention}"
