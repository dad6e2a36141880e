import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from assets.videos import shards
from assets.videos.shards import RawClip, ShardError, ingest, read_manifest, verify_shard

MP4 = b"\x00\x00\x00\x18ftypisom"


def take(source, raw, known=frozenset(), index=0, size=100):
    return ingest(str(source), raw, set(known), index, size)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_shards_are_filled_to_size_in_order_of_names(tmp_path):
    source = fill(tmp_path / "in", {f"{n}.mp4": MP4 + n.encode() for n in "dabce"})
    assert take(source, tmp_path / "raw", index=7, size=2) == ["shard-000007", "shard-000008", "shard-000009"]
    names = [[c.name for c in read_manifest(tmp_path / "raw" / f"shard-00000{i}")] for i in (7, 8, 9)]
    assert names == [["a.mp4", "b.mp4"], ["c.mp4", "d.mp4"], ["e.mp4"]]
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == [
        "shard-000007",
        "shard-000008",
        "shard-000009",
    ]
    verify_shard(tmp_path / "raw" / "shard-000007")


def test_the_same_bytes_are_one_clip(tmp_path):
    source = fill(tmp_path / "in", {"a.mp4": MP4, "b/copy.mov": MP4, "c.mp4": MP4 + b"c"})
    (key,) = take(source, tmp_path / "raw")
    clips = {clip.name: clip for clip in read_manifest(tmp_path / "raw" / key)}
    assert {name: clip.duplicates for name, clip in clips.items()} == {"a.mp4": ["b/copy.mov"], "c.mp4": []}
    assert len(list((tmp_path / "raw" / key).iterdir())) == 3
    verify_shard(tmp_path / "raw" / key)


def test_known_content_is_skipped(tmp_path):
    source = fill(tmp_path / "in", {"a.mp4": MP4, "a.truth.safetensors": b"t"})
    (key,) = take(source, tmp_path / "raw")
    known = {clip.clip for clip in read_manifest(tmp_path / "raw" / key)}
    assert take(source, tmp_path / "raw", known, 1) == []
    fill(source, {"new.mp4": MP4 + b"new"})
    (second,) = take(source, tmp_path / "raw", known, 1)
    assert [clip.name for clip in read_manifest(tmp_path / "raw" / second)] == ["new.mp4"]
    assert len(list((tmp_path / "raw" / second).iterdir())) == 2


def test_every_file_is_read_once(tmp_path, monkeypatch):
    source = fill(tmp_path / "in", {f"{n}.mp4": MP4 + n.encode() * 3_000_000 for n in "abc"})
    opened, whole = [], shards._chunks
    monkeypatch.setattr(shards, "_chunks", lambda files, path: (opened.append(path), whole(files, path))[1])
    take(source, tmp_path / "raw")
    assert sorted(opened) == [str(source / f"{n}.mp4") for n in "abc"]


def test_hostile_names_stay_text(tmp_path):
    names = [
        "a\nb.mp4",
        "<script>alert(1)</script>.mp4",
        "..%2f..%2fetc.mp4",
        "-rf.mp4",
        "'; drop.mp4",
        "ü.MP4",
        "x.mp4 ",
    ]
    source = fill(tmp_path / "in", {name: MP4 + name.encode() for name in names})
    (Path(os.fsdecode(os.fsencode(source) + b"/\xff\xfe.mp4"))).write_bytes(MP4 + b"bytes")
    (key,) = take(source, tmp_path / "raw")
    clips = read_manifest(tmp_path / "raw" / key)
    assert {clip.name for clip in clips} == {*names, "\\udcff\\udcfe.mp4"}
    stored = {path.name for path in (tmp_path / "raw" / key).iterdir()}
    assert stored == {"manifest.json"} | {f"{clip.clip}{clip.suffix}" for clip in clips if clip.kind == "video"}
    assert all(name.encode("utf-8").isascii() for name in stored)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.mp4", b"", "The file is empty."),
        (
            "a.mp4",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "Git LFS pointer, not a video: run git lfs pull.",
        ),
        ("a.mp4", b"<!DOCTYPE html><html>404", "A web page, not a video: the download failed."),
        ("notes.txt", b"hello", "Not a video: .txt files are not read."),
        ("noname", b"hello", "Not a video: .bin files are not read."),
    ],
)
def test_what_is_no_video_is_listed_but_not_kept(tmp_path, name, content, reason):
    (key,) = take(fill(tmp_path / "in", {name: content}), tmp_path / "raw")
    (clip,) = read_manifest(tmp_path / "raw" / key)
    assert (clip.kind, clip.reason, clip.bytes) == ("unusable", reason, len(content))
    assert [path.name for path in (tmp_path / "raw" / key).iterdir()] == ["manifest.json"]


