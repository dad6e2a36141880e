"""Who is champion: the decision due after a report, what stands, and a person's word against the rule."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.benchmark.registry import CHALLENGER, CHAMPION, Registry, RegistryError, Standing
from assets.identity import Identity
from assets.tracking import Tracking
from assets.workspace import Workspace
from orchestration.instance import open_instance
from orchestration.run import known_version, materialize

PROMOTION = dg.AssetKey("promotion")


def decide_if_due(workspace: Workspace) -> bool:
    """Materialize the decision unless the newest one is about the committed report.

    Returns:
        Whether a decision was made.
    """
    instance = open_instance(workspace)
    if known_version(instance, PROMOTION, None) == Identity(workspace.root).locked_hash("benchmark"):
        return False
    from orchestration.definitions import build_definitions

    materialize(build_definitions(workspace), instance, PROMOTION.to_user_string(), None)
    return True


def decide_with_general(workspace: Workspace, folder: Path) -> None:
    """Decide again on the committed report, with the checkpoint's answers to a benchmark of general understanding.

    Args:
        workspace: whose report is judged.
        folder: that `dsr evaluate` wrote about the workspace's checkpoint.

    Raises:
        IdentityError, RegistryError: there is no committed report.
        ComparisonError: the folder holds no such answers, or another checkpoint's.
    """
    from orchestration.definitions import build_definitions

    given = {"general": str(folder.resolve())}
    instance = open_instance(workspace)
    materialize(build_definitions(workspace), instance, PROMOTION.to_user_string(), None, given)


def standing_lines(workspace: Workspace) -> list[str]:
    """Champion and challenger, with what was decided of each and why.

    Raises:
        RegistryError: no checkpoint was ever entered.
    """
    registry = Registry(Tracking(workspace.root))
    standing = [registry.standing(alias) for alias in (CHAMPION, CHALLENGER)]
    if not any(standing):
        raise RegistryError("no checkpoint has been judged yet; `dsr run` makes a report and decides on it")
    lines = [] if standing[0] else ["no champion yet"]
    for holder in filter(None, standing):
        lines += holder.lines()
    if known_version(open_instance(workspace), PROMOTION, None) != Identity(workspace.root).locked_hash("benchmark"):
        lines.append("the present report has not been judged; run `dsr run`")
    return lines


def override(workspace: Workspace, by: str, reason: str, version: int | None) -> Standing:
    """Make a version champion by a person's word, and tell Dagster of it.

    Raises:
        RegistryError: as `Registry.override`.
    """
    standing = Registry(Tracking(workspace.root)).override(by, reason, version)
    instance = open_instance(workspace)
    judged = known_version(instance, PROMOTION, None)
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            PROMOTION,
            description="overridden by a person",
            metadata={
                "verdict": standing.tags["promotion.verdict"],
                "decided_by": standing.tags["promotion.by"],
                "kind": "override",
                "reason": standing.tags["promotion.reason"],
                "version": standing.version,
                "checkpoint": standing.tags.get("dvc.checkpoint", "unknown"),
            },
            tags={DATA_VERSION_TAG: judged} if judged else {},
        )
    )
    return standing
