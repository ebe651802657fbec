"""The real train step, compiled for a slice of TPUs that is not there.

libtpu holds the TPU's whole compiler, which runs on any Linux machine. This module imports JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.assemble import make_model
from deepnarrow.errors import InputError
from deepnarrow.planning.cells import Cell
from deepnarrow.planning.estimate import Choice, Estimate, timed
from deepnarrow.planning.hlo import collectives, matmul_flops, parse_hlo
from deepnarrow.planning.memory import Memory
from deepnarrow.planning.topology import Topology

if TYPE_CHECKING:
    import jax

# The schedule's length only: it changes a constant of the program.
TOTAL_STEPS = 2**20
MAX_TRIES = 4
# A tenth of the time to compile; memory, FLOPs and collectives come out the same but for about 1%,
# what is fused less carefully is not what is counted.
FAST: Mapping[str, Any] = {"exec_time_optimization_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class Refused:
    """A program that does not fit: the bytes of one device that it would need."""

    needed: float


def first_that_fits(
    cells: Sequence[Cell], topology: Topology, ways: Sequence[Sequence[Estimate]]
) -> Sequence[Estimate]:
    """Compiles the first of `ways` to run the cells; where one does not fit after all, the next.

    Ways that need as much memory as what the compiler refused, by estimate, are passed over.
    Returns the first way that fits, or the last one tried, its cells compiled as far as they fit.
    """
    refused = [float("inf")] * len(cells)
    tried: list[Estimate] = []
    tries = 0
    for way in ways:
        if any(one.memory.total >= least for one, least in zip(way, refused, strict=True)):
            continue
        tried, tries = list(way), tries + 1
        for i, (cell, one) in enumerate(zip(cells, way, strict=True)):
            tried[i] = compile_step(cell, topology, one)
            if not tried[i].fits:
                refused[i] = one.memory.total
                break
        if all(one.fits for one in tried) or tries == MAX_TRIES:
            break
    return tried


def compile_step(
    cell: Cell, topology: Topology, expected: Estimate, *, options: Mapping[str, Any] | None = None
) -> Estimate:
    """Returns `expected` with what the compiler says in the place of what was estimated.

    The bytes through memory, and so the time for them, stay the estimate's: the compiler counts a
    loop's body once.
    """
    compiled = compile_choice(cell, topology, expected.choice, options=FAST if options is None
                              else options)
    if isinstance(compiled, Refused):
        memory = dataclasses.replace(expected.memory, parts={},
                                     temporaries=compiled.needed - expected.memory.arguments)
        return dataclasses.replace(expected, memory=memory, compiled=True)
    analysis: Any = compiled.memory_analysis()
    memory = Memory(
        analysis.argument_size_in_bytes, analysis.temp_size_in_bytes,
        analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    module = parse_hlo(compiled.as_text() or "")
    return timed(
        cell.step, topology, expected.choice, memory,
        matmul_flops(module) * topology.num_devices,
        tuple(collectives(module, expected.choice.mesh.sizes)),
        expected.memory_s * topology.hbm_bandwidth, compiled=True)


def compile_choice(
    cell: Cell, topology: Topology, choice: Choice, *, options: Mapping[str, Any]
) -> jax.stages.Compiled | Refused:
    """Compiles the train step."""
    import jax

    lowered = lower_choice(cell, topology, choice)
    try:
        with _uncached():
            return lowered.compile(compiler_options=dict(options) or None)
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error), topology)
        if needed is None:
            raise
        return Refused(needed)


def lower_choice(cell: Cell, topology: Topology, choice: Choice) -> jax.stages.Lowered:
    """Traces and lowers the train step for the slice's devices."""
    import jax

    from deepnarrow.sharding import make_layout
    from deepnarrow.step import abstract_batch, abstract_state, make_program

    layout = make_layout(choice.mesh, choice.preset, devices(topology))
    model = make_model(cell.modality, cell.architecture, cell.shape.shape,
                       cell.resolved(choice.remat))
    program = make_program(model, cell.step.optimizer, TOTAL_STEPS, layout=layout,
                           micro_batches=choice.micro_batches)
    batch = {name: jax.ShapeDtypeStruct((cell.step.batch_size, *spec.shape), spec.dtype)
             for name, spec in cell.step.arrays.items()}
    step: Any = program.step
    arguments = abstract_state(program), abstract_batch(program, batch), program.args(0)
    return step.trace(*arguments).lower(lowering_platforms=("tpu",))


def devices(topology: Topology) -> list[Any]:
    """Returns the slice's devices as the compiler describes them.

    Raises:
      InputError: libtpu is missing, in use, or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("--compile", "needs the TPU's compiler, and libtpu is not installed",
                         hint="pip install 'deepnarrow[tpu]'; without --compile it is an estimate")
    import jax
    from jax.experimental import topologies

    settings: dict[str, Any] = dict(topology.generation.compiler_options)
    if topology.num_chips == 1:
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with _beside_others():
            return topologies.get_topology_desc(
                platform="tpu", topology_name=topology.name, **settings).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--chips {topology.name}", "the TPU's compiler refuses it",
                         got=str(error).splitlines()[0],
                         expected="a slice that this libtpu knows") from error


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Keeps the persistent cache out: programs for devices that are not there cannot be read back.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether it is used is asked once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def _beside_others() -> Iterator[None]:
    """Lets libtpu load though another process has it: nothing here touches a TPU."""
    name = "ALLOW_MULTIPLE_LIBTPU_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _needed(message: str, topology: Topology) -> float | None:
    """Bytes that the compiler says a program needs when it does not fit; None of another error."""
    units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}
    found = re.search(r"(?:Used |required[^(]*\()([\d.]+)([KMG])", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    return max(float(found.group(1)) * units[found.group(2)],
               topology.generation.usable_hbm_bytes + 1)
