"""Real ground truth in the formats it is published in: Argoverse 2 sensor logs and KITTI tracking labels.

Neither comes with pictures here, so there are no masks and no points; tracks, headings and poses are the annotators'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assets.geometry.estimators import Clip, EstimateError, provenance, uniform_indices
from assets.geometry.frames_of_reference import (
    VIEWER_FROM_CAMERA,
    first_camera_world,
    inverse,
    rigid,
    rotate,
    rotation_from_quaternion,
    transform,
)
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import SceneRecord, rounded, unknown

# Measured on two Argoverse 2 logs: centres of 96 parked things scatter by 0.06 m (0.1 % of their distance) and their
# headings by 0.3-0.4 degrees over a log; the heading of moving things is within 2.2 degrees (median) of their motion.
AV2_ERROR_MODEL = {"center": 0.0011, "heading_deg": 2.2, "position_floor": 0.06}
# KITTI's labels have no ego pose to measure scatter with: the figures of Argoverse 2 stand in for them.
KITTI_ERROR_MODEL = AV2_ERROR_MODEL
KITTI_SECONDS_PER_FRAME = 0.1
# The car that carries the sensors is the camera itself.
AV2_EGO = "EGO_VEHICLE"
AV2_NAMES = {"REGULAR_VEHICLE": "car", "BICYCLIST": "cyclist", "WHEELED_DEVICE": "scooter", "TRUCK_CAB": "truck"}
AV2_WITHOUT_FRONT = {
    "BOLLARD",
    "CONSTRUCTION_BARREL",
    "CONSTRUCTION_CONE",
    "MESSAGE_BOARD_TRAILER",
    "MOBILE_PEDESTRIAN_CROSSING_SIGN",
    "SIGN",
    "STOP_SIGN",
    "STROLLER",
    "TRAFFIC_LIGHT_TRAILER",
    "VEHICULAR_TRAILER",
}
KITTI_NAMES = {"Car", "Van", "Truck", "Pedestrian", "Person", "Cyclist", "Tram"}


@dataclass(frozen=True)
class Tracks:
    """Things over the T sampled frames, in the camera frame of each frame.

    Attributes:
        keys: N stable identities.
        classes: N plain class names.
        is_agent: (N,) whether the thing has a front.
        centers: (N, T, 3) metres, NaN where not annotated.
        forward: (N, T, 3) unit vectors, NaN where not annotated.
        boxes: (N, T, 4) xyxy pixels, NaN where unknown.
    """

    keys: list[str]
    classes: list[str]
    is_agent: np.ndarray
    centers: np.ndarray
    forward: np.ndarray
    boxes: np.ndarray


class Annotated:
    """Turns annotated logs into scene records; metric."""

    def __init__(self, parameters: GeometryParameters) -> None:
        self._parameters = parameters

    def supports(self, row: Mapping[str, Any], companions: Mapping[str, Any]) -> bool:
        """Argoverse 2 logs with poses, KITTI tracking labels with calibration."""
        return (row["kind"] == "av2" and "pose" in companions) or (
            row["kind"] == "kitti" and "calibration" in companions
        )

    def identity(self) -> str:
        """Name and version."""
        return "annotated/1"

    def estimate(self, clip: Clip) -> SceneRecord:
        """The log's scene record.

        Raises:
            EstimateError: a file of the log is damaged, or too little of it is left.
        """
        try:
            return self._argoverse(clip) if clip.row["kind"] == "av2" else self._kitti(clip)
        except (OSError, KeyError, IndexError) as error:
            raise EstimateError(f"{clip.row['kind']} log: damaged or incomplete ({type(error).__name__})") from error

    def _argoverse(self, clip: Clip) -> SceneRecord:
        """The camera is the ego vehicle's viewpoint: at its origin, looking along its x axis."""
        times, city_from_ego, tracks = read_argoverse(clip.primary, clip.companions["pose"], self._parameters.frames)
        poses, _ = first_camera_world(city_from_ego @ EGO_FROM_CAMERA)
        return self._record(
            (times - times[0]) * 1e-9,
            tracks,
            poses,
            status="3d",
            error_model=AV2_ERROR_MODEL,
            poses_are="truth",
            # The z axis of the ego vehicle, which stands on the road, is up.
            up_world=[0.0, -1.0, 0.0],
        )

    def _kitti(self, clip: Clip) -> SceneRecord:
        """Without ego poses motion in the world is unknown: positions are those in each frame's camera."""
        numbers, intrinsics, tracks = read_kitti(clip.primary, clip.companions["calibration"], self._parameters.frames)
        record = self._record(
            (numbers - numbers[0]) * KITTI_SECONDS_PER_FRAME,
            tracks,
            None,
            status="3d",
            reason="no ego poses: positions and headings are in each frame's camera, motion in the world is unknown",
            error_model=KITTI_ERROR_MODEL,
            poses_are="unknown",
            intrinsics=np.tile(intrinsics, (len(numbers), 1, 1)),
        )
        return record

    def _record(
        self,
        seconds: np.ndarray,
        tracks: Tracks,
        poses: np.ndarray | None,
        *,
        status: str,
        error_model: Mapping[str, float],
        poses_are: str,
        reason: str = "",
        up_world: list[float] | None = None,
        **known: Any,
    ) -> SceneRecord:
        near = np.linalg.norm(tracks.centers, axis=-1) <= self._parameters.max_distance
        keep = _most_seen(near, tracks.keys, self._parameters.max_objects)
        if not len(keep):
            raise EstimateError(f"no annotated thing within {self._parameters.max_distance:g} m in two frames or more")
        near = near[keep]
        agents = tracks.is_agent[keep]
        facing = near & agents[:, None]
        centers, forward = tracks.centers[keep], tracks.forward[keep]
        if poses is not None:
            centers, forward = transform(poses, centers), rotate(poses, forward)
            known["world_from_camera"] = poses
        classes = [tracks.classes[i] for i in keep]
        record = unknown(
            seconds,
            numbered(classes),
            classes,
            is_agent=agents,
            boxes=np.where(near[..., None], tracks.boxes[keep], np.nan),
            centers_world=np.where(near[..., None], centers, np.nan),
            forward_world=np.where(facing[..., None], forward, np.nan),
            forward_confidence=facing,
            provenance=provenance(
                "annotated",
                self.identity(),
                self._parameters,
                status,
                reason,
                error_model=dict(error_model),
                metric=True,
                poses=poses_are,
                up_world=up_world,
                tracks=[tracks.keys[i] for i in keep],
            ),
            **known,
        )
        return rounded(record)


