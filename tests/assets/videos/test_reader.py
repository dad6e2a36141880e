import os
import signal
import threading
import time
import wave

import av
import decord
import numpy as np
import pytest

from assets.videos import reader
from assets.videos.reader import ReaderError, probe, read_clip, read_frames, sample
from tests.assets.videos.conftest import grey_frames, index_of, turn, write_video

QUICK_S = 20.0
SOME = 10**6


def test_frames_and_times_of_a_steady_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(20))
    probed, frames, chosen = read_clip(path, 5, SOME, QUICK_S)
    assert probed.reader == "decord"
    assert not probed.variable_rate
    assert (probed.width, probed.height, probed.seconds) == (64, 48, pytest.approx(0.76))
    assert chosen.tolist() == [0, 5, 9, 14, 19]
    assert index_of(frames).tolist() == chosen.tolist()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_times_are_the_ones_written(tmp_path, suffix):
    rng = np.random.default_rng(3)
    times = np.cumsum(np.r_[0, rng.integers(10, 300, 23)])
    path = write_video(tmp_path / f"a.{suffix}", grey_frames(24), times.tolist())
    probed, frames, _ = read_clip(path, 100, SOME, QUICK_S)
    assert probed.variable_rate
    assert probed.timestamps == pytest.approx(times / 1000, abs=2e-3)
    assert index_of(frames).tolist() == list(range(24))
    frames, seconds = read_frames(path, np.array([3, 11, 20]), SOME, probed.reader, QUICK_S)
    assert index_of(frames).tolist() == [3, 11, 20]
    assert seconds == pytest.approx(times[[3, 11, 20]] / 1000, abs=2e-3)


def test_samples_are_uniform_in_time_not_in_number(tmp_path):
    times = [*range(0, 1000, 50), *range(1000, 5001, 1000)]
    path = write_video(tmp_path / "a.mkv", grey_frames(len(times)), times)
    probed = probe(path, QUICK_S)
    assert probed.timestamps[sample(probed, 6)].tolist() == [0, 1, 2, 3, 4, 5]


def test_time_begins_with_the_first_frame(tmp_path):
    path = write_video(tmp_path / "a.mkv", grey_frames(10), list(range(8300, 8700, 40)))
    assert probe(path, QUICK_S).timestamps == pytest.approx(np.arange(10) * 0.04, abs=1e-3)


@pytest.mark.parametrize(
    ("clockwise", "red"),
    [(0, np.s_[:, :10]), (90, np.s_[:10]), (180, np.s_[:, -10:]), (270, np.s_[-10:])],
)
def test_pictures_stand_upright(tmp_path, clockwise, red):
    frames = np.zeros((6, 48, 64, 3), np.uint8)
    frames[..., 2] = 200
    frames[:, :, :32] = (200, 0, 0)
    path = turn(write_video(tmp_path / "a.mp4", frames), clockwise)
    probed = probe(path, QUICK_S)
    upright, _ = read_frames(path, np.array([0, 5]), SOME, probed.reader, QUICK_S)
    assert probed.rotation == clockwise
    assert (probed.width, probed.height) == ((64, 48) if clockwise % 180 == 0 else (48, 64))
    assert upright.shape[1:3] == (probed.height, probed.width)
    assert upright[0][red][..., 0].mean() > 150 and upright[0][red][..., 2].mean() < 60


def test_both_readers_give_the_same_pictures(tmp_path):
    rng = np.random.default_rng(1)
    path = write_video(tmp_path / "a.mp4", rng.integers(0, 255, (12, 48, 64, 3), dtype=np.uint8))
    indices = np.array([0, 4, 7, 11])
    one, times = read_frames(path, indices, SOME, "decord", QUICK_S)
    other, same = read_frames(path, indices, SOME, "pyav", QUICK_S)
    assert np.abs(one.astype(int) - other).max() <= 1
    assert np.array_equal(times, same)
    small, _ = read_frames(path, indices, 1000, "decord", QUICK_S)
    alike, _ = read_frames(path, indices, 1000, "pyav", QUICK_S)
    assert small.shape == alike.shape and small.shape[1] * small.shape[2] <= 1000
    assert np.abs(small.astype(int) - alike).mean() < 4  # noise has neighbours 85 apart


