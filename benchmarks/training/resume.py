"""Trainings that are killed at random steps, and whether they end in the weights of trainings that were not.

Each kind of training has more state than the one before: the bare loop, micro-batches of a token budget with
recomputed activations, adapters with dropout and the best weights on validation, the variant that masks vision tokens
at random, and two processes that share a step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figure import Figure
from benchmarks.training.processes import SECONDS, SERVER, finish, start
from models.gsm import CELL_CHANNELS
from models.parameters import GuidanceParameters

SHARD = "shard-000000"
SEED = 20
STEPS = 24
SMALLEST = {
    "vocabulary": 400,
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "key_value_heads": 1,
    "intermediate_size": 48,
    "vision_depth": 1,
    "vision_width": 16,
    "vision_heads": 2,
}
"""Sizes of the smallest model that has every part."""
BASE = {
    "tiny": SMALLEST,
    "geometry": {"queries": 3, "octaves": 2, "heads": 0},
    # Guidance needs more of a clip than these files hold.
    "guidance": {entry.name: 0.0 for entry in fields(GuidanceParameters)},
    "reading_steps": 5,
    "naming_steps": 0,
    "grounding_steps": 0,
    "steps": STEPS - 5,
    "questions_per_clip": 3,
    "max_frames": 6,
    "max_pixels": 3136,
    "threads": 1,
    "checkpoint_every": 4,
    "log_every": 3,
}
KINDS: tuple[tuple[str, int, Mapping[str, Any]], ...] = (
    ("plain", 1, {}),
    ("budget", 1, {"tokens_per_batch": 1500, "accumulate": 2, "gradient_checkpointing": True}),
    ("adapters", 1, {"lora": {"rank": 2, "dropout": 0.3}, "evaluate_every": 6, "keep": "best"}),
    ("masking", 1, {"geometry": {"queries": 3, "octaves": 2, "heads": 0, "variant": "fused"}}),
    ("two processes", 2, {"devices": 2, "accumulate": 2, "lora": {"rank": 2, "dropout": 0.3}}),
)


def figures() -> dict[str, Figure]:
    """`resume_bit_equal`: of five trainings killed at random, how many end in the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_release(root)
        equal = sum(ends_equal(root, kind, *KINDS[kind]) for kind in range(len(KINDS)))
    kinds = ", ".join(name for name, *_ in KINDS)
    how = f"SIGKILL at a random moment of a random step, resumed, same bytes as an unbroken run on CPU: {kinds}"
    return {"resume_bit_equal": Figure(equal, len(KINDS), "higher", "of 5", how)}


def ends_equal(root: Path, number: int, name: str, processes: int, changes: Mapping[str, Any]) -> bool:
    """Whether a training that was killed once ends in the weights of an unbroken one."""
    rng = np.random.default_rng([SEED, number])
    step, pause = int(rng.integers(5, STEPS - 1)), float(rng.uniform(0, 0.03))
    whole, broken = ((root / f"{name} {kind}", {**BASE, **changes}) for kind in ("whole", "broken"))
    unbroken, _ = begin(root, *whole, processes)
    victims, steps = begin(root, *broken, processes)
    deadline = time.monotonic() + SECONDS
    while (step_now := steps.recv() if steps.poll(1) else 0) < step:
        if time.monotonic() > deadline or not all(process.is_alive() for process in victims):
            raise RuntimeError(f"the training {name!r} ended at step {step_now} before it could be killed at {step}")
    time.sleep(pause)
    for process in victims:
        process.kill()
    finish([*unbroken, *victims])
    resumed, _ = begin(root, *broken, processes)
    finish(resumed)
    same = digest(whole[0]) == digest(broken[0])
    print(f"{name}: killed at step {step}, {'equal' if same else 'DIFFERENT'}", file=sys.stderr)
    return same


def begin(root: Path, place: Path, mapping: Mapping[str, Any], processes: int) -> tuple[list, Any]:
    """Start a training; its processes, and where the first reports each step."""
    place.mkdir(exist_ok=True)
    reading, writing = SERVER.Pipe(duplex=False)
    started = start(run, (root, place, dict(mapping), writing), place / "log", processes)
    writing.close()
    return started, reading


def run(root: Path, place: Path, mapping: dict[str, Any], steps: Any) -> None:
    """In the process itself: the training, every step of it reported."""
    from models import progress, train
    from models.parameters import TrainingParameters

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    progress.PROGRESS_SECONDS = 0.0

    def report(done: int, total: int, what: str) -> None:
        # Nobody listens to a training that is not to be killed.
        try:
            steps.send(done)
        except OSError:
            return

    places = (root / "splits", root / "videos", root / "geometry", place / "checkpoint", place / "work")
    train.train(*places, TrainingParameters.from_mapping(mapping), report)


def digest(place: Path) -> str:
    """Of the weights; without any, of the place itself, which equals no other's."""
    weights = place / "checkpoint" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes() if weights.is_file() else str(place).encode()).hexdigest()


def write_release(root: Path, clips: int = 5) -> None:
    """A release of random clips with random geometric cells and questions, in the project's formats."""
    import pyarrow
    import pyarrow.parquet
    from safetensors.numpy import save_file

    rng = np.random.default_rng(SEED)
    rows = []
    for folder in (root / "splits", root / "videos" / SHARD / "frames", root / "geometry" / SHARD):
        folder.mkdir(parents=True)
    for number in range(clips):
        clip = hashlib.sha256(bytes([number])).hexdigest()
        times = np.arange(8 + 2 * (number % 2)) * 0.5
        frames = {"frames": rng.integers(0, 256, (len(times), 42, 60, 3), dtype=np.uint8), "timestamps": times}
        save_file(frames, root / "videos" / SHARD / "frames" / f"{clip}.safetensors")
        cells = rng.normal(size=(len(times) // 2, 4, 5, CELL_CHANNELS)).astype(np.float16)
        cells[..., 12] = 1
        record = {"prior_features": cells, "prior_times": times[1::2].copy()}
        save_file(record, root / "geometry" / SHARD / f"{clip}.safetensors", {"record": json.dumps({"marks": []})})
        rows += [question(number, place, clip) for place in range(4)]
    for side in ("train", "val"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "splits" / f"{side}.parquet")


def question(number: int, place: int, clip: str) -> dict[str, Any]:
    """A row of a split."""
    return {
        "qa_id": f"{number}-{place}",
        "clip": clip,
        "shard": SHARD,
        "type": "abs_dis",
        "question": f"How does the distance of box {place} change?",
        "options": ["It becomes larger.", "It becomes smaller.", "It stays.", "It becomes larger and then smaller."],
        "answer": "ABCD"[(number * place) % 4],
        "visible_until": None if place % 2 else 2.0,
    }
