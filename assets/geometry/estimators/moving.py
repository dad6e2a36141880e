"""Things that move in a way the camera does not explain, as tracks of masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from assets.geometry.estimators.correspondences import Correspondences
from assets.geometry.estimators.plane_sweep import Depths, correlation, filled
from assets.geometry.frames_of_reference import inverse

# Flow is measured over one frame, and over three, in which slow things go farther than its noise.
STEPS = (1, 3)
# A pixel moves if its flow leaves the camera's by this many px, and by this many median absolute deviations.
LEAST_PIXELS, DEVIATIONS = 1.0, 6.0
# A region moves clearly if half of it leaves what the camera explains by this many times what one pixel must.
CLEARLY = 1.5
# Difference to the background, of 255, that shows through noise and compression.
DIFFERENCE = 28
# Edges of depth and of flow lie this close to each other, px.
EDGE_PIXELS = 9
# A homography is believed from so many matches, and holds what lies within so many px of it.
LEAST_MATCHES, HOMOGRAPHY_PIXELS = 30, 2.0
# Infinitely far, in the units of a scene whose depth is about ten.
SKY_DEPTH = 1e6
# Texture that is this much alike (correlation) in a window of so many px is the same. A window that only touches what
# moves looks different already, so masks come out wider by half of it.
SAME_LOOK, LOOK_WINDOW, RIM = 0.8, (5, 5), 2
# The flow of a patch without this contrast (standard deviation, of 255) is a guess.
PLAIN, PLAIN_WINDOW = 4.0, (15, 15)
# What moves is somewhere as thick as this share of the frame's shorter side.
CORE = 0.02
# A track is continued by what lies within this share of the frame's width of where it is led, ...
REACH = 0.03
# ... motion counting this many times as much as place, ...
MOTION_WEIGHT = 2.0
# ... waits this many frames for it, and counts if it was seen in this many, and in this share of the clip.
PATIENCE, MIN_FRAMES, MIN_SHARE = 2, 4, 0.2


@dataclass(frozen=True)
class Flows:
    """Dense flow between neighbouring frames.

    Attributes:
        forward: per step of ``STEPS`` (T - step, H, W, 2) f32 px from frame t to t + step.
        backward: the same from frame t + step to t.
    """

    forward: dict[int, np.ndarray]
    backward: dict[int, np.ndarray]

    def between(self, t: int, other: int) -> np.ndarray:
        """(H, W, 2) px from frame t to another a step away."""
        step = abs(other - t)
        return self.forward[step][t] if other > t else self.backward[step][other]


@dataclass(frozen=True)
class StaticScene:
    """What stands still, at the size of the frames.

    Attributes:
        intrinsics: (3, 3) of the frames.
        world_from_camera: (T, 4, 4).
        depth: (T, H, W) z-depth; where none is trusted, that of the nearest pixel with one.
        sky: (T, H, W) bool, where nothing above in the picture has a depth: it may be infinitely far.
    """

    intrinsics: np.ndarray
    world_from_camera: np.ndarray
    depth: np.ndarray
    sky: np.ndarray

    def flow(self, t: int, other: int) -> np.ndarray:
        """(H, W, 2) f32 px by which the scene moves from frame t to another."""
        return self.flows(t, other, [self.depth[t]])[0]

    def flows(self, t: int, other: int, depths: list[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 2) f32 px by which static things at each of these depths, (H, W) or one number, move."""
        grid = pixel_grid(self.depth.shape[1:])
        motion = inverse(self.world_from_camera[other]) @ self.world_from_camera[t]
        turn = (self.intrinsics @ motion[:3, :3] @ np.linalg.inv(self.intrinsics)).astype(np.float32)
        shift = (self.intrinsics @ motion[:3, 3]).astype(np.float32)
        x, y, z = (turn[i, 0] * grid[..., 0] + turn[i, 1] * grid[..., 1] + turn[i, 2] for i in range(3))
        result = []
        for depth in depths:
            below = np.maximum(z * depth + shift[2], 1e-6)
            moved = np.stack([(x * depth + shift[0]) / below, (y * depth + shift[1]) / below], -1)
            result.append(moved - grid)
        return result

    def around(self, t: int) -> list[np.ndarray]:
        """(H, W) depth of frame t, and the least and the greatest around each pixel."""
        window = np.ones((EDGE_PIXELS, EDGE_PIXELS), np.uint8)
        return [self.depth[t], cv2.erode(self.depth[t], window), cv2.dilate(self.depth[t], window)]


