"""One identity, held against all that carries it: DVC, Dagster, the checkpoint, MLflow, the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from assets.identity import Identity, stage_name
from assets.tracking import Tracking
from assets.workspace import Workspace
from orchestration.instance import open_instance


@dataclass(frozen=True)
class Finding:
    """One place where an identity is written, and whether it is the one that DVC locked."""

    where: str
    expected: str | None
    found: str | None

    @property
    def holds(self) -> bool:
        """Whether the two are one."""
        return self.expected is not None and self.expected == self.found

    def __str__(self) -> str:
        if self.holds:
            return f"ok   {self.where:44} {self.found}"
        return f"GAP  {self.where:44} is {self.found}, dvc.lock says {self.expected}; materialize it again"


def audit_identity(workspace: Workspace) -> list[Finding]:
    """Every place that carries an artifact's identity, in chain order."""
    identity = Identity(workspace.root)
    findings = _dagster_findings(workspace, identity)
    splits, checkpoint = identity.locked_hash("splits"), identity.locked_hash("checkpoint")
    trained_on = _read(workspace.checkpoint / "lineage.json")
    reported = _read(workspace.benchmark / "metrics.json").get("identity", {})
    findings += [
        Finding("checkpoint: release it was trained on", splits, trained_on.get("splits")),
        Finding("report: release", splits, reported.get("splits")),
        Finding("report: checkpoint", checkpoint, reported.get("checkpoint")),
    ]
    return findings + _mlflow_findings(workspace, splits, checkpoint)


def _dagster_findings(workspace: Workspace, identity: Identity) -> list[Finding]:
    from orchestration.definitions import build_definitions
    from orchestration.run import chain, known_version

    instance = open_instance(workspace)
    findings = []
    for asset, shard in chain(build_definitions(workspace), workspace):
        name = stage_name(asset, shard)
        locked = identity.locked_hash(name)
        try:
            on_disk = identity.hash_on_disk(name)
        except ValueError:
            on_disk = None
        findings.append(Finding(f"disk: {name}", locked, on_disk))
        findings.append(Finding(f"dagster: {name}", locked, known_version(instance, dg.AssetKey(asset), shard)))
    return findings


def _mlflow_findings(workspace: Workspace, splits: str | None, checkpoint: str | None) -> list[Finding]:
    if checkpoint is None:
        return [Finding("mlflow: model", checkpoint, None)]
    model = Tracking(workspace.root).model_of(checkpoint)
    return [
        Finding("mlflow: model", checkpoint, model.tags.get("dvc.md5") if model else None),
        Finding(
            "mlflow: data set of its run",
            splits,
            Tracking(workspace.root).dataset_digest(model.source_run_id, "splits") if model else None,
        ),
    ]


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}
