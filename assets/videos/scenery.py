"""What happens in a clip of the sample world: which things, on which paths, seen by which camera.

World frame: z up, metres, the courtyard's middle at the origin. Angles and positions are rounded to MICRONS
decimals before anything uses them, so that last-bit differences of sine and cosine between processors vanish.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from assets.videos.parameters import SampleWorldParameters
from assets.videos.things import AGENTS, COLOURS, OBJECTS, SHAPES

MICRONS = 6
CAMERAS = ("still", "truck", "pan", "follow", "dolly", "orbit")
MORE_CAMERAS = ("tilt", "push", "walk", "crane")  # drawn only where they are asked for by name
SPEEDS = (0.35, 0.8, 1.5, 2.4)  # m/s; within a clip no two moving things share one while any is left
_SUBSTEPS = 16
_TRIES = 120
_FOCAL = 0.95  # focal length as share of the picture's width: 55 degrees across
_ARENA = 5.8  # things stay this close to the middle of the courtyard, metres


@dataclass(frozen=True)
class Thing:
    """A named thing and its exact motion.

    Attributes:
        name: colour and class, unique in the clip.
        shape: key of SHAPES.
        scale: size relative to the shape's.
        ground: (T, 3) where its own frame's origin is.
        rotation: (T, 3, 3) world_from_thing; for agents the first column is where it faces.
        travelled: (T,) path length so far, metres.
    """

    name: str
    shape: str
    colour: str
    scale: float
    ground: np.ndarray
    rotation: np.ndarray
    travelled: np.ndarray

    def centers(self) -> np.ndarray:
        """(T, 3) the thing's centre, world frame."""
        return self.ground + np.array([0, 0, SHAPES[self.shape].middle * self.scale])


@dataclass(frozen=True)
class Scene:
    """Everything a renderer needs to know.

    Attributes:
        seed: for the textures.
        camera: one of CAMERAS or MORE_CAMERAS.
        intrinsics: (3, 3) pixels; the middle of the first pixel is (0, 0).
        world_from_camera: (T, 4, 4); camera frame x right, y down, z forward.
        things: the named things.
        pillars: (K, 4) static posts: x, y, radius, height.
        sun: (3,) unit vector towards the sun.
        yard: half the side of the walled courtyard, metres.
        grain: 0..1, strength of the fine texture on every surface but the sky.
    """

    seed: int
    camera: str
    intrinsics: np.ndarray
    world_from_camera: np.ndarray
    things: list[Thing]
    pillars: np.ndarray
    sun: np.ndarray
    yard: float
    grain: float = 0.0


@dataclass(frozen=True)
class _Path:
    """Motion on the plane: (T, 2) positions about the origin, (T,) facing angle, (T,) path length."""

    place: np.ndarray
    facing: np.ndarray
    travelled: np.ndarray


