"""big_vision beside us: what happens without a checkout, and equality where there is one."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepnarrow.assemble import count_costs, make_model
from deepnarrow.cli import main
from deepnarrow.config import resolve_options
from deepnarrow.cost import summarize
from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.modality import axes_tree
from deepnarrow.ops import resolve
from deepnarrow.plugins import registry
from deepnarrow.shape import Shape
from deepnarrow.transfer.fewshot import probe
from deepnarrow_vision_vit import big_vision
from deepnarrow_vision_vit.adapt import adapt
from deepnarrow_vision_vit.convert import from_big_vision
from deepnarrow_vision_vit.plugin import deepnarrow_register_modalities

HERE = Path(__file__).parent
VIT = deepnarrow_register_modalities()[0]
SHAPE = Shape(3, 0, d_model=16, d_ff=24, d_kv=8, num_heads=2)
REASON = "big_vision is not on PYTHONPATH"


@pytest.fixture
def no_checkout(monkeypatch):
    """As if there were none."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: None if name == "big_vision" else find(name))
    for name in [name for name in sys.modules if name.startswith("big_vision")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def vit():
    """big_vision's models.vit, or a skipped test."""
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        return script.import_big_vision()[0]
    except ImportError as error:
        pytest.skip(f"runs with a big_vision checkout on PYTHONPATH: {error}")


def options_with(**changes):
    return resolve_options(VIT.options, {
        "image_size": 12, "patch_size": 4, "num_classes": 5, "head_zeroinit": False, **changes},
        "test")


def batch_of(options, size=4):
    rng = np.random.default_rng(0)
    shape = (size, options.image_size, options.image_size, options.channels)
    return {"image": jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32),
            "label": jnp.arange(size) % 5, "example_mask": jnp.ones(size)}


