"""A tiny world with real files: clips, scene records, a sealed release, and a reader that measures and answers."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.benchmark.parameters import BenchmarkParameters
from assets.geometry.record import load, save, unknown
from assets.splits.sealing import seal_release
from models.gsm import CELL_CHANNELS

SHARD = "shard-000000"
FRAMES, HEIGHT, WIDTH = 8, 48, 64
TIMES = np.arange(FRAMES) * 0.5
OPTIONS = [
    "The distance becomes larger",
    "The distance becomes smaller",
    "The distance keeps nearly constant",
    "(1) The distance becomes larger (2) The distance becomes smaller",
]
STATES = [["larger"], ["smaller"], ["nearly constant"], ["larger", "smaller"]]
MOVERS = ["red robot", "blue crate", "green car", "yellow dog"]
HOSTILE = "<script>alert(1)</script> & | *dog*"
TYPES = ["abs_dis", "rel_dis"]


def distances(pattern: int) -> np.ndarray:
    """(T,) distance of a mover from the pillar, as its option says."""
    rising = np.linspace(2, 5, FRAMES)
    return [rising, rising[::-1], np.full(FRAMES, 3.0), 5 - np.abs(np.linspace(-3, 3, FRAMES))][pattern]


def pattern_of(number: int, mover: int) -> int:
    """Which option is true of a mover of a clip: another one in the next clip."""
    return (number + mover) % 4


def clip_of(number: int) -> str:
    return hashlib.sha256(f"clip {number}".encode()).hexdigest()


def write_scene(root: Path, number: int, names: list[str]) -> None:
    """Frames and scene record of one clip: a pillar at the origin and four movers around it."""
    from safetensors.numpy import save_file

    clip = clip_of(number)
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 40 + 10 * number, np.uint8)
    centers, boxes = np.zeros((5, FRAMES, 3)), np.zeros((5, FRAMES, 4))
    boxes[0] = [28, 18, 36, 30]
    for i in range(4):
        centers[i + 1, :, 0] = distances(pattern_of(number, i)) * np.cos(i)
        centers[i + 1, :, 2] = distances(pattern_of(number, i)) * np.sin(i)
        corner = np.stack([30 + 5 * centers[i + 1, :, 0], 22 + 3 * centers[i + 1, :, 2]], -1)
        boxes[i + 1] = np.concatenate([corner, corner + 6], -1)
    centers[..., 2] += 10
    for t in range(FRAMES):
        for i, (left, top, right, bottom) in enumerate(boxes[:, t].astype(int)):
            frames[t, max(top, 0) : bottom, max(left, 0) : right] = [50 * i, 250 - 50 * i, 120]
    videos, geometry = root / "videos" / SHARD / "frames", root / "geometry" / SHARD
    videos.mkdir(parents=True, exist_ok=True)
    geometry.mkdir(parents=True, exist_ok=True)
    save_file({"frames": frames, "timestamps": TIMES, "indices": np.arange(FRAMES)}, videos / f"{clip}.safetensors")
    # Geometric cells as the model reads them; the thirteenth channel says that a cell was measured.
    cells = np.random.default_rng(number).normal(size=(4, 2, 2, CELL_CHANNELS))
    cells[..., 12] = 1
    record = unknown(
        TIMES,
        ["pillar", *names],
        ["pillar", "robot", "crate", "car", "dog"],
        centers_world=centers,
        boxes=boxes,
        world_from_camera=np.tile(np.eye(4), (FRAMES, 1, 1)),
        prior_features=cells,
        prior_times=TIMES[1::2],
        provenance={"estimator": "rendered", "status": "3d", "reason": "", "frame_size": [HEIGHT, WIDTH]},
    )
    save(record, geometry / f"{clip}.safetensors")


def question_rows(number: int, split: str, names: list[str]) -> list[dict]:
    """Two quads of one clip, one of them seen from a viewpoint that moves."""
    rows = []
    for kind in TYPES:
        for i, name in enumerate(names):
            rows.append(
                {
                    "qa_id": hashlib.sha256(f"{number}{kind}{i}".encode()).hexdigest()[:20],
                    "clip": clip_of(number),
                    "videoID": clip_of(number),
                    "shard": SHARD,
                    "type": kind,
                    "question": f"How does the distance between the pillar and the {name} of clip {number} change?",
                    "options": OPTIONS,
                    "answer": "ABCD"[pattern_of(number, i)],
                    "viewpoint_kind": kind[:3],
                    "viewpoint_subject": "camera",
                    "viewpoint_time": 0.0 if kind[:3] == "abs" else None,
                    "targets": ["pillar", name],
                    "interval_start": 0.0,
                    "interval_end": 3.5,
                    "states": STATES[pattern_of(number, i)],
                    "evidence": json.dumps({"distance": [2.0, 5.0]}),
                    "stability": 1.0,
                    "visible_until": None,
                    "split": split,
                    "quad": f"{number} {kind}",
                    "has_video": True,
                    "estimator": "rendered",
                    "generator_version": "1",
                }
            )
    return rows


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("qa_id", "clip", "videoID", "shard", "type", "question")),
        ("options", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("answer", "viewpoint_kind", "viewpoint_subject")),
        ("viewpoint_time", pa.float64()),
        ("targets", pa.list_(pa.string())),
        ("interval_start", pa.float64()),
        ("interval_end", pa.float64()),
        ("states", pa.list_(pa.string())),
        ("evidence", pa.string()),
        ("stability", pa.float32()),
        ("visible_until", pa.float64()),
        ("split", pa.string()),
        ("quad", pa.string()),
        ("has_video", pa.bool_()),
        ("estimator", pa.string()),
        ("generator_version", pa.string()),
    ]
)


def write_world(root: Path) -> None:
    """Twelve clips: five to train on, one to validate, six for the bench; one of those with a hostile name."""
    rows = []
    for number in range(12):
        names = [*MOVERS[:3], HOSTILE] if number == 11 else MOVERS
        write_scene(root, number, names)
        rows += question_rows(number, "train" if number < 5 else "val" if number < 6 else "bench", names)
    (root / "questions").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), root / "questions" / "questions.parquet")
    seal_release(root / "questions", root / "videos", root / "geometry", root / "splits")
    (root / "checkpoint").mkdir()


def measuring_reader(checkpoint, questions, videos, geometry, *, blind=False, batch_clips=1, progress=None):
    """Answers from the record's distances, short-sighted in every third clip; blind, prefers short options."""
    rows = []
    for row in questions.to_pylist():
        if blind:
            scores = -np.array([len(option) for option in row["options"]]) / 20.0
        else:
            record = load(geometry / row["shard"] / f"{row['clip']}.safetensors", ["centers_world", "timestamps"])
            # What another clip does not show is looked for in vain, and its last thing taken instead.
            places = [record.names.index(name) if name in record.names else -1 for name in row["targets"]]
            first, second = record.centers_world[places]
            measured = np.linalg.norm(second - first, axis=-1)
            steps = [0, FRAMES - 1] if int(row["clip"], 16) % 3 == 0 else range(FRAMES)
            errors = [np.abs(np.diff(measured[steps]) - np.diff(distances(i)[steps])).sum() for i in range(4)]
            scores = -np.array(errors)
        odds = np.exp(scores - scores.max())
        rows.append(odds / odds.sum())
    progress(len(rows), len(rows), "blind" if blind else "with video")
    return np.array(rows)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Read-only: tests that change files take `own_world`."""
    root = tmp_path_factory.mktemp("world")
    write_world(root)
    return root


@pytest.fixture
def own_world(tmp_path) -> Path:
    write_world(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def reader():
    return measuring_reader


@pytest.fixture(scope="session")
def identity() -> dict:
    return {"checkpoint": "c" * 32, "splits": "5" * 32, "code": "benchmark-1"}


@pytest.fixture(scope="session")
def parameters() -> BenchmarkParameters:
    return BenchmarkParameters(resamples=300, examples=6)


@pytest.fixture(scope="session")
def evaluated(world, reader, identity, parameters) -> SimpleNamespace:
    """One evaluation of the tiny world: its folder and its metrics."""
    from assets.benchmark.evaluate import evaluate

    out = world / "reports" / "benchmark"
    metrics = evaluate(
        world / "checkpoint",
        world / "splits",
        world / "videos",
        world / "geometry",
        out,
        parameters,
        identity,
        predictor=reader,
    )
    return SimpleNamespace(out=out, metrics=metrics)
