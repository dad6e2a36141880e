import dataclasses

import numpy as np
import pytest

from assets.geometry import prior
from assets.geometry.estimators.rendered import Rendered
from assets.geometry.record import encode_mask, unknown


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


def half_covered(columns: int, frames: int = 2, **known) -> np.ndarray:
    """(1,1,2,C) cells of a wall, before whose left part a robot stands that covers so many of a cell's 8 columns.

    The wall is blue and at (9, 9, 9), the robot red, at (2, 2, 2), 2 m/s fast in the second frame, and looks along the
    world's x with a confidence of one half; the camera is turned so that its z is that direction.
    """
    mask = np.zeros((8, 16), bool)
    mask[:, :columns] = True
    picture = np.where(mask[..., None], np.uint8([255, 0, 0]), np.uint8([0, 0, 255]))
    points = np.where(mask[..., None], 2.0, 9.0) * np.ones(3)
    masks = [encode_mask(mask)] * frames + [encode_mask(np.zeros_like(mask))] * (2 - frames)
    shown = np.arange(2) < frames
    pose = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    record = unknown(
        np.array([0.0, 0.5]),
        ["robot"],
        ["robot"],
        **{
            "world_from_camera": np.tile(pose, (2, 1, 1)),
            "points": np.where(shown[:, None, None, None], points, 9.0),
            "confidence": np.ones((2, 8, 16)),
            "is_agent": np.ones(1, bool),
            "masks": [masks],
            "centers_world": np.where(shown[:, None], [[0.0, 0, 5], [1, 0, 5]], np.nan)[None],
            "forward_world": np.tile([1.0, 0, 0], (1, 2, 1)),
            "forward_confidence": np.full((1, 2), 0.5),
            **known,
        },
    )
    pictures = np.where(shown[:, None, None, None], picture, np.uint8([0, 0, 255]))
    return prior.with_prior(record, pictures, 2).prior_features[0, 0].astype(float)


# Camera and world xyz, flow, colour, validity, headings in camera and world.
ROBOT = [0.2] * 3 + [0.2, 0.2, -0.2] + [0.1, 0, 0] + [1, -1, -1] + [1] + [0, 0, 0.5] + [0.5, 0, 0]
WALL = [0.9] * 3 + [0.9, 0.9, -0.9] + [0, 0, 0] + [-1, -1, 1] + [1] + [0] * 6
TOLD = [channel for channel in range(prior.CHANNELS) if channel != 13]


@pytest.mark.parametrize("columns", [2, 4, 7])
def test_a_cell_stands_for_its_thing_and_mixes_nothing_of_the_wall_into_it(columns):
    robot, wall = half_covered(columns)[:, TOLD]
    assert robot == pytest.approx(ROBOT, abs=1e-3)
    assert wall == pytest.approx(WALL, abs=1e-3)


def test_a_thing_with_too_small_a_share_of_a_cell_leaves_it_to_the_wall():
    # One column of eight; and two of eight that are there in one of the two frames.
    for few in (half_covered(1), half_covered(2, frames=1)):
        assert few[0, TOLD] == pytest.approx(WALL, abs=1e-3)
    # Four of eight in one of two frames are a quarter: the cell is about that frame alone, in which nothing moved yet.
    once = half_covered(4, frames=1)[0, TOLD]
    assert once == pytest.approx([*ROBOT[:6], 0, 0, 0, *ROBOT[9:]], abs=1e-3)


def test_of_two_things_in_a_cell_the_larger_has_it(make_record):
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :, :3] = masks[1, :, 3:] = True
    points = np.where(masks[0][..., None], 2.0, 5.0) * np.ones((2, 8, 8, 3))
    both = dataclasses.replace(
        make_record(2, 2),
        masks=[[encode_mask(mask)] * 2 for mask in masks],
        points=points.astype(np.float16),
        confidence=np.ones((2, 8, 8), np.float16),
    )
    cell = prior.with_prior(both, np.zeros((2, 8, 8, 3), np.uint8), 1).prior_features[0, 0, 0]
    assert cell[:3] == pytest.approx([0.5] * 3, abs=1e-3)


def test_each_cell_belongs_to_the_last_mask_over_its_centre(make_record):
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, :, :2] = True, True
    record = dataclasses.replace(make_record(1, 2), masks=[[encode_mask(mask)] for mask in masks])
    assert prior.owners(record, (2, 2)).tolist() == [[[1, 0], [1, prior.NOBODY]]]
    assert prior.owners(record, (0, 0)).shape == (1, 0, 0)


@pytest.mark.parametrize(
    "known",
    [
        {"forward_world": np.full((1, 2, 3), np.nan)},
        {"forward_confidence": np.zeros((1, 2))},
    ],
    ids=["unknown", "of no confidence"],
)
def test_headings_nobody_knows_are_zero(known):
    robot = half_covered(4, **known)[0, TOLD]
    assert robot == pytest.approx([*ROBOT[:-6], *[0] * 6], abs=1e-3)


def test_where_cameras_are_unknown_no_cell_holds_what_is_no_number():
    pose = np.full((2, 4, 4), np.nan)
    robot, wall = half_covered(4, world_from_camera=pose)[:, TOLD]
    assert robot == pytest.approx([0] * 9 + [1, -1, -1, 0] + [0, 0, 0] + [0.5, 0, 0], abs=1e-3)
    assert wall == pytest.approx([0] * 9 + [-1, -1, 1, 0] + [0] * 6, abs=1e-3)


def test_agents_look_along_their_way_and_other_things_nowhere(estimated):
    # The robot walks along the first camera's x, and the crate is no agent.
    robot, crate = prior.headings(estimated)
    assert not crate.any()
    assert np.allclose(robot[:, 3:], [1, 0, 0], atol=1e-4)
    rotations = estimated.world_from_camera[:, :3, :3]
    assert np.allclose(robot[:, :3], rotations[:, 0], atol=1e-4) and np.abs(robot[-1, 2]) > 0.05
    facing = np.abs(estimated.prior_features[..., 17:]).sum(-1) > 0
    assert 0 < facing.mean() < 0.2


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
