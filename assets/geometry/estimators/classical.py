"""Real videos without learned weights: three dimensions where the camera's way supports them, else the reason why not.

Accepted clips get camera poses, dense depth of what stands still, and what moves against it, placed where it touches
the reconstructed surface. Refused clips get a 2D record: regions that move, and why there is no third dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np

from assets.geometry import prior
from assets.geometry.estimators import Clip, EstimateError, provenance
from assets.geometry.estimators.camera_motion import CameraMotion, recover_cameras
from assets.geometry.estimators.correspondences import (
    Correspondences,
    background_motion,
    grey_frames,
    match_frames,
    rotation_share,
    sharpness,
    shot_cuts,
)
from assets.geometry.estimators.moving import (
    RIM,
    different_from_background,
    homography_flow,
    measure_flows,
    static_scene,
    tracked,
    unexplained_by_cameras,
    unexplained_by_homographies,
)
from assets.geometry.estimators.placing import ground_plane, headings, places
from assets.geometry.estimators.plane_sweep import Depths, sweep
from assets.geometry.grid import cell_pixels, grid_size, sample_cells
from assets.geometry.parameters import ClassicalParameters, GeometryParameters
from assets.geometry.record import SceneRecord, box_of, encode_mask, rounded, unknown

# Measured on 32 rendered clips whose camera translates: two thirds of 1,900 centres of moving things were within 10 %
# of their distance, of what stands on the ground 8 %, of what flies above it 95 %; two thirds of the agents' directions
# of motion within 60 degrees of where they look. Static points were off by 1.2 % of depths of about ten units.
ERROR_MODEL = {"center": 0.1, "heading_deg": 60.0, "position_floor": 0.12}
# Two frames say something of the camera if they share this many features.
LEAST_SHARED = 100
# A rotation explains a feature to within this many px.
ROTATION_PIXELS = 1.5
# Depths are sought between these multiples of the nearest and farthest of the static points (1st and 99th percentile).
NEARER, FARTHER = 0.7, 1.5
THING = "moving thing"


@dataclass(frozen=True)
class Reconstruction:
    """A clip in three dimensions, in the first camera's frame; its first frame's median depth is ``prior.LENGTH_UNIT``.

    Attributes:
        intrinsics: (3, 3) px of the frames.
        world_from_camera: (T, 4, 4).
        depths: dense depth of what stands still, at half the frames' size.
        cameras: the model the poses are from, in the same units.
    """

    intrinsics: np.ndarray
    world_from_camera: np.ndarray
    depths: Depths
    cameras: CameraMotion

    @property
    def depth(self) -> np.ndarray:
        """(T, h, w) z-depth."""
        return self.depths.depth

    @property
    def confidence(self) -> np.ndarray:
        """(T, h, w) 0..1; zero where the depth is not to be used."""
        return self.depths.confidence


def reconstruct_frames(
    frames: np.ndarray, timestamps: np.ndarray, options: ClassicalParameters | None = None
) -> Reconstruction:
    """Cameras and depth of (T, H, W, 3) u8 RGB frames at (T,) s.

    Raises:
        EstimateError: with the reason, where the frames do not support three dimensions.
    """
    options = options or ClassicalParameters()
    grey = grey_frames(frames)
    with _one_thread():
        return _reconstructed(frames, grey, match_frames(grey, options.features), timestamps, options)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The last bits of a sum depend on the number of threads, in OpenCV as in NumPy's linear algebra."""
    from threadpoolctl import threadpool_limits

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(before)


def _reconstructed(
    frames: np.ndarray, grey: np.ndarray, found: Correspondences, timestamps: np.ndarray, options: ClassicalParameters
) -> Reconstruction:
    _check_frames(frames, grey, found, timestamps, options)
    cameras = _scaled(recover_cameras(found, options))
    depths = sweep(grey, cameras.intrinsics, cameras.world_from_camera, _span(cameras), options.depths)
    return Reconstruction(cameras.intrinsics, cameras.world_from_camera, depths, cameras)


