"""Every ratio that is promised, in one table.

    python -m benchmarks [NAME ...] [--json] [-- ARGUMENTS]

Runs the benchmarks named, all of `ENTRIES` if none is, as `python -m benchmarks.NAME --json`,
each in a process; what comes after `--` is handed to the one that is named. A benchmark measures
beside ours what is installed or on PYTHONPATH; what it lacks is printed with what to install.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One ratio: `value` of what `case` says, and what was promised of it."""

    case: str
    value: float
    promised: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A benchmark, a module of this package.

    Attributes:
      what: what its ratios are of.
      needs: importable name -> how to come by it; what is missing is left out of the measurement.
      rows: ratios of what it prints as JSON.
      arguments: it cannot run without; the user's come after `--`.
    """

    what: str
    needs: Mapping[str, str]
    rows: Callable[[Any], Iterator[Row]]
    arguments: str = ""


def _train_step(found: Any) -> Iterator[Row]:
    promised = {"big_vision": ">= 1.3", "T5X": ">= 1.3", "transformers": ">= 1.0",
                "XLA's products": ">= 0.65"}
    for model in found:
        for side, ratio in model["ratio_to_ours"].items():
            if side != "ours":
                yield Row(f"{model['model']}: time of {side} over ours", ratio,
                          promised.get(side, ""))


def _overhead(found: Any) -> Iterator[Row]:
    for clock in ("wall", "cpu"):
        yield Row(f"loop over bare step, {clock} time", found[clock]["loop_over_bare"], "<= 1.05")


def _packing(found: Any) -> Iterator[Row]:
    for row in found:
        yield Row(f"{row['modality']} {row['shape']}: four seeds, gain of packing",
                  row["wall"]["gain"], "")


def _throughput(found: Any) -> Iterator[Row]:
    yield Row("trials an hour, one process a core over one in all", found["gain"], ">= 1.5")


def _first_step(found: Any) -> Iterator[Row]:
    for row in found:
        yield Row(f"{row['modality']}: first step of 96 layers over 6", row["ratio"], "<= 1.5")


def _depth(found: Any) -> Iterator[Row]:
    for row in found:
        if row["layers"] == 96:
            yield Row(f"{row['modality']}: step time a layer, up to 96 layers over up to 24",
                      row["per_layer_over_24"], "0.85 to 1.15")
            yield Row(f"{row['modality']}: bytes a layer and example, full remat, over the carry",
                      row["full_remat_bytes_a_layer_and_example"] / row["carry_bytes"], "<= 1")


def _fewshot(found: Any) -> Iterator[Row]:
    for name, ratio in found["wall_ratio_to_ours"].items():
        if name != "ours":
            yield Row(f"time of {name} over ours", ratio, "")


def _pareto(found: Any) -> Iterator[Row]:
    for row in found:
        for name, seconds in row["seconds"].items():
            if name != "deepnarrow":
                yield Row(f"{row['case']}: time of {name} over ours",
                          seconds / row["seconds"]["deepnarrow"], "")


def _decoding(found: Any) -> Iterator[Row]:
    yield Row("time of transformers over ours, one batch", found["ratio_one_batch"], ">= 2")
    yield Row("time of transformers over ours, each at its best", found["ratio_best"], ">= 2")


def _ranking(found: Any) -> Iterator[Row]:
    for row in found:
        yield Row(f"{row['candidates']} candidates: time one by one over together", row["ratio"],
                  "")


def _image_input(found: Any) -> Iterator[Row]:
    for name, values in found["speeds"].items():
        if name != "ours":
            yield Row(f"our speed over {name}", values["ours_over_it"], "")
    for name, values in found["training"].items():
        yield Row(f"share of waiting, {name}", values["waiting_share"], "")


def _text_input(found: Any) -> Iterator[Row]:
    for mode, row in found.items():
        for name, value in row.items():
            if "ratio" in name and isinstance(value, float):
                yield Row(f"{mode}: {name}", value, ">= 2 from ids")


TORCH = {"torch": "pip install torch", "transformers": "pip install transformers"}
BIG_VISION = {"big_vision": "PYTHONPATH=... with a checkout of google-research/big_vision"}
ENTRIES: dict[str, Entry] = {
    "train_step": Entry("a training step", {
        **BIG_VISION, "t5x": "PYTHONPATH=... with a checkout of google-research/t5x",
        "einops": "pip install einops", **TORCH}, _train_step),
    "overhead": Entry("the loop around the step", {}, _overhead),
    "packing": Entry("seeds packed by vmap", {}, _packing),
    "throughput": Entry("trials an hour of the quickstart", {}, _throughput),
    "first_step": Entry("time to trace and compile", {}, _first_step),
    "depth": Entry("step time and memory by depth", {}, _depth),
    "fewshot": Entry("few-shot probe", {**BIG_VISION, "einops": "pip install einops"}, _fewshot),
    "pareto": Entry("Pareto fronts", {"paretoset": "pip install paretoset",
                                      "moocore": "pip install moocore"}, _pareto),
    "decoding": Entry("greedy decoding", TORCH, _decoding),
    "ranking": Entry("rank classification", {}, _ranking),
    "image_input": Entry("image input", {}, _image_input,
                         "--peer-python PYTHON_WITH_TENSORFLOW"),
    "text_input": Entry("text input", {}, _text_input, "--text FILE ... --vocabulary MODEL "
                        "--peer-python PYTHON_WITH_T5_AND_TENSORFLOW"),
}


def missing(entry: Entry) -> list[str]:
    """What to install for a benchmark to measure all its peers."""
    return [f"{name} ({how})" for name, how in entry.needs.items()
            if importlib.util.find_spec(name) is None]


def run(name: str, arguments: list[str]) -> list[Row] | str:
    """The rows of a benchmark, or why there are none."""
    entry = ENTRIES[name]
    if entry.arguments and not arguments:
        return f"needs arguments: python -m benchmarks {name} -- {entry.arguments}"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--json", *arguments],
        cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return f"failed with exit code {done.returncode}"
    return list(entry.rows(json.loads(done.stdout)))


def main() -> int:
    """Runs what was asked for; prints one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks",
                                     description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENTRIES))
    parser.add_argument("--json", action="store_true")
    given = sys.argv[1:]
    own, arguments = given, []
    if "--" in given:
        own, arguments = given[: given.index("--")], given[given.index("--") + 1:]
    options = parser.parse_args(own)
    unknown = [name for name in options.names if name not in ENTRIES]
    if unknown or (arguments and len(options.names) != 1):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(ENTRIES)}" if unknown
                     else "arguments after -- are for one benchmark")
    document: dict[str, Any] = {}
    for name in options.names or ENTRIES:
        lacking = missing(ENTRIES[name])
        if lacking:
            print(f"{name}: not installed: {'; '.join(lacking)}", file=sys.stderr)
        found = run(name, arguments)
        if isinstance(found, str):
            print(f"{name}: {found}", file=sys.stderr)
        document[name] = found if isinstance(found, str) else [row._asdict() for row in found]
        if not options.json and not isinstance(found, str):
            for row in found:
                promised = f"  (promised {row.promised})" if row.promised else ""
                print(f"{name:12}{row.case:60}{row.value:8.3f}{promised}", flush=True)
    if options.json:
        print(json.dumps(document, indent=2))
    return 1 if any(isinstance(found, str) and found.startswith("failed")
                    for found in document.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
