"""Weights & Biases as an observer: a run a trial. Offline unless WANDB_MODE says otherwise.

    pip install .
    deepnarrow study CONFIG --workdir DIR        # writes DIR/wandb
    wandb sync DIR/wandb/offline-run-*
"""

import os

from deepnarrow import hookimpl

RUNS = {}


@hookimpl
def deepnarrow_step_end(info):
    """Logs a step's points under an axis of their stage: stages count steps from 0 each."""
    run = open_run(info)
    stage = info["stage"]
    run.log({f"{stage}/step": info["step"],
             **{f"{stage}/{name}": value for name, value in info["metrics"].items()}})


@hookimpl
def deepnarrow_run_end(record, info):
    """Writes what was measured at the end, and closes the run."""
    run = open_run(info)
    run.summary["status"] = record["status"]
    for row in record["metrics"]:
        names = row["stage"], row["task"], row["metric"], row["origin"], row["shots"]
        run.summary["/".join(str(name) for name in names if name)] = row["value"]
    run.finish(exit_code=int(record["status"] == "failed"))
    del RUNS[info["trial_key"]]


def open_run(trial):
    """Returns the trial's run; an interrupted trial goes on in the run it had."""
    import wandb

    if trial["trial_key"] in RUNS:
        return RUNS[trial["trial_key"]]
    RUNS[trial["trial_key"]] = run = wandb.init(
        mode=os.environ.get("WANDB_MODE", "offline"), dir=trial["workdir"], id=trial["trial_key"],
        resume="allow", project=trial["study"], group=f"{trial['modality']} {trial['shape']}",
        name=f"{trial['modality']} {trial['shape']} seed {trial['seed']}", config=trial["config"])
    for stage in ("upstream", "fine_tune"):
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return run
