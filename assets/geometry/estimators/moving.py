"""Regions that move in a way the camera does not explain, as tracks of masks."""

from __future__ import annotations

import cv2
import numpy as np

from assets.geometry.estimators.corners import Corners
from assets.geometry.parameters import ClassicalParameters

# Difference to the background, of 255, that shows through noise and compression.
DIFFERENCE = 28
LINK_IOU = 0.15
MIN_FRAMES = 3
# Before a moving camera a thing must be followed for half of the clip. In a static room (7-Scenes) false movers
# appeared in 4 of 11 accepted segments and lasted at most 0.39 of one; short-lived true movers are lost with them.
MIN_SHARE_OF_CLIP = 0.5
MIN_CORNERS = 6
# A region holds at least this share of corners that move, and is at least this compact (a disc is 1): corners that
# slide along the edge of something near pass for movers one by one, but lie among still ones, in slivers.
MOVING_SHARE = 0.7
COMPACTNESS = 0.35
# The median corner of a thing moves this many times as far as a corner must to count.
CLEARLY = 2.0
# Corners of one thing lie within this share of the picture's width of each other, and move alike.
NEIGHBOURHOOD = 0.06


def against_background(frames: np.ndarray, parameters: ClassicalParameters) -> np.ndarray:
    """Masks of what moves before a static camera: (N, T, H, W) bool from (T, H, W, 3) u8 frames.

    The background is the median over time; regions of neighbouring frames that overlap are one thing.
    """
    background = np.median(frames[:: max(1, len(frames) // 32)], axis=0).astype(np.int16)
    regions = [_regions(frame, background, parameters.min_object_share) for frame in frames]
    tracks: list[dict[int, np.ndarray]] = []
    open_tracks: list[int] = []
    for t, masks in enumerate(regions):
        open_tracks = _link(tracks, open_tracks, masks, t)
    kept = [track for track in tracks if len(track) >= MIN_FRAMES]
    stacked = np.zeros((len(kept), *frames.shape[:3]), bool)
    for i, track in enumerate(kept):
        for t, mask in track.items():
            stacked[i, t] = mask
    return stacked


def _regions(frame: np.ndarray, background: np.ndarray, min_share: float) -> list[np.ndarray]:
    """(H, W) masks of the connected regions of a frame that differ from the background, largest first."""
    differs = (np.abs(frame.astype(np.int16) - background).max(-1) > DIFFERENCE).astype(np.uint8)
    side = max(3, round(min(differs.shape) * 0.012) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    closed = cv2.morphologyEx(cv2.morphologyEx(differs, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel, iterations=2)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(closed)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    large = np.flatnonzero(areas >= min_share * differs.size)
    return [labels == k for k in large[np.argsort(-areas[large], kind="stable")]]


def _link(tracks: list[dict[int, np.ndarray]], open_tracks: list[int], masks: list[np.ndarray], t: int) -> list[int]:
    """Continue the open tracks with the masks of frame ``t`` that overlap them best; returns the tracks now open."""
    now_open, taken = [], set()
    pairs = [(-_iou(tracks[k][t - 1], mask), k, m) for k in open_tracks for m, mask in enumerate(masks)]
    for overlap, k, m in sorted(pairs):
        if -overlap >= LINK_IOU and k not in now_open and m not in taken:
            tracks[k][t] = masks[m]
            now_open.append(k)
            taken.add(m)
    for m, mask in enumerate(masks):
        if m not in taken:
            tracks.append({t: mask})
            now_open.append(len(tracks) - 1)
    return now_open


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


def homography_outliers(corners: Corners, pixels: float) -> np.ndarray:
    """(P,) bool: tracks that repeatedly leave the homography that most corners of neighbouring frames follow."""
    seen = corners.seen
    out = np.zeros(seen.shape, bool)
    checked = np.zeros(seen.shape, bool)
    for t in range(seen.shape[1] - 1):
        both = np.flatnonzero(seen[:, t] & seen[:, t + 1])
        if len(both) < 12:
            continue
        cv2.setRNGSeed(0)
        here, there = corners.xy[both, t], corners.xy[both, t + 1]
        motion, _ = cv2.findHomography(here, there, cv2.RANSAC, pixels)
        if motion is None:
            continue
        predicted = cv2.perspectiveTransform(here[:, None], motion)[:, 0]
        out[both, t + 1] = np.linalg.norm(predicted - there, axis=1) > pixels
        checked[both, t + 1] = True
    return (checked.sum(1) >= MIN_FRAMES) & (out.sum(1) >= 0.6 * checked.sum(1))


def clustered(
    corners: Corners,
    unexplained: np.ndarray,
    working: tuple[int, int],
    size: tuple[int, int],
    parameters: ClassicalParameters,
) -> np.ndarray:
    """Masks (N, T, H, W) bool of things from the tracks that move.

    Tracks that are seen together, stay close and move alike are one thing; its mask is the convex hull of its corners.

    Args:
        corners: tracks at the working size.
        unexplained: (P,) px by which each track leaves what the camera explains.
        working: (width, height) of the working size.
        size: (H, W) of the frames.
        parameters: when a track moves, and the least area of a thing.
    """
    from scipy.sparse.csgraph import connected_components

    moving = unexplained > parameters.moving_pixels
    index = np.flatnonzero(moving & (corners.seen.sum(1) >= MIN_FRAMES))
    empty = np.zeros((0, corners.xy.shape[1], *size), bool)
    if len(index) < MIN_CORNERS:
        return empty
    xy, seen = corners.xy[index], corners.seen[index]
    together = seen[:, None] & seen[None]
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    farthest = np.where(together, np.nan_to_num(apart), 0).max(-1)
    nearest = np.where(together, np.nan_to_num(apart), np.inf).min(-1)
    reach = NEIGHBOURHOOD * working[0]
    alike = (together.sum(-1) >= MIN_FRAMES) & (nearest < reach) & (farthest < 2 * reach)
    count, labels = connected_components(alike, directed=False)
    clear = [np.median(unexplained[index[labels == k]]) > CLEARLY * parameters.moving_pixels for k in range(count)]
    masks = (_hulls(xy[labels == k], working, size, parameters) for k in np.flatnonzero(clear))
    still = corners.xy[~moving & (corners.seen.sum(1) >= MIN_FRAMES)]
    things = [mask for mask in (_mostly_moving(m, xy, still, working, size) for m in masks) if _lasts(mask)]
    return np.stack(things) if things else empty


def _lasts(mask: np.ndarray) -> bool:
    return bool(mask.any((1, 2)).sum() >= max(MIN_FRAMES, MIN_SHARE_OF_CLIP * len(mask)))


def _mostly_moving(
    masks: np.ndarray, moving: np.ndarray, still: np.ndarray, working: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """(T, H, W) masks, emptied where most corners inside stand still."""
    kept = masks.copy()
    for t in np.flatnonzero(masks.any((1, 2))):
        inside = [_count_inside(masks[t], tracks[:, t], working, size) for tracks in (moving, still)]
        if inside[0] < MOVING_SHARE * sum(inside):
            kept[t] = False
    return kept


def _count_inside(mask: np.ndarray, xy: np.ndarray, working: tuple[int, int], size: tuple[int, int]) -> int:
    """How many of (n, 2) corners at the working size lie in an (H, W) mask."""
    columns, rows = _frame_pixels(xy[np.isfinite(xy[:, 0])], working, size).T
    return int(mask[rows.clip(0, size[0] - 1), columns.clip(0, size[1] - 1)].sum())


def _frame_pixels(xy: np.ndarray, working: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(n, 2) whole pixels of the frame under (n, 2) points at the working size."""
    scale = np.array([size[1] / working[0], size[0] / working[1]])
    return ((xy + 0.5) * scale - 0.5).round().astype(np.int32)


def _hulls(
    xy: np.ndarray, working: tuple[int, int], size: tuple[int, int], parameters: ClassicalParameters
) -> np.ndarray:
    """(T, H, W) bool convex hulls of (n, T, 2) corners, empty where few are seen or the hull is small or a sliver."""
    masks = np.zeros((xy.shape[1], *size), bool)
    for t in range(xy.shape[1]):
        points = xy[np.isfinite(xy[:, t, 0]), t]
        if len(points) < MIN_CORNERS:
            continue
        hull = cv2.convexHull(_frame_pixels(points, working, size))
        compact = 4 * np.pi * cv2.contourArea(hull) >= COMPACTNESS * cv2.arcLength(hull, True) ** 2
        canvas = np.zeros(size, np.uint8)
        cv2.fillConvexPoly(canvas, hull, 1)
        if compact and canvas.sum() >= parameters.min_object_share * canvas.size:
            masks[t] = canvas.astype(bool)
    return masks
