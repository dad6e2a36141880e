import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from assets.geometry.frames_of_reference import (
    camera_from_viewer,
    first_camera_world,
    inverse,
    rigid,
    rotate,
    rotation_from_quaternion,
    transform,
    viewer_from_camera,
    viewer_from_world,
)

numbers = st.floats(-5, 5, allow_nan=False)
vectors = st.tuples(numbers, numbers, numbers).map(np.array)
quaternions = st.tuples(*[st.floats(-1, 1)] * 4).map(np.array).filter(lambda q: np.linalg.norm(q) > 0.1)
motions = st.builds(lambda q, t: rigid(rotation_from_quaternion(q), t), quaternions, vectors)
MIRROR = np.diag([-1.0, 1, 1, 1])


def test_camera_axes_in_the_viewer_frame():
    right, down, ahead = np.eye(3)
    assert viewer_from_camera(right).tolist() == [0, -1, 0]
    assert viewer_from_camera(down).tolist() == [0, 0, -1]
    assert viewer_from_camera(ahead).tolist() == [1, 0, 0]


@given(vectors)
def test_camera_and_viewer_round_trip(point):
    assert np.allclose(camera_from_viewer(viewer_from_camera(point)), point)


@given(motions, vectors)
def test_a_motion_and_its_inverse_cancel(motion, point):
    assert np.allclose(transform(inverse(motion), transform(motion, point)), point, atol=1e-9)


@given(quaternions)
def test_quaternions_agree_with_scipy(quaternion):
    w, x, y, z = quaternion
    assert np.allclose(rotation_from_quaternion(quaternion), Rotation.from_quat([x, y, z, w]).as_matrix(), atol=1e-9)


@given(motions, vectors)
def test_the_camera_sees_its_own_frame(pose, point):
    local = transform(inverse(pose), point)
    assert np.allclose(transform(viewer_from_world(pose), point), viewer_from_camera(local), atol=1e-9)


@given(vectors, quaternions)
def test_an_agents_forward_is_x_and_its_left_is_y(center, quaternion):
    ahead, left, up = rotation_from_quaternion(quaternion).T
    viewer = viewer_from_world(center=center, forward=ahead, up=up)
    assert np.allclose(transform(viewer, center), 0, atol=1e-9)
    assert np.allclose(transform(viewer, center + 2 * ahead), [2, 0, 0], atol=1e-9)
    assert np.allclose(transform(viewer, center + left), [0, 1, 0], atol=1e-9)
    assert np.allclose(transform(viewer, center + up), [0, 0, 1], atol=1e-9)


def test_an_agent_facing_the_level_camera_has_its_left_on_the_cameras_right():
    viewer = viewer_from_world(center=np.array([0.0, 0, 5]), forward=np.array([0.0, 0, -1]))
    assert np.allclose(transform(viewer, np.array([1.0, 0, 5])), [0, 1, 0])


@given(motions, vectors)
def test_a_mirrored_world_swaps_left_and_right_of_a_camera_only(pose, point):
    seen = transform(viewer_from_world(pose), point)
    mirrored = transform(viewer_from_world(MIRROR @ pose @ MIRROR), MIRROR[:3, :3] @ point)
    assert np.allclose(mirrored, seen * [1, -1, 1], atol=1e-9)


@given(vectors, quaternions, vectors)
def test_a_mirrored_world_swaps_left_and_right_of_an_agent_only(center, quaternion, point):
    ahead, _, up = rotation_from_quaternion(quaternion).T
    flip = MIRROR[:3, :3]
    seen = transform(viewer_from_world(center=center, forward=ahead, up=up), point)
    mirrored = viewer_from_world(center=flip @ center, forward=flip @ ahead, up=flip @ up)
    assert np.allclose(transform(mirrored, flip @ point), seen * [1, -1, 1], atol=1e-9)


@settings(max_examples=20)
@given(st.lists(motions, min_size=2, max_size=4), vectors)
def test_the_world_of_the_first_camera_keeps_what_cameras_see(poses, point):
    poses = np.stack(poses)
    moved, new_from_old = first_camera_world(poses)
    assert np.array_equal(moved[0], np.eye(4))
    before = transform(inverse(poses), point)
    assert np.allclose(transform(inverse(moved), transform(new_from_old, point)), before, atol=1e-8)


def test_leading_axes_broadcast_and_nan_stays_nan():
    centers = np.array([[[0.0, 0, 1]] * 3, [[np.nan] * 3] * 3])
    viewers = viewer_from_world(center=centers, forward=np.array([0.0, 0, 1]))
    assert viewers.shape == (2, 3, 4, 4)
    assert np.isfinite(viewers[0]).all() and np.isnan(transform(viewers[1], np.zeros(3))).all()
    assert np.allclose(rotate(viewers[0], np.array([0.0, 0, 1])), [1, 0, 0])


def test_left_of_something_that_looks_straight_up_is_unknown():
    viewer = viewer_from_world(center=np.zeros(3), forward=np.array([0.0, -1, 0]))
    assert np.isnan(viewer[1]).all()


def test_a_pose_or_an_agent_but_not_both():
    with pytest.raises(ValueError, match="either"):
        viewer_from_world()
    with pytest.raises(ValueError, match="either"):
        viewer_from_world(np.eye(4), center=np.zeros(3), forward=np.ones(3))
