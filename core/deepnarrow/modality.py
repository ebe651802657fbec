"""The contract's types: what a plugin supplies, and what the core does with it.

Everything here is a frozen dataclass of plain functions over pytrees. This module imports neither
JAX nor a plugin; arrays are named in comments and docstrings (`[batch, length, d_model]`).

Three axes meet in one model:

    Modality       frame, data, tasks          text_t5, vision_vit, yours
    Architecture   what fills a stack          "transformer" first
    Shape          how large it is             base-nl16

A modality describes its stacks (`StackSpec`), an architecture fills each (`Stack`), the modality
assembles a `Model` from them: M + A pieces serve M x A combinations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from deepnarrow.formats import CheckpointFormat
from deepnarrow.shape import Preset, Shape
from deepnarrow.stepspec import StepSpec

if TYPE_CHECKING:
    import pathlib

    import jax
    import numpy as np
    from ml_collections import ConfigDict

Params = Any  # a nested dict of float32 arrays; layers of a stack lie on a leading "layers" axis
Batch = Mapping[str, Any]  # arrays with leading axis `batch`
Example = dict[str, Any]  # numpy arrays of one example, no batch axis
Key = Any  # a JAX PRNG key
Path = tuple[str, ...]
Axes = tuple[str | None, ...]  # logical axis names of one array

# The core's logical axes; one table maps them to a mesh. "layers" leads in a stacked parameter.
LOGICAL_AXES = frozenset({
    "layers", "vocab", "embed", "mlp", "heads", "kv", "buckets", "patch", "channels", "length",
    "classes", "expert", "batch",
})
TABLE_AXES = frozenset({"vocab", "length", "buckets"})  # of tables that are looked up in
# Keys that the core adds to every batch:
EXAMPLE_ID = "example_id"  # int64 [batch]: index of the example in its source
EXAMPLE_MASK = "example_mask"  # float32 [batch]: 1 for an example, 0 for padding of the last batch


# --- costs ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class ParamArray:
    """One parameter array, known before it is allocated.

    Attributes:
      path: keys from the root of `params`, e.g. `("encoder", "layers", "mlp", "wi", "kernel")`.
      shape: its shape; a stacked parameter has the number of layers first.
      axes: a logical axis name (or None) for each dimension.
      component: where the ledger books it: `embedding`, `position`, `head`, or
        `ROLE/attention`, `ROLE/cross_attention`, `ROLE/mlp`, `ROLE/norm`, ...
      active: the share of it that one example uses (1 unless experts are chosen).
      positions: at how many positions of an example it works, for the conventions that count FLOPs
        by parameters; None for every position of its stack (of the last stack, outside of stacks).
    """

    path: Path
    shape: tuple[int, ...]
    axes: Axes
    component: str
    active: float = 1.0
    positions: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        total = 1
        for dim in self.shape:
            total *= dim
        return total

    @property
    def is_kernel(self) -> bool:
        """Whether it is the weight of a linear map, and no bias, norm or table."""
        joined = [i for i, axis in enumerate(self.axes) if axis != "layers"
                  and not (axis == "kv" and i and self.axes[i - 1] == "heads")]
        return is_kernel([self.axes[i] for i in joined], [self.shape[i] for i in joined])


def is_kernel(axes: Sequence[str | None], shape: Sequence[int]) -> bool:
    """Says whether an array of one layer is the weight of a linear map.

    It has two or more axes, `heads` and `kv` counting as one and unnamed axes of length 1 not at
    all, and none of them counts pieces, positions or buckets.

    >>> is_kernel(("embed", "mlp"), (64, 256)), is_kernel(("vocab", "embed"), (32128, 64))
    (True, False)
    >>> is_kernel((None, None, "embed"), (1, 1, 64))
    False
    """
    real = [axis for axis, size in zip(axes, shape, strict=True) if axis is not None or size > 1]
    return len(real) >= 2 and not TABLE_AXES.intersection(real)


@dataclasses.dataclass(frozen=True)
class FlopTerm:
    """Forward FLOPs of one kind of work, for one example, 2 a multiply-add.

    Attributes:
      component: as in `ParamArray`.
      kind: `weight` (activations x parameters), `attention` (scores and weighted sums: activations
        x activations), `embedding` (a gather: 0 here, 2 x size as a one-hot matmul in conventions
        that count it), `logits` (the output projection to a vocabulary or to classes).
      forward: FLOPs of the forward pass for one example, every matmul counted once.
      scores: of `attention`: how many scores pass a softmax (heads x queries x keys x layers), for
        the convention that counts it.
      activation_floats: kept for the backward pass, per example, under the model's remat.
      backward: multiples of the forward FLOPs that the backward pass takes: 2, a gradient of each
        factor; 1 where the input needs no gradient, as the data do not.
    """

    component: str
    kind: Literal["weight", "attention", "embedding", "logits"]
    forward: float
    scores: float = 0.0
    activation_floats: float = 0.0
    backward: float = 2.0


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a piece of a model costs, in closed form; pieces add up with `+`.

    Attributes:
      arrays: every parameter.
      flops: the forward pass's work.
      activation_floats: kept for the backward pass, per example, besides what `flops` keeps.
      lengths: positions of each stack by role; `count_costs` sets it. A position of a stack is a
        token: an example has as many as all stacks together (encoder and decoder).
      remat: the model option of that name; `count_costs` sets it.
      float_bytes: bytes of one activation; `count_costs` sets it.
    """

    arrays: tuple[ParamArray, ...] = ()
    flops: tuple[FlopTerm, ...] = ()
    activation_floats: float = 0.0
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    remat: Literal["none", "full", "dots"] = "none"
    float_bytes: int = 4

    def __add__(self, other: Costs) -> Costs:
        return dataclasses.replace(
            self, arrays=self.arrays + other.arrays, flops=self.flops + other.flops,
            activation_floats=self.activation_floats + other.activation_floats,
        )