def seed_of(*parts: object) -> int:
    """Seed from names alone: the first eight bytes of the SHA-256 of the parts joined by |."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "little")


def draw_scene(
    shard: str, number: int, parameters: SampleWorldParameters, camera_kind: str | None = None, grain: float = 0.0
) -> Scene:
    """Draw the scene of one clip; a pure function of its arguments.

    Args:
        shard: shard key.
        number: clip number within the shard.
        parameters: of the sample world.
        camera_kind: one of CAMERAS or MORE_CAMERAS; without one, CAMERAS take turns with the clip number.
        grain: see Scene.
    """
    seed = seed_of("sample world", shard, number, parameters.seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    times = np.arange(parameters.fps * parameters.seconds) / parameters.fps
    kind = camera_kind or CAMERAS[number % len(CAMERAS)]
    intrinsics = _intrinsics(parameters)
    yard = float(np.round(rng.uniform(13, 15), 2))
    rig = _draw_rig(rng)

    cast = _draw_cast(rng, parameters)
    speeds = _draw_speeds(rng, cast)
    things: list[Thing] = []
    camera = _camera("still" if kind == "follow" else kind, rig, times, None)
    for (colour, shape), speed in zip(cast, speeds, strict=True):
        things.append(_place(rng, colour, shape, speed, times, camera, intrinsics, parameters, things))
        if kind == "follow" and len(things) == 1:
            camera = _camera(kind, rig, times, things[0].ground)

    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 1.5)
    sun = np.round(np.array([np.cos(angle), np.sin(angle), height]), MICRONS)
    pillars = _draw_pillars(rng, yard, camera[:, :2, 3])
    return Scene(seed, kind, intrinsics, camera, things, pillars, sun / np.sqrt((sun**2).sum()), yard, grain)


def _intrinsics(parameters: SampleWorldParameters) -> np.ndarray:
    """Pinhole with square pixels and its principal point in the middle of the picture."""
    focal = _FOCAL * parameters.width
    return np.array([[focal, 0, (parameters.width - 1) / 2], [0, focal, (parameters.height - 1) / 2], [0, 0, 1]])


def _draw_cast(rng: np.random.Generator, parameters: SampleWorldParameters) -> list[tuple[str, str]]:
    """(colour, class) of each thing, agents first; no pair comes twice, and never more than one car."""
    fewest = min(parameters.fewest_things, parameters.most_things)
    count = int(rng.integers(fewest, parameters.most_things + 1))
    agents = int(rng.integers(1, min(count, 3) + 1)) if count < 3 else int(rng.integers(2, min(count, 4)))
    shapes = [AGENTS[i] for i in rng.permutation(len(AGENTS))[:agents]]
    shapes += [OBJECTS[i] for i in rng.integers(0, len(OBJECTS), count - len(shapes))]
    colours = list(COLOURS)
    return [(colours[i], shape) for i, shape in zip(rng.permutation(len(colours)), shapes, strict=False)]


def _draw_speeds(rng: np.random.Generator, cast: list[tuple[str, str]]) -> list[float]:
    """Speed per thing in m/s, 0 for those that stand; at least the first three things of a clip move."""
    order = [SPEEDS[i] for i in rng.permutation(len(SPEEDS))]
    stands = rng.uniform(size=len(cast)) < 0.45
    return [
        0.0 if stand and index >= 3 else order[index % len(order)]
        for index, (stand, _) in enumerate(zip(stands, cast, strict=True))
    ]


def _draw_path(rng: np.random.Generator, speed: float, times: np.ndarray) -> _Path:
    """A unicycle's path: draw its speed and heading over time, then integrate; the middle lies at the origin."""
    step = times[1] - times[0] if len(times) > 1 else 1.0
    fine = np.arange((len(times) - 1) * _SUBSTEPS + 1) / _SUBSTEPS * step
    span = max(fine[-1], 1e-9)
    share = fine / span
    heading = np.full_like(fine, rng.uniform(-np.pi, np.pi))
    turn = rng.choice([-1.0, 1.0])

    bend = rng.choice(["straight", "arc", "weave"], p=[0.3, 0.45, 0.25])
    if speed == 0:
        heading += turn * rng.uniform(0.6, 3.5) * _ease(share)
    elif bend == "arc" or speed * span > 12:
        heading += turn * (speed * span / rng.uniform(2.0, 3.2)) * share
    elif bend == "weave":
        heading += rng.uniform(0.5, 1.0) * np.sin(2 * np.pi * (share * rng.uniform(1, 2) + rng.uniform()))

    gait = rng.choice(["steady", "stop-and-go", "faster", "slower"], p=[0.4, 0.3, 0.15, 0.15])
    pace = np.full_like(fine, speed)
    if gait == "stop-and-go":
        beat = share * rng.integers(2, 4) + rng.uniform()
        pace *= 1.4 * _ease(np.clip(6 * np.abs(beat % 1 - 0.5) - 0.6, 0, 1))
    elif gait in ("faster", "slower"):
        ramp = 0.3 + 1.5 * _ease(share)
        pace *= ramp if gait == "faster" else ramp[::-1]

    travelled = _integral(pace, step)
    place = np.stack([_integral(pace * np.cos(heading), step), _integral(pace * np.sin(heading), step)], axis=1)
    backs_up = speed > 0 and rng.uniform() < 0.12
    place -= (place.min(axis=0) + place.max(axis=0)) / 2
    facing = heading + np.pi * backs_up
    return _Path(place[::_SUBSTEPS], facing[::_SUBSTEPS], travelled[::_SUBSTEPS])


def _integral(rate: np.ndarray, step: float) -> np.ndarray:
    """Trapezoidal running integral that starts at 0, on the fine grid."""
    return np.r_[0, np.cumsum((rate[1:] + rate[:-1]) / 2)] * step / _SUBSTEPS


def _ease(share: np.ndarray) -> np.ndarray:
    """Smooth step from 0 to 1 with level ends."""
    return share * share * (3 - 2 * share)


