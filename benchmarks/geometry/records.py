"""What a record costs at the paper's resolution: its size, what storing it loses, and how fast it is read."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from assets.geometry import prior
from assets.geometry.frames_of_reference import first_camera_world, transform
from assets.geometry.grid import grid_size, sample_cells
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import SceneRecord, box_of, decode_mask, encode_mask, load, save, unknown
from assets.videos.painting import Painter
from assets.videos.scenery import draw_scene
from assets.videos.things import SHAPES
from benchmarks.figure import Figure
from benchmarks.geometry.scenes import GRAIN, SCENES

# 16:9 within 255,000 pixels, sides whole patches of π³; a handful of things.
FULL = SCENES.model_copy(update={"width": 672, "height": 378, "fewest_things": 5, "most_things": 5})
PATCH, CHANNELS = 14, 1024
# Copies of the record are read in turn: together they are larger than a processor's caches.
COPIES, REPEATS = 24, 5
MIN_CELLS = 4


@dataclass(frozen=True)
class Example:
    """A record and what is exactly known of its clip.

    Attributes:
        record: as stored, float16 points.
        points: (T, h, w, 3) f64 metres in the camera frame, at the record's cells.
        all_points: (T, H, W, 3) f64, at all pixels.
        instances: (T, H, W) u8, 0 background, i + 1 thing i.
    """

    record: SceneRecord
    points: np.ndarray
    all_points: np.ndarray
    instances: np.ndarray


def figures() -> dict[str, Figure]:
    """Figures of one record of 32 frames of 672x378 pixels and five things."""
    example = full_size()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.safetensors"
        save(replace(example.record, prior_features=_tokens(prior.stacked)), path)
        stacked = path.stat().st_size / 1e6
        save(example.record, path)
        return _lossy(example) | _read(path) | _sizes(path.stat().st_size / 1e6, stacked)


def _sizes(size: float, stacked: float) -> dict[str, Figure]:
    what = f"32 frames of 672x378, 5 things, points on {GeometryParameters().points_side} cells"
    return {
        "record_mb": Figure(size, 8, "lower", "MB", f"{what}, π³ encoder tokens as means (prior_merge: mean)"),
        "record_stacked_mb": Figure(
            stacked, None, "lower", "MB", "the same with the tokens side by side as published (prior_merge: stack)"
        ),
    }


def _lossy(example: Example) -> dict[str, Figure]:
    stored, exact, whole = centers(example)
    distance = np.linalg.norm(exact, axis=-1)
    lost = np.linalg.norm(stored - exact, axis=-1) / distance
    sampled = np.linalg.norm(stored - whole, axis=-1) / np.linalg.norm(whole, axis=-1)
    return {
        "compression_center_error": Figure(
            float(lost.max()),
            0.001,
            "lower",
            "share",
            f"centres from float16 points against exact ones on the same cells, over distance, worst of {len(lost)}",
        ),
        "grid_center_error": Figure(
            float(np.median(sampled)),
            None,
            "lower",
            "share",
            "the same against all pixels of a mask, median: what the coarser grid of points costs",
        ),
    }


def _read(path: Path) -> dict[str, Figure]:
    """How fast records in the page cache are read whole, against a copy of the bare mapped bytes."""
    paths = [path.with_name(f"{i}-{path.name}") for i in range(COPIES)]
    for copy in paths:
        shutil.copy(path, copy)
    size = path.stat().st_size / 1e9
    whole, bare = _seconds(load, paths), _seconds(lambda copy: np.array(np.memmap(copy, np.uint8, "r")), paths)
    frame = _seconds(lambda copy: load(copy, ["points", "masks"], slice(8, 9)), paths)
    return {
        "cache_read_gbps": Figure(size / whole, None, "higher", "GB/s", f"load, whole, median of {COPIES * REPEATS}"),
        "mmap_read_gbps": Figure(size / bare, None, "higher", "GB/s", "copy of the same files' mapped bytes"),
        "cache_read_share": Figure(bare / whole, None, "higher", "ratio", "the first over the second"),
        "frame_read_share": Figure(
            frame / whole, None, "lower", "ratio", "time for points and masks of one frame over that for all"
        ),
    }


def _seconds(read: Callable[[Path], object], paths: list[Path]) -> float:
    """Median time for one path."""
    took = []
    for path in paths * REPEATS:
        started = time.perf_counter()
        read(path)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def centers(example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (K, 3) in the camera frame of what is seen of things, as means of the points under their masks.

    Returns:
        From the stored points, from exact points at the same cells, and from exact points at all pixels.
    """
    record = example.record
    found = []
    for thing, row in enumerate(record.masks):
        masks = np.stack([decode_mask(mask) for mask in row])
        cells = sample_cells(masks, *record.points.shape[1:3]) & (record.confidence > 0)
        for t in np.flatnonzero(cells.sum((1, 2)) >= MIN_CELLS):
            stored = record.points[t][cells[t]].astype(float).mean(0)
            exact = example.points[t][cells[t]].mean(0)
            found.append((stored, exact, example.all_points[t][example.instances[t] == thing + 1].mean(0)))
    return tuple(np.array(found).transpose(1, 0, 2))


def full_size(frames: int = 32, parameters=FULL) -> Example:
    """A rendered clip at the paper's resolution as a record whose prior holds pooled random tokens of π³'s width."""
    scene = draw_scene("geometry-benchmark", 0, parameters, "truck", GRAIN)
    painter = Painter(scene, parameters.width, parameters.height)
    pictures = [painter.paint(frame) for frame in range(frames)]
    instances = np.stack([picture.instances for picture in pictures])
    masks = instances[None] == np.arange(1, len(scene.things) + 1)[:, None, None, None]
    poses, first_from_old = first_camera_world(scene.world_from_camera[:frames])
    places = np.stack([thing.centers()[:frames] for thing in scene.things])
    everywhere = _unprojected(np.stack([picture.depth for picture in pictures]), scene.intrinsics)
    size = grid_size(parameters.height, parameters.width, GeometryParameters().points_side)
    points = sample_cells(everywhere, *size)
    times = np.arange(frames) / parameters.fps
    record = unknown(
        times,
        [thing.name for thing in scene.things],
        [thing.shape for thing in scene.things],
        is_agent=np.array([SHAPES[thing.shape].is_agent for thing in scene.things]),
        intrinsics=np.tile(scene.intrinsics, (frames, 1, 1)),
        world_from_camera=poses,
        points=points,
        confidence=np.ones(points.shape[:3]),
        masks=[[encode_mask(mask) for mask in row] for row in masks],
        boxes=np.array([[box_of(mask) for mask in row] for row in masks]),
        centers_world=transform(first_from_old, places),
        prior_features=_tokens(lambda tokens: prior.pooled(tokens, GeometryParameters().prior_side), frames),
        prior_times=prior.slot_times(times),
        provenance={"status": "3d", "frame_size": [parameters.height, parameters.width]},
    )
    return Example(record, points, everywhere, instances)


def _tokens(merge: Callable, frames: int = 32) -> np.ndarray:
    """Random encoder tokens of π³ for FULL, merged: their values do not matter, their number does."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = frames, FULL.height // PATCH, FULL.width // PATCH, CHANNELS
    return merge(torch.randn(shape, generator=generator))


def _unprojected(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) points in the camera frame of (T, H, W) z-depth, pixel centres at whole numbers."""
    rows, columns = np.mgrid[: depth.shape[1], : depth.shape[2]]
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(intrinsics).T
    return depth[..., None] * rays
