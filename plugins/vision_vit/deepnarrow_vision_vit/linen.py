"""big_vision's Linen ViT as pure functions over its own params."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from deepnarrow.errors import InputError
from deepnarrow.modality import (
    Batch,
    Key,
    LossOutput,
    Model,
    ParamArray,
    Params,
    axes_tree,
)
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.big_vision import REMAT_POLICIES
from deepnarrow_vision_vit.model import HEAD_PATHS, sum_losses
from deepnarrow_vision_vit.options import WHERE

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# It makes these in the compute dtype; params are float32 here, and cast where they are used.
COMPUTE_DTYPE_PARAMS = ("pos_embedding", "cls")


def make_model(
    vit: Any, shape: Shape, options: ConfigDict, arrays: Sequence[ParamArray]
) -> Model:
    """Returns the model of `vit.Model`, the module `big_vision.models.vit`.

    Args:
      vit: the module.
      shape: its heads are `d_model / num_heads` wide.
      options: of the modality.
      arrays: its parameters, as `big_vision.count_costs` lists them.
    """
    patch, size = options.patch_size, options.image_size
    module = vit.Model(
        num_classes=options.num_classes or None, width=shape.d_model,
        depth=shape.num_encoder_layers, mlp_dim=shape.d_ff, num_heads=shape.num_heads,
        patch_size=(patch, patch), posemb=options.position, rep_size=options.rep_size,
        dropout=options.dropout_rate, pool_type=options.pool_type,
        head_zeroinit=options.head_zeroinit, scan=options.scan,
        remat_policy=REMAT_POLICIES[options.remat], dtype_mm=options.compute_dtype)

    def init(key: Key) -> Params:
        image = jnp.zeros((1, size, size, options.channels))
        params = module.init(key, image)["params"]
        return jax.tree.map(lambda array: array.astype(jnp.float32), params)

    def apply(params: Params, image: Any, key: Key | None, train: bool) -> dict[str, Any]:
        cast = {name: params[name].astype(options.compute_dtype)
                for name in COMPUTE_DTYPE_PARAMS if name in params}
        train = train and key is not None
        rngs = {"dropout": key} if train else None
        _, out = module.apply({"params": {**params, **cast}}, image, train=train, rngs=rngs)
        return out

    def logits(params: Params, batch: Batch, key: Key | None, train: bool) -> Any:
        if not options.num_classes:
            raise InputError(WHERE, "a model without a head has features only",
                             got="num_classes 0", hint="set num_classes")
        return apply(params, batch["image"], key, train)["logits"]

    def loss(params: Params, batch: Batch, key: Key | None, *, train: bool) -> LossOutput:
        return sum_losses(logits(params, batch, key, train), batch, jnp.zeros(()), options)

    return Model(
        init=init, loss=loss, param_axes=axes_tree(arrays),
        features=lambda params, batch: apply(params, batch["image"], None, False)["pre_logits"],
        predict=lambda params, batch: logits(params, batch, None, False),
        head_paths=HEAD_PATHS if options.num_classes else (),
    )
