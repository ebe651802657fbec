"""T5: an encoder and a decoder between a shared embedding and its transpose.

Raffel et al. (JMLR 2020) as released for t5-efficient: the table is tied to the output projection,
whose input is scaled by d_model^-0.5; the decoder's input is the targets, shifted right behind a
padding token. Padding of the inputs is masked; padding of the targets follows all real targets, so
the causal mask hides it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from deepnarrow.layers.linear import dropout
from deepnarrow.modality import (
    EXAMPLE_MASK,
    Batch,
    Key,
    LossOutput,
    Model,
    Params,
    Stack,
    StackOutput,
    axes_tree,
)
from deepnarrow.shape import Shape
from deepnarrow.sharding import constrain, gathered
from deepnarrow_text_t5.frame import count_frame

# Candidates that share one projection of the encoder's output; each takes the memory of a decoder.
SCORED_TOGETHER = 16


def assemble(shape: Shape, options: ConfigDict, stacks: Mapping[str, Stack]) -> Model:
    """Returns the T5 of `shape` whose stacks `encoder` and `decoder` are given."""
    t5 = make_t5(shape, options, stacks)
    frame = count_frame(shape, options).arrays
    axes = axes_tree(frame)
    for role, stack in stacks.items():
        axes[role] = axes_tree(stack.count().arrays)
    return Model(init=t5.init, loss=t5.loss, features=t5.features, param_axes=axes,
                 predict=t5.predict, score=t5.score)


def make_t5(shape: Shape, options: ConfigDict, stacks: Mapping[str, Stack]) -> T5:
    """Returns the functions of that model, those that no contract names among them."""
    return T5(shape.d_model, options.vocab_size, options.target_length, options.dropout_rate,
              options.pad_id, options.eos_id, stacks["encoder"], stacks["decoder"])


class Encoded(NamedTuple):
    """The encoder's output `x` [batch, length, d_model], its `mask` [batch, length], aux loss."""

    x: Any
    mask: Any
    aux_loss: Any


class Decoding(NamedTuple):
    """The state of greedy decoding: `step` tokens of `tokens` are there; `cache` is the stack's."""

    step: Int[Array, ""]
    tokens: Int[Array, "batch length"]
    done: Bool[Array, " batch"]
    cache: Any


