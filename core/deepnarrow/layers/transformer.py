"""The general architecture `transformer`: what it accepts, what it costs, and the stack it makes.

Costs are closed forms in plain Python; JAX is imported when a stack is initialised or applied.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from deepnarrow.errors import InputError, NotApplicable, suggest
from deepnarrow.modality import (
    Architecture,
    Axes,
    Costs,
    FlopTerm,
    Key,
    ParamArray,
    Params,
    Path,
    Stack,
    StackOptions,
    StackOutput,
)
from deepnarrow.ops import CORE_OPS
from deepnarrow.shape import Shape

ROLES = ("encoder", "decoder")
_CHOICES = {
    "norm": ("rms", "layer"),
    "activation": ("relu", "gelu", "gelu_exact"),
    "init": ("t5", "xavier"),
    "compute_dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "dots"),
}


def make_stack(shape: Shape, role: str, length: int, options: StackOptions) -> Stack:
    """Returns the stack of `role`: pre-norm layers, then a final norm.

    Raises:
      NotApplicable: `shape` has no layers in this stack.
      InputError: an option that cannot be.
    """
    num_layers = _check(shape, role, length, options)

    def init(key: Key) -> Params:
        from deepnarrow.layers import block

        return block.init(shape, num_layers, options, key)

    def apply(
        params: Params, x: Any, *, mask: Any = None, positions: Any = None, context: Any = None,
        context_mask: Any = None, cache: Any = None, key: Key | None = None, train: bool = False,
    ) -> StackOutput:
        from deepnarrow.layers import block, decoding

        if cache is not None:
            _check_decoding(options, mask, positions, train)
            return decoding.apply(shape, options, params, x, cache)
        _check_call(options, context, key, train)
        return block.apply(
            shape, num_layers, options, params, x, mask=mask, positions=positions, context=context,
            context_mask=context_mask, key=key if train else None)

    def init_cache(params: Params, batch_size: int, context: Any, context_mask: Any) -> Any:
        from deepnarrow.layers import decoding

        _check_call(options, context, None, train=False)
        return decoding.init_cache(
            shape, length, options, params, batch_size, context, context_mask)

    return Stack(init=init, apply=apply, init_cache=init_cache, output_length=length,
                 count=lambda: count(shape, num_layers, length, options))


TRANSFORMER = Architecture(
    name="transformer",
    make_stack=make_stack,
    operators=frozenset(op.symbol for op in CORE_OPS),
    aux_loss=False,
)


# --- checks ---------------------------------------------------------------------------------------
def _check(shape: Shape, role: str, length: int, options: StackOptions) -> int:
    """Checks what `make_stack` was given and returns the stack's number of layers."""
    where = f"architecture 'transformer', {role} stack"
    if role not in ROLES:
        raise InputError("architecture 'transformer'", "unknown role", got=role,
                         expected=" or ".join(ROLES))
    num_layers = shape.num_encoder_layers if role == "encoder" else shape.num_decoder_layers
    if num_layers == 0:
        raise NotApplicable(where, "the stack has no layers", got=f"num_{role}_layers 0",
                            expected="at least 1")
    for name, allowed in _CHOICES.items():
        value = getattr(options, name)
        if value not in allowed:
            near = suggest(str(value), allowed)
            raise InputError(where, f"{name} is unknown", got=value, expected=" or ".join(allowed),
                             hint=f"did you mean {near!r}?" if near else None)
    for name, value in (("length", length), ("context_length", options.context_length)):
        if value is not None and value < 1:
            raise InputError(where, f"{name} is too small", got=value, expected="at least 1")
    if not 0.0 <= options.dropout_rate < 1.0:
        raise InputError(where, "dropout_rate is out of range", got=options.dropout_rate,
                         expected="0 <= dropout_rate < 1")
    if not 0.0 < options.norm_eps < math.inf:
        raise InputError(where, "norm_eps is out of range", got=options.norm_eps,
                         expected="a positive number")
    _check_relative(where, options)
    return num_layers


