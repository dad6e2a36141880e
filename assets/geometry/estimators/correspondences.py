"""Points that neighbouring frames of a clip share, and what can be told from them before anything is reconstructed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

# A response of a quarter of SIFT's default still matches, on plain ground and plaster.
CONTRAST = 0.01
# The next best match must be this much farther (Lowe, IJCV 2004).
DISTANCE_RATIO = 0.8
# Every frame is matched with the next six, and with those 8 and 16 frames on, which tie the ends of a path together.
GAPS = (1, 2, 3, 4, 5, 6, 8, 16)
# Histograms of neighbouring frames that correlate less than this show different places.
SAME_SHOT_CORRELATION = 0.75
# Focal lengths under which a rotation is tried, as share of the picture's width: 90 to 28 degrees of view.
FOCAL_SHARES = (0.5, 0.65, 0.8, 0.95, 1.2, 1.5, 2.0)


@dataclass(frozen=True)
class Correspondences:
    """Features of all frames and the pairs that look alike.

    Attributes:
        size: (width, height) of the frames in px.
        xy: per frame (K, 2) px, pixel centres at whole numbers.
        pairs: for frames i < j, (M, 2) indices into ``xy[i]`` and ``xy[j]``.
    """

    size: tuple[int, int]
    xy: list[np.ndarray]
    pairs: dict[tuple[int, int], np.ndarray]

    def of(self, pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(M, 2) px in the first frame of a pair and (M, 2) px in the second."""
        rows = self.pairs[pair]
        return self.xy[pair[0]][rows[:, 0]], self.xy[pair[1]][rows[:, 1]]

    def survival(self) -> np.ndarray:
        """(T - 1,) share of each frame's features that are found in the next frame."""
        return np.array([len(self.pairs[t, t + 1]) / max(len(self.xy[t]), 1) for t in range(len(self.xy) - 1)])


def grey_frames(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) u8 from (T, H, W, 3) u8 RGB."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def sharpness(grey: np.ndarray) -> float:
    """Median over frames of the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000)."""
    return float(np.median([cv2.Laplacian(image, cv2.CV_64F).var() for image in grey]))


def match_frames(grey: np.ndarray, features: int) -> Correspondences:
    """Match SIFT features of (T, H, W) u8 frames over ``GAPS``, both ways best and clearly better than the next."""
    sift = cv2.SIFT_create(features, contrastThreshold=CONTRAST)
    xy, descriptors = zip(*(_features(sift, image) for image in grey), strict=True)
    total = len(grey)
    pairs = {(i, i + gap): _matched(descriptors[i], descriptors[i + gap]) for gap in GAPS for i in range(total - gap)}
    return Correspondences((grey.shape[2], grey.shape[1]), list(xy), dict(sorted(pairs.items())))


def _features(sift, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) px and (K, 128) RootSIFT descriptors of unit length (Arandjelovic & Zisserman, CVPR 2012)."""
    keypoints, descriptors = sift.detectAndCompute(image, None)
    if descriptors is None:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    xy = np.array([keypoint.pt for keypoint in keypoints])
    # One place may carry two orientations; in one order whatever the detector's.
    order = np.lexsort([*descriptors.T[:4], xy[:, 1], xy[:, 0]])
    descriptors = descriptors[order] / np.maximum(descriptors[order].sum(1, keepdims=True), 1e-9)
    return xy[order], np.sqrt(descriptors).astype(np.float32)


def _matched(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(M, 2) indices of descriptors of unit length that are each other's best by the ratio test."""
    if min(len(first), len(second)) < 2:
        return np.zeros((0, 2), int)
    likeness = first @ second.T
    rows = np.arange(len(first))
    best, back = likeness.argmax(1), likeness.argmax(0)
    distance = 1 - likeness[rows, best]
    likeness[rows, best] = -1
    clear = distance < DISTANCE_RATIO**2 * (1 - likeness.max(1))
    kept = clear & (back[best] == rows)
    return np.stack([rows[kept], best[kept]], 1)


def shot_cuts(frames: np.ndarray, survival: np.ndarray, least: float) -> np.ndarray:
    """Frames after which another shot begins: features are lost and the colours are others.

    Args:
        frames: (T, H, W, 3) u8.
        survival: (T - 1,) share of features found again.
        least: share under which features count as lost.
    """
    histograms = []
    for frame in frames:
        histogram = cv2.calcHist([frame], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3)
        histograms.append(cv2.normalize(histogram, None).ravel())
    likeness = np.array([cv2.compareHist(a, b, cv2.HISTCMP_CORREL) for a, b in pairwise(histograms)])
    return np.flatnonzero((survival < least) & (likeness < SAME_SHOT_CORRELATION))


def background_motion(found: Correspondences, least_matches: int) -> float:
    """How far the stillest 40 % of the features of a pair of frames move in px, at the pair that moves most.

    Infinite where no pair shares ``least_matches`` features.
    """
    moved = [
        np.quantile(np.linalg.norm(np.subtract(*found.of(pair)), axis=1), 0.4)
        for pair, rows in found.pairs.items()
        if len(rows) >= least_matches
    ]
    return float(max(moved)) if moved else float("inf")


def rotation_share(found: Correspondences, least_matches: int, pixels: float) -> float:
    """Share of features that turning the camera explains to within ``pixels``, in the pair with most parallax.

    1 where no pair shares ``least_matches`` features.
    """
    width, height = found.size
    shares = [1.0]
    for pair, rows in found.pairs.items():
        if pair[1] - pair[0] < 4 or len(rows) < least_matches:
            continue
        first, second = found.of(pair)
        residuals = [rotation_residuals(intrinsics_of(width, height, s * width), first, second) for s in FOCAL_SHARES]
        shares.append(max(float((r < pixels).mean()) for r in residuals))
    return min(shares)


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
