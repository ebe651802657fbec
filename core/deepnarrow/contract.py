"""What the contract's dataclasses do not check themselves: run on every registration.

Errors have no place (`where=""`): the loader adds the plugin and its distribution.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deepnarrow.errors import PluginError, shorten
from deepnarrow.formats import CheckpointFormat
from deepnarrow.modality import AnyArchitecture, BoundArchitecture, Metric, Modality, Task
from deepnarrow.ops import ShapeOp
from deepnarrow.shape import Preset, Shape
from deepnarrow.stepspec import StepSpec


@dataclasses.dataclass(frozen=True)
class Contract:
    """What items of one kind must be: their types, their functions, and further checks."""

    noun: str
    types: tuple[type, ...]
    functions: tuple[str, ...]
    check: Callable[[Any], None] | None = None
    name_field: str = "name"


def checked_name(contract: Contract, item: Any) -> str:
    """Returns an item's name after checking the item.

    Raises:
      PluginError: without its place, which the loader knows.
    """
    name = getattr(item, contract.name_field)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,79}", name):
        raise PluginError("", f"{contract.noun} has a name that cannot be used",
                          got=repr(shorten(name)), expected="letters, digits and _ . + -")
    for field in contract.functions:
        if hasattr(item, field) and not callable(getattr(item, field)):
            raise PluginError("", f"{contract.noun} {name!r}: {field} is not a function",
                              got=type(getattr(item, field)).__name__)
    if contract.check:
        contract.check(item)
    return name


def check_modality(modality: Modality) -> None:
    """Checks member types, the options and the preset that the core relies on."""
    from ml_collections import ConfigDict

    where = f"modality {modality.name!r}"
    for field in ("options", "data_options"):
        _check_type(where, modality, field, ConfigDict)
    for field in ("presets", "catalogue", "checkpoint_formats", "check_options"):
        _check_type(where, modality, field, Mapping)
    for name, preset in (*modality.presets.items(), *modality.catalogue.items()):
        if not isinstance(preset, Preset):
            raise PluginError("", f"{where}: preset {name!r} is not a Preset",
                              got=type(preset).__name__)
        _check_options(where, modality, f"preset {name!r} overrides", preset.overrides)
    for name, found in modality.checkpoint_formats.items():
        if not isinstance(found, CheckpointFormat):
            raise PluginError("", f"{where}: checkpoint format {name!r} is no CheckpointFormat",
                              got=type(found).__name__)
    if "tiny" not in modality.presets:
        raise PluginError("", f"{where} has no preset 'tiny', which every check runs on")
    _check_options(where, modality, "lacks an option that every modality declares:",
                   ("dropout_rate", "compute_dtype", "remat", "scan"))
    _check_options(where, modality, "check_options names", modality.check_options)
    if modality.suffix_option is not None:
        _check_options(where, modality, "suffix_option names", (modality.suffix_option,))
    if modality.step is not None:
        _check_type(where, modality, "step", StepSpec)
    if modality.prepare is not None and not callable(modality.prepare):
        raise PluginError("", f"{where}: prepare is not a function",
                          got=type(modality.prepare).__name__)


def _check_options(where: str, modality: Modality, what: str, options: Iterable[str]) -> None:
    for option in options:
        if option not in modality.options:
            raise PluginError("", f"{where}: {what} {option!r}", expected="an option it declares")


def _check_type(where: str, item: object, field: str, expected: type) -> None:
    value = getattr(item, field)
    if not isinstance(value, expected):
        raise PluginError("", f"{where}: {field} has a wrong type", got=type(value).__name__,
                          expected=expected.__name__)


def check_architecture(architecture: AnyArchitecture) -> None:
    """Checks member types."""
    where = f"architecture {architecture.name!r}"
    _check_type(where, architecture, "operators", frozenset)
    _check_type(where, architecture, "options", Mapping)
    _check_type(where, architecture, "aux_loss", bool)
    if isinstance(architecture, BoundArchitecture):
        _check_type(where, architecture, "modality", str)


def check_task(task: Task) -> None:
    """Checks member types and the stages it serves."""
    where = f"task {task.name!r}"
    _check_type(where, task, "kinds", frozenset)
    _check_type(where, task, "metric", Metric)
    if task.num_classes is not None:
        _check_type(where, task, "num_classes", int)
    _check_type(where, task, "options", Mapping)
    if not task.kinds or not task.kinds <= {"few_shot", "fine_tune"}:
        raise PluginError("", f"{where}: kinds cannot be", got=sorted(map(str, task.kinds)),
                          expected="few_shot, fine_tune or both")
    if task.num_classes is None and (task.references is None or "few_shot" in task.kinds):
        raise PluginError("", f"{where}: without num_classes it needs references, and serves "
                          "fine_tune only", got=sorted(map(str, task.kinds)))


def check_shape_op(op: ShapeOp) -> None:
    """Checks that an expression can name it and that it acts on something."""
    where = f"operator {op.symbol!r}"
    fields = {field.name for field in dataclasses.fields(Shape)}
    if not re.fullmatch(r"[A-Z]+", op.symbol):
        raise PluginError("", f"{where}: symbol cannot be written", expected="letters A-Z")
    if bool(op.fields) == bool(op.option) or not set(op.fields) <= fields:
        raise PluginError("", f"{where} acts on nothing known", got=op.fields or op.option,
                          expected=f"fields of Shape ({', '.join(sorted(fields))}) or one option")
