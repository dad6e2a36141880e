"""The steps of the classical estimator, each on a scene of a few points or planes."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from assets.geometry.estimators import EstimateError
from assets.geometry.estimators.camera_motion import forward_share, ray_angles, recover_cameras
from assets.geometry.estimators.correspondences import Correspondences, intrinsics_of, match_frames, rotation_residuals
from assets.geometry.estimators.moving import Flows, measure_flows, pixel_grid, tracked
from assets.geometry.estimators.placing import ground_plane, headings, places
from assets.geometry.estimators.plane_sweep import filled, neighbours_of, sweep
from assets.geometry.frames_of_reference import rigid
from assets.geometry.parameters import ClassicalParameters
from benchmarks.geometry.accuracy import align, rmse, rotation_error

ROOT = Path(__file__).parents[3]


def turned(*degrees):
    """(T, 3, 3) rotations about the y axis."""
    return np.stack([cv2.Rodrigues(np.radians([0.0, d, 0.0]))[0] for d in degrees])


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    return np.clip(128 + 3 * (cv2.GaussianBlur(noise, (0, 0), 1.2) - 128), 0, 255).astype(np.uint8)


def seen(poses, focal, count=300, size=(320, 240), noise=0.1):
    """Correspondences of all pairs of frames that see the same scattered points."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-3, -2, 5], [3, 2, 12], (count, 3))
    intrinsics = intrinsics_of(*size, focal)
    local = np.einsum("tji,tpj->tpi", poses[:, :3, :3], points - poses[:, None, :3, 3])
    projected = local @ intrinsics.T
    xy = projected[..., :2] / projected[..., 2:] + rng.normal(0, noise, (len(poses), count, 2))
    rows = np.repeat(np.arange(count)[:, None], 2, 1)
    pairs = {(i, j): rows for i in range(len(poses)) for j in range(i + 1, len(poses))}
    return Correspondences(size, list(xy), pairs)


FEW = ClassicalParameters(min_points=150)


def test_cameras_and_focal_length_are_recovered_and_the_same_again():
    positions = np.array([[0.2 * t, 0.02 * t * t, 0.05 * t] for t in range(6)])
    poses = rigid(turned(*np.linspace(0, 12, 6)), positions)
    found = seen(poses, focal=380)
    cameras = recover_cameras(found, FEW)
    assert rotation_error(cameras.world_from_camera, poses) < 0.1
    moved = align(cameras.world_from_camera[:, :3, 3], positions)[1]
    assert rmse(moved, positions) < 0.01 * np.linalg.norm(positions[-1])
    assert abs(cameras.intrinsics[0, 0] / 380 - 1) < 0.05 and cameras.focal_weight > 0.5
    again = recover_cameras(found, FEW)
    assert np.array_equal(cameras.world_from_camera, again.world_from_camera)
    assert np.array_equal(cameras.points, again.points)


def test_a_camera_that_does_not_turn_keeps_the_usual_focal_length_and_is_refused_when_it_goes_ahead():
    """Depth may be stretched with the focal length; sideways nothing else changes, ahead the way does too."""
    sideways = np.array([[0.25 * t, 0.0, 0.0] for t in range(5)])
    cameras = recover_cameras(seen(rigid(turned(*[0] * 5), sideways), focal=380), FEW)
    assert cameras.focal_weight < 0.5 and abs(cameras.intrinsics[0, 0] / (0.9 * 320) - 1) < 0.1
    ahead = sideways[:, [1, 1, 0]] * 1.6
    with pytest.raises(EstimateError, match="forward motion"):
        recover_cameras(seen(rigid(turned(*[0] * 5), ahead), focal=380), FEW)


