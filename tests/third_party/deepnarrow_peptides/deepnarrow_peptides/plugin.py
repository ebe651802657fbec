"""The modality `peptides`. Nothing here imports JAX: the model's code is imported in calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from deepnarrow.errors import InputError
from deepnarrow.hookspecs import hookimpl
from deepnarrow.modality import (
    Costs,
    FlopTerm,
    Modality,
    Model,
    ParamArray,
    Stack,
    StackOptions,
    StackSpec,
    Task,
    Upstream,
)
from deepnarrow.shape import Preset, Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepnarrow.modality import Key, Params, Path

VOCAB_SIZE = 23  # padding, 20 amino acids, one for all others, the mask
PRESETS = {
    "tiny": Preset(Shape(4, 0, d_model=64, d_ff=256, d_kv=16, num_heads=4), "ours"),
    "small": Preset(Shape(6, 0, d_model=128, d_ff=512, d_kv=32, num_heads=4), "ours"),
}


def stack_specs(shape: Shape, options: ConfigDict) -> tuple[StackSpec, ...]:
    """One encoder over the residues, with T5's relative positions."""
    if options.length < 1:
        raise InputError("peptides options", "length is out of range", got=options.length,
                         expected=">= 1")
    return (StackSpec("encoder", options.length, StackOptions(
        relative_buckets=16, relative_max_distance=32, dropout_rate=options.dropout_rate,
        compute_dtype=options.compute_dtype, remat=options.remat, scan=options.scan)),)


def count_frame(shape: Shape, options: ConfigDict) -> Costs:
    """The table of residues and the head: over all positions upstream, over their mean for classes.

    Looking up costs nothing; the head takes `2 positions d_model outputs`.
    """
    d_model, classes = shape.d_model, options.num_classes
    outputs, positions = (classes, 1) if classes else (VOCAB_SIZE, options.length)
    return Costs(
        arrays=(
            ParamArray(("embedding",), (VOCAB_SIZE, d_model), ("vocab", "embed"), "embedding"),
            ParamArray(("head", "kernel"), (d_model, outputs), ("embed", "classes"), "head",
                       positions=positions),
            ParamArray(("head", "bias"), (outputs,), ("classes",), "head", positions=positions),
        ),
        flops=(
            FlopTerm("embedding", "embedding", 0.0),
            FlopTerm("head", "logits", 2.0 * positions * d_model * outputs,
                     activation_floats=float(positions * (d_model + outputs))),
        ),
    )


def _assemble(shape: Shape, options: ConfigDict, stacks: Mapping[str, Stack]) -> Model:
    from deepnarrow_peptides.model import assemble

    return assemble(count_frame(shape, options).arrays, options, stacks["encoder"])


def _upstream(data_options: ConfigDict, options: ConfigDict) -> Upstream:
    from deepnarrow_peptides.data import upstream

    return upstream(data_options)


def _tasks(data_options: ConfigDict, options: ConfigDict) -> Mapping[str, Task]:
    from deepnarrow_peptides.data import tasks

    return tasks(data_options)


def _adapt(
    params: Params, source_options: ConfigDict, target_options: ConfigDict, key: Key
) -> tuple[Params, Sequence[Path]]:
    from deepnarrow_peptides.model import adapt

    return adapt(params, source_options, target_options, key)


@hookimpl
def deepnarrow_register_modalities() -> list[Modality]:
    """Peptides."""
    return [Modality(
        name="peptides",
        presets=PRESETS,
        options=ConfigDict({
            "length": 32, "num_classes": 0, "dropout_rate": 0.0, "compute_dtype": "float32",
            "remat": "none", "scan": True,
        }).lock(),
        # `path`: a CSV of sequences and labels, empty for made-up peptides; `length`: residues read
        # of each; `mask_rate`: share of the residues that upstream hides.
        data_options=ConfigDict({"path": "", "length": 32, "mask_rate": 0.15}).lock(),
        stack_specs=stack_specs,
        assemble=_assemble,
        count_frame=count_frame,
        upstream=_upstream,
        tasks=_tasks,
        adapt=_adapt,
    )]
