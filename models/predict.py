"""Models opened for questions, and the probabilities of a checkpoint's option letters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.answering import BRANCHES_PER_ROW, Answering
from models.batch import Prior, Tree
from models.data import ClipStore, Group, Question, TreeMaker, groups_of, questions_of
from models.geometric_qwen import GeometricQwen, load_base, load_checkpoint
from models.online_prior import PatchPrior
from models.parameters import GeometryModelParameters, GuidanceParameters, ParameterError, TrainingParameters
from models.prompt import LETTERS, QuestionError
from models.published import is_published, load_published_with_prior
from models.weights import locate

if TYPE_CHECKING:
    import pyarrow

REPORT = "training.json"
"""What a folder holds beside its weights if this project trained them."""
SEEING = ("max_frames", "min_pixels", "max_pixels", "max_text_tokens", "precision", "accelerator", "threads")
"""Parameters of a training that a model which brings none is given, so that it sees what the project's own sees."""
FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""What a hub repository is asked for: weights, configuration, tokenizer."""
PUBLISHED = GeometryModelParameters(
    prior="tokens", reads="prompt", heads=0, window=0, context=1, nobody=False, speak=False
)


class CheckpointError(ValueError):
    """A folder is no checkpoint of this project."""


def predict(
    checkpoint: Path,
    questions: pyarrow.Table | Sequence[Question],
    videos: Path,
    geometry: Path,
    *,
    blind: bool = False,
    batch_clips: int = 4,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> np.ndarray:
    """Probabilities of the letters A to D, normalised over the four.

    Args:
        checkpoint: folder that `models.train` wrote.
        questions: question rows, as a table or a list; answers are not read.
        videos: folder with `<shard>/frames/<clip>.safetensors`.
        geometry: folder with `<shard>/<clip>.safetensors`.
        blind: without video and geometry, from the text alone.
        batch_clips: shared prefixes between two calls of `progress`.
        progress: called with questions done, questions in all and a word.

    Returns:
        (n,4) float64 in the order of the rows.

    Raises:
        CheckpointError: if the folder is no checkpoint.
        ClipError: if a clip's frames or prior are missing, naming the clip.
        QuestionError: if the table is no table of questions, or one has not four options.
    """
    opened = open_checkpoint(checkpoint)
    asked = questions if isinstance(questions, Sequence) else questions_of(questions, with_answer=False)
    check_four(asked)
    answering = opened.answering(videos, geometry)
    groups = groups_of(asked)
    probabilities = np.full((len(asked), len(LETTERS)), np.nan)
    done = 0
    for start in range(0, len(groups), batch_clips):
        for group in groups[start : start + batch_clips]:
            rows = list(group.rows)
            probabilities[rows] = answering.shares(group, [asked[row] for row in rows], blind)
            done += len(rows)
        progress(done, len(asked), reading_word(blind))
    return probabilities


def check_four(questions: Sequence[Question]) -> None:
    """Refuse questions that have not four options.

    Raises:
        QuestionError: naming the first such question.
    """
    for question in questions:
        if len(question.options) != len(LETTERS):
            raise QuestionError(f"question {question.qa_id}: {len(question.options)} options, expected 4")


def reading_word(blind: bool) -> str:
    """What progress calls a reading."""
    return "blind" if blind else "with video"


@dataclass(frozen=True)
class Opened:
    """A model ready to be asked, on its device.

    Attributes:
        parameters: of its training, or what stands for them.
        model: in evaluation mode.
        tokenizer: of transformers.
        prior: what makes its prior features from the patches it sees, for weights that bring that along; or None.
    """

    parameters: TrainingParameters
    model: GeometricQwen
    tokenizer: object
    prior: PatchPrior | None = None

    def answering(self, videos: Path, geometry: Path) -> Answering:
        """The model with the clips of two folders, laid out as `predict` has them."""
        clips = ClipStore(videos, geometry, self.parameters, self.model.patching)
        if self.prior is not None:
            clips = _OwnPrior(clips, self.prior)
        return Answering(self.model, self.tokenizer, self.parameters, clips)


class _OwnPrior(ClipStore):
    """Clips whose prior features a model's own encoder makes from the very patches that the model sees."""

    def __init__(self, clips: ClipStore, encoder: PatchPrior) -> None:
        super().__init__(clips.videos, clips.geometry, clips.parameters, clips.patching)
        self.encoder = encoder

    def _read_prior(self, shard: str, clip: str, visible_until: float | None) -> Prior:
        video = self.video(shard, clip, visible_until)
        weight = next(self.encoder.parameters())
        patches = torch.from_numpy(video.patches).to(weight)
        (features,) = self.encoder(patches, torch.tensor([video.grid]))
        return Prior(features.float().cpu().numpy(), np.arange(video.grid[0]) * video.seconds_per_slot)