def axes_tree(arrays: Sequence[ParamArray]) -> dict[str, Any]:
    """Returns the tree of logical axes that belongs to `arrays`: a model's `param_axes`.

    >>> axes_tree([ParamArray(("mlp", "wi"), (8, 32), ("embed", "mlp"), "mlp")])
    {'mlp': {'wi': ('embed', 'mlp')}}
    """
    tree: dict[str, Any] = {}
    for array in arrays:
        node = tree
        for name in array.path[:-1]:
            node = node.setdefault(name, {})
        node[array.path[-1]] = array.axes
    return tree


# --- architecture -----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class StackOptions:
    """How the blocks of one stack are built; a modality sets it, an architecture obeys.

    Attributes:
      norm: `rms` (no mean, no bias: T5) or `layer` (mean and bias: ViT).
      norm_eps: added to the variance.
      activation: of the MLP: `relu`, `gelu` (tanh approximation, as flax's default) or
        `gelu_exact` (by erf, as PyTorch's default).
      use_bias: biases in attention and MLP.
      scale_attention: divide attention scores by sqrt(d_kv); T5 folds it into the initialiser.
      causal: position i sees positions <= i only.
      relative_buckets: buckets of T5's relative position bias, 0 for none; a table a stack.
      relative_max_distance: beyond it all distances share a bucket.
      init: `t5` (Mesh TensorFlow's scaled normals) or `xavier` (big_vision's).
      dropout_rate: on residual branches, attention weights and MLP activations; training only.
      final_dropout: dropout after the final norm too, as T5 does and ViT does not.
      compute_dtype: `float32` or `bfloat16`; parameters stay float32.
      remat: `none`, `full` or `dots`: what the backward pass recomputes.
      scan: apply the layers by `jax.lax.scan` (compile time independent of depth) or unrolled.
      context_length: for stacks with cross-attention: length of the context, else None.
      architecture: the architecture's own options; the core lays them over the architecture's
        defaults, so that `make_stack` always finds every one.
    """

    norm: Literal["rms", "layer"] = "layer"
    norm_eps: float = 1e-6
    activation: Literal["relu", "gelu", "gelu_exact"] = "gelu"
    use_bias: bool = True
    scale_attention: bool = True
    causal: bool = False
    relative_buckets: int = 0
    relative_max_distance: int = 128
    init: Literal["t5", "xavier"] = "xavier"
    dropout_rate: float = 0.0
    final_dropout: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full", "dots"] = "none"
    scan: bool = True
    context_length: int | None = None
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StackSpec:
    """One stack that a modality needs filled.

    Attributes:
      role: `encoder` or `decoder`; also the first key of its parameters' paths.
      length: number of positions; each is a token to the ledger.
      options: how its blocks are built.
      context: the role whose output this stack cross-attends to; the core then sets
        `options.context_length` to that stack's `output_length`.
    """

    role: Literal["encoder", "decoder"]
    length: int
    options: StackOptions
    context: Literal["encoder", "decoder"] | None = None


