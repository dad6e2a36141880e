"""Exact truth of the sample world, from the sidecar that was rendered with each clip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from assets.geometry import prior
from assets.geometry.estimators import Clip, EstimateError, provenance
from assets.geometry.frames_of_reference import first_camera_world, rotate, transform
from assets.geometry.grid import cell_pixels, grid_size, sample_cells
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import SceneRecord, box_of, encode_mask, rounded

# Frames and sidecar describe the same instant if their clocks agree to this, s (video time bases are coarser than
# truth).
CLOCK_TOLERANCE = 0.02
# Depth is stored as float16, whose relative rounding error is at most 2^-11; centres are rounded to 1e-4 m.
ERROR_MODEL = {"center": 0.0005, "heading_deg": 0.05, "position_floor": 0.0001}
SIDECAR = (
    "timestamps",
    "intrinsics",
    "world_from_camera",
    "depth",
    "instances",
    "centers_world",
    "forward_world",
)


class Rendered:
    """Reads the ``truth`` companion of a rendered clip; metric, and exact up to rounding."""

    def __init__(self, parameters: GeometryParameters) -> None:
        self._parameters = parameters

    def supports(self, row: Mapping[str, Any], companions: Mapping[str, Any]) -> bool:
        """Videos that carry a truth sidecar."""
        return row["kind"] == "video" and "truth" in companions

    def identity(self) -> str:
        """Name and version."""
        return "rendered/1"

    def estimate(self, clip: Clip) -> SceneRecord:
        """The truth at the sampled frames.

        Raises:
            EstimateError: the sidecar is damaged or belongs to another video.
        """
        sampled = clip.sampled
        frames = sampled["frames"]
        truth, text = _read(clip, sampled["indices"], sampled["timestamps"])
        size = frames.shape[1:3]
        poses, new_from_old = first_camera_world(truth["world_from_camera"])
        seen, masks, boxes = _objects(truth["instances"], size, len(text["names"]), self._parameters.min_pixels)
        centers = np.where(seen[..., None], transform(new_from_old, truth["centers_world"]), np.nan)
        agents = np.array(text["is_agent"], bool).reshape(-1)
        facing = seen & agents[:, None]
        forward = np.where(facing[..., None], rotate(new_from_old, truth["forward_world"]), np.nan)
        points, valid = _points(truth["depth"], truth["intrinsics"], size, self._parameters.points_side)
        record = SceneRecord(
            timestamps=sampled["timestamps"],
            intrinsics=np.tile(_scaled(truth["intrinsics"], truth["depth"].shape[1:], size), (len(frames), 1, 1)),
            world_from_camera=poses,
            points=points,
            confidence=valid,
            object_ids=np.arange(len(text["names"])),
            names=list(text["names"]),
            classes=list(text["classes"]),
            is_agent=agents,
            masks=masks,
            boxes=boxes,
            centers_world=centers,
            forward_world=forward,
            forward_confidence=facing,
            prior_features=np.zeros((0, 0, 0, prior.CHANNELS)),
            prior_times=np.zeros(0),
            provenance=provenance(
                "rendered",
                self.identity(),
                self._parameters,
                "3d",
                error_model=ERROR_MODEL,
                metric=True,
                frame_size=list(size),
                poses="truth",
                up_world=[round(float(x), 5) + 0.0 for x in rotate(new_from_old, np.array([0.0, 0.0, 1.0]))],
            ),
        )
        return prior.with_prior(rounded(record), frames, self._parameters.prior_side)


def _read(clip: Clip, indices: np.ndarray, timestamps: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Sidecar tensors at the sampled frames, and its names, classes and is_agent."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(clip.companions["truth"]), framework="np") as file:
            text = json.loads(file.metadata()["record"])
            truth = {name: file.get_tensor(name) for name in SIDECAR}
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise EstimateError("truth sidecar: damaged or incomplete, render the shard again") from error
    if indices.max() >= len(truth["timestamps"]):
        raise EstimateError(f"truth sidecar: {len(truth['timestamps'])} frames, but frame {indices.max()} was sampled")
    for name in ("timestamps", "world_from_camera", "depth", "instances"):
        truth[name] = truth[name][indices]
    for name in ("centers_world", "forward_world"):
        truth[name] = truth[name][:, indices]
    drift = np.abs(truth["timestamps"] - timestamps).max()
    if drift > CLOCK_TOLERANCE:
        raise EstimateError(f"truth sidecar: its clock is {drift:.3f} s off the video's, render the shard again")
    return truth, text


def _scaled(intrinsics: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """(3, 3) intrinsics of an image resized from ``source`` to ``target`` (H, W), pixel centres at whole numbers."""
    scale_x, scale_y = target[1] / source[1], target[0] / source[0]
    resize = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])
    return resize @ np.asarray(intrinsics, float)


def _objects(instances: np.ndarray, size: tuple[int, int], count: int, min_pixels: int):
    """Visibility (N, T), RLE masks (N, T) and boxes (N, T, 4) at the frame size from (T, H, W) instance ids."""
    ids = sample_cells(instances, *size)
    masks = ids[None] == np.arange(1, count + 1, dtype=ids.dtype)[:, None, None, None]
    seen = masks.sum((-1, -2)) >= min_pixels
    masks &= seen[..., None, None]
    boxes = np.array([[box_of(mask) for mask in row] for row in masks]).reshape(count, len(ids), 4)
    return seen, [[encode_mask(mask) for mask in row] for row in masks], boxes


def _points(depth: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int], side: int):
    """Points (T, h, w, 3) in the camera frame and validity (T, h, w) from (T, H, W) z-depth.

    A cell takes the frame pixel under its centre, which takes the truth pixel under its own: depth is picked, never
    mixed across an edge, and lifted through the ray of the truth pixel it came from.
    """
    height, width = grid_size(*size, side)
    rows = cell_pixels(depth.shape[1], size[0])[cell_pixels(size[0], height)]
    columns = cell_pixels(depth.shape[2], size[1])[cell_pixels(size[1], width)]
    z = depth[:, rows[:, None], columns].astype(float)
    valid = np.isfinite(z) & (z > 0)
    grid = np.stack(np.broadcast_arrays(columns[None, :], rows[:, None], 1.0), -1)
    rays = grid @ np.linalg.inv(np.asarray(intrinsics, float)).T
    return np.where(valid, z, 0.0)[..., None] * rays, valid