def _place(
    rng: np.random.Generator,
    colour: str,
    shape: str,
    speed: float,
    times: np.ndarray,
    camera: np.ndarray,
    intrinsics: np.ndarray,
    parameters: SampleWorldParameters,
    others: list[Thing],
) -> Thing:
    """Try paths and places until one is well seen and bumps into nothing; else the best that was tried."""
    best, best_score = None, -np.inf
    scale = float(np.round(rng.uniform(0.95, 1.15), 2))
    for _ in range(_TRIES):
        path = _draw_path(rng, speed, times)
        angle, far = rng.uniform(0, 2 * np.pi), 4.0 * np.sqrt(rng.uniform())
        place = path.place + far * np.array([np.cos(angle), np.sin(angle)])
        ground = np.column_stack([place, _heights(rng, shape, scale, times)])
        thing = _thing(colour, shape, scale, np.round(ground, MICRONS), path)
        seen = _share_seen(thing.centers(), camera, intrinsics, parameters)
        crowding = _crowding(thing, others, camera)
        score = min(seen, 0.8) - 4 * crowding - max(0.0, np.sqrt((place**2).sum(axis=1)).max() - _ARENA)
        if score > best_score:
            best, best_score = thing, score
        if score >= 0.8:
            break
    return best


def _thing(colour: str, shape: str, scale: float, ground: np.ndarray, path: _Path) -> Thing:
    """A thing on its path: agents and boxes face along it, balls roll along it."""
    cos, sin, none = np.cos(path.facing), np.sin(path.facing), np.zeros_like(path.facing)
    rotation = np.stack([cos, -sin, none, sin, cos, none, none, none, none + 1], axis=1).reshape(-1, 3, 3)
    if SHAPES[shape].rolls:
        angle = path.travelled / (SHAPES[shape].middle * scale)
        c, s = np.cos(angle), np.sin(angle)
        spin = np.stack([c, none, s, none, none + 1, none, -s, none, c], axis=1).reshape(-1, 3, 3)
        rotation = (rotation[:, :, :, None] * spin[:, None, :, :]).sum(axis=2)
    rotation = np.round(rotation, MICRONS)
    return Thing(f"{colour} {shape}", shape, colour, scale, ground, rotation, path.travelled)


def _heights(rng: np.random.Generator, shape: str, scale: float, times: np.ndarray) -> np.ndarray:
    """(T,) height of the thing's lowest point: drones swing in the air, some balls bounce, the rest stay down."""
    if SHAPES[shape].flies:
        swing = rng.uniform(0.1, 0.7)
        phase = 2 * np.pi * (times / rng.uniform(6, 12) + rng.uniform())
        return rng.uniform(1.0, 1.7) + swing * np.sin(phase)
    if SHAPES[shape].rolls and rng.uniform() < 0.4:
        beat = (times / rng.uniform(1.7, 2.6) + rng.uniform()) % 1
        return rng.uniform(0.6, 1.3) * 4 * beat * (1 - beat)
    return np.zeros_like(times)


def _share_seen(
    centers: np.ndarray, camera: np.ndarray, intrinsics: np.ndarray, parameters: SampleWorldParameters
) -> float:
    """Share of frames in which the centre lies well inside the picture and not too close."""
    pixels, depth = project(centers, camera, intrinsics)
    margin = 0.06 * parameters.width
    inside = (pixels > margin).all(axis=1) & (pixels < np.array([parameters.width, parameters.height]) - margin).all(
        axis=1
    )
    return float((inside & (depth > 2.5)).mean())


