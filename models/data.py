"""From question rows and per-clip files to trees.

A clip's questions that may see the same part of it, the same `visible_until`, share one prefix.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from models.batch import Branch, Prior, Tree, TreeBatch, pack
from models.gsm import CELL_CHANNELS, merged_size, slots_of
from models.guide import NO_THING, Procedure, Things, kind_of
from models.parameters import TrainingParameters
from models.pixels import (
    LARGEST_MARK,
    MERGE,
    QWEN2_5_PATCHING,
    TEMPORAL_PATCH,
    FrameSizeError,
    Marks,
    Patching,
    Video,
    prepare_video,
    target_size,
)
from models.prompt import SPECIAL_TOKENS, Prompt, QuestionError
from models.published import continue_after_time, prompt_tokens_read, reads_prompt, slot_starts
from models.reading import stated_question

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("qa_id", "clip", "shard", "type", "question", "options", "visible_until")
PROCEDURE = ("states", "evidence", "targets", "viewpoint_subject")
"""Further columns, which say how the answer came about and are read in training alone."""
CLIP_NAME = re.compile(r"[0-9a-f]{64}")
SHARD_NAME = re.compile(r"shard-\d{6}")
# Timestamps come from files in seconds; two that differ by less than this are the same moment.
SAME_MOMENT = 1e-6
# What is kept of each clip in memory.
KINDS = ("video", "prior", "things")
# The validity channel of a geometric cell (see models.gsm.CELL_CHANNELS).
VALIDITY = 12


class ClipError(ValueError):
    """A clip's frames or prior features are missing, damaged or wrongly named.

    Attributes:
        reason: what is wrong, in the words under which such clips are counted.
    """

    def __init__(self, message: str, reason: str = "damaged file") -> None:
        super().__init__(message)
        self.reason = reason


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
    procedure: Procedure | None = None


@dataclass(frozen=True)
class Group:
    """Questions that share a prefix: `rows` are places in the list of questions."""

    shard: str
    clip: str
    visible_until: float | None
    rows: tuple[int, ...]


@dataclass(frozen=True)
class ClipShape:
    """What a clip's files hold, without its pixels and features.

    Attributes:
        times: (T,) seconds of the frames.
        size: height and width of a frame in pixels.
        prior: (T',h',w',C), or None where the scene record was not asked for its features.
        prior_times: (T',) seconds, likewise.
    """

    times: np.ndarray
    size: tuple[int, int]
    prior: tuple[int, ...] | None
    prior_times: np.ndarray | None


def questions_of(table: pyarrow.Table, with_answer: bool) -> list[Question]:
    """The rows of a split.

    Raises:
        QuestionError: if a column is missing or a clip or shard is not named as the project names them.
    """
    columns = (*COLUMNS, "answer") if with_answer else COLUMNS
    explained = with_answer and set(PROCEDURE) <= set(table.column_names)
    if missing := [name for name in columns if name not in table.column_names]:
        raise QuestionError(f"the table of questions has no column {missing[0]}: is it a split of this project?")
    questions = []
    for row in table.select([*columns, *(PROCEDURE if explained else ())]).to_pylist():
        if not CLIP_NAME.fullmatch(row["clip"] or "") or not SHARD_NAME.fullmatch(row["shard"] or ""):
            raise QuestionError(
                f"question {row['qa_id']!r}: clip {row['clip']!r} in {row['shard']!r} is no clip of a shard"
            )
        known = {name: row[name] for name in columns} | {"options": tuple(row["options"])}
        questions.append(Question(**known, procedure=Procedure.of(row) if explained else None))
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

    def __init__(
        self, videos: Path, geometry: Path, parameters: TrainingParameters, patching: Patching = QWEN2_5_PATCHING
    ) -> None:
        self.videos, self.geometry, self.parameters = Path(videos), Path(geometry), parameters
        self.patching = patching
        self._kept: OrderedDict[tuple, Any] = OrderedDict()
        self._shapes: dict[tuple[str, str], ClipShape] = {}

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

    def things(self, shard: str, clip: str, visible_until: float | None) -> Things:
        """The clip's things, and where in `prior` they are.

        Raises:
            ClipError: if the scene record is missing or damaged.
        """
        return self._once(("things", shard, clip, visible_until), self._read_things)

    def shape(self, shard: str, clip: str) -> ClipShape:
        """What the clip's files hold, from their headers and timestamps: a look that costs no pixel.

        Raises:
            ClipError: for everything for which reading the clip later would raise one.
        """
        if (shard, clip) not in self._shapes:
            self._shapes[shard, clip] = self._read_shape(shard, clip)
        return self._shapes[shard, clip]

    def video_tokens(self, shard: str, clip: str, visible_until: float | None) -> int:
        """Vision tokens that `video` will have."""
        shape, p = self.shape(shard, clip), self.parameters
        frames = min(max(int(_visible(shape.times, visible_until).sum()), 1), p.max_frames)
        height, width = target_size(*shape.size, p.min_pixels, p.max_pixels, self.patching.side)
        return -(-frames // TEMPORAL_PATCH) * height * width // (self.patching.side * MERGE) ** 2

    def prior_size(self, shard: str, clip: str, visible_until: float | None) -> tuple[int, int, int]:
        """Size T',h',w' that `prior` will have."""
        shape = self.shape(shard, clip)
        seen = int(_visible(shape.prior_times, visible_until).sum())
        size = (seen, *shape.prior[1:3])
        return size if all(size) else (1, 1, 1)

    def _read_shape(self, shard: str, clip: str) -> ClipShape:
        path = self.frames_path(shard, clip)
        frames, times = _shape(path, clip, "frames"), _read(path, clip, ("timestamps",))["timestamps"]
        _check_frames(frames, len(times), f"clip {clip}: {path.name} of {shard}")
        self._read_marks(shard, clip, times, frames[1:3])
        if not self.parameters.geometry.uses_prior:
            return ClipShape(times, frames[1:3], None, None)
        path = self.prior_path(shard, clip)
        prior, prior_times = _shape(path, clip, "prior_features"), _read(path, clip, ("prior_times",))["prior_times"]
        self._check_prior(shard, clip, prior, len(prior_times))
        return ClipShape(times, frames[1:3], prior, prior_times)

    def _once(self, key: tuple, read: Callable) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = read(*key[1:])
        self._kept[key] = value
        while len(self._kept) > len(KINDS) * self.parameters.cached_clips:
            self._kept.popitem(last=False)
        return value

    def _read_video(self, shard: str, clip: str, visible_until: float | None) -> Video:
        path = self.frames_path(shard, clip)
        arrays = _read(path, clip, ("frames", "timestamps"))
        frames, timestamps = arrays["frames"], arrays["timestamps"]
        _check_frames(frames.shape, len(timestamps), f"clip {clip}: {path.name} of {shard}")
        seen = _visible(timestamps, visible_until)
        seen[:1] = True
        marks = self._read_marks(shard, clip, timestamps, frames.shape[1:3])
        p = self.parameters
        budget = p.max_frames, p.min_pixels, p.max_pixels
        return prepare_video(frames[seen], timestamps[seen], *budget, marks and marks.at(seen), self.patching)

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
                "estimate its geometry again",
                "no marks in the scene record",
            )
        if not any(numbers):
            return None
        arrays = _read(path, clip, ("boxes", "timestamps"))
        boxes, times = arrays["boxes"], arrays["timestamps"]
        same = times.shape == timestamps.shape and np.allclose(times, timestamps, rtol=0, atol=SAME_MOMENT)
        if not same or boxes.shape != (len(numbers), len(times), 4):
            raise ClipError(
                f"clip {clip}: {path.name} of {shard} has {len(numbers)} marks with boxes {boxes.shape} that do not "
                f"fit its {len(timestamps)} frames: estimate its geometry again",
                "wrong shapes",
            )
        marked = np.flatnonzero(numbers)
        height, width = size
        return Marks(tuple(numbers[thing] for thing in marked), boxes[marked] / [width, height, width, height])

    def _read_prior(self, shard: str, clip: str, visible_until: float | None) -> Prior:
        path = self.prior_path(shard, clip)
        arrays = _read(path, clip, ("prior_features", "prior_times"))
        features, times = _as_float32(arrays["prior_features"]), arrays["prior_times"]
        self._check_prior(shard, clip, features.shape, len(times))
        seen = _visible(times, visible_until)
        features = np.nan_to_num(features[seen], nan=0.0, posinf=0.0, neginf=0.0)
        if self.parameters.geometry.prior == "cells" and features.shape[-1] == CELL_CHANNELS:
            features = _in_median_distances(features)
        return Prior(features, times[seen])

    def _read_things(self, shard: str, clip: str, visible_until: float | None) -> Things:
        path = self.prior_path(shard, clip)
        arrays = _read(path, clip, ("prior_cover", "prior_times"))
        cover = arrays["prior_cover"][:, _visible(arrays["prior_times"], visible_until)]
        if cover.size == 0:
            return Things([], np.zeros((0, 1, 1, 1), np.float32))
        return Things(json.loads(_header(path, clip)["record"])["names"], cover.astype(np.float32) / 255)

    def _check_prior(self, shard: str, clip: str, features: tuple[int, ...], times: int) -> None:
        if len(features) != 4 or features[0] != times:
            raise ClipError(
                f"clip {clip}: {self.prior_path(shard, clip).name} of {shard} has prior_features {features} and "
                f"{times} prior_times, expected (T,h,w,C) and T: estimate its geometry again",
                "wrong shapes",
            )


def _check_frames(shape: tuple[int, ...], times: int, what: str) -> None:
    fault = None
    if len(shape) != 4 or shape[3] != 3 or shape[0] == 0 or shape[0] != times:
        fault = f"frames {shape} with {times} timestamps: expected (T,h,w,3) and T"
    else:
        try:
            # Any budget will do: what cannot be resized cannot be for any.
            target_size(*shape[1:3], 1, 1)
        except FrameSizeError as error:
            fault = str(error)
    if fault:
        raise ClipError(f"{what} holds {fault}: prepare its shard again", "wrong shapes")


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


def _shape(path: Path, clip: str, name: str) -> tuple[int, ...]:
    return tuple(_opened(path, clip, lambda file: file.get_slice(name).get_shape()))


def _opened(path: Path, clip: str, read: Callable[[safetensors.safe_open], Any]) -> Any:
    if not path.is_file():
        raise ClipError(f"clip {clip}: {path} is missing: materialize its shard first", "missing file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return read(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise ClipError(f"clip {clip}: {path} cannot be read ({error}): make it again") from error


@contextmanager
def _naming(question: Question) -> Iterator[None]:
    """Errors say which question they are about."""
    try:
        yield
    except QuestionError as error:
        raise QuestionError(f"question {question.qa_id}: {error}") from error


class TreeMaker:
    """Turns groups of questions into trees, as one model wants them.

    Attributes:
        shares_prefix: whether the model lets questions share a prefix; else each needs a tree of its own.
        guided: whether trees carry what training knows beyond the answers (see `models.guide`).
    """

    def __init__(self, prompt: Prompt, clips: ClipStore | None, model: Any, guided: bool = False) -> None:
        self.prompt, self.clips, self.guided = prompt, clips, guided
        self.channels = (model.config.geometry_config or {}).get("channels")
        self.shares_prefix, self.reads_prior = model.shares_prefix, model.reads_prior
        self.geometry_tokens, self.prior_merge = model.geometry_tokens, model.prior_merge
        self.tokens_per_second, self.timestamps = model.tokens_per_second, model.timestamps
        self.as_published = reads_prompt(model.config.geometry_config)
        self.merge_time = (model.config.geometry_config or {}).get("merge_time", 1)
        self.unread = {prompt.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}

    def tree(self, group: Group, questions: Sequence[Question]) -> Tree:
        """The group's questions on its video and, if the model reads it, its prior.

        Raises:
            ClipError: if a file is missing or damaged.
            QuestionError: if a question does not fit.
        """
        place = (group.shard, group.clip, group.visible_until)
        video = self.clips.video(*place)
        prior = self._prior(group) if self.reads_prior else None
        branches = [self._noted(question, True, prior) for question in questions]
        prefix, between = self._prefix(video.moments)
        return Tree(prefix, video, prior, branches, between, self._things(group))

    def blind_tree(self, questions: Sequence[Question]) -> Tree:
        """The same questions with an empty prefix: no video, no geometry."""
        return Tree(self.prompt.prefix(False), None, None, [self.branch(q, False) for q in questions])

    def grounding_tree(self, group: Group, questions: Sequence[Question]) -> Tree:
        """The group's questions and its prior, without its video: all that the geometry module reads."""
        prior = self._prior(group)
        branches = [self._noted(question, False, prior) for question in questions]
        return Tree(self.prompt.prefix(False), None, prior, branches, things=self._things(group))

    def reading_tree(self, question: Question, rng: np.random.Generator) -> Tree:
        """Text only: a question in front of which stands what happens (see `models.reading`)."""
        moments = self.clips.parameters.geometry.queries
        states, options, answer = stated_question(question.options, moments, rng)
        branch = self.prompt.branch(question.question, options, answer, False, noted=True)
        noted = replace(branch, notes=replace(branch.notes, states=states))
        return Tree(self.prompt.prefix(False), None, None, [noted], stated=moments)

    def pack(self, trees: Sequence[Tree]) -> TreeBatch:
        """Trees as one batch."""
        laid_out = self.geometry_tokens, self.tokens_per_second, self.prior_merge
        batch = pack(trees, self.prompt.video_pad, *laid_out, self.prompt.words)
        return continue_after_time(batch) if self.as_published else batch

    def most_tokens(self, question: Question) -> int:
        """What its branch with a video does not exceed (see `Prompt.most_tokens`).

        Raises:
            QuestionError: if it is no question with four options.
        """
        with _naming(question):
            return self.prompt.most_tokens(question.question, question.options, question.answer, True)

    def branch(self, question: Question, with_video: bool = True) -> Branch:
        """A question's own part of a tree.

        Raises:
            QuestionError: if it does not fit.
        """
        with _naming(question):
            branch = self.prompt.branch(
                question.question, question.options, question.answer, with_video, noted=self.guided
            )
        if not self.as_published:
            return branch
        said = [*self.prompt.prefix(with_video), *branch.tokens[: branch.prompt_length]]
        return replace(branch, question=prompt_tokens_read(said, self.unread, question.answer is not None))

    def _noted(self, question: Question, with_video: bool, prior: Prior | None) -> Branch:
        """A question's branch with all that training knows of it."""
        branch, how = self.branch(question, with_video), question.procedure
        if not self.guided or how is None or prior is None or not self.geometry_tokens:
            return branch
        slots = merged_size(prior.features.shape[:1], (self.merge_time,))[0]
        at = slots_of(np.arange(self.geometry_tokens), self.geometry_tokens, slots)
        moments = _middles(prior.times, self.merge_time)[at]
        spans = self.prompt.spans(question.question, how.names)
        known = len(self.clips.things(question.shard, question.clip, question.visible_until).names)
        things = tuple(thing if thing < known else NO_THING for thing in how.things)
        known = {"things": things, "spans": spans, "kind": kind_of(question.type)}
        notes = replace(branch.notes, states=how.states_at(moments), **known)
        return replace(branch, notes=notes)

    def _things(self, group: Group) -> Things | None:
        if not self.guided or not self.reads_prior:
            return None
        return self.clips.things(group.shard, group.clip, group.visible_until)

    def _prior(self, group: Group) -> Prior:
        """The group's prior, its slots where the model expects them in time."""
        place = (group.shard, group.clip, group.visible_until)
        prior = self.clips.prior(*place, self.channels)
        if not self.as_published:
            return prior
        video, keys = self.clips.video(*place), -(-len(prior.times) // self.merge_time)
        starts = slot_starts(keys, video.seconds_per_slot * video.grid[0] / keys)
        return replace(prior, times=np.repeat(starts, self.merge_time)[: len(prior.times)])

    def prefix_slots(self, group: Group) -> int:
        """Slots in front of the branches of the group's tree; those of timestamps are an estimate."""
        place = (group.shard, group.clip, group.visible_until)
        vision = self.clips.video_tokens(*place)
        cells = math.prod(merged_size(self.clips.prior_size(*place), self.prior_merge)) if self.prior_merge else 0
        slots = -(-min(len(self.clips.shape(*place[:2]).times), self.clips.parameters.max_frames) // TEMPORAL_PATCH)
        prefix, between = self._prefix([0.0] * slots)
        lead = len(prefix) + sum(map(len, between))
        return lead + vision + cells

    def _prefix(self, moments: Sequence[float]) -> tuple[list[int], list[list[int]]]:
        """Ids in front of the first temporal patch, and in front of each later one where the model reads the time."""
        return self.prompt.timed_prefix(moments) if self.timestamps else (self.prompt.prefix(True), [])


def _middles(times: np.ndarray, merge: int) -> np.ndarray:
    """(slots,) middle moments of slots of merged time, from the (T',) ends of the slots of a prior.

    What changes between a slot and the one before it changes, in the mean, from the middle of that to the middle of
    this; so these are the moments whose states a geometry token can know.
    """
    ends = times[np.minimum(np.arange(merge, len(times) + merge, merge), len(times)) - 1]
    return ends - np.diff(ends, prepend=2 * ends[0] - ends[1] if len(ends) > 1 else ends[0]) / 2


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
