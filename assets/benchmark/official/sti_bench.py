"""STI-Bench: `qa.parquet` of the data set MINT-SJTU/STI-Bench.

Columns Video (a file name), Task (one of eight), Question, time_start and time_end (s), Candidates (a mapping of
letters, A to E at most), Answer (a letter); further ones (ID, Source, …) are left. Known from the evaluation that its
authors publish (github MINT-SJTU/STI-Bench, openai_test.py) and arXiv 2503.23765; no row was seen. ID alone does not
tell rows apart there, so items are named by their content. As in that evaluation the question starts with its segment
and the whole video is shown.
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
    seconds_of,
    text_of,
    video_of,
)
from assets.benchmark.suite import Item, Unusable
from assets.questions.official import BadRowError

VERSION = "1"
COLUMNS = ("Video", "Task", "Question", "time_start", "time_end", "Candidates", "Answer")


def read(path: Path) -> tuple[list[Item], list[Unusable]]:
    """Read the benchmark.

    Raises:
        OfficialFormatError: see `table.read_items`.
    """
    return read_items(path, COLUMNS, _item)


def _item(row: Mapping[str, Any]) -> Item:
    start, end = seconds_of(row, "time_start"), seconds_of(row, "time_end")
    if start >= end:
        raise BadRowError("the segment does not end after it starts", (start, end))
    video, question, options = text_of(row, "Video"), text_of(row, "Question"), options_of(row.get("Candidates"))
    return Item(
        item_id=identity_of(None, video, start, end, question, options),
        video=video_of(video),
        type=text_of(row, "Task", LONGEST_NAME),
        question=f"From {start:g} seconds to {end:g} seconds. {question}",
        options=options,
        answer=letter_of(text_of(row, "Answer"), len(options)),
        segment=(start, end),
    )
