"""Where moving things are and where they go, from their masks and the static scene they move before."""

from __future__ import annotations

import numpy as np

from assets.geometry.frames_of_reference import transform

# The foot of a thing is its lowest tenth; the surface it stands on shows this many px below it, and shows whether it is
# level (under 45 degrees) this share of the frame's height below it.
FOOT, BELOW, LEVEL_REACH = 0.1, 4, 0.03
# Places are smoothed by the median over this many frames, headings fitted over that many.
SMOOTHING, HEADING_FRAMES = 5, 7
# A place jumps by this share of its distance from frame to frame; shorter ways have no direction.
PLACE_NOISE = 0.02
# The ground is this thin and this level, and holds this share of the static points; nothing much lies below it.
GROUND_THICKNESS, GROUND_COSINE, GROUND_SHARE, BURIED_SHARE = 0.02, 0.8, 0.15, 0.1


def places(
    masks: np.ndarray, static: np.ndarray, intrinsics: np.ndarray, world_from_camera: np.ndarray, up: np.ndarray
) -> np.ndarray:
    """(N, T, 3) centres in the world of things that stand on something level; NaN where that cannot be told.

    The surface just below a thing's foot gives the depth of its near side; it is taken to be as deep as its mask is
    narrow, and its centre to lie on the ray through the middle of its box. What is seen before a wall flies.

    Args:
        masks: (N, T, H, W) bool.
        static: (T, H, W) depth of the static scene.
        intrinsics: (3, 3) of the frames.
        world_from_camera: (T, 4, 4).
        up: (3,) unit vector in the world.
    """
    local = np.full((*masks.shape[:2], 3), np.nan)
    for n, t in np.argwhere(masks.any((2, 3))):
        local[n, t] = _center(masks[n, t], static[t], intrinsics, world_from_camera[t, :3, :3].T @ up)
    local *= (_smoothed(local[..., 2]) / local[..., 2])[..., None]
    return transform(world_from_camera, local)


def _center(mask: np.ndarray, static: np.ndarray, intrinsics: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(3,) centre in the camera frame, NaN where the foot is out of the picture or on nothing level."""
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    lower = bottom + round(LEVEL_REACH * mask.shape[0])
    if lower + BELOW >= mask.shape[0]:
        return np.full(3, np.nan)
    foot = columns[rows >= bottom - FOOT * (bottom - top)]
    middle = slice(foot.min(), foot.max() + 1)
    depth, nearer = (float(np.median(static[row + 1 : row + 1 + BELOW, middle])) for row in (bottom, lower))
    pixels = np.array([[foot.mean(), bottom, 1], [foot.mean(), lower, 1], [(left + right) / 2, (top + bottom) / 2, 1]])
    rays = pixels @ np.linalg.inv(intrinsics).T
    slope = depth * rays[0] - nearer * rays[1]
    if abs(slope @ up) > np.sqrt(0.5) * np.linalg.norm(slope):
        return np.full(3, np.nan)
    side = min(bottom - top, right - left) / intrinsics[0, 0]
    return depth * (1 + side / 2) * rays[2]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Running median over time of (N, T) values, NaN where there is none."""
    reach = SMOOTHING // 2
    padded = np.pad(values, ((0, 0), (reach, reach)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING, axis=1)
    smooth = np.full(values.shape, np.nan)
    known = np.isfinite(values)
    smooth[known] = np.nanmedian(windows[known], axis=-1)
    return smooth


def headings(centers: np.ndarray, timestamps: np.ndarray, cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, T, 3) unit vectors in which things move and (N, T) confidence; NaN and 0 where they hardly do.

    The direction is the slope of a line fitted to the centres around each frame; the confidence is the way that line
    goes over that and the scatter about it.

    Args:
        centers: (N, T, 3) in the world, NaN where unknown.
        timestamps: (T,) s.
        cameras: (T, 3) positions; a far thing's place is less sure.
    """
    forward, confidence = np.full(centers.shape, np.nan), np.zeros(centers.shape[:2])
    reach = HEADING_FRAMES // 2
    for n, t in np.argwhere(np.isfinite(centers).all(-1)):
        window = np.arange(max(0, t - reach), min(centers.shape[1], t + reach + 1))
        window = window[np.isfinite(centers[n, window]).all(-1)]
        if len(window) < 3:
            continue
        time = timestamps[window] - timestamps[window].mean()
        place = centers[n, window] - centers[n, window].mean(0)
        slope = time @ place / max(time @ time, 1e-12)
        scatter = np.sqrt(((place - time[:, None] * slope) ** 2).sum(1).mean())
        way = np.linalg.norm(slope) * np.ptp(time)
        noise = scatter + PLACE_NOISE * np.linalg.norm(centers[n, t] - cameras[t])
        if way > noise:
            forward[n, t], confidence[n, t] = slope / np.linalg.norm(slope), way / (way + noise)
    return forward, confidence


def ground_plane(points: np.ndarray, world_from_camera: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Unit normal (up) and offset d of the plane ``n . x = d`` that the cameras stand above, or None.

    Searched over seeded triples of (P, 3) static points in the lower half of what the first camera sees.
    """
    low = points[points[:, 1] > np.median(points[:, 1])]
    draws = np.random.default_rng(0).integers(0, len(low), (500, 3))
    a, b, c = low[draws[:, 0]], low[draws[:, 1]], low[draws[:, 2]]
    normals = np.cross(b - a, c - a)
    norms = np.linalg.norm(normals, axis=1)
    normals, a = normals[norms > 1e-9] / norms[norms > 1e-9, None], a[norms > 1e-9]
    up = -world_from_camera[:, :3, 1].mean(0)
    normals *= np.sign(normals @ up)[:, None]
    heights = points @ normals.T - (normals * a).sum(1)
    above = (world_from_camera[:, :3, 3] @ normals.T > (normals * a).sum(1)).all(0) & (normals @ up > GROUND_COSINE)
    thickness = GROUND_THICKNESS * np.median(points[:, 2])
    support = (np.abs(heights) < thickness).mean(0) * above * ((heights < -2 * thickness).mean(0) < BURIED_SHARE)
    if not len(support) or support.max() < GROUND_SHARE:
        return None
    inliers = points[np.abs(heights[:, support.argmax()]) < thickness]
    middle = inliers.mean(0)
    normal = np.linalg.svd(inliers - middle, full_matrices=False)[2][2]
    normal *= np.sign(normal @ up)
    return normal, float(normal @ middle)