def test_a_picture_that_the_decoder_drops_shifts_no_other(tmp_path):
    noise = np.random.default_rng(4).integers(-19, 20, (30, 48, 64, 3))
    path = write_video(tmp_path / "a.mp4", (grey_frames(30) + noise).astype(np.uint8), movflags="faststart")
    with av.open(str(path)) as container:
        begins = [packet.pos for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    content[begins[11] + 4 : begins[11] + 12] = b"\x41\xff" * 4  # a slice whose header says nonsense
    path.write_bytes(content)
    shown = index_of(decord.VideoReader(str(path), num_threads=1).get_batch(range(29)).asnumpy())
    assert (shown[11:] == np.arange(12, 30)).all()  # decord gives the next picture for every one asked for
    probed, frames, chosen = read_clip(path, 30, SOME, QUICK_S)
    assert len(frames) == 29 and probed.reader == "pyav"
    assert index_of(frames) == pytest.approx(probed.timestamps[chosen] / 0.04)


def test_names_in_other_alphabets_do_no_harm(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(5), comment="Stra\u00dfe")
    path.write_bytes(path.read_bytes().replace("\u00df".encode(), b"\xdf\xdf"))
    assert len(probe(path, QUICK_S).timestamps) == 5


def test_frames_are_made_smaller_but_never_larger(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(4))
    assert read_clip(path, 4, 10**9, QUICK_S)[1].shape == (4, 48, 64, 3)
    small = read_clip(path, 4, 800, QUICK_S)[1]
    assert small.shape[1] * small.shape[2] <= 800
    assert small.shape[2] / small.shape[1] == pytest.approx(64 / 48, rel=0.06)


@pytest.mark.parametrize(("name", "options"), [("a.mkv", {}), ("a.mp4", {"movflags": "faststart"}), ("a.avi", {})])
def test_a_video_cut_short_keeps_what_decodes(tmp_path, name, options):
    rng = np.random.default_rng(2)
    path = write_video(tmp_path / name, rng.integers(0, 255, (40, 48, 64, 3), dtype=np.uint8), **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    probed, frames, _ = read_clip(path, 8, SOME, QUICK_S)
    assert 5 < len(probed.timestamps) < 40
    assert len(frames) == 8
    assert (np.diff(probed.timestamps) > 0).all()


def test_damage_inside_is_read_around(tmp_path):
    rng = np.random.default_rng(2)
    path = write_video(tmp_path / "a.mp4", rng.integers(0, 255, (40, 48, 64, 3), dtype=np.uint8), movflags="faststart")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    probed, frames, _ = read_clip(path, 8, SOME, QUICK_S)
    assert len(frames) == 8
    assert len(probed.timestamps) >= 20


def wav(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(bytes(16000))
    return path


def spoil(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: spoil(p, np.random.default_rng(0).bytes(5000)), "Not a readable video"),
        (lambda p: spoil(p, b"\x00\x00\x00\x18ftypisom" + bytes(500)), "Not a readable video"),
        (lambda p: spoil(p, write_video(p, grey_frames(20)).read_bytes()[:-900]), "No video stream"),
        (lambda p: spoil(p, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "Not a readable video"),
        (lambda p: write_video(p, grey_frames(1)), "One frame only"),
        (wav, "No video stream"),
    ],
)
def test_what_cannot_be_a_clip_says_why(tmp_path, make, says):
    path = make(tmp_path / "a.mp4")
    with pytest.raises(ReaderError, match=says) as error:
        read_clip(path, 8, SOME, QUICK_S)
    assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


def test_a_read_that_hangs_is_given_up_and_the_next_one_works(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    begun = time.monotonic()
    with pytest.raises(ReaderError, match=r"longer than 0\.7 s"):
        probe(tmp_path / "pipe.mp4", 0.7)
    assert time.monotonic() - begun < 5
    assert len(probe(write_video(tmp_path / "a.mp4", grey_frames(5)), QUICK_S).timestamps) == 5


def test_a_decoder_that_dies_takes_nothing_with_it(tmp_path):
    good = write_video(tmp_path / "a.mp4", grey_frames(5))
    probe(good, QUICK_S)
    os.mkfifo(tmp_path / "pipe.mp4")
    child = reader._DECODERS[os.getpid()]._process
    threading.Timer(0.5, os.kill, (child.pid, signal.SIGABRT)).start()
    with pytest.raises(ReaderError, match="The decoder died"):
        probe(tmp_path / "pipe.mp4", QUICK_S)
    assert len(probe(good, QUICK_S).timestamps) == 5


def test_frames_that_are_not_there_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(5))
    with pytest.raises(ReaderError, match="does not have"):
        read_frames(path, np.array([2, 5]), SOME, "decord", QUICK_S)


CLIPS = {
    "opencv_vtest.avi": (768, 576, 79.4),
    "pi3_man_walking_long_1fps.mp4": (720, 352, 23),
    "udacity_vehicles_short.mp4": (1280, 720, 1.48),
    "davis_schoolgirls.mp4": (432, 240, 3.2917),
}


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips(shared_data, name):
    probed, frames, _ = read_clip(shared_data / "videos" / name, 4, 20_000, 60)
    assert (probed.width, probed.height, probed.seconds) == (*CLIPS[name][:2], pytest.approx(CLIPS[name][2], abs=1e-3))
    assert len(frames) == 4


# name: reader, frames, rotation, seconds
BAD = {
    "decord_corrupted.mp4": ("pyav", 49, 0, 4.9),
    "decord_unordered.mov": ("decord", 4, 0, 0.09375),
    "decord_video_0.mov": ("decord", 3, 0, 0.0667),
    "decord_video_90.mov": ("pyav", 3, 90, 0.0667),
    "decord_video_180.mov": ("pyav", 3, 180, 0.0667),
    "torchcodec_test_non_zero_start.mp4": ("decord", 12, 0, 0.3664),
    "torchcodec_av1_video.mkv": ("pyav", 125, 0, 4.96),
    "opencv_tree_cinepak_2fps.avi": ("pyav", 68, 0, 29.5335),
    "cotracker_teddy_vfr.mp4": ("pyav", 141, 0, 7.0),
    "mmaction_demo_corrupt_tail.mp4": ("decord", 280, 0, 9.9643),
    "torchcodec_nasa_13013_hdr.mp4": ("decord", 325, 0, 12.96),
    "torchcodec_nasa_13013_rotated.mp4": ("pyav", 17, 270, 0.5339),
}


@pytest.mark.parametrize("name", BAD)
def test_real_files_that_break_readers(shared_data, name):
    probed, frames, chosen = read_clip(shared_data / "bad_videos" / name, 4, 20_000, 60)
    used, count, rotation, seconds = BAD[name]
    assert (probed.reader, len(probed.timestamps), probed.rotation) == (used, count, rotation)
    assert probed.seconds == pytest.approx(seconds, abs=1e-3)
    assert len(frames) == len(chosen) == min(4, count)


def test_a_real_still_picture_is_refused(shared_data):
    with pytest.raises(ReaderError, match="One frame only"):
        probe(shared_data / "bad_videos" / "torchcodec_testsrc2_mpeg4.mp4", 60)
