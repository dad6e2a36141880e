"""What happens by itself: new files become a shard and its run, and a new release becomes a training once a week.

Both are shipped stopped; a team turns them on in the UI.
"""

import hashlib
import os
from pathlib import Path

import dagster as dg

from assets.identity import Identity, stage_name
from assets.link import SHARDS
from assets.workspace import Workspace
from orchestration.ingest import ingest_new
from orchestration.parameters import load

PER_SHARD = dg.AssetSelection.assets("raw_videos", "videos", "geometry", "candidates")
WHOLE_POOL = ("quarantine", "questions", "splits", "checkpoint", "benchmark")

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
    "retrain",
    dg.AssetSelection.assets(*WHOLE_POOL, "promotion"),
    description="Seal a release from all shards, train on it, report how good the checkpoint is, and decide on it.",
)


@dg.sensor(
    job=prepare_shard_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Seals new files of the watched folder into shards and runs each new shard.",
)
def new_videos(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Watch `ingest.folder`; files that the pool already holds, by content, are not new.

    A local folder is read only after it stood still from one look to the next, so that no file is sealed half copied.
    """
    workspace = Workspace.find()
    parameters = load(workspace.root / "params.yaml").ingest
    source = parameters.folder if "://" in parameters.folder else str(workspace.root / parameters.folder)
    if "://" not in source:
        if not parameters.folder or not Path(source).is_dir():
            return dg.SkipReason(f"{source}: no such folder; set ingest.folder in params.yaml")
        seen = listing(Path(source))
        if context.cursor == f"sealed {seen}":
            return dg.SkipReason(f"{source}: nothing changed since it was last sealed")
        if context.cursor != seen:
            context.update_cursor(seen)
            return dg.SkipReason(f"{source}: files are arriving; sealed once the folder stands still")
        context.update_cursor(f"sealed {seen}")
    try:
        ingest_new(workspace, source, parameters.shard_size)
    except ValueError as error:
        return dg.SkipReason(str(error))
    identity = Identity(workspace.root)
    waiting = [shard for shard in workspace.shards() if identity.locked_hash(stage_name("candidates", shard)) is None]
    if not waiting:
        return dg.SkipReason(f"{source}: nothing that the pool does not hold already")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=shard, partition_key=shard) for shard in waiting],
        dynamic_partitions_requests=[SHARDS.build_add_request(waiting)],
    )


def listing(folder: Path) -> str:
    """A digest of the names, sizes and times of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    known = [(os.fsencode(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(known).encode()).hexdigest()


@dg.schedule(
    job=retrain_job,
    cron_schedule="0 3 * * 1",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Mondays at three: trains if the pool, the code or the parameters differ from the last training's.",
)
def weekly_retraining(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask DVC whether everything that is made from the whole pool is still what its inputs make."""
    identity = Identity(Workspace.find().root)
    if not any(identity.locked_hash(name) for name in identity.names() if name.startswith("candidates@")):
        return dg.SkipReason("no shard has been prepared yet; run prepare_shard first")
    changed = [name for name in WHOLE_POOL if not identity.locked_hash(name) or not identity.is_current(name)]
    if not changed:
        return dg.SkipReason("nothing changed since the last training: same pool, code and parameters")
    return dg.RunRequest(run_key=None, tags={"dsr/changed": ", ".join(changed)})
