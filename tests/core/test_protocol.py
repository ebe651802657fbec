"""Budgets pay for the steps they should; what is out of range is named."""

import pytest

from deepnarrow.errors import InputError
from deepnarrow.protocol import (
    Budget,
    FewShot,
    FineTune,
    OptimizerConfig,
    Protocol,
    RunOptions,
    Tune,
)

ADAMW = OptimizerConfig("adamw", 1e-3, "cosine")
COSTS = {"num_examples": 1000, "tokens_per_example": 100, "train_flops_per_example": 3e6}


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget("examples", 640), 10),
        (Budget("examples", 703), 10),  # rounded down
        (Budget("examples", 64), 1),
        (Budget("tokens", 64 * 100 * 7), 7),
        (Budget("train_flops", 64 * 3e6 * 5), 5),
        (Budget("steps", 12), 12),
        (Budget("steps", 12.9), 12),
        (Budget("epochs", 2), 31),  # of 1000 examples: 2000 / 64 = 31.25
        (Budget("epochs", 0.064), 1),
        (Budget("epochs", 64 * 0.29), 290),  # 0.29 is a little less than 0.29 in binary
    ],
)
def test_budget_steps_by_hand(budget, steps):
    assert budget.steps(64, **COSTS) == steps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget("hours", 1), "budget: kind is unknown (got hours; expected one of"),
        (lambda: Budget("examples", 0), "amount is out of range (got 0; expected > 0)"),
        (lambda: Budget("examples", float("nan")), "amount is out of range (got nan"),
        (lambda: OptimizerConfig("sgd", 1e-3, "cosine"), "name is unknown (got sgd"),
        (lambda: OptimizerConfig("adamw", 0.0, "cosine"), "learning_rate is out of range"),
        (lambda: OptimizerConfig("adamw", float("inf"), "cosine"), "learning_rate is out of range"),
        (lambda: OptimizerConfig("adamw", 1e-3, "stair"), "schedule is unknown"),
        (lambda: OptimizerConfig("adamw", 1e-3, "rsqrt", timescale=0), "timescale is out of"),
        (lambda: OptimizerConfig("adamw", 1e-3, "rsqrt", ema_decay=1.0), "ema_decay is out of"),
        (
            lambda: OptimizerConfig("adamw", 1e-3, "cosine", cooldown_steps=5),
            "cooldown_steps does not go with cosine, which ends at 0 anyway (got 5)",
        ),
        (
            lambda: OptimizerConfig("adamw", 1e-3, "cosine", timescale=5),
            "timescale does not go with cosine (got 5)",
        ),
        (lambda: OptimizerConfig("adamw", 1e-3, "cosine", -1), "warmup_steps is out of range"),
        (
            lambda: OptimizerConfig("adafactor", 1e-3, "constant", weight_decay=0.1),
            "adafactor takes no weight_decay, b1 or b2 (got 0.1, 0.9, 0.999)",
        ),
        (lambda: FewShot(("t",), shots=(0,)), "shots is out of range (got 0; expected >= 1)"),
        (lambda: FewShot(()), "few_shot: tasks is empty"),
        (lambda: FewShot(("t",), shots=()), "few_shot: shots is empty"),
        (lambda: FewShot(("t", "t")), "tasks names one twice (got t, t)"),
        (lambda: FewShot(("t",), l2=0.0), "l2 is out of range"),
        (lambda: FewShot(("t",), l2=float("nan")), "l2 is out of range (got nan"),
        (lambda: FewShot(("t",), l2="best"), "l2 is unknown (got best; expected a number or auto"),
        (lambda: FineTune(("t",), 0, 1, ADAMW), "examples is out of range"),
        (lambda: FineTune(("t",), 1, 1, ADAMW, dropout_rate=1.0), "dropout_rate is out of range"),
        (lambda: FineTune(("t",), 1, 1, ADAMW, train="tail"), "train is unknown (got tail"),
        (lambda: FineTune(("t",), 1, 1, ADAMW, mixture="equal"), "mixture is unknown"),
        (lambda: FineTune(("t",), 1, 1, ADAMW, mixture_limit=0), "mixture_limit is out of range"),
        (lambda: FineTune(("t",), 1, 1, ADAMW, select="first"), "select is unknown"),
        (lambda: FineTune(("t",), 1, 1, ADAMW, decode="beam"), "decode is unknown"),
        (lambda: FineTune(("t",), 1, 1, ADAMW, select="best"), "eval_every is 0, but select is"),
        (
            lambda: FineTune(("t",), 1, 1, ADAMW, options={"dropout_rate": 0.1}),
            "dropout_rate is a field of fine_tune itself",
        ),
        (lambda: Protocol(0, Budget("examples", 1), ADAMW), "batch_size is out of range"),
        (lambda: Tune((1e-3,), (7,)), "learning_rates cannot be used (got 0.001; expected two or"),
        (lambda: Tune((), (7,)), "learning_rates cannot be used (got none"),
        (lambda: Tune((1e-2, 1e-3), (7,)), "expected two or more, increasing"),
        (lambda: Tune((1e-3, 1e-3), (7,)), "expected two or more, increasing"),
        (lambda: Tune((0.0, 1e-3), (7,)), "a learning rate is out of range (got 0.0"),
        (lambda: Tune((1e-3, float("nan")), (7,)), "a learning rate is out of range (got nan"),
        (lambda: Tune((1e-3, 1e-2), ()), "tune: seeds is empty"),
        (lambda: Tune((1e-3, 1e-2), (7, 7)), "seeds names one twice (got 7, 7)"),
        (lambda: Tune((1e-3, 1e-2), (-1,)), "a seed is out of range (got -1"),
        (lambda: Tune((1e-3, 1e-2), (7,), fraction=0.0), "fraction is out of range (got 0.0"),
        (lambda: Tune((1e-3, 1e-2), (7,), fraction=1.5), "fraction is out of range (got 1.5"),
        (lambda: Tune((1e-3, 1e-2), (7,), extend=-1), "extend is out of range (got -1"),
        (lambda: RunOptions(log_every=0), "log_every is out of range"),
    ],
)
def test_out_of_range_is_named(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


def test_a_budget_below_one_step_is_refused():
    with pytest.raises(InputError, match=r"pay for one step of 64 examples \(got 63; .*>= 64 exam"):
        Budget("examples", 63).steps(64, **COSTS)


def test_there_is_no_budget_of_seconds():
    with pytest.raises(InputError, match="kind is unknown"):
        Budget("seconds", 10)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("warmup", "cooldown", "name"), [
    (10, 0, "warmup_steps"), (12, 0, "warmup_steps"), (6, 5, "cooldown_steps")])
def test_schedules_that_do_not_fit_are_named(warmup, cooldown, name):
    config = OptimizerConfig("adamw", 1.0, "rsqrt", warmup, cooldown)
    with pytest.raises(InputError, match=f"here.{name}: .*does not fit the budget"):
        config.check_steps("here", 10)
    OptimizerConfig("adamw", 1.0, "rsqrt", 5, 5).check_steps("here", 10)


def test_auto_probes_with_both_strengths():
    assert FewShot(("t",)) == FewShot(("t",), l2="auto")
    assert FewShot(("t",)).strengths == (1024.0, "auto")
    assert FewShot(("t",), l2=8.0).strengths == (8.0,)
