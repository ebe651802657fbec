"""The ViT's contract: options, costs, masks, dropout, precision, adaptation."""

from __future__ import annotations

import doctest
import importlib
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepnarrow.assemble import count_costs, make_model
from deepnarrow.errors import InputError
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.modality import axes_tree
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.adapt import adapt, resample_position
from deepnarrow_vision_vit.model import (
    _convolve,
    _multiply,
    example_losses,
    label_targets,
)
from deepnarrow_vision_vit.options import default_options, num_positions
from deepnarrow_vision_vit.plugin import deepnarrow_register_modalities

VIT = deepnarrow_register_modalities()[0]
SHAPE = Shape(2, 0, d_model=16, d_ff=24, d_kv=8, num_heads=3)  # num_heads * d_kv is not d_model
SMALL = {"image_size": 8, "patch_size": 2, "channels": 1, "num_classes": 5}
POOLINGS = ("gap", "tok", "map")


def options_with(**changes):
    options = default_options()
    options.update({**SMALL, **changes})
    return options


def build(shape=SHAPE, **changes):
    return make_model(VIT, TRANSFORMER, shape, options_with(**changes))


def make_batch(size=4, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.uniform(-1, 1, (size, 8, 8, 1)).astype(np.float32),
            "label": np.arange(size) % 5, "example_mask": np.ones(size, np.float32)}


@pytest.fixture(scope="module")
def params():
    """By pooling; heads that are not zero."""
    return {pool: build(pool_type=pool, head_zeroinit=False).init(jax.random.key(0))
            for pool in POOLINGS}


# --- options --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("changes", "said"), [
    ({"patch_size": 3}, ["image_size 8, patch_size 3", "image_size 6 or 9", "patch_size 2 or 4"]),
    ({"image_size": 224, "patch_size": 15},
     ["image_size 224, patch_size 15", "image_size 210 or 225", "patch_size 14 or 16"]),
    ({"patch_size": 16}, ["image_size 16 with", "patch_size 8 with"]),
    ({"patch_size": 0}, ["patch_size is out of range"]),
    ({"image_size": 0}, ["image_size is out of range"]),
    ({"channels": 0}, ["channels is out of range"]),
    ({"num_classes": -1}, ["num_classes is out of range"]),
    ({"pool_type": "max"}, ["pool_type", "max", "gap, tok, map"]),
    ({"position": "rotary"}, ["position", "rotary", "learn, sincos2d"]),
    ({"loss": "hinge"}, ["loss", "hinge", "softmax, sigmoid"]),
    ({"label_smoothing": 1.5}, ["label_smoothing is out of range", "1.5"]),
    ({"dropout_rate": 1.0}, ["dropout_rate is out of range"]),
    ({"compute_dtype": "float99"}, ["compute_dtype", "float99"]),
    ({"remat": "some"}, ["remat", "some"]),
], ids=str)
@pytest.mark.parametrize("function", [VIT.stack_specs, VIT.count_frame])
def test_bad_options_are_named(function, changes, said):
    with pytest.raises(InputError) as caught:
        function(SHAPE, options_with(**changes))
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(("d_model", "nearest"), [(18, "16 or 20"), (4, "d_model 8")])
def test_sincos_needs_quarters(d_model, nearest):
    with pytest.raises(InputError, match=nearest):
        VIT.count_frame(SHAPE.replace(d_model=d_model), options_with(position="sincos2d"))


@pytest.mark.parametrize(("layers", "said"), [
    ({"num_decoder_layers": 2}, "no decoder"),
    ({"num_encoder_layers": 0, "num_decoder_layers": 2}, "no decoder"),
])
def test_a_vit_is_an_encoder(layers, said):
    with pytest.raises(InputError, match=said):
        VIT.stack_specs(SHAPE.replace(**layers), options_with())


@pytest.mark.parametrize(("pool", "length"), [("gap", 16), ("tok", 17), ("map", 16)])
def test_the_stack_is_as_long_as_the_patches(pool, length):
    (spec,) = VIT.stack_specs(SHAPE, options_with(pool_type=pool))
    assert (spec.role, spec.length) == ("encoder", length)


# --- costs ----------------------------------------------------------------------------------------
CASES = [
    *[(SHAPE, {"pool_type": pool, "position": position, "num_classes": classes})
      for pool in POOLINGS for position, classes in (("learn", 5), ("sincos2d", 0))],
    *[(SHAPE.replace(**{flag: True}), {"pool_type": "map"})
      for flag in ("share_heads", "share_kv")],
    *[(VIT.presets[name].shape, {"image_size": 224, "channels": 3, "patch_size": 14,
                                 "num_classes": 1000, "pool_type": pool})
      for name, pool in (("tiny", "map"), ("Ti", "tok"), ("B", "gap"), ("So400m", "map"))],
]


