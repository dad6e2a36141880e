"""One question about any video: geometry, model, and how likely the model finds each option.

A clip that the pool does not hold goes through the functions of its links, as a shard of one clip in a temporary
folder, so that the model sees of it what it saw of the clips that it was trained on.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from assets.benchmark.clips import SHARD, Ready, describe_clip, prepare_batch, wrong_channels
from assets.benchmark.readers import Places
from assets.geometry.parameters import EstimatorName, GeometryParameters
from assets.geometry.record import load
from assets.geometry.scene_page import plain
from assets.identity import Identity
from assets.reuse import sha256_of
from assets.workspace import Workspace
from orchestration.parameters import Parameters

LETTERS = ("A", "B", "C", "D")
AUTO = "auto"
BAR = 20
# How a question names a thing by the number that is drawn on a prepared clip (see `assets.geometry.marks.pointed`).
MARKED = re.compile(r"\bmarked \d", re.IGNORECASE)


class AskError(ValueError):
    """A question that cannot be asked, or a file that it cannot be asked about."""


@dataclass(frozen=True)
class Known:
    """What a model reads of a clip, and where it lies.

    Attributes:
        ready: the clip.
        shard: folder that holds it, in `places.videos` and in `places.geometry`.
        places: of frames and records.
        cached: whether it lay in the workspace already.
        seconds: what reading the frames and estimating the geometry took.
    """

    ready: Ready
    shard: str
    places: Places
    cached: bool
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """Four probabilities, and what they rest on.

    Attributes:
        question, options: as the model read them.
        probabilities: of the options A to D; they add up to 1.
        clip: SHA-256 of the video's bytes.
        geometry: estimator, version, status ("3d", "2d" or "refused"), reason, cached.
        unfit: columns by which such a clip is kept out of training, empty where none speaks against it.
        checkpoint: path, and the hash DVC gives it (None for a folder that is not the workspace's own).
        seconds: frames, geometry, model.
    """

    question: str
    options: tuple[str, ...]
    probabilities: tuple[float, ...]
    clip: str
    geometry: Mapping[str, Any]
    unfit: str
    checkpoint: Mapping[str, str | None]
    seconds: Mapping[str, float]

    @property
    def letter(self) -> str:
        """The likeliest option, the first among equals."""
        return LETTERS[self.probabilities.index(max(self.probabilities))]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        options = zip(LETTERS, self.options, self.probabilities, strict=True)
        return {
            "question": self.question,
            "options": [{"letter": a, "text": b, "probability": round(c, 6)} for a, b, c in options],
            "answer": self.letter,
            "clip": self.clip,
            "geometry": dict(self.geometry),
            "unfit": self.unfit,
            "checkpoint": dict(self.checkpoint),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def lines(self) -> list[str]:
        """The same for a terminal."""
        shown = [self.question]
        for letter, option, share in zip(LETTERS, self.options, self.probabilities, strict=True):
            shown.append(f"  {letter} {'#' * round(BAR * share):{BAR}} {share:6.1%}  {option}")
        shown.append(f"answer      {self.letter} {self.options[LETTERS.index(self.letter)]}")
        shown.append(f"geometry    {self._geometry()}")
        if self.unfit:
            shown.append(f"note        such clips are kept out of training: unfit by {self.unfit}")
        shown.append(f"checkpoint  {self.checkpoint['dvc_md5'] or 'not of this workspace'} ({self.checkpoint['path']})")
        shown.append(f"seconds     {', '.join(f'{name} {value:.1f}' for name, value in self.seconds.items())}")
        return shown

    def _geometry(self) -> str:
        known = self.geometry
        said = f"{known['estimator']}, {known['status']}" + (f": {known['reason']}" if known["reason"] else "")
        said += "; the model answers without geometry" if known["status"] == "refused" else ""
        return said + (" (from the pool)" if known["cached"] else "")


def ask(
    workspace: Workspace,
    parameters: Parameters,
    video: Path,
    question: str,
    options: Sequence[str],
    checkpoint: Path | None = None,
    estimator: str = AUTO,
    say: Callable[[str], None] = lambda step: None,
) -> Answer:
    """Ask a checkpoint about a video file.

    Args:
        workspace: whose pool is looked into first.
        parameters: how frames are sampled and geometry is estimated.
        video: any file; one whose bytes are in the pool is read from there.
        question: any text; it becomes one line.
        options: four different texts without letters in front.
        checkpoint: model folder; the workspace's own where None.
        estimator: name of the one to use, or "auto" for the parameters' list.
        say: told of each step before it begins.

    Raises:
        AskError: question, options, estimator, checkpoint or file are no good.
        ValueError: as the links and the model raise it, in one line.
    """
    question, options = check_question(question, options)
    tuned = _tuned(parameters.geometry, estimator)
    checkpoint = (checkpoint or workspace.checkpoint).resolve()
    channels = _channels_of(checkpoint)
    clip = _identity_of(video)
    with tempfile.TemporaryDirectory(prefix="dsr-ask-") as folder:
        known = _in_pool(workspace, clip, estimator)
        if known is None:
            if MARKED.search(" ".join([question, *options])):
                raise AskError("a question may name things by marks only in clips of the pool: name them in words")
            known = _prepare(Path(folder), video, clip, parameters, tuned, say)
        _check_prior(known, channels)
        say("asking the model")
        started = time.monotonic()
        probabilities = _probabilities(checkpoint, known, question, options)
        seconds = {**known.seconds, "model": time.monotonic() - started}
    geometry = {name: known.ready.provenance[name] for name in ("estimator", "version", "status", "reason")}
    return Answer(
        question=question,
        options=options,
        probabilities=probabilities,
        clip=clip,
        geometry=geometry | {"cached": known.cached},
        unfit=known.ready.unfit,
        checkpoint=_named(workspace, checkpoint),
        seconds=seconds,
    )


def check_question(question: str, options: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The question and its options as single printable lines: no option may pass for two, nor write to a terminal.

    Raises:
        AskError: if they are not one question and four different options.
    """
    question, texts = _line(question), tuple(map(_line, options))
    if not question:
        raise AskError("the question is empty: say what is asked")
    if len(texts) != len(LETTERS):
        raise AskError(f"{len(texts)} options are given: the model chooses among four, name exactly four")
    if not all(texts) or len(set(texts)) < len(texts):
        raise AskError(f"the options {', '.join(map(repr, texts))} are empty or the same: name four different ones")
    return question, texts


def _line(text: str) -> str:
    return plain(text, max(len(text), 1))


def _tuned(parameters: GeometryParameters, estimator: str) -> GeometryParameters:
    """The parameters with the one estimator that is asked for."""
    names = get_args(EstimatorName)
    if estimator != AUTO and estimator not in names:
        raise AskError(f"{plain(estimator)!r} is no estimator: choose {AUTO} or one of {', '.join(names)}")
    return parameters if estimator == AUTO else parameters.model_copy(update={"estimators": (estimator,)})


def _identity_of(video: Path) -> str:
    """SHA-256 of the file's bytes, by which the pool knows a clip."""
    try:
        if video.is_file():
            return sha256_of(video)
    except OSError as error:
        raise AskError(f"{plain(video)} cannot be read ({error.strerror}): check the file") from error
    raise AskError(f"{plain(video)} is no file: name a video")


def _in_pool(workspace: Workspace, clip: str, estimator: str) -> Known | None:
    """The clip as the workspace holds it; None where its frames or its record (by that estimator) are not there."""
    data = workspace.root / "data"
    places = Places(data / "videos", data / "geometry")
    for shard in workspace.shards():
        record = places.record(shard, clip)
        if not record.is_file() or not places.frames(shard, clip).is_file():
            continue
        if estimator in (AUTO, load(record, ()).provenance["estimator"]):
            seconds = {"frames": 0.0, "geometry": 0.0}
            return Known(describe_clip(places, shard, clip), shard, places, True, seconds)
    return None


def _prepare(
    folder: Path, video: Path, clip: str, parameters: Parameters, tuned: GeometryParameters, say: Callable[[str], None]
) -> Known:
    """Frames and geometry of a clip that nobody prepared, in `folder`, made as for any shard.

    Raises:
        AskError: the file is no video that can be read.
    """
    batch = prepare_batch(folder, {clip: video}, parameters.videos, tuned, say=say)
    if batch.refused:
        raise AskError(f"{plain(video)}: {batch.refused[clip]}")
    return Known(batch.ready[clip], SHARD, Places(folder / "videos", folder / "geometry"), False, batch.seconds)


def _channels_of(checkpoint: Path) -> int | None:
    """Numbers a cell of the geometry that a checkpoint reads; None if it reads none.

    Raises:
        AskError: the folder is no checkpoint; its weights are only read by `predict`, after the geometry.
    """
    try:
        (checkpoint / "training.json").read_bytes()
        geometry = json.loads((checkpoint / "config.json").read_bytes()).get("geometry_config")
        return geometry and geometry["channels"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = error.strerror if isinstance(error, OSError) else "its config.json is damaged"
        raise AskError(
            f"{plain(checkpoint)} is no checkpoint ({what}): train one with `dsr make checkpoint` or name its folder"
        ) from error


def _check_prior(known: Known, channels: int | None) -> None:
    """Refuse features that the checkpoint's geometry module was not made for."""
    if wrong := wrong_channels(known.ready, channels):
        raise AskError(f"{wrong}: choose another with --estimator or set geometry.foundation.prior as in its training")


def _probabilities(checkpoint: Path, known: Known, question: str, options: tuple[str, ...]) -> tuple[float, ...]:
    # A wrong question or file is said before torch is loaded.
    from models.predict import predict

    row = {
        "qa_id": "asked",
        "clip": known.ready.clip,
        "shard": known.shard,
        "type": "asked",
        "question": question,
        "options": list(options),
        "visible_until": None,
    }
    found = predict(checkpoint, pa.Table.from_pylist([row]), known.places.videos, known.places.geometry)[0]
    if not np.isfinite(found).all():
        raise AskError(f"{plain(checkpoint)}: its answer is no number, the weights are damaged: train it again")
    return tuple(map(float, found))


def _named(workspace: Workspace, checkpoint: Path) -> dict[str, str | None]:
    """Where the checkpoint lies, and the hash DVC gives it if it is the workspace's own."""
    own = checkpoint == workspace.checkpoint.resolve()
    version = Identity(workspace.root).hash_on_disk("checkpoint") if own else None
    return {"path": plain(checkpoint), "dvc_md5": version}