@dataclasses.dataclass(frozen=True)
class T5:
    """The functions of one model; `params` is {"embedding": ..., "encoder": ..., "decoder": ...}.

    A batch holds `inputs` [batch, input_length] and `targets` [batch, target_length], int32.
    """

    d_model: int
    vocab_size: int
    target_length: int
    dropout_rate: float
    pad_id: int
    eos_id: int
    encoder: Stack
    decoder: Stack

    def init(self, key: Key) -> Params:
        """Returns fresh parameters; the table is drawn from a standard normal."""
        table_key, encoder_key, decoder_key = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(table_key, (self.vocab_size, self.d_model)),
            "encoder": self.encoder.init(encoder_key),
            "decoder": self.decoder.init(decoder_key),
        }

    def loss(self, params: Params, batch: Batch, key: Key | None, *, train: bool) -> LossOutput:
        """Sums the negative log-likelihood over real target tokens: mean loss is nats a token."""
        targets = batch["targets"]
        logits, aux_loss = self.logits(params, batch, key, train=train)
        weights = self._weights(batch)
        nll = negative_log_likelihood(logits, targets)
        correct = (jnp.argmax(logits, axis=-1) == targets) * weights
        weight_sum = jnp.sum(weights)
        return LossOutput(jnp.sum(nll * weights), weight_sum, aux_loss,
                          {"accuracy": (jnp.sum(correct), weight_sum)})

    def score(
        self, params: Params, batch: Batch, candidates: Batch
    ) -> Float[Array, "batch candidates"]:
        """Returns the log-likelihoods of the candidates' `targets`, padding left out.

        `targets` is [batch, candidates, target_length]. The encoder runs once, and its keys and
        values are projected once for `SCORED_TOGETHER` candidates, over which `vmap` goes; logits,
        which are large, are those of one candidate at a time.
        """
        encoded = self.encode(params, batch["inputs"], None, train=False)

        @jax.custom_batching.sequential_vmap
        def likelihood(params: Params, x: jax.Array, targets: jax.Array) -> jax.Array:
            nll = negative_log_likelihood(self._project(params, x), targets)
            return -jnp.sum(nll * (targets != self.pad_id), axis=-1)

        def one(targets: Int[Array, "batch target_length"]) -> Float[Array, " batch"]:
            out = self._decode(params, encoded, targets, (None, None), train=False)
            return likelihood(params, out.x, targets)

        # [batch, candidates, target_length] -> [candidates, batch, target_length]
        targets = jnp.moveaxis(jnp.asarray(candidates["targets"]), 1, 0)
        return jax.lax.map(one, targets, batch_size=SCORED_TOGETHER).T  # -> [batch, candidates]

    def features(self, params: Params, batch: Batch) -> Float[Array, "batch d_model"]:
        """Returns the mean of the encoder's output over real positions, float32."""
        encoded = self.encode(params, batch["inputs"], None, train=False)
        mask = encoded.mask[..., None].astype(jnp.float32)  # [batch, length] -> [batch, length, 1]
        # [batch, length, d_model] -> [batch, d_model]
        total = jnp.sum(encoded.x.astype(jnp.float32) * mask, axis=1)
        return total / jnp.maximum(jnp.sum(mask, axis=1), 1.0)

    def predict(self, params: Params, batch: Batch) -> Int[Array, "batch target_length"]:
        """Decodes greedily; what follows EOS is padding. Stops when every sequence has ended."""
        encoded = self.encode(params, batch["inputs"], None, train=False)
        batch_size = encoded.x.shape[0]
        cache = self.decoder.init_cache(params["decoder"], batch_size, encoded.x, encoded.mask)
        start = Decoding(
            step=jnp.zeros((), jnp.int32),
            tokens=jnp.full((batch_size, self.target_length), self.pad_id, jnp.int32),
            # Rows that only fill up the last batch have nothing to decode.
            done=batch[EXAMPLE_MASK] == 0 if EXAMPLE_MASK in batch else jnp.zeros(batch_size, bool),
            cache=cache,
        )

        def going(state: Decoding) -> Bool[Array, ""]:
            return (state.step < self.target_length) & ~jnp.all(state.done)

        # Transposed once, here: as it lies it would make the product slower at every step.
        table = params["embedding"].astype(encoded.x.dtype).T  # -> [d_model, vocab]

        def extend(state: Decoding) -> Decoding:
            return self._extend(params, table, state)

        return jax.lax.while_loop(going, extend, start).tokens

    def logits(
        self, params: Params, batch: Batch, key: Key | None, *, train: bool
    ) -> tuple[Float[Array, "batch target_length vocab"], Float[Array, ""]]:
        """Returns float32 logits of every target token given those before it, and the aux loss."""
        encoder_key, *keys = _split(key if train else None, 3)
        encoded = self.encode(params, batch["inputs"], encoder_key, train=train)
        out = self._decode(params, encoded, batch["targets"], keys, train=train)
        return self._project(params, out.x), encoded.aux_loss + out.aux_loss

    def encode(
        self, params: Params, inputs: Int[Array, "batch input_length"], key: Key | None, *,
        train: bool,
    ) -> Encoded:
        """Applies the encoder to `inputs`, padding masked."""
        embed_key, encoder_key = _split(key if train else None, 2)
        mask = (inputs != self.pad_id).astype(jnp.int32)
        x = self._embed(params, inputs, embed_key)
        out = self.encoder.apply(params["encoder"], x, mask=mask, key=encoder_key, train=train)
        return Encoded(out.x, out.mask, out.aux_loss)

    def _decode(
        self, params: Params, encoded: Encoded, targets: Int[Array, "batch target_length"],
        keys: Sequence[Key | None], *, train: bool,
    ) -> StackOutput:
        """Applies the decoder to all positions, each of which sees the targets before it."""
        embed_key, decoder_key = keys
        x = self._embed(params, shift_right(targets, self.pad_id), embed_key)
        return self.decoder.apply(params["decoder"], x, context=encoded.x,
                                  context_mask=encoded.mask, key=decoder_key, train=train)

    def _embed(
        self, params: Params, tokens: Int[Array, "batch length"], key: Key | None
    ) -> Float[Array, "batch length d_model"]:
        table = gathered(params["embedding"], "vocab", "embed")
        x = table[tokens]  # [batch, length] -> [batch, length, d_model]
        return dropout(constrain(x, "batch", "length", "embed"), self.dropout_rate, key)

    def _project(
        self, params: Params, x: Float[Array, "batch length d_model"]
    ) -> Float[Array, "batch length vocab"]:
        table = gathered(params["embedding"].astype(x.dtype), "vocab", "embed")
        # [batch, length, d_model] -> [batch, length, vocab]
        logits = jnp.einsum("bld,vd->blv", x * self.d_model**-0.5, table,
                            preferred_element_type=jnp.float32)
        return constrain(logits, "batch", "length", "vocab")

    def _extend(
        self, params: Params, table: Float[Array, "d_model vocab"], state: Decoding
    ) -> Decoding:
        """Adds one token to every sequence that has not ended."""
        last = jnp.where(state.step == 0, self.pad_id, state.tokens[:, state.step - 1])
        x = self._embed(params, last[:, None], None)  # [batch] -> [batch, 1, d_model]
        out = self.decoder.apply(params["decoder"], x, cache=state.cache)
        # [batch, 1, d_model] -> [batch, vocab]
        logits = jnp.matmul(out.x[:, 0] * self.d_model**-0.5, table,
                            preferred_element_type=jnp.float32)
        best = jnp.argmax(logits, axis=-1)
        token = jnp.where(state.done, self.pad_id, best).astype(jnp.int32)
        return Decoding(state.step + 1, state.tokens.at[:, state.step].set(token),
                        state.done | (token == self.eos_id), out.cache)

    def _weights(self, batch: Batch) -> Float[Array, "batch length"]:
        weights = (batch["targets"] != self.pad_id).astype(jnp.float32)
        if EXAMPLE_MASK in batch:
            weights *= batch[EXAMPLE_MASK][:, None]
        return weights


