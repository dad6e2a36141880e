"""Real videos with published networks: π³ for cameras and points, Grounding DINO and SAM 2 for things and their tracks,
Orient Anything for the way agents face (paper section 1.2).

This module turns what the networks say into a scene record; the networks themselves are in ``models``, which is
imported when the first clip is estimated. They are loaded once per process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.geometry import prior
from assets.geometry.classes import Classes, classes_of, read_caption
from assets.geometry.estimators import Clip, EstimateError, provenance
from assets.geometry.estimators.annotated import numbered
from assets.geometry.estimators.networks import (
    fingerprint,
    libraries,
    load_networks,
    machine_answers_for_failures,
    one_thread,
    weights_hashes,
)
from assets.geometry.frames_of_reference import first_camera_world, rigid, rotate, transform
from assets.geometry.grid import cell_pixels, grid_size
from assets.geometry.parameters import FoundationParameters, GeometryParameters
from assets.geometry.record import SceneRecord, box_of, decode_mask, encode_mask, rounded, unknown
from assets.text_model import open_text_model

if TYPE_CHECKING:
    import torch

    from models.grounded_sam import Track
    from models.orient_anything import OrientAnything
    from models.pi3 import Pi3

# Points are stored as float16, whose largest number is 65504.
FARTHEST = 6e4


@dataclass(frozen=True)
class Seen:
    """Cameras and points of T frames as π³ sees them, in its scale and world.

    Attributes:
        points: (T, h, w, 3) in the camera frame.
        confidence: (T, h, w), 0..1; zero where a point is not to be used.
        world_from_camera: (T, 4, 4).
        tokens: (T, h / 14, w / 14, C) on the network's device; None where the prior is made of cells.
    """

    points: np.ndarray
    confidence: np.ndarray
    world_from_camera: np.ndarray
    tokens: torch.Tensor | None


class Foundation:
    """Published networks; a record in relative scale for any clip, and no word on how good it is but what is known."""

    def __init__(self, parameters: GeometryParameters) -> None:
        self._parameters = parameters
        self._options = parameters.foundation

    def supports(self, row: Mapping[str, Any], companions: Mapping[str, Any]) -> bool:
        """Any video, where weights are given."""
        return row["kind"] == "video" and self._options.given

    def identity(self) -> str:
        """Name and version, with the libraries that run the networks and a hash over all weights.

        Raises:
            SetupError: weights are missing.
        """
        return f"foundation/1 {libraries()} weights/{fingerprint(self._options)[:16]}"

    def estimate(self, clip: Clip) -> SceneRecord:
        """What the networks see in the clip's sampled frames.

        Raises:
            EstimateError: the clip has no readable frames, or π³ makes no sense of them.
            SetupError: weights, card or endpoint fail; no clip's fault.
        """
        frames, timestamps = clip.sampled["frames"], clip.sampled["timestamps"]
        with machine_answers_for_failures(), one_thread():
            classes = self._classes(clip)
            networks = load_networks(self._options, self._parameters.max_objects)
            seen = reconstruct(networks.reconstruction, frames, self._options)
            tracks = networks.detection.track(frames, classes.all)
            record = self._record(frames, timestamps, _in_unit_scale(seen), tracks, classes)
            record = with_headings(record, frames, networks.orientation)
            return rounded(self._with_prior(record, frames, seen.tokens))

    def _classes(self, clip: Clip) -> Classes:
        """What to look for, from the clip's caption where it has one."""
        caption = read_caption(clip.companions["caption"]) if "caption" in clip.companions else ""
        options = self._options
        model = open_text_model(options.endpoint) if options.endpoint.model else None
        return classes_of(caption, options.agents, options.objects, model, options.max_classes)

    def _record(
        self, frames: np.ndarray, timestamps: np.ndarray, seen: Seen, tracks: Sequence[Track], classes: Classes
    ) -> SceneRecord:
        """Everything but headings and prior features."""
        size = frames.shape[1:3]
        tracks, masks = _most_seen(tracks, len(frames), size, self._parameters)
        names = [track.class_name for track in tracks]
        boxes = np.array([[box_of(mask) for mask in row] for row in masks]).reshape(len(tracks), len(frames), 4)
        points, confidence = _on_grid(seen, grid_size(*size, self._parameters.points_side), size)
        return unknown(
            timestamps,
            numbered(names),
            names,
            intrinsics=intrinsics_of(seen.points, seen.confidence > 0, size),
            world_from_camera=seen.world_from_camera,
            points=points,
            confidence=confidence,
            is_agent=np.array([name in classes.agents for name in names], bool),
            masks=[[encode_mask(mask) for mask in row] for row in masks],
            boxes=boxes,
            centers_world=transform(seen.world_from_camera, centers_of(masks, seen, self._parameters.min_pixels)),
            provenance=self._provenance(size, tracks, classes),
        )

    def _provenance(self, size: tuple[int, int], tracks: Sequence[Track], classes: Classes) -> dict[str, Any]:
        options = self._options
        return provenance(
            "foundation",
            self.identity(),
            self._parameters,
            "3d",
            frame_size=list(size),
            poses="estimated",
            error_model={
                "center": options.center_error,
                "heading_deg": options.heading_error,
                "position_floor": 0.0,
                "measured": False,
            },
            weights=weights_hashes(options),
            looked_for={"agents": list(classes.agents), "objects": list(classes.objects)},
            classes_from=classes.source,
            caption_unused=classes.reason,
            scores=[round(float(track.score), 2) for track in tracks],
            prior={"kind": options.prior, "merge": "" if options.prior == "cells" else options.prior_merge},
        )

    def _with_prior(self, record: SceneRecord, frames: np.ndarray, tokens: torch.Tensor | None) -> SceneRecord:
        side = self._parameters.prior_side
        if tokens is None:
            return prior.with_prior(rounded(record), frames, side)
        merged = prior.stacked(tokens) if self._options.prior_merge == "stack" else prior.pooled(tokens, side)
        return replace(record, prior_features=merged, prior_times=prior.slot_times(record.timestamps))