def static_scene(
    found: Depths, intrinsics: np.ndarray, world_from_camera: np.ndarray, frame: tuple[int, int]
) -> StaticScene:
    """The scene behind the things that move, for (H, W) frames with these (3, 3) intrinsics and (T, 4, 4) poses."""
    size = frame[::-1]
    kernel = np.ones((5, 5), np.uint8)
    depth, sky = [], []
    for metres, confidence in zip(found.depth, found.confidence, strict=True):
        trusted = cv2.morphologyEx((confidence > 0).astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)
        depth.append(cv2.resize(filled(metres, trusted), size, interpolation=cv2.INTER_NEAREST))
        open_above = ~np.maximum.accumulate(trusted, axis=0)
        sky.append(cv2.resize(open_above.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool))
    return StaticScene(intrinsics, world_from_camera, np.stack(depth), np.stack(sky))


def measure_flows(grey: np.ndarray, guess: Callable[[int, int], np.ndarray] | None = None) -> Flows:
    """Flow over ``STEPS`` between (T, H, W) u8 frames (DIS: Kroeger et al., ECCV 2016).

    Args:
        grey: frames.
        guess: (H, W, 2) px that the picture is expected to move between two frames; only the rest is measured, so
            that a fast camera does not leave the solver's reach.
    """
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(t: int, other: int) -> np.ndarray:
        if guess is None:
            return solver.calc(grey[t], grey[other], None)
        expected = guess(t, other)
        there = cv2.remap(grey[other], pixel_grid(grey.shape[1:]) + expected, None, cv2.INTER_LINEAR)
        return expected + solver.calc(grey[t], there, None)

    starts = {step: range(len(grey) - step) for step in STEPS}
    forward = {step: np.stack([flow(t, t + step) for t in starts[step]]) for step in STEPS}
    backward = {step: np.stack([flow(t + step, t) for t in starts[step]]) for step in STEPS}
    return Flows(forward, backward)


def pixel_grid(size: tuple[int, int]) -> np.ndarray:
    """(H, W, 2) f32 x and y of every pixel."""
    return np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1).astype(np.float32)


def unexplained_by_cameras(flows: Flows, grey: np.ndarray, scene: StaticScene) -> np.ndarray:
    """(T, H, W) f32: how far measured flow leaves that of a static scene, as a multiple of what counts as moving.

    A pixel may lie at any of the depths around it, for edges of depth and of flow do not coincide, and in the sky it
    may be infinitely far.

    Args:
        flows: measured.
        grey: (T, H, W) u8 frames.
        scene: everything static.
    """
    size = grey.shape[1:]

    def residual(t: int, other: int) -> np.ndarray:
        measured = flows.between(t, other)
        explained = scene.flows(t, other, scene.around(t))
        away = []
        for flow in explained:
            px = _length(measured - flow)
            away.append(np.where(_looks_static(grey[t], grey[other], flow), 0, px))
        far = _length(measured - scene.flows(t, other, [np.float32(SKY_DEPTH)])[0])
        away.append(np.where(scene.sky[t], far, np.inf))
        target = pixel_grid(size) + explained[0]
        gone = ((target < 0) | (target > [size[1] - 1, size[0] - 1])).any(-1)
        return np.where(gone, np.inf, np.min(away, axis=0))

    unexplained = _unexplained(len(grey), residual)
    plain = np.stack([_contrast(image) < PLAIN for image in grey])
    return np.where(scene.sky & plain, 0, unexplained)


def _length(vectors: np.ndarray) -> np.ndarray:
    """(H, W) length of (H, W, 2) vectors."""
    return np.sqrt(vectors[..., 0] ** 2 + vectors[..., 1] ** 2)


