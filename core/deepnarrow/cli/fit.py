"""`deepnarrow fit`: scaling laws with intervals, or why there is none."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.analysis import axis, load_table
from deepnarrow.cli.output import Output, table
from deepnarrow.cli.parser import integer
from deepnarrow.errors import InputError, shorten, suggest

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.laws import Law
    from deepnarrow.plugins import LawForm

FLAGS = ("x", "n", "d")
MAX_BOOTSTRAP = 100_000


def run(options: argparse.Namespace) -> Output:
    """Fits one form to one domain of the sources."""
    form = _form(options.form)
    given = {name: getattr(options, name) for name in FLAGS}
    bootstrap = integer("--bootstrap", options.bootstrap, 100, MAX_BOOTSTRAP)
    y, direction = axis("--y", options.y)
    inputs = _inputs(form, given)
    found = load_table(options.sources, options.by)
    from deepnarrow.laws import fit

    law = fit(found, form, inputs, y, domain=options.domain, y_direction=direction,
              bootstrap=bootstrap)
    return Output(document(law), lambda console: _show(console, law))


def document(law: Law) -> dict[str, Any]:
    """The law as plain values, without the bootstrap's sample."""
    plain = dataclasses.asdict(dataclasses.replace(law, sample=law.sample[:0]))
    del plain["sample"]
    if law.condition is not None and law.condition == float("inf"):
        plain["condition"] = None
    return plain


def _form(name: str) -> LawForm:
    from deepnarrow.plugins import registry

    known = registry().law_forms
    if name not in known:
        near = suggest(name, known)
        raise InputError("--form", "no plugin registers this form", got=name,
                         expected=f"one of {', '.join(known)}",
                         hint=f"did you mean {near}?" if near else "deepnarrow list forms")
    return known[name]


def _inputs(form: LawForm, given: Mapping[str, str | None]) -> dict[str, str]:
    for name, column in given.items():
        if column is not None and name not in form.inputs:
            needed = ", ".join(f"--{one}" for one in form.inputs if one in FLAGS)
            raise InputError(f"--{name}", f"form {form.name} does not take it", got=column,
                             expected=needed)
        if column is None and name in form.inputs:
            raise InputError(f"--{name}", f"is missing: form {form.name} needs it",
                             expected="the name of a column", hint=f"--{name} flops")
    return {name: axis(f"--{name}", given.get(name) or name)[0] for name in form.inputs}


def _show(console: Console, law: Law) -> None:
    from deepnarrow.report.text import plural

    source = ", ".join(f"{name} = {shorten(column)}" for name, column in law.inputs.items())
    title = f"{law.form}: {shorten(law.y)} against {source}, {law.sizes} points"
    rows = [(name, _number(one.estimate), _number(one.low), _number(one.high), one.method)
            for name, one in law.params.items()]
    if law.alpha is not None:
        one = law.alpha.value
        rows.append((law.alpha.name, _number(one.estimate), _number(one.low), _number(one.high),
                     law.alpha.transform))
    if law.optimum is not None:
        one = law.optimum
        rows.append(("best depth / width", _number(one.estimate), _number(one.low),
                     _number(one.high), one.method))
    console.print(table(["parameter", "estimate:", "90% low:", "90% high:", "how"], rows, title))
    if not law.identified:
        console.print(f"not identified: {law.reason}", markup=False)
    if law.mend:
        console.print(f"to mend it: {law.mend}", markup=False)
    if law.hold_out is not None and law.identified:
        console.print(f"without the largest {law.hold_out.points} of {law.sizes}, a fit misses "
                      f"them by {law.hold_out.error:.2%} on average, {law.hold_out.factor:.3g}x "
                      "beyond what it saw", markup=False)
    for flag in law.flags:
        console.print(f"note: {flag}", markup=False)
    if law.non_finite:
        console.print(f"{plural(law.non_finite, 'value')} not finite, left out", markup=False)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"
