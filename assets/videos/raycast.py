"""Closed-form ray casting of boxes, ellipsoids and frusta, vectorised over rays and primitives.

Everything that reaches a pixel uses only + - * / and square roots, which IEEE 754 rounds the same way on every
processor, so that a scene gives the same bytes everywhere. BLAS appears only in the conservative culling.

Vectors of many rays are stored component first, shape (3, R).
"""

from dataclasses import dataclass

import numpy as np

BOX, ELLIPSOID, FRUSTUM = 0, 1, 2

# A hit closer than this (m) is the surface the ray starts on.
NEAREST = 1e-4


@dataclass(frozen=True)
class Primitives:
    """P solids in the world frame, metres.

    Attributes:
        kind: (P,) BOX, ELLIPSOID or FRUSTUM.
        size: (P, 3) box half sides | ellipsoid radii | frustum bottom radius, top radius, half height (its axis is z).
        center: (P, 3).
        rotation: (P, 3, 3) world_from_primitive.
    """

    kind: np.ndarray
    size: np.ndarray
    center: np.ndarray
    rotation: np.ndarray

    def bounding_radius(self) -> np.ndarray:
        """(P,) radius of a sphere round each centre that holds the whole solid."""
        box = np.sqrt((self.size**2).sum(axis=1))
        frustum = np.hypot(self.size[:, :2].max(axis=1), self.size[:, 2])
        return np.select([self.kind == BOX, self.kind == ELLIPSOID], [box, self.size.max(axis=1)], frustum)


@dataclass(frozen=True)
class Hits:
    """What each of H rays that met something met first.

    Attributes:
        ray: (H,) index of the ray, increasing.
        primitive: (H,) index of the solid.
        distance: (H,) along the ray, in units of its direction's length.
        normal: (3, H) outward unit normal, world frame.
        local: (3, H) the point in the solid's own frame.
    """

    ray: np.ndarray
    primitive: np.ndarray
    distance: np.ndarray
    normal: np.ndarray
    local: np.ndarray


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products of vectors stored component first: (3, ...), (3, ...) -> (...)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def nearest_hits(origins: np.ndarray, directions: np.ndarray, primitives: Primitives) -> Hits:
    """First solid that each ray meets.

    Args:
        origins: (3, R) world frame, metres.
        directions: (3, R) unit vectors.
        primitives: the P solids.

    Returns:
        One entry per ray that meets a solid in front of its origin.
    """
    ray, primitive = _candidates(origins, directions, primitives)
    rotation = primitives.rotation[primitive].transpose(1, 2, 0)
    offset = origins[:, ray] - primitives.center[primitive].T
    start = np.stack([dot(rotation[:, k], offset) for k in range(3)])
    heading = np.stack([dot(rotation[:, k], directions[:, ray]) for k in range(3)])
    size, kind = primitives.size[primitive].T, primitives.kind[primitive]

    distance = np.full(len(ray), np.inf)
    for solid, meet in ((BOX, _meet_box), (ELLIPSOID, _meet_ellipsoid), (FRUSTUM, _meet_frustum)):
        chosen = np.flatnonzero(kind == solid)
        distance[chosen] = meet(start[:, chosen], heading[:, chosen], size[:, chosen])

    best = _first_per_ray(ray, distance)
    local = start[:, best] + distance[best] * heading[:, best]
    inner = _normals(local, size[:, best], kind[best])
    normal = np.stack([dot(rotation[k][:, best], inner) for k in range(3)])
    return Hits(ray[best], primitive[best], distance[best], normal, local)


def any_hit(origins: np.ndarray, directions: np.ndarray, primitives: Primitives) -> np.ndarray:
    """(R,) bool: does the ray meet a solid at all? Arguments as for `nearest_hits`."""
    blocked = np.zeros(origins.shape[1], bool)
    blocked[nearest_hits(origins, directions, primitives).ray] = True
    return blocked


