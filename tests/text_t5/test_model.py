"""T5 against an independent implementation, its own contract, and published parameter counts."""

import dataclasses
import functools
import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepnarrow.assemble import build_stacks, count_costs, make_model
from deepnarrow.cost import summarize
from deepnarrow.errors import InputError
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.shape import Shape
from deepnarrow_text_t5.convert import from_hugging_face, to_hugging_face
from deepnarrow_text_t5.model import make_t5, negative_log_likelihood, shift_right
from deepnarrow_text_t5.options import default_options
from deepnarrow_text_t5.plugin import deepnarrow_register_modalities

HERE = pathlib.Path(__file__).parent
(T5,) = deepnarrow_register_modalities()
SMALL = Shape(2, 2, d_model=16, d_ff=24, d_kv=4, num_heads=3)


def load_make_golden():
    spec = importlib.util.spec_from_file_location("make_golden_t5", HERE / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


GOLDEN = load_make_golden()


def make_options(**overrides):
    options = default_options()
    options.update({"vocab_size": 48, "input_length": 10, "target_length": 6, **overrides})
    return options


# Each program runs once or twice here: most of the time goes to compiling it.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def compiled(model):
    """The model with every function jitted: one compilation instead of one an operation."""
    jitted = {name: jit(getattr(model, name)) for name in ("init", "features", "predict", "score")}
    return dataclasses.replace(model, loss=jit(model.loss, static_argnames="train"), **jitted)


@functools.cache
def small_model(**overrides):
    return compiled(make_model(T5, TRANSFORMER, SMALL, make_options(**overrides)))


@functools.cache
def small_params(seed=0):
    return small_model().init(jax.random.key(seed))


def jitted_logits(shape, options):
    t5 = make_t5(shape, options, build_stacks(T5, TRANSFORMER, shape, options))
    return jit(lambda params, batch: t5.logits(params, batch, None, train=False)[0])


def small_batch(batch_size=4, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.integers(2, 48, (batch_size, 10), dtype=np.int32)
    targets = rng.integers(2, 48, (batch_size, 6), dtype=np.int32)
    if batch_size > 1:
        inputs[1, 6:], targets[1, 3:] = 0, 0
    return {"inputs": inputs, "targets": targets}


def case_setting(case, **overrides):
    """(shape, options) of a golden case."""
    shape = Shape(case.num_layers, case.num_decoder_layers, d_model=case.d_model, d_ff=case.d_ff,
                  d_kv=case.d_kv, num_heads=case.num_heads)
    options = make_options(vocab_size=GOLDEN.VOCAB_SIZE, input_length=case.input_length,
                           target_length=case.target_length, eos_id=case.eos_id, **overrides)
    return shape, options


def mean_loss(model):
    def loss(params, batch):
        out = model.loss(params, batch, None, train=False)
        return out.loss_sum / out.weight_sum

    return loss


def check_against(arrays, case, **overrides):
    """Logits, loss, gradients and greedy tokens of one case equal those in `arrays`."""
    shape, options = case_setting(case, **overrides)
    model = make_model(T5, TRANSFORMER, shape, options)
    split = {kind: {name.removeprefix(f"{kind}/"): array for name, array in arrays.items()
                    if name.startswith(f"{kind}/")} for kind in ("weights", "gradients")}
    params = from_hugging_face(split["weights"], shape)
    batch = {"inputs": arrays["inputs"], "targets": arrays["targets"]}

    def run(params, batch):
        return t5.logits(params, batch, None, train=False)[0], value_and_grad(params, batch)

    t5 = make_t5(shape, options, build_stacks(T5, TRANSFORMER, shape, options))
    value_and_grad = jax.value_and_grad(mean_loss(model))
    logits, (value, gradients) = jit(run)(params, batch)
    real = batch["targets"] != 0
    assert np.abs(np.asarray(logits) - arrays["logits"])[real].max() <= 1e-4
    assert abs(float(value) - float(arrays["loss"])) <= 1e-5
    gradients = to_hugging_face(gradients, shape)
    assert gradients.keys() == split["gradients"].keys()
    for name, expected in split["gradients"].items():
        difference = np.abs(gradients[name] - expected).max()
        assert difference <= 1e-3 * np.abs(expected).max(), name

    decoded = np.asarray(jit(model.predict)(params, batch))
    assert (decoded == arrays["decoded"]).all()


# --- equality with transformers ------------------------------------------------------------------
@pytest.mark.parametrize("case", GOLDEN.CASES, ids=lambda case: case.name)
def test_equals_transformers_golden(case):
    with np.load(GOLDEN.GOLDEN / f"{case.name}.npz") as arrays:
        check_against(dict(arrays), case)


def test_unrolled_and_rematerialised_equal_transformers_golden():
    case = GOLDEN.CASES[1]
    with np.load(GOLDEN.GOLDEN / f"{case.name}.npz") as arrays:
        check_against(dict(arrays), case, scan=False, remat="full")


def test_golden_cases_reach_every_bucket_end_early_and_stay_small():
    assert max(case.input_length for case in GOLDEN.CASES) > 128
    assert any(case.num_heads * case.d_kv != case.d_model for case in GOLDEN.CASES)
    assert any(case.num_heads * case.d_kv == case.d_model for case in GOLDEN.CASES)
    files = [GOLDEN.GOLDEN / f"{case.name}.npz" for case in GOLDEN.CASES]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    for case, file in zip(GOLDEN.CASES, files, strict=True):
        with np.load(file) as arrays:
            assert (arrays["inputs"] == 0).any()
            ended = (arrays["decoded"] == case.eos_id).any(axis=1)
            assert ended.any()
            assert not ended.all()


def test_equals_transformers_live():
    """The same comparison on weights of another seed, where torch and transformers can be had."""
    pytest.importorskip("torch", reason="torch is no dependency; install it to run this test")
    pytest.importorskip("transformers", reason="transformers is no dependency; install it, too")
    case = dataclasses.replace(GOLDEN.CASES[0], seed=100)
    check_against(GOLDEN.hugging_face_case(case), case)


# --- conversion ----------------------------------------------------------------------------------
def test_conversion_goes_both_ways():
    params = jax.tree.map(np.asarray, small_params())
    back = from_hugging_face(to_hugging_face(params, SMALL), SMALL)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("decoder.final_layer_norm.weight"), "final_layer_norm.weight.*missing"),
    (lambda s: s.update({"encoder.block.2.layer.0.layer_norm.weight": np.ones(16)}), "no place"),
    (lambda s: s.update({"shared.weight": np.ones((48, 8))}), "another shape"),
    (lambda s: s.update({"decoder.block.1.layer.2.DenseReluDense.wi.weight": np.ones((16, 24))}),
     "another shape"),
    (lambda s: s.update({"lm_head.weight": np.ones((48, 16))}), "differ from the shared table"),
])
def test_conversion_refuses_weights_that_do_not_fit(change, message):
    state = to_hugging_face(small_params(), SMALL)
    change(state)
    with pytest.raises(InputError, match=message):
        from_hugging_face(state, SMALL)