@pytest.mark.parametrize(("shape", "changes"), CASES, ids=str)
def test_counted_arrays_are_the_real_ones(shape, changes):
    options = options_with(**changes)
    model = make_model(VIT, TRANSFORMER, shape, options)
    arrays = count_costs(VIT, TRANSFORMER, shape, options).arrays
    real = jax.eval_shape(model.init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(real)
    assert ({a.path: a.shape for a in arrays}
            == {tuple(entry.key for entry in path): leaf.shape for path, leaf in leaves})
    assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
    assert model.param_axes == axes_tree(arrays)
    assert all(len(a.axes) == len(a.shape) for a in arrays)


def test_parameters_of_vit_b16_as_published():
    """86,567,656 in torchvision's and timm's ViT-B/16 of 1000 classes, which has a token.

    They add the class token before the positions, so they have one position more (768).
    """
    options = default_options()
    options.pool_type = "tok"
    costs = count_costs(VIT, TRANSFORMER, VIT.presets["B"].shape, options)
    assert sum(a.size for a in costs.arrays) == 86_567_656 - 768


def dot_flops(jaxpr):
    """FLOPs of every dot_general of a jaxpr, inner ones too: 2 a multiply-add."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            sizes = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(
                sizes[i] for i in contracted)
        # Of branches by platform the last is every other platform's.
        for value in [*eqn.params.values(), *eqn.params.get("branches", ())[-1:]]:
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += dot_flops(inner)
    return total


@pytest.mark.parametrize(("shape", "changes"), [c for c in CASES if c[1].get("num_classes", 5)][:5],
                         ids=str)
def test_counted_flops_are_those_of_the_matrix_products(shape, changes):
    options = options_with(**changes, scan=False)
    model = make_model(VIT, TRANSFORMER, shape, options)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = {"image": jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)}
    real = dot_flops(jax.make_jaxpr(model.predict)(params, image).jaxpr)
    terms = count_costs(VIT, TRANSFORMER, shape, options).flops
    assert sum(term.forward for term in terms) == real


# --- numerics -------------------------------------------------------------------------------------
def test_patches_are_embedded_alike_on_every_platform():
    image = jax.random.normal(jax.random.key(0), (3, 12, 12, 2))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 2, 5))

    def values_and_gradients(embed):
        y = embed(image, kernel)
        assert y.shape == (3, 9, 5)
        return y, *jax.grad(lambda *x: jnp.sum(jnp.sin(embed(*x))), (0, 1))(image, kernel)

    for by_tpu, by_others in zip(values_and_gradients(_convolve), values_and_gradients(_multiply),
                                 strict=True):
        np.testing.assert_allclose(by_tpu, by_others, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_zero_head_begins_at_chance(loss):
    model = build(loss=loss)
    out = model.loss(model.init(jax.random.key(0)), make_batch(), None, train=False)
    expected = math.log(5) if loss == "softmax" else 5 * math.log(2)
    assert abs(float(out.loss_sum / out.weight_sum) - expected) <= 1e-5


@pytest.mark.parametrize("pool", POOLINGS)
def test_padding_changes_nothing(pool, params):
    model, batch = build(pool_type=pool), make_batch(size=4)
    padded = {name: np.concatenate([value, value[:2]]) for name, value in batch.items()}
    padded["example_mask"][4:] = 0
    one = model.loss(params[pool], batch, None, train=False)
    other = model.loss(params[pool], padded, None, train=False)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert abs(float(a) - float(b)) <= 1e-4
    assert float(other.weight_sum) == 4


@pytest.mark.parametrize("pool", POOLINGS)
def test_every_parameter_learns(pool, params):
    model, batch = build(pool_type=pool), make_batch()
    grads = jax.jit(jax.grad(
        lambda p: model.loss(p, batch, jax.random.key(1), train=True).loss_sum))(params[pool])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert jnp.isfinite(grad).all(), name
        # Softmax does not see a key's bias; rounding aside its gradient is 0 by construction.
        assert "'key']['bias'" in name or jnp.abs(grad).max() > 1e-7, name


def test_accuracy_is_a_weighted_sum(params):
    model, batch = build(), make_batch()
    logits = model.predict(params["gap"], batch)
    batch["label"] = np.array(logits.argmax(-1))
    batch["label"][0] = (batch["label"][0] + 1) % 5
    batch["example_mask"][3] = 0
    total, weight = model.loss(params["gap"], batch, None, train=False).metrics["accuracy"]
    assert (float(total), float(weight)) == (2.0, 3.0)


def test_dropout_acts_in_training_only(params):
    model, batch = build(dropout_rate=0.5), make_batch()

    def loss(key, train):
        return float(model.loss(params["gap"], batch, key, train=train).loss_sum)

    one, other = jax.random.key(1), jax.random.key(2)
    assert loss(one, True) == loss(one, True)
    assert loss(one, True) != loss(other, True)
    assert loss(one, False) == loss(other, False) == loss(None, False)


@pytest.mark.parametrize("pool", POOLINGS)
def test_bfloat16_is_close_and_ends_in_float32(pool, params):
    batch = make_batch()
    exact = build(pool_type=pool).predict(params[pool], batch)
    model = build(pool_type=pool, compute_dtype="bfloat16")
    rough = model.predict(params[pool], batch)
    assert rough.dtype == model.features(params[pool], batch).dtype == jnp.float32
    assert 0 < jnp.abs(rough - exact).max() <= 0.1


def test_no_head_means_features_only():
    model = build(num_classes=0)
    params, batch = model.init(jax.random.key(0)), make_batch()
    assert model.features(params, batch).shape == (4, SHAPE.d_model)
    assert model.head_paths == ()
    with pytest.raises(InputError, match="num_classes 0"):
        model.predict(params, batch)


def test_features_are_what_the_head_sees(params):
    model, batch = build(), make_batch()
    head = params["gap"]["head"]
    logits = model.features(params["gap"], batch) @ head["kernel"] + head["bias"]
    assert np.abs(logits - model.predict(params["gap"], batch)).max() <= 1e-5


# --- adaptation -----------------------------------------------------------------------------------
@pytest.mark.parametrize("pool", POOLINGS)
def test_adapts_to_another_task_and_image(pool, params):
    source = options_with(pool_type=pool)
    target = options_with(pool_type=pool, num_classes=3, image_size=12)
    adapted, paths = adapt(params[pool], source, target, jax.random.key(1))
    fresh = jax.eval_shape(
        build(pool_type=pool, num_classes=3, image_size=12).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, adapted) == jax.tree.map(jnp.shape, fresh)
    assert set(paths) == {("head", "kernel"), ("head", "bias")}
    assert jax.tree.all(jax.tree.map(jnp.array_equal, adapted["encoder"], params[pool]["encoder"]))


def test_the_head_is_new_even_for_as_many_classes(params):
    source, target = options_with(), options_with(head_zeroinit=True)
    adapted, paths = adapt(params["gap"], source, target, jax.random.key(1))
    assert jnp.abs(params["gap"]["head"]["kernel"]).max() > 0
    assert jnp.abs(adapted["head"]["kernel"]).max() == 0
    assert len(paths) == 2
    assert jnp.array_equal(adapted["position"]["embedding"],
                           params["gap"]["position"]["embedding"])


def test_adapts_to_no_head_at_all(params):
    adapted, paths = adapt(params["gap"], options_with(), options_with(num_classes=0),
                           jax.random.key(1))
    assert "head" not in adapted
    assert paths == ()


@pytest.mark.parametrize("changes", [{"patch_size": 4}, {"channels": 3}, {"pool_type": "tok"},
                                     {"position": "sincos2d"}], ids=str)
def test_refuses_to_adapt_what_cannot_be_carried_over(changes, params):
    with pytest.raises(InputError, match=f"keeps its {next(iter(changes))}"):
        adapt(params["gap"], options_with(), options_with(**changes), jax.random.key(1))


def test_resampling_keeps_corners_and_planes():
    """A plane over the grid stays the same plane: linear interpolation is exact on it."""
    row, column = np.mgrid[0:1:4j, 0:1:4j]
    plane = (2 * row - 3 * column).reshape(1, 16, 1)
    row, column = np.mgrid[0:1:7j, 0:1:7j]
    expected = (2 * row - 3 * column).reshape(1, 49, 1)
    assert np.abs(resample_position(plane, 7) - expected).max() <= 1e-5


# --- the plugin -----------------------------------------------------------------------------------
def test_the_plugin_counts_without_jax():
    code = (
        "import sys\n"
        "from deepnarrow.layers.transformer import TRANSFORMER\n"
        "from deepnarrow.assemble import count_costs\n"
        "from deepnarrow_vision_vit.plugin import deepnarrow_register_modalities\n"
        "vit = deepnarrow_register_modalities()[0]\n"
        "count_costs(vit, TRANSFORMER, vit.presets['B'].shape, vit.options)\n"
        "vit.tasks(vit.data_options, vit.options)\n"
        "sys.exit(any(m in sys.modules for m in ('jax', 'sklearn')))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_positions_of_the_default_model():
    assert num_positions(VIT.options) == 196
    assert VIT.options[VIT.suffix_option] == 16


@pytest.mark.parametrize("module", ["options", "digits", "convert", "layout", "model"])
def test_the_documentation_is_right(module):
    results = doctest.testmod(importlib.import_module(f"deepnarrow_vision_vit.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_mixed_images_loss_is_the_mix_of_its_two_labels_losses(kind):
    """Both losses are linear in the targets, smoothed or not."""
    options = default_options()
    options.update({"num_classes": 5, "loss": kind, "label_smoothing": 0.1})
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    label, partner = jnp.array([0, 1, 2]), jnp.array([3, 1, 4])
    weight = jnp.array([0.5, 0.7, 1.0])
    batch = {"label": label, "partner_label": partner, "label_weight": weight}
    mixed, own, others = (
        example_losses(logits, label_targets(b, 5), options)
        for b in (batch, {"label": label}, {"label": partner}))
    assert np.allclose(mixed, weight * own + (1 - weight) * others, atol=1e-5)
    assert not np.allclose(own, others)
