"""The shared blocks and the `transformer` architecture, against closed forms and other code."""

import dataclasses
import functools
import itertools
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.layers.attention import Attention, attention_weights
from deepnarrow.layers.linear import dropout, hashed_bits
from deepnarrow.layers.norms import LayerNorm, RMSNorm
from deepnarrow.layers.relative import _look_up, _multiply, bucket_table
from deepnarrow.layers.stack import apply_layers, bind_module, init_layers, layer_keys
from deepnarrow.layers.transformer import TRANSFORMER, make_stack
from deepnarrow.modality import LOGICAL_AXES, StackOptions, axes_tree
from deepnarrow.shape import Shape

SHAPE = Shape(3, 2, d_model=12, d_ff=20, d_kv=5, num_heads=3)
T5 = StackOptions(norm="rms", activation="relu", use_bias=False, scale_attention=False, init="t5",
                  relative_buckets=8, relative_max_distance=16)
T5_DECODER = dataclasses.replace(T5, causal=True, context_length=7)
VIT = StackOptions()
LENGTH, BATCH = 6, 2
SETUPS = {"t5_encoder": ("encoder", T5), "t5_decoder": ("decoder", T5_DECODER),
          "vit": ("encoder", VIT)}


# XLA spends most of its time on optimising code that runs for a millisecond here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def inputs(role, options, shape=SHAPE):
    """The stack, params, and what goes in: padded at the end of one example."""
    stack = make_stack(shape, role, LENGTH, options)
    rng = np.random.default_rng(1)
    params = {}
    for array in stack.count().arrays:
        node = params
        for name in array.path[:-1]:
            node = node.setdefault(name, {})
        noise = 0.3 * rng.standard_normal(array.shape, np.float32)
        node[array.path[-1]] = jnp.asarray(noise + (array.path[-1] == "scale"))
    x = jnp.asarray(rng.standard_normal((BATCH, LENGTH, shape.d_model), np.float32))
    kwargs = {"mask": jnp.asarray(np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 2]]))}
    if options.context_length is not None:
        size = options.context_length
        kwargs["context"] = jnp.asarray(
            rng.standard_normal((BATCH, size, shape.d_model), np.float32))
        kwargs["context_mask"] = jnp.asarray(np.arange(size) < np.array([[size - 3], [size]]))
    return stack, params, x, kwargs


@functools.cache
def setup(name):
    """A stack of `SETUPS`: its compiled forward pass, params and inputs."""
    stack, params, x, kwargs = inputs(*SETUPS[name])
    return jit(lambda params, x, **kwargs: stack.apply(params, x, **kwargs).x), params, x, kwargs


