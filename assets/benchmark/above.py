"""A question's clip seen from above: who was where when, as lines for a drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from assets.geometry.record import SceneRecord
from assets.geometry.view import ground_plane

SIDE = 300
MARGIN = 24
LONGEST_PATH = 60
MOST_OTHERS = 12
ARROW = 15
# The scale bar is the largest round length that is no longer than this share of the drawing.
BAR_SHARE = 0.4
# A scene in which nothing moves is drawn as if it were so wide, in the record's unit.
LEAST_WIDTH = 1e-3


@dataclass(frozen=True)
class Stop:
    """Where a thing is in one of the frames that are shown: number of the frame, place, end of its forward arrow."""

    number: int
    x: float
    y: float
    ahead: tuple[float, float] | None


@dataclass(frozen=True)
class Trail:
    """The path of one thing.

    Attributes:
        name: from outside, not escaped.
        colour: of its box in the frames; None for what the question is not about, "camera" for the camera.
        whole: all of its path, as the data of an SVG path.
        asked: the part within the question's interval that the model was shown.
        hidden: the part within the interval that it was not shown.
        stops: where it is in the frames shown.
    """

    name: str
    colour: str | None
    whole: str
    asked: str
    hidden: str
    stops: list[Stop]


@dataclass(frozen=True)
class View:
    """The drawing: trails, camera first, targets last; a scale bar of `bar` pixels that stands for `length`."""

    trails: list[Trail]
    bar: float
    length: str


def from_above(
    record: SceneRecord,
    colours: Mapping[int, str],
    names: Mapping[int, str],
    asked: tuple[float, float],
    visible_until: float | None,
    shown: Sequence[float],
) -> View | None:
    """Paths on the ground plane, in pixels of a square of `SIDE`; the first camera looks up the page.

    Args:
        record: of the clip, with timestamps, poses, centres and forward directions.
        colours: of the question's targets, by their place in the record.
        names: what questions call them.
        asked: the question's interval, seconds.
        visible_until: seconds from which the model was shown nothing; None where it was shown all.
        shown: moments of the frames beside the drawing, seconds.

    Returns:
        None where no target's place is known.
    """
    plane, times = ground_plane(record), np.asarray(record.timestamps, float)
    places = {i: record.centers_world[i] @ plane.T for i in range(len(record.names))}
    known = {i: path for i, path in places.items() if np.isfinite(path).all(-1).any()}
    if not any(i in known for i in colours):
        return None
    camera = record.world_from_camera[:, :3, 3] @ plane.T
    place, scale = _fit([known[i] for i in colours if i in known] + [camera])
    others = [i for i in sorted(known) if i not in colours][:MOST_OTHERS]
    during = (times >= asked[0] - 1e-6) & (times <= asked[1] + 1e-6)
    seen = np.full(len(times), True) if visible_until is None else times <= visible_until + 1e-6
    moments = [int(np.argmin(np.abs(times - second))) for second in shown]
    parts = (during & seen, during & ~seen)

    def trail(name: str, colour: str | None, path: np.ndarray, forward: np.ndarray) -> Trail:
        pixels = place(path)
        ahead = _unit(forward @ plane.T) * [ARROW, -ARROW]
        stops = [_stop(number, pixels[t], ahead[t]) for number, t in enumerate(moments, start=1)]
        lines = (_path(pixels, mask) for mask in (np.full(len(times), True), *parts))
        return Trail(name, colour, *lines, [stop for stop in stops if stop])

    trails = [trail("camera", "camera", camera, record.world_from_camera[:, :3, 2])]
    trails += [trail(record.names[i], None, known[i], record.forward_world[i]) for i in others]
    trails += [trail(names[i], colours[i], known[i], record.forward_world[i]) for i in colours if i in known]
    return View(trails, *_bar(scale, bool(record.provenance.get("metric"))))


def _fit(paths: list[np.ndarray]):
    """What turns places into pixels, and pixels per unit of length."""
    points = np.concatenate(paths)
    points = points[np.isfinite(points).all(-1)]
    low, high = points.min(0), points.max(0)
    scale = (SIDE - 2 * MARGIN) / max(float((high - low).max()), LEAST_WIDTH)
    middle = (low + high) / 2

    def place(path: np.ndarray) -> np.ndarray:
        return (path - middle) * [scale, -scale] + SIDE / 2

    return place, scale


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), np.nan)


def _stop(number: int, place: np.ndarray, ahead: np.ndarray) -> Stop | None:
    if not np.isfinite(place).all():
        return None
    x, y = (round(float(value), 1) for value in place)
    end = (round(x + float(ahead[0]), 1), round(y + float(ahead[1]), 1)) if np.isfinite(ahead).all() else None
    return Stop(number, x, y, end)


def _path(pixels: np.ndarray, mask: np.ndarray) -> str:
    """The places that count as the data of an SVG path, in one line per run of known ones; long paths are thinned."""
    known = np.flatnonzero(mask & np.isfinite(pixels).all(-1))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    step = max(1, len(known) // LONGEST_PATH)
    lines = []
    for run in runs:
        kept = run[sorted({*range(0, len(run), step), len(run) - 1})] if len(run) else run
        if len(kept) > 1:
            lines.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels[kept]))
    return "".join(lines)


def _bar(scale: float, metric: bool) -> tuple[float, str]:
    """Pixels of a round length, and the length in words."""
    most = BAR_SHARE * (SIDE - 2 * MARGIN) / scale
    power = 10.0 ** np.floor(np.log10(most))
    length = max(power * step for step in (1, 2, 5) if power * step <= most * (1 + 1e-9))
    return round(length * scale, 1), f"{length:g} {'m' if metric else 'scene units'}"
