"""Corners followed from frame to frame: what the classical estimator knows of the motion in a clip."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

# A corner that comes back to within this many px when tracked backwards was followed.
ROUND_TRIP_PIXELS = 0.7
WINDOW = (21, 21)
PYRAMID_LEVELS = 4
# Corners are spread over this many rows and columns of tiles; a weaker response (intensities 0..1) is noise.
TILES = (8, 12)
LEAST_RESPONSE = 1e-4
# Histograms of neighbouring frames that correlate less than this show different places.
SAME_SHOT_CORRELATION = 0.75


@dataclass(frozen=True)
class Corners:
    """Tracks of corners at the working size.

    Attributes:
        xy: (P, T, 2) px, NaN where a corner is not followed.
        survival: (T - 1,) share of the corners of each frame that were followed to the next.
    """

    xy: np.ndarray
    survival: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """(P, T) bool."""
        return np.isfinite(self.xy[..., 0])


def working_frames(frames: np.ndarray, side: int) -> np.ndarray:
    """(T, h, w) u8 grey frames with the longest side ≤ ``side``, from (T, H, W, 3) u8 RGB."""
    height, width = frames.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in grey])


def sharpness(grey: np.ndarray) -> float:
    """Median over frames of the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000)."""
    return float(np.median([cv2.Laplacian(image, cv2.CV_64F).var() for image in grey]))


def follow(grey: np.ndarray, count: int) -> Corners:
    """Follow about ``count`` corners at a time through (T, h, w) u8 frames.

    Pyramidal Lucas-Kanade, kept where the way back ends where the way there began; lost corners are replaced by new
    ones away from those still followed.
    """
    total = len(grey)
    xy = np.full((0, total, 2), np.nan, np.float32)
    survival = np.zeros(total - 1)
    for t in range(total):
        xy = np.concatenate([xy, _fresh(grey[t], xy[:, t], count, t, total)])
        if t + 1 == total:
            break
        alive = np.flatnonzero(np.isfinite(xy[:, t, 0]))
        if not len(alive):
            continue
        moved, followed = _flow(grey[t], grey[t + 1], xy[alive, t])
        xy[alive[followed], t + 1] = moved[followed]
        survival[t] = followed.mean()
    return Corners(xy.astype(np.float64), survival)


def _flow(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    start = np.ascontiguousarray(points[:, None], np.float32)
    options = {"winSize": WINDOW, "maxLevel": PYRAMID_LEVELS}
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, start, None, **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **options)
    there = there[:, 0]
    height, width = after.shape
    inside = ((there >= 0) & (there <= [width - 1, height - 1])).all(1)
    returned = np.linalg.norm(back[:, 0] - points, axis=1) < ROUND_TRIP_PIXELS
    return there, found.ravel().astype(bool) & found_back.ravel().astype(bool) & inside & returned


def _fresh(image: np.ndarray, followed: np.ndarray, count: int, frame: int, total: int) -> np.ndarray:
    """(new, T, 2) tracks that start at ``frame``, at corners away from those that are followed already."""
    alive = followed[np.isfinite(followed[:, 0])]
    corners = _corners(image, alive, count)
    tracks = np.full((len(corners), total, 2), np.nan, np.float32)
    tracks[:, frame] = corners
    return tracks


def _corners(image: np.ndarray, taken: np.ndarray, count: int) -> np.ndarray:
    """(n, 2) px f32: the best corners of every tile of the picture, up to its share of ``count``, away from taken ones.

    Shi & Tomasi's response (CVPR 1994). Tiles keep one strongly textured wall from taking all corners from what is
    faint.
    """
    response = cv2.cornerMinEigenVal(image, 3)
    distance = max(3, round(0.5 * np.sqrt(image.size / count)))
    peaks = response == cv2.dilate(response, np.ones((2 * distance + 1, 2 * distance + 1), np.uint8))
    free = np.full(image.shape, 255, np.uint8)
    for x, y in taken.round().astype(int).tolist():
        cv2.circle(free, (x, y), distance, 0, -1)
    rows, columns = np.nonzero(peaks & (free > 0) & (response > LEAST_RESPONSE))
    tiles = _tile(image.shape, columns, rows)
    order = np.lexsort([columns, rows, -response[rows, columns], tiles])
    ordered = tiles[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    used = np.bincount(_tile(image.shape, taken[:, 0], taken[:, 1]), minlength=TILES[0] * TILES[1])
    chosen = order[rank < (-(-count // len(used)) - used)[ordered]]
    return np.stack([columns[chosen], rows[chosen]], -1).astype(np.float32)


def _tile(shape: tuple[int, ...], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Index of the tile of each pixel."""
    row = (y * TILES[0] / shape[0]).astype(int).clip(0, TILES[0] - 1)
    column = (x * TILES[1] / shape[1]).astype(int).clip(0, TILES[1] - 1)
    return row * TILES[1] + column


def shot_cuts(frames: np.ndarray, survival: np.ndarray, least: float) -> np.ndarray:
    """Frames after which another shot begins: corners are lost and the colours are others.

    Args:
        frames: (T, H, W, 3) u8.
        survival: (T - 1,) share of corners followed.
        least: share under which corners count as lost.
    """
    histograms = []
    for frame in frames:
        histogram = cv2.calcHist([frame], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3)
        histograms.append(cv2.normalize(histogram, None).ravel())
    likeness = np.array([cv2.compareHist(a, b, cv2.HISTCMP_CORREL) for a, b in pairwise(histograms)])
    return np.flatnonzero((survival < least) & (likeness < SAME_SHOT_CORRELATION))


def still_pixels(corners: Corners) -> float:
    """How far the background moves: px that the stillest 40 % of long tracks stay within, over their whole life.

    Infinite where no corner is followed for at least a third of the clip.
    """
    seen = corners.seen
    long = seen.sum(1) >= max(3, seen.shape[1] // 3)
    if long.sum() < 20:
        return float("inf")
    xy = corners.xy[long]
    spread = np.nanmax(xy, axis=1) - np.nanmin(xy, axis=1)
    return float(np.quantile(np.linalg.norm(spread, axis=-1), 0.4))