def _check_relative(where: str, options: StackOptions) -> None:
    buckets, distance = options.relative_buckets, options.relative_max_distance
    if buckets == 0:
        return
    directions = 1 if options.causal else 2
    if buckets < 2 * directions or buckets % directions:
        raise InputError(where, "relative_buckets is out of range", got=buckets,
                         expected="0, or at least 2" if options.causal
                         else "0, or an even number, at least 4")
    exact = buckets // directions // 2  # buckets of one distance each
    if distance <= exact:
        raise InputError(where, "relative_max_distance is too small", got=distance,
                         expected=f"more than {exact} (with {buckets} buckets)")


def _check_call(options: StackOptions, context: Any, key: Key | None, train: bool) -> None:
    """A modality's wiring, checked when JAX traces it."""
    if (context is None) != (options.context_length is None):
        raise ValueError("a stack takes a context exactly if it was made with a context_length")
    if train and options.dropout_rate > 0 and key is None:
        raise ValueError("training with dropout needs a key")


def _check_decoding(options: StackOptions, mask: Any, positions: Any, train: bool) -> None:
    if not options.causal:
        raise ValueError("only a causal stack can be applied one position at a time")
    if mask is not None or positions is not None or train:
        raise ValueError("with a cache there is no mask, no positions and no training")


# --- costs ----------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Attention:
    """Sizes of one layer's attention: `queries` positions look at `keys` positions."""

    component: str
    shape: Shape
    queries: int
    keys: int

    @property
    def query_heads(self) -> int:
        return 1 if self.shape.share_heads else self.shape.num_heads

    @property
    def key_heads(self) -> int:
        return 1 if self.shape.share_kv else self.shape.num_heads

    def flops(self) -> tuple[float, float]:
        """(projections, scores and weighted sums) of one layer and example, full maps."""
        s = self.shape
        outputs = self.queries * (self.query_heads + s.num_heads) + self.keys * 2 * self.key_heads
        projections = 2 * s.d_model * s.d_kv * outputs
        return projections, 2 * 2 * self.queries * self.keys * s.num_heads * s.d_kv

    def kept(self, remat: Literal["none", "dots", "full"]) -> int:
        """Floats of one layer and example that the backward pass needs.

        All of query, key, value, attention weights and attended values; with `dots` the outputs of
        the four projections.
        """
        s = self.shape
        if remat == "full":
            return 0
        if remat == "dots":
            heads = self.queries * self.query_heads + self.keys * 2 * self.key_heads
            return heads * s.d_kv + self.queries * s.d_model
        vectors = self.queries * 2 * s.num_heads + self.keys * 2 * self.key_heads
        return vectors * s.d_kv + s.num_heads * self.queries * self.keys


def count(shape: Shape, num_layers: int, length: int, options: StackOptions) -> Costs:
    """Costs of a stack of `num_layers` layers over `length` positions, in closed form.

    FLOPs are of one forward pass of one example: 2 a multiply-add, every matrix product once, whole
    attention maps also where the mask is causal. With L layers, N positions, M attended positions:
    projections `2 L d_model d_kv (N (query heads + num_heads) + 2 M key heads)` (query and out on
    N, key and value on M; "heads" is 1 where shared); scores and weighted sums
    `4 L N M num_heads d_kv`; MLP `4 L N d_model d_ff`.

    `activation_floats` is what the backward pass needs; without remat each norm's input and output;
    query, key, value, attention weights and attended values of each attention; and the MLP's hidden
    layer before and after the activation. With `dots` it is each layer's input and the outputs of
    its matrix products with parameters but the last, with `full` each layer's input. Once a stack
    the final norm's input and output come on top. Dropout's masks (booleans) and the map of the
    relative bias, one for all examples, are left out.
    """
    attentions = [_Attention("attention", shape, length, length)]
    if options.context_length is not None:
        attentions.append(_Attention("cross_attention", shape, length, options.context_length))
    flops: list[FlopTerm] = []
    for attention in attentions:
        weight, maps = attention.flops()
        flops += [FlopTerm(attention.component, "weight", float(num_layers * weight)),
                  FlopTerm(attention.component, "attention", float(num_layers * maps),
                           scores=float(num_layers * shape.num_heads
                                        * attention.queries * attention.keys),
                           activation_floats=float(num_layers * attention.kept(options.remat)))]
    mlp = 2 * 2 * length * shape.d_model * shape.d_ff
    hidden = {"none": 2 * shape.d_ff, "dots": shape.d_ff, "full": 0}[options.remat]
    flops.append(FlopTerm("mlp", "weight", float(num_layers * mlp),
                          activation_floats=float(num_layers * length * hidden)))
    # Of the layers, and of the final norm.
    vectors = num_layers * (2 * (len(attentions) + 1) if options.remat == "none" else 1) + 2
    flops.append(FlopTerm("norm", "weight", 0.0,
                          activation_floats=float(vectors * length * shape.d_model)))
    return Costs(arrays=_arrays(shape, num_layers, options), flops=tuple(flops))