def assert_close(actual, expected, tolerance):
    """Largest difference, relative to the largest value where that is above 1."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(b))))
        assert float(jnp.max(jnp.abs(a - b))) <= tolerance * scale


# --- counting -------------------------------------------------------------------------------------
def option_grid():
    grid = itertools.product(("rms", "layer"), (False, True), (None, 5), (0, 8))
    for index, (norm, use_bias, context_length, buckets) in enumerate(grid):
        yield StackOptions(norm=norm, use_bias=use_bias, context_length=context_length,
                           relative_buckets=buckets, init=("t5", "xavier")[index % 3 % 2],
                           causal=context_length is not None)


@pytest.mark.parametrize("share_heads", [False, True])
@pytest.mark.parametrize("share_kv", [False, True])
def test_counted_arrays_are_the_arrays_of_init(share_heads, share_kv):
    rng = np.random.default_rng(int(share_heads) + 2 * int(share_kv))
    for options in option_grid():
        sizes = [int(n) for n in rng.integers(1, 9, 6)]
        shape = Shape(*sizes, share_heads=share_heads, share_kv=share_kv)
        role = str(rng.choice(["encoder", "decoder"]))
        stack = make_stack(shape, role, 4, options)
        tree = jax.eval_shape(stack.init, jax.random.key(0))
        made = {tuple(k.key for k in path): (leaf.shape, leaf.dtype)
                for path, leaf in jax.tree.leaves_with_path(tree)}
        arrays = stack.count().arrays
        counted = {a.path: (a.shape, np.float32) for a in arrays}
        assert counted == made
        assert len(counted) == len(arrays)


@pytest.mark.parametrize("role_options", SETUPS.values(), ids=SETUPS)
def test_logical_axes_are_known_and_fit(role_options):
    role, options = role_options
    stack = make_stack(SHAPE, role, LENGTH, options)
    size = {"embed": SHAPE.d_model, "mlp": SHAPE.d_ff, "kv": SHAPE.d_kv, "heads": SHAPE.num_heads,
            "layers": 3 if role == "encoder" else 2, "buckets": options.relative_buckets}
    for array in stack.count().arrays:
        assert set(array.axes) <= LOGICAL_AXES
        assert array.shape == tuple(size[axis] for axis in array.axes)
        assert (array.axes[0] == "layers") == (array.path[0] == "layers")
    axes = axes_tree(stack.count().arrays)
    assert axes["layers"]["attention"]["out"]["kernel"] == ("layers", "heads", "kv", "embed")
    assert axes["layers"]["mlp_norm"]["scale"] == ("layers", "embed")


def test_parameters_of_known_shapes():
    # By hand. T5 base's encoder (d_model 768, d_ff 3072, 12 heads of 64): a layer has 4 x 768 x 768
    # + 2 x 768 x 3072 + 2 x 768, the stack another 768 and 32 x 12.
    base = Shape(12, 12, d_model=768, d_ff=3072, d_kv=64, num_heads=12)
    options = dataclasses.replace(T5, relative_buckets=32, relative_max_distance=128)
    total = sum(a.size for a in make_stack(base, "encoder", 512, options).count().arrays)
    assert total == 12 * (4 * 768 * 768 + 2 * 768 * 3072 + 2 * 768) + 768 + 32 * 12
    # The Transformer encoder of ViT-B: 12 layers of 7,087,872 and the final norm.
    total = sum(a.size for a in make_stack(base, "encoder", 197, VIT).count().arrays)
    assert total == 12 * 7_087_872 + 2 * 768


def xla_flops(stack, shape, length, options):
    params = jax.eval_shape(stack.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, length, shape.d_model), jnp.float32)
    kwargs = {}
    if options.context_length is not None:
        kwargs["context"] = jax.ShapeDtypeStruct((1, options.context_length, shape.d_model),
                                                 jnp.float32)
    run = jit(lambda params, x, kwargs: stack.apply(params, x, **kwargs).x)
    return run.lower(params, x, kwargs).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("name", "layers", "share"), [
    *((name, layers, (False, False)) for name in SETUPS for layers in (1, 2)),
    ("t5_decoder", 1, (True, False)), ("t5_decoder", 1, (False, True)), ("vit", 2, (True, True)),
])
def test_flops_are_those_of_xla(name, layers, share):
    role, options = SETUPS[name]
    shape = Shape(layers, layers, d_model=256, d_ff=512, d_kv=160, num_heads=2,
                  share_heads=share[0], share_kv=share[1])
    options = dataclasses.replace(
        options, scan=False, context_length=48 if options.context_length else None)
    stack = make_stack(shape, role, 80, options)
    counted = sum(term.forward for term in stack.count().flops)
    assert xla_flops(stack, shape, 80, options) == pytest.approx(counted, rel=0.02)


def test_flops_by_component_by_hand():
    costs = make_stack(SHAPE.replace(share_kv=True), "decoder", 6, T5_DECODER).count()
    terms = {(t.component, t.kind): t.forward for t in costs.flops if t.forward}
    assert terms == {
        ("attention", "weight"): 2 * 2 * 6 * 12 * 5 * (3 + 1 + 1 + 3),
        ("attention", "attention"): 2 * 2 * 2 * 6 * 6 * 3 * 5,
        ("cross_attention", "weight"): 2 * 2 * 12 * 5 * (6 * 3 + 7 * (1 + 1) + 6 * 3),
        ("cross_attention", "attention"): 2 * 2 * 2 * 6 * 7 * 3 * 5,
        ("mlp", "weight"): 2 * 2 * 2 * 6 * 12 * 20,
    }


def floats_kept(role, options):
    """Floats an example that JAX keeps for the backward pass: what one more example adds."""
    stack, params, x, kwargs = inputs(role, options)

    def pullback(params, x, context):
        return jax.vjp(lambda p, x, c: stack.apply(p, x, context=c).x, params, x, context)[1]

    totals = []
    for batch in (1, 2):
        kept = jax.eval_shape(pullback, params, x[:batch], kwargs.get("context", x)[:batch]
                              if options.context_length else None)
        totals.append(sum(a.size for a in jax.tree.leaves(kept) if a.dtype == jnp.float32))
    return totals[1] - totals[0]


@pytest.mark.parametrize("name", SETUPS)
def test_activations_are_what_jax_keeps(name):
    role, options = SETUPS[name]
    costs = make_stack(SHAPE, role, LENGTH, options).count()
    counted = costs.activation_floats + sum(term.activation_floats for term in costs.flops)
    # The final norm's output is kept by whoever reads it; here that is the context's reader.
    outside = (LENGTH - (options.context_length or 0)) * SHAPE.d_model
    # Counted for any activation and any bias, yet ReLU needs only the sign of its input (and one
    # block of zeros a stack, which JAX's rule for it makes), and a sum needs neither of its parts.
    layers = 3 if role == "encoder" else 2
    relu = (layers - 1) * LENGTH * SHAPE.d_ff if options.activation == "relu" else 0
    assert floats_kept(role, options) == counted - outside - relu


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("name", SETUPS)
def test_activations_under_remat_are_what_jax_keeps(name, remat):
    role, options = SETUPS[name]
    options = dataclasses.replace(options, remat=remat)
    costs = make_stack(SHAPE, role, LENGTH, options).count()
    counted = costs.activation_floats + sum(term.activation_floats for term in costs.flops)
    outside = (LENGTH - (options.context_length or 0)) * SHAPE.d_model
    assert floats_kept(role, options) == counted - outside


def test_remat_keeps_less():
    kept = {remat: floats_kept("encoder", dataclasses.replace(VIT, remat=remat))
            for remat in ("none", "dots", "full")}
    assert kept["full"] < kept["dots"] < kept["none"]
    # `full` leaves the input of each layer and of the final norm.
    assert kept["full"] == (3 + 1) * LENGTH * SHAPE.d_model


# --- initial values -------------------------------------------------------------------------------
def test_t5_initial_scales():
    shape = Shape(2, 2, d_model=64, d_ff=192, d_kv=24, num_heads=6)
    params = jit(make_stack(shape, "decoder", 4, T5_DECODER).init)(jax.random.key(0))
    expected = {"query": (64 * 24) ** -0.5, "key": 64**-0.5, "value": 64**-0.5,
                "out": (6 * 24) ** -0.5}
    for attention in ("attention", "cross_attention"):
        for part, stddev in expected.items():
            kernel = params["layers"][attention][part]["kernel"]
            assert float(jnp.std(kernel)) == pytest.approx(stddev, rel=0.03)
            assert abs(float(jnp.mean(kernel))) < 0.03 * stddev
    assert float(jnp.std(params["layers"]["mlp"]["wi"]["kernel"])) == pytest.approx(1 / 8, rel=0.03)
    assert float(jnp.std(params["layers"]["mlp"]["wo"]["kernel"])) == pytest.approx(
        192**-0.5, rel=0.03)
    assert float(jnp.std(params["relative_bias"]["embedding"])) == pytest.approx(1 / 8, rel=0.25)
    assert np.all(params["final_norm"]["scale"] == 1)
    assert np.all(params["layers"]["mlp_norm"]["scale"] == 1)


def test_xavier_initial_values_are_those_of_flax():
    shape = Shape(1, 0, d_model=64, d_ff=192, d_kv=16, num_heads=6)
    layer = jax.tree.map(lambda x: x[0], jit(make_stack(
        shape, "encoder", 4, VIT).init)(jax.random.key(0))["layers"])
    linen = nn.MultiHeadDotProductAttention(
        num_heads=6, qkv_features=96, out_features=64,
        kernel_init=nn.initializers.xavier_uniform())
    theirs = linen.init(jax.random.key(1), jnp.ones((1, 4, 64)))["params"]
    for part in ("query", "key", "value", "out"):
        ours, other = layer["attention"][part], theirs[part]
        assert ours["kernel"].shape == other["kernel"].shape
        bound = (6 / (64 + 96)) ** 0.5  # uniform: the extremes of 6,144 draws lie at the bound
        for kernel in (ours["kernel"], other["kernel"]):
            assert 0.995 * bound < float(jnp.max(jnp.abs(kernel))) <= bound
        assert np.all(ours["bias"] == 0)
    assert float(jnp.std(layer["mlp"]["wi"]["bias"])) == pytest.approx(1e-6, rel=0.2)
    assert float(jnp.max(jnp.abs(layer["mlp"]["wi"]["kernel"]))) <= (6 / (64 + 192)) ** 0.5
    assert np.all(layer["mlp_norm"]["scale"] == 1)
    assert np.all(layer["mlp_norm"]["bias"] == 0)


def test_layers_start_different_and_init_depends_on_the_key_only():
    init = jit(make_stack(SHAPE, "encoder", LENGTH, T5).init)
    params = init(jax.random.key(0))
    kernel = params["layers"]["mlp"]["wi"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    jax.tree.map(np.testing.assert_array_equal, params, init(jax.random.key(0)))
    assert not np.allclose(kernel, init(jax.random.key(1))["layers"]["mlp"]["wi"]["kernel"])


# --- against other implementations ----------------------------------------------------------------
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_flax(masked):
    shape = Shape(1, 0, d_model=12, d_ff=1, d_kv=4, num_heads=3)
    linen = nn.MultiHeadDotProductAttention(num_heads=3, qkv_features=12, out_features=12)
    rng = np.random.default_rng(0)
    x, context = (jnp.asarray(rng.standard_normal((2, n, 12), np.float32)) for n in (5, 7))
    params = linen.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)  # biases too
    mask = jnp.asarray(rng.random((2, 1, 5, 7)) < 0.7).at[..., 0].set(True) if masked else None
    ours = bind_module(lambda rngs: Attention(shape, VIT, rngs=rngs), params)
    theirs = linen.apply({"params": params}, x, context, mask=mask)
    assert_close(ours(x, context, mask=mask), theirs, 1e-5)


def reference(shape, options, layers, params, x, *, mask, context=None, context_mask=None):
    """The stack in numpy, head by head and position by position; float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)

    def norm(x, p):
        if options.norm == "rms":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + options.norm_eps) * p["scale"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + options.norm_eps)
        return x * p["scale"] + p["bias"]

    def project(x, p, head, shared):
        kernel, bias = p["kernel"], p.get("bias", 0)
        if not shared:
            kernel, bias = kernel[:, head], bias[head] if options.use_bias else 0
        return x @ kernel + bias

    def attend(p, x, context, allowed, bias):
        out = np.zeros((len(x), shape.d_model)) + (p["out"]["bias"] if options.use_bias else 0)
        for head in range(shape.num_heads):
            q = project(x, p["query"], head, shape.share_heads)
            k = project(context, p["key"], head, shape.share_kv)
            v = project(context, p["value"], head, shape.share_kv)
            scores = q @ k.T * (shape.d_kv**-0.5 if options.scale_attention else 1) + bias[head]
            weights = np.exp(scores - scores.max()) * allowed
            out += weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
        return out

    def activation(x):
        if options.activation == "relu":
            return np.maximum(x, 0)
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def one(example):
        x, n = np.asarray(x_all[example], np.float64), x_all.shape[1]
        allowed = np.tile(np.asarray(mask[example], float), (n, 1))
        if options.causal:
            allowed = np.tril(allowed)
        bias = np.zeros((shape.num_heads, n, n))
        if options.relative_buckets:
            table = bucket_table(options.relative_buckets, options.relative_max_distance,
                                 options.causal)
            for i, j in itertools.product(range(n), range(n)):
                bucket = table[j - i + options.relative_max_distance]
                bias[:, i, j] = params["relative_bias"]["embedding"][bucket]
        for index in range(layers):
            p = jax.tree.map(lambda a, index=index: a[index], params["layers"])
            y = norm(x, p["attention_norm"])
            x = x + attend(p["attention"], y, y, allowed, bias)
            if context is not None:
                seen = np.asarray(context_mask[example], float)
                x = x + attend(p["cross_attention"], norm(x, p["cross_attention_norm"]),
                               np.asarray(context[example], np.float64), seen, 0 * bias[:, :1, :1])
            wi, wo = p["mlp"]["wi"], p["mlp"]["wo"]
            y = activation(norm(x, p["mlp_norm"]) @ wi["kernel"] + wi.get("bias", 0))
            x = x + y @ wo["kernel"] + wo.get("bias", 0)
        return norm(x, params["final_norm"])

    x_all = x
    return np.stack([one(example) for example in range(len(x))])


