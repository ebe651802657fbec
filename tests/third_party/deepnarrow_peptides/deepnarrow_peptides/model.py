"""An encoder between a table of residues and a head: masked residues, or classes of a peptide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from deepnarrow.modality import (
    EXAMPLE_MASK,
    Batch,
    Key,
    LossOutput,
    Model,
    ParamArray,
    Params,
    Path,
    Stack,
    axes_tree,
)
from deepnarrow_peptides.plugin import VOCAB_SIZE

HEAD_PATHS: tuple[Path, ...] = (("head", "kernel"), ("head", "bias"))


def assemble(frame: Sequence[ParamArray], options: ConfigDict, stack: Stack) -> Model:
    """Returns the model. A batch holds `inputs` [batch, length], and `targets` or `label`."""
    def init(key: Key) -> Params:
        table_key, head_key, stack_key = jax.random.split(key, 3)
        sizes = {array.path: array.shape for array in frame}
        return {"embedding": jax.random.normal(table_key, sizes["embedding",]),
                "head": init_head(head_key, *sizes["head", "kernel"]),
                "encoder": stack.init(stack_key)}

    def encode(
        params: Params, batch: Batch, key: Key | None, train: bool
    ) -> tuple[Float[Array, "batch length d_model"], Float[Array, "batch length"], Array]:
        mask = (batch["inputs"] != 0).astype(jnp.float32)
        x = params["embedding"][batch["inputs"]]  # [batch, length] -> [batch, length, d_model]
        out = stack.apply(params["encoder"], x, mask=mask, key=key, train=train)
        return out.x.astype(jnp.float32), mask, out.aux_loss

    def features(params: Params, batch: Batch) -> Float[Array, "batch d_model"]:
        x, mask, _ = encode(params, batch, None, False)
        return pool(x, mask)

    def predict(params: Params, batch: Batch) -> Array:
        x, mask, _ = encode(params, batch, None, False)
        return apply_head(params, pool(x, mask) if options.num_classes else x)

    def loss(params: Params, batch: Batch, key: Key | None, *, train: bool) -> LossOutput:
        x, mask, aux_loss = encode(params, batch, key, train)
        if options.num_classes:
            x, targets = pool(x, mask), batch["label"]
            weights = jnp.ones(targets.shape)
        else:
            targets = batch["targets"]
            weights = (targets != 0).astype(jnp.float32)
        logits = apply_head(params, x)
        if EXAMPLE_MASK in batch:
            # [batch] -> [batch, 1] beside [batch, length]; [batch] stays
            weights *= batch[EXAMPLE_MASK].reshape(-1, *(1,) * (weights.ndim - 1))
        log_probs = jax.nn.log_softmax(logits)
        # [..., outputs] -> [...]
        nll = -jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
        right = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights)
        weight_sum = jnp.sum(weights)
        return LossOutput(jnp.sum(nll * weights), weight_sum, aux_loss,
                          {"accuracy": (right, weight_sum)})

    return Model(init=init, loss=loss, features=features, predict=predict,
                 param_axes={**axes_tree(frame), "encoder": axes_tree(stack.count().arrays)},
                 head_paths=HEAD_PATHS)


def adapt(
    params: Params, source_options: ConfigDict, target_options: ConfigDict, key: Key
) -> tuple[Params, Sequence[Path]]:
    """A new head where the number of outputs changes; all else stays."""
    if source_options.num_classes == target_options.num_classes:
        return params, ()
    d_model = params["embedding"].shape[1]
    return {**params, "head": init_head(key, d_model, target_options.num_classes or VOCAB_SIZE)
            }, HEAD_PATHS


def init_head(key: Key, d_model: int, outputs: int) -> Params:
    """A kernel of variance 1 / d_model and a bias of zeros."""
    kernel = jax.random.normal(key, (d_model, outputs)) / math.sqrt(d_model)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def apply_head(params: Params, x: Float[Array, "... d_model"]) -> Float[Array, "... outputs"]:
    """Logits, float32."""
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def pool(
    x: Float[Array, "batch length d_model"], mask: Float[Array, "batch length"]
) -> Float[Array, "batch d_model"]:
    """The mean over real positions."""
    total = jnp.sum(x * mask[..., None], axis=1)  # [batch, length, d_model] -> [batch, d_model]
    return total / jnp.maximum(jnp.sum(mask, axis=1), 1.0)[:, None]
