"""Trials an hour of a whole study: in one process on all cores, or one process a core.

    python -m benchmarks.throughput [--config configs/quickstart.py] [--workers 2] [--json]

Runs `deepnarrow study` as a user does, in fresh folders with a compilation cache of its own that
starts empty, first as it is by default and then with `--launcher local`: opening data, compiling,
training, transfer and report are all in it. `--warm` runs each once more before, so that nothing is
compiled. Needs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run_study(config: str, flags: list[str], folder: Path, cache: Path) -> dict[str, float]:
    """Runs a study in `folder`; seconds by the clock and of CPU time, and trials an hour."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = "import sys; from deepnarrow.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code]
    subprocess.run([*command, "study", config, "--workdir", str(folder), *flags], check=True,
                   env={**os.environ, "XDG_CACHE_HOME": str(cache)}, stderr=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = json.loads(subprocess.run([*command, "status", str(folder), "--json"], check=True,
                                       capture_output=True, text=True).stdout)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "trials_per_hour": 3600 * status["done"] / wall}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sides = {"inline": [], "local": ["--launcher", "local", "--set",
                                     f"launch.workers={options.workers}"]}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in sides.items():
            for turn in range(1 + options.warm):
                found[name] = run_study(options.config, flags, Path(folder, f"{name}{turn}"),
                                        Path(folder, f"cache_{name}"))
            if not options.json:
                print(f"{name}: " + ", ".join(f"{k} {v:.0f}" for k, v in found[name].items()),
                      flush=True)
    found["gain"] = found["inline"]["wall"] / found["local"]["wall"]
    print(json.dumps(found, indent=2) if options.json
          else f"one process a core: {found['gain']:.2f} x the trials an hour")


if __name__ == "__main__":
    main()