@pytest.mark.parametrize("share", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("name", ["t5_decoder", "vit"])
def test_stack_equals_numpy(name, share):
    role, options = SETUPS[name]
    shape = SHAPE.replace(share_heads=share[0], share_kv=share[1])
    stack, params, x, kwargs = inputs(role, options, shape)
    layers = 3 if role == "encoder" else 2
    expected = reference(shape, options, layers, params, x, **kwargs)
    out = jit(stack.apply)(params, x, **kwargs)
    assert_close(out.x, expected, 1e-5)
    np.testing.assert_array_equal(out.mask, kwargs["mask"])
    assert out.aux_loss == 0
    assert out.cache is None


def test_bidirectional_relative_stack_equals_numpy():
    apply, params, x, kwargs = setup("t5_encoder")
    expected = reference(SHAPE, T5, 3, params, x, **kwargs)
    assert_close(apply(params, x, **kwargs), expected, 1e-5)


# Buckets of distances 0 ... 140 as `transformers` (T5Attention._relative_position_bucket, 32
# buckets, maximum distance 128) computes them, as (bucket, how many distances in a row).
TWO_WAY = [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 4), (9, 4), (10, 7),
           (11, 9), (12, 14), (13, 18), (14, 27), (15, 50)]
CAUSAL = [*((n, 1) for n in range(16)), (16, 3), (17, 2), (18, 3), (19, 3), (20, 4), (21, 4),
          (22, 5), (23, 6), (24, 6), (25, 7), (26, 8), (27, 10), (28, 10), (29, 12), (30, 14),
          (31, 28)]


