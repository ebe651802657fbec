"""`deepnarrow list`: what the installed plugins register, and why one is unavailable."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table
from deepnarrow.cli.parser import LIST_KINDS
from deepnarrow.cost import CONVENTIONS
from deepnarrow.errors import InputError, suggest
from deepnarrow.hardware import CHIPS
from deepnarrow.modality import AnyArchitecture, BoundArchitecture, Modality, Task
from deepnarrow.plugins import PluginInfo, Registry, registry
from deepnarrow.report.text import count

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
NAMED = 4  # names of one kind that are shown beside a plugin; of more, their number


def run(options: argparse.Namespace) -> Output:
    """Lists one kind, or an overview of all."""
    kind = options.kind
    if kind is not None and kind not in KINDS:
        near = suggest(kind, KINDS)
        raise InputError("deepnarrow list", "unknown kind", got=repr(kind),
                         expected=f"one of {', '.join(KINDS)}",
                         hint=f"did you mean {near}?" if near else None)
    found = registry()
    rows = {name: KINDS[name](found) for name in ([kind] if kind else KINDS)}
    return Output(rows[kind] if kind else rows, lambda console: _show(console, kind, rows))


def _show(console: Console, kind: str | None, rows: dict[str, list[Row]]) -> None:
    if kind is not None:
        columns = list(rows[kind][0]) if rows[kind] else []
        console.print(table(columns, [map(_cell, row.values()) for row in rows[kind]])
                      if columns else f"no {kind}")
        return
    names = [(name, ", ".join(_name(row) for row in found) or "(none)")
             for name, found in rows.items() if name != "plugins"]
    console.print(table(["kind", "registered"], names))
    plugins = [(row["name"], row["distribution"], row["version"], _registers(row["registers"]),
                row["error"] or "available") for row in rows["plugins"]]
    console.print(table(["plugin", "distribution", "version", "registers", "state"], plugins))


def _registers(names: dict[str, list[str]]) -> str:
    """What one plugin brings, the many in short: `modalities text_t5; shape_ops 10`."""
    return "; ".join(f"{kind} {', '.join(found) if len(found) <= NAMED else len(found)}"
                     for kind, found in names.items())


def _name(row: Row) -> str:
    return f"{row['modality']}/{row['name']}" if "metric" in row else str(row["name"])


def _cell(value: object) -> object:
    if isinstance(value, float):
        return count(value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_cell(v)}" for key, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


# --- rows of one kind ---------------------------------------------------------------------------
def _modalities(found: Registry) -> list[Row]:
    return [{"name": name, "distribution": found.owners["modalities", name],
             "presets": list(modality.presets), "catalogue": len(modality.catalogue),
             "options": list(modality.options.keys()),
             "data_options": list(modality.data_options.keys()),
             "checkpoint_formats": list(modality.checkpoint_formats)}
            for name, modality in found.modalities.items()]


def _architectures(found: Registry) -> list[Row]:
    return [{"name": name, "distribution": found.owners["architectures", name],
             "modality": one.modality if isinstance(one, BoundArchitecture) else "any",
             "operators": [op for op in found.shape_ops if op in one.operators],
             "unavailable": _unavailable(one)}
            for name, one in found.architectures.items()]


def _unavailable(architecture: AnyArchitecture) -> str | None:
    """Why it cannot be used on this machine, None where it can."""
    if isinstance(architecture, BoundArchitecture) and architecture.unavailable:
        return architecture.unavailable()
    return None


def _ops(found: Registry) -> list[Row]:
    return [{"name": symbol, "distribution": found.owners["shape_ops", symbol],
             "acts_on": op.acts_on, "sets": list(op.targets), "source": op.source}
            for symbol, op in found.shape_ops.items()]


def _tasks(found: Registry) -> list[Row]:
    rows = []
    for name, modality in found.modalities.items():
        owner = found.owners["modalities", name]
        rows += [_task(name, task, owner) for task in _own_tasks(modality, owner).values()]
        rows += [_task(name, task, found.owners["tasks", f"{name}/{task.name}"])
                 for task in found.tasks.get(name, {}).values()]
    return rows


def _own_tasks(modality: Modality, owner: str) -> dict[str, Task]:
    try:
        return dict(modality.tasks(modality.data_options, modality.options))
    except InputError:
        raise
    except Exception as error:  # a plugin's code: the error must name whose
        raise InputError(f"modality {modality.name!r} of {owner}",
                         f"tasks() raised {type(error).__name__}: {error}") from error


def _task(modality: str, task: Task, owner: str) -> Row:
    return {"modality": modality, "name": task.name, "distribution": owner,
            "kinds": sorted(task.kinds), "num_classes": task.num_classes,
            "metric": task.metric.name, "direction": task.metric.direction}


def _strategies(found: Registry) -> list[Row]:
    return [{"name": name, "distribution": found.owners["strategies", name], "source": one.source}
            for name, one in found.strategies.items()]


def _forms(found: Registry) -> list[Row]:
    return [{"name": name, "distribution": found.owners["law_forms", name],
             "parameters": list(one.parameters), "source": one.source}
            for name, one in found.law_forms.items()]


def _launchers(found: Registry) -> list[Row]:
    return [{"name": name, "distribution": found.owners["launchers", name]}
            for name in found.launchers]


def _conventions(found: Registry) -> list[Row]:
    del found  # the core's own
    return [{"name": name, "source": one.source} for name, one in CONVENTIONS.items()]


def _chips(found: Registry) -> list[Row]:
    del found
    return [{"name": name, "peak_flops": dict(chip.peak_flops), "hbm_bytes": chip.hbm_bytes,
             "hbm_bandwidth": chip.hbm_bandwidth,
             "interconnect_bandwidth": chip.interconnect_bandwidth, "source": chip.source}
            for name, chip in CHIPS.items()]


def _plugins(found: Registry) -> list[Row]:
    return [_plugin(info) for info in found.plugins]


def _plugin(info: PluginInfo) -> Row:
    return {"name": info.name, "distribution": info.distribution, "version": info.version,
            "registers": {kind: list(names) for kind, names in info.names.items()},
            "error": info.error}


KINDS: dict[str, Callable[[Registry], list[Row]]] = dict(zip(
    LIST_KINDS,
    (_modalities, _architectures, _ops, _tasks, _strategies, _forms, _launchers, _conventions,
     _chips, _plugins),
    strict=True))