def reconstruct(network: Pi3, frames: np.ndarray, options: FoundationParameters) -> Seen:
    """π³ on all (T, H, W, 3) u8 frames at once.

    Raises:
        EstimateError: its cameras are no numbers, or it trusts no point.
    """
    import torch

    from models.pi3 import as_images, valid_points

    with torch.inference_mode():
        found = network(as_images(frames, options.max_pixels).to(options.device))
        usable = valid_points(found.confidence, found.local_points, options.min_confidence, options.edge_rtol)
        usable &= found.local_points[..., 2] > 0
        confidence = torch.where(usable, found.confidence.sigmoid(), 0.0)[0].float().cpu().numpy()
        poses = found.world_from_camera[0].double().cpu().numpy()
        points = torch.where(usable[..., None], found.local_points, 0.0)[0].float().cpu().numpy()
        tokens = {"encoder": found.encoder_tokens, "decoder": found.decoder_tokens}.get(options.prior)
    if not np.isfinite(poses).all():
        raise EstimateError("π³ gives cameras that are no numbers")
    if not confidence.any():
        raise EstimateError(f"π³ trusts no point: none is above {options.min_confidence:g} and off a depth edge")
    return Seen(points, confidence, poses, None if tokens is None else tokens[0])


def _in_unit_scale(seen: Seen) -> Seen:
    """The same in the first camera's world, scaled to a median depth of ``prior.LENGTH_UNIT`` in the first frame.

    Where the first frame has no point, the first that has one takes its place.
    """
    first = int(np.argmax((seen.confidence > 0).any((1, 2))))
    depth = np.median(seen.points[first, ..., 2][seen.confidence[first] > 0].astype(float))
    scale = prior.LENGTH_UNIT / depth
    poses, _ = first_camera_world(
        rigid(_orthonormal(seen.world_from_camera[:, :3, :3]), seen.world_from_camera[:, :3, 3])
    )
    poses[:, :3, 3] *= scale
    points = seen.points * np.float32(scale)
    near = np.abs(points).max(-1) < FARTHEST
    return replace(
        seen,
        points=np.where(near[..., None], points, 0.0),
        confidence=np.where(near, seen.confidence, 0.0),
        world_from_camera=poses,
    )


def _orthonormal(matrices: np.ndarray) -> np.ndarray:
    """The rotations nearest to (T, 3, 3) matrices that are rotations up to single precision."""
    u, _, vt = np.linalg.svd(matrices)
    u[..., -1] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt


def intrinsics_of(points: np.ndarray, usable: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, 3, 3) pinhole intrinsics in pixels of frames of (H, W) from point maps that cover them.

    Principal point in the middle, square pixels; the focal length f minimises the squares of (u - c) - f (x, y) / z
    over the usable points. NaN where no point, or no positive f, is left.

    Args:
        points: (T, h, w, 3) in the camera frame.
        usable: (T, h, w) bool.
        size: (H, W).
    """
    height, width = size
    frames, rows, columns = usable.shape
    usable = usable & (points[..., 2] > 0)
    z = np.where(usable, points[..., 2], 1.0).astype(float)
    slopes = np.where(usable[..., None], points[..., :2] / z[..., None], 0.0).reshape(frames, -1, 2)
    x = (np.arange(columns) + 0.5) * width / columns - width / 2
    y = (np.arange(rows) + 0.5) * height / rows - height / 2
    away = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        focal = np.einsum("tpc,pc->t", slopes, away) / np.einsum("tpc,tpc->t", slopes, slopes)
    focal = np.where(focal > 0, focal, np.nan)
    intrinsics = np.zeros((frames, 3, 3))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = (width - 1) / 2, (height - 1) / 2, 1.0
    return np.where(np.isfinite(focal)[:, None, None], intrinsics, np.nan)


def _on_grid(seen: Seen, grid: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Points (T, h', w', 3) and confidence (T, h', w') under the centres of a grid's cells on frames of (H, W)."""
    rows, columns = (
        cell_pixels(seen.confidence.shape[1 + axis], size[axis])[cell_pixels(size[axis], grid[axis])] for axis in (0, 1)
    )
    return seen.points[:, rows[:, None], columns], seen.confidence[:, rows[:, None], columns]


