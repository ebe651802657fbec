"""The cells of `configs/quickstart.py`, for benchmarks that train what it trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deepnarrow.assemble import make_model
from deepnarrow.config import load_config, resolve_options
from deepnarrow.modality import Model, Source
from deepnarrow.plugins import registry
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.step import Program, make_program
from deepnarrow.trials import open_data, plan_trials

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.py"


@dataclasses.dataclass(frozen=True)
class QuickstartCell:
    """One shape of the quickstart with what it is trained on and by."""

    model: Model
    source: Source
    batch_size: int
    optimizer: OptimizerConfig

    def program(self, total_steps: int) -> Program:
        """The compiled program of that many updates."""
        return make_program(self.model, self.optimizer, total_steps)


def shapes(modality: str) -> tuple[str, ...]:
    """The names of a modality's shapes, in the config's order."""
    return tuple(load_config(CONFIG, []).modalities[modality].shapes)


def quickstart_cell(modality: str, shape: str) -> QuickstartCell:
    """Opens the data of a modality and makes the model of one of its shapes."""
    found, config = registry(), load_config(CONFIG, [])
    data = {name: open_data(study, found) for name, study in config.modalities.items()
            if name == modality}
    config = dataclasses.replace(config, modalities={modality: config.modalities[modality]})
    trials, _ = plan_trials(config, found, data)
    trial = next(trial for trial in trials if trial.shape.name == shape)
    opened = data[modality]
    options = resolve_options(opened.modality.options, trial.options, "options")
    model = make_model(opened.modality, found.architecture(trial.architecture), trial.shape.shape,
                       options)
    training = trial.protocol.pretraining
    return QuickstartCell(model, opened.upstream.train, training.batch_size, training.optimizer)
