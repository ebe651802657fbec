"""The closed forms against the models themselves: parameters exactly, FLOPs against XLA.

Parameters: `count_costs` lists the same paths and shapes as `jax.eval_shape(model.init)`.
FLOPs: XLA's own count of the lowered program (before fusion) of unscanned models, which also holds
elementwise work; widths are chosen so that matmuls are nearly all of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.assemble import build_stacks, count_costs, make_model
from deepnarrow.config import resolve_options
from deepnarrow.cost import optimizer_bytes, summarize
from deepnarrow.modality import axes_tree
from deepnarrow.ops import CORE_OPS, NamedShape, resolve
from deepnarrow.optim import make_optimizer
from deepnarrow.plugins import registry
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.shape import Shape

TEXT, VISION = "text_t5", "vision_vit"
TRANSFORMER = registry().architecture("transformer")


def options_of(modality_name, named, **options):
    modality = registry().modality(modality_name)
    return resolve_options(modality.options, {**named.overrides, **options}, "options")


def named_shape(modality_name, text) -> NamedShape:
    return resolve(text, registry().vocabulary(registry().modality(modality_name)))


def counted(modality_name, named, **options):
    modality = registry().modality(modality_name)
    return count_costs(modality, TRANSFORMER, named.shape,
                       options_of(modality_name, named, **options))


def initialised(modality_name, named, **options):
    """Shapes of the model's parameters by path; nothing is allocated."""
    modality = registry().modality(modality_name)
    model = make_model(modality, TRANSFORMER, named.shape,
                       options_of(modality_name, named, **options))
    tree = jax.eval_shape(model.init, jax.random.key(0))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return model, {tuple(k.key for k in path): leaf.shape for path, leaf in leaves}


def check_parameters(modality_name, named, **options):
    costs = counted(modality_name, named, **options)
    model, shapes = initialised(modality_name, named, **options)
    assert {array.path: array.shape for array in costs.arrays} == shapes
    assert len(costs.arrays) == len(shapes)
    assert model.param_axes == axes_tree(costs.arrays)
    assert summarize(costs).params_total == sum(
        int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())


# --- parameters --------------------------------------------------------------------------------
@pytest.mark.parametrize("modality", [TEXT, VISION])
def test_every_preset_is_counted_exactly(modality):
    for name in registry().modality(modality).presets:
        check_parameters(modality, named_shape(modality, name))


def test_every_released_name_is_counted_exactly():
    catalogue = registry().modality(TEXT).catalogue
    assert len(catalogue) == 160
    for name in catalogue:
        check_parameters(TEXT, named_shape(TEXT, name))


@pytest.mark.parametrize("options", [
    {"pool_type": "tok"}, {"pool_type": "map"}, {"num_classes": 0}, {"position": "sincos2d"},
    {"pool_type": "map", "num_classes": 0, "image_size": 64}, {"scan": False}, {"channels": 1},
], ids=str)
@pytest.mark.parametrize("name", ["tiny-nl2", "S/16-shkv", "So400m/14-nl1"])
def test_every_frame_of_a_vit_is_counted_exactly(name, options):
    if options.get("image_size") == 64 and "14" in name:
        options = {**options, "image_size": 56}
    check_parameters(VISION, named_shape(VISION, name), **options)


@pytest.mark.parametrize("options", [{"vocab_size": 257}, {"relative_buckets": 16}, {"scan": False},
                                     {"input_length": 7, "target_length": 3}], ids=str)
def test_every_frame_of_a_t5_is_counted_exactly(options):
    check_parameters(TEXT, named_shape(TEXT, "tiny-el3-dl2-skv"), **options)


@st.composite
def expressions(draw, modality):
    """A preset with small set operators on different fields."""
    highs = {"NL": 5, "EL": 5, "DL": 5, "DM": 40, "FF": 70, "KV": 20, "NH": 6}
    symbols = draw(st.sets(st.sampled_from([op.symbol for op in CORE_OPS])))
    if "NL" in symbols:
        symbols -= {"EL", "DL"}
    if "SHKV" in symbols:
        symbols -= {"SH", "SKV"}
    if modality == VISION:
        symbols -= {"DL"}
        if symbols >= {"NL", "EL"}:
            symbols -= {"EL"}
    preset = draw(st.sampled_from(["tiny", "S/16" if modality == VISION else "small"]))
    terms = [s.lower() + (str(draw(st.integers(1, highs[s]))) if s in highs else "")
             for s in sorted(symbols)]
    return "-".join([preset, *terms])


