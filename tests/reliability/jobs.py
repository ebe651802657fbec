"""What the forked children of the reliability tests do: a toy study, its fingerprint, writers.

Each job is a function of plain arguments; `zygote.py` calls it by name in a child of its own.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import numpy as np
import toy

import deepnarrow.files
import deepnarrow.report
from deepnarrow import hookimpl
from deepnarrow.config import ModalityStudy, StudyConfig
from deepnarrow.errors import InputError, Preempted
from deepnarrow.plugins import load_plugins
from deepnarrow.protocol import (
    Budget,
    FewShot,
    FineTune,
    OptimizerConfig,
    Protocol,
    RunOptions,
)
from deepnarrow.records import MetricRow, Record
from deepnarrow.stepslog import read_lines
from deepnarrow.store import Store
from deepnarrow.study import run_study

ADAMW = OptimizerConfig("adamw", 3e-3, "cosine", warmup_steps=2)
STEPS = 20


def toy_registry(observer=None):
    """The toy as a plugin; `observer(info)` is told of every logged step."""
    plugin = types.ModuleType("toy_plugin")

    @hookimpl
    def deepnarrow_register_modalities():
        return [toy.toy_modality()]

    @hookimpl
    def deepnarrow_register_architectures():
        return [toy.toy_architecture()]

    vars(plugin).update(deepnarrow_register_modalities=deepnarrow_register_modalities,
                        deepnarrow_register_architectures=deepnarrow_register_architectures)
    if observer is not None:
        @hookimpl
        def deepnarrow_step_end(info):
            observer(info)

        vars(plugin).update(deepnarrow_step_end=deepnarrow_step_end)
    return load_plugins([], extra=[plugin])


def toy_config(seeds=(0, 1), steps=STEPS, **run):
    """A study of one shape: pre-training, probe and fine-tuning, a checkpoint every 4 steps."""
    protocol = Protocol(
        batch_size=16, budget=Budget("steps", steps), optimizer=ADAMW,
        few_shot=FewShot(("toy_task",), shots=(1,), seeds=1, l2=1.0),
        fine_tune=FineTune(("toy_task",), examples=64, batch_size=16, optimizer=ADAMW))
    study = ModalityStudy("toy", ("tiny",), protocol, architectures=("toy_mlp",))
    return StudyConfig("toys", seeds, {"toy": study},
                       RunOptions(**{"log_every": 2, "checkpoint_every": 4, **run}))


def study(workdir, seeds=(0, 1), observer=None, **run):
    """Runs the toy study; exits as the command does."""
    deepnarrow.report.write_report = lambda *_, **__: []
    try:
        run_study(toy_config(tuple(seeds), **run), workdir, toy_registry(observer))
    except Preempted:
        return 75
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def fingerprint(workdir, into):
    """Writes a hash of all that a finished study left: states, records, orders of data."""
    import orbax.checkpoint as ocp

    workdir, digest = pathlib.Path(workdir), hashlib.sha256()
    for run in sorted((workdir / "runs").iterdir()):
        steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdecimal())
        state = ocp.PyTreeCheckpointer().restore(run / "checkpoints" / str(steps[-1]) / "state")
        digest.update(f"{run.name} {steps[-1]}".encode())
        for path, leaf in sorted(_leaves(state)):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
        lines = read_lines(run / "steps.jsonl")
        assert sorted(lines.chains) == list(range(2, STEPS + 1, 2)), sorted(lines.chains)
        digest.update(json.dumps(sorted(lines.chains.items())).encode())
    with Store(workdir / "records.sqlite", read_only=True) as store:
        records = store.records()
    assert len({record.key for record in records}) == len(records)  # none twice
    for record in sorted(records, key=lambda record: record.key):
        digest.update(repr((record.key, record.status, record.metrics, record.curve,
                            record.outcomes)).encode())
    pathlib.Path(into).write_text(json.dumps({"digest": digest.hexdigest(),
                                              "records": len(records)}))
    return 0


def _leaves(tree, path=""):
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{path}/{name}")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{path}/{index}")
    elif tree is not None:
        yield path, np.asarray(tree)


def signalled(workdir, phase, number, marker):
    """Runs the study, and writes `marker` when it comes by `phase`, where the test signals it."""
    del number
    import deepnarrow.checkpoint
    import deepnarrow.train
    import deepnarrow.transfer.fewshot
    import deepnarrow.trial

    def mark(function):
        def marked(*args, **kwargs):
            if not os.path.exists(marker):
                pathlib.Path(marker).write_text(phase)
                # The signal comes while this call is under way.
                until = pathlib.Path(marker + ".sent")
                while not until.exists():
                    _nap()
            return function(*args, **kwargs)

        return marked

    if phase == "compile":
        deepnarrow.trial.make_model = mark(deepnarrow.trial.make_model)
    elif phase == "train":
        deepnarrow.train._Loop.write_log = mark(deepnarrow.train._Loop.write_log)
    elif phase == "evaluation":
        deepnarrow.train.eval_batches = mark(deepnarrow.train.eval_batches)
    elif phase == "save":
        kind = deepnarrow.checkpoint.Checkpointer
        kind.save = mark(kind.save)
    elif phase == "few_shot":
        deepnarrow.trial.extract_features = mark(deepnarrow.trial.extract_features)
    elif phase == "fine_tune":
        deepnarrow.trial.finetune = mark(deepnarrow.trial.finetune)
    return study(workdir)


def _nap():
    import time

    time.sleep(0.01)


# --- the store -----------------------------------------------------------------------------------
def record(key, status="done", value=0.5):
    """A small record."""
    return Record(key=key, study="s", modality="toy", architecture="toy_mlp", name="tiny",
                  shape={"d_model": 16}, seed=0, status=status, config={}, costs={},
                  flop_convention="matmul", environment={},
                  metrics=(MetricRow("upstream", "", "loss", "min", value),))


def write_records(path, writer, log):
    """Adds records for ever, and notes each that the store has acknowledged."""
    with Store(path) as store, open(log, "a", buffering=1) as acknowledged:
        for number in range(10**6):
            key = hashlib.md5(f"{writer} {os.getpid()} {number}".encode()).hexdigest()
            attempt = store.claim(key)
            assert store.add_claimed(record(key), attempt)
            acknowledged.write(f"{key}\n")
    return 0


# --- the file layer ------------------------------------------------------------------------------
def crash_at(call, mode, counted=None):
    """Has the k-th call that changes the disk end this process, or raise `mode`'s error.

    `mode` is `crash`, or an errno's name with `once` or `ever`: `ENOSPC ever`.
    """
    import errno

    calls = iter(range(1, 10**9))

    def before(name):
        number = next(calls)
        if counted is not None:
            counted.append(name)
        if mode == "crash" and number == call:
            os._exit(137)
        name, _, how = mode.partition(" ")
        if how and (number == call or (how == "ever" and number > call)):
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    deepnarrow.files.before_io = before


def quiet():
    """Sends what is printed nowhere."""
    return contextlib.redirect_stderr(open(os.devnull, "w"))


JOBS = {name: function for name, function in list(globals().items())
        if isinstance(function, types.FunctionType) and not name.startswith("_")}
del dataclasses
