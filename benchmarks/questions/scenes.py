"""Scenes to ask about without any pixels: the sample world's own tracks, and windows of real annotated logs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from assets.geometry.estimators import Clip, build, provenance
from assets.geometry.estimators.rendered import ERROR_MODEL
from assets.geometry.frames_of_reference import first_camera_world, inverse, rotate, transform
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import SceneRecord, rounded, unknown
from assets.videos.parameters import SampleWorldParameters
from assets.videos.scenery import draw_scene
from assets.videos.things import SHAPES
from assets.videos.world import facing

SHARD = "shard-000000"
WINDOW_SECONDS, WINDOW_FRAMES = 7.5, 24
# Fields of a record with one entry per frame: where it stands first, and where it follows the object.
_BY_FRAME = ("timestamps", "intrinsics", "world_from_camera", "points", "confidence")
_BY_OBJECT_AND_FRAME = ("boxes", "centers_world", "forward_world", "forward_confidence")


def identity(name: str) -> str:
    """A clip identity for a scene without a file."""
    return hashlib.sha256(name.encode()).hexdigest()


def sample_world_record(number: int, world: SampleWorldParameters, frames: int = 32) -> SceneRecord:
    """Truth of one clip of the sample world that was drawn but not rendered.

    A thing counts as seen where its centre lies before the camera and inside the picture; what hides behind something
    else is seen here and would not be in a rendered clip.
    """
    scene = draw_scene(SHARD, number, world)
    total = world.fps * world.seconds
    picked = np.unique(np.linspace(0, total - 1, min(total, frames)).round().astype(int))
    poses, new_from_old = first_camera_world(scene.world_from_camera[picked])
    centers = transform(new_from_old, np.stack([thing.centers()[picked] for thing in scene.things]))
    in_camera = transform(inverse(poses)[None], centers)
    pixels = in_camera @ scene.intrinsics.T
    pixels = pixels[..., :2] / pixels[..., 2:]
    inside = (pixels >= 0).all(-1) & (pixels < [world.width, world.height]).all(-1)
    seen = inside & (in_camera[..., 2] > 0)
    agents = np.array([SHAPES[thing.shape].is_agent for thing in scene.things])
    looking = seen & agents[:, None]
    forward = np.stack([facing(thing.rotation[picked], SHAPES[thing.shape].rolls) for thing in scene.things])
    up = rotate(new_from_old, np.array([0.0, 0.0, 1.0]))
    known = {"error_model": ERROR_MODEL, "metric": True, "frame_size": [world.height, world.width], "poses": "truth"}
    return unknown(
        picked / world.fps,
        [thing.name for thing in scene.things],
        [thing.shape for thing in scene.things],
        world_from_camera=poses,
        is_agent=agents,
        centers_world=np.where(seen[..., None], centers, np.nan),
        forward_world=np.where(looking[..., None], rotate(new_from_old, forward), np.nan),
        forward_confidence=looking.astype(float),
        provenance=provenance("rendered", "drawn", GeometryParameters(), "3d", **known, up_world=up.tolist()),
    )


def real_windows(truth: Path) -> Iterator[tuple[str, str, SceneRecord]]:
    """(log, window, record) of every window of the Argoverse 2 and KITTI tracking logs under a folder."""
    parameters = GeometryParameters(frames=512, max_objects=64)
    for log, clip in _logs(truth):
        record = build("annotated", parameters).estimate(clip)
        times = record.timestamps
        for start in np.arange(0.0, times[-1] - WINDOW_SECONDS + 1e-6, WINDOW_SECONDS):
            inside = np.flatnonzero((times >= start) & (times <= start + WINDOW_SECONDS))
            picked = inside[np.linspace(0, len(inside) - 1, min(len(inside), WINDOW_FRAMES)).round().astype(int)]
            yield log, f"{log} from {start:.1f} s", _at_frames(record, picked)


def _logs(truth: Path) -> Iterator[tuple[str, Clip]]:
    for labels in sorted((truth / "av2").glob("*/annotations*.feather")):
        pose = {"pose": labels.parent / "city_SE3_egovehicle.feather"}
        yield f"av2 {labels.parent.name}", Clip({"kind": "av2", "name": labels.name}, labels, pose, None)
    tracking = truth / "kitti_tracking"
    for labels in sorted((tracking / "label_02").glob("*.txt")):
        calibration = {"calibration": tracking / "calib" / labels.name}
        yield f"kitti {labels.stem}", Clip({"kind": "kitti", "name": labels.name}, labels, calibration, None)


def _at_frames(record: SceneRecord, picked: np.ndarray) -> SceneRecord:
    """The record at some of its frames, its clock set to the first of them; objects never seen there are left out."""
    seen = np.isfinite(record.centers_world[:, picked]).all(-1).any(1)
    cut = {name: getattr(record, name)[picked] for name in _BY_FRAME}
    cut["timestamps"] = cut["timestamps"] - cut["timestamps"][0]
    cut |= {name: getattr(record, name)[seen][:, picked] for name in _BY_OBJECT_AND_FRAME}
    cut |= {name: getattr(record, name)[seen] for name in ("object_ids", "is_agent")}
    cut |= {
        name: [item for item, kept in zip(getattr(record, name), seen, strict=True) if kept]
        for name in ("names", "classes", "masks")
    }
    left = {item.name for item in fields(SceneRecord)} - cut.keys()
    return rounded(replace(record, **{name: getattr(record, name) for name in left}, **cut))