EGO_FROM_CAMERA = rigid(VIEWER_FROM_CAMERA, np.zeros(3))


def read_argoverse(annotations: Path, poses: Path, frames: int) -> tuple[np.ndarray, np.ndarray, Tracks]:
    """Read an Argoverse 2 sensor log at uniformly sampled annotation times.

    Format: https://github.com/argoverse/av2-api (quaternions w x y z, translations in metres, cuboids in the ego
    vehicle's frame with heading +x, ego poses in the city frame).

    Returns:
        (T,) i64 nanoseconds; (T, 4, 4) city_from_ego; the tracks, without the ego vehicle itself.

    Raises:
        EstimateError: a file is no Feather table, or an annotation has no ego pose.
    """
    table, ego = _feather(annotations), _feather(poses)
    all_times = np.unique(table["timestamp_ns"])
    times = all_times[uniform_indices(len(all_times), frames)]
    order = np.argsort(ego["timestamp_ns"], kind="stable")
    at = np.minimum(np.searchsorted(ego["timestamp_ns"][order], times), len(order) - 1)
    if not np.array_equal(ego["timestamp_ns"][order][at], times):
        raise EstimateError("av2 log: some annotated times have no ego pose")
    city_from_ego = _se3(ego)[order[at]]
    rows = np.isin(table["timestamp_ns"], times) & (table["category"] != AV2_EGO)
    table = {name: column[rows] for name, column in table.items()}
    keys, first, track = np.unique(table["track_uuid"].astype(str), return_index=True, return_inverse=True)
    frame = np.searchsorted(times, table["timestamp_ns"])
    camera_from_box = inverse(EGO_FROM_CAMERA) @ _se3(table)
    categories = [str(table["category"][i]) for i in first]
    shape = (len(keys), len(times))
    return (
        times,
        city_from_ego,
        Tracks(
            list(map(str, keys)),
            [AV2_NAMES.get(c, c.lower().replace("_", " ")) for c in categories],
            np.array([c not in AV2_WITHOUT_FRONT for c in categories], bool),
            _scattered(shape, track, frame, camera_from_box[:, :3, 3]),
            _scattered(shape, track, frame, camera_from_box[:, :3, 0]),
            np.full((*shape, 4), np.nan),
        ),
    )


