"""The training loop: feeds the compiled step, watches, saves, goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepnarrow.checkpoint import Checkpointer
from deepnarrow.data import TrainStream, check_seed, eval_batches, example_ids
from deepnarrow.errors import InputError, Preempted
from deepnarrow.meter import Meter
from deepnarrow.modality import EXAMPLE_ID, Params, Source
from deepnarrow.profiling import PartClock, StepTrace
from deepnarrow.protocol import RunOptions
from deepnarrow.records import CurvePoint, Stage, Status
from deepnarrow.runlog import RunLog, RunProgress
from deepnarrow.step import Program, TrainState, abstract_state
from deepnarrow.stepslog import StepsLog


# --- evaluation ----------------------------------------------------------------------------------
def evaluate(
    program: Program, params: Params, source: Source, batch_size: int,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Returns each metric's mean over the whole of `source`, `loss` included.

    Raises:
      Preempted: `should_stop`, asked before each batch, said True.
    """
    meter = Meter()
    for batch in eval_batches(source, batch_size, program.rows(batch_size)):
        if should_stop is not None and should_stop():
            raise Preempted("asked to stop while evaluating")
        meter.add(program.eval_step(params, program.put(batch)))
        meter.collect(leave=1)  # the device works on this batch while the host loads the next
    return meter.means()