class StackOutput(NamedTuple):
    """What a stack returns: `x` [batch, output_length, d_model], mask, cache and mean aux loss."""

    x: Any
    mask: Any
    cache: Any
    aux_loss: Any


@dataclasses.dataclass(frozen=True)
class Stack:
    """A filled stack, as pure functions. Building one does not import JAX; calling one may.

    Attributes:
      init: `init(key) -> params`, a nested dict, final norm included.
      apply: `apply(params, x, *, mask=None, positions=None, context=None, context_mask=None,
        cache=None, key=None, train=False) -> StackOutput`. `x` is [batch, length, d_model]; `mask`
        and `context_mask` are [batch, length], 1 at real positions, None for all real; `key` feeds
        dropout and is None when not training. With a cache, `x` is [batch, 1, d_model].
      init_cache: `init_cache(params, batch_size, context, context_mask) -> cache` for decoding;
        the cache is opaque to everybody else.
      count: `count() -> Costs` with paths relative to the stack's own params.
      output_length: positions that come out.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., StackOutput]
    init_cache: Callable[..., Any]
    count: Callable[[], Costs]
    output_length: int


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A general architecture: it fills any modality's stacks.

    Attributes:
      name: e.g. `transformer`.
      make_stack: `make_stack(shape, role, length, options) -> Stack`; raises
        `NotApplicable(reason)` where it cannot serve.
      operators: symbols of the operators that mean something here.
      options: defaults of its own options, which `make_stack` finds in `options.architecture`.
      aux_loss: whether one other than 0 may come: micro-batches then join a trial's key.
    """

    name: str
    make_stack: Callable[[Shape, str, int, StackOptions], Stack]
    operators: frozenset[str]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    aux_loss: bool = True


@dataclasses.dataclass(frozen=True)
class BoundArchitecture:
    """An architecture that supplies one modality's model whole (a Linen model, big_vision's ViT).

    Attributes:
      name: e.g. `big_vision_vit`.
      modality: the modality it is bound to.
      make_model: `make_model(shape, options) -> Model`.
      count_costs: `count_costs(shape, options) -> Costs`, all of the model.
      operators: symbols of the operators that mean something here.
      options: defaults of its own options, which its functions apply themselves.
      unavailable: says why it cannot be used on this machine, with the remedy; None where it can.
      aux_loss: as in `Architecture`.
    """

    name: str
    modality: str
    make_model: Callable[[Shape, ConfigDict], Model]
    count_costs: Callable[[Shape, ConfigDict], Costs]
    operators: frozenset[str]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unavailable: Callable[[], str | None] | None = None
    aux_loss: bool = True


AnyArchitecture = Architecture | BoundArchitecture


