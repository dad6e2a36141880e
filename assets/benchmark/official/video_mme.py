"""Video-MME, without subtitles: `videomme/test-00000-of-00001.parquet` of the data set lmms-lab/Video-MME.

Columns videoID (the video's name on YouTube and of its file), question_id, task_type (twelve), question, options (four,
with their letters) and answer (a letter); duration, domain, sub_category, url and video_id (a running number) are left.
Known from the data set's card and arXiv 2405.21075; no row was seen. Subtitles are separate files and never read.
"""

from __future__ import annotations

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

VERSION = "1"
COLUMNS = ("videoID", "question_id", "task_type", "question", "options", "answer")


def read(path: Path) -> tuple[list[Item], list[Unusable]]:
    """Read the benchmark.

    Raises:
        OfficialFormatError: see `table.read_items`.
    """
    return read_items(path, COLUMNS, _item)


def _item(row: Mapping[str, Any]) -> Item:
    video, question, options = (
        video_of(text_of(row, "videoID")),
        text_of(row, "question"),
        options_of(row.get("options")),
    )
    return Item(
        item_id=identity_of(row.get("question_id"), video, question, options),
        video=video,
        type=text_of(row, "task_type", LONGEST_NAME),
        question=question,
        options=options,
        answer=letter_of(text_of(row, "answer"), len(options)),
    )
