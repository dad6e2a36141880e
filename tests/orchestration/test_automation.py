"""The sensor and the schedule, on real instances and real DVC."""

import shutil

import dagster as dg
import pytest

from assets.link import SHARDS
from assets.workspace import Workspace
from orchestration.automation import new_videos, weekly_retraining
from tests.assets.videos.conftest import write_video


@pytest.fixture
def inside(workspace, monkeypatch):
    monkeypatch.setenv("DSR_WORKSPACE", str(workspace))
    return workspace


def evaluate(sensor_or_schedule, cursor: str | None = None):
    """One evaluation; returns the result and the cursor it leaves."""
    with dg.instance_for_test() as instance:
        if isinstance(sensor_or_schedule, dg.SensorDefinition):
            context = dg.build_sensor_context(instance=instance, cursor=cursor)
            return sensor_or_schedule(context), context.cursor
        return sensor_or_schedule(dg.build_schedule_context(instance=instance)), None


def test_both_are_shipped_stopped():
    assert new_videos.default_status == dg.DefaultSensorStatus.STOPPED
    assert weekly_retraining.default_status == dg.DefaultScheduleStatus.STOPPED


def test_without_the_folder_the_sensor_says_what_to_set(inside):
    result, _ = evaluate(new_videos)
    assert isinstance(result, dg.SkipReason)
    assert "ingest.folder" in result.skip_message


def test_new_files_become_a_sealed_shard_and_its_run_once_they_stand_still(inside):
    folder = inside / "incoming"
    folder.mkdir()
    write_video(folder / "a.mp4")
    arriving, cursor = evaluate(new_videos)
    assert "arriving" in arriving.skip_message
    assert Workspace(inside).shards() == ["shard-000000"]

    result, cursor = evaluate(new_videos, cursor)
    assert "shard-000001" in [request.partition_key for request in result.run_requests]
    (added,) = result.dynamic_partitions_requests
    assert added.partitions_def_name == SHARDS.name
    assert Workspace(inside).shards() == ["shard-000000", "shard-000001"]
    assert (inside / "data/raw/shard-000001.dvc").exists()

    unchanged, cursor = evaluate(new_videos, cursor)
    assert "nothing changed" in unchanged.skip_message

    shutil.copy(folder / "a.mp4", folder / "the same bytes again.mp4")
    _, cursor = evaluate(new_videos, cursor)
    evaluate(new_videos, cursor)
    assert Workspace(inside).shards() == ["shard-000000", "shard-000001"]


def test_retraining_waits_for_a_first_shard(inside):
    result, _ = evaluate(weekly_retraining)
    assert isinstance(result, dg.SkipReason)
    assert "prepare_shard" in result.skip_message


def test_retraining_skips_until_something_changed(finished, monkeypatch):
    monkeypatch.setenv("DSR_WORKSPACE", str(finished))
    skipped, _ = evaluate(weekly_retraining)
    assert isinstance(skipped, dg.SkipReason)
    assert "nothing changed" in skipped.skip_message

    code = finished / "models" / "gsm.py"
    original = code.read_text()
    code.write_text(original + "\n# a change\n")
    try:
        request, _ = evaluate(weekly_retraining)
        assert request.tags["dsr/changed"] == "checkpoint, benchmark"
    finally:
        code.write_text(original)
