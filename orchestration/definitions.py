"""The code location that Dagster loads: assets in chain order, jobs, sensor, schedule, executor."""

from __future__ import annotations

import dagster as dg

import assets.benchmark.asset
import assets.checkpoints.asset
import assets.geometry.asset
import assets.questions.asset
import assets.splits.asset
import assets.videos.asset
from assets.benchmark.asset import JUDGES
from assets.identity import Identity
from assets.workspace import Workspace
from orchestration.automation import (
    new_videos,
    prepare_shard_job,
    release_job,
    retrain_job,
    weekly_retraining,
)
from orchestration.executors import build_executor
from orchestration.parameters import load
from orchestration.resources import resources

LINKS = [
    assets.videos.asset,
    assets.geometry.asset,
    assets.questions.asset,
    assets.splits.asset,
    assets.checkpoints.asset,
    assets.benchmark.asset,
]


def build_definitions(workspace: Workspace) -> dg.Definitions:
    """Definitions for one workspace; an asset's code version is read off its DVC stage, or that of what it judges."""
    identity = Identity(workspace.root)
    chain = [
        asset.map_asset_specs(
            lambda spec: spec.replace_attributes(
                code_version=identity.code_version(spec.tags.get(JUDGES, spec.key.to_user_string()))
            )
        )
        for asset in dg.load_assets_from_modules(LINKS)
    ]
    return dg.Definitions(
        assets=chain,
        resources=resources(workspace, load(workspace.root / "params.yaml")),
        jobs=[prepare_shard_job, release_job, retrain_job],
        sensors=[new_videos],
        schedules=[weekly_retraining],
        executor=build_executor(),
    )


@dg.definitions
def definitions() -> dg.Definitions:
    """What `dagster dev` and `dg` load."""
    return build_definitions(Workspace.find())
