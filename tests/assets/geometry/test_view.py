import dataclasses
import io

import numpy as np
from PIL import Image

from assets.geometry.record import unknown
from assets.geometry.view import MAX_BYTES, ground_plane, trajectories_from_above


def test_a_picture_of_the_paths_is_small_and_the_same_each_time(make_record):
    record = make_record(32, 24)
    first = trajectories_from_above(record)
    assert first == trajectories_from_above(record)
    assert len(first) <= MAX_BYTES
    assert Image.open(io.BytesIO(first)).size == (480, 480)


def test_moving_an_object_changes_the_picture(record):
    moved = dataclasses.replace(record, centers_world=record.centers_world + np.float32([0, 0, 3]))
    assert trajectories_from_above(moved) != trajectories_from_above(record)


def test_a_record_without_geometry_still_has_a_picture():
    record = unknown(
        np.zeros(0), provenance={"status": "refused", "estimator": "classical", "reason": "blurred", "up_world": None}
    )
    assert trajectories_from_above(record).startswith(b"\x89PNG")


def test_right_and_ahead_are_level():
    up = np.array([0.0, -np.cos(0.3), -np.sin(0.3)])
    record = unknown(np.zeros(1), provenance={"up_world": up.tolist()})
    right, ahead = ground_plane(record)
    assert np.allclose(right, [1, 0, 0]) and abs(ahead @ up) < 1e-12 and ahead[2] > 0.9
