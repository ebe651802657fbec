"""Equality with big_vision's ViT: the golden file, and the live model where it can be imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepnarrow.assemble import count_costs, make_model
from deepnarrow.errors import InputError
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.shape import Shape
from deepnarrow_vision_vit.adapt import resample_position
from deepnarrow_vision_vit.convert import describe, from_big_vision, to_big_vision
from deepnarrow_vision_vit.layout import flatten
from deepnarrow_vision_vit.model import sincos_position
from deepnarrow_vision_vit.options import default_options
from deepnarrow_vision_vit.plugin import deepnarrow_register_modalities

HERE = Path(__file__).parent
VIT = deepnarrow_register_modalities()[0]
LOGITS_TOLERANCE = 1e-4
GRADS_TOLERANCE = 1e-3  # of the largest entry of the array


def load_script():
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


SCRIPT = load_script()
SHAPE = Shape(SCRIPT.DEPTH, 0, d_model=SCRIPT.WIDTH, d_ff=SCRIPT.MLP_DIM,
              d_kv=SCRIPT.WIDTH // SCRIPT.HEADS, num_heads=SCRIPT.HEADS)


@pytest.fixture(scope="module")
def golden():
    with np.load(HERE / "golden.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def weights(golden):
    return {k.removeprefix("params/"): v for k, v in golden.items() if k.startswith("params/")}


def our_model(case, **overrides):
    pool, position, loss, smoothing = case
    options = default_options()
    options.update({
        "image_size": SCRIPT.IMAGE_SIZE, "patch_size": SCRIPT.PATCH, "channels": SCRIPT.CHANNELS,
        "num_classes": SCRIPT.CLASSES, "pool_type": pool, "position": position, "loss": loss,
        "label_smoothing": smoothing, **overrides})
    return make_model(VIT, TRANSFORMER, SHAPE, options), options


def our_results(case, params, **overrides):
    """What `make_golden.run_case` returns, from our model; gradients under big_vision's names."""
    model, _ = our_model(case, **overrides)
    images, labels = SCRIPT.make_inputs()
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels),
             "example_mask": jnp.ones(len(labels))}

    def mean_loss(params):
        out = model.loss(params, batch, None, train=True)
        return out.loss_sum / out.weight_sum

    @jax.jit  # one compilation for all
    def compute(params):
        loss, grads = jax.value_and_grad(mean_loss)(params)
        return {"loss": loss, "logits": model.predict(params, batch),
                "pre_logits": model.features(params, batch)}, grads

    results, grads = jax.tree.map(np.asarray, compute(params))
    grads = flatten(to_big_vision(grads, SHAPE))
    return results | {f"grads/{path}": grad for path, grad in grads.items()}


