"""The benchmark's scenes are fair: frames agree with their truth, cameras and things do what their kind says."""

import cv2
import numpy as np
import pytest

from assets.geometry.frames_of_reference import inverse, transform
from benchmarks.geometry import scenes


@pytest.mark.parametrize("kind", ["truck", "pan", "frozen"])
def test_a_frame_warped_by_its_truth_is_the_other_frame(clips, kind):
    """Depth, poses and intrinsics carry the static pixels of one frame to where the other frame shows them."""
    frames, truth = clips[kind].frames.astype(np.float32), clips[kind].truth
    intrinsics, poses = truth["intrinsics"].astype(float), truth["world_from_camera"].astype(float)
    rows, columns = np.mgrid[: frames.shape[1], : frames.shape[2]]
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(intrinsics).T
    there = transform(inverse(poses[4]) @ poses[2], truth["depth"][2].astype(float)[..., None] * rays) @ intrinsics.T
    places = (there[..., :2] / there[..., 2:]).astype(np.float32)
    warped = cv2.remap(frames[4], places, None, cv2.INTER_LINEAR, borderValue=(np.nan,) * 3)
    static = (truth["instances"][2] == 0) & (truth["depth"][2] < scenes.SKY) & np.isfinite(warped).all(-1)
    explained = np.median(np.abs(warped - frames[2])[static])
    assert static.mean() > 0.4
    assert explained < 0.4 * np.median(np.abs(frames[4] - frames[2])[static])


def test_cameras_and_things_do_what_their_kind_says(clips):
    paths = {
        kind: np.ptp(clip.truth["world_from_camera"][:, :3, 3], axis=0).max()
        for kind, clip in clips.items()
        if kind != "cut"
    }
    assert paths["truck"] > 1 and paths["frozen"] > 1 and paths["pan"] == 0
    assert scenes.moving(clips["truck"].truth).sum() >= 2
    assert not scenes.moving(clips["frozen"].truth).any()
    turn = clips["pan"].truth["world_from_camera"][:, :3, 2]
    assert turn[0] @ turn[-1] < np.cos(np.radians(10))


def test_a_cut_jumps_once_and_has_no_truth(clips):
    assert clips["cut"].truth == {}
    jumps = np.abs(np.diff(clips["cut"].frames.astype(int), axis=0)).mean((1, 2, 3))
    assert jumps.argmax() == len(jumps) // 2


def test_clips_are_drawn_once_and_hold_no_truth_for_the_estimator(clips):
    clip = clips["truck"]
    assert set(clip.clip().sampled) == {"frames", "timestamps", "indices"}
    assert clip.clip().companions == {}
    written = clip.frames_file.stat().st_mtime_ns
    again = scenes._clip(("tiny-truck", "truck", 0))
    assert again == clip and again.frames_file.stat().st_mtime_ns == written


def test_there_are_enough_of_each():
    assert len(scenes.UNSUPPORTED) >= 10
    assert {"pan", "tilt", "still", "cut", "frozen"} == set(scenes.UNSUPPORTED)
    assert len(scenes.TRANSLATING) >= 4
