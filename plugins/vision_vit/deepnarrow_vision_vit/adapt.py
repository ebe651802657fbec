"""A pre-trained ViT for another task: a new head, position embeddings for another grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from deepnarrow.errors import InputError
from deepnarrow.layers.stack import init_module
from deepnarrow.modality import Key, Params, Path
from deepnarrow_vision_vit.model import HEAD_PATHS, make_head
from deepnarrow_vision_vit.options import grid_size
from deepnarrow_vision_vit.resample import resample_position

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Options that decide the shapes of parameters which cannot be carried over to another value.
FIXED = ("patch_size", "channels", "pool_type", "position", "rep_size", "activation", "norm_eps")


def adapt(
    params: Params, source_options: ConfigDict, target_options: ConfigDict, key: Key
) -> tuple[Params, Sequence[Path]]:
    """Returns `params` for a model with `target_options`, and the paths that were drawn anew.

    The head is always new: even where both tasks have as many classes, they are other classes.
    Learned position embeddings are resampled where the grid differs.

    Args:
      params: of a model with `source_options`; left as they are.
      source_options: what it was trained with.
      target_options: what the other task needs.
      key: feeds the new head's initialiser.

    Raises:
      InputError: the models differ in more than head and image size.
    """
    for name in FIXED:
        if source_options[name] != target_options[name]:
            raise InputError("vision_vit transfer", f"a ViT keeps its {name}",
                             got=target_options[name], expected=source_options[name])
    adapted = {name: value for name, value in params.items() if name != "head"}
    if target_options.position == "learn":
        grid = grid_size(target_options)
        if "pos_embedding" in params:  # big_vision's own model
            adapted["pos_embedding"] = jnp.asarray(resample_position(params["pos_embedding"], grid))
        else:
            embedding = resample_position(params["position"]["embedding"], grid)
            adapted["position"] = {"embedding": jnp.asarray(embedding)}
    if not target_options.num_classes:
        return adapted, ()
    features = target_options.rep_size or params["embedding"]["bias"].shape[0]

    def make(rngs: nnx.Rngs) -> nnx.Module:
        head = make_head(features, target_options, rngs=rngs)
        assert head is not None  # there are classes
        return head

    adapted["head"] = init_module(make, key)
    return adapted, HEAD_PATHS
