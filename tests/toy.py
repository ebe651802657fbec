"""A toy modality and a toy architecture for everybody's tests: real contracts, milliseconds a step.

The data are synthetic: gaussian blobs around class centres, drawn from fixed generators, so every
number is the same in every run. An example is `LENGTH` positions of `CHANNELS` values and a label.

    modality, architecture = toy_modality(), toy_architecture()
    model = make_model(modality, architecture, modality.presets["tiny"].shape, modality.options)

`toy_architecture()` fills the modality's only stack with residual MLP layers in plain JAX; a
general architecture such as "transformer" fills it too, because the modality lists its stacks like
any other. Like a plugin's entry module, this one imports without JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deepnarrow import hookimpl
from deepnarrow.formats import CheckpointFormat, CheckpointHeader
from deepnarrow.modality import (
    EXAMPLE_MASK,
    Batch,
    BoundArchitecture,
    Costs,
    Example,
    FlopTerm,
    Key,
    LossOutput,
    Metric,
    Modality,
    Model,
    ParamArray,
    Params,
    Path,
    Source,
    Stack,
    StackOptions,
    StackOutput,
    StackSpec,
    Task,
    Upstream,
    axes_tree,
)
from deepnarrow.plugins import Registry, load_plugins
from deepnarrow.shape import Preset, Shape
from deepnarrow.transfer.scores import score_accuracy

LENGTH, CHANNELS = 4, 4
UPSTREAM_CLASSES, TASK_CLASSES = 3, 4
ACCURACY = Metric("accuracy", "max")
HEAD_PATHS: tuple[Path, ...] = (("head", "kernel"), ("head", "bias"))


def toy_modality() -> Modality:
    """The modality "toy": 3-class blobs upstream, 4 other blobs as `toy_task`."""
    return Modality(
        name="toy",
        presets={
            "tiny": Preset(Shape(2, 0, d_model=16, d_ff=32, d_kv=8, num_heads=2), "made up"),
            "base": Preset(Shape(4, 0, d_model=32, d_ff=64, d_kv=8, num_heads=4), "made up"),
        },
        options=ConfigDict({
            "num_classes": UPSTREAM_CLASSES, "dropout_rate": 0.0, "compute_dtype": "float32",
            "remat": "none", "scan": True,
        }).lock(),
        data_options=ConfigDict({"num_train": 96, "num_validation": 30, "noise": 0.5}).lock(),
        stack_specs=_stack_specs,
        assemble=_assemble,
        count_frame=_count_frame,
        upstream=_upstream,
        tasks=_tasks,
        adapt=_adapt,
        checkpoint_formats={"toy_npz": CheckpointFormat(_inspect_npz, _read_npz, _write_npz,
                                                        architecture="toy_mlp")},
    )


def toy_architecture() -> BoundArchitecture:
    """The architecture "toy_mlp": residual MLP layers, stacked on a `layers` axis and scanned."""
    return BoundArchitecture(
        name="toy_mlp",
        modality="toy",
        make_model=lambda shape, options: _assemble(
            shape, options, {"encoder": mlp_stack(shape, _stack_specs(shape, options)[0].options)}
        ),
        count_costs=_count_bound,
        operators=frozenset({"NL", "EL", "DM", "FF"}),
    )


# --- data ----------------------------------------------------------------------------------------
def toy_registry(**hooks: Callable[..., Any]) -> Registry:
    """The core and a plugin that registers the toy; `hooks`: more of its hooks by name."""
    plugin = types.ModuleType("toy_plugin")
    registers = {"deepnarrow_register_modalities": lambda: [toy_modality()],
                 "deepnarrow_register_architectures": lambda: [toy_architecture()]}
    vars(plugin).update({name: hookimpl(hook) for name, hook in {**registers, **hooks}.items()})
    return load_plugins([], extra=[plugin])


def _blobs(name: str, split: str, num_classes: int, count: int, noise: float) -> tuple[Any, Any]:
    """Returns inputs [count, LENGTH, CHANNELS] and labels [count]; classes are balanced."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    centers = np.random.default_rng(seed).normal(size=(num_classes, LENGTH, CHANNELS))
    rng = np.random.default_rng([seed, ("train", "validation", "test").index(split)])
    labels = np.arange(count) % num_classes
    inputs = centers[labels] + noise * rng.normal(size=(count, LENGTH, CHANNELS))
    return inputs.astype(np.float32), labels.astype(np.int32)


