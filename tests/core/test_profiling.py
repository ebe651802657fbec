"""What a run's time goes to: parts add up, compiling is not counted twice, a trace is written."""

from __future__ import annotations

import time

import jax.monitoring
import jax.numpy as jnp
from jax import jit

from deepnarrow.profiling import TRACED_STEPS, PartClock, StepTrace
from deepnarrow.steptimer import WARMUP_STEPS


def compiled(seconds: float) -> None:
    jax.monitoring.record_event_duration_secs(
        "/jax/core/compile/backend_compile_duration", seconds)


def test_compiling_is_a_part_of_its_own_and_heard_only_within():
    clock = PartClock()
    compiled(100.0)
    with clock, clock.timed("evaluation"):
        time.sleep(0.05)
        compiled(0.03)
    compiled(100.0)
    assert clock.seconds["compile"] == 0.03
    assert 0.015 < clock.seconds["evaluation"] < 0.03 + 1.0


def test_parts_add_up_over_calls():
    clock = PartClock()
    for _ in range(3):
        with clock.timed("input"):
            time.sleep(0.01)
    assert clock.seconds["input"] >= 0.03


def test_the_trace_is_of_some_warm_steps_and_can_be_opened_in_perfetto(tmp_path):
    trace, double = StepTrace(tmp_path / "profile"), jit(lambda x: 2 * x)
    for step in range(WARMUP_STEPS + TRACED_STEPS + 1):
        trace.before_step()
        assert trace._tracing == (WARMUP_STEPS <= step < WARMUP_STEPS + TRACED_STEPS)
        double(jnp.ones(3)).block_until_ready()
    trace.close()
    assert len(list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))) == 1


def test_a_short_run_ends_its_trace_and_none_is_none(tmp_path):
    trace = StepTrace(tmp_path / "profile")
    for _ in range(WARMUP_STEPS + 1):
        trace.before_step()
    trace.close()
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
    for _ in range(30):
        StepTrace(None).before_step()
