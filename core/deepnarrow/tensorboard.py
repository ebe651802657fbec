"""TensorBoard, as an observer: `run.tensorboard=True` in a config, then

    tensorboard --logdir WORKDIR/tensorboard

Event files are written by `clu.metric_writers`, which needs TensorFlow: `deepnarrow[tensorboard]`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clu.metric_writers import MetricWriter

FOLDER = "tensorboard"


def step_end(info: Mapping[str, Any]) -> None:
    """Writes one step's points as `STAGE/NAME`; a reader sees them at once."""
    writer = _writer(_directory(info))
    writer.write_scalars(
        info["step"], {f"{info['stage']}/{name}": x for name, x in info["metrics"].items()})
    writer.flush()


def run_end(record: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Writes what was measured at the end as `final/...`, and closes the trial's file."""
    sums: dict[str, list[float]] = {}
    for row in record["metrics"]:
        if row["value"] is not None:
            parts = (row["stage"], row["task"], row["metric"], row["origin"],
                     "" if row["shots"] is None else f"{row['shots']}shots")
            sums.setdefault("/".join(part for part in parts if part), []).append(row["value"])
    writer = _writer(_directory(info))
    means = {f"final/{name}": sum(values) / len(values) for name, values in sums.items()}
    writer.write_scalars(max((point["step"] for point in record["curve"]
                              if point["stage"] == "upstream"), default=0), means)
    writer.write_hparams({"modality": info["modality"], "architecture": info["architecture"],
                          "shape": info["shape"], "seed": info["seed"], **record["shape"]})
    writer.close()
    _writer.cache_clear()  # one trial at a time


def _directory(info: Mapping[str, Any]) -> Path:
    """A folder of the trial's own that says whose it is."""
    name = f"{info['modality']}-{info['shape']}-seed{info['seed']}-{info['trial_key'][:8]}"
    return Path(info["workdir"]) / FOLDER / re.sub(r"[^\w.+-]", "_", name)


@functools.cache
def _writer(directory: Path) -> MetricWriter:
    from clu import metric_writers

    return metric_writers.SummaryWriter(str(directory))