@pytest.mark.parametrize(("causal", "runs"), [(False, TWO_WAY), (True, CAUSAL)])
def test_buckets_are_t5s(causal, runs):
    past = np.repeat([b for b, _ in runs], [n for _, n in runs])[:129]
    table = bucket_table(32, 128, causal)
    np.testing.assert_array_equal(table[128::-1], past)
    future = np.zeros(129) if causal else np.where(np.arange(129) > 0, past + 16, 0)
    np.testing.assert_array_equal(table[128:], future)


@pytest.mark.parametrize(("buckets", "distance", "causal"), [
    (32, 128, True), (32, 128, False), (8, 16, True), (8, 16, False), (2, 8, True), (4, 5, False)])
def test_the_bias_of_a_tpu_is_that_of_every_platform(buckets, distance, causal):
    table = bucket_table(buckets, distance, causal)
    embedding = jax.random.normal(jax.random.key(0), (buckets, 3))
    relative = jnp.clip(jnp.arange(170)[None] - jnp.arange(40)[:, None], -distance, distance)
    np.testing.assert_array_equal(_multiply(table, embedding, relative),
                                  _look_up(table, embedding, relative))
    outer = np.asarray(jax.random.normal(jax.random.key(1), (3, *relative.shape)), np.float64)
    expected = np.zeros((buckets, 3))
    np.add.at(expected, table[relative + distance], np.moveaxis(outer, 0, -1))
    for way in (_multiply, _look_up):
        gradient = jax.grad(lambda e, way=way: jnp.sum(way(table, e, relative) * outer))(embedding)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


