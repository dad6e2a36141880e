"""The pools of candidates that the figures are measured on, derived once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from assets.geometry.record import SceneRecord
from assets.processes import processes
from assets.questions.build import finish
from assets.questions.candidates import derive
from assets.questions.parameters import QuestionParameters
from assets.questions.wording import clean_names
from assets.videos.parameters import SampleWorldParameters
from assets.videos.split import SplitParameters, split_of
from benchmarks.questions.scenes import SHARD, identity, real_windows, sample_world_record

# Enough scenes for more than 20,000 held-out questions; every question that finds a quad counts.
SCENES = 300
MANY = 10_000
# The half of the real logs that the readers learn from.
REAL_TRAINING = ("av2 3b3570b4-7b0b-3268-a571-b0889dbf40b6", "kitti 0001", "kitti 0020")


@dataclass(frozen=True)
class Pool:
    """Candidates of some scenes, and the questions made of them."""

    candidates: list[dict]
    questions: list[dict]


def sample_world(world: SampleWorldParameters, parameters: QuestionParameters, split: SplitParameters) -> Pool:
    """Candidates and questions of SCENES drawn scenes of the sample world."""
    with processes(2) as workers:
        derived = workers.map(partial(_of_scene, world=world, parameters=parameters), range(SCENES), chunksize=4)
        candidates = [row for rows in derived for row in rows]
    return _finished(candidates, parameters, lambda clip: split_of(clip, split))


def real(truth: Path, parameters: QuestionParameters) -> Pool:
    """Candidates and questions of windows of real logs; training and held-out windows come from different logs."""
    parameters = parameters.model_copy(update={"candidates_per_type": 600})
    candidates, sides = [], {}
    for log, window, record in logs(truth):
        clip = identity(window)
        sides[clip] = "train" if log in REAL_TRAINING else "bench"
        candidates += derive(record, clip, SHARD, False, parameters).rows
    return _finished(candidates, parameters, sides.__getitem__)


@cache
def logs(truth: Path) -> list[tuple[str, str, SceneRecord]]:
    """(log, window, record) of the real windows, their things named as questions name them."""
    length = QuestionParameters().name_length
    return [
        (log, window, replace(record, names=clean_names(record.names, length)))
        for log, window, record in real_windows(truth)
    ]


def _of_scene(number: int, world: SampleWorldParameters, parameters: QuestionParameters) -> list[dict]:
    record = sample_world_record(number, world)
    return derive(record, identity(f"sample world {number}"), SHARD, True, parameters).rows


def _finished(candidates: list[dict], parameters: QuestionParameters, split: Callable[[str], str]) -> Pool:
    parameters = parameters.model_copy(update={"max_per_clip": MANY})
    return Pool(candidates, finish(candidates, parameters, split)[0])
