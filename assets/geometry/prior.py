"""Geometric cells: what the geometry network reads where no learned reconstruction ran.

Time is merged by two frames and space is pooled to a coarse grid, like the vision tokens they stand beside. Channels:

| channels | meaning | range |
|---|---|---|
| 0..2 | mean point in the camera frame / ``LENGTH_UNIT`` | clipped to ±``LIMIT`` |
| 3..5 | mean point in the world frame / ``LENGTH_UNIT`` | clipped to ±``LIMIT`` |
| 6..8 | scene flow: velocity in the world, per second / ``LENGTH_UNIT`` | clipped to ±``LIMIT`` |
| 9..11 | mean colour | -1..1 |
| 12 | validity: share of points with a depth, weighted by confidence | 0..1 |
| 13 | time of the slot's last frame / ``TIME_UNIT`` | 0.. |

A slot knows nothing of later frames: flow is the backward difference of each object's centre.

Where a reconstruction network ran, its tokens take the place of cells (``stacked``, ``pooled``). Tokens of the π³
encoder know one frame each; those of its decoder know all frames, also those that a question hides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from assets.geometry.frames_of_reference import transform
from assets.geometry.grid import grid_size, membership, sample_cells
from assets.geometry.record import SceneRecord, decode_mask, rounded

if TYPE_CHECKING:
    import torch

CHANNELS = 14
MERGED_FRAMES = 2
# Metres where a scene is metric; relative scenes are scaled so that the median depth of their first frame is one unit.
LENGTH_UNIT = 10.0
TIME_UNIT = 60.0
LIMIT = 16.0


def with_prior(record: SceneRecord, frames: np.ndarray, side: int) -> SceneRecord:
    """The record with ``prior_features`` and ``prior_times`` computed from its own geometry.

    Args:
        record: a record with points (T, h, w, 3); its stored prior is replaced.
        frames: (T, H, W, 3) u8 RGB, the frames the record is about.
        side: longest side of the grid of cells.
    """
    height, width = grid_size(*frames.shape[1:3], side)
    points_size = record.points.shape[1:3]
    per_point = np.zeros((len(frames), *points_size, 9))
    per_point[..., :3] = record.points
    per_point[..., 3:6] = transform(record.world_from_camera[:, None, None], record.points)
    per_point[..., 6:9] = scene_flow(record, points_size)
    weight = record.confidence.astype(float) * np.isfinite(per_point).all(-1)
    geometry = np.clip(np.nan_to_num(per_point) / LENGTH_UNIT, -LIMIT, LIMIT)
    summed = _pooled(np.concatenate([geometry * weight[..., None], weight[..., None]], -1), height, width)
    # Colour at the resolution of the points is plenty for a mean over a cell, and reads a fraction of the pixels.
    colour = sample_cells(frames, *grid_size(*frames.shape[1:3], 8 * side)) / 127.5 - 1.0
    colour = _merged(_pooled(np.concatenate([colour, np.ones_like(colour[..., :1])], -1), height, width))
    cells = _pooled(np.ones_like(weight)[..., None], height, width)
    summed, cells = _merged(summed), _merged(cells)
    times = slot_times(record.timestamps)
    features = np.concatenate(
        [
            summed[..., :9] / np.maximum(summed[..., 9:], 1e-6),
            colour[..., :3] / np.maximum(colour[..., 3:], 1e-6),
            summed[..., 9:] / np.maximum(cells, 1e-6),
            np.broadcast_to(times[:, None, None, None] / TIME_UNIT, (*summed.shape[:3], 1)),
        ],
        -1,
    )
    return rounded(replace(record, prior_features=features.round(4), prior_times=times))


def stacked(tokens: torch.Tensor) -> np.ndarray:
    """``models.online_prior.stacked`` of (T, h, w, C) tokens, as bits of bfloat16 in u16."""
    from models import online_prior

    return _bfloat16_bits(online_prior.stacked(tokens))


def pooled(tokens: torch.Tensor, side: int) -> np.ndarray:
    """``models.online_prior.pooled`` of (T, h, w, C) tokens, as bits of bfloat16 in u16."""
    from models import online_prior

    return _bfloat16_bits(online_prior.pooled(tokens, side))


def _bfloat16_bits(values: torch.Tensor) -> np.ndarray:
    import torch

    return values.to(torch.bfloat16).contiguous().view(torch.uint16).cpu().numpy()


def slot_times(timestamps: np.ndarray) -> np.ndarray:
    """(ceil(T / 2),) time of the last frame of each slot, from the (T,) times of the frames."""
    last = np.arange(1, len(timestamps) + 1, MERGED_FRAMES)
    return timestamps[np.minimum(last, len(timestamps) - 1)]


def scene_flow(record: SceneRecord, size: tuple[int, int]) -> np.ndarray:
    """(T, h, w, 3) velocity in the world, scene units per second, of the thing under each cell of an (h, w) grid.

    Things that no mask covers stand still; a moving thing flows with its centre, by the difference to the last frame
    before it in which the centre was known. Zero where nothing was known before.
    """
    flow = np.zeros((len(record.timestamps), *size, 3))
    for velocity, masks in zip(velocities(record), record.masks, strict=True):
        moving = np.flatnonzero((velocity != 0).any(-1))
        for t in moving:
            if masks[t] is not None:
                flow[t, sample_cells(decode_mask(masks[t])[None], *size)[0]] = velocity[t]
    return flow


def velocities(record: SceneRecord) -> np.ndarray:
    """(N, T, 3) backward differences of the centres, scene units per second; zero where there is none."""
    centers = record.centers_world.astype(float)
    seen = np.isfinite(centers).all(-1)
    index = np.where(seen, np.arange(seen.shape[1]), -1)
    last = np.maximum.accumulate(index, axis=1)
    before = np.concatenate([np.full((len(last), 1), -1), last[:, :-1]], 1)
    known = seen & (before >= 0)
    previous = np.take_along_axis(centers, np.maximum(before, 0)[..., None], 1)
    seconds = np.where(known, record.timestamps - record.timestamps[np.maximum(before, 0)], 1.0)
    return np.where(known[..., None], (centers - previous) / np.maximum(seconds, 1e-6)[..., None], 0.0)


def _pooled(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sum (T, h, w, C) over a coarser (height, width) grid; a value belongs to the cell under its centre."""
    if 0 in values.shape[1:3]:
        return np.zeros((len(values), height, width, values.shape[-1]))
    rows = membership(values.shape[1], height)
    columns = membership(values.shape[2], width)
    return np.einsum("thwc,hi,wj->tijc", values, rows, columns, optimize=True)


def _merged(values: np.ndarray) -> np.ndarray:
    """Sum (T, ...) over pairs of frames to (ceil(T / 2), ...); an odd last frame stands alone."""
    return np.add.reduceat(values, np.arange(0, len(values), MERGED_FRAMES), axis=0)
