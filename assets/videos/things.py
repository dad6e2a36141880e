"""The things of the sample world, as boxes, ellipsoids and frusta.

A thing's own frame: x forward, y left, z up, origin on the ground below its middle, metres. Agents are built so
that their front can be seen: eyes, a snout, headlights, a cap's visor, stretched arms.
"""

from dataclasses import dataclass

import numpy as np

from assets.videos.raycast import BOX, ELLIPSOID, FRUSTUM

# Patterns a solid's surface may carry; the painter knows what they look like.
PLAIN, PLANKS, SECTORS, BANDS = 0, 1, 2, 3

# Linear RGB.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.72, 0.05, 0.04),
    "blue": (0.05, 0.16, 0.75),
    "green": (0.06, 0.45, 0.10),
    "yellow": (0.90, 0.68, 0.04),
    "orange": (0.90, 0.28, 0.02),
    "purple": (0.34, 0.07, 0.55),
    "pink": (0.90, 0.32, 0.50),
    "white": (0.85, 0.85, 0.82),
    "teal": (0.02, 0.46, 0.48),
}
_DARK, _BLACK, _STEEL = (0.07, 0.07, 0.08), (0.015, 0.015, 0.02), (0.36, 0.38, 0.42)
_SKIN, _GLASS, _LAMP, _TAIL = (0.68, 0.40, 0.26), (0.10, 0.16, 0.22), (1.6, 1.5, 0.9), (0.9, 0.02, 0.02)
_UPRIGHT = np.eye(3)
_SIDEWAYS = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # a frustum's axis along y: wheels
_FORWARD = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # a frustum's axis along x
_RAKED = np.array([[0.8, 0, -0.6], [0, 1, 0], [0.6, 0, 0.8]])  # leaning backward: tails


@dataclass(frozen=True)
class Solid:
    """One primitive of a thing, in the thing's frame. `colour` None takes the thing's own colour."""

    kind: int
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    colour: tuple[float, float, float] | None = None
    pattern: int = PLAIN
    rotation: np.ndarray = None

    def __post_init__(self):
        """A solid stands upright unless told otherwise."""
        if self.rotation is None:
            object.__setattr__(self, "rotation", _UPRIGHT)


@dataclass(frozen=True)
class Shape:
    """What a class of things looks like.

    Attributes:
        solids: the primitives.
        middle: height of the point taken as the thing's centre; it lies inside the body.
        radius: of the circle round its footprint.
        is_agent: can lend a viewpoint; its x axis is where it faces.
        rolls: turns about its own centre as it moves.
        flies: keeps to the air.
    """

    solids: tuple[Solid, ...]
    middle: float
    radius: float
    is_agent: bool
    rolls: bool = False
    flies: bool = False


def _pair(kind, center, size, colour=None, rotation=None) -> tuple[Solid, Solid]:
    """The same solid on the left and on the right."""
    x, y, z = center
    return tuple(Solid(kind, (x, side * y, z), size, colour, rotation=rotation) for side in (1, -1))


