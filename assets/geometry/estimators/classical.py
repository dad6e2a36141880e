"""Real videos without learned weights: structure from motion where the clip supports it, a reason where it does not.

Accepted clips get poses, coarse depth between triangulated corners, and things that move against the model, placed
where they touch the reconstructed ground. Refused clips get a 2D record: regions that move, and why there is no third
dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from assets.geometry import prior
from assets.geometry.estimators import Clip, EstimateError, provenance
from assets.geometry.estimators.corners import Corners, follow, sharpness, shot_cuts, still_pixels, working_frames
from assets.geometry.estimators.moving import against_background, clustered, homography_outliers
from assets.geometry.estimators.structure import Structure, reconstruct
from assets.geometry.frames_of_reference import inverse, transform
from assets.geometry.grid import cell_pixels, grid_size, sample_cells
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import SceneRecord, box_of, encode_mask, rounded, unknown

# Expected noise of accepted clips. Three things of two rendered clips, placed by their contact with the ground, were
# off by 14 to 20 % of their distance (scale taken from the truth). Camera paths were off by 0.2 to 1.1 % of their
# extent there and by 1.9 to 4.4 % on four accepted segments of 7-Scenes, where turns were off by up to 7 degrees
# (focal length 5 % short).
ERROR_MODEL = {"center": 0.2, "heading_deg": None, "position_floor": 0.2}
# A point map is trusted within this share of the picture's width of a triangulated corner.
REACH = 0.08
# The ground holds this share of the static points, is this thin (share of the median depth), and is this level.
GROUND_SHARE, GROUND_THICKNESS, GROUND_COSINE = 0.15, 0.02, 0.8
# Nothing is placed on the ground farther than this many median depths: the ray grazes it there.
GROUND_DEPTHS = 3.0
THING = "moving thing"


class Classical:
    """Structure from motion and background subtraction with OpenCV; deterministic, one thread."""

    def __init__(self, parameters: GeometryParameters) -> None:
        self._parameters = parameters

    def supports(self, row: Mapping[str, Any], companions: Mapping[str, Any]) -> bool:
        """Any video."""
        return row["kind"] == "video"

    def identity(self) -> str:
        """Name and version, with that of OpenCV, whose solvers decide the figures."""
        return f"classical/1 opencv/{cv2.__version__}"

    def estimate(self, clip: Clip) -> SceneRecord:
        """A 3D record where the clip supports one, else a 2D record with the reason.

        Raises:
            EstimateError: the clip has no readable frames.
        """
        from threadpoolctl import threadpool_limits

        frames = clip.sampled["frames"]
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            with threadpool_limits(1):
                record = self._scene(frames, clip.sampled["timestamps"])
                return prior.with_prior(record, frames, self._parameters.prior_side)
        finally:
            cv2.setNumThreads(threads)

    def _scene(self, frames: np.ndarray, timestamps: np.ndarray) -> SceneRecord:
        options = self._parameters.classical
        if len(frames) < options.min_frames:
            return self._flat(
                frames, timestamps, _no_things(frames), f"too few frames: {len(frames)}, {options.min_frames} asked for"
            )
        grey = working_frames(frames, options.work_side)
        corners = follow(grey, options.corners)
        size = (grey.shape[2], grey.shape[1])
        cuts = shot_cuts(frames, corners.survival, options.cut_survival)
        if len(cuts):
            places = ", ".join(f"{timestamps[k]:.1f} s" for k in cuts[:5])
            return self._flat(
                frames,
                timestamps,
                _no_things(frames),
                f"{len(cuts) + 1} shots, or a camera too fast for the sampling: the picture jumps after {places}",
            )
        if sharpness(grey) < options.min_sharpness:
            return self._flat(
                frames,
                timestamps,
                _no_things(frames),
                f"blurred: sharpness {sharpness(grey):.1f}, {options.min_sharpness:g} asked for",
            )
        if (still := still_pixels(corners)) < options.static_pixels:
            things = against_background(frames, options)
            return self._flat(
                frames, timestamps, things, f"static camera: the background moves {still:.2f} px, no parallax"
            )
        try:
            structure = reconstruct(corners, size, options)
        except EstimateError as error:
            outliers = homography_outliers(corners, options.moving_pixels)
            outliers = np.where(outliers, np.inf, 0.0)
            things = clustered(corners, outliers, size, frames.shape[1:3], options)
            return self._flat(frames, timestamps, things, str(error))
        return self._deep(frames, timestamps, corners, size, structure)

    def _flat(self, frames: np.ndarray, timestamps: np.ndarray, things: np.ndarray, reason: str) -> SceneRecord:
        """A record without a third dimension."""
        known = self._things(things)
        return unknown(timestamps, provenance=self._provenance(frames, "2d", reason), **known)

    def _deep(
        self, frames: np.ndarray, timestamps: np.ndarray, corners: Corners, size: tuple[int, int], structure: Structure
    ) -> SceneRecord:
        """A record with poses, points, and the places of moving things on the ground."""
        options = self._parameters.classical
        structure = _scaled(structure, options.inlier_pixels)
        unexplained = np.minimum(structure.errors, structure.far_errors)
        things = clustered(corners, unexplained, size, frames.shape[1:3], options)
        known = self._things(things)
        poses = inverse(structure.camera_from_world)
        to_frame = np.array([[frames.shape[2] / size[0], 0, 0], [0, frames.shape[1] / size[1], 0], [0, 0, 1]])
        to_frame[:2, 2] = (to_frame[[0, 1], [0, 1]] - 1) / 2
        intrinsics = to_frame @ structure.intrinsics
        ground = _ground(structure, poses, options.inlier_pixels)
        centers = np.full((len(known["names"]), len(frames), 3), np.nan)
        if ground is not None:
            centers = _on_ground(known["boxes"], intrinsics, poses, ground, frames.shape[1:3])
        points, confidence = _point_maps(
            corners, structure, size, grid_size(*frames.shape[1:3], self._parameters.points_side), options.inlier_pixels
        )
        confidence = _without_things(confidence, things[: len(known["names"])])
        static = structure.errors < options.inlier_pixels
        figures = {
            "poses": "estimated",
            "error_model": ERROR_MODEL | {"center": max(ERROR_MODEL["center"], round(structure.disagreement, 3))},
            "up_world": None if ground is None else [round(float(x), 5) for x in ground[0]],
            "static_points": int(static.sum()),
            "median_angle_deg": round(float(np.median(structure.angles[static])), 2),
            "median_error_px": round(float(np.median(structure.errors[static])), 3),
        }
        return rounded(
            replace(
                unknown(timestamps, provenance=self._provenance(frames, "3d", "", **figures), **known),
                intrinsics=np.tile(intrinsics, (len(frames), 1, 1)),
                world_from_camera=poses,
                points=np.where(confidence[..., None] > 0, points, 0.0),
                confidence=confidence,
                centers_world=centers,
            )
        )

    def _provenance(self, frames: np.ndarray, status: str, reason: str, **more: Any) -> dict[str, Any]:
        known = {"frame_size": list(frames.shape[1:3])} | more
        return provenance("classical", self.identity(), self._parameters, status, reason, **known)

    def _things(self, masks: np.ndarray) -> dict[str, Any]:
        """Names, classes, masks and boxes of (N, T, H, W) masks, the most seen first, at most max_objects."""
        counts = masks.any((-1, -2)).sum(1)
        masks = masks[np.argsort(-counts, kind="stable")[: self._parameters.max_objects]]
        boxes = np.array([[box_of(mask) for mask in row] for row in masks]).reshape(len(masks), masks.shape[1], 4)
        return {
            "names": [f"{THING} {i + 1}" for i in range(len(masks))],
            "classes": [THING] * len(masks),
            "masks": [[encode_mask(mask) for mask in row] for row in masks],
            "boxes": boxes,
        }


def _no_things(frames: np.ndarray) -> np.ndarray:
    return np.zeros((0, *frames.shape[:3]), bool)


def _scaled(structure: Structure, inlier: float) -> Structure:
    """The structure scaled so that the first frame's static points have a median depth of ``prior.LENGTH_UNIT``."""
    depth = np.median(structure.points[structure.errors < inlier, 2])
    scale = prior.LENGTH_UNIT / depth
    cameras = structure.camera_from_world.copy()
    cameras[:, :3, 3] *= scale
    return replace(structure, camera_from_world=cameras, points=structure.points * scale)


