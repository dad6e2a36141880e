"""The champion measured on a new bench, so that challengers can meet it there: its bytes are in DVC's cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from assets.benchmark.evaluate import evaluate
from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.predictions import cached_predictor
from assets.benchmark.promotion import ReleaseChecks
from assets.benchmark.registry import CHAMPION, Registry, Report, judge
from assets.identity import Identity
from assets.tracking import Tracking
from assets.workspace import Workspace

Progress = Callable[[int, int, str], None]


def measure_champion(
    workspace: Workspace,
    identity: Identity,
    tracking: Tracking,
    report: Report,
    release: ReleaseChecks,
    parameters: BenchmarkParameters,
    progress: Progress = lambda done, total, what: None,
) -> str | None:
    """Put the bench of a report to the champion, if it was judged by another one.

    Args:
        workspace: where the bench lies.
        identity: of the workspace; brings the champion's bytes.
        tracking: the store whose champion is meant.
        report: of the challenger, on the new bench.
        release: as `judge` takes it.
        parameters: of evaluation.
        progress: called with questions done, questions in all and a word.

    Returns:
        None where the champion's answers to this bench are on record, or there is no champion; else why they are not,
        in one line.
    """
    champion = Registry(tracking).standing(CHAMPION)
    if champion is None or champion.tags.get("bench.sha256") == report.bench:
        return None
    checkpoint, version = (champion.tags.get(f"dvc.{name}", "") for name in ("checkpoint", "benchmark"))
    if checkpoint == report.checkpoint:
        return None
    data, kept = workspace.root / "data", workspace.root / ".cache"
    kept.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=kept) as folder:
            model, out = Path(folder, "checkpoint"), Path(folder, "report")
            identity.bring(checkpoint, model)
            named = {"checkpoint": checkpoint, "splits": report.splits, "code": identity.code_version("benchmark")}
            asked = (model, workspace.splits, data / "videos", data / "geometry", out, parameters, named, progress)
            evaluate(*asked, predictor=cached_predictor(workspace.benchmark.with_name(".predictions.sqlite")))
            tags = {"dagster.asset_key": "promotion", "dvc.checkpoint": checkpoint}
            judge(tracking, Report.read(out, version), release, tags)
    except ValueError as error:
        return f"champion version {champion.version} could not be asked the new bench ({error})"
    return None
