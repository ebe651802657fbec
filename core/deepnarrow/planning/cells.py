"""What is planned: one shape under a modality's defaults, or every cell of a study. No JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.assemble import check_operators, count_costs
from deepnarrow.config import StudyConfig, resolve_options
from deepnarrow.errors import InputError
from deepnarrow.modality import AnyArchitecture, Costs, Modality
from deepnarrow.ops import NamedShape, resolve
from deepnarrow.planning.estimate import Step
from deepnarrow.planning.search import REMATS
from deepnarrow.planning.traffic import Remat
from deepnarrow.plugins import Registry
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.stepspec import StepSpec

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from deepnarrow.trials import ModalityData, Trial


@dataclasses.dataclass(frozen=True)
class Cell:
    """A shape with all that its train step depends on.

    Attributes:
      modality, architecture, shape: what is built.
      options: the model's; `remat` is the plan's to choose.
      step: what is planned.
      steps: updates of all trials of the cell together; 0 where nobody said.
    """

    modality: Modality
    architecture: AnyArchitecture
    shape: NamedShape
    options: Mapping[str, Any]
    step: Step
    steps: int = 0

    def resolved(self, remat: Remat) -> ConfigDict:
        """The model's options with that remat."""
        return resolve_options(self.modality.options, {**self.options, "remat": remat}, "options")


def shape_cells(
    registry: Registry, modality_name: str, expressions: Sequence[str],
    settings: Mapping[str, Any], batch_size: int, steps: int,
) -> list[Cell]:
    """Returns a cell for each shape: the modality's options, its optimiser, bfloat16 compute."""
    modality = registry.modality(modality_name)
    spec = _spec(modality)
    cells = []
    for expression in expressions:
        named = resolve(expression, registry.vocabulary(modality))
        chosen = {"compute_dtype": "bfloat16", **named.options(settings, "--set ")}
        cells.append(_cell(modality, registry.architecture("transformer"), named, chosen,
                           batch_size, spec.optimizer, steps))
    return cells


def study_cells(registry: Registry, config: StudyConfig) -> list[Cell]:
    """Returns a cell for each shape of a study that is pre-trained, its seeds counted together."""
    from deepnarrow.trials import open_data, plan_trials

    data = {name: open_data(study, registry) for name, study in config.modalities.items()}
    trials, _ = plan_trials(config, registry, data)
    trained = [trial for trial in trials if trial.checkpoint is None]
    if not trained:
        raise InputError("plan", "the study pre-trains nothing", hint="it starts from checkpoints")
    return trial_cells(trained, registry, data)


def trial_cells(
    trials: Sequence[Trial], registry: Registry, data: Mapping[str, ModalityData]
) -> list[Cell]:
    """Returns a cell for each shape that trials pre-train, its seeds counted together."""
    from deepnarrow.trials import count_cell

    by_cell: dict[str, list[Trial]] = {}
    for trial in trials:
        name = f"{trial.modality}/{trial.architecture}/{trial.shape.name}"
        by_cell.setdefault(name, []).append(trial)
    cells = []
    for seeds in by_cell.values():
        first = seeds[0]
        counted = count_cell(first, registry, data[first.modality])
        training = first.protocol.pretraining
        cells.append(_cell(
            data[first.modality].modality, registry.architecture(first.architecture), first.shape,
            first.options, training.batch_size, training.optimizer, counted.steps * len(seeds)))
    return cells


def _spec(modality: Modality) -> StepSpec:
    if modality.step is None:
        raise InputError(f"modality {modality.name!r}", "does not say what a train step reads",
                         hint="its plugin sets Modality.step")
    return modality.step


def _cell(
    modality: Modality, architecture: AnyArchitecture, named: NamedShape,
    options: Mapping[str, Any], batch_size: int, optimizer: OptimizerConfig, steps: int,
) -> Cell:
    check_operators(named, architecture)
    resolved: dict[Remat, ConfigDict] = {
        remat: resolve_options(modality.options, {**options, "remat": remat},
                               f"shape {named.name!r}") for remat in REMATS}
    costs: dict[Remat, Costs] = {
        remat: count_costs(modality, architecture, named.shape, resolved[remat])
        for remat in REMATS}
    plain = resolved["none"]
    step = Step(named.name, costs, _spec(modality).arrays(plain), batch_size, optimizer,
                plain.compute_dtype)
    return Cell(modality, architecture, named, options, step, steps)
