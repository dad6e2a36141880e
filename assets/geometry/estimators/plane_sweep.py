"""Dense depth of a static scene by plane sweep, for frames whose cameras are known.

Fronto-parallel planes at uniform inverse depths are compared by normalised cross-correlation with the neighbours that
see them under a few degrees (Collins, CVPR 1996), aggregated along four paths (Hirschmueller, PAMI 2008), and kept
where the depth maps of several frames agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from assets.geometry.frames_of_reference import inverse

WINDOW = (7, 7)
NEIGHBOURS = 4
# Fewer degrees tell depth apart badly, more degrees make pictures unlike.
BEST_DEGREES = 5.0
# A grey level of noise: contrast below it is none.
NOISE_VARIANCE = 2.0
# Cost, of 1, of a step to the next inverse depth and of a jump between neighbouring pixels.
SMALL_STEP, JUMP = 0.03, 0.25
# Correlation that a surface keeps between two views, and the relative difference at which two frames' depths agree: two
# of 64 inverse depths between the nearest point and three times as far.
LEAST_CORRELATION, AGREEMENT = 0.5, 0.04
# Depths of so many neighbours must agree.
LEAST_AGREEING = 2


@dataclass(frozen=True)
class Depths:
    """Depth maps of all frames.

    Attributes:
        intrinsics: (3, 3) at the maps' size.
        depth: (T, h, w) z-depth everywhere, right where the confidence is not zero.
        confidence: (T, h, w) 0..1, the correlation with the neighbours where enough of them agree, else 0.
    """

    intrinsics: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray


def sweep(
    grey: np.ndarray, intrinsics: np.ndarray, world_from_camera: np.ndarray, span: tuple[float, float], planes: int
) -> Depths:
    """Depth of (T, H, W) u8 frames at half their size.

    Args:
        grey: frames.
        intrinsics: (3, 3) of the frames.
        world_from_camera: (T, 4, 4).
        span: nearest and farthest depth.
        planes: inverse depths tried.
    """
    height, width = grey.shape[1] // 2, grey.shape[2] // 2
    small = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) for image in grey]
    halved = half_size(intrinsics, grey.shape[1:], (height, width))
    nearness = np.linspace(1 / span[1], 1 / span[0], planes)
    neighbours = [neighbours_of(world_from_camera, t, np.sqrt(span[0] * span[1])) for t in range(len(grey))]
    depth = np.zeros((len(grey), height, width), np.float32)
    correlation = np.zeros_like(depth)
    for t, others in enumerate(neighbours):
        if len(others):
            volume = _correlations(small, halved, world_from_camera, t, others, nearness)
            depth[t], correlation[t] = _winner(volume, nearness)
    agreeing = np.stack([_agreeing(depth, halved, world_from_camera, t, o) for t, o in enumerate(neighbours)])
    trusted = (correlation > LEAST_CORRELATION) & (agreeing >= LEAST_AGREEING)
    return Depths(halved, depth, np.where(trusted, correlation.clip(0, 1), 0))


def half_size(intrinsics: np.ndarray, size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """(3, 3) intrinsics of a picture resized from ``size`` to ``target`` (H, W), pixel centres at whole numbers."""
    y, x = target[0] / size[0], target[1] / size[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]) @ intrinsics


def neighbours_of(world_from_camera: np.ndarray, t: int, depth: float) -> np.ndarray:
    """Frames that see what lies ``depth`` before frame t under nearest to ``BEST_DEGREES``, from both sides in time."""
    positions = world_from_camera[:, :3, 3]
    degrees = np.degrees(np.arctan2(np.linalg.norm(positions - positions[t], axis=1), depth))
    badness = np.where(degrees > 0.5, np.abs(np.log(np.maximum(degrees, 1e-3) / BEST_DEGREES)), np.inf)
    looking = world_from_camera[:, :3, 2] @ world_from_camera[t, :3, 2]
    badness = np.where(looking > np.cos(np.radians(30)), badness, np.inf)
    chosen: list[int] = []
    for side in (np.arange(t), np.arange(t + 1, len(positions))):
        order = side[np.argsort(badness[side], kind="stable")]
        chosen += order[np.isfinite(badness[order])][: NEIGHBOURS // 2].tolist()
    rest = [k for k in np.argsort(badness, kind="stable") if np.isfinite(badness[k]) and k not in chosen]
    return np.array(sorted(chosen + rest[: NEIGHBOURS - len(chosen)]), int)


def _correlations(
    images: list[np.ndarray],
    intrinsics: np.ndarray,
    poses: np.ndarray,
    t: int,
    others: np.ndarray,
    nearness: np.ndarray,
) -> np.ndarray:
    """(D, h, w) correlation of frame t with its neighbours on every plane: the mean of the two that are most like it,
    for what is hidden in one is seen in another.
    """
    reference = images[t]
    mean = cv2.blur(reference, WINDOW)
    deviation = np.sqrt(np.maximum(cv2.blur(reference * reference, WINDOW) - mean * mean, 0) + NOISE_VARIANCE)
    motions = inverse(poses[others]) @ poses[t]
    back = np.linalg.inv(intrinsics)
    volume = np.empty((len(nearness), *reference.shape), np.float32)
    for d, near in enumerate(nearness):
        best, second = np.full((2, *reference.shape), -1, np.float32)
        for other, motion in zip(others, motions, strict=True):
            plane = motion[:3, :3].copy()
            plane[:, 2] += near * motion[:3, 3]
            warped = _warped(images[other], intrinsics @ plane @ back)
            there = cv2.blur(warped, WINDOW)
            spread = np.sqrt(np.maximum(cv2.blur(warped * warped, WINDOW) - there * there, 0) + NOISE_VARIANCE)
            score = (cv2.blur(reference * warped, WINDOW) - mean * there) / (deviation * spread)
            score[there < 0] = -1
            second = np.maximum(second, np.minimum(best, score))
            best = np.maximum(best, score)
        volume[d] = (best + second) / 2
    return volume


def _warped(image: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """The picture under a homography, far below black where it has none."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(image, homography, image.shape[::-1], flags=flags, borderValue=-1000)


