import dataclasses

import numpy as np
import pytest

from assets.geometry import prior
from assets.geometry.estimators.rendered import Rendered
from assets.geometry.record import encode_mask


@pytest.fixture
def estimated(world, make_clip, parameters):
    return Rendered(parameters).estimate(make_clip(world))


def test_shapes_times_and_ranges(estimated, world):
    features = estimated.prior_features.astype(float)
    assert features.shape == (6, 12, 16, prior.CHANNELS)
    assert np.allclose(estimated.prior_times, world.truth["timestamps"][1::2], atol=1e-6)
    assert np.isfinite(features).all() and np.abs(features).max() <= prior.LIMIT
    assert (features[..., 12] == 1).all()
    assert np.abs(features[..., 9:12]).max() <= 1
    assert np.allclose(features[:, 0, 0, 13], estimated.prior_times / prior.TIME_UNIT, atol=1e-4)


def test_cells_hold_the_mean_point_of_both_frames(estimated):
    # 48x64 points over 12x16 cells: four by four points, two frames.
    block = estimated.points[2:4, 4:8, 8:12].astype(float).reshape(-1, 3).mean(0)
    assert np.allclose(estimated.prior_features[1, 1, 2, :3], block / prior.LENGTH_UNIT, atol=2e-3)


def test_the_flow_of_a_mover_is_its_velocity_and_the_rest_stands_still(estimated):
    flow = prior.scene_flow(estimated, (48, 64))
    speed = np.linalg.norm(flow, axis=-1)
    robot = speed[1:] > 0.1
    # 2.4 m in 4 s, and the crate and the ground do not move.
    assert np.allclose(speed[1:][robot], 0.6, atol=0.01)
    assert 0 < robot.mean() < 0.2
    assert not speed[0].any()


def test_a_slot_knows_nothing_of_later_frames(estimated, world):
    centers = estimated.centers_world.copy()
    centers[:, 6:] += 5.0
    points = estimated.points.copy()
    points[6:] *= 2
    frames = world.frames.copy()
    frames[6:] = 0
    changed = dataclasses.replace(estimated, centers_world=centers, points=points)
    later = prior.with_prior(changed, frames, 16)
    assert np.array_equal(later.prior_features[:3], estimated.prior_features[:3])
    assert not np.array_equal(later.prior_features[3:], estimated.prior_features[3:])


def test_velocities_bridge_frames_in_which_a_thing_was_hidden(make_record):
    record = make_record(4, 1)
    centers = np.array([[[0, 0, 5], [np.nan] * 3, [2, 0, 5], [2, 0, 5]]], np.float32)
    moved = dataclasses.replace(record, centers_world=centers, timestamps=np.arange(4.0))
    assert prior.velocities(moved)[0].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_an_odd_last_frame_stands_alone_and_a_flat_record_keeps_its_colours(make_record):
    record = make_record(5, 0)
    flat = dataclasses.replace(
        record, points=np.zeros((5, 0, 0, 3), np.float16), confidence=np.zeros((5, 0, 0), np.float16)
    )
    result = prior.with_prior(flat, np.full((5, 12, 16, 3), 255, np.uint8), 4)
    assert result.prior_features.shape == (3, 3, 4, prior.CHANNELS)
    assert np.allclose(result.prior_times, record.timestamps[[1, 3, 4]])
    assert (result.prior_features[..., 9:12] == 1).all()
    assert not result.prior_features[..., :9].any() and not result.prior_features[..., 12].any()


def test_doubtful_points_weigh_less(make_record):
    record = make_record(2, 0)
    points = np.ones((2, 6, 8, 3))
    points[:, ::2] = 9.0
    confidence = np.ones((2, 6, 8))
    confidence[:, ::2] = 0.0
    doubted = dataclasses.replace(record, points=points.astype(np.float16), confidence=confidence.astype(np.float16))
    features = prior.with_prior(doubted, np.zeros((2, 12, 16, 3), np.uint8), 4).prior_features
    assert np.allclose(features[..., :3], 0.1, atol=1e-3)
    assert np.allclose(features[..., 12], 0.5)


def test_a_mask_moves_what_it_covers(make_record):
    record = make_record(2, 1)
    mask = np.zeros((12, 16), bool)
    mask[:6] = True
    centers = np.array([[[0, 0, 5], [1, 0, 5]]], np.float32)
    record = dataclasses.replace(
        record, masks=[[encode_mask(mask)] * 2], centers_world=centers, timestamps=np.array([0.0, 0.5])
    )
    flow = prior.scene_flow(record, (6, 8))
    assert (flow[1, :3] == [2, 0, 0]).all() and not flow[1, 3:].any()
