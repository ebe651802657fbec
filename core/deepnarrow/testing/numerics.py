"""Numerics: initialisation, loss, gradients, scale."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepnarrow.modality import EXAMPLE_MASK
from deepnarrow.testing.subject import RTOL, Subject, expect, leaves_by_path, name_of

STEPS, LEARNING_RATE = 100, 3e-3
# At initialisation features may grow with depth as a sum of independent residual branches does
# (square root of 4 layers: 2) and must not with width; beyond this a shape study compares scales.
DRIFT = 4.0


def check_init_follows_the_key(subject: Subject) -> None:
    """One key, one set of parameters; another key, another."""
    init = jax.jit(subject.model.init)
    again, other = init(jax.random.key(0)), init(jax.random.key(1))
    for path, leaf in leaves_by_path(subject.params).items():
        expect(leaf.dtype == jnp.float32,
               f"{name_of(path)} is {leaf.dtype}; parameters are float32")
        expect(np.array_equal(leaf, leaves_by_path(again)[path]),
               f"{name_of(path)} differs between two calls with one key; draw from the key only")
    expect(not all(np.array_equal(a, b) for a, b in zip(
        jax.tree.leaves(subject.params), jax.tree.leaves(other), strict=True)),
        "two keys give the same parameters; draw them from the key")


def check_loss_is_a_sum(subject: Subject) -> None:
    """The loss of a batch is the sum of its halves' losses, and so are its weights."""
    loss = jax.jit(functools.partial(subject.model.loss, train=False))
    half = len(subject.batch[EXAMPLE_MASK]) // 2
    whole = loss(subject.params, subject.batch, None)
    parts = [loss(subject.params, {k: v[part] for k, v in subject.batch.items()}, None)
             for part in (slice(None, half), slice(half, None))]
    for field in ("loss_sum", "weight_sum"):
        total = float(getattr(whole, field))
        found = sum(float(getattr(part, field)) for part in parts)
        expect(bool(np.isfinite(total)), f"{field} is {total} at initialisation")
        expect(bool(np.isclose(total, found, rtol=RTOL)), f"{field} of a batch is {total:.6g} and "
               f"its halves' together {found:.6g}; return sums over the examples, not means, let "
               "no example see another, and draw nothing at random where train is False")


def check_masked_examples_count_for_nothing(subject: Subject) -> None:
    """What has `example_mask` 0 changes neither loss nor weight nor metrics."""
    loss = jax.jit(functools.partial(subject.model.loss, train=False))
    half = len(subject.batch[EXAMPLE_MASK]) // 2
    mask = np.where(np.arange(2 * half) < half, 1, 0).astype(np.float32)
    masked = loss(subject.params, {**subject.batch, EXAMPLE_MASK: mask}, None)
    alone = loss(subject.params, {k: v[:half] for k, v in subject.batch.items()}, None)
    for left, right in zip(jax.tree.leaves(masked), jax.tree.leaves(alone), strict=True):
        expect(bool(np.allclose(left, right, rtol=RTOL, atol=1e-6)),
               f"with half the examples masked {float(left):.6g}, of the other half alone "
               f"{float(right):.6g}; multiply every weight by batch['{EXAMPLE_MASK}'], let no "
               "example see another, and draw nothing at random where train is False")


def check_dropout_follows_the_key(subject: Subject) -> None:
    """With dropout one key gives one training loss, and another key another."""
    model = subject.model_of("tiny", dropout_rate=0.5)

    def loss(key: Any, train: bool = True) -> float:
        run = jax.jit(lambda params, batch, key: model.loss(params, batch, key, train=train))
        return float(run(subject.params, subject.batch, key).loss_sum)

    one, again, other = (loss(jax.random.key(seed)) for seed in (0, 0, 1))
    expect(one == again, f"with dropout the training loss is {one:.6g} and, called again with the "
           f"same key, {again:.6g}; draw random numbers from `key` only")
    expect(one != other or one == loss(None, train=False), "with dropout the training loss is the "
           f"same for two keys ({one:.6g}) and not that without dropout; draw dropout from `key`")


def check_every_parameter_learns(subject: Subject) -> None:
    """Upstream's loss has a gradient for every parameter."""
    def total(params: Any) -> Any:
        out = subject.model.loss(params, subject.batch, None, train=False)
        return out.loss_sum / out.weight_sum + out.aux_loss

    # A little away from the start, where a head of zeros would hide what is behind it.
    moved = jax.tree.map(lambda x: x + 0.01 * jnp.cos(jnp.arange(x.size).reshape(x.shape)),
                         subject.params)
    for path, gradient in leaves_by_path(jax.jit(jax.grad(total))(moved)).items():
        expect(bool(np.isfinite(gradient).all()), f"{name_of(path)} has no finite gradient")
        expect(bool(np.any(gradient)), f"{name_of(path)} has no gradient: nothing uses it; use it, "
               "or do not make it")


def check_it_learns(subject: Subject) -> None:
    """A hundred steps of Adam on one batch take a fifth off its loss."""
    import optax

    optimizer = optax.adam(LEARNING_RATE)
    batch = subject.batch

    def mean(params: Any) -> Any:
        out = subject.model.loss(params, batch, None, train=False)
        return out.loss_sum / out.weight_sum + out.aux_loss

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS))
    _, losses = run(subject.params)
    expect(bool(losses[-1] < 0.8 * losses[0]), f"the loss of one batch goes from "
           f"{float(losses[0]):.4g} to {float(losses[-1]):.4g} in {STEPS} steps of Adam; do the "
           "targets depend on the inputs, and the loss on the parameters?")


def check_scale_of_features(subject: Subject) -> None:
    """Features at initialisation keep their scale over width and depth (a coordinate check)."""
    sizes = {}
    d_model = subject.shape("tiny").shape.d_model
    for text in filter(subject.applies, ("tiny", f"tiny-dm{4 * d_model}", "tiny-nl*4")):
        model = subject.model_of(text)
        features = jax.jit(lambda key, model=model: model.features(
            model.init(key), subject.batch))(jax.random.key(0))
        sizes[text] = float(jnp.sqrt(jnp.mean(features**2)))
    if not np.isfinite(sizes["tiny"]):
        return  # there is no scale: check_features says so
    for text, size in sizes.items():
        expect(sizes["tiny"] / DRIFT < size < sizes["tiny"] * DRIFT,
               f"features of {text} have a root mean square of {size:.3g}, of tiny "
               f"{sizes['tiny']:.3g}; scale the initialisation by the fan-in, or normalise")
