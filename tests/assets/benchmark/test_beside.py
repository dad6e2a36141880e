import json
import shutil

import mlflow
import pytest

from assets.benchmark.beside import PAGE, log_beside
from assets.benchmark.promotion import ReleaseChecks
from assets.benchmark.registry import Registry, Report, judge
from assets.tracking import Tracking


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()
    yield Tracking(tmp_path)
    mlflow.set_tracking_uri(before)


def test_a_challenger_is_shown_beside_the_champion_that_it_met(world, evaluated, tracking, tmp_path):
    registry, release = Registry(tracking), ReleaseChecks("5" * 32, True)
    places = [world / name for name in ("splits", "videos", "geometry")]
    first, _ = judge(tracking, Report.read(evaluated.out, "9" * 32), release, {})
    assert log_beside(tracking, None, first, evaluated.out, *places) is None
    if "champion" not in first.aliases:
        registry.override("Ada", "to have one")
    champion = registry.standing("champion")
    assert log_beside(tracking, champion, first, evaluated.out, *places) is None

    report = tmp_path / "next"
    shutil.copytree(evaluated.out, report)
    told = json.loads((report / "metrics.json").read_text())
    told["identity"]["checkpoint"] = "d" * 32
    (report / "metrics.json").write_text(json.dumps(told))
    second, _ = judge(tracking, Report.read(report, "8" * 32), release, {})
    summary = log_beside(tracking, champion, second, report, *places)
    assert "against the champion, version 1 it is not distinguishable" in summary
    run = second.tags["promotion.run_id"]
    page = mlflow.artifacts.load_text(f"runs:/{run}/{PAGE}")
    assert "Better than the champion, version 1?" in page and "d" * 32 in page

    missing = log_beside(tracking, champion, second, report, places[0], tmp_path / "none", places[2])
    assert missing.startswith("No page beside the champion, version 1: ") and "no question can be asked" in missing
