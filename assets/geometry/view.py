"""Pictures of a scene record for people."""

from __future__ import annotations

import io

import numpy as np

from assets.geometry.frames_of_reference import LEVEL_UP
from assets.geometry.record import SceneRecord

SIDE_INCHES = 6.0
DOTS_PER_INCH = 80
MAX_BYTES = 60_000


def trajectories_from_above(record: SceneRecord) -> bytes:
    """PNG (at most 60 KB) of the camera's and the objects' paths seen from above, with names and forward arrows.

    The first camera looks up the page; units are metres where the record is metric. Same record, same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIDE_INCHES, SIDE_INCHES), dpi=DOTS_PER_INCH)
    axes = figure.add_subplot()
    plane = ground_plane(record)
    camera = record.world_from_camera[:, :3, 3] @ plane.T
    if np.isfinite(camera).any():
        axes.plot(*camera.T, color="black", linewidth=2, label="camera")
        _arrows(axes, camera, record.world_from_camera[:, :3, 2] @ plane.T, "black")
    for i, name in enumerate(record.names):
        path = record.centers_world[i] @ plane.T
        seen = np.flatnonzero(np.isfinite(path).all(-1))
        if not len(seen):
            continue
        (line,) = axes.plot(*path.T, marker=".", markersize=3, linewidth=1)
        axes.annotate(name, path[seen[-1]], fontsize=7, color=line.get_color())
        _arrows(axes, path, record.forward_world[i] @ plane.T, line.get_color())
    axes.set_aspect("equal", adjustable="datalim")
    unit = "m" if record.provenance.get("metric") else "relative units"
    axes.set_xlabel(f"right of the first camera ({unit})")
    axes.set_ylabel(f"ahead of the first camera ({unit})")
    title = f"{record.provenance.get('estimator')}, {record.status}"
    axes.set_title(
        f"{title}: {record.provenance['reason'][:60]}" if record.provenance.get("reason") else title, fontsize=8
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return _small(buffer.getvalue())


def ground_plane(record: SceneRecord) -> np.ndarray:
    """(2, 3) world axes that run right and ahead of the first camera, level with the record's up."""
    return level_axes(record)[:2]


def level_axes(record: SceneRecord) -> np.ndarray:
    """(3, 3) orthonormal world axes: right and ahead of the first camera, level, and the record's up.

    Where the record does not know up, or what it says is no direction, the first camera counts as held level.
    """
    up = _direction(record.provenance.get("up_world"))
    ahead = np.array([0.0, 0.0, 1.0]) - up[2] * up
    # A camera that looks straight down has no ahead; the top of its picture takes its place.
    if np.linalg.norm(ahead) < 1e-3:
        ahead = LEVEL_UP - (LEVEL_UP @ up) * up
    ahead = ahead / np.linalg.norm(ahead)
    return np.stack([np.cross(ahead, up), ahead, up])


def _direction(vector: object) -> np.ndarray:
    """(3,) unit vector along what a record gives for up, else ``LEVEL_UP``."""
    try:
        up = np.asarray(vector, float)
    except (TypeError, ValueError):
        return LEVEL_UP
    if up.shape != (3,) or not np.isfinite(up).all() or np.linalg.norm(up) < 1e-6:
        return LEVEL_UP
    return up / np.linalg.norm(up)


def _arrows(axes, path: np.ndarray, forward: np.ndarray, color) -> None:
    """An arrow of forward at a few places along a path."""
    known = np.flatnonzero(np.isfinite(path).all(-1) & np.isfinite(forward).all(-1))
    places = known[:: max(1, len(known) // 4)]
    if len(places):
        axes.quiver(*path[places].T, *forward[places].T, color=color, scale=18, width=0.004)


def _small(png: bytes) -> bytes:
    """The picture, with a palette of 32 colours where it is over the limit."""
    if len(png) <= MAX_BYTES:
        return png
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(32).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