# --- counting ------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [SMALL, SMALL.replace(num_encoder_layers=1, d_kv=7),
                                   SMALL.replace(share_heads=True, share_kv=True),
                                   T5.presets["tiny"].shape, T5.presets["xl"].shape])
def test_counts_and_axes_equal_the_initialised_tree(shape):
    options = make_options()
    model = make_model(T5, TRANSFORMER, shape, options)
    tree = jax.eval_shape(model.init, jax.random.key(0))
    made = {tuple(key.key for key in path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    assert {array.path: array.shape
            for array in count_costs(T5, TRANSFORMER, shape, options).arrays} == made
    axes = dict(jax.tree_util.tree_leaves_with_path(model.param_axes,
                                                    is_leaf=lambda x: isinstance(x, tuple)))
    axes = {tuple(key.key for key in path): names for path, names in axes.items()}
    assert {path: len(names) for path, names in axes.items()} == {
        path: len(dims) for path, dims in made.items()}


# The parameters of google-t5/t5-small and t5-base, as transformers counts them.
@pytest.mark.parametrize(("preset", "total"), [("small", 60_506_624), ("base", 222_903_552)])
def test_counts_equal_the_released_models(preset, total):
    costs = count_costs(T5, TRANSFORMER, T5.presets[preset].shape, T5.options)
    assert summarize(costs).params_total == total
    assert summarize(costs).params_embedding == 32_128 * T5.presets[preset].shape.d_model


def test_flops_of_the_frame_by_hand():
    costs = T5.count_frame(SMALL, make_options())
    assert {term.kind: term.forward for term in costs.flops} == {
        "embedding": 0.0, "logits": 2 * 6 * 16 * 48}


def test_flops_near_those_that_xla_counts():
    shape, options = SMALL.replace(d_model=32, d_ff=64), make_options(scan=False, vocab_size=256)
    model = make_model(T5, TRANSFORMER, shape, options)
    batch = small_batch(batch_size=1)
    params = jax.eval_shape(model.init, jax.random.key(0))
    program = jax.jit(functools.partial(model.loss, key=None, train=False)).lower(
        params, batch).compile()
    counted = summarize(count_costs(T5, TRANSFORMER, shape, options)).flops_forward_per_example
    # XLA counts softmaxes and norms, too, which weigh more the smaller a model is.
    assert 1.0 <= program.cost_analysis()["flops"] / counted <= 1.15


# --- loss, score, features -----------------------------------------------------------------------
def test_loss_sums_over_real_tokens_of_real_examples():
    model, batch = small_model(), small_batch()
    params = small_params()
    whole = model.loss(params, batch, None, train=False)
    assert float(whole.weight_sum) == (batch["targets"] != 0).sum() == 21
    masked = model.loss(params, {**batch, "example_mask": np.float32([1, 1, 0, 0])}, None,
                        train=False)
    two = model.loss(params, {name: array[:2] for name, array in batch.items()}, None, train=False)
    assert float(masked.weight_sum) == float(two.weight_sum) == 9
    np.testing.assert_allclose(masked.loss_sum, two.loss_sum, rtol=1e-5)
    np.testing.assert_allclose(masked.metrics["accuracy"][0], two.metrics["accuracy"][0])


def test_padding_changes_nothing():
    """Rows cut to their real tokens, in models of those lengths, score and look the same."""
    batch = small_batch()
    params = small_params()
    cut = {"inputs": batch["inputs"][1:2, :6], "targets": batch["targets"][1:2, :3]}
    short = small_model(input_length=6, target_length=3)
    np.testing.assert_allclose(small_model().features(params, batch)[1:2],
                               short.features(params, cut), rtol=1e-5, atol=1e-5)
    scores = [model.score(params, rows, {"targets": rows["targets"][:, None]})
              for model, rows in ((small_model(), batch), (short, cut))]
    np.testing.assert_allclose(scores[0][1:2], scores[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("number", "share_kv"), [(3, True), (19, False)])  # 19: more than a group
def test_scores_of_candidates_are_negative_losses_one_by_one(number, share_kv):
    model = make_model(T5, TRANSFORMER, SMALL.replace(share_kv=share_kv), make_options())
    params = model.init(jax.random.key(3))
    batch, rng = small_batch(), np.random.default_rng(number)
    targets = rng.integers(2, 48, (4, number, batch["targets"].shape[1]), dtype=np.int32)
    lengths = rng.integers(1, targets.shape[2] + 1, targets.shape[:2])
    targets[np.arange(targets.shape[2]) >= lengths[..., None]] = 0
    scores = jax.jit(model.score)(params, batch, {"targets": targets})
    assert scores.shape == (4, number)
    loss = jax.jit(functools.partial(model.loss, key=None, train=False))
    expected = [[-loss(params, {"inputs": batch["inputs"][i:i + 1], "targets": words[None]})
                 .loss_sum for words in targets[i]] for i in range(4)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_candidates_share_the_encoder_and_what_the_decoder_makes_of_its_output():
    """Eight candidates cost XLA's FLOPs of one and of the decoder at seven times its positions."""
    shape, options = SMALL.replace(d_model=32, d_ff=64), make_options(scan=False, vocab_size=256)
    model = make_model(T5, TRANSFORMER, shape, options)
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = small_batch(batch_size=4)

    def flops(count):
        candidates = {"targets": np.ones((4, count, 6), np.int32)}
        program = jax.jit(model.score).lower(params, batch, candidates).compile()
        return program.cost_analysis()["flops"]

    # The decoder's own positions: self-attention; query, maps and output of cross-attention; MLP.
    # Logits are computed in a loop, whose body XLA counts once.
    heads = shape.num_heads * shape.d_kv
    layer = 2 * 6 * (32 * heads * 6 + 2 * heads * (6 + 10) + 2 * 32 * 64)
    further = 7 * 4 * shape.num_decoder_layers * layer
    assert 1.0 <= (flops(8) - flops(1)) / further <= 1.15


def test_initial_loss_is_near_uniform():
    model, batch = small_model(vocab_size=2048), small_batch(batch_size=32)
    table = np.random.default_rng(0).normal(size=(2048, 16)).astype(np.float32)
    out = model.loss({**small_params(), "embedding": table}, batch, None, train=False)
    assert abs(float(out.loss_sum / out.weight_sum) - np.log(2048)) < 0.2 * np.log(2048)


def test_likelihood_and_its_gradient_equal_the_plain_formula():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 3, 7)) * 5, jnp.float32)
    targets = jnp.asarray(rng.integers(0, 7, (2, 3)))
    weights = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)

    def plain(x):
        chosen = jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0]
        return -jnp.sum(chosen * weights)

    def ours(x):
        return jnp.sum(negative_log_likelihood(x, targets) * weights)

    np.testing.assert_allclose(ours(logits), plain(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(plain)(logits), atol=1e-5)


def test_targets_are_shifted_behind_padding():
    assert shift_right(jnp.array([[5, 6, 1], [7, 1, 0]]), 0).tolist() == [[0, 5, 6], [0, 7, 1]]


def test_every_parameter_gets_a_gradient():
    model, batch = make_model(T5, TRANSFORMER, SMALL, make_options()), small_batch(batch_size=8)
    gradients = jit(jax.grad(mean_loss(model)))(small_params(), batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).max() > 0, path


def test_dropout_acts_in_training_only_and_follows_its_key():
    model, batch = small_model(dropout_rate=0.5), small_batch()
    params = small_params()

    def loss(key, train):
        return float(model.loss(params, batch, key, train=train).loss_sum)

    one, other = jax.random.split(jax.random.key(1))
    assert loss(one, True) == loss(one, True) != loss(other, True)
    assert loss(None, False) == loss(one, False)


def test_bfloat16_stays_near_and_returns_float32():
    batch = small_batch()
    exact, rough = small_model(), small_model(compute_dtype="bfloat16")
    params = small_params()
    candidates = {"targets": batch["targets"][:, None]}
    for name, more in (("score", (candidates,)), ("features", ())):
        ours, theirs = (getattr(model, name)(params, batch, *more) for model in (rough, exact))
        assert ours.dtype == jnp.float32
        assert float(jnp.abs(ours - theirs).max()) < 0.1 * float(jnp.abs(theirs).max())


# --- decoding ------------------------------------------------------------------------------------
def test_decoding_with_a_cache_equals_decoding_without():
    model, batch = small_model(eos_id=47), small_batch()
    params = jax.tree.map(lambda x: x * 0.5, small_params(3))
    decoded = np.asarray(model.predict(params, batch))
    logits_of = jitted_logits(SMALL, make_options())
    tokens = np.zeros((4, 6), np.int32)
    done = np.zeros(4, bool)
    for step in range(6):
        logits = logits_of(params, {**batch, "targets": tokens})
        best = np.asarray(logits)[:, step].argmax(-1)
        tokens[:, step] = np.where(done, 0, best)
        done |= tokens[:, step] == 47
    assert (decoded == tokens).all()


def test_decoding_leaves_filling_rows_empty():
    model, batch = small_model(), small_batch()
    decoded = model.predict(small_params(),
                            {**batch, "example_mask": np.float32([1, 1, 1, 0])})
    assert (np.asarray(decoded)[3] == 0).all()


# --- bad input -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("overrides", "message"), [
    ({"vocab_size": 1}, "vocab_size"), ({"input_length": 0}, "input_length"),
    ({"dropout_rate": 1.0}, "dropout_rate"), ({"compute_dtype": "float99"}, "compute_dtype"),
    ({"remat": "some"}, "remat"), ({"eos_id": 0}, "same token"), ({"pad_id": 48}, "pad_id"),
    ({"relative_buckets": 3}, "relative_buckets"), ({"relative_max_distance": 2}, "max_distance"),
])
def test_bad_options_are_named(overrides, message):
    with pytest.raises(InputError, match=message):
        count_costs(T5, TRANSFORMER, SMALL, make_options(**overrides))


def test_a_t5_needs_both_stacks():
    with pytest.raises(InputError, match="this no decoder"):
        T5.stack_specs(SMALL.replace(num_decoder_layers=0), make_options())


def test_adapt_keeps_params_and_refuses_another_vocabulary():
    params = {"embedding": np.ones(3)}
    kept, fresh = T5.adapt(params, make_options(), make_options(target_length=3), None)
    assert kept is params
    assert tuple(fresh) == ()
    with pytest.raises(InputError, match=r"vocab_size .*data\.vocabulary=PATH"):
        T5.adapt(params, make_options(), make_options(vocab_size=49), None)
