"""Running: the compiled step, devices that share it, a run that goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepnarrow.checkpoint import Checkpointer
from deepnarrow.data import TrainStream
from deepnarrow.mesh import MeshShape
from deepnarrow.modality import LossOutput, Model
from deepnarrow.protocol import OptimizerConfig, RunOptions
from deepnarrow.sharding import Layout, make_layout, place, put_batch, traced_in
from deepnarrow.step import Program, StepArgs, TrainState, make_program, train_step
from deepnarrow.testing.subject import BATCH_SIZE, RTOL, Subject, expect, leaves_by_path, name_of
from deepnarrow.train import train

ADAMW = OptimizerConfig("adamw", 1e-3, "constant")
STEPS, HALF = 4, 2
# Of a gradient's norm: a ReLU that rounding lets open moves a small model's by some 1e-4 of it.
KINK = 1e-3
FAKE_DEVICES = 4
# Mesh -> rules, for as many devices as there are; one device has none of them.
MESHES = ((MeshShape(data=2, fsdp=2), "fsdp"), (MeshShape(fsdp=2, tensor=2), "fsdp+tensor"))


def fake_devices() -> None:
    """Makes four devices of the CPU, for the checks of sharding; call it before JAX is used.

    Where JAX has been used already nothing changes, and what needs several devices is left out.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", FAKE_DEVICES)


def check_step_compiles_once(subject: Subject) -> None:
    """A step is compiled once: what it returns has the types of what it took."""
    calls = []

    def loss(*args: Any, **kwargs: Any) -> LossOutput:
        calls.append(1)  # a call while training is a trace, for the step is compiled
        return subject.model.loss(*args, **kwargs)

    program = make_program(dataclasses.replace(subject.model, loss=loss), ADAMW, STEPS)
    state, traced = program.init(np.int32(0)), []
    with TrainStream(subject.upstream.train, seed=0, batch_size=BATCH_SIZE) as stream:
        for _ in range(3):
            state, _ = program.step(state, next(stream), program.args(0))
            traced.append(len(calls))
    expect(traced[0] == traced[-1], "the second step is compiled anew; init must return strongly "
           "typed float32 (jnp.full(shape, x, jnp.float32)), and load the same types every time")


def check_arrangements_agree(subject: Subject) -> None:
    """Gradients are the same in micro-batches, and split over devices where there are several."""
    alone, others = _gradients(subject), {}
    if not subject.architecture.aux_loss:
        others["in two micro-batches"] = _gradients(subject, micro_batches=2)
    for mesh, rules in MESHES:
        if mesh.size <= jax.device_count():
            others[f"on the mesh {mesh}"] = _gradients(subject, make_layout(mesh, rules))
    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in alone.values()))
    for name, gradients in others.items():
        for path, value in gradients.items():
            size, off = np.linalg.norm(alone[path]), np.linalg.norm(value - alone[path])
            expect(bool(off <= KINK * size + RTOL * whole),
                   f"{name} the gradient of {name_of(path)} is another one while training, by "
                   f"{off:.2g} where its norm is {size:.2g}; let an example's loss depend on no "
                   "other example (no statistics of the batch), return sums, and draw nothing at "
                   "random where dropout_rate is 0 (look for dropout that does not use `key`)")


def check_training_resumes(subject: Subject) -> None:
    """A run that is stopped, saved and gone on with ends with the bits of an unbroken one."""
    go = functools.partial(train, source=subject.upstream.train, seed=0, batch_size=BATCH_SIZE,
                           run=RunOptions(log_every=STEPS, checkpoint_every=HALF))
    asked = iter([False] * HALF + [True])
    with tempfile.TemporaryDirectory() as folder:
        first = _program(subject.model)
        unbroken = leaves_by_path(go(first).state.params)
        with Checkpointer(folder) as checkpointer:
            go(first, checkpointer=checkpointer, should_stop=lambda: next(asked))
        with Checkpointer(folder) as checkpointer:
            resumed = go(_program(subject.model), checkpointer=checkpointer)
    for path, value in leaves_by_path(resumed.state.params).items():
        expect(np.array_equal(value, unbroken[path]), f"{name_of(path)} ends with other bits after "
               "an interruption; draw random numbers from the key only, and keep no state outside "
               "of params")


def _program(model: Model) -> Program:
    """A program of its own, as another process would have it."""
    return make_program(dataclasses.replace(
        model, loss=lambda *args, **kwargs: model.loss(*args, **kwargs)), ADAMW, STEPS)


def _gradients(
    subject: Subject, layout: Layout | None = None, micro_batches: int = 1
) -> dict[tuple[str, ...], np.ndarray]:
    """The gradients of one training step by path."""
    import optax

    model, params, batch = subject.model, subject.params, subject.batch
    optimizer = optax.trace(decay=0.0)  # its state is the gradient
    step = functools.partial(
        train_step, model=model, ema_decay=0.0, micro_batches=micro_batches,
        optimizer=lambda *_: optimizer,
        trained=jax.tree.map(lambda _: True, params))
    if layout is not None:
        step = traced_in(layout, step)
        params = jax.device_put(params, place(model.param_axes, params, layout)[0])
        batch = put_batch(layout, {**batch})
    state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.bool_(True), None)
    args = StepArgs(np.int32(0), np.float32(1.0), np.int32(1))
    found, _ = jax.jit(step)(state, batch, args)
    return {path: np.asarray(leaf) for path, leaf in leaves_by_path(
        found.opt_state.trace).items()}
