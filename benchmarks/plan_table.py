"""Plans compiled for real TPU slices, beside their estimates: the table of docs/benchmarks.md.

    python benchmarks/plan_table.py --out plan_table.json [--only v5e] [--seconds 3600]

Needs the extra [tpu] (libtpu), no TPU. Compiles one plan after the other, the fastest that fits by
estimate; what the file already holds is not compiled again, so it can be stopped and goes on. A
compile takes 20 to 60 s of CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from deepnarrow.files import write_json
from deepnarrow.mesh import parse_mesh
from deepnarrow.planning.cells import shape_cells
from deepnarrow.planning.compiled import compile_step
from deepnarrow.planning.estimate import Estimate
from deepnarrow.planning.search import search
from deepnarrow.planning.topology import parse_topology
from deepnarrow.plugins import registry

SHAPES = (("text_t5", "small"), ("text_t5", "base"), ("text_t5", "large"), ("text_t5", "xl"),
          ("vision_vit", "B/16"), ("vision_vit", "g/14"))
TOPOLOGIES = ("v5e:4x4", "v5p:4x4x4", "v3:4x4")
BATCH_SIZE = 128
# Besides the table: the largest T5, with its layers' insides split too.
LARGEST = ("text_t5", "xxl", "v5p:4x4x4", "fsdp=16,tensor=4")
GIB = 2.0**30


def main() -> None:
    """Compiles what is missing, prints the table, and fails where a row misses what is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="part of SHAPE TOPOLOGY")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no compile after these")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.exists() else {}
    start = time.monotonic()
    wanted: list[tuple[str, str, str, str | None]] = [
        (modality, shape, topology, None) for topology in TOPOLOGIES for modality, shape in SHAPES]
    wanted.insert(len(SHAPES), LARGEST)
    for modality, shape, topology, mesh in wanted:
        name = f"{shape} {topology}"
        if options.only not in name or name in rows or time.monotonic() - start > options.seconds:
            continue
        rows[name] = measure(modality, shape, topology, mesh)
        write_json(options.out, rows)
        print(name, json.dumps(rows[name]), flush=True)
    print(table(rows))
    if missed := misses(rows):
        raise SystemExit("\n".join(missed))


def misses(rows: dict) -> list[str]:
    """What of docs/benchmarks.md a row does not keep."""
    found = []
    for name, row in rows.items():
        a, b = row["estimate"], row["compiled"]
        gathered = [_sent(one, _is_gather) for one in (a, b)]
        kept = {
            "arguments are not exact": a["arguments"] == b["arguments"],
            "HBM is not within 25%": abs(a["total"] / b["total"] - 1) <= 0.25,
            "FLOPs are not within 5%": abs(a["flops"] / b["flops"] - 1) <= 0.05,
            "more than 1.1 of fsdp's theory is gathered": gathered[1] <= 1.1 * gathered[0],
            "does not fit": b["fits"],
        }
        found += [f"{name}: {what}" for what, holds in kept.items() if not holds]
    return found


def measure(modality: str, shape: str, topology_name: str, mesh: str | None) -> dict:
    """Estimates and compiles one plan."""
    topology = parse_topology(topology_name)
    cell = shape_cells(registry(), modality, [shape], {}, BATCH_SIZE, 0)[0]
    given = parse_mesh(mesh, topology.num_devices) if mesh else None
    found = search(cell.step, topology, mesh=given)
    expected = found.best or found.smallest
    began = time.process_time()
    compiled = compile_step(cell, topology, expected)
    seconds = time.process_time() - began
    return {"choice": str(expected.choice), "limit": expected.limit, "cpu_s": seconds,
            "estimate": _numbers(expected), "compiled": _numbers(compiled)}


def _numbers(one: Estimate) -> dict:
    return {"arguments": one.memory.arguments, "temporaries": one.memory.temporaries,
            "total": one.memory.total, "flops": one.flops, "step_time_s": one.step_time_s,
            "bound": one.bound, "mfu_bound": one.mfu_bound, "fits": one.fits,
            "collectives": [dataclasses.asdict(c) for c in one.collectives]}


def table(rows: dict) -> str:
    """The rows as Markdown: estimate / compiler."""
    lines = ["| shape, slice | plan | arguments, bytes | HBM, GiB (of) | ratio | FLOPs a step "
             "| ratio | all-gather over fsdp, GiB | other links, GiB | step, ms | MFU at most |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for name, row in rows.items():
        a, b = row["estimate"], row["compiled"]
        same = "exact" if a["arguments"] == b["arguments"] else f"{a['arguments']:.0f}"
        gathers = [_sent(one, _is_gather) for one in (a, b)]
        others = [_sent(one, lambda c: not _is_gather(c)) for one in (a, b)]
        lines.append(
            f"| {name} | {row['choice']} | {b['arguments']:.0f}, {same} "
            f"| {a['total'] / GIB:.2f} / {b['total'] / GIB:.2f} ({row['limit'] / GIB:.2f}) "
            f"| {a['total'] / b['total']:.2f} | {a['flops']:.4g} / {b['flops']:.4g} "
            f"| {a['flops'] / b['flops']:.3f} | {gathers[0]:.3f} / {gathers[1]:.3f} "
            f"| {others[0]:.3f} / {others[1]:.3f} "
            f"| {a['step_time_s'] * 1e3:.3g} / {b['step_time_s'] * 1e3:.3g} ({b['bound']}) "
            f"| {b['mfu_bound']:.0%} |")
    return "\n".join(lines)


def _is_gather(collective: dict) -> bool:
    return collective["kind"] == "all-gather" and collective["axes"] == "fsdp"


def _sent(one: dict, wanted) -> float:
    return sum(c["sent_bytes"] for c in one["collectives"] if wanted(c)) / GIB


if __name__ == "__main__":
    main()
