"""Schedules by their formulas; stacked params are updated as plain Optax updates unstacked ones."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepnarrow.assemble import count_costs
from deepnarrow.errors import InputError
from deepnarrow.optim import is_kernel, make_optimizer, make_schedule
from deepnarrow.plugins import registry
from deepnarrow.protocol import ENDS_AT_ZERO, OptimizerConfig, Schedule

TOTAL = 100
SCHEDULES = get_args(Schedule)
ADAFACTOR = OptimizerConfig("adafactor", 0.01, "inverse_sqrt", warmup_steps=2)
ADAMW = OptimizerConfig("adamw", 0.01, "cosine", warmup_steps=2, weight_decay=0.1)

# Two stacks of different depth and arrays outside both; kernels are large enough to be factored.
ARRAYS = {
    ("embedding",): ((300, 160), ("vocab", "embed")),
    ("encoder", "layers", "query"): ((3, 160, 4, 40), ("layers", "embed", "heads", "kv")),
    ("encoder", "layers", "out"): ((3, 4, 40, 160), ("layers", "heads", "kv", "embed")),
    ("encoder", "layers", "bias"): ((3, 4, 40), ("layers", "heads", "kv")),
    ("encoder", "layers", "norm"): ((3, 160), ("layers", "embed")),
    ("encoder", "layers", "gate"): ((3,), ("layers",)),
    ("encoder", "final_norm"): ((160,), ("embed",)),
    ("decoder", "layers", "wi"): ((2, 160, 200), ("layers", "embed", "mlp")),
}


def timescale(schedule):
    """Short enough to show within the tests' steps."""
    return {"timescale": 3} if schedule == "rsqrt" else {}


KERNELS = ("query", "out", "wi")


def nested(values):
    tree = {}
    for path, value in values.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


AXES = nested({path: axes for path, (_, axes) in ARRAYS.items()})


def draw(seed):
    """Arrays whose layers differ a hundredfold in scale, so that coupling them shows."""
    rng = np.random.default_rng(seed)

    def one(shape, axes):
        scale = np.logspace(-2, 0, shape[0]) if axes[0] == "layers" else np.ones(shape[0])
        value = rng.normal(size=shape) * scale.reshape(-1, *[1] * (len(shape) - 1))
        return jnp.asarray(value, jnp.float32)

    return nested({path: one(*spec) for path, spec in ARRAYS.items()})


def unstack(tree):
    """The arrays the unscanned model would have: one a layer, attention kernels as matrices."""
    arrays = {}
    for path, (shape, axes) in ARRAYS.items():
        value = tree
        for name in path:
            value = value[name]
        layers = list(value) if axes[0] == "layers" else [value]
        sizes = shape[1:] if axes[0] == "layers" else shape
        names = axes[1:] if axes[0] == "layers" else axes
        if "heads" in names:
            first = names.index("heads")
            sizes = (*sizes[:first], sizes[first] * sizes[first + 1], *sizes[first + 2 :])
        for i, layer in enumerate(layers):
            arrays["/".join(path) + f"/{i}"] = layer.reshape(sizes)
    return arrays


def plain(config):
    """The same optimiser written with Optax alone, for params that are not stacked."""
    schedule = make_schedule(config, TOTAL)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adafactor":
        parts.append(optax.adafactor(schedule, min_dim_size_to_factor=128, decay_rate=0.8,
                                     clipping_threshold=1.0, momentum=None, eps=1e-30))
    else:
        parts.append(optax.adamw(  # its decay is multiplied by the learning rate, ours is not
            schedule, b1=config.b1, b2=config.b2,
            weight_decay=config.weight_decay / config.learning_rate,
            mask=lambda params: {p: p.split("/")[-2] in KERNELS for p in params}))
    return optax.chain(*parts)


