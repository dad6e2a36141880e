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
    questions: pyarrow.Table,
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
        questions: question rows; answers are not read.
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
    asked = without_answers(questions_of(questions, with_answer=False))
    geometry_config = model.config.geometry_config or {}
    maker = TreeMaker(
        Prompt(tokenizer, parameters.max_text_tokens),
        ClipStore(videos, geometry, parameters),
        geometry_config.get("channels"),
        model.config.vision_config.tokens_per_second,
        model.geometry_tokens,
    )
    rows = _rows(asked)
    probabilities = np.full((len(asked), len(LETTERS)), np.nan)
    done = 0
    with _threads(parameters.threads):
        for start in range(0, len(rows), batch_clips):
            groups = rows[start : start + batch_clips]
            trees = [_tree(maker, group, asked, blind) for group in groups]
            places = [row for group in groups for row in group.rows]
            probabilities[places] = _letter_probabilities(model, maker, trees)
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
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is no checkpoint ({error}): train one first") from error


def _rows(questions: Sequence[Question]) -> list[Group]:
    return [
        Group(group.shard, group.clip, group.visible_until, group.rows[start : start + BRANCHES_PER_ROW])
        for group in groups_of(questions)
        for start in range(0, len(group.rows), BRANCHES_PER_ROW)
    ]


def _tree(maker: TreeMaker, group: Group, questions: Sequence[Question], blind: bool) -> Tree:
    asked = [questions[row] for row in group.rows]
    return maker.blind_tree(asked) if blind else maker.tree(group, asked)


@torch.no_grad()
def _letter_probabilities(model: GeometricQwen, maker: TreeMaker, trees: Sequence[Tree]) -> np.ndarray:
    batch = maker.pack(trees).to(model.device)
    logits = model.score(batch, batch.prompt_end)[:, maker.prompt.letters]
    return logits.double().softmax(-1).cpu().numpy()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The thread count of the training, whose last bits it decides, for the time of a prediction."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
