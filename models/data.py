"""From question rows and per-clip files to batches.

A clip's questions that may see the same part of it, the same `visible_until`, share one prefix. The batch of
step k is a pure function of (seed, k), so training that was killed goes on exactly where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import safetensors
from torch.utils.data import DataLoader, Dataset, Sampler

from models.batch import Prior, Tree, TreeBatch, pack
from models.gsm import CELL_CHANNELS
from models.parameters import TrainingParameters
from models.pixels import LARGEST_MARK, FrameSizeError, Marks, Video, prepare_video
from models.prompt import Prompt, QuestionError
from models.reading import open_share, reading_rows, stated_question

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("qa_id", "clip", "shard", "type", "question", "options", "visible_until")
CLIP_NAME = re.compile(r"[0-9a-f]{64}")
SHARD_NAME = re.compile(r"shard-\d{6}")
# Timestamps come from files in seconds; two that differ by less than this are the same moment.
SAME_MOMENT = 1e-6
# The validity channel of a geometric cell (see models.gsm.CELL_CHANNELS).
VALIDITY = 12


class ClipError(ValueError):
    """A clip's frames or prior features are missing, damaged or wrongly named."""


@dataclass(frozen=True)
class Question:
    """One row of a split, as far as a model may know it, and the answer where it is to be learned."""

    qa_id: str
    clip: str
    shard: str
    type: str
    question: str
    options: tuple[str, ...]
    visible_until: float | None
    answer: str | None = None


@dataclass(frozen=True)
class Group:
    """Questions that share a prefix: `rows` are places in the list of questions."""

    shard: str
    clip: str
    visible_until: float | None
    rows: tuple[int, ...]


def questions_of(table: pyarrow.Table, with_answer: bool) -> list[Question]:
    """The rows of a split.

    Raises:
        QuestionError: if a column is missing or a clip or shard is not named as the project names them.
    """
    columns = (*COLUMNS, "answer") if with_answer else COLUMNS
    if missing := [name for name in columns if name not in table.column_names]:
        raise QuestionError(f"the table of questions has no column {missing[0]}: is it a split of this project?")
    questions = []
    for row in table.select(list(columns)).to_pylist():
        if not CLIP_NAME.fullmatch(row["clip"] or "") or not SHARD_NAME.fullmatch(row["shard"] or ""):
            raise QuestionError(
                f"question {row['qa_id']!r}: clip {row['clip']!r} in {row['shard']!r} is no clip of a shard"
            )
        questions.append(Question(**{**row, "options": tuple(row["options"])}))
    return questions


def groups_of(questions: Sequence[Question]) -> list[Group]:
    """Questions grouped by clip and by what they may see of it, in the order of clips, rows in row order."""
    members: dict[tuple[str, str, float | None], list[int]] = {}
    for place, question in enumerate(questions):
        members.setdefault((question.shard, question.clip, question.visible_until), []).append(place)
    ordered = sorted(members, key=lambda key: (*key[:2], float("inf") if key[2] is None else key[2]))
    return [Group(*key, tuple(members[key])) for key in ordered]