def _source(inputs: np.ndarray, labels: np.ndarray, jitter: float) -> Source:
    """A source of those arrays; `jitter` is the scale of noise drawn anew for each element."""

    def load(index: int, rng: np.random.Generator) -> Example:
        noise = jitter * rng.normal(size=(LENGTH, CHANNELS)) if jitter else 0.0
        return {"inputs": (inputs[index] + noise).astype(np.float32), "label": labels[index]}

    digest = hashlib.sha256(inputs.tobytes() + labels.tobytes() + repr(jitter).encode())
    return Source(num_examples=len(labels), load=load, content_hash=digest.hexdigest(),
                  labels=lambda: labels)


def _upstream(data_options: ConfigDict, options: ConfigDict) -> Upstream:
    make = functools.partial(_blobs, "upstream", num_classes=UPSTREAM_CLASSES,
                             noise=data_options.noise)
    return Upstream(
        train=_source(*make("train", count=data_options.num_train), jitter=0.1),
        validation=_source(*make("validation", count=data_options.num_validation), jitter=0.0),
        metric=ACCURACY,
        options={"num_classes": UPSTREAM_CLASSES},
    )


def _tasks(data_options: ConfigDict, options: ConfigDict) -> dict[str, Task]:
    counts = {"train": 60, "validation": 24, "test": 41}

    @functools.cache
    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        return _blobs("toy_task", split, TASK_CLASSES, counts[split], data_options.noise)

    return {"toy_task": Task(
        name="toy_task",
        kinds=frozenset({"few_shot", "fine_tune"}),
        examples=lambda split: _source(*arrays(split), jitter=0.0),
        metric=ACCURACY,
        score=score_accuracy,
        num_classes=TASK_CLASSES,
        options={"num_classes": TASK_CLASSES},
        baseline=lambda split: arrays(split)[0].reshape(counts[split], LENGTH * CHANNELS),
    )}


# --- the frame: embedding, mean over positions, head ---------------------------------------------
def _stack_specs(shape: Shape, options: ConfigDict) -> tuple[StackSpec, ...]:
    return (StackSpec("encoder", LENGTH, StackOptions(
        dropout_rate=options.dropout_rate, compute_dtype=options.compute_dtype,
        remat=options.remat, scan=options.scan,
    )),)


def _count_frame(shape: Shape, options: ConfigDict) -> Costs:
    d_model, num_classes = shape.d_model, options.num_classes
    return Costs(
        arrays=(
            ParamArray(("embedding", "kernel"), (CHANNELS, d_model), ("channels", "embed"),
                       "embedding"),
            ParamArray(("head", "kernel"), (d_model, num_classes), ("embed", "classes"), "head"),
            ParamArray(("head", "bias"), (num_classes,), ("classes",), "head"),
        ),
        flops=(
            FlopTerm("embedding", "weight", 2.0 * LENGTH * CHANNELS * d_model),
            FlopTerm("head", "logits", 2.0 * d_model * num_classes),
        ),
        activation_floats=float(LENGTH * d_model + d_model + num_classes),
    )


def _assemble(shape: Shape, options: ConfigDict, stacks: Mapping[str, Stack]) -> Model:
    stack = stacks["encoder"]
    frame = _count_frame(shape, options).arrays
    return Model(
        init=functools.partial(_init, stack, frame),
        loss=functools.partial(_loss, stack),
        features=lambda params, batch: _features(stack, params, batch, None, False)[0],
        param_axes=axes_tree(frame) | {"encoder": axes_tree(stack.count().arrays)},
        predict=lambda params, batch: _logits(stack, params, batch, None, False)[0],
        score=functools.partial(_score, stack),
        head_paths=HEAD_PATHS,
    )