@pytest.mark.parametrize("modality", [TEXT, VISION])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_compositions_are_counted_exactly(modality, data):
    check_parameters(modality, named_shape(modality, data.draw(expressions(modality))))


@pytest.mark.parametrize(("name", "modality"), [("small-nl2", TEXT), ("S/16-nl3", VISION)])
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_optimiser_bytes_are_those_of_its_state(name, modality, optimizer):
    costs = counted(modality, named_shape(modality, name))
    model, _ = initialised(modality, named_shape(modality, name))
    transform = make_optimizer(OptimizerConfig(optimizer, 1e-3, "constant"), 10, model.param_axes)
    state = jax.eval_shape(lambda key: transform.init(model.init(key)), jax.random.key(0))
    layers = 3 if modality == VISION else 2
    # Without what optax keeps per array as a placeholder, (1,), and without counters.
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
               if leaf.shape not in {(), (1,), (layers, 1), (layers,)})
    assert kept == sum(optimizer_bytes(costs, optimizer).values())


# --- FLOPs -------------------------------------------------------------------------------------
WIDE = Shape(1, 1, d_model=512, d_ff=2048, d_kv=64, num_heads=8)
T5 = {"vocab_size": 4096, "input_length": 64, "target_length": 24, "scan": False}
VIT = {"image_size": 64, "patch_size": 8, "num_classes": 100, "scan": False}


def xla_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def batch_of(modality_name, options):
    integers = jax.ShapeDtypeStruct
    if modality_name == TEXT:
        batch = {"inputs": integers((1, options.input_length), jnp.int32),
                 "targets": integers((1, options.target_length), jnp.int32)}
    else:
        side = options.image_size
        batch = {"image": integers((1, side, side, options.channels), jnp.float32),
                 "label": integers((1,), jnp.int32)}
    return {**batch, "example_mask": integers((1,), jnp.float32)}


def flops(modality_name, shape, *, train=False, **options):
    """(closed form, XLA) of one example."""
    named = NamedShape("x", shape, {})
    modality = registry().modality(modality_name)
    resolved = options_of(modality_name, named, **options)
    model = make_model(modality, TRANSFORMER, shape, resolved)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def loss(params, batch):
        return model.loss(params, batch, None, train=False).loss_sum

    summary = summarize(count_costs(modality, TRANSFORMER, shape, resolved))
    batch = batch_of(modality_name, resolved)
    if train:
        return summary.flops_train_per_example, xla_flops(jax.grad(loss), params, batch)
    return summary.flops_forward_per_example, xla_flops(loss, params, batch)


@pytest.mark.parametrize("layers", [(1, 1), (2, 2), (2, 1), (1, 2)])
def test_forward_flops_of_a_t5(layers):
    shape = WIDE.replace(num_encoder_layers=layers[0], num_decoder_layers=layers[1])
    ours, xla = flops(TEXT, shape, **T5)
    assert ours == pytest.approx(xla, rel=0.02)


@pytest.mark.parametrize("options", [{}, {"pool_type": "map"}, {"pool_type": "tok"},
                                     {"num_classes": 0}], ids=str)
@pytest.mark.parametrize("layers", [1, 2])
def test_forward_flops_of_a_vit(layers, options):
    shape = WIDE.replace(num_encoder_layers=layers, num_decoder_layers=0)
    if options.get("num_classes") == 0:
        ours, xla = features_flops(shape, **{**VIT, **options})
    else:
        ours, xla = flops(VISION, shape, **{**VIT, **options})
    assert ours == pytest.approx(xla, rel=0.02)


