import numpy as np
import pytest

from assets.videos.raycast import BOX, ELLIPSOID, FRUSTUM, Primitives, any_hit, nearest_hits


def solid(kind, size, center=(0.0, 0.0, 0.0), rotation=None) -> Primitives:
    return Primitives(
        np.array([kind]),
        np.array([size], float),
        np.array([center], float),
        (np.eye(3) if rotation is None else rotation)[None],
    )


def inside(kind, size, points):
    """(R, S) bool by the implicit inequality, points (3, R, S) in the solid's own frame."""
    x, y, z = points
    if kind == BOX:
        return (abs(x) < size[0]) & (abs(y) < size[1]) & (abs(z) < size[2])
    if kind == ELLIPSOID:
        return (x / size[0]) ** 2 + (y / size[1]) ** 2 + (z / size[2]) ** 2 < 1
    radius = (size[0] + size[1]) / 2 + (size[1] - size[0]) / (2 * size[2]) * z
    return (abs(z) < size[2]) & (x * x + y * y < radius * radius)


@pytest.mark.parametrize(
    ("kind", "size"),
    [(BOX, (0.5, 1.0, 0.3)), (ELLIPSOID, (0.4, 0.9, 0.6)), (FRUSTUM, (0.8, 0.2, 0.7)), (FRUSTUM, (0.5, 0.5, 0.9))],
)
def test_hits_agree_with_marching_along_the_ray(kind, size):
    rng = np.random.default_rng(7)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    center = np.array([0.3, -0.2, 0.5])
    origins = rng.normal(size=(3, 400))
    origins *= 4 / np.linalg.norm(origins, axis=0)
    directions = center[:, None] + rng.normal(scale=0.6, size=(3, 400)) - origins
    directions /= np.linalg.norm(directions, axis=0)

    hits = nearest_hits(origins, directions, solid(kind, size, center, rotation))
    steps = np.arange(0, 8, 0.004)
    marched = origins[:, :, None] + steps * directions[:, :, None] - center[:, None, None]
    within = inside(kind, size, np.einsum("ji,jrs->irs", rotation, marched))
    first = np.where(within.any(axis=1), steps[within.argmax(axis=1)], np.inf)
    found = np.full(400, np.inf)
    found[hits.ray] = hits.distance
    # Marching misses chords shorter than its step, the closed form does not.
    surely = np.isfinite(first)
    assert surely.sum() > 100
    assert np.abs(found[surely] - first[surely]).max() < 0.005
    assert (np.isfinite(found) & ~surely).sum() < 8


@pytest.mark.parametrize(("kind", "size"), [(BOX, (1, 1, 1)), (ELLIPSOID, (1, 1, 1)), (FRUSTUM, (1, 1, 1))])
def test_normals_point_at_the_viewer(kind, size):
    hits = nearest_hits(np.array([[5.0], [0.0], [0.0]]), np.array([[-1.0], [0.0], [0.0]]), solid(kind, size))
    assert hits.distance == pytest.approx([4])
    assert hits.normal[:, 0] == pytest.approx([1, 0, 0])


def test_the_nearer_solid_wins_and_what_lies_behind_is_not_met():
    near, far = solid(ELLIPSOID, (1, 1, 1), (4, 0, 0)), solid(BOX, (1, 1, 1), (8, 0, 0))
    both = Primitives(
        *(np.concatenate([getattr(far, f), getattr(near, f)]) for f in ("kind", "size", "center", "rotation"))
    )
    origin = np.zeros((3, 2))
    directions = np.array([[1.0, -1.0], [0, 0], [0, 0]])
    hits = nearest_hits(origin, directions, both)
    assert hits.ray.tolist() == [0] and hits.primitive.tolist() == [1]
    assert any_hit(origin, directions, both).tolist() == [True, False]