# --- model ------------------------------------------------------------------------------------
class LossOutput(NamedTuple):
    """Sums, so that padding, micro-batches and sharded means are exact.

    Attributes:
      loss_sum: float32 scalar, the loss summed over weights.
      weight_sum: float32 scalar, what `loss_sum` is to be divided by.
      aux_loss: float32 scalar mean added to the loss, 0 where there is none.
      metrics: name -> (sum, weight), each a float32 scalar.
    """

    loss_sum: Any
    weight_sum: Any
    aux_loss: Any
    metrics: Mapping[str, tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as pure functions over `params`. The core never sees what library made it.

    Attributes:
      init: `init(key) -> params`, float32.
      loss: `loss(params, batch, key, *, train) -> LossOutput`; `key` may be None when not training.
      features: `features(params, batch) -> [batch, d]`, float32, for the few-shot probe.
      param_axes: tree like `params` whose leaves are tuples of logical axis names.
      predict: `predict(params, batch) -> [batch, ...]`: class logits, or decoded tokens.
      score: `score(params, batch, candidates) -> [batch, candidates]` log-likelihoods, or None.
      head_paths: paths of the parameters that belong to upstream's task only.
    """

    init: Callable[[Key], Params]
    loss: Callable[..., LossOutput]
    features: Callable[[Params, Batch], jax.Array]
    param_axes: Any
    predict: Callable[[Params, Batch], jax.Array]
    score: Callable[[Params, Batch, Batch], jax.Array] | None = None
    head_paths: tuple[Path, ...] = ()


# --- data and tasks ---------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Source:
    """A finite set of examples, read at random. Element i depends on nothing but (seed, i).

    Attributes:
      num_examples: how many there are.
      load: `load(index, rng) -> Example`: numpy arrays of fixed shapes. `rng` is a
        `numpy.random.Generator` for this call, which depends on (seed, position in the stream)
        only; deterministic sources ignore it.
      content_hash: sha256 (hex) of what determines every example (bytes of the data and the options
        of the preprocessing), never of a path; part of the trial's key.
      labels: for labelled sources, `labels()` -> int array [num_examples]; else None.
    """

    num_examples: int
    load: Callable[[int, np.random.Generator], Example]
    content_hash: str
    labels: Callable[[], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that says how good a model is: its name and which way is better."""

    name: str
    direction: Literal["min", "max"]


@dataclasses.dataclass(frozen=True)
class Upstream:
    """What a modality is pre-trained on.

    Attributes:
      train: examples that are trained on.
      validation: examples that are only evaluated.
      metric: the upstream quality; a key of `LossOutput.metrics` or `loss` (mean loss).
      options: model options that the data decides (`vocab_size`, `num_classes`), laid over the
        modality's defaults before the model is built.
    """

    train: Source
    validation: Source
    metric: Metric
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Scores(NamedTuple):
    """A task's metrics by name, and one value an example (or None) for bootstraps."""

    metrics: Mapping[str, float]
    per_example: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Task:
    """A task to transfer to: of classes, or of free text.

    Attributes:
      name: unique in its modality.
      kinds: what it serves: `few_shot` (probe on `Model.features`), `fine_tune`, or both.
      examples: `examples(split) -> Source` for `train`, `validation`, `test`; with classes, every
        example carries an int `label`. The test split is never used to choose anything. Where the
        labels of a benchmark's test split are secret, `validation` and `test` are parts of its
        validation split; all of that may be served as `validation_full`, and `splits` says so.
      metric: the one to quote; a key of `score`'s metrics.
      score: `score(predictions, examples) -> Scores` on the host: `predictions` is what `predict`
        returned, or [n, candidates] log-likelihoods where the task has `candidates`; `examples` is
        what `references` gives for the split, else its labels, int64 [n].
      num_classes: number of classes; None for free text, which has no labels and no probe.
      options: model options it overrides when fine-tuning, e.g. `{"num_classes": 10}`.
      candidates: for rank classification by `Model.score`: `candidates(batch)` -> those arrays of
        the batch in which the classes differ, [batch, classes, ...]; None to use `Model.predict`.
      splits: what `examples` serves; the first three always.
      baseline: `baseline(split) -> [n, d]` raw inputs (pixels, bag of pieces) for the probe that
        stands beside the features; None for none.
      references: `references(split) -> sequence [n]` of the truth that labels cannot hold (answers,
        groups of examples that are scored together), in the order of the source; None for labels.
    """

    name: str
    kinds: frozenset[Literal["few_shot", "fine_tune"]]
    examples: Callable[[str], Source]
    metric: Metric
    score: Callable[[np.ndarray, Any], Scores]
    num_classes: int | None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    candidates: Callable[[Batch], Batch] | None = None
    baseline: Callable[[str], np.ndarray] | None = None
    references: Callable[[str], Sequence[Any]] | None = None
    splits: tuple[str, ...] = ("train", "validation", "test")


# --- modality ---------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Modality:
    """What a plugin returns from `deepnarrow_register_modalities`.

    Attributes:
      name: e.g. `audio_ast`; also its entry point's name.
      presets: open shape names, which take operators; `tiny`, small and quick, is among them.
      catalogue: released checkpoints by name, which take no operators; may be empty.
      options: defaults of the model's options, as a ConfigDict; all that the model reads is here.
      data_options: defaults of the data's options (paths, sizes), likewise.
      stack_specs: `stack_specs(shape, options) -> tuple[StackSpec, ...]`, contexts first.
      assemble: `assemble(shape, options, stacks) -> Model`, `stacks` by role. The params of a stack
        lie under its role's key.
      count_frame: `count_frame(shape, options) -> Costs` of what is around the stacks: embedding,
        position, head, loss.
      upstream: `upstream(data_options, options) -> Upstream`.
      tasks: `tasks(data_options, options) -> dict of Task by name`; building one reads no data.
      adapt: `adapt(params, source_options, target_options, key) -> (params, reinitialised paths)`
        for another task: new heads, resampled positions.
      suffix_option: the model option that `/16` sets in a shape expression, or None.
      checkpoint_formats: foreign layouts by name; may be empty.
      prepare: `prepare(data_options, directory, progress) -> facts`, or None: makes the data of
        these options ready in a directory that `data_options` can name instead. Called again it
        goes on with what it began. `progress(share, note)` shows how far it is, 0 to 1. The facts
        are JSON-able, `summary`, one line for people, among them. Raises `InputError` before
        anything is written.
      averages: `averages(scores) -> {name: value}` that papers report of several tasks together,
        from metrics by task and name; only what the scores suffice for. None for none.
      open_name: `open_name(text) -> expression` that a closed name stands for, or None; for hints.
      step: what `deepnarrow plan` assumes of a training step, or None: nothing can be planned.
      check_options: what the kit changes of `options` to fit the default data.
    """

    name: str
    presets: Mapping[str, Preset]
    options: ConfigDict
    data_options: ConfigDict
    stack_specs: Callable[[Shape, ConfigDict], tuple[StackSpec, ...]]
    assemble: Callable[[Shape, ConfigDict, Mapping[str, Stack]], Model]
    count_frame: Callable[[Shape, ConfigDict], Costs]
    upstream: Callable[[ConfigDict, ConfigDict], Upstream]
    tasks: Callable[[ConfigDict, ConfigDict], Mapping[str, Task]]
    adapt: Callable[[Params, ConfigDict, ConfigDict, Key], tuple[Params, Sequence[Path]]]
    catalogue: Mapping[str, Preset] = dataclasses.field(default_factory=dict)
    suffix_option: str | None = None
    checkpoint_formats: Mapping[str, CheckpointFormat] = dataclasses.field(default_factory=dict)
    prepare: Callable[[ConfigDict, pathlib.Path, Callable[[float, str], None]],
                      Mapping[str, Any]] | None = None
    averages: Callable[[Mapping[str, Mapping[str, float]]], Mapping[str, float]] | None = None
    open_name: Callable[[str], str | None] | None = None
    step: StepSpec | None = None
    check_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