def features_flops(shape, **options):
    """A model without a head has no loss: its features are what it computes."""
    named = NamedShape("x", shape, {})
    resolved = options_of(VISION, named, **options)
    model = make_model(registry().modality(VISION), TRANSFORMER, shape, resolved)
    params = jax.eval_shape(model.init, jax.random.key(0))
    xla = xla_flops(model.features, params, batch_of(VISION, resolved))
    return summarize(counted(VISION, named, **options)).flops_forward_per_example, xla


@pytest.mark.parametrize(("modality", "options"), [(TEXT, T5), (VISION, VIT)])
def test_training_flops(modality, options):
    shape = WIDE if modality == TEXT else WIDE.replace(num_decoder_layers=0)
    ours, xla = flops(modality, shape, train=True, **options)
    assert ours == pytest.approx(xla, rel=0.02)


@pytest.mark.parametrize("d_ff", [512, 2048])
def test_no_gradient_flows_into_the_image(d_ff):
    """The embedding of large patches is much of a small ViT: its backward pass counts once."""
    shape = WIDE.replace(num_decoder_layers=0, d_ff=d_ff)
    options = {**VIT, "image_size": 128, "patch_size": 16}
    ours, xla = flops(VISION, shape, train=True, **options)
    assert ours == pytest.approx(xla, rel=0.02)
    forward, _ = flops(VISION, shape, **options)
    assert 3 * forward > 1.03 * xla


@pytest.mark.parametrize(("field", "component", "value"), [
    ("d_ff", "mlp", 4096), ("d_kv", "attention", 128), ("num_heads", "attention", 16)])
@pytest.mark.parametrize("modality", [TEXT, VISION])
def test_flops_by_component(modality, field, component, value):
    """XLA cannot be asked for a component, but for what a field adds, and one field feeds each."""
    base, options = (WIDE, T5) if modality == TEXT else (WIDE.replace(num_decoder_layers=0), VIT)
    wider = base.replace(**{field: value})
    more_xla = flops(modality, wider, **options)[1] - flops(modality, base, **options)[1]

    def of_component(shape):
        summary = summarize(counted(modality, NamedShape("x", shape, {}), **options))
        return sum(f for name, f in summary.flops_by_component.items() if component in name)

    assert of_component(wider) - of_component(base) == pytest.approx(more_xla, rel=0.02)


def stack_flops(role, **fields):
    """(closed form by component, XLA) of one stack of a T5 alone."""
    shape = WIDE.replace(**fields)
    modality = registry().modality(TEXT)
    options = options_of(TEXT, NamedShape("x", shape, {}), **T5)
    stack = build_stacks(modality, TRANSFORMER, shape, options)[role]
    params = jax.eval_shape(stack.init, jax.random.key(0))
    lengths = {"encoder": options.input_length, "decoder": options.target_length}
    x = jax.ShapeDtypeStruct((1, lengths[role], shape.d_model), jnp.float32)
    context = jax.ShapeDtypeStruct((1, lengths["encoder"], shape.d_model), jnp.float32)

    def apply(params, x, context):
        given = context if role == "decoder" else None
        return stack.apply(params, x, context=given).x

    costs = {}
    for term in stack.count().flops:
        costs[term.component] = costs.get(term.component, 0.0) + term.forward
    return costs, xla_flops(apply, params, x, context)


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_flops_of_each_stack_of_a_t5(role):
    costs, xla = stack_flops(role)
    assert ("cross_attention" in costs) == (role == "decoder")
    assert sum(costs.values()) == pytest.approx(xla, rel=0.02)


@pytest.mark.parametrize(("modality", "options"), [(TEXT, T5), (VISION, VIT)])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_hardware_flops_bound_what_xla_repeats(modality, options, remat):
    """Under remat XLA runs at least the model's FLOPs and at most those of `hardware`."""
    shape = WIDE if modality == TEXT else WIDE.replace(num_decoder_layers=0)
    ours, xla = flops(modality, shape, train=True, remat=remat, **options)
    hardware = summarize(counted(modality, NamedShape("x", shape, {}), remat=remat, **options),
                         "hardware").flops_train_per_example
    assert ours * 0.98 <= xla <= hardware * 1.02
