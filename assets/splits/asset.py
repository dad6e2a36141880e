"""Validated splits as an asset: the sealed release that training and the benchmark read."""

import dagster as dg
import pandas as pd

from assets.geometry.asset import geometry
from assets.link import WORKSPACE, check_results, seal, table, table_checks
from assets.progress import console_progress
from assets.questions.asset import questions
from assets.videos.asset import videos
from assets.videos.parameters import VideoParameters


@dg.asset(
    deps=[questions, videos, geometry],
    group_name="link_4_splits",
    owners=["team:questions"],
    kinds={"greatexpectations", "parquet"},
    check_specs=table_checks("splits"),
)
def splits(
    context: dg.AssetExecutionContext, workspace: WORKSPACE, video_parameters: dg.ResourceParam[VideoParameters]
) -> dg.MaterializeResult:
    """Train, val and bench by source video, with the hashes of every frame file and scene record they refer to.

    A clip, quad or question on two sides is refused before anything is sealed.
    """
    from assets.splits.release import read_release
    from assets.splits.sealing import seal_release
    from assets.videos.duplicates import copies_in_pool
    from validations.suites import validate

    data = workspace.root / "data"
    copies = copies_in_pool(map(workspace.videos, workspace.shards()), video_parameters.duplicate_bits)
    release = seal_release(
        workspace.questions, data / "videos", data / "geometry", workspace.splits, copies, console_progress("splits")
    )
    rows = read_release(workspace.splits)
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
        check_results(validate("splits", rows)),
    )