def _init(stack: Stack, frame: Sequence[ParamArray], key: Key) -> Params:
    import jax

    frame_key, stack_key = jax.random.split(key)
    return _init_arrays(frame, frame_key) | {"encoder": stack.init(stack_key)}


def _features(stack: Stack, params: Params, batch: Batch, key: Key, train: bool) -> tuple[Any, Any]:
    # [batch, length, channels] -> [batch, length, d_model]
    x = batch["inputs"] @ params["embedding"]["kernel"]
    out = stack.apply(params["encoder"], x, key=key, train=train)
    # [batch, length, d_model] -> [batch, d_model]
    return out.x.mean(axis=1).astype(np.float32), out.aux_loss


def _logits(stack: Stack, params: Params, batch: Batch, key: Key, train: bool) -> tuple[Any, Any]:
    x, aux_loss = _features(stack, params, batch, key, train)
    # [batch, d_model] -> [batch, num_classes]
    return x @ params["head"]["kernel"] + params["head"]["bias"], aux_loss


def _score(stack: Stack, params: Params, batch: Batch, candidates: Batch) -> Any:
    import jax
    import jax.numpy as jnp

    log_probs = jax.nn.log_softmax(_logits(stack, params, batch, None, False)[0])
    # [batch, num_classes] -> [batch, candidates]
    return jnp.take_along_axis(log_probs, candidates["label"], axis=1)


def _loss(stack: Stack, params: Params, batch: Batch, key: Key, *, train: bool) -> LossOutput:
    import jax
    import jax.numpy as jnp

    logits, aux_loss = _logits(stack, params, batch, key, train)
    log_probs = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_probs, batch["label"][:, None], axis=1)[:, 0]
    weights = batch[EXAMPLE_MASK]
    correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
    return LossOutput(
        loss_sum=jnp.sum(losses * weights), weight_sum=jnp.sum(weights), aux_loss=aux_loss,
        metrics={"accuracy": (jnp.sum(correct * weights), jnp.sum(weights))},
    )


def _adapt(
    params: Params, source_options: ConfigDict, target_options: ConfigDict, key: Key
) -> tuple[Params, Sequence[Path]]:
    if source_options.num_classes == target_options.num_classes:
        return params, ()
    d_model = params["head"]["kernel"].shape[0]
    shape = toy_modality().presets["tiny"].shape.replace(d_model=d_model)
    arrays = [a for a in _count_frame(shape, target_options).arrays if a.path in HEAD_PATHS]
    return {**params, **_init_arrays(arrays, key)}, HEAD_PATHS


# --- a foreign layout: one `.npz`, its members our paths joined with "/" -------------------------
def _inspect_npz(path: str) -> CheckpointHeader:
    with np.load(path) as arrays:
        layers, d_model, d_ff = arrays["encoder/layers/mlp/wi/kernel"].shape
        shape = Shape(layers, 0, d_model=d_model, d_ff=d_ff, d_kv=8, num_heads=2)
        options = {"num_classes": arrays["head/bias"].shape[0]}
    return CheckpointHeader(shape, options, (pathlib.Path(path).name,))


def _read_npz(path: str, header: CheckpointHeader) -> Params:
    del header  # the arrays say everything
    params: Params = {}
    with np.load(path) as arrays:
        for name, array in arrays.items():
            node = params
            for key in name.split("/")[:-1]:
                node = node.setdefault(key, {})
            node[name.split("/")[-1]] = array
    return params


def _write_npz(path: str, shape: Shape, options: ConfigDict, params: Params) -> None:
    del options
    arrays = {}
    for array in (*_count_frame(shape, toy_modality().options).arrays,
                  *_count_bound(shape, toy_modality().options).arrays):
        node = params
        for key in array.path:
            node = node[key]
        arrays["/".join(array.path)] = np.asarray(node)
    with open(path, "wb") as file:  # a file, because `savez` adds an ending to a name
        np.savez(file, **arrays)


