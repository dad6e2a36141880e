import hashlib

import numpy as np
import pytest

from assets.geometry.record import unknown
from assets.questions.parameters import QuestionParameters
from assets.questions.row import NON_TEMPLATE

LENGTH = 32
CLASSES = ("robot", "car", "dog", "crate", "barrel")
COLOURS = ("red", "blue", "green", "white", "black")
# World of a first camera that looks level: x right, y down, z forward.
UP = np.array([0.0, -1.0, 0.0])


def clip_of(number: int) -> str:
    return hashlib.sha256(f"clip {number}".encode()).hexdigest()


def _path(rng: np.random.Generator, times: np.ndarray, moves: bool) -> np.ndarray:
    """(T,3) a smooth path on the ground: a start, a changing speed along a turning heading."""
    start = np.array([rng.uniform(-4, 4), 1.0, rng.uniform(4, 12)])
    if not moves:
        return np.tile(start, (len(times), 1))
    span = times[-1] - times[0]
    phase, bend, pace = rng.uniform(0, 2 * np.pi, 3)
    heading = phase + rng.uniform(-2, 2) * np.sin(2 * np.pi * rng.uniform(0.3, 1) * times / span + bend)
    speed = 0.8 * (1 + 0.95 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * times / span + pace))
    velocity = speed[:, None] * np.stack([np.cos(heading), 0 * heading, np.sin(heading)], axis=1)
    steps = np.diff(times, prepend=times[0])[:, None]
    return start + np.cumsum(velocity * steps, axis=0)


def synthetic_record(number: int, length: int = LENGTH, seconds: float = 8.0):
    """A record of moving agents, moving and resting things and a camera that drifts and pans."""
    rng = np.random.default_rng(number)
    times = np.linspace(0.0, seconds, length)
    count = int(rng.integers(3, 6))
    kinds = rng.permutation(len(CLASSES))[:count]
    agents = kinds < 3
    agents[np.argmin(kinds)] = True
    moves = agents | (rng.random(count) < 0.5)
    centers = np.stack([_path(rng, times, moving) for moving in moves])
    velocity = np.gradient(centers, times, axis=1) + 1e-4 * np.array([1.0, 0.0, 0.3])
    forward = velocity / np.linalg.norm(velocity, axis=-1, keepdims=True)
    yaw = rng.uniform(-0.5, 0.5) * np.sin(2 * np.pi * times / seconds * rng.uniform(0.3, 1))
    poses = np.tile(np.eye(4), (length, 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(yaw)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(yaw), -np.sin(yaw)
    poses[:, :3, 3] = rng.uniform(-1, 1, 3) * [2, 0.3, 2] * np.sin(times / seconds * rng.uniform(1, 4))[:, None]
    return unknown(
        times,
        names=[f"{COLOURS[i]} {CLASSES[kind]}" for i, kind in enumerate(kinds)],
        classes=[CLASSES[kind] for kind in kinds],
        is_agent=agents,
        world_from_camera=poses,
        centers_world=centers,
        forward_world=np.where(agents[:, None, None], forward, np.nan),
        forward_confidence=np.where(agents[:, None], 1.0, 0.0) * np.ones((count, length)),
        provenance={
            "status": "3d",
            "reason": "",
            "estimator": "synthetic",
            "error_model": {},
            "poses": "known",
            "up_world": UP.tolist(),
            "metric": True,
            "frame_size": [0, 0],
        },
    )


def of_templates(rows: list[dict]) -> list[dict]:
    """The rows of the twelve template types."""
    return [row for row in rows if row["type"] != NON_TEMPLATE]


def split_by_number(clip: str) -> str:
    """A stand-in for the wall between splits: one clip in four is bench."""
    return "bench" if int(clip[:8], 16) % 4 == 0 else "train"


@pytest.fixture(scope="session")
def parameters() -> QuestionParameters:
    return QuestionParameters(reader_epochs=0)


@pytest.fixture(scope="session")
def derived(parameters):
    """Candidate rows of 32 synthetic clips."""
    from assets.questions.candidates import derive

    return [derive(synthetic_record(n), clip_of(n), "shard-000000", True, parameters) for n in range(32)]
