import math

import numpy as np
import pytest

from assets.geometry.fitness import judge
from assets.geometry.parameters import FitnessParameters
from assets.geometry.record import encode_mask, unknown

HEIGHT, WIDTH, FRAMES = 60, 80, 10
BOUNDS = FitnessParameters(min_moving=2, min_share=0.01, max_share=0.5)


def scene(boxes: dict[str, np.ndarray], centers: np.ndarray | None = None, masks=None, size=(HEIGHT, WIDTH)):
    """A record of things with the given (T, 4) boxes, in the world where centres (N, T, 3) are given."""
    poses = "unknown" if centers is None else "estimated"
    known = {"boxes": np.stack(list(boxes.values()))}
    known |= {} if centers is None else {"centers_world": centers, "world_from_camera": np.tile(np.eye(4), (10, 1, 1))}
    known |= {} if masks is None else {"masks": masks}
    provenance = {"status": "2d", "poses": poses, "frame_size": list(size)}
    return unknown(np.arange(FRAMES) / 2, list(boxes), list(boxes), provenance=provenance, **known)


def going(width: float, height: float, step: float = 2.0, left: float = 10) -> np.ndarray:
    """(T, 4) boxes of a thing that goes to the right."""
    x = left + step * np.arange(FRAMES)
    return np.stack([x, np.full(FRAMES, 20), x + width, np.full(FRAMES, 20 + height)], axis=1)


def verdict(record, row=None, parallax=math.nan, bounds=BOUNDS):
    return judge(record, row or {}, parallax, 0.05, bounds)


def test_a_fit_scene_has_a_value_for_every_rule():
    found = verdict(scene({"a": going(8, 12), "b": going(20, 24)}), parallax=0.0)
    assert found == {
        "moving": 2,
        "smallest_share": 0.02,
        "largest_share": 0.1,
        "mount_share": 0.0,
        "fit": True,
        "unfit": "",
    }


def test_each_rule_speaks_for_itself_and_a_clips_own_verdict_counts():
    record = scene({"small": going(4, 4), "large": going(55, 50, 1.0), "still": going(9, 9, 0.0)})
    found = verdict(record, {"unfit": "cuts"}, bounds=FitnessParameters(min_moving=3, min_share=0.01, max_share=0.4))
    assert (found["moving"], found["fit"]) == (2, False)
    assert found["unfit"] == "cuts, moving, smallest_share, largest_share"
    assert verdict(record, {"unfit": ""}, bounds=FitnessParameters(min_share=0.001, max_share=0.6))["fit"]


def test_a_thing_counts_with_its_median_over_the_frames_it_is_seen_in():
    boxes = going(8, 12)
    boxes[:4], boxes[4] = np.nan, (0, 0, 80, 60)
    found = verdict(scene({"a": boxes, "b": going(8, 12)}))
    assert found["smallest_share"] == found["largest_share"] == 0.02


def test_a_mask_knows_its_area_better_than_its_box():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:6, :8] = True
    masks = [[encode_mask(mask)] * FRAMES]
    assert verdict(scene({"a": going(40, 40)}, masks=masks))["largest_share"] == 0.01


def test_a_crowd_is_measured_like_a_few():
    """More than 255 masks in one record."""
    names = [f"thing {n}" for n in range(30)]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:22, 10:30] = True
    found = verdict(scene({name: going(20, 12) for name in names}, masks=[[encode_mask(mask)] * FRAMES] * len(names)))
    assert found["moving"] == len(names)
    assert found["smallest_share"] == found["largest_share"] == 0.05


def test_where_poses_are_known_the_world_says_what_moves():
    still = np.tile([0.0, 0.0, 10.0], (FRAMES, 1))
    moves = still + np.linspace(0, 1, FRAMES)[:, None]
    boxes = {"a": going(8, 12), "b": going(8, 12)}
    assert verdict(scene(boxes, np.stack([still, still])))["moving"] == 0
    assert verdict(scene(boxes, np.stack([still, moves])))["moving"] == 1
    moves[2:5] = np.nan
    assert verdict(scene(boxes, np.stack([still * np.nan, moves])))["moving"] == 1


BONNET = np.tile([5.0, 45, 75, 60], (FRAMES, 1))


def test_a_bonnet_below_a_travelling_camera_is_what_it_is_mounted_on():
    record = scene({"bonnet": BONNET, "a": going(8, 12), "b": going(8, 12)})
    found = verdict(record, parallax=0.5)
    assert (found["mount_share"], found["unfit"]) == (0.2188, "mount_share")
    assert verdict(record, parallax=0.5, bounds=replaced(max_mount_share=0.3))["fit"]
    assert verdict(record, parallax=0.01)["mount_share"] == 0
    assert math.isnan(verdict(record, parallax=math.nan)["mount_share"]) and verdict(record)["fit"]


def replaced(**values) -> FitnessParameters:
    return BOUNDS.model_copy(update=values)


@pytest.mark.parametrize(
    "boxes",
    [
        BONNET - [0, 10, 0, 10],  # away from the border
        BONNET + np.arange(FRAMES)[:, None] * [1, 0, 0, 0],  # moves in the picture
        np.where(np.arange(FRAMES)[:, None] < 7, BONNET, np.nan),  # leaves
    ],
)
def test_what_moves_in_the_picture_or_leaves_it_is_no_mount(boxes):
    assert verdict(scene({"thing": boxes}), parallax=0.5)["mount_share"] == 0


@pytest.mark.parametrize("count", [0, 1])
def test_a_scene_without_pictures_or_things_is_judged_by_what_is_known(count):
    centers = np.linspace(0, 5, FRAMES)[None, :, None] + np.zeros((1, FRAMES, 3))
    record = scene({"a": np.full((FRAMES, 4), np.nan)}, centers, size=(0, 0))
    if not count:
        record = unknown(np.zeros(0), provenance=record.provenance)
    found = verdict(record, bounds=FitnessParameters())
    assert (found["moving"], found["fit"]) == (count, bool(count))
    assert math.isnan(found["smallest_share"]) and math.isnan(found["mount_share"])


def test_judging_changes_no_record(parameters):
    other = parameters.model_copy(update={"fitness": FitnessParameters(min_moving=7)})
    assert other.deciding() == parameters.deciding()
