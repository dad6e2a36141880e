"""Whether a scene can be asked about: the paper's clip filter as measured columns, one rule per column.

A rule whose value cannot be known, such as the size in the picture of a thing in a log without pictures, does not
speak against a scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from assets.geometry.parameters import FitnessParameters
from assets.geometry.record import SceneRecord

# Fields of a record that the rules read.
FIELDS = ("world_from_camera", "boxes", "centers_world", "masks")
COLUMNS = ("moving", "smallest_share", "largest_share", "mount_share")
_DECIMALS = 4
# What the camera is mounted on is seen at least in this share of the frames, always at the picture's border, and its
# box keeps its place to within this share of the picture.
_ALWAYS, _BORDER_PX, _STILL = 0.9, 1.5, 0.02


def judge(
    record: SceneRecord, row: Mapping[str, Any], parallax: float, moving_share: float, parameters: FitnessParameters
) -> dict[str, Any]:
    """Columns of scenes.parquet that say whether a clip is fit for questions, and why.

    Args:
        record: with at least FIELDS loaded.
        row: the clip's row of clips.parquet; what speaks against it there (``unfit``) counts here too.
        parallax: extent of the camera's path as share of the scene's depth, NaN where unknown.
        moving_share: see GeometryParameters.
        parameters: the bounds.

    Returns:
        moving: number of things that move.
        smallest_share, largest_share: of the frame, that the smallest and the largest moving thing cover; a thing
            counts with its median over the frames it is seen in. NaN where nothing moves or there is no picture.
        mount_share: of the frame, that a thing covers which travels with the camera (the bonnet of a car); 0 where
            there is none, NaN where it is not known whether the camera travels.
        fit, unfit: the verdict, and the columns that speak against the clip, of clips.parquet and of these.
    """
    moves = _moves(record, moving_share, parameters.moving_path)
    shares = frame_shares(record)
    typical = _median(shares)[moves]
    typical = typical[np.isfinite(typical)]
    values = {
        "moving": int(moves.sum()),
        "smallest_share": round(float(typical.min()), _DECIMALS) if len(typical) else float("nan"),
        "largest_share": round(float(typical.max()), _DECIMALS) if len(typical) else float("nan"),
        "mount_share": mount_share(record, shares, parallax, parameters.travelling_parallax),
    }
    against = {
        "moving": values["moving"] < parameters.min_moving,
        "smallest_share": values["smallest_share"] < parameters.min_share,
        "largest_share": values["largest_share"] > parameters.max_share,
        "mount_share": values["mount_share"] > parameters.max_mount_share,
    }
    unfit = [*filter(None, [row.get("unfit")]), *(name for name in COLUMNS if against[name])]
    return values | {"fit": not unfit, "unfit": ", ".join(unfit)}


def frame_shares(record: SceneRecord) -> np.ndarray:
    """(N, T) share of the frame that each thing covers: of its mask, else of its box; NaN where it is not seen."""
    from pycocotools import mask as coco

    height, width = record.frame_size
    if not height * width:
        return np.full(record.boxes.shape[:2], np.nan)
    corners = np.clip(record.boxes.astype(float), 0, [width, height, width, height])
    areas = np.prod(corners[..., 2:] - corners[..., :2], axis=-1)
    for i, row in enumerate(record.masks):
        # One at a time: pycocotools 2.0.11 counts the masks of a call in 8 bits.
        for t, mask in enumerate(row):
            if mask is not None:
                areas[i, t] = coco.area(mask)
    return np.where(areas > 0, areas / (height * width), np.nan)


def mount_share(record: SceneRecord, shares: np.ndarray, parallax: float, travelling: float) -> float:
    """Share of the frame that the largest thing covers which the camera seems to be mounted on.

    Such a thing stands still in the picture, at its border and nearly always in sight, while the camera travels: what
    belongs to the world moves in the picture then, and what keeps pace with the camera by chance does not keep to the
    border by chance as well.

    Args:
        record: with boxes loaded.
        shares: (N, T) of ``frame_shares``.
        parallax: extent of the camera's path as share of the scene's depth, NaN where unknown.
        travelling: parallax from which the camera travels.

    Returns:
        0..1; 0 where there is no such thing or the camera stays, NaN where its path is unknown.
    """
    height, width = record.frame_size
    if np.isnan(parallax) or not height * width:
        return float("nan")
    if parallax < travelling or not len(shares):
        return 0.0
    sides = np.array([width, height, width, height], float)
    seen = np.isfinite(record.boxes).all(-1) & np.isfinite(shares)
    boxes = np.where(seen[..., None], record.boxes.astype(float), np.nan)
    low, high = boxes[..., :2] <= _BORDER_PX, boxes[..., 2:] >= sides[2:] - _BORDER_PX
    at_border = (low | high).any(-1) & seen
    spread = np.nan_to_num(np.ptp(_percentiles(boxes / sides, (10, 90)), axis=0), nan=np.inf).max(-1)
    mounted = (at_border.mean(axis=1) >= _ALWAYS) & (spread <= _STILL)
    return round(float(_median(shares)[mounted].max(initial=0.0)), _DECIMALS)


def moving_in_world(record: SceneRecord, share: float) -> np.ndarray:
    """(N,) whether the box around an object's path is longer than ``share`` of its median distance to the camera."""
    centers = record.centers_world.astype(float)
    away = np.linalg.norm(centers - record.world_from_camera[None, :, :3, 3], axis=-1)
    return _extents(centers) > share * np.nan_to_num(_median(away), nan=np.inf)


def moving_in_picture(record: SceneRecord, share: float) -> np.ndarray:
    """(N,) whether the path of an object's box is longer than ``share`` of the frame's diagonal."""
    boxes = record.boxes.astype(float)
    return _extents((boxes[..., :2] + boxes[..., 2:]) / 2) > share * np.hypot(*record.frame_size)


def _moves(record: SceneRecord, in_world: float, in_picture: float) -> np.ndarray:
    """(N,) whether an object moves, by its centres where the poses are known, else by its box."""
    if record.provenance["poses"] != "unknown":
        return moving_in_world(record, in_world)
    return moving_in_picture(record, in_picture)


def _extents(path: np.ndarray) -> np.ndarray:
    """(N,) diagonal of the box around (N, T, D) positions, of which those with NaN are left out; 0 without any."""
    seen = np.isfinite(path).all(-1)[..., None]
    high = np.where(seen, path, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(seen, path, np.inf).min(axis=1, initial=np.inf)
    return np.linalg.norm(np.where(np.isfinite(high), high - low, 0.0), axis=-1)


def _median(values: np.ndarray) -> np.ndarray:
    """(N,) median of the known values of each row of (N, T); NaN where none is known."""
    return _percentiles(values[..., None], (50,))[0, :, 0]


def _percentiles(values: np.ndarray, which: tuple[int, ...]) -> np.ndarray:
    """(P, N, D) percentiles over T of (N, T, D), of the known values; NaN where none is known."""
    if not values.size:
        return np.full((len(which), values.shape[0], values.shape[2]), np.nan)
    unknown = np.isnan(values).all(axis=1)
    # numpy warns where there is no value at all.
    found = np.nanpercentile(np.where(unknown[:, None], 0.0, values), which, axis=1)
    return np.where(unknown, np.nan, found)
