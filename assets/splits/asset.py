"""Validated splits as an asset: the sealed release that training and the benchmark read."""

import dagster as dg
import pandas as pd

from assets.geometry.asset import geometry
from assets.link import WORKSPACE, check_results, seal, table, table_checks
from assets.progress import console_progress
from assets.questions.asset import questions
from assets.videos.asset import videos


@dg.asset(
    deps=[questions, videos, geometry],
    group_name="link_4_splits",
    owners=["team:questions"],
    kinds={"greatexpectations", "parquet"},
    check_specs=[
        *table_checks("splits"),
        dg.AssetCheckSpec(
            "no_leakage",
            asset="splits",
            blocking=True,
            description="No clip, quad or question stands on two sides.",
        ),
    ],
)
def splits(context: dg.AssetExecutionContext, workspace: WORKSPACE) -> dg.MaterializeResult:
    """Train, val and bench by source video, with the hashes of every frame file and scene record they refer to."""
    from assets.splits.release import read_release
    from assets.splits.sealing import seal_release
    from validations.leakage import find_leaks
    from validations.suites import validate

    data = workspace.root / "data"
    release = seal_release(
        workspace.questions, data / "videos", data / "geometry", workspace.splits, console_progress("splits")
    )
    rows = read_release(workspace.splits)
    leaks = find_leaks(rows)
    return seal(
        context,
        workspace,
        {
            "dagster/row_count": len(rows),
            "rows": table([{"split": name, **part} for name, part in release["splits"].items()]),
            "by_type": table(
                pd.crosstab(rows["type"], rows["split"]).reset_index().to_dict("records"),
            ),
        },
        [
            *check_results(validate("splits", rows)),
            dg.AssetCheckResult(
                check_name="no_leakage",
                passed=not leaks,
                severity=dg.AssetCheckSeverity.ERROR,
                description="; ".join(str(leak) for leak in leaks)[:1000] or None,
            ),
        ],
    )