# --- the architecture: a stack of residual MLP layers --------------------------------------------
def mlp_stack(shape: Shape, options: StackOptions) -> Stack:
    """Returns a stack of `x + dropout(relu(x wi + bias) wo)` layers without a final norm."""
    count = functools.partial(_count_stack, shape)
    return Stack(
        init=lambda key: _init_arrays(count().arrays, key),
        apply=functools.partial(_apply_stack, options),
        init_cache=lambda params, batch_size, context, context_mask: None,
        count=count,
        output_length=LENGTH,
    )


def _count_stack(shape: Shape) -> Costs:
    layers, d_model, d_ff = shape.num_encoder_layers, shape.d_model, shape.d_ff
    return Costs(
        arrays=(
            ParamArray(("layers", "mlp", "wi", "kernel"), (layers, d_model, d_ff),
                       ("layers", "embed", "mlp"), "mlp"),
            ParamArray(("layers", "mlp", "wi", "bias"), (layers, d_ff), ("layers", "mlp"), "mlp"),
            ParamArray(("layers", "mlp", "wo", "kernel"), (layers, d_ff, d_model),
                       ("layers", "mlp", "embed"), "mlp"),
        ),
        flops=(FlopTerm("mlp", "weight", 4.0 * layers * LENGTH * d_model * d_ff),),
        activation_floats=float(layers * LENGTH * (d_model + d_ff)),
    )


def _count_bound(shape: Shape, options: ConfigDict) -> Costs:
    costs = _count_stack(shape)
    arrays = tuple(dataclasses.replace(a, path=("encoder", *a.path),
                                       component=f"encoder/{a.component}") for a in costs.arrays)
    flops = tuple(dataclasses.replace(f, component=f"encoder/{f.component}") for f in costs.flops)
    return _count_frame(shape, options) + Costs(arrays, flops, costs.activation_floats)


def _init_arrays(arrays: Sequence[ParamArray], key: Key) -> dict[str, Any]:
    """Kernels normal with variance 1 / fan-in, biases 0, as a nested dict."""
    import jax
    import jax.numpy as jnp

    tree: dict[str, Any] = {}
    for i, array in enumerate(arrays):
        node = tree
        for name in array.path[:-1]:
            node = node.setdefault(name, {})
        if array.path[-1] == "bias":
            node["bias"] = jnp.zeros(array.shape, jnp.float32)
        else:
            scale = 1.0 / math.sqrt(array.shape[-2])
            node[array.path[-1]] = scale * jax.random.normal(jax.random.fold_in(key, i),
                                                             array.shape, jnp.float32)
    return tree


def _apply_stack(
    options: StackOptions, params: Params, x: Any, *, mask: Any = None, positions: Any = None,
    context: Any = None, context_mask: Any = None, cache: Any = None, key: Key = None,
    train: bool = False,
) -> StackOutput:
    import jax
    import jax.numpy as jnp

    layers = params["layers"]["mlp"]
    num_layers = layers["wi"]["bias"].shape[0]
    rate = options.dropout_rate if train else 0.0

    def body(x: Any, layer: Any) -> tuple[Any, None]:
        weights, i = layer
        # [batch, length, d_model] -> [batch, length, d_ff] -> [batch, length, d_model]
        hidden = jax.nn.relu(x @ weights["wi"]["kernel"] + weights["wi"]["bias"])
        y = hidden @ weights["wo"]["kernel"]
        if rate:
            keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1.0 - rate, y.shape)
            y = jnp.where(keep, y / (1.0 - rate), 0.0)
        return x + y.astype(x.dtype), None

    x = x.astype(options.compute_dtype)
    step: Callable[..., Any] = body if options.remat == "none" else jax.checkpoint(body)
    layers = jax.tree.map(lambda p: p.astype(x.dtype), layers)
    x, _ = jax.lax.scan(step, x, (layers, jnp.arange(num_layers)),
                        unroll=1 if options.scan else num_layers)
    return StackOutput(x, mask, cache, jnp.float32(0.0))
