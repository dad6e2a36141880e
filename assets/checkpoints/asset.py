"""Training as an asset: a process of its own, tracked by MLflow, resumed where it stopped."""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from assets.identity import Identity
from assets.link import WORKSPACE, picture, seal, table
from assets.splits.asset import splits
from assets.tracking import Tracking
from models.parameters import TrainingParameters

# What `models.train` exits with when its input is at fault; trying again would not help.
BAD_INPUT = 2


class TrainingError(ValueError):
    """The trainer refused its input."""


@dg.asset(
    deps=[splits],
    group_name="link_5_checkpoints",
    owners=["team:models"],
    kinds={"lightning", "huggingface", "mlflow"},
    pool="gpu",
    retry_policy=dg.RetryPolicy(max_retries=1),
)
def checkpoint(
    context: dg.AssetExecutionContext,
    workspace: WORKSPACE,
    tracking: dg.ResourceParam[Tracking],
    training_parameters: dg.ResourceParam[TrainingParameters],
    resolved_parameters: dg.ResourceParam[dict],
) -> dg.MaterializeResult:
    """GSM on Qwen, trained on the release; a run that was stopped goes on from its last step."""
    identity = Identity(workspace.root)
    versions = {"splits": identity.hash_on_disk("splits")}
    work = workspace.training_work / _training_key(identity, versions)
    tags = {
        "dagster.run_id": context.run_id,
        "dagster.asset_key": "checkpoint",
        "dvc.splits": versions["splits"],
    }
    work.mkdir(parents=True, exist_ok=True)
    with tracking.run("checkpoint", tags, resolved_parameters, work / "mlflow_run_id") as run:
        tracking.log_dataset("splits", "data/splits", versions["splits"], "training")
        _train(workspace, work, training_parameters, tracking.uri, run.info.run_id)
        _publish(workspace, work / "model", versions)
        version = identity.hash_on_disk("checkpoint")
        parameters = dataclasses.asdict(training_parameters)
        model_id = tracking.log_model("geometric-qwen", run.info.run_id, version, parameters)
    return seal(
        context,
        workspace,
        {"mlflow_run_id": run.info.run_id, "mlflow_model_id": model_id, **_outcome(workspace.checkpoint)},
    )


def _training_key(identity: Identity, versions: Mapping[str, str]) -> str:
    """Same data, code and parameters, same folder: what an interrupted training left there is its own."""
    parts = json.dumps({**versions, "code": identity.code_version("checkpoint")}, sort_keys=True)
    return hashlib.md5(parts.encode()).hexdigest()


def _train(workspace, work: Path, parameters: TrainingParameters, tracking_uri: str, run_id: str) -> None:
    """Run `models.train`; success is the finished model folder, not the exit status.

    Lightning exits with 0 when it is told to stop, so an exit status alone would record a preempted training as done.
    The trainer inherits a locked file: where it outlives a caller that was killed, the next caller waits for it.
    """
    (work / "parameters.json").write_text(json.dumps(dataclasses.asdict(parameters), sort_keys=True))
    model = work / "model"
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if model.exists():
            return
        data = workspace.root / "data"
        command = [sys.executable, "-m", "models.train", "--splits", workspace.splits]
        command += ["--videos", data / "videos", "--geometry", data / "geometry"]
        command += ["--out", model, "--work", work, "--parameters", work / "parameters.json"]
        tracked = {"MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_RUN_ID": run_id}
        environment = {**os.environ, **tracked}
        status = subprocess.run(list(map(str, command)), env=environment, pass_fds=[lock.fileno()]).returncode
        if status == BAD_INPUT:
            raise TrainingError(f"{workspace.splits}: cannot be trained on; the line above says why, and what to do")
        if not model.exists():
            raise dg.Failure(
                f"training ended with status {status} before it was finished; its last step is kept, run again to go on"
            )


def _publish(workspace, model: Path, versions: Mapping[str, str]) -> None:
    """Put the model in place, whole, with its card and the hash of the release that it was trained on.

    The release in turn names every clip by its hashes, so the chain back to the videos is complete; nothing else
    goes in, or the checkpoint's hash would depend on shards that it never saw.
    """
    from assets.checkpoints.card import model_card

    partial = workspace.checkpoint.with_name("checkpoint.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model, partial)
    (partial / "lineage.json").write_text(json.dumps(dict(versions), indent=1, sort_keys=True))
    (partial / "README.md").write_text(model_card(partial, workspace.splits))
    shutil.rmtree(workspace.checkpoint, ignore_errors=True)
    os.replace(partial, workspace.checkpoint)


def _outcome(checkpoint: Path) -> dict[str, object]:
    """What a materialization says of a training."""
    from assets.checkpoints import card
    from assets.checkpoints.curves import learning_curves

    training = json.loads((checkpoint / "training.json").read_text())
    return {
        "learning_curves": picture(learning_curves(checkpoint / "curves.csv"), "image/png", "learning curves"),
        "stages": table(card.stages(training)),
        "guidance": card.guidance_line(training["parameters"]),
        "kept": card.kept_line(training),
        "skipped": table(card.left_out(training)),
        **{key: value for key, value in training.items() if isinstance(value, int | float | str)},
    }