def _check_frames(
    frames: np.ndarray, grey: np.ndarray, found: Correspondences, timestamps: np.ndarray, options: ClassicalParameters
) -> None:
    """Raise ``EstimateError`` where the pictures alone tell that there is nothing to reconstruct."""
    if len(frames) < options.min_frames:
        raise EstimateError(f"too few frames: {len(frames)}, {options.min_frames} asked for")
    cuts = shot_cuts(frames, found.survival(), options.cut_survival)
    if len(cuts):
        where = ", ".join(f"{timestamps[k]:.1f} s" for k in cuts[:5])
        raise EstimateError(
            f"{len(cuts) + 1} shots, or a camera too fast for the sampling: the picture jumps after {where}"
        )
    if sharpness(grey) < options.min_sharpness:
        raise EstimateError(f"blurred: sharpness {sharpness(grey):.1f}, {options.min_sharpness:g} asked for")
    if (moved := background_motion(found, LEAST_SHARED)) < options.static_pixels:
        raise EstimateError(f"static camera: the background moves {moved:.2f} px, no parallax")
    if not any(len(rows) >= LEAST_SHARED for rows in found.pairs.values()):
        raise EstimateError(
            "frames share too few features: they are too far apart in time, or the picture is too plain"
        )
    if (share := rotation_share(found, LEAST_SHARED, ROTATION_PIXELS)) > options.rotation_share:
        raise EstimateError(f"rotation only: turning the camera explains {share:.0%} of the features, no parallax")


def _scaled(cameras: CameraMotion) -> CameraMotion:
    """The model scaled so that the static points of the first frame have a median depth of ``prior.LENGTH_UNIT``."""
    first = cameras.points[cameras.observed[:, 0], 2]
    scale = prior.LENGTH_UNIT / float(np.median(first if len(first) else cameras.points[:, 2]))
    poses = cameras.world_from_camera.copy()
    poses[:, :3, 3] *= scale
    return replace(cameras, world_from_camera=poses, points=cameras.points * scale)


def _span(cameras: CameraMotion) -> tuple[float, float]:
    """Nearest and farthest depth at which something may stand."""
    offsets = cameras.points[:, None] - cameras.world_from_camera[None, :, :3, 3]
    depth = np.einsum("ptc,tc->pt", offsets, cameras.world_from_camera[:, :3, 2])[cameras.observed]
    nearest, farthest = np.percentile(depth[depth > 0], [1, 99])
    return NEARER * float(nearest), FARTHER * float(farthest)