# --- without a checkout -------------------------------------------------------------------------
def test_is_listed_with_the_reason(no_checkout, capsys):
    assert main(["list", "architectures", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert REASON in rows["big_vision_vit"]["unavailable"]
    assert "clone" in rows["big_vision_vit"]["unavailable"]
    assert rows["transformer"]["unavailable"] is None


def test_using_it_is_an_error_with_the_remedy(no_checkout, capsys):
    options = options_with()
    for function in (make_model, count_costs):
        with pytest.raises(NotApplicable, match=REASON):
            function(VIT, big_vision.ARCHITECTURE, SHAPE, options)
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    with pytest.raises(NotApplicable, match=REASON):
        big_vision.fewshot_accuracy(x, y, x, y, num_classes=2, shots=(1,))
    assert main(["shape", "vision_vit", "S/16", "--architecture", "big_vision_vit"]) == 2
    assert REASON in capsys.readouterr().err


def test_names_the_package_that_is_missing(monkeypatch):
    known = {"big_vision", "einops", "absl"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in known else None)
    for name in [name for name in sys.modules if name.startswith("big_vision")]:
        monkeypatch.delitem(sys.modules, name)
    assert big_vision.unavailable() == "big_vision imports tensorflow: pip install tensorflow-cpu"
    known.add("tensorflow")
    assert big_vision.unavailable() is None


# --- the config style ---------------------------------------------------------------------------
VIT_S16_I1K = {"variant": "S/16", "rep_size": True, "pool_type": "gap", "posemb": "sincos2d"}


def test_the_config_of_vit_s16_i1k_is_understood():
    expression, options = big_vision.read_model_config(VIT_S16_I1K)
    named = resolve(expression, registry().vocabulary(VIT))
    assert (expression, named.shape) == ("S/16", VIT.presets["S"].shape)
    assert options["rep_size"] == 384
    resolved = resolve_options(VIT.options, {**named.overrides, **options}, "test")
    costs = summarize(count_costs(VIT, TRANSFORMER, named.shape, resolved))
    # jax.eval_shape of big_vision's model (commit 0127fb6) with 1000 classes, summed.
    assert costs.params_total == 22_122_472


@pytest.mark.parametrize(("model", "expression"), [
    ({}, "B/16"),
    ({"variant": "So400m/14"}, "So400m/14"),
    ({"variant": "Ti", "patch_size": (4, 4)}, "Ti/4"),
    ({"width": 64, "depth": 3, "num_heads": 4}, "B/16-nl3-dm64-ff256-kv16-nh4"),
    ({"variant": "L/32", "mlp_dim": 128, "num_heads": 8}, "L/32-ff128-kv128-nh8"),
])
def test_variants_and_fields_become_expressions(model, expression):
    found, options = big_vision.read_model_config(model)
    assert found == expression
    shape = resolve(found, registry().vocabulary(VIT)).shape
    assert shape.num_heads * shape.d_kv == shape.d_model
    assert options["head_zeroinit"] is True


@pytest.mark.parametrize(("model", "said"), [
    ({"varaint": "S/16"}, "did you mean variant"),
    ({"variant": "XXL/16"}, "unknown variant"),
    ({"variant": "S/16", "num_heads": 5}, "5 and 384"),
    ({"pool_type": "none"}, "gap, tok or map"),
    ({"depth": "12"}, "depth is not a positive integer"),
    ({"patch_size": (16, 8)}, "square"),
    ({"patch_size": None}, "patch_size is no positive integer"),
    ({"patch_size": "16"}, "patch_size is no positive integer"),
    ({"variant": "S/1a"}, "unknown variant"),
    ({"variant": "S/"}, "unknown variant"),
    ({"variant": "S/16/2"}, "unknown variant"),
    ({"rep_size": "yes"}, "rep_size is no bool"),
    ({"dropout": "x"}, "dropout is no number"),
    ({"scan": True, "remat_policy": "dots_saveable"}, "remat_policy"),
])
def test_bad_configs_are_named(model, said):
    with pytest.raises(InputError, match=said):
        big_vision.read_model_config(model)


def test_the_documentation_is_right():
    results = doctest.testmod(big_vision)
    assert results.attempted > 0
    assert results.failed == 0


# --- with a checkout ----------------------------------------------------------------------------
CASES = [
    {"pool_type": "gap"},
    {"pool_type": "tok", "rep_size": 6, "scan": False},
    {"pool_type": "map", "position": "sincos2d"},
    {"pool_type": "gap", "num_classes": 0, "scan": False},
    {"pool_type": "tok", "compute_dtype": "bfloat16"},
    {"pool_type": "gap", "remat": "full"},
    {"pool_type": "gap", "remat": "dots"},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_its_arrays_are_counted(changes, vit):
    options = options_with(**changes)
    model = make_model(VIT, big_vision.ARCHITECTURE, SHAPE, options)
    costs = count_costs(VIT, big_vision.ARCHITECTURE, SHAPE, options)
    real = jax.eval_shape(model.init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(real)
    assert {a.path: a.shape for a in costs.arrays} == {
        tuple(entry.key for entry in path): leaf.shape for path, leaf in leaves}
    assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
    assert model.param_axes == axes_tree(costs.arrays)
    ours = summarize(count_costs(VIT, TRANSFORMER, SHAPE, options))
    theirs = summarize(costs)
    assert theirs.params_total == ours.params_total
    assert theirs.flops_forward_per_example == ours.flops_forward_per_example


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_it_computes_what_ours_computes(changes, vit):
    options = options_with(**changes)
    model = make_model(VIT, big_vision.ARCHITECTURE, SHAPE, options)
    ours = make_model(VIT, TRANSFORMER, SHAPE, options)
    params, batch = model.init(jax.random.key(1)), batch_of(options)
    converted = from_big_vision(params, SHAPE)
    tolerance = 0.03 if options.compute_dtype == "bfloat16" else 1e-4
    x, y = model.features(params, batch), ours.features(converted, batch)
    assert x.dtype == jnp.float32
    assert np.abs(x - y).max() <= tolerance
    if not options.num_classes:
        with pytest.raises(InputError, match="features only"):
            model.predict(params, batch)
        return
    assert np.abs(model.predict(params, batch) - ours.predict(converted, batch)).max() <= tolerance
    losses = [m.loss(p, batch, jax.random.key(2), train=True)
              for m, p in ((model, params), (ours, converted))]
    assert abs(float(losses[0].loss_sum - losses[1].loss_sum)) <= 4 * tolerance
    assert float(losses[0].weight_sum) == 4
    grads = jax.grad(lambda p: model.loss(p, batch, None, train=True).loss_sum)(params)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_its_dropout_acts_in_training_only(vit):
    options = options_with(dropout_rate=0.5)
    model = make_model(VIT, big_vision.ARCHITECTURE, SHAPE, options)
    params, batch = model.init(jax.random.key(1)), batch_of(options)

    def loss(key, train):
        return float(model.loss(params, batch, key, train=train).loss_sum)

    assert loss(jax.random.key(0), True) != loss(jax.random.key(1), True)
    assert loss(jax.random.key(0), False) == loss(None, False) == loss(None, True)


def test_it_adapts_to_another_task_and_image(vit):
    options, target = options_with(), options_with(num_classes=3, image_size=24)
    params = make_model(VIT, big_vision.ARCHITECTURE, SHAPE, options).init(jax.random.key(1))
    adapted, paths = adapt(params, options, target, jax.random.key(2))
    fresh = make_model(VIT, big_vision.ARCHITECTURE, SHAPE, target).init
    assert jax.tree.map(jnp.shape, adapted) == jax.tree.map(
        jnp.shape, jax.eval_shape(fresh, jax.random.key(0)))
    assert set(paths) == {("head", "kernel"), ("head", "bias")}


@pytest.mark.parametrize(("shape", "changes", "said"), [
    (SHAPE.replace(d_kv=4), {}, "d_model / num_heads"),
    (SHAPE, {"activation": "gelu_exact"}, "activation"),
    (SHAPE, {"remat": "full", "scan": False}, "only where it scans"),
])
def test_what_it_cannot_be_is_refused(shape, changes, said, vit):
    for function in (make_model, count_costs):
        with pytest.raises(NotApplicable, match=said):
            function(VIT, big_vision.ARCHITECTURE, shape, options_with(**changes))


@pytest.mark.parametrize("variant", ["mu", "Ti/16", "S/16", "M/32", "B/8", "L", "So400m/14", "g",
                                     "g-opt", "G/14", "G-opt", "e/14", "H"])
def test_variants_mean_the_same(variant, vit):
    theirs = vit.decode_variant(variant)
    expression, _ = big_vision.read_model_config({"variant": variant})
    named = resolve(expression, registry().vocabulary(VIT))
    shape = named.shape
    assert (shape.d_model, shape.num_encoder_layers, shape.d_ff, shape.num_heads) == (
        theirs["width"], theirs["depth"], theirs["mlp_dim"], theirs["num_heads"])
    assert named.overrides["patch_size"] == theirs.get("patch_size", (16, 16))[0]


def test_the_model_of_a_config_has_as_many_parameters(vit):
    theirs = vit.Model(num_classes=1000, **VIT_S16_I1K)
    tree = jax.eval_shape(theirs.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == 22_122_472


def test_its_evaluator_and_our_probe_agree(vit):
    """Also where there are fewer examples than features."""
    try:
        importlib.import_module(big_vision.FEWSHOT)
    except ImportError as error:
        pytest.skip(f"runs where big_vision's evaluator can be imported: {error}")
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 12))
    y = rng.integers(0, 4, 400)
    x = (centers[y] + 2 * rng.normal(size=(400, 12))).astype(np.float32)
    split = (x[:200], y[:200], x[200:], y[200:])
    theirs = big_vision.fewshot_accuracy(*split, num_classes=4, shots=(1, 5, 10), num_seeds=2)
    ours = probe(*split, num_classes=4, shots=(1, 5, 10), seeds=(0, 1)).accuracy[0]
    assert theirs.shape == (3, 2)
    assert np.abs(theirs - ours).max() <= 1e-6
    assert len(np.unique(theirs)) > 3


def test_a_study_runs_with_it(vit, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "def get_config():\n"
        "    adam = {'name': 'adamw', 'learning_rate': 1e-3, 'schedule': 'constant'}\n"
        "    return {'name': 'x', 'seeds': (0,), 'modalities': {'vision_vit': {\n"
        "        'shapes': ('tiny-nl2-dm16-kv4',), 'architectures': ('big_vision_vit',),\n"
        "        'options': {'patch_size': 4},\n"
        "        'protocol': {'batch_size': 16, 'budget': {'kind': 'examples', 'amount': 160},\n"
        "            'optimizer': adam,\n"
        "            'few_shot': {'tasks': ('digits_new_classes',), 'shots': (1,), 'seeds': 1},\n"
        "            'fine_tune': {'tasks': ('digits_new_classes',), 'examples': 32,\n"
        "                          'batch_size': 16, 'optimizer': adam}}}}}\n")
    assert main(["study", str(config), "--workdir", str(tmp_path / "run"), "--json"]) == 0
    capsys.readouterr()
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["total"], status["done"], status["failed"]) == (1, 1, 0)