_ROBOT = Shape(
    solids=(
        *_pair(BOX, (0, 0.34, 0.18), (0.42, 0.09, 0.18), _BLACK),
        Solid(BOX, (0, 0, 0.24), (0.34, 0.28, 0.12), _DARK),
        Solid(BOX, (0, 0, 0.74), (0.27, 0.33, 0.38)),
        Solid(BOX, (0.27, 0, 0.80), (0.02, 0.2, 0.18), _STEEL),
        *_pair(BOX, (0.28, 0.42, 0.86), (0.30, 0.08, 0.08), _STEEL),
        Solid(BOX, (0.02, 0, 1.30), (0.2, 0.23, 0.16), _STEEL),
        *_pair(ELLIPSOID, (0.21, 0.1, 1.33), (0.06, 0.065, 0.065), _LAMP),
        Solid(FRUSTUM, (-0.08, 0, 1.56), (0.025, 0.015, 0.12), _DARK),
        Solid(ELLIPSOID, (-0.08, 0, 1.70), (0.06, 0.06, 0.06)),
    ),
    middle=0.74,
    radius=0.6,
    is_agent=True,
)
_DOG = Shape(
    solids=(
        Solid(ELLIPSOID, (0, 0, 0.58), (0.55, 0.25, 0.26)),
        Solid(ELLIPSOID, (0.62, 0, 0.88), (0.25, 0.2, 0.21)),
        Solid(FRUSTUM, (0.87, 0, 0.82), (0.13, 0.09, 0.13), (0.75, 0.6, 0.45), rotation=_FORWARD),
        Solid(ELLIPSOID, (1.01, 0, 0.86), (0.06, 0.06, 0.05), _BLACK),
        *_pair(ELLIPSOID, (0.78, 0.12, 0.98), (0.045, 0.045, 0.045), _BLACK),
        *_pair(ELLIPSOID, (0.54, 0.19, 0.98), (0.08, 0.06, 0.19), _DARK),
        *_pair(FRUSTUM, (0.34, 0.15, 0.24), (0.07, 0.09, 0.24)),
        *_pair(FRUSTUM, (-0.36, 0.15, 0.24), (0.07, 0.09, 0.24)),
        Solid(FRUSTUM, (-0.66, 0, 0.84), (0.07, 0.03, 0.28), rotation=_RAKED),
    ),
    middle=0.58,
    radius=0.95,
    is_agent=True,
)
_CAR = Shape(
    solids=(
        Solid(BOX, (0, 0, 0.48), (1.25, 0.58, 0.24)),
        Solid(BOX, (-0.25, 0, 0.88), (0.66, 0.50, 0.18), _GLASS),
        Solid(BOX, (-0.25, 0, 1.10), (0.62, 0.50, 0.05)),
        *_pair(FRUSTUM, (0.78, 0.56, 0.29), (0.29, 0.29, 0.1), _BLACK, _SIDEWAYS),
        *_pair(FRUSTUM, (-0.78, 0.56, 0.29), (0.29, 0.29, 0.1), _BLACK, _SIDEWAYS),
        *_pair(FRUSTUM, (0.78, 0.60, 0.29), (0.15, 0.15, 0.08), _STEEL, _SIDEWAYS),
        *_pair(FRUSTUM, (-0.78, 0.60, 0.29), (0.15, 0.15, 0.08), _STEEL, _SIDEWAYS),
        *_pair(ELLIPSOID, (1.24, 0.40, 0.54), (0.07, 0.12, 0.1), _LAMP),
        *_pair(BOX, (-1.25, 0.42, 0.54), (0.02, 0.12, 0.07), _TAIL),
        Solid(BOX, (1.26, 0, 0.32), (0.04, 0.5, 0.06), _STEEL),
    ),
    middle=0.52,
    radius=1.4,
    is_agent=True,
)
_PERSON = Shape(
    solids=(
        *_pair(FRUSTUM, (0, 0.12, 0.42), (0.09, 0.13, 0.42), (0.06, 0.08, 0.2)),
        *_pair(BOX, (0.08, 0.12, 0.05), (0.17, 0.08, 0.05), _BLACK),
        Solid(FRUSTUM, (0, 0, 1.12), (0.23, 0.27, 0.32)),
        *_pair(FRUSTUM, (0.03, 0.35, 1.08), (0.06, 0.09, 0.32)),
        *_pair(ELLIPSOID, (0.03, 0.35, 0.74), (0.07, 0.07, 0.08), _SKIN),
        Solid(ELLIPSOID, (0, 0, 1.62), (0.19, 0.18, 0.21), _SKIN),
        Solid(ELLIPSOID, (0.19, 0, 1.60), (0.06, 0.04, 0.05), _SKIN),
        Solid(ELLIPSOID, (-0.01, 0, 1.72), (0.21, 0.2, 0.14)),
        Solid(BOX, (0.24, 0, 1.72), (0.14, 0.13, 0.02)),
        Solid(BOX, (-0.32, 0, 1.18), (0.12, 0.2, 0.26), _DARK),
    ),
    middle=1.1,
    radius=0.5,
    is_agent=True,
)
_DRONE = Shape(
    solids=(
        Solid(ELLIPSOID, (0, 0, 0.2), (0.42, 0.3, 0.17)),
        Solid(BOX, (0.42, 0, 0.28), (0.05, 0.62, 0.03), _DARK),
        Solid(BOX, (-0.42, 0, 0.28), (0.05, 0.62, 0.03), _DARK),
        Solid(BOX, (0, 0, 0.28), (0.46, 0.05, 0.03), _DARK),
        *_pair(FRUSTUM, (0.42, 0.58, 0.34), (0.3, 0.3, 0.015), _STEEL),
        *_pair(FRUSTUM, (-0.42, 0.58, 0.34), (0.3, 0.3, 0.015), _STEEL),
        Solid(ELLIPSOID, (0.40, 0, 0.12), (0.12, 0.12, 0.12), _BLACK),
        *_pair(ELLIPSOID, (0.38, 0.18, 0.2), (0.07, 0.07, 0.07), _LAMP),
        Solid(BOX, (-0.44, 0, 0.42), (0.12, 0.025, 0.14)),
        *_pair(BOX, (0, 0.26, 0.02), (0.3, 0.025, 0.02), _STEEL),
    ),
    middle=0.2,
    radius=0.95,
    is_agent=True,
    flies=True,
)
_BALL = Shape(
    solids=(Solid(ELLIPSOID, (0, 0, 0.42), (0.42, 0.42, 0.42), pattern=SECTORS),),
    middle=0.42,
    radius=0.42,
    is_agent=False,
    rolls=True,
)
_CRATE = Shape(
    solids=(Solid(BOX, (0, 0, 0.45), (0.45, 0.45, 0.45), pattern=PLANKS),),
    middle=0.45,
    radius=0.64,
    is_agent=False,
)
_BARREL = Shape(
    solids=(
        Solid(FRUSTUM, (0, 0, 0.55), (0.38, 0.38, 0.55), pattern=BANDS),
        Solid(FRUSTUM, (0, 0, 1.105), (0.31, 0.31, 0.01), _DARK),
    ),
    middle=0.55,
    radius=0.38,
    is_agent=False,
)
_CONE = Shape(
    solids=(
        Solid(BOX, (0, 0, 0.03), (0.42, 0.42, 0.03)),
        Solid(FRUSTUM, (0, 0, 0.56), (0.34, 0.06, 0.5), pattern=BANDS),
    ),
    middle=0.45,
    radius=0.59,
    is_agent=False,
)

SHAPES: dict[str, Shape] = {
    "robot": _ROBOT,
    "dog": _DOG,
    "car": _CAR,
    "person": _PERSON,
    "drone": _DRONE,
    "ball": _BALL,
    "crate": _CRATE,
    "barrel": _BARREL,
    "cone": _CONE,
}
AGENTS = tuple(name for name, shape in SHAPES.items() if shape.is_agent)
OBJECTS = tuple(name for name, shape in SHAPES.items() if not shape.is_agent)