def _ground(structure: Structure, poses: np.ndarray, inlier: float) -> tuple[np.ndarray, float] | None:
    """Unit normal (up) and offset d of the plane ``n . x = d`` that the cameras stand above, or None.

    Searched exhaustively over seeded triples of static points in the lower half of what the first camera sees.
    """
    points = structure.points[(structure.errors < inlier) & (structure.angles > 1.0)]
    low = points[points[:, 1] > np.median(points[:, 1])] if len(points) else points
    if len(low) < 20:
        return None
    draws = np.random.default_rng(0).integers(0, len(low), (500, 3))
    a, b, c = low[draws[:, 0]], low[draws[:, 1]], low[draws[:, 2]]
    normals = np.cross(b - a, c - a)
    norms = np.linalg.norm(normals, axis=1)
    normals = normals[norms > 1e-9] / norms[norms > 1e-9, None]
    up = -poses[:, :3, 1].mean(0)
    normals *= np.sign(normals @ up)[:, None]
    offsets = (normals * a[norms > 1e-9]).sum(1)
    below = (poses[:, :3, 3] @ normals.T - offsets > 0).all(0) & (normals @ up > GROUND_COSINE)
    thickness = GROUND_THICKNESS * prior.LENGTH_UNIT
    support = (np.abs(points @ normals.T - offsets) < thickness).sum(0) * below
    # A ground has nothing much below it, unlike a table top or a hedge.
    buried = (points @ normals.T - offsets < -2 * thickness).mean(0)
    support = np.where(buried < 0.1, support, 0)
    if not len(support) or support.max() < max(20, GROUND_SHARE * len(points)):
        return None
    best = int(support.argmax())
    inliers = points[np.abs(points @ normals[best] - offsets[best]) < thickness]
    middle = inliers.mean(0)
    normal = np.linalg.svd(inliers - middle, full_matrices=False)[2][2]
    normal *= np.sign(normal @ up)
    return normal, float(normal @ middle)


