"""A tiny release in the documented file formats: four clips, geometric cells that answer the questions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.numpy import save_file

from benchmarks.training.resume import SMALLEST
from models.gsm import CELL_CHANNELS
from models.guide import states_of
from models.parameters import GuidanceParameters, TrainingParameters

SHARD = "shard-000000"
CHANGES = (
    "(1) Becomes larger.",
    "(1) Becomes smaller.",
    "(1) Keep nearly constant.",
    "(1) Becomes larger. (2) Becomes smaller.",
)
TINY = {
    "tiny": SMALLEST,
    "geometry": {"queries": 3, "octaves": 2, "heads": 2, "condenser_depth": 1, "merge_space": 2},
    "guidance": dataclasses.asdict(GuidanceParameters.silent()),
    "reading_steps": 3,
    "reading_questions": 6,
    "naming_steps": 0,
    "grounding_steps": 0,
    "steps": 7,
    "clips_per_batch": 2,
    "questions_per_clip": 3,
    "max_frames": 6,
    "max_pixels": 3136,
    "precision": "32-true",
    "threads": 1,
    "checkpoint_every": 2,
    "log_every": 2,
}
GUIDED = {**TINY, "guidance": {}, "naming_steps": 3, "grounding_steps": 3}
"""The same with everything that training can say beside the answers, and the stages for it."""
THINGS = 4


@dataclass(frozen=True)
class Release:
    splits: Path
    videos: Path
    geometry: Path
    table: pyarrow.Table
    clips: tuple[str, ...]


def clip_name(number: int) -> str:
    return hashlib.sha256(f"clip {number}".encode()).hexdigest()


def write_clip(root: Path, clip: str, frames: int = 8, grid: tuple[int, int] = (4, 5), seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    times = np.arange(frames) * 0.5
    folder = root / "videos" / SHARD / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (frames, 42, 60, 3), dtype=np.uint8)
    indices = np.arange(frames)
    save_file({"frames": pixels, "timestamps": times, "indices": indices}, folder / f"{clip}.safetensors")
    folder = root / "geometry" / SHARD
    folder.mkdir(parents=True, exist_ok=True)
    cells = rng.normal(size=(frames // 2, *grid, CELL_CHANNELS)).astype(np.float16)
    cells[..., 12] = 1
    cover = np.zeros((THINGS, frames // 2, *grid), np.uint8)
    for thing in range(THINGS):
        cover[thing, :, thing % grid[0], : 1 + thing % 2] = 255
    # safetensors writes the memory of a strided array as it lies, so it has to be made whole first.
    record = {"prior_features": cells, "prior_cover": cover, "prior_times": np.ascontiguousarray(times[1::2])}
    text = {"marks": [], "names": [f"red box {thing}" for thing in range(THINGS)]}
    save_file(record, folder / f"{clip}.safetensors", {"record": json.dumps(text)})


def evidence_of(thing: int, states: int, begin: float) -> str:
    """What a row says of how its answer came about: each state lasts two steps of half a second."""
    times = begin + 0.5 * np.arange(2 * states + 1)
    return json.dumps({"objects": {"former": thing, "latter": None}, "runs": [2] * states, "times": times.tolist()})


def question_rows(clips: tuple[str, ...]) -> list[dict]:
    rows = []
    for number, clip in enumerate(clips):
        for place in range(4):
            hidden, answer = place == 3, (place * number) % 4
            options = [CHANGES[(place + number + k) % 4] for k in range(4)]
            states = states_of(options[answer])
            rows.append(
                {
                    "qa_id": f"q{number}{place}",
                    "clip": clip,
                    "shard": SHARD,
                    "type": "rel_dir_pred" if hidden else "abs_dis",
                    "question": f"How does the distance of red box {place} to the camera change, until {number}.5s?",
                    "options": options,
                    "answer": "ABCD"[answer],
                    "visible_until": 2.0 if hidden else None,
                    "states": states,
                    "targets": [f"red box {place}", "camera"],
                    "viewpoint_subject": "camera",
                    "evidence": evidence_of(place, len(states), 2.0 if hidden else 0.5),
                }
            )
    return rows


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> Release:
    root = tmp_path_factory.mktemp("release")
    clips = tuple(clip_name(number) for number in range(4))
    for number, clip in enumerate(clips):
        write_clip(root, clip, frames=8 + 2 * (number % 2), grid=(4, 5 - number % 2), seed=number)
    table = pyarrow.Table.from_pylist(question_rows(clips))
    (root / "splits").mkdir()
    pyarrow.parquet.write_table(table, root / "splits" / "train.parquet")
    return Release(root / "splits", root / "videos", root / "geometry", table, clips)


@pytest.fixture(scope="session")
def parameters() -> TrainingParameters:
    return TrainingParameters.from_mapping(TINY)


@pytest.fixture(scope="session")
def checkpoint(release, parameters, tmp_path_factory) -> Path:
    from models.train import train

    root = tmp_path_factory.mktemp("trained")
    out = root / "checkpoint"
    places = (release.splits, release.videos, release.geometry, out, root / "work")
    train(*places, parameters, progress=lambda *_: None)
    return out


@pytest.fixture
def maker(release, parameters):
    """As `made`."""
    return made(release, parameters)


def made(release: Release, parameters: TrainingParameters) -> tuple:
    """Makes trees of the release, with notes, for a fresh tiny model: (maker, model, questions)."""
    from models.data import ClipStore, TreeMaker, questions_of
    from models.learner import build_model
    from models.prompt import Prompt

    questions = questions_of(release.table, with_answer=True)
    model, tokenizer = build_model(questions, CELL_CHANNELS, parameters)
    clips = ClipStore(release.videos, release.geometry, parameters)
    prompt = Prompt(tokenizer, parameters.max_text_tokens)
    return TreeMaker(prompt, clips, model, guided=True), model.eval(), questions
