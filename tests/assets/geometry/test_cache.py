import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from assets.geometry import cache, estimators
from assets.geometry.cache import estimate_shard
from assets.geometry.estimators import EstimateError
from assets.geometry.record import load

SHARD = "shard-000000"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


@pytest.fixture
def shard(make_shard, world):
    return make_shard([world] * 3)


@pytest.fixture
def run(shard, tmp_path, parameters):
    def estimate(parameters=parameters, workers=1, out=None, progress=lambda *_: None):
        out = out or tmp_path / "out"
        estimate_shard(*shard, out, SHARD, parameters, workers, progress)
        return out

    return estimate


def test_one_record_per_clip_and_a_table(run):
    told = []
    out = run(progress=lambda *step: told.append(step))
    table = pq.read_table(out / "scenes.parquet").to_pylist()
    assert [row["clip"] for row in table] == sorted(path.stem for path in out.glob("*.safetensors"))
    assert {row["status"] for row in table} == {"3d"} and {row["estimator"] for row in table} == {"rendered"}
    first = table[0]
    assert (first["objects"], first["agents"], first["moving"], first["frames"]) == (2, 1, 1, 12)
    assert first["seconds"] == 4.0 and 0.05 < first["parallax"] < 0.3 and first["metric"]
    assert [step[:2] for step in told] == [(1, 3), (2, 3), (3, 3)]


def test_any_number_of_workers_writes_the_same_bytes(run, tmp_path):
    assert content(run()) == content(run(workers=2, out=tmp_path / "other"))


def test_valid_records_are_kept_and_a_damaged_one_is_made_again(run):
    out = run()
    before, whole = stamps(out), content(out)
    assert stamps(run()) == before
    damaged = sorted(out.glob("*.safetensors"))[1]
    data = bytearray(damaged.read_bytes())
    data[-9] ^= 4
    damaged.write_bytes(bytes(data))
    (out / ".half.safetensors.123.tmp").write_bytes(b"killed")
    run()
    changed = [name for name, stamp in stamps(out).items() if stamp != before[name]]
    assert changed == [damaged.name]
    assert content(out) == whole


def test_another_parameter_or_other_frames_make_another_record(run, shard, parameters):
    out = run()
    before = stamps(out)
    run(parameters.model_copy(update={"points_side": 16}))
    assert all(stamps(out)[name] != stamp for name, stamp in before.items())
    run()
    before = stamps(out)
    path = sorted((shard[1] / "frames").iterdir())[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    run()
    assert [name for name, stamp in stamps(out).items() if stamp != before[name]] == [path.name]


def test_a_failing_clip_is_an_outcome_and_not_a_crash(run, shard, tmp_path):
    clips = sorted((shard[1] / "frames").iterdir())
    clips[0].write_bytes(b"broken")
    sidecar = shard[0] / f"{clips[1].stem}.truth.safetensors"
    sidecar.write_bytes(sidecar.read_bytes()[:50])
    out = run()
    table = {row["clip"]: row for row in pq.read_table(out / "scenes.parquet").to_pylist()}
    assert [table[path.stem]["status"] for path in clips] == ["refused", "refused", "3d"]
    assert "unreadable frames" in table[clips[0].stem]["reason"]
    record = load(out / f"{clips[1].stem}.safetensors")
    assert record.status == "refused" and "damaged" in record.provenance["reason"]
    assert len(record.timestamps) == 12 and not record.names
    assert str(tmp_path) not in json.dumps(record.provenance)


def test_an_estimators_own_fault_is_recorded_without_paths(run, monkeypatch):
    class Broken:
        def __init__(self, parameters):
            pass

        def supports(self, row, companions):
            return True

        def identity(self):
            return "broken/1"

        def estimate(self, clip):
            raise RuntimeError(f"cannot read {clip.primary}")

    monkeypatch.setattr(estimators, "build", lambda name, parameters: Broken(parameters))
    record = load(next(run().glob("*.safetensors")))
    assert record.provenance["reason"] == "the estimator failed: RuntimeError"
    assert record.provenance["version"] == "broken/1"


def test_a_clip_that_no_estimator_supports_is_refused(run, parameters):
    out = run(parameters.model_copy(update={"estimators": ("annotated",)}))
    assert {row["status"] for row in pq.read_table(out / "scenes.parquet").to_pylist()} == {"refused"}


def test_a_clip_that_left_the_shard_leaves_no_record(run, shard):
    out = run()
    table = pq.read_table(shard[1] / "clips.parquet")
    pq.write_table(table.slice(0, 2), shard[1] / "clips.parquet")
    run()
    assert len(list(out.glob("*.safetensors"))) == 2


def test_a_table_that_disagrees_with_the_manifest_is_refused(run, shard):
    manifest = json.loads((shard[0] / "manifest.json").read_text())
    manifest["files"] = manifest["files"][:1]
    (shard[0] / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EstimateError, match=r"clips\.parquet"):
        run()


def test_a_process_that_dies_takes_only_its_own_clip(shard, tmp_path, parameters, monkeypatch):
    jobs = cache._jobs(*shard, tmp_path, parameters)
    monkeypatch.setattr(cache, "estimate_clip", _die_on_the_second)
    died = {job.clip.row["name"]: dead for job, dead in cache._run(jobs, 2)}
    assert died == {"0.mp4": False, "1.mp4": True, "2.mp4": False}
    doomed = next(job for job in jobs if job.clip.row["name"] == "1.mp4")
    cache._save_death(doomed)
    assert load(doomed.destination).provenance["reason"] == "the estimator's process died"
    monkeypatch.undo()
    cache.estimate_clip(doomed)
    assert load(doomed.destination).status == "3d"


def _die_on_the_second(job):
    import os

    if job.clip.row["name"] == "1.mp4":
        os._exit(11)