def read_kitti(labels: Path, calibration: Path, frames: int) -> tuple[np.ndarray, np.ndarray, Tracks]:
    """Read KITTI tracking labels at uniformly sampled frames, in the frame of the left colour camera.

    Format: devkit_tracking's readme. ``location`` is the middle of the box's lower face in the rectified camera 0, to
    which camera 2 is moved by K^-1 P2[:, 3]; the front looks along x where ``rotation_y`` is 0.

    Returns:
        (T,) frame numbers; (3, 3) intrinsics of camera 2; the tracks.

    Raises:
        EstimateError: a line that the format does not know.
    """
    projection = _kitti_projection(calibration)
    intrinsics = projection[:, :3]
    offset = np.linalg.solve(intrinsics, projection[:, 3])
    lines = [line.split() for line in labels.read_text().splitlines() if line.strip()]
    try:
        columns = np.array([[float(x) for x in (*line[:2], *line[3:17])] for line in lines]).reshape(-1, 16)
    except ValueError as error:
        raise EstimateError("kitti log: a label line does not have 17 columns of numbers") from error
    kinds = np.array([line[2] for line in lines], str)
    last = int(columns[:, 0].max(initial=0))
    numbers = uniform_indices(last + 1, frames)
    rows = np.isin(columns[:, 0], numbers) & np.isin(kinds, sorted(KITTI_NAMES))
    columns, kinds = columns[rows], kinds[rows]
    ids, first, track = np.unique(columns[:, 1].astype(int), return_index=True, return_inverse=True)
    frame = np.searchsorted(numbers, columns[:, 0])
    height, location, yaw = columns[:, 9], columns[:, 12:15], columns[:, 15]
    centers = location - np.stack([0 * height, height / 2, 0 * height], -1) + offset
    forward = np.stack([np.cos(yaw), 0 * yaw, -np.sin(yaw)], -1)
    shape = (len(ids), len(numbers))
    return (
        numbers,
        intrinsics,
        Tracks(
            [str(i) for i in ids],
            [str(kinds[i]).lower() for i in first],
            np.ones(len(ids), bool),
            _scattered(shape, track, frame, centers),
            _scattered(shape, track, frame, forward),
            _scattered(shape, track, frame, columns[:, 5:9]),
        ),
    )


def numbered(classes: list[str]) -> list[str]:
    """Unique names in order: "car 1", "car 2", "pedestrian 1"."""
    counts: Counter[str] = Counter()
    names = []
    for name in classes:
        counts[name] += 1
        names.append(f"{name} {counts[name]}")
    return names


def _most_seen(seen: np.ndarray, keys: list[str], limit: int) -> list[int]:
    """Indices of the objects seen in most frames (two at least), ties by identity, in that order."""
    counts = seen.sum(1)
    order = sorted(range(len(keys)), key=lambda i: (-counts[i], keys[i]))
    return [i for i in order if counts[i] >= 2][:limit]


def _scattered(shape: tuple[int, int], track: np.ndarray, frame: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N, T, D) array holding (rows, D) values at their track and frame, NaN elsewhere."""
    array = np.full((*shape, values.shape[-1]), np.nan)
    array[track, frame] = values
    return array


def _feather(path: Path) -> dict[str, np.ndarray]:
    import pyarrow as pa
    from pyarrow import feather

    try:
        table = feather.read_table(path, memory_map=False)
    except pa.ArrowException as error:
        raise EstimateError("av2 log: a file is no Feather table") from error
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def _se3(table: Mapping[str, np.ndarray]) -> np.ndarray:
    """(rows, 4, 4) motions of rows with qw..qz and tx_m..tz_m."""
    quaternion = np.stack([table[f"q{axis}"] for axis in "wxyz"], -1)
    return rigid(rotation_from_quaternion(quaternion), np.stack([table[f"t{axis}_m"] for axis in "xyz"], -1))


def _kitti_projection(calibration: Path) -> np.ndarray:
    for line in calibration.read_text().splitlines():
        name, _, numbers = line.partition(" ")
        if name.rstrip(":") == "P2":
            try:
                return np.array([float(x) for x in numbers.split()]).reshape(3, 4)
            except ValueError as error:
                raise EstimateError("kitti log: P2 of the calibration is not 3x4 numbers") from error
    raise EstimateError("kitti log: the calibration has no P2")
