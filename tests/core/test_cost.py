"""The ledger: conventions against their papers' formulas, optimiser bytes, conversion."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import LENGTH

from deepnarrow.assemble import count_costs
from deepnarrow.cost import (
    CONVENTIONS,
    EMBEDDING_COMPONENTS,
    convert,
    ledger,
    optimizer_bytes,
    summarize,
)
from deepnarrow.errors import InputError, ShapeError
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.modality import Costs, FlopTerm, Modality, ParamArray, StackOptions, StackSpec
from deepnarrow.shape import Preset, Shape

VOCAB, INPUTS, TARGETS = 1000, 96, 32


def decoder_only(remat="none", compute_dtype="float32"):
    """A language model of one stack with tied embeddings: the papers' case."""
    from ml_collections import ConfigDict

    def count_frame(shape, options):
        table = ParamArray(("embedding",), (VOCAB, shape.d_model), ("vocab", "embed"), "embedding")
        return Costs((table,), (
            FlopTerm("embedding", "embedding", 0.0),
            FlopTerm("head", "logits", 2.0 * INPUTS * VOCAB * shape.d_model)))

    def stack_specs(shape, options):
        stack = StackOptions(norm="rms", use_bias=False, activation="relu", causal=True,
                             remat=options.remat)
        return (StackSpec("decoder", INPUTS, stack),)

    return Modality(
        name="lm", presets={"tiny": Preset(SHAPE, "a test")},
        options=ConfigDict({"remat": remat, "compute_dtype": compute_dtype}).lock(),
        data_options=ConfigDict(), stack_specs=stack_specs, assemble=None, count_frame=count_frame,
        upstream=None, tasks=None, adapt=None)


# d_attn = heads x d_kv = 192 differs from d_model = 128 on purpose: that is where formulas break.
SHAPE = Shape(0, 4, d_model=128, d_ff=512, d_kv=48, num_heads=4)
LAYERS, D_MODEL, D_FF, D_ATTN = 4, 128, 512, 192
MATRICES = LAYERS * (4 * D_MODEL * D_ATTN + 2 * D_MODEL * D_FF)
NORMS = (2 * LAYERS + 1) * D_MODEL
EMBEDDING = VOCAB * D_MODEL


def count(convention="matmul", shape=SHAPE, **options):
    modality = decoder_only(**options)
    return summarize(count_costs(modality, TRANSFORMER, shape, modality.options), convention)


def test_parameters_by_hand():
    costs = count()
    assert costs.params_total == MATRICES + NORMS + EMBEDDING
    assert costs.params_embedding == EMBEDDING
    assert costs.params_non_embedding == MATRICES + NORMS
    assert costs.params_active == costs.params_total
    assert costs.params_by_component == {
        "embedding": EMBEDDING, "decoder/attention": LAYERS * 4 * D_MODEL * D_ATTN,
        "decoder/mlp": LAYERS * 2 * D_MODEL * D_FF, "decoder/norm": NORMS}


def test_tokens_are_the_positions_of_all_stacks(toy):
    modality, toy_mlp = toy
    shape = modality.presets["tiny"].shape
    for architecture in (toy_mlp, TRANSFORMER):  # bound and general
        costs = count_costs(modality, architecture, shape, modality.options)
        assert summarize(costs).tokens_per_example == LENGTH
    both = Costs(lengths={"encoder": INPUTS, "decoder": TARGETS})
    assert summarize(both).tokens_per_example == INPUTS + TARGETS


def test_matmul_counts_every_product():
    scores_and_sums = LAYERS * 4 * INPUTS * D_ATTN
    per_token = 2 * MATRICES + scores_and_sums + 2 * EMBEDDING
    assert count().flops_forward_per_example == INPUTS * per_token
    assert count().flops_train_per_example == 3 * INPUTS * per_token
    assert count().flops_forward_per_token == per_token
    assert count().flops_train_per_token == 3 * per_token


def test_kaplan_is_table_1():
    # C_forward = 2 N + 2 n_layer n_ctx d_attn a token.
    per_token = 2 * MATRICES + 2 * LAYERS * INPUTS * D_ATTN
    assert count("kaplan").flops_forward_per_example == INPUTS * per_token
    assert count("kaplan").flops_train_per_example == 3 * INPUTS * per_token