# --- scanned, unrolled, rematerialised ------------------------------------------------------------
@functools.cache
def forward_and_gradient(rate, scan, remat):
    options = dataclasses.replace(T5_DECODER, norm="layer", use_bias=True, dropout_rate=rate,
                                  scan=scan, remat=remat)
    stack, params, x, kwargs = inputs("decoder", options)

    def loss(params, x):
        y = stack.apply(params, x, **kwargs, key=jax.random.key(3), train=True).x
        return jnp.mean(jnp.square(y)) + jnp.mean(y[0]), y

    return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)


@pytest.mark.parametrize(("rate", "scan", "remat"), [
    (0.0, False, "none"), (0.0, True, "full"), (0.3, False, "none"), (0.3, True, "full"),
    (0.3, True, "dots"), (0.3, False, "full"),
])
def test_scanned_equals_unrolled_whatever_is_rematerialised(rate, scan, remat):
    expected = forward_and_gradient(rate, True, "none")
    assert_close(forward_and_gradient(rate, scan, remat), expected, 1e-6)


def test_dropout_acts_in_training_only():
    stack, params, x, _ = inputs("encoder", dataclasses.replace(VIT, dropout_rate=0.5))
    keys = jax.random.split(jax.random.key(0))
    plain = setup("vit")[0](params, x)
    apply = jit(lambda key, train: stack.apply(params, x, key=key, train=train).x,
                static_argnames="train")
    np.testing.assert_array_equal(apply(keys[0], train=False), plain)
    dropped = apply(keys[0], train=True)
    assert not np.allclose(dropped, plain)
    np.testing.assert_array_equal(apply(keys[0], train=True), dropped)
    assert not np.allclose(apply(keys[1], train=True), dropped)