def _most_seen(
    tracks: Sequence[Track], frames: int, size: tuple[int, int], parameters: GeometryParameters
) -> tuple[list[Track], np.ndarray]:
    """The tracks seen in most frames and their (N, T, H, W) masks, empty where fewer than ``min_pixels`` are left."""
    masks = np.array([track.masks for track in tracks], bool).reshape(len(tracks), frames, *size)
    masks &= (masks.sum((-1, -2)) >= parameters.min_pixels)[..., None, None]
    counts = masks.any((-1, -2)).sum(1)
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]][: parameters.max_objects]
    return [tracks[i] for i in order], masks[order]


def centers_of(masks: np.ndarray, seen: Seen, min_pixels: int) -> np.ndarray:
    """(N, T, 3) mean of the usable points under each mask, in each frame's camera; NaN where too few are left.

    Every pixel of a mask counts once, whatever the size of the point maps.

    Args:
        masks: (N, T, H, W) bool.
        seen: point maps of the T frames.
        min_pixels: fewer pixels with a usable point are too few.
    """
    count, frames, height, width = masks.shape
    rows, columns = cell_pixels(seen.points.shape[1], height), cell_pixels(seen.points.shape[2], width)
    centers = np.full((count, frames, 3), np.nan)
    for t in range(frames):
        usable = (seen.confidence[t] > 0)[rows[:, None], columns].reshape(-1)
        points = seen.points[t][rows[:, None], columns].reshape(-1, 3)[usable].astype(float)
        inside = masks[:, t].reshape(count, height * width)[:, usable]
        pixels = inside.sum(1)
        enough = pixels >= min_pixels
        centers[enough, t] = inside[enough].astype(float) @ points / pixels[enough, None]
    return centers


def with_headings(record: SceneRecord, frames: np.ndarray, network: OrientAnything) -> SceneRecord:
    """The record with the way its agents face, where they are seen.

    A crop is centred on its thing, so the network answers relative to the ray towards the thing, not to the optical
    axis: what it says is turned by the angle between the two.

    Args:
        record: with boxes, masks and intrinsics.
        frames: (T, H, W, 3) u8.
        network: Orient Anything.
    """
    from models.orient_anything import forward_in_camera

    places = np.argwhere(np.isfinite(record.boxes).all(-1) & record.is_agent[:, None])
    if not len(places):
        return record
    windows = [
        tuple(slice(*map(int, edge)) for edge in (box[1::2], box[0::2])) for box in record.boxes[tuple(places.T)]
    ]
    crops = [frames[t][window] for (_, t), window in zip(places, windows, strict=True)]
    masks = [decode_mask(record.masks[n][t])[window] for (n, t), window in zip(places, windows, strict=True)]
    answer = network.orient(crops, masks)
    objects, times = places.T
    along_ray = forward_in_camera(answer.azimuth_deg, answer.polar_deg, answer.rotation_deg)
    towards = _rays(record.boxes[objects, times], record.intrinsics[times])
    in_camera = (_turn_from_axis(towards) @ along_ray[..., None])[..., 0]
    forward, confidence = record.forward_world.copy(), record.forward_confidence.copy()
    forward[objects, times] = rotate(record.world_from_camera[times], in_camera)
    confidence[objects, times] = np.where(np.isfinite(in_camera).all(-1), np.nan_to_num(answer.confidence), 0.0)
    return replace(record, forward_world=forward, forward_confidence=confidence)


def _rays(boxes: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(K, 3) unit vectors from the camera to the middle of each (K, 4) box; NaN where the (K, 3, 3) intrinsics are."""
    middle = np.stack([boxes[:, 0] + boxes[:, 2] - 1, boxes[:, 1] + boxes[:, 3] - 1], -1) / 2.0
    slopes = (middle - intrinsics[:, :2, 2]) / intrinsics[:, [0, 1], [0, 1]]
    rays = np.concatenate([slopes, np.ones((len(boxes), 1))], -1)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def _turn_from_axis(directions: np.ndarray) -> np.ndarray:
    """(K, 3, 3) shortest rotations that take the optical axis to (K, 3) unit vectors in front of the camera.

    Rodrigues' formula: I + [v] + [v]² / (1 + c) with v the cross product of the two and c their cosine.
    """
    x, y, z = directions.T
    zero = np.zeros_like(x)
    cross = np.stack([np.stack(row, -1) for row in ([zero, zero, x], [zero, zero, y], [-x, -y, zero])], -2)
    return np.eye(3) + cross + cross @ cross / (1 + z)[:, None, None]