def correlation(first: np.ndarray, second: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """(h, w) -1..1 normalised cross-correlation of two f32 pictures; what has no contrast beyond noise has none."""
    means = cv2.blur(first, window), cv2.blur(second, window)
    covariance = cv2.blur(first * second, window) - means[0] * means[1]
    variances = [cv2.blur(p * p, window) - m * m for p, m in zip((first, second), means, strict=True)]
    return covariance / np.sqrt((np.maximum(variances, 0) + NOISE_VARIANCE).prod(0))


def _winner(volume: np.ndarray, nearness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) depth and (h, w) correlation at it, of a (D, h, w) volume aggregated along four paths."""
    cost = np.ascontiguousarray((1 - volume) / 2)
    total = np.zeros_like(cost)
    for axis in (1, 2):
        for backwards in (False, True):
            _aggregate(np.moveaxis(cost, axis, 0), np.moveaxis(total, axis, 0), backwards)
    best = total.argmin(0)
    rows, columns = np.indices(best.shape)
    inner = best.clip(1, len(nearness) - 2)
    before, here, after = (total[inner + k, rows, columns] for k in (-1, 0, 1))
    # The vertex of a parabola through the least cost and its neighbours.
    shift = 0.5 * (before - after) / np.maximum(before + after - 2 * here, 1e-6)
    place = np.where(best == inner, inner + shift.clip(-0.5, 0.5), best)
    depth = 1 / np.interp(place, np.arange(len(nearness)), nearness)
    ends = (best == 0) | (best == len(nearness) - 1)
    return depth.astype(np.float32), np.where(ends, 0, volume[best, rows, columns])


def _aggregate(cost: np.ndarray, total: np.ndarray, backwards: bool) -> None:
    """Add to (n, D, m) ``total`` the cost of the best path through (n, D, m) ``cost`` along its first axis."""
    order = range(len(cost) - 1, -1, -1) if backwards else range(len(cost))
    path = None
    for i in order:
        step = np.array(cost[i])
        if path is not None:
            floor = path.min(0)
            reach = np.minimum(path, floor + JUMP)
            np.minimum(reach[1:], path[:-1] + SMALL_STEP, out=reach[1:])
            np.minimum(reach[:-1], path[1:] + SMALL_STEP, out=reach[:-1])
            step += reach - floor
        total[i] += step
        path = step


def _agreeing(depth: np.ndarray, intrinsics: np.ndarray, poses: np.ndarray, t: int, others: np.ndarray) -> np.ndarray:
    """(h, w) number of neighbours whose own depth map puts a surface where frame t does."""
    height, width = depth.shape[1:]
    count = np.zeros((height, width), int)
    points = lifted(depth[t], intrinsics)
    for other in others:
        motion = inverse(poses[other]) @ poses[t]
        local = points @ motion[:3, :3].T + motion[:3, 3]
        pixels = local @ intrinsics.T
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = (pixels[..., k] / pixels[..., 2] for k in (0, 1))
        maps = [np.nan_to_num(v, nan=-9.0, posinf=-9.0, neginf=-9.0).astype(np.float32) for v in (x, y)]
        theirs = cv2.remap(depth[other], *maps, cv2.INTER_NEAREST, borderValue=0)
        count += np.abs(theirs - local[..., 2]) < AGREEMENT * local[..., 2]
    return count


def lifted(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(h, w, 3) points in the camera frame of an (h, w) depth map."""
    height, width = depth.shape
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    rays = np.concatenate([pixels, np.ones((height, width, 1))], -1) @ np.linalg.inv(intrinsics).T
    return depth[..., None] * rays


def filled(depth: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """(h, w) depth in which pixels that are not trusted take that of the nearest pixel that is."""
    if not trusted.any():
        return depth
    _, labels = cv2.distanceTransformWithLabels(
        (~trusted).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    known = np.zeros(labels.max() + 1, depth.dtype)
    known[labels[trusted]] = depth[trusted]
    return known[labels]
