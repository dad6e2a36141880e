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
| 14..16 | where the thing under the cell looks, in the camera frame, weighted by confidence; 0 where unknown | -1..1 |
| 17..19 | the same in the world frame | -1..1 |

A cell stands for one thing, or for what is around the things, and its means are over that alone: a mean over a thing
and the wall behind it would be a point in the air between them. A thing needs a quarter of the cell for it.
A slot knows nothing of later frames: flow is the backward difference of each object's centre.

Where a reconstruction network ran, its tokens take the place of cells (``stacked``, ``pooled``). Tokens of the π³
encoder know one frame each; those of its decoder know all frames, also those that a question hides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from assets.geometry.frames_of_reference import transform
from assets.geometry.grid import coarse_index, grid_size, membership, sample_cells
from assets.geometry.record import SceneRecord, decode_mask, rounded

if TYPE_CHECKING:
    import torch

CHANNELS = 20
MERGED_FRAMES = 2
# Metres where a scene is metric; relative scenes are scaled so that the median depth of their first frame is one unit.
LENGTH_UNIT = 10.0
TIME_UNIT = 60.0
LIMIT = 16.0
NOBODY = -1
# Share of a cell that a thing has to cover for the cell to stand for it.
STANDS_FOR = 0.25


def with_prior(record: SceneRecord, frames: np.ndarray, side: int) -> SceneRecord:
    """The record with ``prior_features`` and ``prior_times`` computed from its own geometry.

    Args:
        record: a record with points (T, h, w, 3); its stored prior is replaced.
        frames: (T, H, W, 3) u8 RGB, the frames the record is about.
        side: longest side of the grid of cells.
    """
    grid = grid_size(*frames.shape[1:3], side)
    # Colour at the resolution of the points is plenty for a mean over a cell, and reads a fraction of the pixels.
    finer = grid_size(*frames.shape[1:3], 8 * side)
    colour = sample_cells(frames, *finer) / 127.5 - 1.0
    coloured, pointed = owners(record, finer), owners(record, record.points.shape[1:3])
    shown = _shown(coloured, len(record.object_ids), grid)
    in_world = transform(record.world_from_camera[:, None, None], record.points)
    per_point = np.concatenate([record.points, in_world, _under(velocities(record), pointed)], -1, dtype=float)
    known = record.confidence * np.isfinite(per_point).all(-1)
    geometry, validity = _means(np.clip(np.nan_to_num(per_point) / LENGTH_UNIT, -LIMIT, LIMIT), known, pointed, shown)
    coloured_and_facing = np.concatenate([colour, _under(headings(record), coloured)], -1)
    seen, _ = _means(coloured_and_facing, np.ones(coloured.shape), coloured, shown)
    times = slot_times(record.timestamps)
    clock = np.broadcast_to(times[:, None, None, None] / TIME_UNIT, (*shown.shape, 1))
    features = np.concatenate([geometry, seen[..., :3], validity, clock, seen[..., 3:]], -1)
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


def owners(record: SceneRecord, size: tuple[int, int]) -> np.ndarray:
    """(T, h, w) number of the thing whose mask covers the centre of each cell of a grid, NOBODY where none does.

    Where masks overlap the last one counts.
    """
    owner = np.full((len(record.timestamps), *size), NOBODY)
    for thing, masks in enumerate(record.masks):
        for t, mask in enumerate(masks):
            if mask is not None and 0 not in size:
                owner[t, sample_cells(decode_mask(mask)[None], *size)[0]] = thing
    return owner


def scene_flow(record: SceneRecord, size: tuple[int, int]) -> np.ndarray:
    """(T, h, w, 3) velocity in the world, scene units per second, of the thing under each cell of an (h, w) grid.

    Things that no mask covers stand still; a moving thing flows with its centre, by the difference to the last frame
    before it in which the centre was known. Zero where nothing was known before.
    """
    return _under(velocities(record), owners(record, size))


def headings(record: SceneRecord) -> np.ndarray:
    """(N, T, 6) unit vectors along which things look, in the camera and in the world frame, times their confidence."""
    weighted = np.nan_to_num(record.forward_world.astype(float)) * record.forward_confidence[..., None]
    # Where a camera is unknown so is what looks along it.
    turns = np.nan_to_num(record.world_from_camera[:, :3, :3].astype(float))
    in_camera = np.einsum("tji,ntj->nti", turns, weighted)
    return np.concatenate([in_camera, weighted], -1)


def _under(of_things: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(N, T, C) of things as (T, h, w, C) of the cells that they own, zero where nobody does."""
    # NOBODY is the last.
    nothing = np.zeros((1, *of_things.shape[1:]))
    return np.concatenate([of_things, nothing])[owner, np.arange(len(owner))[:, None, None]]


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


def _shown(owner: np.ndarray, things: int, grid: tuple[int, int]) -> np.ndarray:
    """(T', h', w') number of the thing that each cell of each slot stands for, NOBODY for what is around them.

    Args:
        owner: (T, h, w) as ``owners`` gives it.
        things: how many there are.
        grid: h', w'.
    """
    present = owner[..., None] == np.arange(things)
    shares = _merged(_pooled(np.concatenate([present, np.ones((*owner.shape, 1))], -1), *grid))
    shares = shares[..., :-1] / np.maximum(shares[..., -1:], 1)
    if not things:
        return np.full(shares.shape[:3], NOBODY)
    return np.where(shares.max(-1) >= STANDS_FOR, shares.argmax(-1), NOBODY)


def _means(
    values: np.ndarray, weight: np.ndarray, owner: np.ndarray, shown: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means (T', h', w', C) of values over what each cell stands for, and (T', h', w', 1) their mean weight.

    Args:
        values: (T, h, w, C).
        weight: (T, h, w).
        owner: (T, h, w) whose each value is.
        shown: (T', h', w') as ``_shown`` gives it.
    """
    frames, height, width = owner.shape
    slots = np.arange(frames) // MERGED_FRAMES
    rows, columns = (coarse_index(fine, coarse) for fine, coarse in zip((height, width), shown.shape[1:], strict=True))
    taken = owner == shown[slots[:, None, None], rows[:, None], columns]
    weight = (weight * taken)[..., None]
    summed = _merged(_pooled(np.concatenate([values * weight, weight, taken[..., None]], -1), *shown.shape[1:]))
    total, count = summed[..., -2:-1], summed[..., -1:]
    return summed[..., :-2] / np.maximum(total, 1e-6), total / np.maximum(count, 1e-6)


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
