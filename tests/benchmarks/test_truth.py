"""Real truth: without the files a figure says so; with them, frames of reference hold."""

import numpy as np

from assets.geometry.frames_of_reference import inverse
from benchmarks.geometry import truth


def test_without_the_files_figures_are_null_and_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr(truth, "DATA", tmp_path)
    figures = truth.figures()
    assert {"kitchen_rotation_error_deg", "davis_mask_iou", "argoverse_heading_deg", "kitti_box_iou"} < set(figures)
    assert all(figure.value is None and not figure.missed for figure in figures.values())
    assert all("shared/data" in figure.how for figure in figures.values())


def test_the_kitchen_is_the_same_seen_from_two_frames(shared_data):
    """Depth of one frame, carried by the poses into another, agrees with what the other frame measured."""
    folder = shared_data / "truth" / "7scenes_redkitchen"
    poses = truth.kitchen_poses(folder)
    assert np.allclose(poses[:, :3, :3] @ np.swapaxes(poses[:, :3, :3], 1, 2), np.eye(3), atol=1e-6)
    one, other = truth._kitchen_depth(folder, 0), truth._kitchen_depth(folder, 15)
    assert truth._kitchen_depth(folder, 1).max() == 0
    intrinsics = np.array([[truth.COLOUR_FOCAL, 0, 320], [0, truth.COLOUR_FOCAL, 240], [0, 0, 1]])
    rows, columns = np.nonzero(one)
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(intrinsics).T
    motion = inverse(poses[15]) @ poses[0]
    there = (one[rows, columns][:, None] * rays) @ motion[:3, :3].T + motion[:3, 3]
    pixels = np.round((there @ intrinsics.T)[:, :2] / there[:, 2:]).astype(int)
    inside = (pixels >= 0).all(1) & (pixels < [640, 480]).all(1)
    measured = other[pixels[inside, 1], pixels[inside, 0]]
    known = measured > 0
    assert known.mean() > 0.7
    assert np.median(np.abs(there[inside, 2][known] / measured[known] - 1)) < 0.02
