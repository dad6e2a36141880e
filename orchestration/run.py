"""Bringing the chain up to date: what DVC calls changed is materialized by Dagster, link by link, and nothing else.

Each link is asked again after the links before it ran, so a link that came out the same as before stops the wave there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG, extract_data_version_from_entry
from dagster._core.errors import DagsterAssetCheckFailedError

from assets.benchmark.asset import JUDGES
from assets.identity import Identity, stage_name
from assets.workspace import Workspace
from orchestration.instance import OWNER_TAG, open_instance, this_process

# A failure is raised and told by the command line in one line; the event log keeps the whole story.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class LinkFailure(Exception):
    """A blocking check failed, or a link gave up; nothing of it was committed."""


@dataclass
class Outcome:
    """What a call of `bring_up_to_date` did, as stage names."""

    ran: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)


def chain(definitions: dg.Definitions, workspace: Workspace) -> Iterator[tuple[str, str | None]]:
    """Every (asset, shard) that DVC keeps, in chain order; shard is None where an asset is not partitioned."""
    graph = definitions.resolve_asset_graph()
    for key in graph.toposorted_asset_keys:
        if JUDGES in graph.get(key).tags:
            continue
        shards = workspace.shards() if graph.get(key).is_partitioned else [None]
        for shard in shards:
            yield key.to_user_string(), shard


def bring_up_to_date(workspace: Workspace) -> Outcome:
    """Materialize every link that is not current.

    Raises:
        LinkFailure: a blocking check failed or a link gave up; later links were not run.
        Exception: whatever the failing link raised.
    """
    from orchestration.definitions import build_definitions

    definitions = build_definitions(workspace)
    instance = open_instance(workspace)
    identity = Identity(workspace.root)
    outcome = Outcome()
    for asset, shard in chain(definitions, workspace):
        name = stage_name(asset, shard)
        if identity.is_current(name) and identity.locked_hash(name):
            report_if_unknown(instance, asset, shard, identity.locked_hash(name))
            outcome.current.append(name)
            continue
        print(f"{name}", file=sys.stderr, flush=True)
        materialize(definitions, instance, asset, shard)
        identity.refresh()
        outcome.ran.append(name)
    return outcome


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    asset: str,
    shard: str | None,
    config: Mapping[str, str] | None = None,
) -> None:
    """One Dagster run of one asset (and partition) in this process, with the asset's own configuration if it has one.

    Raises:
        LinkFailure: a blocking check of the asset failed, or the asset gave up.
        Exception: whatever the asset raised.
    """
    job = definitions.resolve_implicit_global_asset_job_def()
    try:
        job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(asset)],
            partition_key=shard,
            run_config=QUIET | ({"ops": {asset: {"config": dict(config)}}} if config else {}),
            tags={OWNER_TAG: this_process()},
        )
    except dg.DagsterExecutionStepExecutionError as error:
        if isinstance(error.user_exception, dg.Failure):
            raise LinkFailure(f"{stage_name(asset, shard)}: {error.user_exception.description}") from None
        raise error.user_exception from None
    except dg.DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None
    except DagsterAssetCheckFailedError:
        reasons = "; ".join(_failed_checks(definitions, instance, asset))
        raise LinkFailure(f"{stage_name(asset, shard)}: {reasons}") from None


def _failed_checks(definitions: dg.Definitions, instance: dg.DagsterInstance, asset: str) -> Iterator[str]:
    """What the checks that stopped an asset said."""
    for key in definitions.resolve_asset_graph().get_check_keys_for_assets({dg.AssetKey(asset)}):
        record = instance.get_latest_asset_check_evaluation_record(key)
        found = record.event.dagster_event.asset_check_evaluation_data if record and record.event else None
        if found and not found.passed and found.severity == dg.AssetCheckSeverity.ERROR:
            yield f"{found.check_name}: {found.description}"


def report_if_unknown(instance: dg.DagsterInstance, asset: str, shard: str | None, version: str) -> None:
    """Tell Dagster of an artifact that DVC has and Dagster does not, as after `dvc pull` or a restored cache."""
    key = dg.AssetKey(asset)
    if known_version(instance, key, shard) != version:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                key,
                partition=shard,
                description="made elsewhere and brought in by DVC",
                metadata={"dvc_md5": version},
                tags={DATA_VERSION_TAG: version},
            )
        )


def known_version(instance: dg.DagsterInstance, key: dg.AssetKey, shard: str | None) -> str | None:
    """The data version of the newest materialization that Dagster knows of."""
    record = instance.get_latest_data_version_record(key, partition_key=shard)
    version = extract_data_version_from_entry(record.event_log_entry) if record else None
    return version.value if version else None
