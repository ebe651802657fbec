"""MLflow as an observer: a run a trial. In a file of the workdir unless MLFLOW_TRACKING_URI is set.

    pip install .
    deepnarrow study CONFIG --workdir DIR        # writes DIR/mlflow.db
    mlflow ui --backend-store-uri sqlite:///DIR/mlflow.db
"""

import functools
import os
from pathlib import Path

from deepnarrow import hookimpl


@hookimpl
def deepnarrow_step_end(info):
    """Logs a step's points as `STAGE/NAME`."""
    from mlflow.entities import Metric

    client, run = open_run(info["workdir"], info["study"], info["trial_key"])
    client.log_batch(run, metrics=[Metric(clean(f"{info['stage']}/{name}"), value, 0, info["step"])
                                   for name, value in info["metrics"].items()])


@hookimpl
def deepnarrow_run_end(record, info):
    """Writes what the trial is and what was measured at its end, and closes the run."""
    client, run = open_run(info["workdir"], info["study"], info["trial_key"])
    for name in ("modality", "architecture", "shape", "seed"):
        client.log_param(run, name, info[name])
    client.log_dict(run, info["config"], "trial.json")
    for row in record["metrics"]:
        names = row["stage"], row["task"], row["metric"], row["origin"], row["shots"]
        if row["value"] is not None:
            name = clean("/".join(str(name) for name in names if name))
            client.log_metric(run, name, row["value"])
    client.set_terminated(run, "FINISHED" if record["status"] == "done" else "FAILED")


@functools.cache
def open_run(workdir, study, key):
    """Returns a client and the trial's run; an interrupted trial goes on in the run it had."""
    from mlflow import MlflowClient

    folder = Path(workdir).resolve()
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db"))
    found = client.get_experiment_by_name(study)
    experiment = found.experiment_id if found else client.create_experiment(
        study, artifact_location=(folder / "mlflow").as_uri())
    runs = client.search_runs([experiment], f"tags.trial_key = '{key}'")
    run = runs[0] if runs else client.create_run(
        experiment, tags={"trial_key": key}, run_name=key[:8])
    return client, run.info.run_id


def clean(name):
    """A name that MLflow takes: no `@`."""
    return name.replace("@", "_at_")
