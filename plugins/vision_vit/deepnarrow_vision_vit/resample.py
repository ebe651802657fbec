"""Learned position embeddings for another grid of patches. No JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from deepnarrow.modality import Params
from deepnarrow_vision_vit.options import default_options, grid_size

ADJUSTABLE = frozenset({"image_size"})  # options that positions can be made to fit


def resample_position(
    embedding: Any, grid: int
) -> Float[np.ndarray, "1 new_length d_model"]:
    """Resamples position embeddings [1, old_length, d_model] linearly to `grid` x `grid` patches.

    Corners stay on corners, as in big_vision's `resample_posemb`.
    """
    import scipy.ndimage

    old = round(embedding.shape[1] ** 0.5)
    table = np.asarray(embedding, np.float32)
    if old == grid:
        return table
    # [1, old * old, d_model] -> [old, old, d_model]
    table = table.reshape(old, old, -1)
    # [old, old, d_model] -> [grid, grid, d_model]
    table = np.asarray(scipy.ndimage.zoom(table, (grid / old, grid / old, 1), order=1))
    return table.reshape(1, grid**2, -1)  # [grid, grid, d_model] -> [1, grid * grid, d_model]


def resampled(params: Params, options: Mapping[str, Any]) -> Params:
    """Returns params whose learned positions, where there are any, fit `options`' image size."""
    if "position" not in params:
        return params
    model = default_options()
    model.update({name: options[name] for name in ("image_size", "patch_size")})
    grid = grid_size(model)  # names an image that patches do not divide
    return {**params, "position": {
        "embedding": resample_position(params["position"]["embedding"], grid)}}