def homography_flow(found: Correspondences, t: int, other: int) -> np.ndarray:
    """(H, W, 2) f32 px by which most of the picture moves from frame t to another, as one homography; 0 where none is
    found.
    """
    grid = pixel_grid(found.size[::-1])
    first, second = found.of((min(t, other), max(t, other)))
    here, there = (first, second) if t < other else (second, first)
    if len(here) < LEAST_MATCHES:
        return np.zeros_like(grid)
    cv2.setRNGSeed(0)
    motion, _ = cv2.findHomography(here, there, cv2.RANSAC, HOMOGRAPHY_PIXELS)
    if motion is None:
        return np.zeros_like(grid)
    return cv2.perspectiveTransform(grid.reshape(-1, 1, 2), motion).reshape(grid.shape) - grid


def unexplained_by_homographies(flows: Flows, grey: np.ndarray, found: Correspondences) -> np.ndarray:
    """(T, H, W) f32 like ``unexplained_by_cameras`` where there are none: a homography explains the background."""

    def residual(t: int, other: int) -> np.ndarray:
        expected = homography_flow(found, t, other)
        px = _length(flows.between(t, other) - expected)
        return np.where(_looks_static(grey[t], grey[other], expected), 0, px)

    return _unexplained(len(grey), residual)


def _unexplained(total: int, residual: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """(T, H, W) multiples of what counts as moving, from (H, W) px between two frames, infinite where none is known.

    Of both ways in time the smaller counts, for what is hidden in one frame is seen in the other; of all steps the
    greater.
    """
    result = []
    for t in range(total):
        steps = []
        for step in STEPS:
            others = [other for other in (t - step, t + step) if 0 <= other < total]
            if not others:
                continue
            multiples = np.array([_multiple(residual(t, other)) for other in others])
            # Where a pixel leaves the picture one way, it may just be hidden the other way.
            steps.append(np.where(np.isfinite(multiples).all(0), multiples.min(0), 0))
        result.append(np.max(steps, axis=0))
    return np.stack(result).astype(np.float32)


def _multiple(residual: np.ndarray) -> np.ndarray:
    known = residual[np.isfinite(residual)]
    median = np.median(known) if known.size else 0.0
    spread = np.median(np.abs(known - median)) if known.size else 0.0
    return residual / max(LEAST_PIXELS, median + DEVIATIONS * spread)


def _looks_static(image: np.ndarray, other: np.ndarray, rigid: np.ndarray) -> np.ndarray:
    """(H, W) bool where another picture, brought here by the static scene's flow, has the same texture.

    Dense flow drags along what lies beside a moving thing; its texture tells that it stayed.
    """
    here = image.astype(np.float32)
    there = cv2.remap(other.astype(np.float32), pixel_grid(here.shape) + rigid, None, cv2.INTER_LINEAR)
    return correlation(here, there, LOOK_WINDOW) > SAME_LOOK


def _contrast(image: np.ndarray) -> np.ndarray:
    """(H, W) standard deviation of the grey levels around each pixel."""
    levels = image.astype(np.float32)
    mean = cv2.blur(levels, PLAIN_WINDOW)
    return np.sqrt(np.maximum(cv2.blur(levels * levels, PLAIN_WINDOW) - mean * mean, 0))


def different_from_background(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) f32 for a static camera: difference to the median frame as a multiple of what counts as moving."""
    background = np.median(frames[:: max(1, len(frames) // 32)], axis=0).astype(np.int16)
    return np.stack(
        [np.abs(frame.astype(np.int16) - background).max(-1) / DIFFERENCE for frame in frames], dtype=np.float32
    )


def tracked(unexplained: np.ndarray, flows: Flows, min_share: float, rim: int = 0) -> np.ndarray:
    """(N, T, H, W) bool masks of things.

    Things are continued from frame to frame by their own shift; where they touch, each pixel goes to the thing that
    leads there and moves like it.

    Args:
        unexplained: (T, H, W) multiples of what counts as moving.
        flows: between the frames.
        min_share: share of the frame that a thing must cover.
        rim: px by which what counts as moving reaches beyond what moves.
    """
    total, *size = unexplained.shape
    tracks: list[dict[int, np.ndarray]] = []
    for t, multiples in enumerate(unexplained):
        leads = [_Lead.of(k, track, flows, t) for k, track in enumerate(tracks) if t - max(track) <= PATIENCE + 1]
        back = flows.between(t, t - 1) if t else np.zeros((*size, 2), np.float32)
        owned: dict[int, np.ndarray] = {}
        fresh = []
        for region in _regions(multiples, min_share, rim):
            for k, part in _shared_out(region, leads, back):
                if k is None:
                    fresh.append(part)
                else:
                    owned[k] = owned.get(k, False) | part
        for k, mask in owned.items():
            first, *others = _far_parts(mask, min_share) or [None]
            fresh += others
            if first is not None:
                tracks[k][t] = first
        tracks += [{t: part} for mask in fresh for part in _far_parts(mask, min_share)]
    least = max(MIN_FRAMES, MIN_SHARE * total)
    kept = [track for track in tracks if len(track) >= least]
    stacked = np.zeros((len(kept), total, *size), bool)
    for i, track in enumerate(kept):
        for t, mask in track.items():
            stacked[i, t] = mask
    return stacked


@dataclass(frozen=True)
class _Lead:
    """Where a track's last mask lies in a later frame if it went on as its pixels did in the median.

    Attributes:
        track: number of the track.
        away: (H, W) px to the mask there.
        step: (2,) px per frame.
    """

    track: int
    away: np.ndarray
    step: np.ndarray

    @classmethod
    def of(cls, number: int, track: dict[int, np.ndarray], flows: Flows, t: int) -> _Lead:
        last = max(track)
        mask = track[last]
        step = np.median(flows.between(last, last + 1)[mask], axis=0)
        there = np.float32([[1, 0, step[0] * (t - last)], [0, 1, step[1] * (t - last)]])
        moved = cv2.warpAffine(mask.astype(np.uint8), there, mask.shape[::-1], flags=cv2.INTER_NEAREST)
        away = cv2.distanceTransform(1 - moved, cv2.DIST_L2, 3) if moved.any() else np.full(mask.shape, np.inf)
        return cls(number, away, step)


def _regions(multiples: np.ndarray, min_share: float, rim: int) -> list[np.ndarray]:
    """(H, W) masks of the connected regions that move clearly, without holes and rim, largest first.

    Slivers along the edges of static things vanish; thin parts of what is thick somewhere (legs) stay.
    """
    side = round(min(multiples.shape) * CORE) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    moving = (multiples > 1).astype(np.uint8)
    core = cv2.morphologyEx(moving, cv2.MORPH_OPEN, kernel)
    moving &= cv2.dilate(core, kernel)
    outlines, _ = cv2.findContours(
        cv2.morphologyEx(moving, cv2.MORPH_CLOSE, kernel), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    whole = cv2.drawContours(np.zeros_like(moving), outlines, -1, 1, cv2.FILLED)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(whole)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    large = np.flatnonzero(areas >= min_share * multiples.size)
    labels = np.where(cv2.erode(whole, np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)) > 0, labels, 0)
    masks = (labels == k for k in large[np.argsort(-areas[large], kind="stable")])
    return [mask for mask in masks if mask.any() and np.median(multiples[mask]) > CLEARLY]


def _shared_out(region: np.ndarray, leads: list[_Lead], back: np.ndarray) -> list[tuple[int | None, np.ndarray]]:
    """The parts of an (H, W) region by the track that leads there; None for a new one.

    Args:
        region: what moves.
        leads: of the tracks.
        back: (H, W, 2) flow to the frame before.
    """
    near = [lead for lead in leads if (lead.away[region] == 0).any()]
    if not near:
        return [(None, region)]
    away = np.stack([lead.away for lead in near])
    unlike = np.stack([np.linalg.norm(back + lead.step, axis=-1) for lead in near])
    owner = (away + MOTION_WEIGHT * unlike).argmin(0)
    rest = region & (away.min(0) > REACH * region.shape[1])
    # What lies far from every lead is another thing, if it is not just a fringe.
    rest &= rest.sum() > 0.5 * region.sum()
    parts = [(lead.track, region & ~rest & (owner == i)) for i, lead in enumerate(near)] + [(None, rest)]
    return [(k, part) for k, part in parts if part.any()]


def _far_parts(mask: np.ndarray, min_share: float) -> list[np.ndarray]:
    """The parts of an (H, W) mask that lie far from each other and are not too small, largest first."""
    side = round(REACH * mask.shape[1]) | 1
    _, labels = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)))
    parts = [mask & (labels == k) for k in np.unique(labels[mask])]
    parts = [part for part in parts if part.sum() >= min_share * mask.size]
    return sorted(parts, key=lambda part: -part.sum())
