"""Structure from motion without learned weights: camera poses and static points from followed corners.

Two-view start by the essential matrix, further cameras by PnP, points by linear triangulation over all views,
everything refined by bundle adjustment with one unknown focal length. Hartley & Zisserman, Multiple View Geometry,
ch. 9, 12, 18.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from assets.geometry.estimators import EstimateError
from assets.geometry.estimators.corners import Corners
from assets.geometry.parameters import ClassicalParameters

# Focal lengths tried, as share of the picture's width: 94 to 28 degrees of view.
FOCAL_SHARES = (0.47, 0.6, 0.75, 0.9, 1.1, 1.4, 2.0)
# The field of view of an ordinary camera (58 degrees) holds unless the corners say otherwise: a focal length e times as
# long must lower the root mean square reprojection error by this much.
USUAL_SHARE = 0.9
PRIOR_PIXELS = 0.03
MIN_SHARED = 50
MIN_RESECTION = 15
ADJUSTED_POINTS = 250


@dataclass(frozen=True)
class Structure:
    """A static scene and the cameras that saw it, in the first camera's frame.

    Attributes:
        intrinsics: (3, 3) at the working size.
        camera_from_world: (T, 4, 4).
        points: (P, 3) one per track, NaN where a track has no static point.
        errors: (P,) root mean square reprojection error of each track's best static point in px; infinite where a track
            has none in front of the cameras that saw it.
        far_errors: (P,) the same of each track taken as a point at infinity.
        angles: (P,) degrees between the outermost rays to each point.
        disagreement: RMS distance, as share of the path's extent, to the cameras that half of the corners give.
    """

    intrinsics: np.ndarray
    camera_from_world: np.ndarray
    points: np.ndarray
    errors: np.ndarray
    far_errors: np.ndarray
    angles: np.ndarray
    disagreement: float = 0.0


def intrinsics_of(width: int, height: int, focal: float) -> np.ndarray:
    """(3, 3) square pixels, principal point in the middle, pixel centres at whole numbers."""
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


def rotation_residuals(intrinsics: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) px by which (n, 2) points differ from ``K R K^-1`` of the best rotation R, robustly fitted.

    R by orthogonal Procrustes on unit rays (Kabsch 1976), reweighted so that moving things do not pull it.
    """
    inverse = np.linalg.inv(intrinsics).T
    before, after = (np.c_[p, np.ones(len(p))] @ inverse for p in (first, second))
    before /= np.linalg.norm(before, axis=1, keepdims=True)
    after /= np.linalg.norm(after, axis=1, keepdims=True)
    weights = np.ones(len(first))
    residuals = np.zeros(len(first))
    for _ in range(10):
        u, _, vt = np.linalg.svd((after * weights[:, None]).T @ before)
        rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
        projected = before @ (intrinsics @ rotation).T
        depth = np.maximum(projected[:, 2:], 1e-6)
        residuals = np.linalg.norm(projected[:, :2] / depth - second, axis=1)
        weights = 1.0 / (1.0 + (residuals / max(np.median(residuals), 0.25)) ** 2)
    return residuals


