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


def evaluate(sensor_or_schedule):
    with dg.instance_for_test() as instance:
        if isinstance(sensor_or_schedule, dg.SensorDefinition):
            return sensor_or_schedule(dg.build_sensor_context(instance=instance))
        return sensor_or_schedule(dg.build_schedule_context(instance=instance))


def test_both_are_shipped_stopped():
    assert new_videos.default_status == dg.DefaultSensorStatus.STOPPED
    assert weekly_retraining.default_status == dg.DefaultScheduleStatus.STOPPED


def test_without_the_folder_the_sensor_says_what_to_set(inside):
    result = evaluate(new_videos)
    assert isinstance(result, dg.SkipReason)
    assert "ingest.folder" in result.skip_message


def test_new_files_become_a_sealed_shard_and_its_run_once(inside):
    folder = inside / "incoming"
    folder.mkdir()
    write_video(folder / "a.mp4")
    result = evaluate(new_videos)
    assert [request.partition_key for request in result.run_requests] == ["shard-000001"]
    (added,) = result.dynamic_partitions_requests
    assert (added.partitions_def_name, list(added.partition_keys)) == (SHARDS.name, ["shard-000001"])
    assert Workspace(inside).shards() == ["shard-000000", "shard-000001"]
    assert (inside / "data/raw/shard-000001.dvc").exists()

    shutil.copy(folder / "a.mp4", folder / "the same bytes again.mp4")
    assert isinstance(evaluate(new_videos), dg.SkipReason)
    assert Workspace(inside).shards() == ["shard-000000", "shard-000001"]


def test_retraining_waits_for_a_first_release(inside):
    result = evaluate(weekly_retraining)
    assert isinstance(result, dg.SkipReason)
    assert "no release" in result.skip_message


def test_retraining_skips_until_something_changed(finished, monkeypatch):
    monkeypatch.setenv("DSR_WORKSPACE", str(finished))
    skipped = evaluate(weekly_retraining)
    assert isinstance(skipped, dg.SkipReason)
    assert "nothing changed" in skipped.skip_message

    code = finished / "models" / "gsm.py"
    original = code.read_text()
    code.write_text(original + "\n# a change\n")
    try:
        assert isinstance(evaluate(weekly_retraining), dg.RunRequest)
    finally:
        code.write_text(original)