def _arrays(shape: Shape, num_layers: int, options: StackOptions) -> tuple[ParamArray, ...]:
    """Every parameter of a stack: layers first, then what stands once."""
    layer: list[ParamArray] = []
    for name in ("attention", "cross_attention"):
        if name == "attention" or options.context_length is not None:
            layer += _norm_arrays(f"{name}_norm", shape, options)
            layer += _attention_arrays(name, shape, options)
    layer += _norm_arrays("mlp_norm", shape, options)
    embed, mlp = (shape.d_model, "embed"), (shape.d_ff, "mlp")
    layer += _projection_arrays(("mlp", "wi"), [embed], [mlp], options)
    layer += _projection_arrays(("mlp", "wo"), [mlp], [embed], options)
    stacked = [
        ParamArray(("layers", *array.path), (num_layers, *array.shape), ("layers", *array.axes),
                   array.component, array.active, array.positions)
        for array in layer
    ]
    ends = _norm_arrays("final_norm", shape, options)
    if options.relative_buckets:
        ends.append(ParamArray(("relative_bias", "embedding"),
                               (options.relative_buckets, shape.num_heads), ("buckets", "heads"),
                               "position"))
    return (*stacked, *ends)


def _norm_arrays(name: str, shape: Shape, options: StackOptions) -> list[ParamArray]:
    leaves = ("scale",) if options.norm == "rms" else ("scale", "bias")
    return [ParamArray((name, leaf), (shape.d_model,), ("embed",), "norm") for leaf in leaves]


def _attention_arrays(name: str, shape: Shape, options: StackOptions) -> list[ParamArray]:
    embed, heads, kv = (shape.d_model, "embed"), (shape.num_heads, "heads"), (shape.d_kv, "kv")
    shared = {"query": shape.share_heads, "key": shape.share_kv, "value": shape.share_kv}
    arrays: list[ParamArray] = []
    for part, one_head in shared.items():
        outputs = [kv] if one_head else [heads, kv]
        projections = _projection_arrays((name, part), [embed], outputs, options)
        if name == "cross_attention" and part != "query":  # they read the context
            projections = [dataclasses.replace(array, positions=options.context_length)
                           for array in projections]
        arrays += projections
    return arrays + _projection_arrays((name, "out"), [heads, kv], [embed], options)


def _projection_arrays(
    path: Path, inputs: list[tuple[int, str]], outputs: list[tuple[int, str]], options: StackOptions
) -> list[ParamArray]:
    def array(leaf: str, dims: list[tuple[int, str]]) -> ParamArray:
        sizes: tuple[int, ...] = tuple(size for size, _ in dims)
        axes: Axes = tuple(axis for _, axis in dims)
        return ParamArray((*path, leaf), sizes, axes, path[0])

    kernel = array("kernel", inputs + outputs)
    return [kernel, array("bias", outputs)] if options.use_bias else [kernel]