# --- the loop ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What training gave.

    Attributes:
      state: the last state; its params are finite.
      curve: points of this run, from before any interruption too.
      step_time_s: median seconds a step, completion to completion, without the steps after which
        something was logged, evaluated or saved; None below 20 timed steps.
      status: `done`, `diverged` or `preempted`.
      steps: updates applied in all.
      seconds: wall time of the loop, from before any interruption too.
      parts: wall seconds of this process's loop by what they went to: `compile`, `input`,
        `evaluation`, `checkpoint`, and `step` for the rest.
    """

    state: TrainState
    curve: tuple[CurvePoint, ...]
    step_time_s: float | None
    status: Status
    steps: int
    seconds: float
    parts: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _Watch:
    """What is measured of the parameters every so many steps; its points are `NAME/...`."""

    name: str
    every: int
    last: bool
    measure: Callable[[int, Params], Mapping[str, float]]

    def due(self, step: int, total_steps: int) -> bool:
        if step == total_steps and self.last:
            return True
        return self.every > 0 and step > 0 and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The parts of one call of `train`."""

    program: Program
    source: Source
    seed: int
    batch_size: int
    run: RunOptions
    watches: tuple[_Watch, ...]
    checkpointer: Checkpointer | None
    on_log: Callable[[int, Mapping[str, float]], None] | None
    should_stop: Callable[[], bool]
    log: RunLog
    progress: RunProgress
    clock: PartClock
    trace: StepTrace

    def steps(self, state: TrainState, stream: TrainStream) -> tuple[TrainState, Status]:
        """Steps until the end, a divergence, or a request to stop."""
        total, previous = self.program.total_steps, None
        args = self.program.args(self.seed)
        try:
            # Makes up for what a request to stop cut short: the state of that step was saved.
            self.evaluate(state, stream.step)
            while stream.step < total:
                if self.should_stop():
                    raise Preempted("asked to stop while training")
                self.trace.before_step()
                with self.clock.timed("input"):
                    batch = next(stream)
                step = stream.step
                self.note_order(step, batch[EXAMPLE_ID])
                state, metrics = self.program.step(state, self.program.put(batch), args)
                # Waiting for the step before keeps the device busy and the host one ahead.
                if previous is not None:
                    finite = bool(previous["finite"][0])
                    self.log.timer.completed()
                    if not finite:
                        break
                previous = metrics
                self.log.meter.add(metrics)
                self.progress.update(step)
                if self.due(step) and self.observe(state, step):
                    break
        except Preempted:
            self.save(state, stream.step)
            return state, self.diverged(state) or "preempted"
        return state, self.diverged(state) or "done"

    def note_order(self, step: int, ids: np.ndarray) -> None:
        """Takes the ids of the step's batch into the log; of a part, once it is what it must be."""
        if self.log.steps is None:
            return
        rows = self.program.rows(self.batch_size)
        if rows is not None:
            own, ids = ids, example_ids(self.source, self.seed, self.batch_size, step)
            assert np.array_equal(own, ids[rows]), "the stream gave other rows than its order has"
        self.log.steps.update(step, ids)

    def due(self, step: int) -> bool:
        every = (self.run.log_every, self.run.checkpoint_every, *(w.every for w in self.watches))
        return step == self.program.total_steps or any(n and step % n == 0 for n in every)

    def observe(self, state: TrainState, step: int) -> bool:
        """Logs, evaluates and saves what is due after `step`; returns True if it diverged."""
        if not bool(state.finite):
            return True
        last = step == self.program.total_steps
        if last or step % self.run.log_every == 0:
            self.write_log(step)
        self.evaluate(state, step)
        if last or step % self.run.checkpoint_every == 0:
            self.save(state, step)
        return False

    def write_log(self, step: int) -> None:
        if self.log.steps is not None:
            self.log.steps.write(step)
        values = self.log.meter.means()
        del values["finite"]
        self.log.meter = Meter()
        self.log.add_points(step, "train", values)
        self.progress.loss = values["loss"]
        self.progress.update(step, now=True)
        self.tell(step, "train", values)
        self.log.timer.pause()

    def tell(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if self.on_log is not None:
            self.on_log(step, {f"{split}/{name}": float(x) for name, x in values.items()})

    def evaluate(self, state: TrainState, step: int) -> None:
        """Measures what is due after `step` and has no point in the curve yet."""
        known = {p.name.partition("/")[0] for p in self.log.curve if p.step == step}
        for watch in self.watches:
            if watch.due(step, self.program.total_steps) and watch.name not in known:
                with self.clock.timed("evaluation"):
                    values = watch.measure(step, state.eval_params)
                self.log.add_points(step, watch.name, values)
                self.tell(step, watch.name, values)
                self.log.timer.pause()

    def save(self, state: TrainState, step: int) -> None:
        if self.checkpointer is None or not bool(state.finite):
            return
        if self.checkpointer.latest_step() != step:
            if self.log.steps is not None:
                self.log.steps.write(step)
            with self.clock.timed("checkpoint"):
                self.checkpointer.save(step, state, self.log.extra())
            self.log.timer.pause()

    def diverged(self, state: TrainState) -> Status | None:
        """Ends the curve of a run that diverged with an empty point at the step that did it."""
        if bool(state.finite):
            return None
        self.log.add_points(int(state.step) + 1, "train", {"loss": float("nan")})
        return "diverged"


def train(
    program: Program, source: Source, *, seed: int, batch_size: int, run: RunOptions,
    stage: Stage = "upstream", validation: Source | None = None,
    measure: Callable[[int, Params], Mapping[str, float]] | None = None,
    few_shot: Callable[[int, Params], Mapping[str, float]] | None = None,
    initial_params: Params | None = None, checkpointer: Checkpointer | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    on_log: Callable[[int, Mapping[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None, steps_log: StepsLog | None = None,
    trace_to: Path | None = None,
) -> TrainResult:
    """Trains for `program.total_steps` updates, going on from the newest checkpoint, if any.

    On an unchanged device, an interrupted run ends with the same bits as an unbroken one: state,
    data order, random numbers and curve.

    Args:
      program: what to train.
      source: examples to train on.
      seed: of initialisation, data order and dropout.
      batch_size: examples a step; `validation` is evaluated in batches of the same size.
      run: how often to log, evaluate and save.
      stage: written on the curve's points.
      validation: evaluated every `run.eval_every` steps and after the last.
      measure: called as `measure(step, params)` at the same steps, for values that go to the curve
        beside those of `validation`. The params are the program's: copy what is to be kept.
      few_shot: called in the same way every `run.few_shot_every` steps, for points `few_shot/...`.
      initial_params: where training starts; fresh ones if None. They are copied.
      checkpointer: where to save and to look for a checkpoint; None to do neither.
      progress: called as `progress(step, total_steps, text)`.
      on_log: called as `on_log(step, {"train/loss": ...})` with every point of the curve.
      should_stop: asked before each step and each batch of `validation`; if it says True, the
        state is saved and training ends as `preempted`.
      steps_log: where the order of the examples is logged, and verified on resuming.
      trace_to: a folder for a trace of some steps; None for none.

    Returns:
      The result. A loss, gradient or update that is not finite is never applied and ends training
      as `diverged`; nothing is saved after it.

    Raises:
      InputError: the seed or batch size is out of range, the source is empty, or the checkpoint
        belongs to another model or ends beyond `total_steps`; the order of the examples is not
        the one that the run had.
    """
    check_seed(seed)
    state, extra = _begin(program, seed, initial_params, checkpointer)
    start, log = int(state.step), RunLog.make(stage, extra, steps_log)
    if steps_log is not None:
        steps_log.resume(start, extra.get("order"),
                         functools.partial(example_ids, source, seed, batch_size))
    should_stop = should_stop or (lambda: False)

    def validate(step: int, params: Params) -> dict[str, float]:
        values = {} if validation is None else evaluate(
            program, params, validation, batch_size, should_stop)
        return values | (dict(measure(step, params)) if measure is not None else {})

    watches = []
    if validation is not None or measure is not None:
        watches.append(_Watch("validation", run.eval_every, True, validate))
    if few_shot is not None:
        watches.append(_Watch("few_shot", run.few_shot_every, False, few_shot))
    loop = _Loop(program, source, seed, batch_size, run, tuple(watches), checkpointer, on_log,
                 should_stop, log,
                 RunProgress(progress, program.total_steps, batch_size, start),
                 PartClock(), StepTrace(trace_to))
    loop.progress.update(start, now=True)
    with contextlib.closing(loop.trace), loop.clock, loop.clock.timed("step"), TrainStream(
            source, seed=seed, batch_size=batch_size, start_step=start,
            rows=program.rows(batch_size)) as stream:
        state, status = loop.steps(state, stream)
        if checkpointer is not None:
            with loop.clock.timed("checkpoint"):
                checkpointer.wait()
    return TrainResult(state, tuple(log.curve), log.timer.median(), status, int(state.step),
                       log.seconds(), _without_parts(loop.clock.seconds))


def _without_parts(seconds: Mapping[str, float]) -> dict[str, float]:
    """The parts of a loop, what was timed within `step` taken from it."""
    inside = sum(seconds.get(name, 0.0) for name in ("input", "evaluation", "checkpoint"))
    return {**seconds, "step": max(seconds["step"] - inside, 0.0)}


def _begin(
    program: Program, seed: int, initial_params: Params | None, checkpointer: Checkpointer | None
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to go on from, and what was saved beside it."""
    saved = None if checkpointer is None else checkpointer.newest_whole()
    if checkpointer is not None and saved is not None:
        if saved > program.total_steps:
            raise InputError(f"checkpoint directory {checkpointer.directory}",
                             "holds a longer run", got=f"step {saved}",
                             expected=f"<= {program.total_steps} steps",
                             hint="the budget changed; train in a fresh directory")
        return checkpointer.restore(abstract_state(program))
    if initial_params is not None:
        return program.start(program.put_params(initial_params)), {}
    return program.init(np.int32(seed)), {}
