"""Pictures of a scene: textured ground, walls and sky, soft daylight, cast shadows; exact depth and instances.

Pixels come from + - * / and square roots only (see raycast), so the same scene gives the same bytes everywhere.
"""

from dataclasses import dataclass

import numpy as np

from assets.videos.raycast import BOX, FRUSTUM, Primitives, any_hit, dot, nearest_hits
from assets.videos.scenery import Scene
from assets.videos.things import BANDS, COLOURS, PLAIN, PLANKS, SECTORS, SHAPES

# What a ray that met no solid ended on; solids count up from 0.
_GROUND, _WALL, _SKY = -1, -2, -3
_DOME = 80.0  # radius of the sky's dome, metres: every depth is finite
_WALL_HEIGHT = 3.2
_TEXELS = 32  # per metre
_GRAINS = (0.24, 0.12, 0.06)  # cells of the fine texture, metres
_SUN, _SKY_LIGHT, _BOUNCE = 0.95, 0.42, 0.16
_SUBPIXELS = np.array([[-0.375, -0.125], [0.125, -0.375], [0.375, 0.125], [-0.125, 0.375]])
_HAZE = np.array([0.55, 0.66, 0.80])
_ZENITH = np.array([0.10, 0.24, 0.58])


@dataclass(frozen=True)
class Picture:
    """One rendered frame.

    Attributes:
        rgb: (H, W, 3) u8, display values.
        depth: (H, W) f64, metres along the optical axis, at pixel centres; finite everywhere.
        instances: (H, W) u8, 0 background, i + 1 the i-th thing.
    """

    rgb: np.ndarray
    depth: np.ndarray
    instances: np.ndarray


