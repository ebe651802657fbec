"""`deepnarrow plan`: does it fit on that slice of TPUs, and how fast could it be?

`--json` prints a list with an object for each shape or cell:

    name                 of the shape
    chips                of the slice
    mesh                 {axis: size}
    remat, micro_batches the rest of the choice
    hbm_per_chip_bytes   arguments, temporaries and outputs of one chip
    hbm_limit_bytes      what a program can have of it
    fits                 whether that is enough
    flops_per_step       over all chips, what remat repeats included
    step_time_s          predicted; an estimate in any case
    collectives          [{kind, mesh_axis, count, bytes}]: of one device and step; bytes it sends
    compiled             true where memory, FLOPs and collectives are the compiler's
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table
from deepnarrow.cli.parser import integer, number
from deepnarrow.cli.shape import option_settings
from deepnarrow.config import load_config
from deepnarrow.errors import InputError, suggest
from deepnarrow.mesh import parse_mesh
from deepnarrow.planning.cells import REMATS, Cell, shape_cells, study_cells
from deepnarrow.planning.estimate import Estimate
from deepnarrow.planning.search import Search, config_lines, reasons, search, smallest_slice
from deepnarrow.planning.topology import Topology, parse_topology
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


def run(options: argparse.Namespace) -> Output:
    """Plans every shape or cell that was asked for."""
    topology = parse_topology(options.topology)
    price = (None if options.price_per_chip_hour is None else
             number("--price-per-chip-hour", options.price_per_chip_hour))
    remat = _remat(options.remat)
    pieces = None if options.micro_batches is None else integer(
        "--micro-batches", options.micro_batches, 1, MAX_BATCH)
    mesh = None if options.mesh is None else parse_mesh(
        options.mesh, topology.num_devices, "--mesh")
    planned = []
    for cell in _cells(options):
        found = search(cell.step, topology, mesh=mesh, remat=remat, micro_batches=pieces)
        best = found.best or found.smallest
        if options.compile:
            from deepnarrow.planning.compiled import first_that_fits

            best = first_that_fits(cell, found)
        planned.append(Planned(cell, found, best,
                               None if best.fits else smallest_slice(cell.step, topology)))
    document = [_document(one.cell, topology, one.best) for one in planned]
    return Output(document, lambda console: _show(console, planned, price),
                  exit_code=0 if any(one.best.fits for one in planned) else EXIT_NOTHING_FITS)


# --- arguments -----------------------------------------------------------------------------------
def _cells(options: argparse.Namespace) -> list[Cell]:
    """The cells of a config, or the shapes of a modality."""
    configs = [target for target in options.targets if target.endswith(".py")]
    if not configs:
        if options.modality is None:
            raise InputError(WHERE, "shapes need --modality", got=options.targets[0],
                             hint="--modality text_t5, or a config's file")
        modality = registry().modality(options.modality)
        batch_size = integer("--batch-size", options.batch_size or "128", 1, MAX_BATCH)
        steps = integer("--steps", options.steps, 1, 10**12) if options.steps else 0
        return shape_cells(registry(), options.modality, options.targets,
                           option_settings(modality, options.settings), batch_size, steps)
    for flag, value in (("--modality", options.modality), ("--batch-size", options.batch_size),
                        ("--steps", options.steps)):
        if value is not None:
            raise InputError(f"{WHERE} {flag}", "the config says that", got=value,
                             hint="leave it out, or change the config by --set")
    if len(options.targets) > 1:
        raise InputError(WHERE, "takes one config, or shapes", got=" ".join(options.targets))
    return study_cells(registry(), load_config(configs[0], options.settings))


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
def _document(cell: Cell, topology: Topology, best: Estimate) -> dict[str, Any]:
    devices = topology.generation.devices_per_chip
    return {
        "name": cell.step.name,
        "chips": topology.num_chips,
        "mesh": best.choice.mesh.sizes,
        "remat": best.choice.remat,
        "micro_batches": best.choice.micro_batches,
        "hbm_per_chip_bytes": best.memory.total * devices,
        "hbm_limit_bytes": topology.hbm_per_chip_bytes,
        "fits": best.fits,
        "flops_per_step": best.flops,
        "step_time_s": best.step_time_s,
        "collectives": [{"kind": one.kind, "mesh_axis": one.axes, "count": one.count,
                         "bytes": one.sent_bytes} for one in best.collectives],
        "compiled": best.compiled,
    }


def _show(console: Console, planned: Sequence[Planned], price: float | None) -> None:
    from deepnarrow.report.text import count, plain, seconds

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
    for one in planned:
        lines += _lines(one, price)
    lines += _notes(planned)
    for line in lines:
        console.print(plain(line, 2000), markup=False, soft_wrap=True)


def _lines(one: Planned, price: float | None) -> list[str]:
    """What there is to say of one cell."""
    step, best = one.cell.step, one.best
    optimizer = step.optimizer
    options = ", ".join(f"{key}={value}" for key, value in
                        one.cell.resolved(best.choice.remat).items())
    lines = [f"{step.name}", f"  batch {step.batch_size}, {optimizer.name} ({optimizer.schedule}), "
             f"{step.dtype} compute; {options}"]
    parts = ", ".join(f"{name} {_gib(value)}" for name, value in best.memory.parts.items() if value)
    lines.append(f"  a device: arguments {_gib(best.memory.arguments)}, temporaries "
                 f"{_gib(best.memory.temporaries)}, outputs {_gib(best.memory.outputs)} ({parts})")
    lines += [f"  {c.kind} over {c.axes}: {c.count} a step, a device sends {_gib(c.sent_bytes)}"
              for c in best.collectives]
    lines.append(f"  compute {best.compute_s * 1e3:.3g} ms, memory {best.memory_s * 1e3:.3g} ms, "
                 f"interconnect {best.interconnect_s * 1e3:.3g} ms: the longest is the step")
    if best.fits:
        lines += [f"  config: {line}" for line in config_lines(one.cell.modality.name, best.choice)]
    else:
        lines.append("  " + _does_not_fit(one))
    if one.cell.steps:
        lines.append("  " + _money(one, price))
    return lines + [f"  not chosen: {reason}" for reason in reasons(one.search, best)]


def _does_not_fit(one: Planned) -> str:
    best = one.best
    what = (f"does not fit: even {best.choice} needs {_gib(best.memory.total)} of a device's "
            f"{_gib(best.limit)}, {_gib(best.memory.total - best.limit)} too much; ")
    if one.larger is None or one.larger.best is None:
        return what + "no slice of this generation would do with this batch"
    return what + (f"the smallest slice that would do is {one.larger.topology.name} "
                   f"({one.larger.best.choice})")


def _money(one: Planned, price: float | None) -> str:
    hours = (one.cell.steps * one.best.step_time_s * one.search.topology.num_chips) / 3600
    text = f"{one.cell.steps:,} steps: at least {hours:,.4g} chip-hours"
    return text if price is None else f"{text}, {hours * price:,.2f} at {price:g} a chip-hour"


def _notes(planned: Sequence[Planned]) -> list[str]:
    hours = sum(one.cell.steps * one.best.step_time_s * one.search.topology.num_chips / 3600
                for one in planned)
    notes = [f"in all: {hours:,.4g} chip-hours at least"] if hours and len(planned) > 1 else []
    if any(not one.best.compiled for one in planned):
        notes.append("estimate: closed forms; --compile asks the TPU's compiler (extra [tpu])")
    return [*notes, "step time: FLOPs, bytes through memory and bytes over links at the rates the "
            "vendor publishes, the longest of the three; real steps take longer"]


def _gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB"
