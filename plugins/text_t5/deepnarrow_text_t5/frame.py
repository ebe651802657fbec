"""T5's frame in numbers: how its stacks are built, what stands around them. Imports no JAX."""

from __future__ import annotations

from ml_collections import ConfigDict

from deepnarrow.modality import (
    EXAMPLE_MASK,
    Costs,
    FlopTerm,
    ParamArray,
    StackOptions,
    StackSpec,
)
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.shape import Shape
from deepnarrow.stepspec import ArraySpec, StepSpec
from deepnarrow_text_t5.options import check_options


def stack_specs(shape: Shape, options: ConfigDict) -> tuple[StackSpec, ...]:
    """Returns T5's two stacks: pre-RMSNorm, ReLU, no biases, unscaled attention, relative bias.

    Raffel et al. (JMLR 2020), section 2.1; eps and buckets as in the released code.

    Raises:
      InputError: an option or the shape makes no T5.
    """
    check_options(shape, options)

    def stack_options(causal: bool) -> StackOptions:
        return StackOptions(
            norm="rms", norm_eps=1e-6, activation="relu", use_bias=False, scale_attention=False,
            causal=causal, relative_buckets=options.relative_buckets,
            relative_max_distance=options.relative_max_distance, init="t5",
            dropout_rate=options.dropout_rate, final_dropout=True,
            compute_dtype=options.compute_dtype, remat=options.remat, scan=options.scan,
        )

    return (
        StackSpec("encoder", options.input_length, stack_options(causal=False)),
        StackSpec("decoder", options.target_length, stack_options(causal=True), context="encoder"),
    )


def count_frame(shape: Shape, options: ConfigDict) -> Costs:
    """Returns the costs of the embedding table, which is also the output projection.

    Forward FLOPs of one example: a lookup for every position, no matmul; logits
    `2 target_length d_model vocab_size`. The backward pass needs the logits, the decoder's scaled
    output and, where dropout's input is kept, both embedded sequences (booked in any case).
    """
    check_options(shape, options)
    positions = options.input_length + options.target_length
    logits = options.target_length * options.vocab_size
    return Costs(
        arrays=(ParamArray(("embedding",), (options.vocab_size, shape.d_model), ("vocab", "embed"),
                           "embedding"),),
        flops=(FlopTerm("embedding", "embedding", 0.0,
                        activation_floats=float(positions * shape.d_model)),
               FlopTerm("head", "logits", 2.0 * logits * shape.d_model,
                        activation_floats=float(logits + options.target_length * shape.d_model))),
    )


def _step_arrays(options: ConfigDict) -> dict[str, ArraySpec]:
    return {"inputs": ArraySpec((options.input_length,), "int32"),
            "targets": ArraySpec((options.target_length,), "int32"),
            EXAMPLE_MASK: ArraySpec((), "float32")}


# Raffel et al. 2020, section 3.1.2: Adafactor, 1 / sqrt(max(step, 10^4)).
STEP = StepSpec(_step_arrays, OptimizerConfig("adafactor", 0.01, "inverse_sqrt",
                                              warmup_steps=10_000))