class ClipStore:
    """Reads what models see of a clip, and keeps the most recent clips in memory."""

    def __init__(self, videos: Path, geometry: Path, parameters: TrainingParameters) -> None:
        self.videos, self.geometry, self.parameters = Path(videos), Path(geometry), parameters
        self._kept: OrderedDict[tuple, Any] = OrderedDict()

    def frames_path(self, shard: str, clip: str) -> Path:
        """Where the clip's frames lie."""
        return self.videos / shard / "frames" / f"{clip}.safetensors"

    def prior_path(self, shard: str, clip: str) -> Path:
        """Where the clip's scene record with its marks and prior features lies."""
        return self.geometry / shard / f"{clip}.safetensors"

    def video(self, shard: str, clip: str, visible_until: float | None) -> Video:
        """Patches of the frames up to `visible_until`, with the clip's marks; the first frame is always seen.

        Raises:
            ClipError: if the frames or the scene record are missing or unusable.
        """
        return self._once(("video", shard, clip, visible_until), self._read_video)

    def prior(self, shard: str, clip: str, visible_until: float | None, channels: int | None = None) -> Prior:
        """Prior features up to `visible_until`, metres or scene units replaced by the clip's median distance.

        A clip without any (a refused estimate) is one empty cell of `channels` numbers, so that every question
        has something to attend to.

        Raises:
            ClipError: if the scene record is missing or damaged.
        """
        prior = self._once(("prior", shard, clip, visible_until), self._read_prior)
        if prior.features.size == 0:
            empty = np.zeros((1, 1, 1, channels or prior.features.shape[-1]), np.float32)
            return Prior(empty, np.zeros(1))
        return prior

    def _once(self, key: tuple, read: Callable) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = read(*key[1:])
        self._kept[key] = value
        while len(self._kept) > 2 * self.parameters.cached_clips:
            self._kept.popitem(last=False)
        return value

    def _read_video(self, shard: str, clip: str, visible_until: float | None) -> Video:
        path = self.frames_path(shard, clip)
        arrays = _read(path, clip, ("frames", "timestamps"))
        frames, timestamps = arrays["frames"], arrays["timestamps"]
        seen = _visible(timestamps, visible_until)
        seen[:1] = True
        marks = self._read_marks(shard, clip, timestamps, frames.shape[1:3])
        p = self.parameters
        budget = p.max_frames, p.min_pixels, p.max_pixels
        try:
            return prepare_video(frames[seen], timestamps[seen], *budget, marks and marks.at(seen))
        except FrameSizeError as error:
            raise ClipError(f"clip {clip}: {path.name} of {shard} holds {error}") from error

    def _read_marks(self, shard: str, clip: str, timestamps: np.ndarray, size: tuple[int, int]) -> Marks | None:
        """What questions point at by number in a clip of (T,) `timestamps` and frames of (height, width) pixels."""
        path = self.prior_path(shard, clip)
        header = _header(path, clip)
        try:
            numbers = json.loads(header["record"])["marks"]
            known = all(type(number) is int and 0 <= number <= LARGEST_MARK for number in numbers)
        except (KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise ClipError(
                f"clip {clip}: {path.name} of {shard} does not say which marks its video carries: "
                "estimate its geometry again"
            )
        if not any(numbers):
            return None
        arrays = _read(path, clip, ("boxes", "timestamps"))
        boxes, times = arrays["boxes"], arrays["timestamps"]
        same = times.shape == timestamps.shape and np.allclose(times, timestamps, rtol=0, atol=SAME_MOMENT)
        if not same or boxes.shape != (len(numbers), len(times), 4):
            raise ClipError(
                f"clip {clip}: {path.name} of {shard} has {len(numbers)} marks with boxes {boxes.shape} that do not "
                f"fit its {len(timestamps)} frames: estimate its geometry again"
            )
        marked = np.flatnonzero(numbers)
        height, width = size
        return Marks(tuple(numbers[thing] for thing in marked), boxes[marked] / [width, height, width, height])

    def _read_prior(self, shard: str, clip: str, visible_until: float | None) -> Prior:
        path = self.prior_path(shard, clip)
        arrays = _read(path, clip, ("prior_features", "prior_times"))
        features, times = _as_float32(arrays["prior_features"]), arrays["prior_times"]
        if features.ndim != 4 or len(features) != len(times):
            raise ClipError(
                f"clip {clip}: {path.name} of {shard} has prior_features {features.shape} and {len(times)} "
                "prior_times, expected (T,h,w,C) and T: estimate its geometry again"
            )
        seen = _visible(times, visible_until)
        features = np.nan_to_num(features[seen], nan=0.0, posinf=0.0, neginf=0.0)
        if self.parameters.geometry.prior == "cells" and features.shape[-1] == CELL_CHANNELS:
            features = _in_median_distances(features)
        return Prior(features, times[seen])


def _visible(times: np.ndarray, visible_until: float | None) -> np.ndarray:
    if visible_until is None:
        return np.ones(len(times), bool)
    return times <= visible_until + SAME_MOMENT


def _as_float32(features: np.ndarray) -> np.ndarray:
    """Stored features as numbers: f16 as they are, u16 as the bits of bfloat16, which numpy lacks."""
    if features.dtype == np.uint16:
        return (features.astype(np.uint32) << 16).view(np.float32)
    return features.astype(np.float32)


def _in_median_distances(cells: np.ndarray) -> np.ndarray:
    """Geometric cells with coordinates and flow in units of the clip's median distance from the camera.

    Scale is relative in general, so its unit may not carry meaning.
    """
    valid = cells[..., VALIDITY] > 0
    distance = np.linalg.norm(cells[valid][:, :3], axis=-1)
    unit = float(np.median(distance)) if len(distance) else 1.0
    scaled = cells.copy()
    scaled[..., :9] /= max(unit, 1e-6)
    return scaled


def _read(path: Path, clip: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    return _opened(path, clip, lambda file: {name: file.get_tensor(name) for name in names})


def _header(path: Path, clip: str) -> dict[str, str]:
    return _opened(path, clip, lambda file: file.metadata() or {})


def _opened(path: Path, clip: str, read: Callable[[safetensors.safe_open], Any]) -> Any:
    if not path.is_file():
        raise ClipError(f"clip {clip}: {path} is missing: materialize its shard first")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return read(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise ClipError(f"clip {clip}: {path} cannot be read ({error}): make it again") from error


class TreeMaker:
    """Turns groups of questions into trees."""

    def __init__(
        self, prompt: Prompt, clips: ClipStore | None, channels: int | None, tokens_per_second: float, queries: int
    ) -> None:
        self.prompt, self.clips, self.channels = prompt, clips, channels
        self.tokens_per_second, self.queries = tokens_per_second, queries

    def tree(self, group: Group, questions: Sequence[Question]) -> Tree:
        """The group's questions on its video and, if the model has geometry tokens, its prior.

        Raises:
            ClipError: if a file is missing or damaged.
            QuestionError: if a question does not fit.
        """
        place = (group.shard, group.clip, group.visible_until)
        video = self.clips.video(*place)
        prior = self.clips.prior(*place, self.channels) if self.queries else None
        return Tree(self.prompt.prefix(True), video, prior, [self._branch(q, True) for q in questions])

    def blind_tree(self, questions: Sequence[Question]) -> Tree:
        """The same questions with an empty prefix: no video, no geometry."""
        return Tree(self.prompt.prefix(False), None, None, [self._branch(q, False) for q in questions])

    def reading_tree(self, question: Question, rng: np.random.Generator) -> Tree:
        """Text only: a question whose answer is stated in front of it (see `models.reading`)."""
        stated, options, answer = stated_question(question.options, rng)
        branch = self.prompt.branch(question.question, options, answer, False, stated)
        return Tree(self.prompt.prefix(False), None, None, [branch])

    def pack(self, trees: Sequence[Tree]) -> TreeBatch:
        """Trees as one batch."""
        return pack(trees, self.prompt.video_pad, self.queries, self.tokens_per_second)

    def _branch(self, question: Question, with_video: bool):
        try:
            return self.prompt.branch(question.question, question.options, question.answer, with_video)
        except QuestionError as error:
            raise QuestionError(f"question {question.qa_id}: {error}") from error


class StepBatches(Dataset):
    """Batch number k for each training step k: first the reading stage, then questions about the videos.

    An epoch cuts each group, shuffled, into packs of at most `questions_per_clip` questions and shuffles the
    packs; a batch is the next `clips_per_batch` packs.
    """

    def __init__(self, questions: Sequence[Question], maker: TreeMaker, parameters: TrainingParameters) -> None:
        if not questions:
            raise QuestionError("the training split has no question")
        self.questions, self.maker, self.parameters = questions, maker, parameters
        self.groups = groups_of(questions)
        self.by_length = reading_rows([question.options for question in questions])
        self._epoch: tuple[int, list[tuple[int, np.ndarray]]] = (-1, [])

    def __len__(self) -> int:
        return self.parameters.reading_steps + self.parameters.steps

    def __getitem__(self, step: int) -> TreeBatch:
        if step < self.parameters.reading_steps:
            return self._reading(step)
        step -= self.parameters.reading_steps
        trees = []
        for number, rows in self._packs(step):
            trees.append(self.maker.tree(self.groups[number], [self.questions[row] for row in rows]))
        return self.maker.pack(trees)

    def _reading(self, step: int) -> TreeBatch:
        p = self.parameters
        rng = np.random.default_rng([p.seed, 1, step])
        taking_part = max(int(open_share(step, p.reading_steps) * len(self.questions)), 1)
        # With next to no prefix to share, a row for each question costs the least attention.
        rows = self.by_length[rng.integers(taking_part, size=p.clips_per_batch * p.questions_per_clip)]
        return self.maker.pack([self.maker.reading_tree(self.questions[row], rng) for row in rows])

    def _packs(self, step: int) -> list[tuple[int, np.ndarray]]:
        size = self.parameters.clips_per_batch
        first = self._packs_of_epoch(0)
        steps_per_epoch = max(len(first) // size, 1)
        packs = self._packs_of_epoch(step // steps_per_epoch)
        start = step % steps_per_epoch * size
        return packs[start : start + size]

    def _packs_of_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self.parameters.seed, 2, epoch])
            size = self.parameters.questions_per_clip
            packs = []
            for number, group in enumerate(self.groups):
                rows = rng.permutation(np.array(group.rows))
                packs += [(number, rows[start : start + size]) for start in range(0, len(rows), size)]
            self._epoch = (epoch, [packs[place] for place in rng.permutation(len(packs))])
        return self._epoch[1]


class FromStep(Sampler):
    """Counts steps from where training stands; its length stays that of the whole training."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class QuestionData(lightning.LightningDataModule):
    """The training batches; after a restart they go on with the step the trainer has reached."""

    def __init__(self, batches: StepBatches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader:
        """One ready batch per step, in order."""
        sampler = FromStep(self.trainer.global_step, len(self.batches))
        return DataLoader(self.batches, batch_size=None, sampler=sampler)


def files_identity(clips: ClipStore, groups: Sequence[Group]) -> str:
    """Digest of the clip files of a training: sizes and safetensors headers, not the whole tensors."""
    digest = hashlib.sha256()
    for shard, clip in sorted({(group.shard, group.clip) for group in groups}):
        for path in (clips.frames_path(shard, clip), clips.prior_path(shard, clip)):
            if path.is_file():
                with path.open("rb") as file:
                    length = int.from_bytes(file.read(8), "little")
                    digest.update(file.read(min(length, 1 << 20)))
                digest.update(f"{shard}/{clip}:{path.stat().st_size}".encode())
    return digest.hexdigest()


def without_answers(questions: Sequence[Question]) -> list[Question]:
    """The same questions with nothing to learn from, for prediction."""
    return [replace(question, answer=None) for question in questions]
