"""A report beside the champion that its checkpoint met: a page among the artifacts of the decision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from assets.benchmark.baseline import Baseline
from assets.benchmark.folder import ReportError, page_against
from assets.benchmark.registry import Registry
from assets.benchmark.tasks import TaskError

if TYPE_CHECKING:
    from assets.benchmark.registry import Standing
    from assets.tracking import Tracking

PAGE = "beside_champion.html"


def log_beside(
    tracking: Tracking,
    champion: Standing | None,
    judged: Standing,
    report: Path,
    splits: Path,
    videos: Path,
    geometry: Path,
) -> str | None:
    """Draw a report beside a champion and keep the page with the run that judged its checkpoint.

    Args:
        tracking: the store.
        champion: who was champion when the checkpoint was judged; None where there was none.
        judged: the checkpoint's version.
        report: folder of its report.
        splits: folder of the release.
        videos: as `evaluate`.
        geometry: as `evaluate`.

    Returns:
        The summary in Markdown; None where it met no champion but itself. Where clips to show are missing, why: the
        decision rests on answers alone and stands without a page.

    Raises:
        RegistryError, ComparisonError: the champion's answers cannot be read.
    """
    from mlflow import MlflowClient

    if champion is None or champion.version == judged.version:
        return None
    baseline = Baseline(f"the champion, version {champion.version}", Registry(tracking).scores(champion))
    try:
        page, summary = page_against(report, splits, videos, geometry, baseline)
    except (ReportError, TaskError) as error:
        return f"No page beside {baseline.name}: {error}"
    MlflowClient(tracking_uri=tracking.uri).log_text(judged.tags["promotion.run_id"], page, PAGE)
    return summary
