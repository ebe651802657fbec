"""`deepnarrow plan`: does it fit on that slice of TPUs, and how fast could it be?

`--json` prints a list with an object for each shape or cell:

    name                 of the shape
    chips                the slice, as it was asked for
    mesh                 {axis: size}
    remat, micro_batches the rest of the choice
    hbm_per_chip_bytes   arguments, temporaries and outputs of one chip
    hbm_limit_bytes      what a program can have of it
    fits                 whether that is enough
    flops_per_step       over all chips, what remat repeats included
    step_time_s          predicted; an estimate in any case
    collectives          [{kind, mesh_axis, count, bytes}]: of one device and step; bytes it sends
    compiled             true where memory, FLOPs and collectives are the compiler's

Cells of a study run under one `sharding`, so they are planned together.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table
from deepnarrow.cli.parser import integer, number
from deepnarrow.cli.shape import option_settings
from deepnarrow.config import load_config
from deepnarrow.errors import InputError, suggest
from deepnarrow.mesh import parse_mesh
from deepnarrow.planning.cells import Cell, shape_cells, study_cells
from deepnarrow.planning.estimate import Estimate
from deepnarrow.planning.search import (
    REMATS,
    Search,
    config_lines,
    reasons,
    search,
    smallest_slice,
    together,
)
from deepnarrow.planning.topology import parse_topology
from deepnarrow.planning.traffic import Remat
from deepnarrow.plugins import registry

if TYPE_CHECKING:
    from rich.console import Console

WHERE = "deepnarrow plan"
MAX_BATCH = 2**30
EXIT_NOTHING_FITS = 2
GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Planned:
    """A cell, what was tried for it, the choice, and where nothing fits the next slice."""

    cell: Cell
    search: Search
    best: Estimate
    larger: Search | None

    @property
    def chip_hours(self) -> float:
        """Of all its updates, at least; 0 where nobody said how many."""
        return self.cell.steps * self.best.step_time_s * self.search.topology.num_chips / 3600


def run(options: argparse.Namespace) -> Output:
    """Plans every shape or cell that was asked for."""
    topology = parse_topology(options.chips)
    price = (None if options.price_per_chip_hour is None else
             number("--price-per-chip-hour", options.price_per_chip_hour))
    find = functools.partial(
        search, topology=topology, remat=_remat(options.remat),
        micro_batches=None if options.micro_batches is None else integer(
            "--micro-batches", options.micro_batches, 1, MAX_BATCH),
        mesh=None if options.mesh is None else parse_mesh(
            options.mesh, topology.num_devices, "--mesh"))
    groups = [_plan(cells, [find(cell.step) for cell in cells], compiles=options.compile)
              for cells in _groups(options)]
    planned = [one for group in groups for one in group]
    document = [_document(one) for one in planned]
    return Output(document, lambda console: _show(console, groups, price),
                  exit_code=0 if any(one.best.fits for one in planned) else EXIT_NOTHING_FITS)


def _plan(cells: Sequence[Cell], found: Sequence[Search], *, compiles: bool) -> list[Planned]:
    """Plans cells that run with one sharding; where none fits all of them, each by itself."""
    topology = found[0].topology
    ways = together(found, [cell.modality.name for cell in cells],
                    [cell.steps or 1 for cell in cells])
    ways = ways or [tuple(one.best or one.smallest for one in found)]
    best: Sequence[Estimate] = ways[0]
    if compiles:
        from deepnarrow.planning.compiled import first_that_fits

        best = first_that_fits(cells, topology, ways)
    return [Planned(cell, tried, one, None if one.fits else smallest_slice(cell.step, topology))
            for cell, tried, one in zip(cells, found, best, strict=True)]


# --- arguments -----------------------------------------------------------------------------------
def _groups(options: argparse.Namespace) -> list[list[Cell]]:
    """The cells of a config, which run together, or the shapes of a modality."""
    if not options.target.endswith(".py"):
        modality = registry().modality(options.target)
        if not options.expressions:
            raise InputError(WHERE, "no shape is given", got=options.target,
                             hint=f"deepnarrow plan {options.target} "
                             f"{next(iter(modality.presets))} --chips {options.chips}")
        batch_size = integer("--batch-size", options.batch_size or "128", 1, MAX_BATCH)
        steps = integer("--steps", options.steps, 1, 10**12) if options.steps else 0
        return [[cell] for cell in shape_cells(
            registry(), options.target, options.expressions,
            option_settings(modality, options.settings), batch_size, steps)]
    if options.expressions:
        raise InputError(WHERE, "takes one config, or a modality and shapes",
                         got=" ".join([options.target, *options.expressions]))
    for flag, value in (("--batch-size", options.batch_size), ("--steps", options.steps)):
        if value is not None:
            raise InputError(f"{WHERE} {flag}", "the config says that", got=value,
                             hint="leave it out, or change the config by --set")
    return [study_cells(registry(), load_config(options.target, options.settings))]


def _remat(text: str | None) -> Remat | None:
    if text is None:
        return None
    for remat in REMATS:
        if text == remat:
            return remat
    near = suggest(text, REMATS)
    raise InputError("--remat", "unknown", got=text, expected=f"one of {', '.join(REMATS)}",
                     hint=f"did you mean {near}?" if near else None)


# --- documents and tables ------------------------------------------------------------------------
def _document(one: Planned) -> dict[str, Any]:
    best, topology = one.best, one.search.topology
    return {
        "name": one.cell.step.name,
        "chips": topology.name,
        "mesh": best.choice.mesh.sizes,
        "remat": best.choice.remat,
        "micro_batches": best.choice.micro_batches,
        "hbm_per_chip_bytes": best.memory.total * topology.generation.devices_per_chip,
        "hbm_limit_bytes": topology.hbm_per_chip_bytes,
        "fits": best.fits,
        "flops_per_step": best.flops,
        "step_time_s": best.step_time_s,
        "collectives": [{"kind": c.kind, "mesh_axis": c.axes, "count": c.count,
                         "bytes": c.sent_bytes} for c in best.collectives],
        "compiled": best.compiled,
    }


def _show(console: Console, groups: Sequence[Sequence[Planned]], price: float | None) -> None:
    from deepnarrow.report.text import count, plain, seconds

    planned = [one for group in groups for one in group]
    rows = []
    for one in planned:
        best, topology = one.best, one.search.topology
        devices = topology.generation.devices_per_chip
        rows.append((
            one.cell.step.name, best.choice.mesh, best.choice.remat, best.choice.micro_batches,
            _gib(best.memory.total * devices), "yes" if best.fits else "no", count(best.flops),
            seconds(best.step_time_s), best.bound, f"{best.mfu_bound:.0%}",
            "compiler" if best.compiled else "estimate"))
    topology = planned[0].search.topology
    columns = ["name", "mesh", "remat", "pieces:", "HBM/chip:", "fits", "FLOPs/step:",
               "step (estimate):", "bound by", "MFU at most:", "memory by"]
    console.print(table(columns, rows, title=f"{topology.name}: {topology.num_chips} chips, "
                        f"{_gib(topology.hbm_per_chip_bytes)} each for a program"))
    lines: list[str] = []
    for group in groups:
        lines += [line for one in group for line in _lines(one, price)] + _config(group)
    for line in lines + _notes(planned, price):
        console.print(plain(line, 2000), markup=False, soft_wrap=True)


def _lines(one: Planned, price: float | None) -> list[str]:
    """What there is to say of one cell."""
    step, best = one.cell.step, one.best
    optimizer = step.optimizer
    options = ", ".join(f"{key}={value}" for key, value in
                        one.cell.resolved(best.choice.remat).items())
    parts = ", ".join(f"{name} {_gib(value)}" for name, value in best.memory.parts.items() if value)
    lines = [
        f"{step.name}",
        f"  batch {step.batch_size}, {optimizer.name} ({optimizer.schedule}), "
        f"{step.dtype} compute; {options}",
        f"  a device: arguments {_gib(best.memory.arguments)}, temporaries "
        f"{_gib(best.memory.temporaries)}, outputs {_gib(best.memory.outputs)}"
        f"{f' ({parts})' if parts else ''}",
        *(f"  {c.kind} over {c.axes}: {c.count} a step, a device sends {_gib(c.sent_bytes)}"
          for c in best.collectives),
        f"  compute {best.compute_s * 1e3:.3g} ms, memory {best.memory_s * 1e3:.3g} ms, "
        f"interconnect {best.interconnect_s * 1e3:.3g} ms: the longest is the step"]
    if not best.fits:
        lines.append("  " + _does_not_fit(one))
    if one.cell.steps:
        lines.append(f"  {one.cell.steps:,} steps: at least {_money(one.chip_hours, price)}")
    return lines + [f"  not chosen: {reason}" for reason in reasons(one.search, best)]


def _config(group: Sequence[Planned]) -> list[str]:
    """What a config says to run as planned."""
    if not all(one.best.fits for one in group):
        return []
    choices = {one.cell.modality.name: one.best.choice for one in group}
    if len({(c.mesh, c.preset, c.micro_batches) for c in (one.best.choice for one in group)}) > 1:
        return ["no sharding fits all cells: plan them as studies of their own"]
    entries, settings = config_lines(choices)
    return [*(f"  config: {entry}" for entry in entries),
            "  or: " + " ".join(f"--set {setting}" for setting in settings)]


def _does_not_fit(one: Planned) -> str:
    best = one.best
    what = (f"does not fit: even {best.choice} needs {_gib(best.memory.total)} of a device's "
            f"{_gib(best.limit)}, {_gib(best.memory.total - best.limit)} too much; ")
    if one.larger is None or one.larger.best is None:
        return what + "no slice of this generation would do with this batch"
    return what + (f"the smallest slice that would do is {one.larger.topology.name} "
                   f"({one.larger.best.choice})")


def _money(hours: float, price: float | None) -> str:
    text = f"{hours:,.4g} chip-hours"
    return text if price is None else f"{text}, {hours * price:,.2f} at {price:g} a chip-hour"


def _notes(planned: Sequence[Planned], price: float | None) -> list[str]:
    hours = sum(one.chip_hours for one in planned)
    notes = [f"in all: at least {_money(hours, price)}"] if hours and len(planned) > 1 else []
    if any(not one.best.compiled for one in planned):
        notes.append("estimate: closed forms; --compile asks the TPU's compiler (extra [tpu])")
    return [*notes, "step time: FLOPs, bytes through memory and bytes over links at the rates the "
            "vendor publishes, the longest of the three; real steps take longer"]


def _gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB"