class Classical:
    """Structure from motion by pycolmap, depth by plane sweep, things by motion; deterministic, one thread."""

    def __init__(self, parameters: GeometryParameters) -> None:
        self._parameters = parameters

    def supports(self, row: Mapping[str, Any], companions: Mapping[str, Any]) -> bool:
        """Any video."""
        return row["kind"] == "video"

    def identity(self) -> str:
        """Name and version, with those of pycolmap and OpenCV, whose solvers decide the figures."""
        return f"classical/2 pycolmap/{version('pycolmap')} opencv/{cv2.__version__}"

    def estimate(self, clip: Clip) -> SceneRecord:
        """A 3D record where the clip supports one, else a 2D record with the reason.

        Raises:
            EstimateError: the clip has no readable frames.
        """
        frames = clip.sampled["frames"]
        with _one_thread():
            record = self._scene(frames, clip.sampled["timestamps"])
            return prior.with_prior(record, frames, self._parameters.prior_side)

    def _scene(self, frames: np.ndarray, timestamps: np.ndarray) -> SceneRecord:
        options = self._parameters.classical
        grey = grey_frames(frames)
        found = match_frames(grey, options.features)
        try:
            scene = _reconstructed(frames, grey, found, timestamps, options)
        except EstimateError as error:
            return self._flat(frames, timestamps, _things_in_pictures(frames, grey, found, options), str(error))
        static = static_scene(scene.depths, scene.intrinsics, scene.world_from_camera, grey.shape[1:])
        flows = measure_flows(grey, static.flow)
        unexplained = unexplained_by_cameras(flows, grey, static)
        things = self._most_seen(tracked(unexplained, flows, options.min_object_share, RIM))
        if not len(things) and options.require_motion:
            return self._flat(frames, timestamps, things, "nothing moves but the camera")
        return self._deep(frames, timestamps, scene, static.depth, things)

    def _flat(self, frames: np.ndarray, timestamps: np.ndarray, things: np.ndarray, reason: str) -> SceneRecord:
        """A record without a third dimension."""
        known = _described(self._most_seen(things))
        return unknown(timestamps, provenance=self._provenance(frames, "2d", reason), **known)

    def _deep(
        self, frames: np.ndarray, timestamps: np.ndarray, scene: Reconstruction, static: np.ndarray, things: np.ndarray
    ) -> SceneRecord:
        """A record with poses, points, and the places and headings of moving things."""
        cameras = scene.cameras
        ground = ground_plane(cameras.points, scene.world_from_camera)
        upright = -scene.world_from_camera[:, :3, 1].mean(0)
        up = upright / np.linalg.norm(upright) if ground is None else ground[0]
        centers = places(things, static, scene.intrinsics, scene.world_from_camera, up)
        forward, sure = headings(centers, timestamps, scene.world_from_camera[:, :3, 3])
        points, confidence = _point_maps(scene, things, grid_size(*frames.shape[1:3], self._parameters.points_side))
        figures = {
            "poses": "estimated",
            "error_model": ERROR_MODEL,
            "up_world": None if ground is None else [round(float(x), 5) for x in ground[0]],
            "mapper": cameras.mapper,
            "static_points": len(cameras.points),
            "registered": round(cameras.registered, 3),
            "median_angle_deg": round(float(np.median(cameras.angles)), 2),
            "median_error_px": round(float(np.median(cameras.errors)), 3),
            "focal_from_picture": round(cameras.focal_weight, 2),
        }
        return rounded(
            replace(
                unknown(timestamps, provenance=self._provenance(frames, "3d", "", **figures), **_described(things)),
                intrinsics=np.tile(scene.intrinsics, (len(frames), 1, 1)),
                world_from_camera=scene.world_from_camera,
                points=points,
                confidence=confidence,
                centers_world=centers,
                forward_world=forward,
                forward_confidence=sure,
            )
        )

    def _most_seen(self, things: np.ndarray) -> np.ndarray:
        """(N, T, H, W) masks, those seen in most frames first, at most ``max_objects``."""
        seen = things.any((-1, -2)).sum(1)
        return things[np.argsort(-seen, kind="stable")[: self._parameters.max_objects]]

    def _provenance(self, frames: np.ndarray, status: str, reason: str, **more: Any) -> dict[str, Any]:
        known = {"frame_size": list(frames.shape[1:3])} | more
        return provenance("classical", self.identity(), self._parameters, status, reason, **known)


def _things_in_pictures(
    frames: np.ndarray, grey: np.ndarray, found: Correspondences, options: ClassicalParameters
) -> np.ndarray:
    """(N, T, H, W) masks of what moves before a static camera, or against the homography of most of the picture."""
    if len(frames) < options.min_frames:
        return np.zeros((0, *frames.shape[:3]), bool)
    if background_motion(found, LEAST_SHARED) < options.static_pixels:
        return tracked(different_from_background(frames), measure_flows(grey), options.min_object_share)
    flows = measure_flows(grey, partial(homography_flow, found))
    return tracked(unexplained_by_homographies(flows, grey, found), flows, options.min_object_share, RIM)


def _described(masks: np.ndarray) -> dict[str, Any]:
    """Names, classes, masks and boxes of (N, T, H, W) masks."""
    boxes = np.array([[box_of(mask) for mask in row] for row in masks]).reshape(len(masks), masks.shape[1], 4)
    return {
        "names": [f"{THING} {i + 1}" for i in range(len(masks))],
        "classes": [THING] * len(masks),
        "masks": [[encode_mask(mask) for mask in row] for row in masks],
        "boxes": boxes,
    }


def _point_maps(scene: Reconstruction, things: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(T, h, w, 3) points in the camera frame and (T, h, w) confidence, none where a moving thing hides the scene."""
    height, width = things.shape[2:]
    columns, rows = cell_pixels(width, grid[1]), cell_pixels(height, grid[0])
    pixels = np.stack([*np.meshgrid(columns, rows), np.ones(grid)], -1)
    rays = pixels @ np.linalg.inv(scene.intrinsics).T
    depth, confidence = (sample_cells(maps, *grid) for maps in (scene.depth, scene.confidence))
    confidence = np.where(sample_cells(things.any(0), *grid), 0, confidence).round(3)
    return np.where(confidence > 0, depth, 0)[..., None] * rays, confidence
