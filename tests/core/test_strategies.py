"""Scaling strategies: where they walk, why they stop, and what their shapes are called."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.cost import summarize
from deepnarrow.errors import InputError, PluginError, ShapeError
from deepnarrow.hardware import CHIPS
from deepnarrow.layers.transformer import TRANSFORMER
from deepnarrow.modality import StackOptions
from deepnarrow.ops import CORE_OPS, ShapeOp, Vocabulary, apply, parse, resolve
from deepnarrow.plugins import Strategy, Walk, registry
from deepnarrow.shape import Preset, Shape
from deepnarrow.strategies import FLATTENS_AT, STRATEGIES, Machine, describe, ladder, walk

SMALL = Shape(6, 6, d_model=64, d_ff=256, d_kv=16, num_heads=4)
BASE = Shape(12, 12, d_model=96, d_ff=384, d_kv=16, num_heads=6)
OPS = {**{op.symbol: op for op in CORE_OPS},
       "NE": ShapeOp("NE", (), "experts", "a test", option="num_experts")}
TEXT = Vocabulary(
    "text", {"small": Preset(SMALL, "a test"), "base": Preset(BASE, "a test")},
    {"rel-small-el16-dl2": Preset(SMALL.replace(num_encoder_layers=16, num_decoder_layers=2),
                                  "a test", open_name="small-el16-dl2"),
     "rel-odd": Preset(SMALL, "a test")}, OPS, frozenset({"num_experts"}))
VISION = Vocabulary("vision", {"S": Preset(SMALL.replace(num_decoder_layers=0), "a test")}, {}, OPS,
                    frozenset({"patch_size"}), "patch_size")
BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}


def summary_of(named):
    """Costs of both stacks over 32 positions, and nothing around them."""
    options = StackOptions(norm="rms", use_bias=False)
    costs = None
    for role, layers in (("encoder", named.shape.num_encoder_layers),
                         ("decoder", named.shape.num_decoder_layers)):
        if layers:
            stack = TRANSFORMER.make_stack(named.shape, role, 32, options).count()
            costs = stack if costs is None else costs + stack
    return summarize(costs)


def params(text, vocabulary=TEXT) -> int:
    return summary_of(resolve(text, vocabulary)).params_total


def go(strategy, base, budget, vocabulary=TEXT, machine=None):
    return walk(vocabulary, summary_of, BY_NAME[strategy], base, budget, machine)


# --- deepnarrow --------------------------------------------------------------------------------
def test_deepnarrow_walks_depth_layer_by_layer_until_the_budget_ends():
    budget = params("small-nl9") + 1
    result = go("deepnarrow", "small", f"params:{budget}")
    assert [step.name for step in result.steps] == ["small", "small-nl7", "small-nl8", "small-nl9"]
    assert [step.cost for step in result.steps] == [params(s.name) for s in result.steps]
    assert f"costs {params('small-nl10'):,}, more than the budget" in result.stopped_because
    assert (result.kind, result.budget, result.strategy) == ("params", budget, "deepnarrow")


def test_a_budget_that_is_just_met_is_met():
    result = go("deepnarrow", "small", f"params:{params('small-nl9')}")
    assert result.steps[-1].name == "small-nl9"


def test_deepnarrow_stops_where_gains_flatten():
    result = go("deepnarrow", "small", "params:1e12")
    assert result.steps[-1].name == f"small-nl{FLATTENS_AT}"
    assert "gains flatten at 32-36 layers" in result.stopped_because
    assert "100% of the budget is unspent" in result.stopped_because
    deep = go("deepnarrow", "small-nl40", "params:1e12")
    assert [step.name for step in deep.steps] == ["small-nl40"]
    assert "gains flatten" in deep.stopped_because


def test_at_the_depth_where_gains_flatten_the_budget_may_bind_too():
    at = params(f"small-nl{FLATTENS_AT}")
    result = go("deepnarrow", "small", f"params:{at}")
    assert result.steps[-1].name == f"small-nl{FLATTENS_AT}"
    beyond = params(f"small-nl{FLATTENS_AT + 1}")
    assert result.stopped_because == (
        f"the next shape costs {beyond:,}, more than the budget of {at:,}")
    result = go("deepnarrow", "small", f"params:{beyond}")
    assert result.steps[-1].name == f"small-nl{FLATTENS_AT}"
    assert "gains flatten" in result.stopped_because


def test_deepnarrow_under_what_another_shape_costs():
    result = go("deepnarrow", "small", "flops:base")
    chosen = result.steps[-1]
    assert result.budget == summary_of(resolve("base", TEXT)).flops_train_per_example
    assert chosen.cost <= result.budget
    deeper = apply(parse(f"small-nl{chosen.shape.shape.num_encoder_layers + 1}", TEXT), TEXT)
    assert summary_of(deeper).flops_train_per_example > result.budget
    assert chosen.shape.shape.d_model == SMALL.d_model


def test_uneven_and_single_stacks_grow_where_they_exist():
    result = go("deepnarrow", "rel-small-el16-dl2", f"params:{params('small-el17-dl3')}")
    assert [step.name for step in result.steps] == ["small-el16-dl2", "small-el17-dl3"]
    result = go("deepnarrow", "S/8", f"params:{params('S-nl8', VISION)}", VISION)
    assert [step.name for step in result.steps] == ["S/8", "S/8-nl7", "S/8-nl8"]
    assert result.steps[-1].shape.overrides == {"patch_size": 8}


# --- all strategies ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(BY_NAME))
@settings(max_examples=8, deadline=None)
@given(factor=st.floats(1, 200), kind=st.sampled_from(["params", "params_non_embedding", "flops"]),
       where=st.sampled_from([("small", TEXT), ("base", TEXT), ("S", VISION)]))
def test_walks_stay_in_budget_grow_and_can_be_named(name, factor, kind, where):
    base, vocabulary = where
    summary = summary_of(resolve(base, vocabulary))
    cost = summary.flops_train_per_example if kind == "flops" else summary.params_total
    result = go(name, base, f"{kind}:{cost * factor}", vocabulary)
    costs = [step.cost for step in result.steps]
    assert costs[-1] <= result.budget
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)
    assert result.steps[0].name == base
    for step in result.steps:
        assert resolve(step.name, vocabulary) == step.shape
        assert step.shape.shape.d_kv == SMALL.d_kv
    assert result.stopped_because
    assert result.source


@pytest.mark.parametrize(("name", "grows"), [
    ("deepnarrow", {"num_encoder_layers", "num_decoder_layers"}),
    ("width", {"d_model", "d_ff", "num_heads"}),
    ("uniform", {"num_encoder_layers", "num_decoder_layers", "d_model", "d_ff", "num_heads"}),
    ("compound", {"num_encoder_layers", "num_decoder_layers", "d_model", "d_ff", "num_heads"}),
    ("sovit", {"num_encoder_layers", "num_decoder_layers", "d_model", "d_ff", "num_heads"}),
])
def test_what_each_strategy_scales(name, grows):
    last = go(name, "small", f"params:{30 * params('small')}").steps[-1].shape.shape
    changed = {f for f, v in last.to_dict().items() if v != getattr(SMALL, f)}
    assert changed == grows


def test_uniform_keeps_the_proportions():
    last = go("uniform", "small", f"params:{27 * params('small')}").steps[-1].shape.shape
    scale = last.d_model / SMALL.d_model
    assert scale == pytest.approx(3, rel=0.05)  # 27 times the parameters
    assert last.num_encoder_layers / 6 == pytest.approx(scale, rel=0.1)
    assert last.num_heads / 4 == pytest.approx(scale, rel=0.1)
    assert last.d_ff / last.d_model == pytest.approx(4, rel=0.05)


def test_sovit_grows_the_mlp_fastest_then_depth_then_width():
    last = go("sovit", "S", f"params:{50 * params('S', VISION)}", VISION).steps[-1].shape.shape
    growth = {f: getattr(last, f) / getattr(SMALL, f)
              for f in ("d_ff", "num_encoder_layers", "d_model")}
    assert growth["d_ff"] > growth["num_encoder_layers"] > growth["d_model"] > 1
    assert "assumption" in BY_NAME["sovit"].source


def test_a_ladder_is_a_walk_for_each_budget():
    budgets = [f"params:{params('small') * factor}" for factor in (1, 2, 4)]
    rungs = ladder(TEXT, summary_of, BY_NAME["deepnarrow"], "small", budgets)
    assert [rung.steps[-1].name for rung in rungs] == ["small", "small-nl12", "small-nl24"]


def test_a_time_budget_is_an_estimate_on_a_machine():
    machine = Machine(CHIPS["v5e"], batch_size=8)
    result = go("deepnarrow", "small", "time:base", machine=machine)
    assert result.budget == machine.estimate(summary_of(resolve("base", TEXT))).step_time_s
    assert len(result.steps) > 1
    assert all(step.cost == machine.estimate(summary_of(step.shape)).step_time_s
               for step in result.steps)


def test_the_registry_offers_them():
    assert set(registry().strategies) >= set(BY_NAME)


# --- names -------------------------------------------------------------------------------------
@given(el=st.integers(1, 40), dl=st.integers(1, 40), d_model=st.integers(1, 300),
       heads=st.integers(1, 9), flags=st.tuples(st.booleans(), st.booleans()),
       start=st.sampled_from(["small", "base-nl4", "small-ne8", "base-ff1k-shkv"]))
def test_every_shape_has_an_expression(el, dl, d_model, heads, flags, start):
    expression = parse(start, TEXT)
    shape = Shape(el, dl, d_model=d_model, d_ff=384, d_kv=16, num_heads=heads,
                  share_heads=flags[0], share_kv=flags[1])
    named = apply(describe(expression, shape, TEXT), TEXT)
    assert named.shape == shape
    assert named.overrides == apply(expression, TEXT).overrides
    assert resolve(named.name, TEXT) == named


def test_names_are_the_short_ones():
    def name(shape):
        return str(describe(parse("small", TEXT), shape, TEXT))

    assert name(SMALL) == "small"
    assert name(SMALL.replace(num_encoder_layers=9, num_decoder_layers=9)) == "small-nl9"
    assert name(SMALL.replace(num_decoder_layers=9)) == "small-dl9"
    assert name(SMALL.replace(share_heads=True, share_kv=True)) == "small-shkv"


# --- bad input ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("budget", "part"), [
    ("220e6", "no kind"),
    ("", "no kind"),
    ("parms:1e6", "did you mean params?"),
    ("params:", "no positive number"),
    ("params:0", "no positive number"),
    ("params:-1e6", "no positive number"),
    ("params:nan", "no positive number"),
    ("params:inf", "no positive number"),
    ("params:1e6x", "no positive number"),
    ("params:10", "small alone costs more"),
    ("time:1", "no chip"),
    ("params:bsae", "did you mean base?"),
])
def test_bad_budgets_are_refused(budget, part):
    with pytest.raises(InputError) as caught:
        go("deepnarrow", "small", budget)
    assert part in str(caught.value)


def test_a_released_name_without_an_open_one_is_no_base():
    with pytest.raises(ShapeError, match="released name without an open one"):
        go("deepnarrow", "rel-odd", "params:1e9")


@pytest.mark.parametrize("shapes", [(), (SMALL, BASE)])
def test_a_strategy_that_breaks_its_contract_is_named(shapes):
    strategy = Strategy("greedy", lambda base, cost_of, budget: Walk(shapes, "done"), "a test")
    with pytest.raises(PluginError, match="strategy 'greedy'"):
        walk(TEXT, summary_of, strategy, "small", f"params:{params('small')}")


def test_a_walk_ends_where_shapes_cannot_be():
    result = go("width", "small", "params:1e13")
    assert result.steps[-1].shape.shape.num_heads == 4096
    assert "cannot be" in result.stopped_because
