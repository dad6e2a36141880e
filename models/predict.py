"""Probabilities of the option letters, all questions of a clip on one encoding of its video."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.batch import Tree
from models.data import ClipStore, Group, Question, TreeMaker, groups_of, questions_of, without_answers
from models.geometric_qwen import GeometricQwen, load_checkpoint
from models.parameters import TrainingParameters
from models.prompt import LETTERS, Prompt

if TYPE_CHECKING:
    import pyarrow

# A row's attention mask grows with the square of its length; more questions than this get a second row.
BRANCHES_PER_ROW = 8


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
        batch_clips: shared prefixes in one forward.
        progress: called after each batch with questions done, questions in all and a word.

    Returns:
        (n,4) float64 in the order of the rows.

    Raises:
        CheckpointError: if the folder is no checkpoint.
        ClipError: if a clip's frames or prior are missing, naming the clip.
        QuestionError: if the table is no table of questions.
    """
    parameters, model, tokenizer = open_checkpoint(checkpoint)
    model.to(_device(parameters))
    listed = questions if isinstance(questions, Sequence) else questions_of(questions, with_answer=False)
    asked = without_answers(listed)
    prompt = Prompt(tokenizer, parameters.max_text_tokens)
    maker = TreeMaker(prompt, ClipStore(videos, geometry, parameters, model.patching), model)
    rows = rows_of(groups_of(asked), maker.shares_prefix)
    # A GPU computes as in training; a CPU in float32, so that its numbers are the same everywhere.
    half = model.device.type == "cuda" and parameters.precision != "32-true"
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=half)
    probabilities = np.full((len(asked), len(LETTERS)), np.nan)
    done = 0
    with _threads(parameters.threads):
        for start in range(0, len(rows), batch_clips):
            groups = rows[start : start + batch_clips]
            trees = trees_of(maker, groups, asked, blind)
            places = [row for group in groups for row in group.rows]
            probabilities[places] = _letter_probabilities(model, maker, trees, autocast)
            done += len(places)
            progress(done, len(asked), "blind" if blind else "with video")
    return probabilities


def open_checkpoint(folder: Path) -> tuple[TrainingParameters, GeometricQwen, object]:
    """Parameters, model and tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: if a part of it is missing or unreadable.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        report = json.loads((Path(folder) / "training.json").read_text())
        parameters = TrainingParameters.from_mapping(report["parameters"])
        return parameters, load_checkpoint(Path(folder)), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint ({error}): train one first") from error


def rows_of(groups: Sequence[Group], shares_prefix: bool) -> list[Group]:
    """Groups cut into rows of a batch: of a few questions each, or of one where none can share a prefix."""
    size = BRANCHES_PER_ROW if shares_prefix else 1
    return [
        Group(group.shard, group.clip, group.visible_until, group.rows[start : start + size])
        for group in groups
        for start in range(0, len(group.rows), size)
    ]


def trees_of(
    maker: TreeMaker, groups: Sequence[Group], questions: Sequence[Question], blind: bool = False
) -> list[Tree]:
    """A tree for each group of places in the list of questions."""
    asked = [[questions[row] for row in group.rows] for group in groups]
    if blind:
        return [maker.blind_tree(some) for some in asked]
    return [maker.tree(group, some) for group, some in zip(groups, asked, strict=True)]


@torch.no_grad()
def _letter_probabilities(
    model: GeometricQwen, maker: TreeMaker, trees: Sequence[Tree], autocast: torch.autocast
) -> np.ndarray:
    batch = maker.pack(trees).to(model.device)
    with autocast:
        logits = model.score(batch, batch.prompt_end)[:, maker.prompt.letters]
    return logits.double().softmax(-1).cpu().numpy()


def _device(parameters: TrainingParameters) -> torch.device:
    """Where the model was trained, if there is such a device here."""
    gpu = parameters.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The thread count of the training, whose last bits it decides, for the time of a prediction."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
