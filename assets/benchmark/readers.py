"""Whatever can be asked questions about a video, behind one interface.

A local model (a checkpoint of this project, a plain Qwen2.5-VL or Qwen3-VL, the published reference) reads a clip once
for all its questions. An endpoint gets frames as pictures in front of each question, so that a server that keeps
prefixes reads them once too.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

import models
from assets.benchmark.predictions import Reply, digest_of
from assets.reuse import key_of, sha256_of

if TYPE_CHECKING:
    from models.data import Question
    from models.endpoint import Endpoint
    from models.parameters import TrainingParameters
    from models.predict import Opened

LETTERS_PROTOCOL, GENERATION = "letters", "generation"
LETTER_INSTRUCTION = "Answer with the letter of the right option alone."
NUMBER_INSTRUCTION = "Answer with a number alone, without a unit."
# A frame's time differs from that until which may be seen by less than this where they are the same.
SAME_MOMENT = 1e-6
# What trains a model or watches its training decides none of its answers.
BESIDE = (
    "train",
    "module",
    "learner",
    "loss",
    "evaluate",
    "checkpoints",
    "batching",
    "progress",
    "screening",
    "stages",
)
CODE = [path for path in Path(models.__file__).parent.glob("*.py") if path.stem not in BESIDE]
# The part of a model folder that decides answers: weights, configurations, tokenizer.
DECIDING = (".safetensors", ".json", ".jinja", ".txt", ".model")
NOTES = ("training.json", "lineage.json")


@dataclass(frozen=True)
class Manner:
    """The way of asking.

    Attributes:
        protocol: "letters" weighs the options' letters in one forward pass; "generation" lets the model speak.
        blind: without the video.
        max_tokens: longest generated answer; a longer one is cut off.
    """

    protocol: Literal["letters", "generation"]
    blind: bool = False
    max_tokens: int = 128

    def as_parts(self) -> list[Any]:
        """What of it decides an answer, as plain values."""
        return [self.protocol, self.blind, self.max_tokens if self.protocol == GENERATION else None]


@dataclass(frozen=True)
class Places:
    """Where prepared clips lie.

    Attributes:
        videos: folder with `<shard>/frames/<clip>.safetensors`.
        geometry: folder with `<shard>/<clip>.safetensors`.
    """

    videos: Path
    geometry: Path

    def frames(self, shard: str, clip: str) -> Path:
        """The clip's frames."""
        return self.videos / shard / "frames" / f"{clip}.safetensors"

    def record(self, shard: str, clip: str) -> Path:
        """The clip's scene record."""
        return self.geometry / shard / f"{clip}.safetensors"

    def digest(self, shard: str, clip: str) -> str:
        """Digest of all that a reader can see of the clip."""
        return digest_of(self.frames(shard, clip), self.record(shard, clip))


class Reader(Protocol):
    """A model that answers questions about clips.

    Attributes:
        name: for people; neither a path nor a secret.
        identity: changes whenever the same question could get another answer.
        channels: numbers a cell of the geometry that it reads of a scene record; None where it reads none.
        clips_at_once: clips whose questions it likes to get together.
    """

    name: str
    identity: str
    channels: int | None
    clips_at_once: int

    def answer(self, questions: Sequence[Question], places: Places, manner: Manner) -> list[Reply]:
        """An answer to each question, in order.

        Raises:
            ClipError, QuestionError: one of them cannot be asked.
        """


def check_options(questions: Sequence[Question]) -> None:
    """Refuse questions without options, which have no letters to be weighed.

    Raises:
        QuestionError: naming the first such question.
    """
    from models.prompt import QuestionError

    for question in questions:
        if not question.options:
            raise QuestionError(f"question {question.qa_id}: asks for a number: let the model generate its answer")