def test_chinchilla_is_appendix_f():
    embeddings = 2 * INPUTS * VOCAB * D_MODEL
    qkv = 2 * 3 * INPUTS * D_MODEL * D_ATTN
    scores = 2 * INPUTS * INPUTS * D_ATTN
    softmax = 3 * 4 * INPUTS * INPUTS
    reduction = 2 * INPUTS * INPUTS * D_ATTN
    linear = 2 * INPUTS * D_ATTN * D_MODEL
    dense = 2 * INPUTS * (D_MODEL * D_FF + D_MODEL * D_FF)
    logits = 2 * INPUTS * D_MODEL * VOCAB
    forward = (embeddings + LAYERS * (qkv + scores + softmax + reduction + linear + dense)
               + logits)
    assert count("chinchilla").flops_forward_per_example == forward
    assert count("chinchilla").flops_train_per_example == 3 * forward


def test_palm_is_appendix_b():
    # 6 N + 12 L H Q T a token.
    per_token = 6 * (MATRICES + NORMS + EMBEDDING) + 12 * LAYERS * 4 * 48 * INPUTS
    assert count("palm").flops_train_per_example == pytest.approx(INPUTS * per_token, rel=1e-12)


@pytest.mark.parametrize(("remat", "repeated"), [
    ("none", 0),
    ("dots", INPUTS * LAYERS * 4 * INPUTS * D_ATTN),
    ("full", INPUTS * (2 * MATRICES + LAYERS * 4 * INPUTS * D_ATTN)),
])
def test_hardware_adds_what_remat_repeats(remat, repeated):
    plain, hardware = count(remat=remat), count("hardware", remat=remat)
    assert hardware.flops_forward_per_example == plain.flops_forward_per_example
    assert hardware.flops_train_per_example == plain.flops_train_per_example + repeated


@pytest.mark.parametrize(("convention", "more"), [
    ("matmul", 2), ("hardware", 2), ("chinchilla", 3), ("kaplan", 3), ("palm", 3)])
def test_data_need_no_gradient_where_what_runs_is_counted(convention, more):
    """An embedding of 20 values each: a matmul with data costs 2 x forward to train, not 3 x."""
    kernel = ParamArray(("kernel",), (20, D_MODEL), (None, "embed"), "frame")
    term = FlopTerm("frame", "weight", 2.0 * INPUTS * 20 * D_MODEL, backward=1.0)
    costs = count().costs
    with_frame = dataclasses.replace(costs, arrays=(*costs.arrays, kernel),
                                     flops=(*costs.flops, term))
    before, after = summarize(costs, convention), summarize(with_frame, convention)
    forward = after.flops_forward_per_example - before.flops_forward_per_example
    assert forward == term.forward
    train = after.flops_train_per_example - before.flops_train_per_example
    assert train == more * forward
    assert after.flops_train_by_component["frame"] == train


def test_conventions_have_sources_and_convert_both_ways():
    for name, convention in CONVENTIONS.items():
        assert convention.name == name
        assert convention.source
        converted = convert(count(), name)
        assert converted == count(name)
        assert converted.convention == name
        assert convert(converted, "matmul") == count()


def test_an_unknown_convention_is_refused():
    with pytest.raises(InputError, match=r"unknown \(got kaplann.*did you mean kaplan\?"):
        summarize(Costs(), "kaplann")
    with pytest.raises(InputError, match="no stack lengths"):
        summarize(Costs(), "palm")


def test_an_absurd_product_of_legal_fields_is_refused_by_its_count():
    shape = Shape(0, 4096, d_model=131_072, d_ff=1_048_576, d_kv=65_536, num_heads=4096)
    with pytest.raises(ShapeError, match=r"too many parameters \(got 5.8e\+17; expected at most"):
        count(shape=shape)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_components_and_columns_add_up(convention):
    summary = count(convention)
    rows = ledger(summary, "adamw")
    assert sum(r.params for r in rows) == summary.params_total
    forward = sum(r.flops_forward_per_example for r in rows)
    assert forward == summary.flops_forward_per_example
    assert sum(r.flops_train_per_example for r in rows) == summary.flops_train_per_example
    assert sum(r.flops_train_per_token for r in rows) == pytest.approx(
        summary.flops_train_per_token, rel=1e-12)
    assert sum(r.activation_bytes_per_example for r in rows) == summary.activation_bytes_per_example
    assert sum(r.optimizer_bytes for r in rows) == 8 * summary.params_total
    assert {r.component for r in rows} >= {"embedding", "decoder/attention", "decoder/mlp",
                                           "decoder/norm"}


