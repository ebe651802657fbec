"""`deepnarrow shape`: parameters and FLOPs of shapes, in closed form."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepnarrow.assemble import count_costs
from deepnarrow.cli.output import Output, table
from deepnarrow.config import resolve_options
from deepnarrow.cost import CostSummary, convention_named, summarize
from deepnarrow.errors import InputError, ShapeError
from deepnarrow.modality import AnyArchitecture, Modality
from deepnarrow.ops import NamedShape, resolve
from deepnarrow.plugins import registry
from deepnarrow.settings import Report, like, parse_settings

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from rich.console import Console


def run(options: argparse.Namespace) -> Output:
    """Counts every shape that was asked for; all that cannot be are named at once."""
    found = registry()
    modality = found.modality(options.modality)
    architecture = found.architecture(options.architecture)
    convention_named(options.convention)
    settings = _settings(modality, options.settings)
    vocabulary = found.vocabulary(modality)
    counted, report = [], Report("shape")
    resolved: dict[str, ConfigDict] = {}
    for expression in options.expressions:
        try:
            named = resolve(expression, vocabulary)
            model_options = _options(modality, named, settings, resolved)
            counted.append((named, _count(modality, architecture, named, model_options,
                                          options.convention)))
        except InputError as error:
            report.errors.append(error)
    report.raise_any()
    return Output([_document(*pair) for pair in counted], lambda console: _show(console, counted))


def _settings(modality: Modality, texts: list[str]) -> dict[str, Any]:
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


def _options(
    modality: Modality, named: NamedShape, settings: Mapping[str, Any],
    resolved: dict[str, ConfigDict],
) -> ConfigDict:
    """The model options of one shape; shapes that set the same ones share them."""
    for option, value in named.overrides.items():
        if settings.get(option, value) != value:
            raise InputError(f"--set {option}", f"the name {named.name!r} sets this option",
                             got=settings[option], expected=value)
    key = repr(sorted(named.overrides.items()))
    if key not in resolved:
        overrides = {**settings, **named.overrides}
        resolved[key] = resolve_options(modality.options, overrides, f"shape {named.name!r}")
    return resolved[key]


def _count(
    modality: Modality, architecture: AnyArchitecture, named: NamedShape, options: ConfigDict,
    convention: str,
) -> CostSummary:
    try:
        return summarize(count_costs(modality, architecture, named.shape, options), convention)
    except ShapeError as error:  # of several shapes it must say which
        raise ShapeError(f"shape {named.name!r}", error.what, got=error.got,
                         expected=error.expected, hint=error.hint) from error


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


def _show(console: Console, counted: list[tuple[NamedShape, CostSummary]]) -> None:
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
    console.print(f"forward and train: FLOPs per example, convention {counted[0][1].convention}")
