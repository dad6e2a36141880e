"""VSI-Bench: `test-00000-of-00001.parquet` (or `test.jsonl`) of the data set nyu-visionx/VSI-Bench.

Columns id, dataset (scannet, scannetpp or arkitscenes; its videos are published under it), scene_name (the video's
name), question_type (ten), question, ground_truth and options (texts with their letters, or none). With options,
ground_truth is a letter and the answer is right or wrong; without, it is a positive number and
`suite.mean_relative_accuracy` scores it. Known from the data set's card and arXiv 2412.14171, section 3; no row
was seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.benchmark.official.table import (
    LONGEST_NAME,
    identity_of,
    letter_of,
    options_of,
    read_items,
    text_of,
    video_of,
)
from assets.benchmark.suite import Item, Unusable
from assets.questions.official import BadRowError

VERSION = "1"
COLUMNS = ("id", "dataset", "scene_name", "question_type", "question", "ground_truth", "options")
# Of the ten types those whose answer is a number; one of them with options, or another without, is a broken row.
NUMERIC = frozenset(["object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation"])


def read(path: Path) -> tuple[list[Item], list[Unusable]]:
    """Read the benchmark.

    Raises:
        OfficialFormatError: see `table.read_items`.
    """
    return read_items(path, COLUMNS, _item)


def _item(row: Mapping[str, Any]) -> Item:
    kind, question, truth = (
        text_of(row, "question_type", LONGEST_NAME),
        text_of(row, "question"),
        text_of(row, "ground_truth"),
    )
    video = video_of(f"{text_of(row, 'dataset', LONGEST_NAME)}/{text_of(row, 'scene_name', LONGEST_NAME)}")
    if bool(row.get("options")) == (kind in NUMERIC):
        raise BadRowError(f"a question of {kind} {'has' if kind in NUMERIC else 'has no'} options", row.get("options"))
    options = () if kind in NUMERIC else options_of(row["options"])
    return Item(
        item_id=identity_of(row.get("id"), video, question, options),
        video=video,
        type=kind,
        question=question,
        options=options,
        answer=letter_of(truth, len(options)) if options else _positive(truth),
    )


def _positive(truth: str) -> str:
    """A number as text; a relative accuracy needs one above 0."""
    try:
        number = float(truth)
    except ValueError as error:
        raise BadRowError("ground_truth is no number", truth) from error
    if not 0 < number < math.inf:
        raise BadRowError("ground_truth is no positive number", truth)
    return truth
