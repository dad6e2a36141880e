import json

import pyarrow.parquet as pq
import pytest

from assets.benchmark.tasks import TaskError, load_tasks
from assets.splits.release import ReleaseError


def tasks_of(root):
    return load_tasks(root / "splits", root / "videos", root / "geometry")


def bench_clips(root):
    return sorted(json.loads((root / "splits" / "release.json").read_text())["clips"]["bench"])


def test_the_whole_bench_is_asked_in_a_fixed_order(world):
    tasks = tasks_of(world)
    rows = tasks.table.select(["clip", "qa_id"]).to_pylist()
    assert len(rows) == 48
    assert rows == sorted(rows, key=lambda row: (row["clip"], row["qa_id"]))
    assert tasks.missing == []


@pytest.mark.parametrize(("folder", "reason"), [("videos", "no frames file"), ("geometry", "no geometry file")])
def test_questions_whose_clip_is_not_here_are_reported_and_not_asked(own_world, folder, reason):
    gone = bench_clips(own_world)[2]
    next((own_world / folder).rglob(f"{gone}.safetensors")).unlink()
    tasks = tasks_of(own_world)
    assert tasks.table.num_rows == 40
    assert gone not in tasks.table["clip"].to_pylist()
    assert {(row["clip"], row["reason"]) for row in tasks.missing} == {(gone, reason)}
    assert len(tasks.missing) == 8


@pytest.mark.parametrize("folder", ["videos", "geometry"])
def test_other_bytes_than_the_sealed_ones_are_refused_by_name(own_world, folder):
    path = next((own_world / folder).rglob(f"{bench_clips(own_world)[0]}.safetensors"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(TaskError, match=str(path)):
        tasks_of(own_world)


def test_a_bench_that_cannot_be_asked_at_all_is_an_error(own_world):
    for path in (own_world / "videos").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(TaskError, match="no question can be asked, for example no frames file"):
        tasks_of(own_world)


def test_a_changed_bench_is_not_the_sealed_one(own_world):
    path = own_world / "splits" / "bench.parquet"
    pq.write_table(pq.read_table(path).slice(0, 4), path)
    with pytest.raises(ReleaseError, match=r"bench\.parquet"):
        tasks_of(own_world)
