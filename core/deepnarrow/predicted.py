"""Predicted step times as a cost: a roofline estimate of every trial's shape on one chip.

Records hold what a step took where they were trained. What it would take elsewhere is estimated
from the trial's shape, options, batch and optimiser by `hardware.roofline_step_time`; its modality
counts in closed form, without JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepnarrow.assemble import count_costs
from deepnarrow.config import resolve_options
from deepnarrow.cost import summarize
from deepnarrow.errors import InputError
from deepnarrow.hardware import Chip, roofline_step_time
from deepnarrow.plugins import Registry
from deepnarrow.records import Record
from deepnarrow.shape import Shape
from deepnarrow.summary import STEP_TIME
from deepnarrow.table import Table


def with_predicted(
    table: Table, records: Sequence[Record], chip: Chip, registry: Registry
) -> tuple[Table, str]:
    """Returns `table` with a cost column of predicted step times, and the column's name.

    Args:
      table: of `records`, and perhaps of files, whose rows have no prediction.
      records: of studies.
      chip: that steps are predicted for, one of it.
      registry: of the modalities that count the shapes.

    Raises:
      InputError: there are no records, or a modality is not installed.
    """
    if not records:
        raise InputError("--chip", "predicts step times of studies, and no source is one",
                         got=chip.name)
    seconds = {record.key: _predicted(record, chip, registry) for record in records}
    name = f"{STEP_TIME}@{chip.name}"
    column = np.array([seconds.get(str(key), math.nan) for key in table.columns["key"]])
    return dataclasses.replace(table, columns={**table.columns, name: column},
                               costs=(*table.costs, name)), name


def _predicted(record: Record, chip: Chip, registry: Registry) -> float:
    """Seconds a training step; NaN for a record of weights that somebody else trained."""
    protocol: Mapping[str, Any] = record.config.get("protocol") or {}
    if not protocol.get("batch_size"):
        return math.nan
    modality = registry.modality(record.modality)
    options = resolve_options(modality.options, record.config["options"],
                              f"record {record.key[:12]}: options")
    shape = Shape(**record.shape)
    costs = summarize(count_costs(modality, registry.architecture(record.architecture), shape,
                                  options))
    return roofline_step_time(
        costs, chip, batch_size=int(protocol["batch_size"]),
        dtype=options.get("compute_dtype", "float32"),
        optimizer=protocol["optimizer"]["name"]).step_time_s
