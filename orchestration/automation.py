"""What happens by itself: new files become a shard and its run, and a new release becomes a training once a week.

Both are shipped stopped; a team turns them on in the UI.
"""

import dagster as dg

from assets.identity import Identity
from assets.link import SHARDS
from assets.workspace import Workspace
from orchestration.ingest import ingest_new
from orchestration.parameters import load

PER_SHARD = dg.AssetSelection.assets("raw_videos", "videos", "geometry", "candidates")
RETRAINED = dg.AssetSelection.assets("checkpoint", "benchmark")

prepare_shard_job = dg.define_asset_job(
    "prepare_shard",
    PER_SHARD,
    description="One shard, from its raw videos to its question candidates.",
)
release_job = dg.define_asset_job(
    "release",
    dg.AssetSelection.assets("quarantine", "questions", "splits"),
    description="Questions and sealed splits from all shards.",
)
retrain_job = dg.define_asset_job(
    "retrain", RETRAINED, description="Train on the current release and report how good the checkpoint is."
)


@dg.sensor(
    job=prepare_shard_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Seals new files of the watched folder into shards and runs each new shard.",
)
def new_videos(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Watch `ingest.folder`; files that the pool already holds, by content, are not new."""
    workspace = Workspace.find()
    parameters = load(workspace.root / "params.yaml").ingest
    folder = workspace.root / parameters.folder if "://" not in parameters.folder else parameters.folder
    if not parameters.folder or ("://" not in parameters.folder and not folder.is_dir()):
        return dg.SkipReason(f"{folder}: no such folder; set ingest.folder in params.yaml")
    try:
        shards = ingest_new(workspace, str(folder), parameters.shard_size)
    except ValueError as error:
        return dg.SkipReason(str(error))
    if not shards:
        return dg.SkipReason(f"{folder}: nothing that the pool does not hold already")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=shard, partition_key=shard) for shard in shards],
        dynamic_partitions_requests=[SHARDS.build_add_request(shards)],
    )


@dg.schedule(
    job=retrain_job,
    cron_schedule="0 3 * * 1",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Mondays at three: trains if the release, the code or the parameters differ from the last training's.",
)
def weekly_retraining(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask DVC whether the checkpoint is still the one that its inputs make."""
    identity = Identity(Workspace.find().root)
    if identity.locked_hash("splits") is None:
        return dg.SkipReason("no release has been sealed yet; materialize splits first")
    if identity.is_current("checkpoint") and identity.is_current("benchmark"):
        return dg.SkipReason("nothing changed since the last training: same release, code and parameters")
    return dg.RunRequest(run_key=None, tags={"dvc.splits": identity.hash_on_disk("splits")})