@pytest.mark.parametrize("scan", [True, False])
def test_every_layer_drops_its_own(scan):
    def make(rngs):
        return RMSNorm(2, eps=1e-6, dtype="float32")

    def step(layer, carry, key):
        return carry, jnp.stack([dropout(jnp.ones(64), 0.5, key[i]) for i in range(2)])

    params = init_layers(make, 4, jax.random.key(0))
    keys = layer_keys(jax.random.key(7), 4, 2)
    _, masks = apply_layers(make, params, 0.0, keys, step, scan=scan)
    assert masks.shape == (4, 2, 64)
    assert len(np.unique(masks.reshape(8, 64), axis=0)) == 8
    expected = [dropout(jnp.ones(64), 0.5, keys[i, j]) for i in range(4) for j in range(2)]
    np.testing.assert_array_equal(masks.reshape(8, 64), np.stack(expected))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean(rate):
    x = dropout(jnp.ones(40_000), rate, jax.random.key(0))
    np.testing.assert_allclose(np.unique(x), [0, 1 / (1 - rate)], rtol=1e-6)
    assert float(jnp.mean(x)) == pytest.approx(1, abs=4 * (rate / (1 - rate) / 40_000) ** 0.5)


def test_dropout_bits_look_independent():
    # Keys that differ in one bit and keys that were split; no two masks, and no two positions of a
    # mask, may know of each other. z-scores of 2 ** 18 fair coins; the largest of some 200.
    keys = [jax.random.key(0), jax.random.key(1), *jax.random.split(jax.random.key(0), 4)]
    size = 2**18
    coins = np.stack([np.asarray(hashed_bits(key, (size,)) >> 31) for key in keys]) * 2.0 - 1
    assert np.max(np.abs(coins.sum(1))) / size**0.5 < 4
    between = coins @ coins.T / size**0.5
    assert np.max(np.abs(between[~np.eye(len(keys), dtype=bool)])) < 4
    for lag in (1, 2, 3, 4, 16, 63, 64, 128, 256, 768, 1024, 65536):
        assert np.max(np.abs((coins[:, lag:] * coins[:, :-lag]).sum(1))) / size**0.5 < 4.5


def test_dropout_bits_depend_on_the_index_and_the_key_only():
    key = jax.random.key(5)
    bits = hashed_bits(key, (6, 4))
    np.testing.assert_array_equal(bits.reshape(-1), hashed_bits(key, (24,)))
    np.testing.assert_array_equal(bits.reshape(-1)[:7], hashed_bits(key, (7,)))


def count_equations(jaxpr):
    total = len(jaxpr.eqns)
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            total += count_equations(inner) if hasattr(inner, "eqns") else 0
    return total


def test_the_program_does_not_grow_with_depth():
    def equations(num_layers):
        options = dataclasses.replace(T5, dropout_rate=0.1)
        stack = make_stack(SHAPE.replace(num_encoder_layers=num_layers), "encoder", 4, options)
        params = jax.eval_shape(stack.init, jax.random.key(0))
        x = jnp.ones((1, 4, SHAPE.d_model))

        def loss(params):
            return stack.apply(params, x, key=jax.random.key(0), train=True).x.sum()

        return count_equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)

    shallow = equations(4)
    assert shallow > 100
    assert equations(48) == shallow


# --- masks and positions --------------------------------------------------------------------------
@pytest.mark.parametrize("name", SETUPS)
def test_masked_positions_are_not_seen(name):
    apply, params, x, kwargs = setup(name)
    before = apply(params, x, **kwargs)
    real = kwargs["mask"]
    other = jnp.where(real[..., None], x, 1e3)
    if "context" in kwargs:
        context = jnp.where(kwargs["context_mask"][..., None], kwargs["context"], -1e3)
        kwargs = {**kwargs, "context": context}
    after = apply(params, other, **kwargs)
    np.testing.assert_array_equal(after[real], before[real])


@pytest.mark.parametrize("name", SETUPS)
def test_no_mask_means_all_real(name):
    apply, params, x, kwargs = setup(name)
    ones = {k: jnp.ones_like(v) if "mask" in k else v for k, v in kwargs.items()}
    bare = {k: v for k, v in kwargs.items() if "mask" not in k}
    assert_close(apply(params, x, **bare), apply(params, x, **ones), 1e-6)


@pytest.mark.parametrize("name", SETUPS)
def test_a_row_without_any_key_sees_nothing(name):
    apply, params, x, kwargs = setup(name)
    kwargs = {k: jnp.zeros_like(v) if "mask" in k else v for k, v in kwargs.items()}
    plain = apply(params, x, **kwargs)
    assert np.all(np.isfinite(plain))
    # Nothing is attended to, so a position does not depend on any other.
    moved = apply(params, x.at[:, 0].add(1.0), **kwargs)
    np.testing.assert_array_equal(moved[:, 1:], plain[:, 1:])
    assert not np.allclose(moved[:, 0], plain[:, 0])


