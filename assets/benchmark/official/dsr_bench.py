"""DSR-Bench: `benchmark.parquet` of the data set TencentARC/DSR_Suite-Data, or the same rows as JSON lines.

Columns videoID, question, options (four, with their letters), answer (a letter) and type (one of 13), checked by
`assets/questions/official.py`. arXiv 2512.20557, section 3.3 and supplement 7.3; sample rows were seen.

Boxes stand in the text. In every row that was seen they fit a frame of 640x360, which is taken as the frame that videos
were scaled to fit inside; the paper does not name it. Questions that ask to predict a moving direction hide the clip's
last second from the model (table 1 of the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.benchmark.official.table import identity_of, read_items
from assets.benchmark.suite import Item, Unusable
from assets.questions.official import COLUMNS, checked_row
from assets.questions.official_text import read_parts

VERSION = "1"
FRAME = (640, 360)
HIDDEN_SECONDS = 1.0


def read(path: Path) -> tuple[list[Item], list[Unusable]]:
    """Read the benchmark.

    Raises:
        OfficialFormatError: see `table.read_items`.
    """
    return read_items(path, COLUMNS, _item)


def _item(raw: Mapping[str, Any]) -> Item:
    row = checked_row(raw)
    content = (row["videoID"], row["type"], row["question"], row["options"])
    return Item(
        item_id=identity_of(None, *content),
        video=row["videoID"],
        type=row["type"],
        question=row["question"].strip(),
        options=tuple(option.strip() for option in row["options"]),
        answer=row["answer"],
        segment=read_parts(row["type"], row["question"], row["options"]).interval,
        frame_limit=FRAME,
        hidden_seconds=HIDDEN_SECONDS if row["type"].endswith("_dir_pred") else 0.0,
    )