def shift_right(
    targets: Int[Array, "batch length"], start: int
) -> Int[Array, "batch length"]:
    """Returns the decoder's input: `start`, then all targets but the last.

    >>> shift_right(jnp.array([[7, 8, 1]]), 0).tolist()
    [[0, 7, 8]]
    """
    return jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start)


@jax.custom_vjp
def negative_log_likelihood(
    logits: Float[Array, "batch length vocab"], targets: Int[Array, "batch length"]
) -> Float[Array, "batch length"]:
    """Returns -log softmax(logits)[targets].

    Its gradient is written by hand because the derived one holds a second and a third array of the
    logits' size: a scatter's zeros and the sum. This one is a single fused pass over the logits.
    """
    return _nll_forward(logits, targets)[0]


def _nll_forward(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
    log_z = jax.nn.logsumexp(logits, axis=-1)  # [batch, length, vocab] -> [batch, length]
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - chosen, (logits, targets, log_z)


def _nll_backward(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
    logits, targets, log_z = residuals
    probabilities = jnp.exp(logits - log_z[..., None])
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    return (probabilities - is_target) * cotangent[..., None], None


negative_log_likelihood.defvjp(_nll_forward, _nll_backward)


def _split(key: Key | None, count: int) -> tuple[Key | None, ...]:
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