def best_pair(corners: Corners, size: tuple[int, int], parameters: ClassicalParameters) -> tuple[int, int]:
    """The two frames with most parallax that still share enough corners.

    Raises:
        EstimateError: no two frames share corners, or a rotation explains every pair.
    """
    seen = corners.seen
    shared = seen.T.astype(int) @ seen.astype(int)
    step = max(1, len(shared) // 16)
    enough = max(MIN_SHARED, 0.25 * np.median(seen.sum(0)))
    best, most, explained = None, 0.0, []
    for i in range(0, len(shared) - 2, step):
        for j in range(i + 2, len(shared), step):
            if shared[i, j] < enough:
                continue
            both = seen[:, i] & seen[:, j]
            residuals = np.min(
                [
                    rotation_residuals(intrinsics_of(*size, size[0] * s), corners.xy[both, i], corners.xy[both, j])
                    for s in FOCAL_SHARES[1::2]
                ],
                axis=0,
            )
            explained.append((residuals < parameters.inlier_pixels).mean())
            parallax = np.median(residuals)
            if parallax > most:
                best, most = (i, j), parallax
    if best is None or not explained:
        raise EstimateError("frames share too few corners: they are too far apart in time, or the picture is too plain")
    if min(explained) > parameters.rotation_share:
        raise EstimateError(
            f"rotation only: turning the camera explains {min(explained):.0%} of the corners, no parallax"
        )
    return best


def reconstruct(corners: Corners, size: tuple[int, int], parameters: ClassicalParameters) -> Structure:
    """Cameras of all frames and a point per static track.

    Args:
        corners: tracks at the working size.
        size: (width, height) of the working size.
        parameters: inlier threshold and what a model must reach.

    Raises:
        EstimateError: with the reason, where the corners do not support a model.
    """
    pair = best_pair(corners, size, parameters)
    whole = _solved(corners, pair, size, parameters)
    _check(corners, whole, parameters)
    halves = [Corners(corners.xy[k::2], corners.survival) for k in (0, 1)]
    apart = [_apart(whole, _solved(half, best_pair(half, size, parameters), size, parameters)) for half in halves]
    degrees, share = (max(values) for values in zip(*apart, strict=True))
    if degrees > parameters.agreement_degrees or share > parameters.agreement_share:
        raise EstimateError(
            f"weak model: half of the corners turns the cameras by {degrees:.1f} degrees and moves them by {share:.0%} "
            "of their path"
        )
    return replace(whole, disagreement=share)


def _solved(
    corners: Corners, pair: tuple[int, int], size: tuple[int, int], parameters: ClassicalParameters
) -> Structure:
    """The best structure that the corners give from a start at two frames, whatever it is worth."""
    focal = _focal(corners, pair, size, parameters)
    for _ in range(2):
        intrinsics = intrinsics_of(*size, focal)
        cameras = _cameras(corners, pair, intrinsics, parameters)
        points, errors, _ = triangulate(intrinsics, cameras, corners.xy)
        focal, cameras = _adjusted(corners, size, focal, cameras, points, errors, parameters)
        if not 0.3 * size[0] < focal < 4 * size[0]:
            raise EstimateError(
                f"weak model: bundle adjustment drives the focal length to {focal / size[0]:.2f} widths"
            )
    intrinsics = intrinsics_of(*size, focal)
    points, errors, angles = triangulate(intrinsics, cameras, corners.xy)
    far = errors_at_infinity(intrinsics, cameras, corners.xy)
    return Structure(intrinsics, cameras, points, errors, far, angles)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(n, 3) ``source`` after the similarity that brings it closest to (n, 3) ``target`` (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    scale = (d * signs).sum() / max((a**2).sum(), 1e-12)
    return scale * a @ (u @ np.diag(signs) @ vt).T + target.mean(0)


def _apart(first: Structure, second: Structure) -> tuple[float, float]:
    """Largest turn in degrees between two sets of cameras, and RMS distance as share of the path's extent."""
    turns = first.camera_from_world[:, :3, :3] @ np.swapaxes(second.camera_from_world[:, :3, :3], 1, 2)
    cosine = (np.trace(turns, axis1=1, axis2=2) - 1) / 2
    here, there = (
        -np.einsum("tji,tj->ti", s.camera_from_world[:, :3, :3], s.camera_from_world[:, :3, 3]) for s in (first, second)
    )
    off = np.linalg.norm(similarity(there, here) - here, axis=1)
    extent = max(float(np.linalg.norm(np.ptp(here, axis=0))), 1e-12)
    return float(np.degrees(np.arccos(cosine.clip(-1, 1))).max()), float(np.sqrt((off**2).mean()) / extent)


def errors_at_infinity(intrinsics: np.ndarray, cameras: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """(P,) RMS reprojection errors in px of each track taken as a point at infinity: clouds and hills do not move."""
    rays = (np.concatenate([xy, np.ones((*xy.shape[:2], 1))], -1)) @ np.linalg.inv(intrinsics).T
    directions = np.einsum("tji,ptj->pti", cameras[:, :3, :3], rays / np.linalg.norm(rays, axis=-1, keepdims=True))
    mean = np.nansum(directions, axis=1)
    projected = np.einsum("tij,pj->pti", intrinsics @ cameras[:, :3, :3], mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = ((projected[..., :2] / projected[..., 2:] - xy) ** 2).sum(-1)
    return np.sqrt(np.nansum(squared, axis=1) / np.maximum(np.isfinite(squared).sum(1), 1))


def triangulate(intrinsics: np.ndarray, cameras: np.ndarray, xy: np.ndarray):
    """Best static point of every track by linear triangulation over all its views (Hartley & Zisserman 12.2).

    Args:
        intrinsics: (3, 3).
        cameras: (T, 4, 4) camera_from_world, NaN where unknown.
        xy: (P, T, 2) px, NaN where not seen.

    Returns:
        (P, 3) points, (P,) RMS reprojection errors in px (infinite where behind a camera or seen once), (P,) degrees
        between the outermost of the rays.
    """
    rays = (np.concatenate([xy, np.ones((*xy.shape[:2], 1))], -1)) @ np.linalg.inv(intrinsics).T
    seen = np.isfinite(rays[..., 0]) & np.isfinite(cameras[:, 0, 0])
    rays = np.where(seen[..., None], rays, 0.0)
    motion = np.nan_to_num(cameras[:, :3])
    rows = rays[..., :2, None] * motion[None, :, None, 2] - motion[None, :, :2] * seen[..., None, None]
    normal = np.einsum("ptkn,ptkm->pnm", rows, rows)
    homogeneous = np.linalg.eigh(normal)[1][..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        points = homogeneous[:, :3] / homogeneous[:, 3:]
    errors, depths = reprojection(intrinsics, cameras, points, xy)
    in_front = np.where(seen, depths > 0, True).all(1) & (seen.sum(1) >= 2) & np.isfinite(points).all(1)
    with np.errstate(invalid="ignore"):
        total = np.nansum(np.where(seen, errors, np.nan) ** 2, axis=1)
    rms = np.where(in_front, np.sqrt(total / np.maximum(seen.sum(1), 1)), np.inf)
    positions = -np.einsum("tji,tj->ti", motion[:, :, :3], motion[:, :, 3])
    return np.where(in_front[:, None], points, np.nan), rms, _angles(points, positions, seen)


def reprojection(intrinsics: np.ndarray, cameras: np.ndarray, points: np.ndarray, xy: np.ndarray):
    """(P, T) reprojection errors in px and (P, T) depths of (P, 3) points; NaN where not seen."""
    local = np.einsum("tij,pj->pti", cameras[:, :3, :3], points) + cameras[:, :3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        projected = (local @ intrinsics.T)[..., :2] / local[..., 2:]
        return np.linalg.norm(projected - xy, axis=-1), np.where(np.isfinite(xy[..., 0]), local[..., 2], np.nan)


def _angles(points: np.ndarray, positions: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(P,) degrees between the rays from the first and from the last camera that see each point."""
    first, last = seen.argmax(1), seen.shape[1] - 1 - seen[:, ::-1].argmax(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = points - positions[first], points - positions[last]
        cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _focal(corners: Corners, pair: tuple[int, int], size, parameters: ClassicalParameters) -> float:
    """The focal length in px under which most corners of the pair keep to an epipolar geometry."""
    i, j = pair
    both = corners.seen[:, i] & corners.seen[:, j]
    counts = []
    for share in FOCAL_SHARES:
        _, inliers = _essential(
            corners.xy[both, i], corners.xy[both, j], intrinsics_of(*size, size[0] * share), parameters
        )
        counts.append(inliers.sum())
    # The field of view of an ordinary camera, unless another explains clearly more.
    usual = FOCAL_SHARES.index(USUAL_SHARE)
    best = int(np.argmax(counts))
    return size[0] * FOCAL_SHARES[best if counts[best] > 1.05 * counts[usual] else usual]


def _essential(first: np.ndarray, second: np.ndarray, intrinsics: np.ndarray, parameters: ClassicalParameters):
    cv2.setRNGSeed(0)
    matrix, inliers = cv2.findEssentialMat(
        first, second, intrinsics, method=cv2.RANSAC, prob=0.999, threshold=parameters.inlier_pixels / 2
    )
    if matrix is None or matrix.shape != (3, 3):
        raise EstimateError("weak model: no epipolar geometry fits two frames")
    return matrix, inliers.ravel().astype(bool)


def _cameras(corners: Corners, pair: tuple[int, int], intrinsics: np.ndarray, parameters: ClassicalParameters):
    """(T, 4, 4) camera_from_world of all frames, first frame first.

    Raises:
        EstimateError: the start has too few points, or a frame cannot be placed.
    """
    i, j = pair
    total = corners.xy.shape[1]
    both = corners.seen[:, i] & corners.seen[:, j]
    matrix, inliers = _essential(corners.xy[both, i], corners.xy[both, j], intrinsics, parameters)
    mask = inliers.astype(np.uint8)[:, None].copy()
    _, rotation, translation, _ = cv2.recoverPose(
        matrix, corners.xy[both, i], corners.xy[both, j], intrinsics, mask=mask
    )
    cameras = np.full((total, 4, 4), np.nan)
    cameras[i] = np.eye(4)
    cameras[j] = np.eye(4)
    cameras[j, :3, :3], cameras[j, :3, 3] = rotation, translation.ravel()
    while np.isnan(cameras[:, 0, 0]).any():
        points, errors, angles = triangulate(intrinsics, cameras, corners.xy)
        good = (errors < parameters.inlier_pixels) & (angles > 0.5)
        if good.sum() < MIN_RESECTION:
            raise EstimateError(f"weak model: only {good.sum()} points can be triangulated")
        open_frames = np.flatnonzero(np.isnan(cameras[:, 0, 0]))
        support = (corners.seen[:, open_frames] & good[:, None]).sum(0)
        # Several frames at a time: those that see nearly as many points as the best one.
        for t in open_frames[support >= max(0.8 * support.max(), MIN_RESECTION)]:
            cameras[t] = _resected(points, corners.xy[:, t], good & corners.seen[:, t], intrinsics, parameters)
        if np.isnan(cameras[open_frames, 0, 0]).all():
            raise EstimateError(f"weak model: {len(open_frames)} of {total} frames cannot be placed")
    return cameras @ np.linalg.inv(cameras[0])


def _resected(points, pixels, usable, intrinsics, parameters: ClassicalParameters) -> np.ndarray:
    """(4, 4) camera_from_world by PnP, NaN where too few points agree."""
    pose = np.full((4, 4), np.nan)
    cv2.setRNGSeed(0)
    found, turn, shift, inliers = cv2.solvePnPRansac(
        points[usable],
        pixels[usable],
        intrinsics,
        None,
        iterationsCount=200,
        reprojectionError=2 * parameters.inlier_pixels,
        flags=cv2.SOLVEPNP_EPNP,
    )
    if not found or inliers is None or len(inliers) < max(MIN_RESECTION, 0.4 * usable.sum()):
        return pose
    rows = np.flatnonzero(usable)[inliers.ravel()]
    turn, shift = cv2.solvePnPRefineLM(points[rows], pixels[rows], intrinsics, None, turn, shift)
    pose[:] = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], shift.ravel()
    return pose


def _adjusted(corners, size, focal, cameras, points, errors, parameters: ClassicalParameters):
    """Bundle adjustment over the focal length, all cameras but the first, and the best-seen static points."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    usable = np.flatnonzero(errors < 2 * parameters.inlier_pixels)
    views = corners.seen[usable].sum(1)
    chosen = usable[np.argsort(-views, kind="stable")[:ADJUSTED_POINTS]]
    if len(chosen) < MIN_RESECTION:
        raise EstimateError(f"weak model: only {len(chosen)} static points")
    of_point, of_frame = np.nonzero(corners.seen[chosen])
    observed = corners.xy[chosen][of_point, of_frame]
    middle = (np.array(size) - 1) / 2
    free = len(cameras) - 1
    spread = np.median(np.linalg.norm(points[chosen], axis=1))
    weight = PRIOR_PIXELS * np.sqrt(2 * len(observed))

    def unpacked(x):
        turns = np.concatenate([np.zeros((1, 3)), x[1 : 1 + 3 * free].reshape(-1, 3)])
        shifts = np.concatenate([np.zeros((1, 3)), x[1 + 3 * free : 1 + 6 * free].reshape(-1, 3)])
        return np.exp(x[0]), Rotation.from_rotvec(turns).as_matrix(), shifts, x[1 + 6 * free :].reshape(-1, 3)

    def residuals(x):
        length, turns, shifts, places = unpacked(x)
        local = np.einsum("nij,nj->ni", turns[of_frame], places[of_point]) + shifts[of_frame]
        projected = length * local[:, :2] / np.maximum(local[:, 2:], 1e-6) + middle
        usual = weight * (x[0] - np.log(USUAL_SHARE * size[0]))
        return np.append((projected - observed).ravel(), usual)

    start = np.concatenate(
        [
            [np.log(focal)],
            Rotation.from_matrix(cameras[1:, :3, :3]).as_rotvec().ravel(),
            (cameras[1:, :3, 3] / spread).ravel(),
            (points[chosen] / spread).ravel(),
        ]
    )
    solved = least_squares(
        residuals,
        start,
        jac_sparsity=_sparsity(of_point, of_frame, free, len(chosen)),
        loss="soft_l1",
        x_scale="jac",
        max_nfev=parameters.evaluations,
        ftol=1e-4,
    )
    length, turns, shifts, _ = unpacked(solved.x)
    refined = np.tile(np.eye(4), (len(cameras), 1, 1))
    refined[:, :3, :3], refined[:, :3, 3] = turns, shifts
    return float(length), refined


def _sparsity(of_point: np.ndarray, of_frame: np.ndarray, free: int, count: int):
    """Which of the unknowns (focal, turns, shifts, points) each coordinate of each observation depends on."""
    from scipy.sparse import coo_matrix, kron, vstack

    n = len(of_point)
    moved = of_frame > 0
    columns = [np.zeros((n, 1), int)]
    columns += [1 + 3 * np.maximum(of_frame - 1, 0)[:, None] + np.arange(3)]
    columns += [1 + 3 * free + 3 * np.maximum(of_frame - 1, 0)[:, None] + np.arange(3)]
    columns += [1 + 6 * free + 3 * of_point[:, None] + np.arange(3)]
    used = [np.ones((n, 1), bool), *[np.repeat(moved[:, None], 3, 1)] * 2, np.ones((n, 3), bool)]
    column, use = np.concatenate(columns, 1), np.concatenate(used, 1)
    row = np.broadcast_to(np.arange(n)[:, None], column.shape)
    pattern = coo_matrix((np.ones(use.sum()), (row[use], column[use])), shape=(n, 1 + 6 * free + 3 * count))
    prior = coo_matrix(([1.0], ([0], [0])), shape=(1, pattern.shape[1]))
    return vstack([kron(pattern, np.ones((2, 1))), prior]).tocsr()


def _check(corners: Corners, structure: Structure, parameters: ClassicalParameters) -> None:
    """Raise ``EstimateError`` where the corners do not support the structure: few points or inliers, small angles."""
    long = corners.seen.sum(1) >= 4
    static = structure.errors < parameters.inlier_pixels
    if (static & long).sum() < parameters.min_points:
        raise EstimateError(f"weak model: {(static & long).sum()} static points, {parameters.min_points} are asked for")
    share = (np.minimum(structure.errors, structure.far_errors) < parameters.inlier_pixels)[long].mean()
    if share < parameters.min_inliers:
        raise EstimateError(
            f"weak model: it explains {share:.0%} of the corners, {parameters.min_inliers:.0%} asked for"
        )
    angle = float(np.median(structure.angles[static & long]))
    if angle < parameters.min_angle:
        raise EstimateError(
            f"weak model: median triangulation angle {angle:.1f} degrees, {parameters.min_angle:g} asked for"
        )
