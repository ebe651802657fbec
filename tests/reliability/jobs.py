"""What the forked children of the reliability tests do: a toy study, its fingerprint, writers.

Each job is a function of plain arguments; `zygote.py` calls it by name in a child of its own.
"""

import hashlib
import json
import os
import pathlib
import sys
import time
import types

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import numpy as np
import toy

import deepnarrow.report
from deepnarrow.config import ModalityStudy, StudyConfig
from deepnarrow.errors import InputError, Preempted
from deepnarrow.protocol import (
    Budget,
    FewShot,
    FineTune,
    OptimizerConfig,
    Protocol,
    RunOptions,
)
from deepnarrow.stepslog import read_lines
from deepnarrow.store import Store
from deepnarrow.study import run_study

ADAMW = OptimizerConfig("adamw", 3e-3, "cosine", warmup_steps=2)
STEPS = 20


def damaged(source, damages, folder):
    """Restores the checkpoints in `source` after each damage, in a copy; writes what came of it.

    A damage is `[kind, file, where]`; see `harness.damages`. What is restored must be a state that
    was saved, and where it is not the newest there must have been a warning.
    """
    import shutil
    import warnings

    import jax

    from deepnarrow.checkpoint import Checkpointer

    abstract = jax.ShapeDtypeStruct
    like = {"w": abstract((64, 32), np.float32), "b": abstract((32,), np.float32)}
    outcomes = []
    for damage in damages:
        place = pathlib.Path(folder) / "copy"
        shutil.rmtree(place.parent / "quarantine", ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        _damage(place, *damage)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                with Checkpointer(place) as checkpointer:
                    state, extra = checkpointer.restore(like)
                same = all(np.array_equal(np.asarray(state[k]), saved_state(extra["step"])[k])
                           for k in like)
                outcome = [extra["step"] if same else "wrong values", len(told)]
            except InputError as error:
                outcome = [f"refused: {error}", len(told)]
        outcomes.append(outcome)
    (pathlib.Path(folder) / "outcomes.json").write_text(json.dumps(outcomes))
    return 0


def saved_state(step):
    """What `save_two` saves as `step`."""
    rng = np.random.default_rng(step)
    return {"w": rng.normal(size=(64, 32)).astype(np.float32),
            "b": rng.normal(size=32).astype(np.float32)}


def save_two(folder):
    """Saves the steps 1 and 2 of a small state."""
    from deepnarrow.checkpoint import Checkpointer

    with Checkpointer(folder) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, saved_state(step), {"step": step})
    return 0


def _damage(place, kind, name, where):
    path = place / name
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[where // 8] ^= 1 << where % 8
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[:where])
    elif kind == "delete":
        path.unlink()
    elif kind == "swap":
        other = place / where
        content = other.read_bytes()
        other.write_bytes(data)
        path.write_bytes(content)
    elif kind == "link":
        other = path.with_name(path.name + ".moved")
        path.rename(other)
        path.symlink_to(other.name)


def disk_full(folder):
    """Checkpoints into a disk that fills; frees it and goes on. For a small tmpfs at `folder`."""
    import warnings

    import jax

    from deepnarrow.checkpoint import Checkpointer

    folder = pathlib.Path(folder)
    abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in saved_state(1).items()}
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(1, saved_state(1), {"step": 1})
    ballast = folder / "ballast"
    try:
        with open(ballast, "wb", buffering=0) as file:
            while file.write(b"x" * 1024):
                pass
    except OSError:
        pass
    told = None
    try:
        with Checkpointer(folder / "checkpoints") as checkpointer:
            checkpointer.save(2, saved_state(2), {"step": 2})
    except InputError as error:
        told = str(error)
    ballast.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Checkpointer(folder / "checkpoints") as checkpointer:
            state, extra = checkpointer.restore(abstract)
            checkpointer.save(3, saved_state(3), {"step": 3})
            checkpointer.wait()
            newest = checkpointer.newest_whole()
    same = np.array_equal(np.asarray(state["w"]), saved_state(extra["step"])["w"])
    print(json.dumps({"told": told, "restored": extra["step"], "same": same, "newest": newest}))
    return 0


def toy_registry(observer=None):
    """The toy as a plugin; `observer(info)` is told of every logged step."""
    if observer is None:
        return toy.toy_registry()
    return toy.toy_registry(deepnarrow_step_end=lambda info: observer(info))


def toy_config(seeds=(0,), steps=STEPS, transfer=True, **run):
    """A study of one shape, a checkpoint every 4 steps; `transfer` adds a probe and fine-tuning."""
    protocol = Protocol(
        batch_size=16, budget=Budget("steps", steps), optimizer=ADAMW,
        few_shot=FewShot(("toy_task",), shots=(1,), seeds=1, l2=1.0) if transfer else None,
        fine_tune=FineTune(("toy_task",), examples=64, batch_size=16, optimizer=ADAMW)
        if transfer else None)
    study = ModalityStudy("toy", ("tiny",), protocol, architectures=("toy_mlp",))
    return StudyConfig("toys", seeds, {"toy": study},
                       RunOptions(**{"log_every": 2, "checkpoint_every": 4, **run}))


def one_unit_a_seed(setattr=setattr):
    """Has each seed be a unit of its own, so that a toy study has several."""
    import deepnarrow.study
    from deepnarrow.trials import Unit

    setattr(deepnarrow.study, "_units", lambda trials: [Unit((trial,)) for trial in trials])


def study(workdir, seeds=(0,), observer=None, **run):
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


PHASES = ("compile", "train", "evaluation", "save", "few_shot", "fine_tune")


def signalled(workdir, phase, marker):
    """Runs the study, and writes `marker` when it comes by `phase`, where the test signals it."""
    import deepnarrow.checkpoint
    import deepnarrow.programs
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
                    time.sleep(0.01)
            return function(*args, **kwargs)

        return marked

    if phase == "compile":
        deepnarrow.programs.make_model = mark(deepnarrow.programs.make_model)
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


JOBS = {name: function for name, function in list(globals().items())
        if isinstance(function, types.FunctionType) and not name.startswith("_")}