def _candidates(origins: np.ndarray, directions: np.ndarray, primitives: Primitives) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (ray, solid) whose bounding sphere the ray passes, sorted by ray; conservative, so float32 will do."""
    o, d = origins.astype(np.float32), directions.astype(np.float32)
    c = primitives.center.astype(np.float32)
    radius = primitives.bounding_radius().astype(np.float32) * 1.01 + 0.02
    along = d.T @ c.T
    along -= dot(d, o)[:, None]
    apart = o.T @ (-2 * c.T)
    apart += dot(o, o)[:, None]
    apart += (c**2).sum(axis=1) - radius**2
    near = along > -radius
    np.multiply(along, along, out=along)
    near &= along > apart
    return np.divmod(np.flatnonzero(near), len(c))


def _first_per_ray(ray: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Indices of the nearest finite entry of each ray; `ray` is sorted."""
    if len(ray) == 0:
        return np.empty(0, int)
    begins = np.flatnonzero(np.r_[True, ray[1:] != ray[:-1]])
    nearest = np.repeat(np.minimum.reduceat(distance, begins), np.diff(np.r_[begins, len(ray)]))
    best = np.flatnonzero((distance == nearest) & np.isfinite(distance))
    return best[np.r_[True, ray[best][1:] != ray[best][:-1]]] if len(best) else best


def _meet_box(start: np.ndarray, heading: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Slab method (Kay and Kajiya 1986): (3, K) each -> (K,) distances, inf where missed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (-half - start) / heading, (half - start) / heading
    enter, leave = np.fmin(one, other).max(axis=0), np.fmax(one, other).min(axis=0)
    return np.where((enter <= leave) & (enter > NEAREST), enter, np.inf)


def _meet_ellipsoid(start: np.ndarray, heading: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Unit sphere after scaling by the radii: (3, K) each -> (K,) distances, inf where missed."""
    o, d = start / radii, heading / radii
    a, b, c = dot(d, d), dot(o, d), dot(o, o) - 1
    inside = b * b - a * c
    distance = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside >= 0) & (distance > NEAREST), distance, np.inf)


def _meet_frustum(start: np.ndarray, heading: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Mantle x2 + y2 = (m + k z)2 and two caps: (3, K) each -> (K,) distances, inf where missed."""
    bottom, top, half = size
    m, k = (bottom + top) / 2, (top - bottom) / (2 * half)
    (x, y, z), (dx, dy, dz) = start, heading
    wall, slope = m + k * z, k * dz
    with np.errstate(divide="ignore", invalid="ignore"):
        a = dx * dx + dy * dy - slope * slope
        b = x * dx + y * dy - wall * slope
        inside = b * b - a * (x * x + y * y - wall * wall)
        root = np.sqrt(np.maximum(inside, 0))
        mantle = np.stack([(-b - root) / a, (-b + root) / a])
        on_mantle = (inside >= 0) & (np.abs(z + mantle * dz) <= half) & (mantle > NEAREST)
        caps = np.stack([(-half - z) / dz, (half - z) / dz])
        across = (x + caps * dx) ** 2 + (y + caps * dy) ** 2
        on_cap = (across <= np.stack([bottom, top]) ** 2) & (caps > NEAREST)
    return np.concatenate([np.where(on_mantle, mantle, np.inf), np.where(on_cap, caps, np.inf)]).min(axis=0)


def _normals(local: np.ndarray, size: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """(3, H) unit normals in the solid's own frame at surface points of that frame."""
    if local.shape[1] == 0:
        return local
    share = np.abs(local) / size
    face = (share == share.max(axis=0)) * np.sign(local)
    round_ = local / size**2
    bottom, top, half = size
    k = (top - bottom) / (2 * half)
    mantle = np.stack([local[0], local[1], -k * ((bottom + top) / 2 + k * local[2])])
    cap = np.stack([np.zeros_like(half), np.zeros_like(half), np.sign(local[2])])
    conic = np.where(np.abs(local[2]) >= half * (1 - 1e-9), cap, mantle)
    chosen = np.where(kind == BOX, face, np.where(kind == ELLIPSOID, round_, conic))
    length = np.sqrt(dot(chosen, chosen))
    return chosen / np.where(length > 0, length, 1)
