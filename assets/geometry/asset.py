"""Geometry caches as an asset: one scene record per clip."""

import dagster as dg
import pandas as pd

from assets.geometry.parameters import GeometryParameters
from assets.link import SHARDS, WORKSPACE, check_results, frame_table, picture, seal, table, table_checks
from assets.progress import console_progress
from assets.videos.asset import raw_videos, videos


@dg.asset(
    partitions_def=SHARDS,
    deps=[raw_videos, videos],
    group_name="link_2_geometry",
    owners=["team:geometry"],
    kinds={"opencv", "safetensors"},
    pool="gpu",
    check_specs=table_checks("geometry"),
)
def geometry(
    context: dg.AssetExecutionContext,
    workspace: WORKSPACE,
    geometry_parameters: dg.ResourceParam[GeometryParameters],
    workers: dg.ResourceParam[int],
) -> dg.MaterializeResult:
    """Cameras, points, masks, tracks and orientation of every clip, or the reason why 3D was refused."""
    from assets.geometry.cache import estimate_shard
    from assets.geometry.record import load
    from assets.geometry.scene_page import ADDRESS
    from assets.geometry.view import trajectories_from_above
    from validations.suites import validate

    shard = context.partition_key
    out = workspace.geometry(shard)
    estimate_shard(
        workspace.raw(shard),
        workspace.videos(shard),
        out,
        shard,
        geometry_parameters,
        workers,
        console_progress(f"geometry {shard}"),
    )
    scenes = pd.read_parquet(out / "scenes.parquet")
    in_3d = scenes[scenes["status"] == "3d"]
    metadata = {
        "dagster/partition_row_count": len(scenes),
        "in_3d": len(in_3d),
        "in_2d": int((scenes["status"] == "2d").sum()),
        "refused": int((scenes["status"] == "refused").sum()),
    }
    metadata["all_scenes"] = dg.MetadataValue.url(f"{ADDRESS}/?shard={shard}")
    if len(in_3d):
        record = load(out / f"{in_3d.iloc[0]['clip']}.safetensors")
        metadata["a_scene_in_3d"] = dg.MetadataValue.url(f"{ADDRESS}/scenes/{in_3d.iloc[0]['clip']}")
        metadata["trajectories_from_above"] = picture(
            trajectories_from_above(record), "image/png", "trajectories from above"
        )
    by_estimator = scenes["estimator"].value_counts().sort_index()
    metadata["estimators"] = table([{"estimator": name, "clips": int(n)} for name, n in by_estimator.items()])
    scenes_shown = scenes.assign(page=ADDRESS + "/scenes/" + scenes["clip"])
    columns = ["name", "estimator", "status", "reason", "objects", "moving", "page"]
    metadata["scenes"] = frame_table(scenes_shown, columns, 24)
    return seal(context, workspace, metadata, check_results(validate("scenes", scenes)))