def open_checkpoint(folder: Path) -> Opened:
    """A checkpoint folder of this project.

    Raises:
        CheckpointError: if a part of it is missing or unreadable.
    """
    from transformers import AutoTokenizer

    _say_nothing()
    try:
        report = json.loads((Path(folder) / REPORT).read_text())
        parameters = TrainingParameters.from_mapping(report["parameters"])
        model = load_checkpoint(Path(folder)).to(_device(parameters))
        return Opened(parameters, model, AutoTokenizer.from_pretrained(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint ({error}): train one first") from error


def open_model(source: str, like: TrainingParameters) -> Opened:
    """Any model that can be asked: a checkpoint, a plain Qwen2.5-VL or Qwen3-VL, or the published reference.

    Args:
        source: folder, or hub id with `@` and a revision where it is not to be the newest.
        like: gives a model that was not trained here its frames, pixels, precision and device.

    Raises:
        CheckpointError: if it is a damaged checkpoint of this project.
        ParameterError, WeightsError: if no model can be loaded from there.
    """
    from transformers import AutoTokenizer

    folder = find_model(source)
    if (folder / REPORT).is_file():
        return open_checkpoint(folder)
    _say_nothing()
    published = is_published(str(folder))
    parameters = _seeing(like, PUBLISHED if published else GeometryModelParameters(variant="none"))
    device = _device(parameters)
    half = device.type == "cuda" and parameters.precision != "32-true"
    dtype = torch.bfloat16 if half else torch.float32
    if published:
        model, prior = load_published_with_prior(str(folder), dtype)
        prior = prior.to(device)
    else:
        model, prior = load_base(str(folder), None, dtype=dtype), None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ParameterError(f"{source}: no tokenizer can be loaded from there ({_line(error)})") from error
    return Opened(parameters, model.to(device).eval(), tokenizer, prior)


def find_model(source: str) -> Path:
    """The folder of a model, fetched from the hub where it is not a local one.

    Raises:
        WeightsError: if there is neither.
    """
    found = locate(source, FILES)
    return found if found.is_dir() else found.parent


def _seeing(like: TrainingParameters, geometry: GeometryModelParameters) -> TrainingParameters:
    """Parameters for a model that is only asked: nothing of them is about training."""
    shown = {name: getattr(like, name) for name in SEEING}
    return TrainingParameters(
        geometry=geometry,
        guidance=GuidanceParameters.silent(),
        reading_steps=0,
        naming_steps=0,
        grounding_steps=0,
        steps=1,
        cached_clips=4,
        **shown,
    )


def rows_of(groups: Sequence[Group], shares_prefix: bool) -> list[Group]:
    """Groups cut into rows of a batch: of a few questions each, or of one where none can share a prefix."""
    size = BRANCHES_PER_ROW if shares_prefix else 1
    return [
        Group(group.shard, group.clip, group.visible_until, group.rows[start : start + size])
        for group in groups
        for start in range(0, len(group.rows), size)
    ]


def trees_of(maker: TreeMaker, groups: Sequence[Group], questions: Sequence[Question]) -> list[Tree]:
    """A tree for each group of places in the list of questions."""
    return [maker.tree(group, [questions[row] for row in group.rows]) for group in groups]


def _device(parameters: TrainingParameters) -> torch.device:
    """Where the model was trained, if there is such a device here."""
    gpu = parameters.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def _say_nothing() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