class LocalReader:
    """A model of this machine; it is loaded with the first question."""

    clips_at_once = 1

    def __init__(self, source: str, like: TrainingParameters | None = None) -> None:
        """Find the model.

        Args:
            source: folder of a checkpoint, or folder or hub id of another model.
            like: what a model that this project did not train sees of a clip; None admits checkpoints alone.

        Raises:
            CheckpointError, WeightsError: there is no model.
        """
        from models.predict import REPORT, CheckpointError, find_model

        self._folder = Path(source) if like is None else find_model(source)
        self._like = like
        self._trained_here = (self._folder / REPORT).is_file()
        if like is None and not self._trained_here:
            raise CheckpointError(f"{source} is no checkpoint (no {REPORT}): train one first")
        # A local folder's path would tell of its machine.
        self.name = Path(source).resolve().name if Path(source).exists() else source

    @cached_property
    def identity(self) -> str:
        """Over weights, configuration and tokenizer, what it sees, what computes it and the code."""
        from models.predict import REPORT, SEEING, CheckpointError

        try:
            files = sorted(path for path in self._folder.iterdir() if path.suffix in DECIDING)
            digests = {path.name: sha256_of(path) for path in files if path.name not in NOTES}
            seeing = json.loads((self._folder / REPORT).read_text())["parameters"] if self._trained_here else None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{self._folder} is no checkpoint ({error}): train one first") from error
        if not self._trained_here:
            seeing = {name: getattr(self._like, name) for name in SEEING}
        parts = {"files": digests, "parameters": seeing, "device": _device_word(), "wording": self._instructions}
        return key_of(parts, CODE)

    @cached_property
    def channels(self) -> int | None:
        """As config.json says; the published reference makes its own features, other strangers read none."""
        if not self._trained_here:
            return None
        try:
            return (json.loads((self._folder / "config.json").read_text()).get("geometry_config") or {}).get("channels")
        except (OSError, ValueError, AttributeError) as error:
            from models.predict import CheckpointError

            raise CheckpointError(f"{self._folder} is no checkpoint (its config.json is damaged): train it") from error

    @cached_property
    def _opened(self) -> Opened:
        from models.predict import open_checkpoint, open_model

        return open_checkpoint(self._folder) if self._like is None else open_model(str(self._folder), self._like)

    def answer(self, questions: Sequence[Question], places: Places, manner: Manner) -> list[Reply]:
        """As `Reader`; the questions of a clip that see the same of it share its encoding."""
        from models.data import groups_of

        answering = self._answering(places)
        replies: dict[int, Reply] = {}
        for group in groups_of(questions):
            some = [questions[row] for row in group.rows]
            if manner.protocol == GENERATION:
                texts = answering.texts(group, some, manner.max_tokens, manner.blind, self._instructions)
                made = [Reply(one.qa_id, text=text) for one, text in zip(some, texts, strict=True)]
            else:
                check_options(some)
                shares = answering.shares(group, some, manner.blind, self._instructions)
                made = [Reply(one.qa_id, tuple(map(float, each))) for one, each in zip(some, shares, strict=True)]
            replies |= dict(zip(group.rows, made, strict=True))
        return [replies[row] for row in range(len(questions))]

    def _answering(self, places: Places):
        """Kept while the places are the same, for it keeps clips in memory."""
        if getattr(self, "_kept", (None,))[0] != places:
            self._kept = places, self._opened.answering(places.videos, places.geometry)
        return self._kept[1]

    @cached_property
    def _instructions(self) -> tuple[str, str]:
        """What is learned here is learned without an instruction, and so is the published reference."""
        from models.published import is_published

        at_once = self._trained_here or is_published(str(self._folder))
        return "" if at_once else LETTER_INSTRUCTION, NUMBER_INSTRUCTION


