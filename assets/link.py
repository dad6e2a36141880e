"""What every `asset.py` shares: partitions, checks, and the way a materialization ends.

A link ends in four steps, the same for all: the output is validated, hashed by DVC, committed if every blocking check
passed, and reported to Dagster under that hash. Nothing that failed a blocking check is ever committed, so neither
engine builds on it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from assets.identity import Identity, stage_name, under_dvc_repro
from assets.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from validations.suites import Verdict

SHARDS = dg.DynamicPartitionsDefinition(name="shards")

WORKSPACE = dg.ResourceParam[Workspace]


def table_checks(asset: str) -> list[dg.AssetCheckSpec]:
    """The two checks of a table: what must hold blocks everything downstream, what should hold warns."""
    return [
        dg.AssetCheckSpec(
            "must_hold",
            asset=asset,
            blocking=True,
            description="Critical expectations; a failure stops the chain.",
        ),
        dg.AssetCheckSpec("should_hold", asset=asset, description="Expectations whose failure is a warning."),
    ]


def check_results(verdicts: Iterable[Verdict]) -> list[dg.AssetCheckResult]:
    """Verdicts of an expectation suite as the results of `table_checks`."""
    verdicts = list(verdicts)
    critical = [verdict for verdict in verdicts if verdict.severity == "critical"]
    advisory = [verdict for verdict in verdicts if verdict.severity != "critical"]
    return [
        _check_result("must_hold", critical, dg.AssetCheckSeverity.ERROR),
        _check_result("should_hold", advisory, dg.AssetCheckSeverity.WARN),
    ]


def _check_result(name: str, verdicts: list[Verdict], severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    return dg.AssetCheckResult(
        check_name=name,
        passed=not failed,
        severity=severity,
        description="; ".join(f"{verdict.name}: {verdict.message}" for verdict in failed)[:1000] or None,
        metadata={
            "expectations": len(verdicts),
            "failed": len(failed),
            "verdicts": table(
                [
                    {
                        "expectation": verdict.name,
                        "passed": verdict.passed,
                        "observed": str(verdict.observed)[:200],
                    }
                    for verdict in verdicts
                ]
            ),
        },
    )


def seal(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    metadata: Mapping[str, object],
    checks: Iterable[dg.AssetCheckResult] = (),
) -> dg.MaterializeResult:
    """End a materialization: hash, commit unless a blocking check failed or DVC runs the stage, report.

    The blocking checks are those that report with severity ERROR.
    """
    shard = context.partition_key if context.has_partition_key else None
    name = stage_name(context.asset_key.to_user_string(), shard)
    identity = Identity(workspace.root)
    version = identity.hash_on_disk(name)
    checks = list(checks)
    blocked = any(not check.passed and check.severity == dg.AssetCheckSeverity.ERROR for check in checks)
    if not blocked and not under_dvc_repro():
        identity.commit(name)
    return dg.MaterializeResult(
        metadata={
            "dagster/uri": str(identity.output(name).relative_to(workspace.root)),
            "dvc_md5": version,
            **metadata,
        },
        data_version=dg.DataVersion(version),
        check_results=checks,
    )


def table(rows: list[dict[str, object]], limit: int = 40) -> dg.MetadataValue:
    """Rows as a table in the UI, bounded so that the event log stays small; no rows are said in a word."""
    if not rows:
        return dg.MetadataValue.text("none")
    return dg.MetadataValue.table(
        records=[dg.TableRecord({key: _shown(value) for key, value in row.items()}) for row in rows[:limit]],
        schema=dg.TableSchema([dg.TableColumn(str(column)) for column in rows[0]]),
    )


def _shown(value: object) -> int | float | str | bool:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if isinstance(value, int | str) else str(value)


def frame_table(frame: pd.DataFrame, columns: list[str], limit: int = 12) -> dg.MetadataValue:
    """Some columns of the first rows of a data frame, as a table in the UI."""
    return table(frame.head(limit)[columns].astype(object).where(frame.notna(), "").to_dict("records"), limit)


def picture(image: bytes, mime: str, caption: str) -> dg.MarkdownMetadataValue:
    """A small picture inside a materialization's metadata."""
    return dg.MetadataValue.md(f"![{caption}](data:{mime};base64,{base64.b64encode(image).decode()})")