@dataclass(frozen=True)
class _Texture:
    """A periodic grey texture with its halvings, all in one flat array."""

    texels: np.ndarray
    begins: np.ndarray
    sizes: np.ndarray

    def sample(self, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Bilinear value at (u, v) metres from the level whose texels match a footprint in metres; all (R,)."""
        wanted = footprint * _TEXELS
        level = (wanted[:, None] > 1.5 * 2.0 ** np.arange(len(self.sizes) - 1)).sum(axis=1)
        size, begin = self.sizes[level], self.begins[level]
        scale = _TEXELS / (self.sizes[0] // size)
        x, y = u * scale - 0.5, v * scale - 0.5
        left, low = np.floor(x), np.floor(y)
        fx, fy = x - left, y - low
        c0, r0 = left.astype(int) % size, low.astype(int) % size
        c1, r1 = (c0 + 1) % size, (r0 + 1) % size
        near = self.texels[begin + r0 * size + c0] * (1 - fx) + self.texels[begin + r0 * size + c1] * fx
        far = self.texels[begin + r1 * size + c0] * (1 - fx) + self.texels[begin + r1 * size + c1] * fx
        return near * (1 - fy) + far * fy


@dataclass(frozen=True)
class _Finish:
    """Colours and textures of a scene's surroundings."""

    ground: _Texture
    wall: _Texture
    clouds: _Texture
    ground_tints: np.ndarray
    wall_tints: np.ndarray


class Painter:
    """Paints the frames of one scene."""

    def __init__(self, scene: Scene, width: int, height: int):
        """Prepare the solids, textures and pixel rays of a scene for pictures of width x height pixels."""
        self.scene, self.width, self.height = scene, width, height
        self._solids = _Solids(scene)
        self._finish = _draw_finish(scene.seed)
        rows, columns = np.mgrid[:height, :width]
        self._columns, self._rows = columns.ravel().astype(float), rows.ravel().astype(float)

    def paint(self, frame: int) -> Picture:
        """Render one frame: every pixel's centre, and four more rays where two surfaces meet in a pixel."""
        pose, solids = self.scene.world_from_camera[frame], self._solids.at(frame)
        colour, depth, surface = self._cast(self._columns, self._rows, pose, solids, frame)
        edges = np.flatnonzero(_edges(surface.reshape(self.height, self.width)).ravel())
        columns = (self._columns[edges] + _SUBPIXELS[:, :1]).ravel()
        rows = (self._rows[edges] + _SUBPIXELS[:, 1:]).ravel()
        samples = self._cast(columns, rows, pose, solids, frame)[0].reshape(3, len(_SUBPIXELS), -1)
        colour[:, edges] = (samples[:, 0] + samples[:, 1] + samples[:, 2] + samples[:, 3]) / 4
        display = np.sqrt(np.clip(colour, 0, 1)) * 255
        owner = np.where(surface >= 0, self._solids.owner[surface], 0).astype(np.uint8)
        shape = (self.height, self.width)
        return Picture(
            np.floor(display + 0.5).astype(np.uint8).T.reshape(*shape, 3),
            depth.reshape(shape),
            owner.reshape(shape),
        )

    def _cast(
        self, columns: np.ndarray, rows: np.ndarray, pose: np.ndarray, solids: Primitives, frame: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Linear colour (3, R), z-depth (R,) and surface (R,) seen through the given pixel positions."""
        k = self.scene.intrinsics
        x, y = (columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1]
        stretch = np.sqrt(x * x + y * y + 1)
        rays = np.stack([x / stretch, y / stretch, 1 / stretch])
        directions = np.stack([dot(pose[i, :3], rays) for i in range(3)])
        eye = np.repeat(pose[:3, 3][:, None], len(x), axis=1)

        distance, surface, normal = _surroundings(eye, directions, self.scene.yard)
        hits = nearest_hits(eye, directions, solids)
        ahead = hits.distance < distance[hits.ray]
        met = hits.ray[ahead]
        distance[met], surface[met], normal[:, met] = hits.distance[ahead], hits.primitive[ahead], hits.normal[:, ahead]
        points = eye + distance * directions

        albedo = self._surroundings_albedo(points, directions, distance, surface, normal)
        albedo[:, met] = self._solids.albedo(hits.primitive[ahead], hits.local[:, ahead])
        if self.scene.grain:
            places = points.copy()
            places[:, met] = hits.local[:, ahead] + 10.0 * hits.primitive[ahead]
            fine = _grain(places, distance / self.scene.intrinsics[0, 0])
            albedo *= np.where(surface == _SKY, 1, 1 + self.scene.grain * fine)
        light = self._light(points, normal, surface, solids, frame)
        haze = np.minimum(distance / 90, 0.3) * (surface != _SKY)
        colour = albedo * np.where(surface == _SKY, 1, light)
        return colour * (1 - haze) + _HAZE[:, None] * haze, distance * rays[2], surface

    def _surroundings_albedo(self, points, directions, distance, surface, normal) -> np.ndarray:
        """(3, R) colour of ground, walls and sky; rays that met a solid keep zeros."""
        albedo, finish = np.zeros_like(points), self._finish
        pixel = distance / self.scene.intrinsics[0, 0]

        low = np.flatnonzero(surface == _GROUND)
        slant = np.maximum(-directions[2, low], 0.08)
        grey = finish.ground.sample(points[0, low], points[1, low], pixel[low] / np.sqrt(slant))
        albedo[:, low] = _ramp(grey, finish.ground_tints)

        side = np.flatnonzero(surface == _WALL)
        along = np.where(normal[0, side] != 0, points[1, side], points[0, side])
        along = along + 11.3 * (normal[0, side] + 2 * normal[1, side])
        grey = finish.wall.sample(along, points[2, side], pixel[side])
        capped = (points[2, side] > _WALL_HEIGHT - 0.14) | (points[2, side] < 0.12)
        albedo[:, side] = _ramp(grey, finish.wall_tints) * np.where(capped, 0.45, 1)

        high = np.flatnonzero(surface == _SKY)
        rise = np.clip(directions[2, high], 0.02, 1)
        up = np.minimum(rise * 1.6, 1)
        sky = _HAZE[:, None] * (1 - up) + _ZENITH[:, None] * up
        cloud = finish.clouds.sample(directions[0, high] / rise * 3, directions[1, high] / rise * 3, 0.05 / rise)
        veil = np.clip(cloud * 2.6 - 1.2, 0, 0.9) * np.minimum(rise * 6, 1)
        albedo[:, high] = sky * (1 - veil) + 0.92 * veil
        return albedo

    def _light(self, points, normal, surface, solids: Primitives, frame: int) -> np.ndarray:
        """(R,) light on each point: sky, bounce from the ground, the sun where nothing stands in its way."""
        facing = np.maximum(dot(normal, self.scene.sun[:, None]), 0)
        lit = np.flatnonzero((facing > 0) & (surface != _SKY))
        towards = np.repeat(self.scene.sun[:, None], len(lit), axis=1)
        start = points[:, lit] + 0.004 * normal[:, lit]
        sun = np.zeros(points.shape[1])
        sun[lit] = facing[lit] * np.where(any_hit(start, towards, solids), 0.12, 1)
        sky = (0.6 + 0.4 * normal[2]) * _SKY_LIGHT + _BOUNCE * np.maximum(-normal[2], 0)
        return (sky + _SUN * sun) * self._contact(points, surface, frame)

    def _contact(self, points, surface, frame: int) -> np.ndarray:
        """(R,) soft darkening of the ground under things: what their bodies hide of the sky."""
        shade = np.ones(points.shape[1])
        low = np.flatnonzero(surface == _GROUND)
        dim = np.ones(len(low))
        for thing in self.scene.things:
            x, y, z = thing.ground[frame]
            reach = SHAPES[thing.shape].radius * thing.scale * 1.25 + 0.6 * z
            apart = ((points[0, low] - x) ** 2 + (points[1, low] - y) ** 2) / (reach * reach)
            dim *= 1 - 0.62 / (1 + 1.5 * z) * np.maximum(1 - apart, 0) ** 2
        shade[low] = dim
        return shade


class _Solids:
    """All solids of a scene: those of its things, which move, then its pillars, which do not."""

    def __init__(self, scene: Scene):
        self._scene = scene
        rows = [
            (i + 1, s.kind, s.center, s.size, s.colour or COLOURS[t.colour], s.pattern, s.rotation, t.scale)
            for i, t in enumerate(scene.things)
            for s in SHAPES[t.shape].solids
        ]
        rows += [
            (0, FRUSTUM, (x, y, height / 2), (radius, radius, height / 2), (0.42, 0.36, 0.28), BANDS, np.eye(3), 1)
            for x, y, radius, height in scene.pillars
        ]
        rows += [
            (0, BOX, (x, y, height + 0.05), (radius * 1.4, radius * 1.4, 0.06), (0.5, 0.46, 0.4), PLAIN, np.eye(3), 1)
            for x, y, radius, height in scene.pillars
        ]
        owner, kind, center, size, colour, pattern, rotation, scale = zip(*rows, strict=True)
        grow = np.array(scale)[:, None]
        self.owner, self.kind = np.array(owner), np.array(kind)
        self.size, self._center = np.array(size) * grow, np.array(center) * grow
        self._colour, self._pattern, self._rotation = np.array(colour), np.array(pattern), np.array(rotation)

    def at(self, frame: int) -> Primitives:
        """The solids in the world frame at one frame. A thing turns about its centre, not about its foot."""
        things = self._scene.things
        middle = np.array([[0.0, 0, 0]] + [[0, 0, SHAPES[t.shape].middle * t.scale] for t in things])
        base = np.array([[0.0, 0, 0]] + [t.ground[frame] for t in things])
        turn = np.array([np.eye(3)] + [t.rotation[frame] for t in things])[self.owner]
        arm = (self._center - middle[self.owner])[:, None, :]
        center = base[self.owner] + middle[self.owner] + (turn * arm).sum(axis=2)
        rotation = (turn[:, :, :, None] * self._rotation[:, None, :, :]).sum(axis=2)
        return Primitives(self.kind, self.size, center, rotation)

    def albedo(self, solid: np.ndarray, local: np.ndarray) -> np.ndarray:
        """(3, H) colour at points (3, H) of the solids' own frames."""
        x, y, z = local / self.size[solid].T
        height = np.where(self.kind[solid] == FRUSTUM, local[2] / self.size[solid, 2], z)
        pattern = self._pattern[solid]
        rim = np.sort(np.abs(np.stack([x, y, z])), axis=0)[1] > 0.8
        joint = np.abs((np.where(np.abs(z) > 0.999, y, z) + 1) * 1.5 % 1 - 0.5) > 0.44
        band = (np.abs(np.abs(height) - 0.45) < 0.14) & (np.abs(height) < 1)
        sector = (x * y * z) > 0
        tone = np.where(pattern == PLANKS, np.where(rim, 0.6, np.where(joint, 0.35, 1.0)), 1.0)
        pale = ((pattern == BANDS) & band) | ((pattern == SECTORS) & sector)
        colour = self._colour[solid].T * tone
        other = np.where(colour.min(axis=0) > 0.5, 0.3 * colour, 0.25 * colour + 0.55)
        return np.where(pale, other, colour)


def _surroundings(eye: np.ndarray, directions: np.ndarray, yard: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance (R,), surface (R,) and normal (3, R) of ground, walls or the sky's dome, seen from inside the yard."""
    with np.errstate(divide="ignore"):
        to_ground = np.where(directions[2] < 0, -eye[2] / directions[2], np.inf)
        to_wall = (np.sign(directions[:2]) * yard - eye[:2]) / directions[:2]
    to_wall = np.where(directions[:2] == 0, np.inf, to_wall)
    wall = to_wall.min(axis=0)
    normal = np.zeros_like(directions)
    normal[2] = 1
    surface = np.full(directions.shape[1], _GROUND)

    beyond = wall < to_ground
    surface[beyond] = _WALL
    normal[:, beyond] = 0
    across = (to_wall[1] < to_wall[0]).astype(int)
    for axis in (0, 1):
        chosen = beyond & (across == axis)
        normal[axis, chosen] = -np.sign(directions[axis, chosen])

    over = beyond & (eye[2] + wall * directions[2] > _WALL_HEIGHT)
    surface[over] = _SKY
    b, c = dot(eye, directions), dot(eye, eye) - _DOME * _DOME
    dome = -b + np.sqrt(b * b - c)
    return np.where(over, dome, np.where(beyond, wall, to_ground)), surface, normal


def _edges(surface: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right, left, upper or lower neighbour shows another surface."""
    edge = np.zeros(surface.shape, bool)
    beside, below = surface[:, 1:] != surface[:, :-1], surface[1:] != surface[:-1]
    edge[:, 1:] |= beside
    edge[:, :-1] |= beside
    edge[1:] |= below
    edge[:-1] |= below
    return edge


def _grain(places: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """(R,) solid noise in -1..1 at (3, R) places in metres; what is finer than two pixels of (R,) metres fades out."""
    total = np.zeros(places.shape[1])
    for cell in _GRAINS:
        scaled = places / cell
        low = np.floor(scaled)
        share = scaled - low
        corner = low.astype(np.int64)
        value = np.zeros(places.shape[1])
        for step in np.ndindex(2, 2, 2):
            x, y, z = (corner[axis] + step[axis] for axis in range(3))
            weight = [share[axis] if step[axis] else 1 - share[axis] for axis in range(3)]
            value += weight[0] * weight[1] * weight[2] * _lattice(x, y, z)
        total += value * np.clip(cell / (2 * pixel) - 1, 0, 1)
    return np.clip(total, -1, 1)


def _lattice(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(R,) value in -1..1 of each whole place, mixed as in MurmurHash3's finalizer."""
    mixed = (x * 0x8DA6B343 + y * 0xD8163841 + z * 0xCB1AB31F).astype(np.uint64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
    return (mixed >> np.uint64(40)).astype(float) / 2**23 - 1


def _ramp(grey: np.ndarray, tints: np.ndarray) -> np.ndarray:
    """(3, R) colours between two tints (2, 3) for values in 0..1."""
    return tints[0][:, None] * (1 - grey) + tints[1][:, None] * grey


_GROUND_TINTS = np.array(
    [
        [[0.10, 0.10, 0.11], [0.58, 0.55, 0.50]],
        [[0.04, 0.09, 0.03], [0.34, 0.46, 0.18]],
        [[0.16, 0.11, 0.07], [0.66, 0.52, 0.36]],
        [[0.07, 0.10, 0.14], [0.44, 0.52, 0.58]],
    ]
)
_WALL_TINTS = np.array(
    [
        [[0.14, 0.05, 0.03], [0.62, 0.32, 0.22]],
        [[0.12, 0.13, 0.14], [0.68, 0.66, 0.60]],
        [[0.05, 0.10, 0.06], [0.42, 0.55, 0.34]],
        [[0.08, 0.09, 0.16], [0.52, 0.55, 0.66]],
    ]
)


def _draw_finish(seed: int) -> _Finish:
    """Draw a scene's textures and tints; a pure function of the seed."""
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    size = 1024
    noise = _noise(rng, size, 8)
    paving = _paving(rng, size, int(rng.choice([16, 32])), shift=0)
    lawn = np.clip(0.25 * paving + 0.75 * noise, 0, 1)
    ground = paving * 0.62 + noise * 0.38 if rng.uniform() < 0.7 else lawn
    bricks = _paving(rng, size, int(rng.choice([32, 64])), shift=1)
    wall = bricks * 0.6 + np.roll(noise, size // 3, axis=0) * 0.4
    return _Finish(
        _mipmaps(ground),
        _mipmaps(wall),
        _mipmaps(_noise(rng, 256, 4)),
        _GROUND_TINTS[rng.integers(len(_GROUND_TINTS))],
        _WALL_TINTS[rng.integers(len(_WALL_TINTS))],
    )


def _noise(rng: np.random.Generator, size: int, coarsest: int) -> np.ndarray:
    """(size, size) periodic value noise in 0..1, from `coarsest` cells up to half the texels."""
    total, weight, cells = np.zeros((size, size)), 1.0, coarsest
    while cells <= size // 2:
        total += weight * (_stretch(rng.uniform(size=(cells, cells)), size) - 0.5)
        weight, cells = weight * 0.72, cells * 2
    return np.clip(total * 0.75 + 0.5, 0, 1)


def _stretch(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear periodic enlargement of a square grid to (size, size)."""
    share = np.arange(size // len(grid)) / (size // len(grid))
    for _ in range(2):
        following = np.roll(grid, -1, axis=1)
        grid = (grid[:, :, None] * (1 - share) + following[:, :, None] * share).reshape(len(grid), size).T
    return grid


def _paving(rng: np.random.Generator, size: int, courses: int, shift: int) -> np.ndarray:
    """(size, size) slabs of different greys with dark joints; `shift` 1 sets every other course off: bricks."""
    tile = size // courses
    slab = np.kron(rng.uniform(0.35, 1.0, (courses, courses)), np.ones((tile, tile)))
    slab.reshape(courses, tile, courses, tile)[:, :, :, :2] = 0.05
    if shift:
        rows = slab.reshape(courses, tile, size)
        rows[1::2] = np.roll(rows[1::2], tile // 2, axis=2)
    slab.reshape(courses, tile, size)[:, :2] = 0.05
    return slab


def _mipmaps(texture: np.ndarray) -> _Texture:
    """A texture and its halvings by 2x2 means, down to 4x4."""
    levels = [texture]
    while len(levels[-1]) > 4:
        t = levels[-1]
        levels.append((t[::2, ::2] + t[1::2, ::2] + t[::2, 1::2] + t[1::2, 1::2]) / 4)
    sizes = np.array([len(t) for t in levels])
    begins = np.r_[0, np.cumsum(sizes**2)[:-1]]
    return _Texture(np.concatenate([t.ravel() for t in levels]), begins, sizes)
