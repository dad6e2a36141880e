"""VLM4D: `QA/real_mc.json` and `QA/synthetic_mc.json` of the data set shijiezhou/VLM4D, each a list of objects.

Keys id, video (an address that ends in `videos_<real or synthetic>/<source>/<name>.mp4`), question, choices (under the
letters A to D, texts or numbers) and answer (the text or number of the right choice, no letter); question_type is
"multiple-choice" throughout. arXiv 2508.02095; the first 700 rows of the real questions were seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.benchmark.official.table import (
    LONGEST_NAME,
    identity_of,
    letter_of_text,
    options_of,
    read_items,
    text_of,
    video_of,
)
from assets.benchmark.suite import Item, Unusable
from assets.questions.official import BadRowError

VERSION = "1"
COLUMNS = ("id", "video", "question", "choices", "answer")


def read(path: Path) -> tuple[list[Item], list[Unusable]]:
    """Read the benchmark; an item's type is "real" or "synthetic", as its video's address says.

    Raises:
        OfficialFormatError: see `table.read_items`.
    """
    return read_items(path, COLUMNS, _item)


def _item(row: Mapping[str, Any]) -> Item:
    address, question = text_of(row, "video"), text_of(row, "question")
    if not isinstance(row.get("choices"), Mapping):
        raise BadRowError("choices are no mapping", row.get("choices"))
    options = options_of(row["choices"])
    kind = re.search(r"\bvideos_(real|synthetic)\b", address)
    return Item(
        item_id=identity_of(row.get("id"), address, question, options),
        video=video_of(address),
        type=kind[1] if kind else text_of(row, "question_type", LONGEST_NAME),
        question=question,
        options=options,
        answer=letter_of_text(text_of(row, "answer"), options),
    )
