"""Frames of reference and the way between them.

- camera: OpenCV's axes, x right, y down, z forward.
- world: the first sampled camera frame, same axes.
- viewer: what questions speak in, x forward, y left, z up; of the camera or of an agent.

``b_from_a`` is a 4x4 rigid motion that takes coordinates in frame a to coordinates in frame b. All functions work on
any leading axes and broadcast them.
"""

from __future__ import annotations

import numpy as np

VIEWER_FROM_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
# Up in a world whose first camera is held level; records that know better say so in provenance["up_world"].
LEVEL_UP = np.array([0.0, -1.0, 0.0])
# Sine of the angle between forward and up below which left cannot be told (about 0.6 degrees).
MIN_SINE = 1e-2


def viewer_from_camera(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) points or directions in the camera frame to the camera's viewer frame."""
    return np.asarray(vectors) @ VIEWER_FROM_CAMERA.T


def camera_from_viewer(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) points or directions in the camera's viewer frame to the camera frame."""
    return np.asarray(vectors) @ VIEWER_FROM_CAMERA


def rigid(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(..., 4, 4) rigid motion from a (..., 3, 3) rotation and a (..., 3) translation."""
    rotation, translation = np.asarray(rotation, float), np.asarray(translation, float)
    leading = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    motion = np.zeros((*leading, 4, 4))
    motion[..., :3, :3], motion[..., :3, 3], motion[..., 3, 3] = rotation, translation, 1.0
    return motion


def inverse(motion: np.ndarray) -> np.ndarray:
    """(..., 4, 4) inverse of rigid motions, without a general matrix inversion."""
    transposed = np.swapaxes(np.asarray(motion, float)[..., :3, :3], -1, -2)
    return rigid(transposed, -(transposed @ motion[..., :3, 3, None])[..., 0])


def transform(motion: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Move (..., 3) points by (..., 4, 4) rigid motions; leading axes broadcast, NaN stays NaN."""
    motion = np.asarray(motion, float)
    return (motion[..., :3, :3] @ np.asarray(points)[..., None])[..., 0] + motion[..., :3, 3]


def rotate(motion: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Turn (..., 3) directions by the rotation of (..., 4, 4) rigid motions."""
    return (np.asarray(motion, float)[..., :3, :3] @ np.asarray(directions)[..., None])[..., 0]


def viewer_from_world(
    pose: np.ndarray | None = None,
    *,
    center: np.ndarray | None = None,
    forward: np.ndarray | None = None,
    up: np.ndarray = LEVEL_UP,
) -> np.ndarray:
    """(..., 4, 4) motion from the world to the viewer frame of a camera or of an agent.

    Give either the camera's (..., 4, 4) camera-to-world ``pose``, or an agent's (..., 3) ``center`` and ``forward``
    in the world with a (..., 3) ``up``. An agent's x axis is exactly its forward; y is left of it and level with
    ``up``; z completes them. NaN where an input is NaN, or where forward and up are parallel, for left cannot be told
    there.

    Raises:
        ValueError: neither a pose nor centre and forward, or both.
    """
    if (pose is None) == (center is None or forward is None):
        raise ValueError("viewer_from_world: give either a pose, or center and forward")
    if pose is not None:
        return rigid(VIEWER_FROM_CAMERA, np.zeros(3)) @ inverse(pose)
    with np.errstate(invalid="ignore", divide="ignore"):
        ahead = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
        upward = up / np.linalg.norm(up, axis=-1, keepdims=True)
        left = np.cross(upward, ahead)
        sine = np.linalg.norm(left, axis=-1, keepdims=True)
        left = np.where(sine > MIN_SINE, left / sine, np.nan)
    axes = np.stack([ahead, left, np.cross(ahead, left)], axis=-2)
    return rigid(axes, -(axes @ np.asarray(center)[..., None])[..., 0])


def first_camera_world(world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the world into the first camera.

    Args:
        world_from_camera: (T, 4, 4) poses in any world.

    Returns:
        (T, 4, 4) poses whose first is the identity, and the (4, 4) motion from the old world to the new one.
    """
    new_from_old = inverse(world_from_camera[0])
    poses = new_from_old @ np.asarray(world_from_camera, float)
    poses[0] = np.eye(4)
    return poses, new_from_old


def rotation_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotations of (..., 4) quaternions (w, x, y, z), normalised first."""
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)