def test_a_row_without_any_key_has_a_finite_gradient():
    stack, params, x, kwargs = inputs(*SETUPS["t5_decoder"])
    kwargs = {k: jnp.zeros_like(v) if "mask" in k else v for k, v in kwargs.items()}
    gradient = jit(jax.grad(lambda p: jnp.mean(stack.apply(p, x, **kwargs).x ** 2)))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_causal_positions_see_no_future():
    apply, params, x, kwargs = setup("t5_decoder")
    bare = {k: v for k, v in kwargs.items() if "mask" not in k}
    before = apply(params, x, **bare)
    after = apply(params, x.at[:, 4:].add(1.0), **bare)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert not np.allclose(after[:, 4:], before[:, 4:])


def test_relative_bias_follows_positions():
    apply, params, x, _ = setup("t5_encoder")
    plain = apply(params, x)
    shifted = jnp.arange(LENGTH) + 40  # only differences count
    assert_close(apply(params, x, positions=shifted), plain, 1e-6)
    order = np.array([[3, 1, 5, 0, 2, 4], [5, 4, 3, 2, 1, 0]])  # a permutation for each example
    rows = np.arange(BATCH)[:, None]
    permuted = apply(params, x[rows, order], positions=jnp.asarray(order))
    assert_close(permuted, plain[rows, order], 1e-5)


# --- decoding -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("context_length", "share_kv", "scan"),
                         [(None, False, True), (7, True, True), (7, False, False)])
def test_decoding_equals_the_forward_pass(context_length, share_kv, scan):
    options = dataclasses.replace(T5_DECODER, context_length=context_length, scan=scan,
                                  use_bias=True)
    stack, params, x, kwargs = inputs("decoder", options, SHAPE.replace(share_kv=share_kv))
    del kwargs["mask"]
    expected = jit(stack.apply)(params, x, **kwargs).x
    cache = jit(stack.init_cache, static_argnums=1)(
        params, BATCH, kwargs.get("context"), kwargs.get("context_mask"))
    step = jit(lambda x, cache: stack.apply(params, x, cache=cache))
    for position in range(LENGTH):
        out = step(x[:, position : position + 1], cache)
        cache = out.cache
        assert_close(out.x, expected[:, position : position + 1], 1e-5)


# --- dtypes ---------------------------------------------------------------------------------------
def test_bfloat16_computes_near_float32_with_float32_params():
    role, options = SETUPS["t5_decoder"]
    apply, params, x, kwargs = setup("t5_decoder")
    half = make_stack(SHAPE, role, LENGTH, dataclasses.replace(options, compute_dtype="bfloat16"))
    made = jax.eval_shape(half.init, jax.random.key(0))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(made))

    def loss(params):
        y = half.apply(params, x, **kwargs).x
        return jnp.sum(y.astype(jnp.float32)), y

    (_, y), gradient = jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert y.dtype == jnp.bfloat16
    assert float(jnp.mean(jnp.abs(y - apply(params, x, **kwargs)))) < 0.05
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradient))


# --- interface ------------------------------------------------------------------------------------
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biases", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_weights_and_their_gradients(dtype, biases, masked):
    """Against plain float32 softmax and autodiff, of the scores as the compute dtype has them."""
    scores = 3 * jax.random.normal(jax.random.key(0), (2, 3, 5, 7)).astype(dtype)
    bias = jax.random.normal(jax.random.key(1), (biases, 3, 5, 7)) if biases else None
    mask = jax.random.bernoulli(jax.random.key(2), 0.7, (2, 1, 1, 7)) if masked else None
    outer = jax.random.normal(jax.random.key(3), scores.shape)

    def ours(scores, bias):
        weights = attention_weights(scores, mask, bias, dtype)
        assert weights.dtype == dtype
        return jnp.sum(weights.astype(jnp.float32) * outer), weights

    def plain(scores, bias):
        scores = scores.astype(jnp.float32) + (0 if bias is None else bias)
        weights = jax.nn.softmax(scores, where=mask)
        return jnp.sum(weights * outer), weights

    inputs = (0, 1) if biases else (0,)
    (_, weights), found = jax.value_and_grad(ours, inputs, has_aux=True)(scores, bias)
    (_, expected), gradients = jax.value_and_grad(plain, inputs, has_aux=True)(scores, bias)
    tolerance = 1e-6 if dtype == "float32" else 0.03
    np.testing.assert_allclose(weights.astype(jnp.float32), expected, atol=tolerance)
    for one, other, given in zip(found, gradients, (scores, bias), strict=False):
        assert one.dtype == given.dtype
        assert one.shape == given.shape
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32),
                                   atol=2 * tolerance)