def test_activations_by_hand():
    # Per layer: two norms (input, output), q k v and the attended values, the attention weights,
    # the MLP's hidden layer twice; then the final norm.
    layer = (4 * INPUTS * D_MODEL + 4 * INPUTS * D_ATTN + 4 * INPUTS * INPUTS + 2 * INPUTS * D_FF)
    floats = LAYERS * layer + 2 * INPUTS * D_MODEL
    assert count().activation_bytes_per_example == 4 * floats
    assert count(compute_dtype="bfloat16").activation_bytes_per_example == 2 * floats


def test_active_parameters_count_chosen_experts_only():
    experts = ParamArray(("mlp",), (8, 4, 4), ("expert", "embed", "mlp"), "mlp", active=0.25)
    assert summarize(Costs((experts,))).params_total == 128
    assert summarize(Costs((experts,))).params_active == 32


# --- optimiser bytes ---------------------------------------------------------------------------
def one(shape, axes):
    return Costs((ParamArray(("w",), shape, axes, "mlp"),))


@pytest.mark.parametrize(("shape", "axes", "floats"), [
    ((256,), ("embed",), 256),
    ((128, 512), ("embed", "mlp"), 128 + 512),
    ((127, 512), ("embed", "mlp"), 127 * 512),
    ((6, 128, 512), ("layers", "embed", "mlp"), 6 * (128 + 512)),
    ((200, 512), ("layers", "embed"), 200 * 512),  # vectors, however many layers
    ((6, 256, 4, 64), ("layers", "embed", "heads", "kv"), 6 * (256 + 256)),
    ((6, 4, 64, 256), ("layers", "heads", "kv", "embed"), 6 * (256 + 256)),
    ((256, 2, 32), ("embed", "heads", "kv"), 256 * 64),
    ((16, 16, 3, 384), (None, None, "channels", "embed"), 16 * 16 * 3 * 384),
    ((3, 200, 300), (None, "embed", "mlp"), 3 * 200 + 3 * 300),
    ((), (), 1),
])
def test_adafactor_keeps_rows_and_columns_of_each_layers_wide_matrices(shape, axes, floats):
    assert optimizer_bytes(one(shape, axes), "adafactor") == {"mlp": 4 * floats}


@given(st.lists(st.integers(1, 300), max_size=4))
def test_adafactor_never_keeps_more_than_adamw(shape):
    costs = one(tuple(shape), tuple("embed" for _ in shape))
    adamw = optimizer_bytes(costs, "adamw")["mlp"]
    assert adamw == 8 * costs.arrays[0].size
    assert optimizer_bytes(costs, "adafactor")["mlp"] <= adamw


# --- laws of scale -----------------------------------------------------------------------------
@given(layers=st.integers(1, 64), convention=st.sampled_from(sorted(CONVENTIONS)))
def test_costs_are_linear_in_depth(layers, convention):
    def flops(n):
        return count(convention, SHAPE.replace(num_decoder_layers=n)).flops_train_per_example

    assert flops(layers + 2) - flops(layers + 1) == pytest.approx(
        flops(layers + 1) - flops(layers), rel=1e-9)


@given(field=st.sampled_from(["num_decoder_layers", "d_model", "d_ff", "d_kv", "num_heads"]),
       more=st.integers(1, 100))
def test_every_field_costs_something(field, more):
    small, large = count(), count(shape=SHAPE.replace(**{field: getattr(SHAPE, field) + more}))
    assert large.params_non_embedding > small.params_non_embedding
    for name in CONVENTIONS:
        assert (convert(large, name).flops_train_per_example
                > convert(small, name).flops_train_per_example)


def test_embedding_components_are_the_vocabulary_and_the_positions():
    assert frozenset({"embedding", "position"}) == EMBEDDING_COMPONENTS