class EndpointReader:
    """A model behind an OpenAI-compatible endpoint."""

    channels = None

    def __init__(self, endpoint: Endpoint, max_frames: int, max_pixels: int, quality: int = 85, at_once: int = 4):
        """Say how it is shown a clip.

        Args:
            endpoint: where it is asked, with its budget.
            max_frames: most frames, uniform over the clip.
            max_pixels: largest area of a frame.
            quality: JPEG's.
            at_once: requests that may be under way together.
        """
        self.endpoint, self.clips_at_once = endpoint, at_once
        self.name = f"{endpoint.model} at {endpoint.url}"
        self._shown = {"max_frames": max_frames, "max_pixels": max_pixels, "quality": quality}
        wording = [LETTER_INSTRUCTION, NUMBER_INSTRUCTION, _told([0.0])]
        parts = {"url": endpoint.url, "model": endpoint.model, "shown": self._shown, "wording": wording}
        self.identity = key_of(parts, [])

    def answer(self, questions: Sequence[Question], places: Places, manner: Manner) -> list[Reply]:
        """As `Reader`.

        Raises:
            EndpointError: no answer; what was answered before is kept by whoever keeps answers.
        """
        if manner.protocol == LETTERS_PROTOCOL:
            check_options(questions)
        pictures: dict[tuple, list[dict]] = {}
        for question in questions:
            place = (question.shard, question.clip, question.visible_until)
            if place not in pictures:
                pictures[place] = [] if manner.blind else self._pictures(places, question)
        conversations = [
            [{"role": "user", "content": [*pictures[one.shard, one.clip, one.visible_until], _text(one)]}]
            for one in questions
        ]
        with ThreadPoolExecutor(self.clips_at_once) as pool:
            return list(pool.map(self._reply, questions, conversations, [manner] * len(questions)))

    def _reply(self, question: Question, conversation: list[dict], manner: Manner) -> Reply:
        from models.answering import LETTERS

        if manner.protocol == GENERATION:
            return Reply(question.qa_id, text=self.endpoint.complete(conversation, max_tokens=manner.max_tokens))
        shares = self.endpoint.letter_shares(conversation, LETTERS[: len(question.options)])
        return Reply(question.qa_id, None if shares is None else tuple(shares))

    def _pictures(self, places: Places, question: Question) -> list[dict]:
        """Frames up to `visible_until`, the first always among them, and when they were."""
        frames, times = _visible_frames(places.frames(question.shard, question.clip), question)
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), self._shown["max_frames"])).round())
        kept = chosen.astype(int)
        urls = [_jpeg(frame, self._shown["max_pixels"], self._shown["quality"]) for frame in frames[kept]]
        told = {"type": "text", "text": _told(times[kept].tolist())}
        return [*({"type": "image_url", "image_url": {"url": url}} for url in urls), told]


def _visible_frames(path: Path, question: Question) -> tuple[np.ndarray, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from models.data import ClipError

    try:
        arrays = load_file(path)
        frames, times = arrays["frames"], arrays["timestamps"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ClipError(f"clip {question.clip}: {path} cannot be read: prepare it again") from error
    until = np.inf if question.visible_until is None else question.visible_until + SAME_MOMENT
    seen = times <= until
    seen[:1] = True
    return frames[seen], times[seen]


def _jpeg(frame: np.ndarray, max_pixels: int, quality: int) -> str:
    """A frame (h,w,3) u8 as a data URL."""
    from PIL import Image

    picture = Image.fromarray(frame)
    scale = min(1.0, (max_pixels / (picture.width * picture.height)) ** 0.5)
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    held = io.BytesIO()
    (picture.resize(size) if size != picture.size else picture).save(held, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()


def _told(times: Sequence[float]) -> str:
    moments = ", ".join(f"{time:.1f}" for time in times)
    return f"These are frames of one video, in order, taken at {moments} seconds."


def _text(question: Question) -> dict[str, str]:
    from models.answering import asked_text

    instruction = LETTER_INSTRUCTION if question.options else NUMBER_INSTRUCTION
    return {"type": "text", "text": asked_text(question.question, question.options, instruction)}


def _device_word() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
