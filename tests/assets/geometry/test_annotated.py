from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from scipy.spatial.transform import Rotation

from assets.geometry.estimators import Clip, EstimateError
from assets.geometry.estimators.annotated import Annotated, numbered
from assets.geometry.frames_of_reference import inverse, transform, viewer_from_world
from benchmarks.geometry.truth import argoverse_headings, argoverse_records, kitti_overlaps

SECOND = 1_000_000_000


def yaw_columns(yaw: np.ndarray) -> dict:
    turns = Rotation.from_rotvec(np.outer(yaw, [0, 0, 1])).as_quat()
    return {"qw": turns[:, 3], "qx": turns[:, 0], "qy": turns[:, 1], "qz": turns[:, 2]}


@pytest.fixture
def argoverse(tmp_path) -> Clip:
    """The ego vehicle drives 10 m along the city's +y, past a bollard. A car overtakes it on its left."""
    times = np.arange(9) * SECOND // 2 + 315 * 10**15
    share = np.linspace(0, 1, 9)
    ego = {"timestamp_ns": times} | yaw_columns(np.full(9, np.pi / 2))
    ego |= {"tx_m": np.full(9, 1000.0), "ty_m": 2000.0 + 10 * share, "tz_m": np.zeros(9)}
    rows = []
    for t, s in zip(times, share, strict=True):
        # In the ego frame: x ahead, y left.
        things = [
            ("car-a", "REGULAR_VEHICLE", -5 + 20 * s, 3.0, 0.0),
            ("post", "BOLLARD", 20 - 10 * s, -2.0, 1.0),
            ("far", "PEDESTRIAN", 500.0, 0.0, 0.0),
            ("me", "EGO_VEHICLE", 0.0, 0.0, 0.0),
        ]
        rows += [(t, *thing) for thing in things if not (thing[0] == "post" and s > 0.6)]
    t, track, category, x, y, yaw = map(np.array, zip(*rows, strict=True))
    table = {"timestamp_ns": t, "track_uuid": track, "category": category} | yaw_columns(yaw)
    table |= {"tx_m": x, "ty_m": y, "tz_m": np.full(len(t), 0.8)}
    order = np.random.default_rng(0).permutation(len(t))
    feather.write_feather(pa.table({k: v[order] for k, v in table.items()}), tmp_path / "a.feather")
    shuffled = np.random.default_rng(1).permutation(9)
    feather.write_feather(pa.table({k: v[shuffled] for k, v in ego.items()}), tmp_path / "pose.feather")
    row = {"clip": "0" * 64, "shard": "shard-000000", "name": "log", "kind": "av2"}
    return Clip(row, tmp_path / "a.feather", {"pose": tmp_path / "pose.feather"}, None)


def test_argoverse_tracks_and_poses(argoverse, parameters):
    record = Annotated(parameters).estimate(argoverse)
    assert record.names == ["car 1", "bollard 1"] and record.classes == ["car", "bollard"]
    assert record.provenance["tracks"] == ["car-a", "post"] and record.provenance["metric"]
    assert record.timestamps.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert record.is_agent.tolist() == [True, False]
    # The camera moves 10 m ahead; in its own frame that is z.
    assert np.allclose(record.world_from_camera[:, :3, 3], np.outer(np.linspace(0, 10, 9), [0, 0, 1]), atol=1e-4)
    # In the world the car drives 30 m ahead, and the bollard, which was annotated for a while only, stands.
    assert np.allclose(record.centers_world[0, -1] - record.centers_world[0, 0], [0, 0, 30], atol=1e-3)
    assert np.isnan(record.centers_world[1, 5:]).all()
    assert np.allclose(record.centers_world[1, :5], record.centers_world[1, 0], atol=1e-3)
    assert np.allclose(record.forward_world[0], [0, 0, 1], atol=1e-5)
    assert np.isnan(record.forward_world[1]).all()
    assert record.masks == [[None] * 9] * 2 and np.isnan(record.boxes).all()


def test_the_overtaking_car_is_on_the_left_and_ends_ahead(argoverse, parameters):
    record = Annotated(parameters).estimate(argoverse)
    seen = transform(viewer_from_world(record.world_from_camera), record.centers_world[0])
    assert np.allclose(seen[0], [-5, 3, 0.8], atol=1e-3) and np.allclose(seen[-1], [15, 3, 0.8], atol=1e-3)


def test_long_logs_are_sampled_and_crowds_are_capped(argoverse, parameters):
    small = parameters.model_copy(update={"frames": 4, "max_objects": 1, "max_distance": 600.0})
    record = Annotated(small).estimate(argoverse)
    assert record.timestamps.tolist() == [0, 1.5, 2.5, 4]
    assert record.provenance["tracks"] == ["car-a"]