def project(points: np.ndarray, world_from_camera: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pinhole projection of one world point per frame.

    Args:
        points: (T, 3) world frame.
        world_from_camera: (T, 4, 4).
        intrinsics: (3, 3) pixels.

    Returns:
        (T, 2) pixels (x, y) and (T,) z-depth; pixels of points behind the camera mean nothing.
    """
    offset = points - world_from_camera[:, :3, 3]
    local = (offset[:, :, None] * world_from_camera[:, :3, :3]).sum(axis=1)
    depth = local[:, 2]
    ahead = np.where(depth > 0.01, depth, 0.01)[:, None]
    focal, middle = np.diag(intrinsics)[:2], intrinsics[:2, 2]
    return local[:, :2] / ahead * focal + middle, depth


def _crowding(thing: Thing, others: list[Thing], camera: np.ndarray) -> float:
    """How deep, in metres, the thing's circle ever enters another's or the camera's own metre and a half."""
    radius = SHAPES[thing.shape].radius * thing.scale
    gap = np.sqrt(((thing.ground[:, :2] - camera[:, :2, 3]) ** 2).sum(axis=1)).min() - radius - 2.0
    gaps = [gap]
    for other in others:
        if SHAPES[thing.shape].flies != SHAPES[other.shape].flies:
            continue
        apart = np.sqrt(((thing.ground[:, :2] - other.ground[:, :2]) ** 2).sum(axis=1)).min()
        gaps.append(apart - radius - SHAPES[other.shape].radius * other.scale - 0.1)
    return max(0.0, -min(gaps))


def _draw_rig(rng: np.random.Generator) -> dict[str, float]:
    """Where the camera stands and how far it will move."""
    return {
        "azimuth": rng.uniform(0, 2 * np.pi),
        "away": rng.uniform(6.8, 8.2),
        "height": rng.uniform(1.9, 3.4),
        "way": rng.choice([-1.0, 1.0]),
        "amount": rng.uniform(0.75, 1.25),
    }


def _camera(kind: str, rig: dict[str, float], times: np.ndarray, followed: np.ndarray | None) -> np.ndarray:
    """(T, 4, 4) camera-to-world poses of one kind of camera motion; `followed` (T, 3) is what "follow" follows."""
    share = times / max(times[-1], 1e-9)
    swing = rig["way"] * rig["amount"] * (share - 0.5)
    azimuth = rig["azimuth"] + (0.75 * swing if kind == "orbit" else 0 * swing)
    away = rig["away"] - (2.4 * swing if kind == "dolly" else 0 * swing)
    outward = np.column_stack([np.cos(azimuth), np.sin(azimuth)])
    sideways = np.column_stack([-outward[:, 1], outward[:, 0]])
    eye = np.column_stack([away[:, None] * outward, np.full_like(share, rig["height"])])
    target = np.zeros_like(eye)
    target[:, 2] = 0.7
    if kind == "truck":
        eye[:, :2] += 4.0 * swing[:, None] * sideways
        target[:, :2] += 4.0 * swing[:, None] * sideways
    elif kind == "pan":
        target[:, :2] += 5.0 * swing[:, None] * sideways
    elif kind == "tilt":
        target[:, 2] += 3.0 * swing
    elif kind == "push":
        eye[:, :2] += swing[:, None] * (2.2 * sideways - 2.0 * outward)
    elif kind == "walk":
        eye[:, :2] += swing[:, None] * (3.2 * sideways - 1.2 * outward)
        eye += _gait(times, sideways)
        target[:, :2] += 1.5 * swing[:, None] * sideways
    elif kind == "crane":
        eye[:, :2] += 2.0 * swing[:, None] * sideways
        eye[:, 2] += 1.4 * (swing - swing.min())
    elif kind == "follow":
        smooth = _smoothed(followed)
        target[:, :2] += 0.75 * smooth
        eye[:, :2] += 0.45 * smooth
    return _look_at(np.round(eye, MICRONS), np.round(target, MICRONS))


def _gait(times: np.ndarray, sideways: np.ndarray) -> np.ndarray:
    """(T, 3) how a walker's hand sways: 2 cm up and down with each step, two steps a second, 3 cm from side to side."""
    bob, sway = np.sin(4 * np.pi * times), np.sin(2 * np.pi * times)
    return np.column_stack([0.03 * sway[:, None] * sideways, 0.02 * bob])


def _smoothed(followed: np.ndarray) -> np.ndarray:
    """(T, 2) the followed thing's place on the plane, averaged over a third of the clip: a calm hand."""
    reach = max(1, len(followed) // 6)
    padded = np.pad(followed[:, :2], ((reach, reach), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0).mean(axis=-1)


def _look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(T, 4, 4) poses of cameras at (T, 3) eye that look at (T, 3) target, upright."""
    forward = target - eye
    forward /= np.sqrt((forward**2).sum(axis=1, keepdims=True))
    right = np.column_stack([forward[:, 1], -forward[:, 0], np.zeros(len(eye))])
    right /= np.sqrt((right**2).sum(axis=1, keepdims=True))
    down = np.cross(forward, right)
    pose = np.zeros((len(eye), 4, 4))
    pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2], pose[:, :3, 3] = right, down, forward, eye
    pose[:, 3, 3] = 1
    return pose.astype(np.float32).astype(np.float64)


def _draw_pillars(rng: np.random.Generator, yard: float, camera: np.ndarray) -> np.ndarray:
    """(K, 4) posts near the walls, outside the arena and away from the camera's way: x, y, radius, height."""
    angle = (np.arange(9) + rng.uniform(0.15, 0.85, 9)) * (2 * np.pi / 9)
    away = rng.uniform(8.2, yard - 1.0, 9)
    place = np.round(np.column_stack([away * np.cos(angle), away * np.sin(angle)]), MICRONS)
    rest = np.round(np.column_stack([rng.uniform(0.16, 0.32, 9), rng.uniform(1.2, 3.4, 9)]), 3)
    clear = np.sqrt(((place[:, None] - camera[None]) ** 2).sum(axis=2)).min(axis=1) > 2.5
    return np.column_stack([place, rest])[clear]