def test_a_video_without_a_suffix_is_known_by_its_first_bytes(tmp_path):
    (key,) = take(fill(tmp_path / "in", {"clip": MP4}), tmp_path / "raw")
    assert read_manifest(tmp_path / "raw" / key)[0].kind == "video"


def test_links_pipes_and_unreadable_files_end_in_the_manifest(tmp_path):
    source = fill(tmp_path / "in", {"good.mp4": MP4, ".hidden/x.mp4": MP4 + b"h"})
    (source / "loop").symlink_to(source, target_is_directory=True)
    (source / "broken.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(source / "pipe.mp4")
    (tmp_path / "elsewhere.mp4").write_bytes(MP4 + b"elsewhere")
    (source / "link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (key,) = take(source, tmp_path / "raw")
    clips = {clip.name: clip for clip in read_manifest(tmp_path / "raw" / key)}
    assert clips.keys() == {"good.mp4", "link.mp4", "loop", "broken.mp4", "pipe.mp4"}
    assert "linked folder" in clips["loop"].reason
    assert clips["good.mp4"].kind == clips["link.mp4"].kind == "video"
    assert clips["broken.mp4"].kind == clips["pipe.mp4"].kind == "unusable"


def test_a_file_that_cannot_be_read_does_not_stop_the_others(tmp_path, monkeypatch):
    source = fill(tmp_path / "in", {"a.mp4": MP4, "b.mp4": MP4 + b"b"})
    whole = fsspec.implementations.local.LocalFileSystem.open

    def refuse(self, path, *args, **kwargs):
        if path.endswith("a.mp4"):
            raise PermissionError(path)
        return whole(self, path, *args, **kwargs)

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "open", refuse)
    (key,) = take(source, tmp_path / "raw")
    refused, good = read_manifest(tmp_path / "raw" / key)
    assert refused.reason == "The file could not be read (PermissionError): check it at its source."
    assert good.kind == "video"


def test_annotated_logs_are_clips_with_companions(tmp_path):
    source = fill(
        tmp_path / "in",
        {
            "log/annotations.feather": b"a",
            "log/city_SE3_egovehicle.feather": b"p",
            "log/calibration/egovehicle_SE3_sensor.feather": b"c",
            "log/calibration/intrinsics.feather": b"i",
            "kitti/label_02/0000.txt": b"labels",
            "kitti/calib/0000.txt": b"calib",
            "kitti/label_02/0001.txt": b"no calibration",
        },
    )
    (key,) = take(source, tmp_path / "raw")
    clips = {clip.name: clip for clip in read_manifest(tmp_path / "raw" / key)}
    log, label = clips["log/annotations.feather"], clips["kitti/label_02/0000.txt"]
    assert (log.kind, set(log.companions)) == ("av2", {"pose", "calibration", "intrinsics"})
    assert (label.kind, set(label.companions)) == ("kitti", {"calibration"})
    assert log.companion_path(tmp_path / "raw" / key, "pose").read_bytes() == b"p"
    assert clips["kitti/label_02/0001.txt"].kind == "unusable"
    assert len(clips) == 3
    verify_shard(tmp_path / "raw" / key)


def test_a_truth_sidecar_travels_with_its_video(tmp_path):
    source = fill(
        tmp_path / "in", {"a.mp4": MP4, "a.truth.safetensors": b"t", "b.txt": b"b", "b.truth.safetensors": b"l"}
    )
    (key,) = take(source, tmp_path / "raw")
    clips = {clip.name: clip for clip in read_manifest(tmp_path / "raw" / key)}
    assert clips["a.mp4"].companion_path(tmp_path / "raw" / key, "truth").read_bytes() == b"t"
    assert clips["b.truth.safetensors"].kind == "unusable"


def test_captions_travel_with_their_videos_from_files_and_from_a_table(tmp_path):
    table = "videoID,caption\na,from the table\nb,a dog runs <b>\nstrange,nobody's\n"
    files = {"a.mp4": MP4, "a.caption.txt": b"from the file", "b.mp4": MP4 + b"b", "c.mp4": MP4 + b"c"}
    source = fill(tmp_path / "in", files | {"captions.csv": table.encode()})
    (key,) = take(source, tmp_path / "raw")
    folder = tmp_path / "raw" / key
    clips = {clip.name: clip for clip in read_manifest(folder)}
    said = {
        name: clip.companion_path(folder, "caption").read_text()
        for name, clip in clips.items()
        if "caption" in clip.companions
    }
    assert said == {"a.mp4": "from the file", "b.mp4": "a dog runs <b>"} and clips.keys() == {"a.mp4", "b.mp4", "c.mp4"}
    verify_shard(folder)


def test_a_killed_run_leaves_sealed_shards_and_the_next_one_finishes(tmp_path):
    source = fill(tmp_path / "in", {f"{n}.mp4": MP4 + n.encode() for n in "abcde"})
    script = (
        "import os, signal, sys; from pathlib import Path; from assets.videos.shards import ingest\n"
        "die = lambda done, total, what: done == 4 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "ingest(sys.argv[1], Path(sys.argv[2]), set(), 0, 2, die)"
    )
    raw = tmp_path / "raw"
    died = subprocess.run([sys.executable, "-c", script, str(source), str(raw)], cwd=Path(__file__).parents[3])
    assert died.returncode == -signal.SIGKILL
    assert sorted(path.name for path in raw.iterdir()) == [".shard-000001.ingest.partial", "shard-000000"]
    known = {clip.clip for clip in read_manifest(raw / "shard-000000")}
    assert take(source, raw, known, 1, 2) == ["shard-000001", "shard-000002"]
    assert sorted(path.name for path in raw.iterdir()) == ["shard-000000", "shard-000001", "shard-000002"]
    assert [clip.name for clip in read_manifest(raw / "shard-000001")] == ["c.mp4", "d.mp4"]


def test_a_store_is_read_like_a_folder(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe("/pool/sub/a.mp4", MP4)
    store.pipe("/pool/b.mp4", MP4 + b"b")
    (key,) = take("memory://pool", tmp_path / "raw")
    assert [clip.name for clip in read_manifest(tmp_path / "raw" / key)] == ["b.mp4", "sub/a.mp4"]


def test_a_missing_or_empty_source_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    fill(tmp_path, {"file.mp4": MP4})
    for source, says in (("nowhere", "does not exist"), ("empty", "holds no file"), ("file.mp4", "is a file")):
        with pytest.raises(ShardError, match=says) as error:
            take(tmp_path / source, tmp_path / "raw")
        assert "\n" not in str(error.value)
    with pytest.raises(ShardError):
        take("nosuchprotocol://x", tmp_path / "raw")


def test_damage_is_named(tmp_path):
    source = fill(tmp_path / "in", {"a.mp4": MP4, "a.truth.safetensors": b"truth"})
    (key,) = take(source, tmp_path / "raw")
    (clip,) = read_manifest(tmp_path / "raw" / key)
    truth = clip.companion_path(tmp_path / "raw" / key, "truth")
    truth.write_bytes(b"other")
    with pytest.raises(ShardError, match=r"truth\.safetensors .*damaged"):
        verify_shard(tmp_path / "raw" / key)
    truth.unlink()
    with pytest.raises(ShardError, match="missing"):
        verify_shard(tmp_path / "raw" / key)
    with pytest.raises(ShardError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("field, value", [("clip", "../../etc/passwd"), ("suffix", "/../x"), ("kind", "odd")])
def test_a_tampered_manifest_cannot_lead_outside(tmp_path, field, value):
    entry = {"clip": "0" * 64, "name": "a", "suffix": ".mp4", "bytes": 1, "kind": "video"}
    RawClip(**entry)
    (tmp_path / "manifest.json").write_text(json.dumps({"shard": "s", "files": [{**entry, field: value}]}))
    with pytest.raises(ShardError):
        read_manifest(tmp_path)


def test_real_pool_is_taken_whole(shared_data, tmp_path):
    keys = take(shared_data / "truth" / "av2", tmp_path / "raw")
    keys += take(shared_data / "truth" / "kitti_tracking", tmp_path / "raw", index=1)
    kinds = [clip.kind for key in keys for clip in read_manifest(tmp_path / "raw" / key)]
    assert sorted(kinds) == ["av2"] * 2 + ["kitti"] * 4
