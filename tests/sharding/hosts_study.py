"""Run by the tests: a toy study in one process with 8 devices, or in one of two with 4 each.

    python hosts_study.py FOLDER                      runs `one`, goes on with `stopped`
    python hosts_study.py FOLDER HOST:PORT INDEX      runs `two`, begins `stopped` and is stopped

Each writes what it restored of the checkpoint that two processes left in `stopped`.
"""

import hashlib
import itertools
import json
import pathlib
import signal
import sys
import types

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import toy

from deepnarrow import hookimpl, hosts, signals
from deepnarrow.assemble import make_model
from deepnarrow.checkpoint import Checkpointer
from deepnarrow.config import ModalityStudy, StudyConfig
from deepnarrow.errors import Preempted
from deepnarrow.mesh import MeshShape
from deepnarrow.plugins import load_plugins
from deepnarrow.protocol import (
    Budget,
    FewShot,
    FineTune,
    OptimizerConfig,
    Protocol,
    RunOptions,
    Sharding,
)
from deepnarrow.sharding import make_layout, on_every_host
from deepnarrow.step import abstract_state, make_program
from deepnarrow.study import run_study

STEPS = 20
ADAMW = OptimizerConfig("adamw", 3e-3, "cosine", warmup_steps=5)
PROTOCOL = Protocol(
    batch_size=16, budget=Budget("steps", STEPS), optimizer=ADAMW,
    few_shot=FewShot(("toy_task",), shots=(1, 5), seeds=2, l2=1.0),
    fine_tune=FineTune(("toy_task",), examples=64, batch_size=16, optimizer=OptimizerConfig(
        "adamw", 1e-3, "constant")))
CONFIG = StudyConfig(
    "toys", (0,), {"toy": ModalityStudy("toy", ("tiny",), PROTOCOL)},
    RunOptions(log_every=5, eval_every=10, checkpoint_every=10),
    Sharding(mesh="fsdp=4", rules="fsdp", micro_batches=2))


def toy_registry():
    """The toy modality; the core's transformer fills its stack."""
    plugin = types.ModuleType("toy_plugin")

    @hookimpl
    def deepnarrow_register_modalities():
        return [toy.toy_modality()]

    vars(plugin)["deepnarrow_register_modalities"] = deepnarrow_register_modalities
    return load_plugins([], extra=[plugin])


def restored(workdir, registry):
    """The newest step of a workdir's only run, and a hash of its state as restored here."""
    modality = registry.modality("toy")
    model = make_model(modality, registry.architecture("transformer"),
                       modality.presets["tiny"].shape, modality.options)
    layout = make_layout(MeshShape(data=2, fsdp=4), "fsdp")
    program = make_program(model, ADAMW, STEPS, layout=layout)
    (run_dir,) = (workdir / "runs").iterdir()
    with Checkpointer(run_dir / "checkpoints") as checkpointer:
        state, _ = checkpointer.restore(abstract_state(program))
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(on_every_host(state)):
        digest.update(np.asarray(leaf).tobytes())
    return [int(state.step), digest.hexdigest()]


def signalled(requested):
    """Has this process alone get a SIGTERM, when it is asked for the second time."""
    asked = itertools.count()

    def ask(self):
        if next(asked) == 1:
            signal.raise_signal(signal.SIGTERM)
        return requested(self)

    return ask


def main(folder, coordinator=None, index=None):
    """Runs what this process is to run."""
    registry = toy_registry()
    if coordinator is None:
        me = hosts.ALONE
        run_study(CONFIG, folder / "one", registry)
        found = {"stopped": restored(folder / "stopped", registry)}
        run_study(CONFIG, folder / "stopped", registry)
    else:
        me = hosts.join(coordinator, "2", index)
        summary = run_study(CONFIG, folder / "two", registry, hosts=me)
        found = {"counts": dict(summary.counts), "trained": summary.trained}
        if not me.first:
            signals.StopRequest.__call__ = signalled(signals.StopRequest.__call__)
        try:
            run_study(CONFIG, folder / "stopped", registry, hosts=me)
        except Preempted:
            found["stopped"] = restored(folder / "stopped", registry)
    found["devices"] = [jax.local_device_count(), jax.device_count()]
    name = "one" if coordinator is None else f"two{me.index}"
    (folder / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