def test_damaged_logs_are_refused(argoverse, parameters):
    pose = argoverse.companions["pose"]
    whole = feather.read_table(pose)
    feather.write_feather(whole.slice(0, 3), pose)
    with pytest.raises(EstimateError, match="no ego pose"):
        Annotated(parameters).estimate(argoverse)
    feather.write_feather(whole.drop_columns(["qw"]), pose)
    with pytest.raises(EstimateError, match="incomplete"):
        Annotated(parameters).estimate(argoverse)
    pose.write_bytes(b"no table")
    with pytest.raises(EstimateError, match="Feather"):
        Annotated(parameters).estimate(argoverse)


def test_nothing_near_is_refused(argoverse, parameters):
    with pytest.raises(EstimateError, match="within 1 m"):
        Annotated(parameters.model_copy(update={"max_distance": 1.0})).estimate(argoverse)


def kitti_clip(labels: Path, calibration: Path) -> Clip:
    row = {"clip": "0" * 64, "shard": "shard-000000", "name": labels.name, "kind": "kitti"}
    return Clip(row, labels, {"calibration": calibration}, None)


@pytest.fixture
def kitti(tmp_path) -> Clip:
    """A car ahead that drives away (rotation_y -90 degrees looks along z), and a region nobody labelled."""
    lines = [
        f"{t} 7 Car 0 0 -1.57 100.0 80.0 140.0 120.0 1.5 1.6 4.0 1.0 1.5 {10 + t} {-np.pi / 2}\n"
        f"{t} -1 DontCare -1 -1 -10 1 1 2 2 -1000 -1000 -1000 -10 -1 -1 -1\n"
        for t in range(5)
    ]
    (tmp_path / "0000.txt").write_text("".join(lines))
    (tmp_path / "calib.txt").write_text("P0: 1 2 3\nP2: 700 0 600 70 0 700 180 0 0 0 1 0 \n")
    return kitti_clip(tmp_path / "0000.txt", tmp_path / "calib.txt")


def test_kitti_without_poses_says_so(kitti, parameters):
    record = Annotated(parameters).estimate(kitti)
    assert record.names == ["car 1"] and record.provenance["poses"] == "unknown"
    assert "no ego poses" in record.provenance["reason"]
    assert np.isnan(record.world_from_camera).all()
    # The lower face's middle is 0.75 m below the centre, and camera 2 is moved by 70 / 700 m.
    assert np.allclose(record.centers_world[0, :, 0], 1.1) and np.allclose(record.centers_world[0, :, 1], 0.75)
    assert np.allclose(record.centers_world[0, :, 2], np.arange(10, 15))
    assert np.allclose(record.forward_world[0], [0, 0, 1], atol=1e-5)
    assert np.allclose(record.timestamps, np.arange(5) / 10)
    assert record.boxes[0, 0].tolist() == [100, 80, 140, 120]


@pytest.mark.parametrize(
    "which, text, message",
    [("labels", "0 7 Car 0\n", "17 columns"), ("calib", "P2: 1 2\n", "3x4"), ("calib", "P0: 1 2\n", "no P2")],
)
def test_damaged_kitti_files_are_refused(kitti, parameters, which, text, message):
    path = kitti.primary if which == "labels" else kitti.companions["calibration"]
    path.write_text(text)
    with pytest.raises(EstimateError, match=message):
        Annotated(parameters).estimate(kitti)


def test_names_are_unique():
    assert numbered(["car", "dog", "car"]) == ["car 1", "dog 1", "car 2"]


def test_real_things_drive_where_they_look(shared_data):
    """Real Argoverse 2 logs: heading against the direction of motion in the world, for whatever moves."""
    angles = argoverse_headings(shared_data / "truth" / "av2")
    assert len(angles) > 1000
    assert np.median(angles) < 3.0


def test_real_things_that_are_parked_stand_still_in_the_world(shared_data):
    for record in argoverse_records(shared_data / "truth" / "av2"):
        parked = (np.nanmax(record.centers_world, 1) - np.nanmin(record.centers_world, 1)).max(-1) < 0.5
        assert parked.sum() > 10


def test_real_kitti_boxes_project_onto_their_pictures(shared_data):
    """The 3D box around centre and heading, seen through the intrinsics, against the 2D box of the same label."""
    overlaps = kitti_overlaps(shared_data / "truth" / "kitti_tracking")
    assert len(overlaps) > 500
    assert np.median(overlaps) >= 0.97


def test_camera_relative_headings_survive_the_way_to_the_world(argoverse, parameters):
    record = Annotated(parameters).estimate(argoverse)
    local = transform(inverse(record.world_from_camera), record.centers_world[0])
    assert np.allclose(local[:, 0], -3.0, atol=1e-3)