@pytest.mark.parametrize("name", SETUPS)
def test_attention_maps_are_kept_in_the_compute_dtype(name):
    """No matrix product of the program for a TPU makes a float32 map: twice the memory."""
    role, options = SETUPS[name]
    for dtype, kept in (("bfloat16", "bf16"), ("float32", "f32")):
        stack, params, x, kwargs = inputs(role, dataclasses.replace(options, compute_dtype=dtype))
        program = jit(jax.grad(lambda p, stack=stack, x=x, kwargs=kwargs: jnp.sum(
            stack.apply(p, x, **kwargs).x.astype(jnp.float32)))).trace(params).lower(
                lowering_platforms=("tpu",)).as_text()
        maps = re.findall(rf"dot_general.*-> tensor<{BATCH}x{SHAPE.num_heads}x{LENGTH}x\d+x(\w+)>",
                          program)
        assert set(maps) == {kept}


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0])
def test_layer_norm_of_bfloat16_loses_nothing_to_its_statistics(offset):
    """One pass over x: as exact as bfloat16 can say it, however far the mean is from 0."""
    x = (jax.random.normal(jax.random.key(0), (64, 512)) + offset).astype(jnp.bfloat16)
    norm = LayerNorm(512, eps=1e-6, dtype="float32")
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(
        exact.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(x), exact, rtol=2e-3, atol=2e-4)


def test_importing_and_counting_do_not_import_jax():
    code = ("import sys; from deepnarrow.layers.transformer import make_stack;"
            "from deepnarrow.modality import StackOptions; from deepnarrow.shape import Shape;"
            "make_stack(Shape(2, 0, 8, 16, 4, 2), 'encoder', 4, StackOptions()).count();"
            "assert not {'jax', 'flax'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_shape_operator_means_something_here():
    assert TRANSFORMER.operators == {"NL", "EL", "DL", "DM", "FF", "KV", "NH", "SH", "SKV", "SHKV"}


def test_a_stack_without_layers_is_not_applicable():
    with pytest.raises(NotApplicable, match="decoder stack: the stack has no layers"):
        make_stack(Shape(1, 0, 8, 16, 4, 2), "decoder", 4, VIT)


@pytest.mark.parametrize(("change", "message"), [
    ({"norm": "lyer"}, r"norm is unknown \(got lyer; expected rms or layer\).*mean 'layer'"),
    ({"activation": "swish"}, "activation is unknown"),
    ({"compute_dtype": "float99"}, "compute_dtype is unknown"),
    ({"remat": True}, "remat is unknown"),
    ({"init": "zeros"}, "init is unknown"),
    ({"dropout_rate": 1.0}, "dropout_rate is out of range"),
    ({"dropout_rate": float("nan")}, "dropout_rate is out of range"),
    ({"norm_eps": 0.0}, "norm_eps is out of range"),
    ({"context_length": 0}, "context_length is too small"),
    ({"relative_buckets": 9}, "relative_buckets is out of range.*even number"),
    ({"relative_buckets": 2}, "relative_buckets is out of range"),
    ({"relative_buckets": 1, "causal": True}, "relative_buckets is out of range.*at least 2"),
    ({"relative_buckets": 64, "relative_max_distance": 16}, "more than 16"),
])
def test_bad_options_are_named(change, message):
    with pytest.raises(InputError, match=message):
        make_stack(SHAPE, "encoder", 4, dataclasses.replace(VIT, **change))


def test_bad_calls_are_named():
    with pytest.raises(InputError, match="unknown role"):
        make_stack(SHAPE, "middle", 4, VIT)
    with pytest.raises(InputError, match="length is too small"):
        make_stack(SHAPE, "encoder", 0, VIT)
    stack, params, x, kwargs = inputs("encoder", dataclasses.replace(VIT, dropout_rate=0.1))
    with pytest.raises(ValueError, match="needs a key"):
        stack.apply(params, x, train=True)
    with pytest.raises(ValueError, match="takes a context exactly if"):
        stack.apply(params, x, context=x)
    cache = stack.init_cache(params, BATCH, None, None)
    with pytest.raises(ValueError, match="only a causal stack"):
        stack.apply(params, x[:, :1], cache=cache)
    stack, params, x, kwargs = inputs("decoder", T5_DECODER)
    with pytest.raises(ValueError, match="takes a context exactly if"):
        stack.apply(params, x)
    cache = stack.init_cache(params, BATCH, kwargs["context"], None)
    with pytest.raises(ValueError, match="there is no mask"):
        stack.apply(params, x[:, :1], cache=cache, mask=kwargs["mask"][:, :1])