def run(optimizer, params, gradients):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in gradients:
        params, state = step(params, state, grads)
    return params


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("config", [ADAFACTOR, ADAMW], ids=lambda c: c.name)
def test_stacked_equals_unstacked(config, clip_norm, schedule):
    config = dataclasses.replace(config, clip_norm=clip_norm, schedule=schedule,
                                 **timescale(schedule))
    steps = 5
    params, gradients = draw(0), [draw(i + 1) for i in range(steps)]
    ours = unstack(run(make_optimizer(config, TOTAL, AXES), params, gradients))
    theirs = run(plain(config), unstack(params), [unstack(g) for g in gradients])
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, rtol=5e-7, atol=1e-7, err_msg=path)


def test_plain_optax_on_stacked_arrays_couples_the_layers():
    params, grads = draw(0), [draw(1)]
    coupled = unstack(run(plain(ADAFACTOR), params, grads))
    ours = unstack(run(make_optimizer(ADAFACTOR, TOTAL, AXES), params, grads))
    start = unstack(params)
    worst = max(
        float(jnp.abs(coupled[p] - ours[p]).max() / jnp.abs(ours[p] - start[p]).max())
        for p in ours if "layers" in p)
    assert worst > 0.3


def test_adafactor_factors_attention_kernels_as_matrices():
    state = make_optimizer(ADAFACTOR, TOTAL, AXES).init(draw(0))
    assert state.keys() == {"unstacked", "layers_2", "layers_3"}
    factored = state["layers_3"][0]
    query = "encoder/layers/query"
    assert factored.v_row[query].shape == (3, 160)
    assert factored.v_col[query].shape == (3, 160)
    assert factored.v[query].shape == (3, 1)
    assert factored.v["encoder/layers/norm"].shape == (3, 160)
    assert factored.count.shape == ()
    embedding = state["unstacked"][0]
    assert {embedding.v_row["embedding"].shape, embedding.v_col["embedding"].shape} == {
        (300,), (160,)}


def test_adafactor_first_update_by_hand():
    """One small matrix, one step: decay is 1 - 1^-0.8 = 0, so v = g^2 and the update is sign(g)."""
    params = {"w": jnp.array([[3.0, 4.0], [0.0, 0.0]])}
    grads = {"w": jnp.array([[1.0, -2.0], [0.5, 8.0]])}
    optimizer = make_optimizer(ADAFACTOR, TOTAL, {"w": ("embed", "mlp")})
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # RMS(params) = sqrt(25 / 4) = 2.5; RMS(sign) = 1 is not clipped; learning rate 0.01.
    expected = -0.01 * 2.5 * np.sign(grads["w"])
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("learning_rate", [1e-6, 0.5])
def test_weight_decay_acts_on_kernels_only_and_without_the_learning_rate(learning_rate):
    config = OptimizerConfig("adamw", learning_rate, "constant", weight_decay=0.05)
    params = draw(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    after = unstack(run(make_optimizer(config, TOTAL, AXES), params, [zeros]))
    for path, before in unstack(params).items():
        decayed = path.split("/")[-2] in KERNELS
        np.testing.assert_allclose(after[path], before * (0.95 if decayed else 1.0), rtol=1e-6)


def test_clipping_is_over_all_arrays():
    config = OptimizerConfig("adamw", 1.0, "constant", clip_norm=1e-6, b1=0.0, b2=0.0)
    params, grads = draw(0), draw(1)
    optimizer = make_optimizer(config, TOTAL, AXES)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    moments = [m for group in state[1].values() for m in jax.tree.leaves(group[0].mu)]
    np.testing.assert_allclose(optax.tree.norm(moments), 1e-6, rtol=1e-5)


def test_state_is_a_tree_of_arrays():
    for config in (ADAFACTOR, ADAMW):
        state = jax.eval_shape(make_optimizer(config, TOTAL, AXES).init, draw(0))
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))


def test_inverse_sqrt_is_t5s():
    config = OptimizerConfig("adafactor", 0.01, "inverse_sqrt", warmup_steps=10_000)
    schedule = make_schedule(config, 524_288)
    for step in (0, 1, 9_999, 10_000, 10_001, 65_536, 524_288):
        np.testing.assert_allclose(schedule(step), 1 / math.sqrt(max(step, 1e4)), rtol=1e-6)