def test_whoever_waits_for_sigterm_still_gets_it():
    """pycolmap's own handler would end the process with a stack trace."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
        "import assets.geometry.estimators.camera_motion; os.kill(os.getpid(), signal.SIGTERM)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 7


def test_matches_that_keep_to_no_camera_motion_are_refused():
    found = seen(rigid(turned(0, 1, 2), np.zeros((3, 3))), focal=300, count=100)
    rng = np.random.default_rng(1)
    mixed = Correspondences(found.size, [rng.permutation(xy) for xy in found.xy], found.pairs)
    with pytest.raises(EstimateError, match="of the matches keep to one camera motion"):
        recover_cameras(mixed, FEW)


def test_the_residual_of_a_rotation_is_zero_and_of_a_translation_is_parallax():
    intrinsics = intrinsics_of(320, 180, 300)
    points = np.random.default_rng(0).uniform([-2, -1, 4], [2, 1, 9], (80, 3))
    turn = turned(6)[0]

    def pixels(places):
        return (places @ intrinsics.T)[:, :2] / places[:, 2:]

    assert rotation_residuals(intrinsics, pixels(points), pixels(points @ turn.T)).max() < 1e-6
    moved = rotation_residuals(intrinsics, pixels(points), pixels(points @ turn.T + [0.8, 0, 0]))
    assert np.median(moved) > 3


def test_frames_are_matched_where_the_picture_went():
    image = texture(120, 170)
    found = match_frames(np.stack([image[10:110, 5:155], image[13:113, 9:159]]), 300)
    first, second = found.of((0, 1))
    assert len(first) > 100 and (np.abs(first - second - [4, 3]).max(1) < 0.5).mean() > 0.95


def test_forward_motion_and_ray_angles_are_told_apart():
    ahead = rigid(turned(0, 0, 0), np.array([[0, 0, 0], [0, 0, 1], [0.1, 0, 2.0]]))
    sideways = rigid(turned(0, 0, 0), np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0.1]]))
    assert forward_share(ahead) > 0.99 and forward_share(sideways) < 0.1
    point, positions = np.array([[1.0, 0, 1]]), sideways[:, :3, 3] * [1, 1, 0]
    assert ray_angles(point, positions, np.ones((1, 3), bool)) == pytest.approx([90])


def test_a_plane_sweep_finds_how_far_a_wall_is():
    image, focal, depth = texture(80, 200), 80.0, 4.0
    steps = 0.2 * np.arange(5)
    frames = np.stack([image[:, 20 + round(focal * s / depth) :][:, :120] for s in steps])
    poses = rigid(
        turned(*[0] * 5), np.stack([np.round(focal * steps / depth) * depth / focal, 0 * steps, 0 * steps], 1)
    )
    found = sweep(frames, intrinsics_of(120, 80, focal), poses, (2, 12), 32)
    sure = found.confidence > 0
    assert sure.mean() > 0.7 and np.abs(found.depth[sure] / depth - 1).mean() < 0.03
    assert neighbours_of(poses, 0, depth).tolist() == [1, 2, 3, 4]
    blank = sweep(np.full_like(frames, 99), intrinsics_of(120, 80, focal), poses, (2, 12), 16)
    assert not blank.confidence.any()


def test_what_is_not_trusted_takes_the_nearest_depth():
    depth = np.array([[1.0, 9.0, 9.0, 2.0]], np.float32)
    assert filled(depth, np.array([[True, False, False, True]])).tolist() == [[1, 1, 2, 2]]


def squares(*paths, size=(60, 100), side=12):
    """(T, H, W) multiples and exact flows of squares whose upper left corners go along these paths."""
    total = len(paths[0])
    multiples = np.zeros((total, *size), np.float32)
    forward = {step: np.zeros((total - step, *size, 2), np.float32) for step in (1, 3)}
    backward = {step: np.zeros_like(forward[step]) for step in (1, 3)}
    for path in paths:
        spots = [(slice(y, y + side), slice(x, x + side)) for x, y in path]
        for t, spot in enumerate(spots):
            multiples[t][spot] = 5
        for step in (1, 3):
            for t in range(total - step):
                shift = np.subtract(path[t + step], path[t])
                forward[step][t][spots[t]], backward[step][t][spots[t + step]] = shift, -shift
    return multiples, Flows(forward, backward)


def test_things_that_touch_keep_apart():
    """Two squares run towards each other, touch edge to edge and turn back."""
    way = [0, 6, 12, 18, 22, 18, 12, 6]
    left, right = [(8 + x, 20) for x in way], [(64 - x, 20) for x in way]
    multiples, flows = squares(left, right)
    masks = tracked(multiples, flows, 0.005)
    assert len(masks) == 2
    middles = np.array([[np.argwhere(mask)[:, 1].mean() for mask in row] for row in masks])
    assert np.abs(np.sort(middles, 0) - np.sort([np.add(way, 13.5), np.subtract(69.5, way)], 0)).max() < 2


def test_what_is_seen_for_a_moment_is_no_thing():
    multiples, flows = squares([(20 + 4 * t, 20) for t in range(12)])
    multiples[2:] = 0
    assert not len(tracked(multiples, flows, 0.005))


def test_a_fast_camera_is_followed_where_it_is_expected_to_go():
    image = texture(80, 300)
    frames = np.stack([image[:, 45 * t : 45 * t + 110] for t in range(4)])
    expected = {1: -45.0, 3: -135.0}

    def guess(t, other):
        return np.full((80, 110, 2), [np.sign(other - t) * expected[abs(other - t)], 0], np.float32)

    flow = measure_flows(frames, guess).forward[1][0]
    assert np.abs(flow[20:60, 50:100] - [-45, 0]).max() < 0.5


def test_things_stand_where_their_foot_touches_and_what_flies_before_a_wall_stands_nowhere():
    """A level ground 1.5 below the camera, and a wall 8 ahead of it."""
    size, intrinsics, up = (120, 160), intrinsics_of(160, 120, 150), np.array([0.0, -1, 0])
    below = (pixel_grid(size)[..., 1] - intrinsics[1, 2]) / intrinsics[1, 1]
    static = np.minimum(np.where(below > 0, 1.5 / np.maximum(below, 1e-9), 8.0), 8.0).astype(np.float32)[None]
    masks = np.zeros((2, 1, *size), bool)
    row = round(1.5 / 5 * 150 + intrinsics[1, 2])
    masks[0, 0, row - 30 : row, 80:88] = True
    masks[1, 0, 10:30, 20:40] = True
    found = places(masks, static, intrinsics, np.eye(4)[None], up)
    assert np.isnan(found[1]).all()
    assert found[0, 0, 2] == pytest.approx(5.1, abs=0.25) and found[0, 0, 1] == pytest.approx(1.5 - 0.5, abs=0.15)


def test_headings_follow_the_way_and_what_hardly_moves_has_none():
    time = np.arange(8) / 4
    walks = np.stack([2 * time, 0 * time, 8 - time], -1)
    stands = np.tile([1.0, 0, 8], (8, 1)) + np.random.default_rng(0).normal(0, 0.02, (8, 3))
    forward, sure = headings(np.stack([walks, stands]), time, np.zeros((8, 3)))
    assert np.allclose(forward[0], np.array([2, 0, -1]) / np.sqrt(5), atol=1e-6) and (sure[0] > 0.6).all()
    assert np.isnan(forward[1]).all() and not sure[1].any()


def test_the_ground_is_the_level_plane_under_the_cameras():
    rng = np.random.default_rng(0)
    ground = np.c_[rng.uniform(-4, 4, 200), np.full(200, 1.6), rng.uniform(4, 12, 200)]
    wall = np.c_[rng.uniform(-4, 4, 200), rng.uniform(-3, 1.6, 200), np.full(200, 12.0)]
    normal, offset = ground_plane(np.concatenate([ground, wall]), np.eye(4)[None])
    assert normal == pytest.approx([0, -1, 0], abs=0.01) and offset == pytest.approx(-1.6, abs=0.05)
    assert ground_plane(wall, np.eye(4)[None]) is None