def assert_equal_results(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ("loss", "logits", "pre_logits"):
        assert np.abs(ours[name] - theirs[name]).max() <= LOGITS_TOLERANCE, name
    for name in theirs:
        if name.startswith("grads/"):
            # A key's bias shifts all scores of a query alike: its true gradient is 0.
            scale = max(np.abs(theirs[name]).max(), 1e-3)
            assert np.abs(ours[name] - theirs[name]).max() <= GRADS_TOLERANCE * scale, name


@pytest.mark.parametrize("case", SCRIPT.CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_equals_the_golden_file(case, golden, weights):
    prefix = f"{case[0]}-{case[1]}/"
    theirs = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    params = from_big_vision(SCRIPT.case_params(weights, case[0], case[1]), SHAPE)
    assert_equal_results(our_results(case, params), theirs)


@pytest.mark.parametrize("overrides", [{"scan": False}, {"remat": "full"}, {"remat": "dots"}],
                         ids=str)
def test_equals_the_golden_file_however_it_is_computed(overrides, golden, weights):
    case = SCRIPT.CASES[0]
    theirs = {k.removeprefix("gap-learn/"): v for k, v in golden.items()
              if k.startswith("gap-learn/")}
    params = from_big_vision(SCRIPT.case_params(weights, "gap", "learn"), SHAPE)
    assert_equal_results(our_results(case, params, **overrides), theirs)


@pytest.mark.parametrize("case", SCRIPT.CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_has_as_many_parameters(case, weights):
    theirs = flatten(SCRIPT.case_params(weights, case[0], case[1]))
    _, options = our_model(case)
    costs = count_costs(VIT, TRANSFORMER, SHAPE, options)
    assert sum(array.size for array in costs.arrays) == sum(a.size for a in theirs.values())


@pytest.mark.parametrize("case", SCRIPT.CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_conversion_is_a_round_trip(case, weights):
    theirs = SCRIPT.case_params(weights, case[0], case[1])
    ours = from_big_vision(theirs, SHAPE)
    model, options = our_model(case)
    init = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, init)
    found_shape, found = describe("test", flatten(theirs))
    assert found_shape == SHAPE
    for name, value in found.items():
        assert options[name] == value, name
    back, start = flatten(to_big_vision(ours, SHAPE)), flatten(theirs)
    assert back.keys() == start.keys()
    assert all(np.array_equal(back[path], start[path]) for path in start)


def test_reads_stacked_layers(weights):
    theirs = SCRIPT.case_params(weights, "map", "learn")
    stacked = {**theirs, "Transformer": dict(theirs["Transformer"])}
    layers = [stacked["Transformer"].pop(f"encoderblock_{i}") for i in range(SCRIPT.DEPTH)]
    stacked["Transformer"]["encoderblock"] = jax.tree.map(lambda *x: np.stack(x), *layers)
    one, other = flatten(from_big_vision(stacked, SHAPE)), flatten(from_big_vision(theirs, SHAPE))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize(("change", "said"), [
    ({"num_encoder_layers": 3}, "Transformer/encoderblock_2"),
    ({"num_encoder_layers": 1}, "encoderblock_1/MlpBlock_0/Dense_0/bias, and 11 more"),
    ({"d_ff": 128}, "Transformer/encoderblock_0/MlpBlock_0/Dense_0"),
    ({"num_heads": 8, "d_kv": 4}, "Transformer/encoderblock_0/MultiHeadDotProductAttention_0"),
    ({"d_kv": 16}, "num_heads * d_kv = d_model"),
    ({"share_kv": True}, "share no projections"),
], ids=str)
def test_refuses_parameters_of_another_shape(change, said, weights):
    params = SCRIPT.case_params(weights, "gap", "learn")
    with pytest.raises(InputError, match="big_vision parameters") as caught:
        from_big_vision(params, SHAPE.replace(**change))
    assert said in str(caught.value)


def test_refuses_a_damaged_head(weights):
    params = SCRIPT.case_params(weights, "gap", "learn")
    params["head"]["kernel"] = params["head"]["kernel"][:-1]
    with pytest.raises(InputError, match="head/kernel does not fit the model"):
        from_big_vision(params, SHAPE)


@pytest.mark.parametrize("grid", SCRIPT.GRIDS)
def test_resamples_positions_as_big_vision_does(grid, golden, weights):
    ours = resample_position(weights["pos_embedding"], grid)
    assert np.abs(ours - golden[f"resample/{grid}"]).max() <= 1e-5


def test_the_live_model_agrees(weights):
    """Fresh weights of big_vision's own initialiser, with a head that is not zero."""
    try:
        modules = SCRIPT.import_big_vision()
    except ImportError as error:
        pytest.skip(f"runs with a big_vision checkout on PYTHONPATH: {error}")
    cases = (SCRIPT.CASES[0], SCRIPT.CASES[3], SCRIPT.CASES[5])  # one of each pooling
    for case, grid, width in zip(cases, (3, 4, 5), (8, 32, 64), strict=True):
        params = SCRIPT.make_model(modules[0], case[0], case[1]).init(
            jax.random.key(7), SCRIPT.make_inputs()[0])["params"]
        params["head"]["kernel"] = weights["head/kernel"]
        ours = our_results(case, from_big_vision(params, SHAPE))
        assert_equal_results(ours, SCRIPT.run_case(modules, params, case))
        theirs = modules[0].posemb_sincos_2d(grid, grid, width)
        assert np.abs(sincos_position(grid, width) - theirs).max() <= 1e-5
