"""The reference's way of deriving a question, from its description: everything again for every question.

Per question and frame the centre of each thing is the mean of the full-size point map under its mask, then moved into
the viewpoint's frame; states are compared frame by frame, and three wrong options come from noise through the same
describer. Its networks (reconstruction, detection, tracking, orientation), which it runs again as well, are left out.
"""

from __future__ import annotations

import time

import numpy as np

from assets.videos.painting import Painter
from assets.videos.parameters import SampleWorldParameters
from assets.videos.scenery import draw_scene
from benchmarks.questions import slow
from benchmarks.questions.scenes import SHARD

FRAMES, HEIGHT, WIDTH = 32, 360, 640
QUESTIONS = 60


def seconds_per_question(world: SampleWorldParameters) -> float:
    """Mean seconds of deriving one question of one clip of 32 frames of 640x360."""
    points, valid, masks = _point_maps(world)
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(QUESTIONS):
        former, latter = rng.permutation(len(masks))[:2]
        start, end = np.sort(rng.choice(FRAMES - 2, 2, replace=False))
        distances = [
            float(np.linalg.norm(_center(points, valid, masks[former], f) - _center(points, valid, masks[latter], f)))
            for f in range(start, min(max(end, start + 4), FRAMES - 1) + 1)
        ]
        options = [slow.trend(distances), *(slow.trend(list(rng.uniform(0.5, 2, len(distances)))) for _ in range(3))]
        rng.permutation(len(options))
    return (time.perf_counter() - started) / QUESTIONS


def _center(points: np.ndarray, valid: np.ndarray, masks: np.ndarray, frame: int) -> np.ndarray:
    return points[frame][masks[frame] & valid[frame]].mean(axis=0)


def _point_maps(world: SampleWorldParameters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World points (T, H, W, 3), validity (T, H, W) and masks (N, T, H, W) of a clip, enlarged to the paper's size."""
    scene = draw_scene(SHARD, 0, world)
    painter = Painter(scene, world.width, world.height)
    rows, columns = (np.arange(n) * m // n for n, m in ((HEIGHT, world.height), (WIDTH, world.width)))
    pixels = np.stack(np.broadcast_arrays(columns[None], rows[:, None], 1.0), -1) @ np.linalg.inv(scene.intrinsics).T
    points, seen = [], []
    for frame in np.linspace(0, world.fps * world.seconds - 1, FRAMES).round().astype(int):
        picture = painter.paint(frame)
        pose = scene.world_from_camera[frame]
        depth = np.where(np.isfinite(picture.depth), picture.depth, 0.0)[rows[:, None], columns]
        points.append(depth[..., None] * pixels @ pose[:3, :3].T + pose[:3, 3])
        seen.append(picture.instances[rows[:, None], columns])
    points, seen = np.stack(points), np.stack(seen)
    masks = np.stack([seen == 1 + thing for thing in range(len(scene.things))])
    # A thing out of sight counts with all points, so that every question can be asked; only the time is measured.
    masks |= ~masks.any(axis=(-1, -2), keepdims=True)
    return points, np.ones(seen.shape, bool), masks