def test_inverse_sqrt_without_warmup():
    schedule = make_schedule(OptimizerConfig("adafactor", 0.5, "inverse_sqrt"), 10)
    np.testing.assert_allclose([schedule(s) for s in (0, 1, 4)], [0.5, 0.5, 0.25], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine(warmup):
    schedule = make_schedule(OptimizerConfig("adamw", 0.2, "cosine", warmup_steps=warmup), 50)
    for step in range(51):
        if step < warmup:
            expected = 0.2 * step / warmup
        else:
            expected = 0.1 * (1 + math.cos(math.pi * (step - warmup) / (50 - warmup)))
        np.testing.assert_allclose(schedule(step), expected, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 4])
def test_constant(warmup):
    schedule = make_schedule(OptimizerConfig("adamw", 0.2, "constant", warmup_steps=warmup), 50)
    expected = [0.2 * min(1, step / warmup) if warmup else 0.2 for step in range(50)]
    np.testing.assert_allclose([schedule(s) for s in range(50)], expected, rtol=1e-6)


# Values of big_vision's create_learning_rate_schedule(100, base=0.2, ...) at commit 0127fb6.
BIG_VISION_STEPS = (0, 5, 9, 10, 11, 40, 79, 80, 81, 90, 99, 100)
BIG_VISION = {
    "rsqrt": (0.0, 0.10000000149011612, 0.17999999225139618, 0.20000000298023224,
              0.19674775004386902, 0.1414213627576828, 0.11009638011455536, 0.10954450815916061,
              0.10355082154273987, 0.05222329497337341, 0.005020964425057173, 0.0),
    "cosine": (0.0, 0.10000000149011612, 0.17999999225139618, 0.20000000298023224,
               0.1999390870332718, 0.15000000596046448, 0.025685518980026245, 0.023395538330078125,
               0.021198922768235207, 0.006030732300132513, 6.091594696044922e-05, 0.0),
    "linear": (0.0, 0.10000000149011612, 0.17999999225139618, 0.20000000298023224,
               0.19777777791023254, 0.13333332538604736, 0.046666670590639114, 0.04444444179534912,
               0.04222222790122032, 0.02222222089767456, 0.0022222280967980623, 0.0),
}


