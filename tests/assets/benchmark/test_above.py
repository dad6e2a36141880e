import re

import numpy as np
import pytest

from assets.benchmark.above import MARGIN, SIDE, from_above
from assets.geometry.record import unknown

TIMES = np.arange(5.0)


def record(**known):
    """A ball that rolls four metres to the right, eight metres ahead of a camera that stands still."""
    centers = np.zeros((1, 5, 3))
    centers[0, :, 0], centers[0, :, 2] = TIMES, 8
    fields = {
        "centers_world": centers,
        "forward_world": np.tile([1.0, 0, 0], (1, 5, 1)),
        "boxes": np.zeros((1, 5, 4)),
        "world_from_camera": np.tile(np.eye(4), (5, 1, 1)),
        "provenance": {"estimator": "rendered", "status": "3d", "frame_size": [48, 64], "metric": True},
    }
    return unknown(TIMES, ["ball"], ["ball"], **fields | known)


def drawn(clip, visible_until=None):
    return from_above(clip, {0: "#E69F00"}, {0: "ball"}, (1.0, 3.0), visible_until, [1.0, 3.0])


def numbers(path):
    return np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2)


def test_right_is_right_and_ahead_is_up():
    camera, ball = drawn(record()).trails
    path = numbers(ball.whole)
    scale = (SIDE - 2 * MARGIN) / 8
    assert np.diff(path[:, 0]) == pytest.approx(scale, abs=0.11) and np.ptp(path[:, 1]) == 0
    assert path[0, 1] == MARGIN and camera.stops[0].y == SIDE - MARGIN
    assert [stop.number for stop in ball.stops] == [1, 2]
    first, ahead = ball.stops[0], camera.stops[0].ahead
    assert first.ahead[0] > first.x and first.ahead[1] == first.y
    assert ahead[1] < camera.stops[0].y and ahead[0] == camera.stops[0].x


def test_what_was_asked_is_told_from_what_was_hidden():
    _, ball = drawn(record(), visible_until=2.0).trails
    path = numbers(ball.whole)
    assert numbers(ball.asked) == pytest.approx(path[1:3])
    # The moment at 3 s alone makes no line.
    assert ball.hidden == ""


def test_gaps_are_not_bridged_and_the_bar_says_its_length():
    clip = record()
    clip.centers_world[0, 2] = np.nan
    view = drawn(clip)
    assert view.trails[-1].whole.count("M") == 2
    assert (view.length, view.bar) == ("2 m", round(2 * (SIDE - 2 * MARGIN) / 8, 1))
    assert drawn(record(provenance={"estimator": "x", "status": "3d", "frame_size": [1, 1]})).length == "2 scene units"


def test_a_clip_without_places_has_no_drawing_and_one_point_is_enough():
    assert drawn(record(centers_world=np.full((1, 5, 3), np.nan))) is None
    still = np.full((1, 5, 3), np.nan)
    still[0, 2] = [0, 0, 8]
    unknown_poses = record(centers_world=still, world_from_camera=np.full((5, 4, 4), np.nan))
    camera, ball = drawn(unknown_poses).trails
    assert camera.whole == ball.whole == "" and camera.stops == []
