"""A stack of equal layers: parameters on a leading `layers` axis, applied by a scan or unrolled.

The loop's body is traced once, so that time to trace and to compile does not depend on depth. A
stack can also be unrolled with the same parameters: XLA then sees every layer, which its cost
analysis needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from deepnarrow.modality import Key, Params

MakeModule = Callable[[nnx.Rngs], nnx.Module]
# step(layer, carry, item) -> (carry, output)
Step = Callable[[Any, Any, Any], tuple[Any, Any]]
Remat = Literal["none", "full", "dots"]


def init_module(make: MakeModule, key: Key) -> Params:
    """Makes a module and returns its parameters as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key)), nnx.Param))


def bind_module(make: MakeModule, params: Params) -> Any:
    """Returns the module with `params` in it; nothing is drawn."""
    return nnx.merge(_graphdef(make), params)


def bind_layers(make: MakeModule, params: Params) -> list[Any]:
    """Returns the layers one by one, in order; `params` as `init_layers` returns them."""
    graphdef = _graphdef(make)
    return [nnx.merge(graphdef, layer) for layer in _unstack(params)]


def init_layers(make: MakeModule, num_layers: int, key: Key) -> Params:
    """Parameters of `num_layers` independent layers, every array with a leading `layers` axis."""
    keys = jax.random.split(key, num_layers)
    return jax.vmap(lambda layer_key: init_module(make, layer_key))(keys)


def apply_layers(
    make: MakeModule,
    params: Params,
    carry: Any,
    items: Any,
    step: Step,
    *,
    scan: bool,
    remat: Remat = "none",
) -> tuple[Any, Any]:
    """Runs `carry, output = step(layer, carry, item)` through the layers in order.

    Args:
      make: makes one layer.
      params: as `init_layers` returns them.
      carry: what goes from layer to layer.
      items: a pytree whose arrays have a leading `layers` axis: what each layer alone gets.
      step: applies one layer.
      scan: loop in XLA, or unroll; the results are equal.
      remat: what the backward pass computes again: nothing, everything inside a layer, or
        everything but matrix products with parameters (`dots`).

    Returns:
      The last carry, and the outputs with a leading `layers` axis.
    """
    graphdef = _graphdef(make)

    def body(carry: Any, layer: tuple[Params, Any]) -> tuple[Any, Any]:
        layer_params, item = layer
        return step(nnx.merge(graphdef, layer_params), carry, item)

    # A scan keeps XLA from undoing the recomputation; unrolled code needs JAX to prevent it.
    body = _rematerialise(body, remat, prevent_cse=not scan)
    if scan:
        return jax.lax.scan(body, carry, (params, items))
    outputs = []
    for layer in _unstack((params, items)):
        carry, output = body(carry, layer)
        outputs.append(output)
    return carry, jax.tree.map(lambda *arrays: jnp.stack(arrays), *outputs)


def layer_keys(key: Key | None, num_layers: int, per_layer: int) -> Key | None:
    """Keys `[num_layers, per_layer]`, the same ones however the stack is applied; None for None.

    All are drawn at once, outside the loop over layers.
    """
    if key is None:
        return None
    keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.arange(num_layers))
    return jax.vmap(lambda layer_key: jax.random.split(layer_key, per_layer))(keys)


def _graphdef(make: MakeModule) -> nnx.GraphDef[Any]:
    return nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(params=0))))


def _rematerialise(body: Callable[..., Any], remat: Remat, prevent_cse: bool) -> Callable[..., Any]:
    if remat == "none":
        return body
    policy = (jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots"
              else jax.checkpoint_policies.nothing_saveable)
    return jax.checkpoint(body, policy=policy, prevent_cse=prevent_cse)


def _unstack(tree: Any) -> list[Any]:
    """Splits every array along its leading axis: a list of trees, one a layer."""
    leaves, treedef = jax.tree.flatten(tree)
    # `unstack` and not indexing: its transpose is one `stack`, while the gradient of each index
    # would be an array as large as all layers together.
    return [treedef.unflatten(layer) for layer in zip(*map(jnp.unstack, leaves), strict=True)]