def _on_ground(
    boxes: np.ndarray,
    intrinsics: np.ndarray,
    poses: np.ndarray,
    ground: tuple[np.ndarray, float],
    size: tuple[int, int],
) -> np.ndarray:
    """(N, T, 3) centres in the world of things whose (N, T, 4) boxes stand on the ground; NaN where that cannot be
    told.

    The middle of the box's lower edge touches the ground, which gives the depth; the centre is the box's middle there.
    """
    normal, offset = ground
    middle_x = (boxes[..., 0] + boxes[..., 2]) / 2
    middle_y = (boxes[..., 1] + boxes[..., 3]) / 2
    inverse_k = np.linalg.inv(intrinsics)
    foot = np.stack([middle_x, boxes[..., 3], np.ones_like(middle_x)], -1) @ inverse_k.T
    middle = np.stack([middle_x, middle_y, np.ones_like(middle_x)], -1) @ inverse_k.T
    turned = np.einsum("tij,ntj->nti", poses[:, :3, :3], foot)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = (offset - poses[:, :3, 3] @ normal) / (turned @ normal)
        inside = (boxes[..., 3] < size[0] - 2) & (depth > 0) & (depth < GROUND_DEPTHS * prior.LENGTH_UNIT)
    local = np.where(inside, depth, np.nan)[..., None] * middle
    return transform(poses, local)


def _point_maps(
    corners: Corners, structure: Structure, size: tuple[int, int], grid: tuple[int, int], inlier: float
) -> tuple[np.ndarray, np.ndarray]:
    """(T, h, w, 3) points in the camera frame and (T, h, w) confidence, interpolated between static corners.

    Inverse depth is linear over each triangle of corners, as on a plane; the confidence falls to zero with the
    distance to the nearest corner and outside their hull.
    """
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import QhullError, cKDTree

    columns = cell_pixels(size[0], grid[1])
    rows = cell_pixels(size[1], grid[0])
    cells = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2).astype(float)
    rays = np.c_[cells, np.ones(len(cells))] @ np.linalg.inv(structure.intrinsics).T
    good = (structure.errors < inlier) & (structure.angles > 0.7)
    points = np.zeros((corners.xy.shape[1], *grid, 3))
    confidence = np.zeros((corners.xy.shape[1], *grid))
    for t, camera in enumerate(structure.camera_from_world):
        seen = good & corners.seen[:, t]
        if seen.sum() < 4:
            continue
        depth = transform(camera, structure.points[seen])[:, 2]
        pixels = corners.xy[seen, t]
        try:
            nearness = LinearNDInterpolator(pixels, 1.0 / depth)(cells)
        except QhullError:
            continue
        away = cKDTree(pixels).query(cells)[0] / (REACH * size[0])
        inside = np.isfinite(nearness) & (nearness > 0)
        depth_map = np.where(inside, 1.0 / np.where(inside, nearness, 1.0), 0.0)
        points[t] = (depth_map[:, None] * rays).reshape(*grid, 3)
        confidence[t] = np.where(inside, np.clip(1.0 - away, 0.0, 1.0), 0.0).reshape(grid)
    return points, confidence.round(3)


def _without_things(confidence: np.ndarray, things: np.ndarray) -> np.ndarray:
    """Confidence that is zero where a moving thing hides the static scene that was reconstructed."""
    if not len(things):
        return confidence
    return np.where(sample_cells(things.any(0), *confidence.shape[1:]), 0.0, confidence)
