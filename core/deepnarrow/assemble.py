"""Joining the three axes: a modality's stacks, filled by an architecture, for one shape.

`make_model` imports JAX, `count_costs` does not; both read the same list of stacks, so that what is
counted is what is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepnarrow.errors import NotApplicable
from deepnarrow.modality import (
    AnyArchitecture,
    Architecture,
    BoundArchitecture,
    Costs,
    Modality,
    Model,
    ParamArray,
    Stack,
    StackSpec,
)
from deepnarrow.ops import NamedShape
from deepnarrow.shape import Shape

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def check_operators(named: NamedShape, architecture: AnyArchitecture) -> None:
    """Refuses operators that `architecture` does not list: they would change nothing, silently.

    Raises:
      NotApplicable: a shape's name holds such an operator.
    """
    for symbol in named.operators:
        if symbol not in architecture.operators:
            listed = ", ".join(sorted(known.lower() for known in architecture.operators))
            raise NotApplicable(
                f"shape {named.name!r}",
                f"{symbol.lower()} means nothing in architecture {architecture.name!r}",
                expected=f"operators {listed or '(none)'}", hint="leave it out")


def build_stacks(
    modality: Modality, architecture: Architecture, shape: Shape, options: ConfigDict
) -> dict[str, Stack]:
    """Has `architecture` fill every stack that `modality` needs for `shape`.

    The architecture finds its own options in `StackOptions.architecture`: its defaults, unless the
    modality sets them. A study cannot set them yet: that comes with a second architecture.

    Raises:
      NotApplicable: the architecture cannot serve one of the stacks.
    """
    return _fill(modality.stack_specs(shape, options), architecture, shape)


def _fill(
    specs: Sequence[StackSpec], architecture: Architecture, shape: Shape
) -> dict[str, Stack]:
    stacks: dict[str, Stack] = {}
    for spec in specs:
        own = {**architecture.options, **spec.options.architecture}
        stack_options = dataclasses.replace(spec.options, architecture=own)
        if spec.context is not None:
            stack_options = dataclasses.replace(
                stack_options, context_length=stacks[spec.context].output_length
            )
        stacks[spec.role] = architecture.make_stack(shape, spec.role, spec.length, stack_options)
    return stacks


def check_bound(modality: Modality, architecture: BoundArchitecture) -> None:
    """Raises `NotApplicable` where it is bound to another modality or cannot be used here."""
    if architecture.modality != modality.name:
        raise NotApplicable(f"architecture {architecture.name!r}", "is bound to another modality",
                            got=modality.name, expected=architecture.modality)
    reason = architecture.unavailable() if architecture.unavailable else None
    if reason is not None:
        raise NotApplicable(f"architecture {architecture.name!r}",
                            f"is unavailable on this machine: {reason}")


def make_model(
    modality: Modality, architecture: AnyArchitecture, shape: Shape, options: ConfigDict
) -> Model:
    """Returns the model of `shape` in `modality`, built of `architecture`; imports JAX."""
    if isinstance(architecture, BoundArchitecture):
        check_bound(modality, architecture)
        return architecture.make_model(shape, options)
    return modality.assemble(shape, options, build_stacks(modality, architecture, shape, options))


def count_costs(
    modality: Modality, architecture: AnyArchitecture, shape: Shape, options: ConfigDict
) -> Costs:
    """Returns the costs of that model in closed form, without JAX and without allocating.

    `arrays` equals the tree of `jax.eval_shape(model.init, key)` path by path.
    """
    specs = modality.stack_specs(shape, options)
    if isinstance(architecture, BoundArchitecture):
        check_bound(modality, architecture)
        costs = architecture.count_costs(shape, options)
    else:
        costs = modality.count_frame(shape, options)
        for role, stack in _fill(specs, architecture, shape).items():
            costs += _under(role, stack.count())
    return dataclasses.replace(
        costs,
        lengths={spec.role: spec.length for spec in specs},
        remat=options.get("remat", "none"),
        float_bytes=2 if options.get("compute_dtype") == "bfloat16" else 4,
    )


def _under(role: str, costs: Costs) -> Costs:
    """Puts a stack's costs under its role: paths and components."""
    return dataclasses.replace(
        costs,
        # Made anew, for `replace` takes three times as long, and studies count thousands.
        arrays=tuple(ParamArray((role, *a.path), a.shape, a.axes, f"{role}/{a.component}", a.active,
                                a.positions) for a in costs.arrays),
        flops=tuple(dataclasses.replace(f, component=f"{role}/{f.component}")
                    for f in costs.flops),
    )
