"""Raw videos as assets: sealed shards, probed and sampled clips, quarantine."""

import os

import dagster as dg
import pandas as pd

from assets.identity import Identity, IdentityError, stage_name
from assets.link import SHARDS, WORKSPACE, check_results, frame_table, picture, seal, table, table_checks
from assets.progress import console_progress
from assets.videos.parameters import SampleWorldParameters, VideoParameters

OWNERS = ["team:data"]


@dg.asset(
    partitions_def=SHARDS,
    group_name="link_1_videos",
    owners=OWNERS,
    kinds={"video", "dvc"},
    tags={"link": "raw_videos"},
)
def raw_videos(
    context: dg.AssetExecutionContext,
    workspace: WORKSPACE,
    sample_world: dg.ResourceParam[SampleWorldParameters],
    workers: dg.ResourceParam[int],
) -> dg.MaterializeResult:
    """An immutable list of clips, each known by the SHA-256 of its bytes.

    A shard of the sample world is rendered here, with its truth beside it. An ingested shard was sealed by
    `dsr ingest`; materializing it again brings missing bytes back from DVC and verifies every file against the
    manifest.
    """
    from assets.videos.shards import read_manifest, verify_shard
    from assets.videos.world import render_shard

    shard = context.partition_key
    folder, name = workspace.raw(shard), stage_name("raw_videos", shard)
    if shard in workspace.sample_shards():
        render_shard(shard, sample_world, folder, workers, console_progress(f"raw_videos {shard}"))
    else:
        if not folder.exists():
            Identity(workspace.root).restore(name)
        verify_shard(folder)
        identity = Identity(workspace.root)
        if identity.hash_on_disk(name) != identity.locked_hash(name):
            raise IdentityError(f"{folder}: a sealed shard was changed; run `dvc checkout {folder}.dvc` to restore it")
    clips = read_manifest(folder)
    return seal(
        context,
        workspace,
        {
            "files": len(clips),
            "bytes": sum(clip.bytes for clip in clips),
            "sample": table([{"name": clip.name, "kind": clip.kind, "clip": clip.clip} for clip in clips], 8),
        },
    )


@dg.asset(
    partitions_def=SHARDS,
    deps=[raw_videos],
    group_name="link_1_videos",
    owners=OWNERS,
    kinds={"decord", "parquet"},
    check_specs=table_checks("videos"),
)
def videos(
    context: dg.AssetExecutionContext,
    workspace: WORKSPACE,
    video_parameters: dg.ResourceParam[VideoParameters],
    workers: dg.ResourceParam[int],
) -> dg.MaterializeResult:
    """Clips probed and decoded to sampled frames with checked timestamps; what cannot be used is in quarantine."""
    from assets.videos.prepare import prepare_shard
    from validations.suites import validate

    shard = context.partition_key
    out = workspace.videos(shard)
    prepare_shard(workspace.raw(shard), out, shard, video_parameters, workers, console_progress(f"videos {shard}"))
    clips = pd.read_parquet(out / "clips.parquet")
    quarantine = pd.read_parquet(out / "quarantine.parquet")
    metadata = {
        "dagster/partition_row_count": len(clips),
        "quarantined": len(quarantine),
        "seconds_of_video": float(clips["seconds"].fillna(0).sum()),
    }
    for sheet in sorted((out / "contact_sheets").glob("*.jpg"))[:1]:
        metadata["contact_sheet"] = picture(sheet.read_bytes(), "image/jpeg", "frames of one clip")
    metadata["clips"] = frame_table(clips, ["name", "kind", "width", "height", "seconds", "frame_count", "reader"])
    metadata["quarantine"] = frame_table(quarantine, ["name", "reason"])
    return seal(context, workspace, metadata, check_results(validate("clips", clips)))


@dg.asset(deps=[videos], group_name="link_1_videos", owners=OWNERS, kinds={"csv"})
def quarantine(context: dg.AssetExecutionContext, workspace: WORKSPACE) -> dg.MaterializeResult:
    """Every file of the pool that could not be used: which, why, and what its reader said."""
    rows = pd.concat(
        [pd.read_parquet(workspace.videos(shard) / "quarantine.parquet") for shard in workspace.shards()],
        ignore_index=True,
    )
    workspace.quarantine.parent.mkdir(parents=True, exist_ok=True)
    partial = workspace.quarantine.with_suffix(".csv.partial")
    rows["name"] = rows["name"].str.replace(r"^(?=[=+\-@\t\r])", "'", regex=True)  # no formula in a spreadsheet
    rows.to_csv(partial, index=False, lineterminator="\n")
    os.replace(partial, workspace.quarantine)
    return seal(
        context,
        workspace,
        {"dagster/row_count": len(rows), "quarantine": frame_table(rows, ["name", "reason", "shard"], 40)},
    )
