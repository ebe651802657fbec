"""The compiled programs of a cell, shared by all trials that can share them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deepnarrow.assemble import make_model
from deepnarrow.config import resolve_options
from deepnarrow.data import eval_batches
from deepnarrow.modality import Task
from deepnarrow.protocol import FineTune, OptimizerConfig
from deepnarrow.sharding import Layout
from deepnarrow.step import Program, make_program, metric_names, step_bytes
from deepnarrow.transfer.finetune import FineTuneProgram, make_finetune
from deepnarrow.trialrows import check_metric

if TYPE_CHECKING:
    from deepnarrow.plugins import Registry
    from deepnarrow.trials import ModalityData, Trial

# Of programs that only apply a checkpoint.
_NO_TRAINING = OptimizerConfig("adafactor", 1e-3, "constant")


@dataclasses.dataclass(frozen=True)
class CellPrograms:
    """The compiled programs of a cell.

    Attributes:
      program: of pre-training.
      finetunes: of fine-tuning, one for the tasks that are trained together.
      peak_bytes: memory of a pre-training step; None where it is not known, or not trained.
      build_seconds: what it took, compiling the step included.
    """

    program: Program
    finetunes: tuple[FineTuneProgram, ...]
    peak_bytes: float | None
    build_seconds: float

    def of(self, trial: Trial, steps: int) -> CellPrograms:
        """Returns them for another trial that can share them, whose pre-training takes `steps`."""
        if trial.checkpoint is not None:
            return self
        return dataclasses.replace(self, program=self.program.at(trial.optimizer, steps))


def build_programs(
    trial: Trial, steps: int, data: ModalityData, registry: Registry, *,
    remat: str | int | None = None, layout: Layout | None = None, micro_batches: int = 1,
) -> CellPrograms:
    """Returns the programs of a trial, the pre-training step compiled.

    Args:
      trial: whose.
      steps: updates of its pre-training.
      data: of its modality.
      registry: of the loaded plugins.
      remat: in place of the option's; None to leave it.
      layout: how devices share the work; None for one device.
      micro_batches: pieces that a training batch is worked on in.

    Raises:
      InputError: what the data or the tasks ask of the model does not fit it.
    """
    began = time.monotonic()
    architecture = registry.architecture(trial.architecture)
    chosen = {} if remat is None else {"remat": remat}
    options = resolve_options(data.modality.options, {**trial.options, **chosen}, "options")
    shape, stage = trial.shape.shape, trial.protocol.fine_tune
    model = make_model(data.modality, architecture, shape, options)
    program = (make_program(model, trial.optimizer, steps, None, layout, micro_batches)
               if trial.checkpoint is None
               else make_program(model, _NO_TRAINING, 1, None, layout, micro_batches))
    finetunes = () if stage is None else tuple(
        make_finetune(data.modality, architecture, shape, options, together, stage, layout,
                      micro_batches)
        for together in _trained_together(stage, data.finetune_tasks))
    peak = None
    if trial.checkpoint is None:
        batch = next(eval_batches(data.upstream.train, trial.protocol.pretraining.batch_size))
        check_metric(data.upstream.metric, metric_names(program, batch), trial.modality)
        peak = step_bytes(program, batch)
    return CellPrograms(program, finetunes, peak, time.monotonic() - began)


def _trained_together(stage: FineTune, tasks: Mapping[str, Task]) -> Sequence[tuple[Task, ...]]:
    """The tasks in groups that one model each is fine-tuned on."""
    named = tuple(tasks[name] for name in stage.tasks)
    return [named] if stage.mixture == "proportional" else [(task,) for task in named]
