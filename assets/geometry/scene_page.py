"""A scene record as one page: its cameras, points, boxes and tracks in 3D over time, beside the picture of the moment.

The page needs nothing but itself: no request leaves it, and its content security policy names its one script and its
one style by hash. What comes from outside (names, reasons, provenance) reaches it as escaped text only. The same record
and frames give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from assets.geometry.frames_of_reference import rigid, transform
from assets.geometry.grid import sample_cells
from assets.geometry.record import Mask, SceneRecord, decode_mask
from assets.geometry.view import level_axes

# Where `dsr ui` serves these pages; the metadata of a materialization links there.
PORT = 3002
ADDRESS = f"http://127.0.0.1:{PORT}"
# The fields of a record that its page shows; the rest need not be read.
SHOWN_FIELDS = (
    "timestamps",
    "intrinsics",
    "world_from_camera",
    "points",
    "confidence",
    "is_agent",
    "masks",
    "boxes",
    "centers_world",
    "forward_world",
)

MAX_MOMENTS = 96
MAX_OBJECTS = 64
MAX_POINTS = 36_000  # of what stands still
MAX_MOVING_POINTS = 14_000  # under the masks of objects, of all moments together
MAX_CELLS = 400_000  # of the point maps that are looked at
MIN_CONFIDENCE = 0.1
# Beside the scene, and where they stand alone: width in pixels, and bytes of all pictures together.
PICTURE_BESIDE = (480, 640_000)
PICTURE_ALONE = (800, 1_300_000)
# Of a moment that is always shown, in the byte that says when a point is.
ALWAYS = 255
# Told apart on light and on dark paper.
COLOURS = (
    "#e0702a #1592b8 #3a9d5d #cf4564 #8663d6 #b58d12 #16a39a #d05fa8 #6b9420 #9a6a48 #4f74e0 #7c8798".split()  # noqa: SIM905
)
TEXT_LENGTH = 120


class ScenePageError(ValueError):
    """A record and frames that do not belong together; the message says how they differ."""


def scene_page(record: SceneRecord, frames: np.ndarray | None, title: str, clip: str = "") -> str:
    """The page of a scene record: in 3D where the record is, else its pictures with boxes and outlines and the reason.

    Args:
        record: with at least ``SHOWN_FIELDS``.
        frames: (T, H, W, 3) u8 RGB, the sampled frames; None where the clip has no picture.
        title: what people call the clip.
        clip: identity of the clip, shown beside the provenance.

    Returns:
        HTML of at most about 2 MB, whatever the size of the record: moments, objects, points and pictures are bounded.

    Raises:
        ScenePageError: the frames are not those of the record.
    """
    from jinja2 import Environment, StrictUndefined

    if frames is not None and len(frames) != len(record.timestamps):
        raise ScenePageError(
            f"{len(frames)} frames, but the record has {len(record.timestamps)} moments: estimate the clip again"
        )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    scene = describe(record, frames)
    style, script = _asset("scene_page.css"), _asset("scene_page.js")
    return environment.from_string(_asset("scene_page.html")).render(
        title=plain(title) or "a clip",
        status=record.status,
        lead=_lead(record, scene),
        notes=_notes(record, scene),
        objects=scene["objects"],
        scene=scene,
        facts=_facts(record, clip),
        provenance=_all_provenance(record.provenance),
        policy=policy(),
        style=style,
        script=script,
        data=_json(scene),
    )


@cache
def policy() -> str:
    """Content security policy of the page: nothing is fetched, only its own script and style count."""
    script, style = (_hash(_asset(f"scene_page.{kind}")) for kind in ("js", "css"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def plain(text: object, length: int = TEXT_LENGTH) -> str:
    """Text from outside as one well-formed, printable line of at most ``length`` characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    line = " ".join(line.encode("utf-8", "replace").decode().split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def describe(record: SceneRecord, frames: np.ndarray | None) -> dict[str, Any]:
    """Everything the page draws, ready for JSON: numbers are rounded, what is unknown is None.

    Places are in the level frame of the first camera: x right, y ahead, z up (``level_axes``).
    """
    part = _choose(record, frames)
    cloud = _cloud(part) if part.in_space else None
    rotations, places = part.cameras[:, :3, :3], part.cameras[:, :3, 3:]
    objects = _objects(part)
    return {
        "times": _numbers(record.timestamps[part.moments], 3),
        "moments": len(record.timestamps),
        "unit": "m" if record.provenance.get("metric") else "units",
        "posesKnown": part.poses_known,
        "space": _space(cloud, part) if part.in_space else None,
        # Per moment: place, right, down, forward.
        "cameras": _numbers(np.concatenate([places, rotations], 2).transpose(0, 2, 1), 4),
        "lens": [_lens(record.intrinsics[t], part.size) for t in part.moments],
        "points": cloud and {name: value for name, value in cloud.items() if name != "still"},
        "picture": part.size and {"width": part.size[1], "height": part.size[0], "jpegs": _jpegs(part)},
        "start": _best_moment(record.boxes[part.objects][:, part.moments], part.centers),
        "objects": objects,
        "leftOut": len(record.names) - len(objects),
    }


@dataclass(frozen=True)
class _Part:
    """What of a record is shown: k of its T moments, n of its N objects, every ``step``-th cell of its point maps.

    Attributes:
        record: the record.
        frames: (T, H, W, 3) u8 RGB or None.
        moments: (k,) indices into T.
        objects: n indices into N.
        size: (H, W) of the frames that the boxes are in, None where nothing tells.
        step: of the cells that are looked at.
        covered: (n, k, h, w) whether such a cell lies under an object's mask.
        poses_known: where not, each moment stands in its own camera's frame.
        cameras: (k, 4, 4) motions from the camera to the level frame.
        centers: (n, k, 3) of the objects in the level frame.
        in_space: whether there is a scene in 3D to draw.
    """

    record: SceneRecord
    frames: np.ndarray | None
    moments: np.ndarray
    objects: list[int]
    size: tuple[int, int] | None
    step: int
    covered: np.ndarray
    poses_known: bool
    cameras: np.ndarray
    centers: np.ndarray
    in_space: bool

    @property
    def points(self) -> np.ndarray:
        """(k, h, w, 3) f64 in the camera frame of each moment."""
        return self.record.points[:, :: self.step, :: self.step][self.moments].astype(float)

    @property
    def valid(self) -> np.ndarray:
        """(k, h, w) whether a point is known well enough, from a camera whose place is known."""
        confident = self.record.confidence[:, :: self.step, :: self.step][self.moments] >= MIN_CONFIDENCE
        placed = np.isfinite(self.cameras).all((1, 2))[:, None, None]
        return confident & placed & np.isfinite(self.points).all(-1)

    @property
    def colours(self) -> np.ndarray:
        """(k, h, w, 3) u8 of the cells; grey where there is no picture."""
        if self.frames is None:
            return np.full((*self.covered.shape[1:], 3), 140, np.uint8)
        grid = self.record.points.shape[1:3]
        return sample_cells(self.frames[self.moments], *grid)[:, :: self.step, :: self.step]


def _choose(record: SceneRecord, frames: np.ndarray | None) -> _Part:
    moments = _spread(len(record.timestamps), MAX_MOMENTS)
    objects = list(range(min(len(record.names), MAX_OBJECTS)))
    poses = record.world_from_camera.astype(float)
    known = bool(np.isfinite(poses).all((1, 2)).any()) if len(poses) else False
    if not known:
        poses = np.tile(np.eye(4), (len(poses), 1, 1))
    level = rigid(level_axes(record), np.zeros(3))
    centers = transform(level, record.centers_world[objects].astype(float))[:, moments]
    step = max(1, math.ceil(math.sqrt(len(moments) * np.prod(record.points.shape[1:3]) / MAX_CELLS)))
    return _Part(
        record,
        frames,
        moments,
        objects,
        _picture_size(record, frames),
        step,
        _covered(record, objects, moments, step),
        known,
        level @ poses[moments],
        centers,
        record.status == "3d" and bool(known or np.isfinite(centers).any()),
    )


def _objects(part: _Part) -> list[dict[str, Any]]:
    """Per object: its name, colour and box, and at each moment its place, forward, box and outline in the picture."""
    record, moments = part.record, part.moments
    forward = record.forward_world[part.objects][:, moments].astype(float) @ level_axes(record).T
    colours = _object_colours(part)
    sizes = _sizes(part, forward) if part.in_space else [None] * len(part.objects)
    return [
        {
            "name": plain(record.names[i], 60),
            "colour": colours[n],
            "places": _numbers(part.centers[n], 3),
            "forward": _numbers(forward[n], 3),
            "size": sizes[n],
            "boxes": _shares(record.boxes[i][moments], part.size),
            "outlines": [_outline(record.masks[i][t]) for t in moments],
        }
        for n, i in enumerate(part.objects)
    ]


def _asset(name: str) -> str:
    return files("assets.geometry").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _numbers(values: np.ndarray, decimals: int) -> list:
    """Nested lists along the last axis; a vector (or number) that is not finite becomes None."""
    values = np.asarray(values, float)
    if values.ndim == 1:
        return [round(float(v), decimals) + 0.0 if np.isfinite(v) else None for v in values]
    if values.ndim == 2:
        rows = np.round(values, decimals) + 0.0
        return [row.tolist() if np.isfinite(row).all() else None for row in rows]
    return [_numbers(part, decimals) for part in values]


def _spread(total: int, most: int) -> np.ndarray:
    """At most ``most`` of 0..total-1, spread uniformly, first and last included."""
    return np.unique(np.linspace(0, max(total - 1, 0), min(total, most)).round().astype(int))


def _picture_size(record: SceneRecord, frames: np.ndarray | None) -> tuple[int, int] | None:
    """(H, W) of the frames that the boxes are in; of a log without pictures guessed from lens and boxes, else None."""
    if frames is not None and len(frames):
        return int(frames.shape[1]), int(frames.shape[2])
    if all(record.frame_size):
        return record.frame_size
    corners = record.boxes[..., 2:].reshape(-1, 2).astype(float)
    corners = corners[np.isfinite(corners).all(1)]
    if not len(corners):
        return None
    centre = record.intrinsics[:, :2, 2].astype(float)
    centre = centre[np.isfinite(centre).all(1)]
    widest = np.vstack([corners, 2 * centre + 1]).max(0)
    return int(np.clip(widest[1], 1, 1e5)), int(np.clip(widest[0], 1, 1e5))


def _lens(intrinsics: np.ndarray, size: tuple[int, int] | None) -> list[float] | None:
    """Tangents of the angles at which a camera sees the left, right, upper and lower edge of its picture."""
    focal, centre = np.diag(intrinsics)[:2].astype(float), intrinsics[:2, 2].astype(float)
    if size is None or not np.isfinite([focal, centre]).all() or (focal <= 0).any():
        return None
    low, high = (-0.5 - centre) / focal, (np.array(size[::-1]) - 0.5 - centre) / focal
    return _numbers(np.array([low[0], high[0], low[1], high[1]]), 4)


def _covered(record: SceneRecord, objects: list[int], moments: np.ndarray, step: int) -> np.ndarray:
    """(n, k, h, w) whether a cell that is looked at lies under the mask of an object."""
    grid = record.points.shape[1:3]
    cells = len(range(0, grid[0], step)), len(range(0, grid[1], step))
    covered = np.zeros((len(objects), len(moments), *cells), bool)
    for n, i in enumerate(objects):
        for k, t in enumerate(moments):
            mask = record.masks[i][t]
            if mask is not None and all(grid):
                covered[n, k] = sample_cells(decode_mask(mask)[None], *grid)[0, ::step, ::step]
    return covered


def _cloud(part: _Part) -> dict[str, Any] | None:
    """Points, quantised: those of what stands still for all moments, those under a mask for their own moment only."""
    points, valid, moving = part.points, part.valid, part.covered.any(0)
    if not valid.any():
        return None
    places = transform(part.cameras[:, None, None], points)
    depth = np.linalg.norm(points, axis=-1)
    # Far things are shown by whoever comes near them, or not at all: one stray point must not shrink the scene.
    valid &= depth <= 4 * np.quantile(depth[valid], 0.9)
    still, side = _thinned(places, depth, valid & ~moving & part.poses_known, 0.008 * float(np.median(depth[valid])))
    own = np.flatnonzero(valid & moving if part.poses_known else valid)
    own = own[_spread(len(own), MAX_MOVING_POINTS if part.poses_known else MAX_POINTS)]
    chosen = np.concatenate([still, own])
    when = np.broadcast_to(np.arange(len(valid))[:, None, None], valid.shape).reshape(-1)
    wide = np.clip(depth.reshape(-1)[chosen] * _cell_angle(points, depth, valid), side, 8 * side)
    xyz = places.reshape(-1, 3)[chosen]
    low, high = xyz.min(0), xyz.max(0)
    scale = float(max((high - low).max() / 2, 1e-6))
    return {
        "count": len(chosen),
        "offset": _numbers((low + high) / 2, 4),
        "scale": round(scale, 5),
        "widest": round(8 * side, 5),
        "xyz": _base64(np.round((xyz - (low + high) / 2) / scale * 32767).astype("<i2")),
        "rgb": _base64(part.colours.reshape(-1, 3)[chosen]),
        "when": _base64(np.concatenate([np.full(len(still), ALWAYS), when[own]]).astype(np.uint8)),
        "wide": _base64(np.round(wide / (8 * side) * 255).astype(np.uint8)),
        "still": xyz[: len(still)] if len(still) else xyz,
    }


def _cell_angle(points: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> float:
    """Radians between neighbouring cells of a row: how far apart points are is this times their depth."""
    both = valid[:, :, 1:] & valid[:, :, :-1]
    if not both.any():
        return 0.0
    steps = np.linalg.norm(np.diff(points, axis=2), axis=-1)[both]
    return float(np.median(steps / np.maximum(depth[:, :, 1:][both], 1e-6)))


def _thinned(places: np.ndarray, depth: np.ndarray, valid: np.ndarray, side: float) -> tuple[np.ndarray, float]:
    """Flat indices of at most ``MAX_POINTS`` valid points, and how far apart they are.

    One point stands for each cube of ``side``, that which was seen from nearest; where those are too many, some go.
    """
    flat = np.flatnonzero(valid)
    flat = flat[np.argsort(depth.reshape(-1)[flat], kind="stable")]
    cubes = np.floor(places.reshape(-1, 3)[flat] / side).astype(np.int64)
    _, first = np.unique(cubes, axis=0, return_index=True)
    apart = side * max(1.0, math.sqrt(len(first) / MAX_POINTS))
    return flat[first[_spread(len(first), MAX_POINTS)]], apart


def _object_colours(part: _Part) -> list[str]:
    """A colour for each object: of every dozen, the one that is nearest to what the thing looks like."""
    from scipy.optimize import linear_sum_assignment

    covered = part.covered
    colours = [COLOURS[n % len(COLOURS)] for n in range(len(covered))]
    if part.frames is None or not covered.any():
        return colours
    cells = part.colours.astype(float)
    palette = np.array([[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in COLOURS], float)
    looks = np.array([np.median(cells[c], axis=0) if c.any() else np.full(3, 128.0) for c in covered]).reshape(-1, 3)
    palette, looks = _hue(palette), _hue(looks)
    for start in range(0, len(looks), len(COLOURS)):
        dozen = looks[start : start + len(COLOURS)]
        away = np.linalg.norm(dozen[:, None] - palette, axis=-1)
        for row, column in zip(*linear_sum_assignment(away), strict=True):
            colours[start + row] = COLOURS[column]
    return colours


def _hue(colours: np.ndarray) -> np.ndarray:
    """(N, 3) direction in which a colour stands out from grey, short where it hardly does: free of light and shadow."""
    chroma = colours - colours.mean(1, keepdims=True)
    return chroma / np.maximum(np.linalg.norm(chroma, axis=1, keepdims=True), 30.0)


def _sizes(part: _Part, forward: np.ndarray) -> list[list[float] | None]:
    """Half lengths of a box about each object's centre, along its forward, its left and its up; None where unknown.

    A mask shows one side of a thing, so its points give half of it; the box is the median over the moments of the
    distance that nine tenths of the points keep from the centre along each axis. Things without a forward take the
    level axes of the scene instead.
    """
    places, valid = transform(part.cameras[:, None, None], part.points), part.valid
    sizes = []
    for n in range(len(part.objects)):
        reach = []
        for k in range(len(part.moments)):
            under = part.covered[n, k] & valid[k]
            if under.sum() >= 4 and np.isfinite(part.centers[n, k]).all():
                offsets = np.abs((places[k][under] - part.centers[n, k]) @ _box_axes(forward[n, k]).T)
                reach.append(np.quantile(offsets, 0.9, axis=0))
        half = np.median(reach, axis=0) if reach else np.full(3, np.nan)
        sizes.append(_numbers(half[None], 3)[0])
    return sizes


def _box_axes(forward: np.ndarray) -> np.ndarray:
    """(3, 3) forward, left and up of a thing in the level frame; right, ahead and up where it has no forward."""
    left = np.cross([0.0, 0.0, 1.0], forward)
    if not np.isfinite(forward).all() or np.linalg.norm(left) < 1e-3:
        return np.eye(3)
    left /= np.linalg.norm(left)
    return np.stack([forward, left, np.cross(forward, left)])


def _space(cloud: dict[str, Any] | None, part: _Part) -> dict[str, Any]:
    """What a first look should hold: its middle, its radius, and the level of the ground."""
    paths = np.concatenate([part.cameras[:, :3, 3], part.centers.reshape(-1, 3)])
    paths = paths[np.isfinite(paths).all(1)]
    around = np.concatenate([paths, np.quantile(cloud["still"], [0.2, 0.8], axis=0)]) if cloud else paths
    low, high = np.quantile(around, [0.02, 0.98], axis=0)
    heights = (cloud["still"] if cloud else paths)[:, 2]
    return {
        "middle": _numbers((low + high) / 2, 3),
        "radius": round(float(max(np.linalg.norm(high - low) / 2, 1e-3)), 4),
        "ground": round(float(np.quantile(heights, 0.03)), 3),
    }


def _best_moment(boxes: np.ndarray, centers: np.ndarray) -> int:
    """The moment at which most objects are seen; among equals the one nearest the middle of the clip."""
    seen = (np.isfinite(boxes).all(-1) | np.isfinite(centers).all(-1)).sum(0)
    off_middle = np.abs(np.arange(len(seen)) - (len(seen) - 1) / 2)
    return int(np.lexsort((off_middle, -seen))[0]) if len(seen) else 0


def _shares(boxes: np.ndarray, size: tuple[int, int] | None) -> list:
    """(T, 4) boxes as shares of the picture's width and height."""
    if size is None:
        return [None] * len(boxes)
    height, width = size
    return _numbers(np.clip(boxes.astype(float) / [width, height, width, height], 0, 1), 4)


def _outline(rle: Mask | None) -> list[list[int]]:
    """Outlines of a mask, largest first: flat lists x, y, x, y ... in thousandths of the picture."""
    if rle is None:
        return []
    import cv2

    mask = decode_mask(rle)
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = sorted(found, key=lambda line: (-cv2.contourArea(line), line.tolist()))[:4]
    tolerance = max(mask.shape) / 500
    lines = [cv2.approxPolyDP(line, tolerance, True)[:80, 0] for line in largest]
    to_thousandths = 1000 / np.array(mask.shape[::-1])
    return [np.round((line + 0.5) * to_thousandths).astype(int).ravel().tolist() for line in lines if len(line) > 2]


def _jpegs(part: _Part) -> list[str] | None:
    """The pictures as base64 JPEGs of a bounded number of bytes together; quality, then size gives way."""
    from PIL import Image

    if part.frames is None or not len(part.moments):
        return None
    pictures = [Image.fromarray(part.frames[t]) for t in part.moments]
    widest, most_bytes = PICTURE_BESIDE if part.in_space else PICTURE_ALONE
    width = min(widest, pictures[0].width)
    while True:
        height = max(1, round(pictures[0].height * width / pictures[0].width))
        small = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
        for quality in (84, 74, 60):
            jpegs = [_jpeg(picture, quality) for picture in small]
            if sum(map(len, jpegs)) <= most_bytes or width <= 16:
                return [base64.b64encode(jpeg).decode() for jpeg in jpegs]
        width = width * 3 // 4


def _jpeg(picture, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _lead(record: SceneRecord, scene: Mapping[str, Any]) -> str:
    """What the record holds, or why it holds no more, in a sentence."""
    reason = plain(record.provenance.get("reason") or "", 400).rstrip(".")
    count = len(record.names)
    things = f"{count} object{'' if count == 1 else 's'}" if count else "no named objects"
    if record.status == "refused":
        return f"Refused: {reason or 'no reason was recorded'}."
    if record.status == "2d" or scene["space"] is None:
        return f"In 2D, with {things}. Not in 3D: {reason or 'no reason was recorded'}."
    seconds = float(record.timestamps[-1] - record.timestamps[0])
    lead = f"In 3D over {seconds:.1f} s, with {things}"
    if not scene["posesKnown"]:
        return f"{lead}; every moment is seen from its own camera."
    positions = record.world_from_camera[:, :3, 3].astype(float)
    path = float(np.nansum(np.linalg.norm(np.diff(positions, axis=0), axis=1)))
    unit = "m" if record.provenance.get("metric") else "units"
    if path < 1e-3:
        return f"{lead}, seen by a camera that keeps its place."
    return f"{lead}, seen by a camera that travels {path:.1f} {unit}."


def _notes(record: SceneRecord, scene: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the drawing."""
    notes = []
    if record.status == "3d" and record.provenance.get("reason"):
        notes.append(f"Note: {plain(record.provenance['reason'], 400)}.")
    if scene["space"] and not all(scene["lens"]):
        notes.append("The lens is unknown: the camera is drawn with one of 62 by 44 degrees.")
    if scene["moments"] > len(scene["times"]):
        notes.append(f"{len(scene['times'])} of {scene['moments']} moments are shown.")
    if scene["leftOut"]:
        notes.append(f"{scene['leftOut']} further objects are not shown.")
    return notes


def _facts(record: SceneRecord, clip: str) -> list[tuple[str, str]]:
    """Where the record comes from and how far to trust it."""
    known = record.provenance
    times = record.timestamps
    span = f"{len(times)}, {times[0]:.2f} s to {times[-1]:.2f} s" if len(times) else "none"
    facts = [
        ("estimator", known.get("estimator")),
        ("version", known.get("version")),
        ("lengths", "metric, in metres" if known.get("metric") else "relative: one unit has no known length"),
        ("camera poses", known.get("poses")),
        ("expected error", _error_in_words(known.get("error_model"))),
        ("moments", span),
        ("parameters", str(known.get("parameters_hash") or "")[:12]),
        ("clip", clip[:12]),
    ]
    return [(name, plain(value)) for name, value in facts if value]


def _error_in_words(model: object) -> str:
    """The error model of a record; it says how wrong its numbers are expected to be."""
    if not isinstance(model, Mapping):
        return "not stated"
    share, heading = model.get("center"), model.get("heading_deg")
    parts = []
    if isinstance(share, int | float):
        parts.append(f"centres {100 * share:.3g} % of their distance")
    if isinstance(heading, int | float):
        parts.append(f"headings {heading:.3g}°")
    return ", ".join(parts) or "nothing in 3D to be wrong about"


def _all_provenance(known: Mapping[str, Any]) -> str:
    text = json.dumps(known, indent=1, sort_keys=True, default=str)
    return text if len(text) <= 6000 else f"{text[:6000]}\n…"