@pytest.mark.parametrize("name", BIG_VISION)
def test_schedules_are_big_visions(name):
    more = {"timescale": 30, "cooldown_steps": 20} if name == "rsqrt" else {}
    config = OptimizerConfig("adamw", 0.2, name, warmup_steps=10, **more)
    schedule = make_schedule(config, 100)
    np.testing.assert_allclose([schedule(s) for s in BIG_VISION_STEPS], BIG_VISION[name],
                               rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cooldown", [0, 20])
@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_peaks_and_ends_where_it_says(name, warmup, cooldown):
    cooldown = 0 if name in ENDS_AT_ZERO else cooldown
    config = OptimizerConfig("adamw", 0.2, name, warmup, cooldown, **timescale(name))
    schedule = make_schedule(config, TOTAL)
    values = np.array([schedule(step) for step in range(TOTAL + 1)])
    bare = np.array([make_schedule(dataclasses.replace(config, cooldown_steps=0), TOTAL)(step)
                     for step in range(TOTAL + 1)])
    constant_start = name == "inverse_sqrt" or not warmup
    np.testing.assert_allclose(values[0], 0.2 if constant_start else 0.0)
    np.testing.assert_allclose(values[warmup], 0.2, rtol=1e-6)
    assert (values <= 0.2 * (1 + 1e-6)).all()
    assert (np.diff(values[warmup:]) <= 1e-9).all()
    np.testing.assert_array_equal(values[:TOTAL - cooldown], bare[:TOTAL - cooldown])
    if cooldown or name in ENDS_AT_ZERO:
        np.testing.assert_allclose(values[-1], 0.0, atol=1e-8)
    for back in range(cooldown):  # linear to 0, on top
        np.testing.assert_allclose(values[TOTAL - back], bare[TOTAL - back] * back / cooldown,
                                   rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_the_schedule_scales_every_update(optimizer, name):
    """One parameter, constant gradients: both optimisers move by the rate, adafactor by RMS 1."""
    config = OptimizerConfig(optimizer, 0.2, name, 3, **timescale(name))
    schedule = make_schedule(config, 10)
    transformation = make_optimizer(config, 10, {"w": ("embed", "mlp")})
    params, grads = {"w": jnp.ones((2, 2))}, {"w": jnp.ones((2, 2))}
    state = transformation.init(params)
    for step in range(10):
        updates, state = transformation.update(grads, state, params)
        np.testing.assert_allclose(updates["w"], -float(schedule(step)), rtol=2e-5, atol=1e-8)


def test_adamw_is_big_visions():
    """Five updates as big_vision's optax.make gave them: scale_by_adam(b1=0.9, b2=0.95), lr=0.1,
    wd=0.02, grad_clip_norm=1, cosine with 2 steps of warm-up of 10 (commit 0127fb6)."""
    config = OptimizerConfig("adamw", 0.1, "cosine", warmup_steps=2, weight_decay=0.02,
                             clip_norm=1.0, b2=0.95)
    params = {"a": {"kernel": jnp.float32([[0.5, -1.0], [2.0, 0.25]]),
                    "bias": jnp.float32([0.5, -0.5])}, "position": jnp.float32([[1.0, -2.0]])}
    axes = {"a": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}, "position": (None, "embed")}
    gradients = [jax.tree.map(lambda p, i=i: jnp.float32(
        np.sin(np.arange(p.size).reshape(p.shape) + i + 1.0)), params) for i in range(5)]
    found = run(make_optimizer(config, 10, axes), params, gradients)
    expected = {"a": {"kernel": [[0.3136291801929474, -0.8946037888526917],
                                 [2.0762276649475098, 0.40729784965515137]],
                      "bias": [0.3395873010158539, -0.4606386721134186]},
                "position": [[0.8395872116088867, -1.9606388807296753]]}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.float32(b), rtol=1e-5),
                 found, expected, is_leaf=lambda x: isinstance(x, list))


@pytest.mark.parametrize("modality", ["text_t5", "vision_vit"])
def test_decay_acts_on_what_big_vision_calls_kernels(modality):
    """Its rule goes by the name, ours by the axes: on the shipped models they are the same."""
    found = registry().modality(modality)
    costs = count_costs(found, registry().architecture("transformer"), found.presets["tiny"].shape,
                        found.options)
    for array in costs.arrays:
        stacked = array.axes[:1] == ("layers",)
        axes, shape = (array.axes[1:], array.shape[1:]) if stacked else (array.axes, array.shape)
        joined = [(a, n) for i, (a, n) in enumerate(zip(axes, shape, strict=True))
                  if not (i and a == "kv" and axes[i - 1] == "heads")]
        kernel = is_kernel([a for a, _ in joined], [n for _, n in joined])
        assert kernel == (array.path[-1] == "kernel"), array.path


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(10, 10), (11, 10)])
def test_warmup_must_be_shorter_than_training(schedule, warmup, total):
    with pytest.raises(InputError, match=f"got {warmup}; expected < {total} steps"):
        make_optimizer(OptimizerConfig("adamw", 0.1, schedule, warmup_steps=warmup), total, {})


def test_no_steps():
    with pytest.raises(InputError, match="no steps to train"):
        make_schedule(ADAMW, 0)


@pytest.mark.parametrize("axes", [{}, {"w": ("embed",)}, {"v": ("embed", "mlp")}])
def test_axes_that_do_not_fit(axes):
    with pytest.raises(InputError, match="param_axes of w"):
        make_optimizer(ADAMW, TOTAL, axes).init({"w": jnp.zeros((2, 2))})
