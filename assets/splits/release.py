"""A sealed release: what it consists of, and how later links read it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.reuse import sha256_of

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "bench")
GEOMETRY_ONLY = "geometry_only"
PARTS = (*SPLITS, GEOMETRY_ONLY)
RELEASE_FILE = "release.json"
FORMAT = 1


class ReleaseError(ValueError):
    """The questions cannot be released as they are, or a sealed release is damaged."""


def release_page(folder: Path) -> dict[str, Any]:
    """Read `release.json` and check that every part is the one that was sealed.

    Raises:
        ReleaseError: the page is missing or damaged, or a part is missing or has other bytes.
    """
    path = folder / RELEASE_FILE
    try:
        release = json.loads(path.read_text(encoding="utf-8"))
        sealed = {name: release["splits"][name]["sha256"] for name in PARTS}
        _ = release["clips"]["bench"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path}: cannot be read ({type(error).__name__}); seal the release again") from error
    for name, digest in sealed.items():
        part = folder / f"{name}.parquet"
        if not part.is_file() or sha256_of(part) != digest:
            raise ReleaseError(f"{part}: not the file that was sealed; restore it or seal the release again")
    return release


def read_release(folder: Path) -> "pd.DataFrame":
    """All questions of a sealed release (train, val, bench; without `geometry_only`) as one table.

    Raises:
        ReleaseError: as `release_page`.
    """
    release_page(folder)
    return pa.concat_tables([pq.read_table(folder / f"{name}.parquet") for name in SPLITS]).to_pandas()


def summarize(release: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to know about a release: plain numbers and one Markdown table.

    Args:
        release: what `seal_release` or `release_page` returned.

    Returns:
        Keys `train`, `val`, `bench`, `geometry_only` (questions), `clips` (with pixels) and `by_type`
        (Markdown: one row per type, one column per split, and a last row with the answer letters).
    """
    splits = release["splits"]
    types = sorted(set().union(*(splits[name]["by_type"] for name in SPLITS)))
    lines = [f"| type | {' | '.join(SPLITS)} |", "|---|" + "---:|" * len(SPLITS)]
    for kind in types:
        counts = " | ".join(str(splits[name]["by_type"].get(kind, 0)) for name in SPLITS)
        lines.append(f"| {kind} | {counts} |")
    letters = [" / ".join(str(splits[name]["by_answer"].get(letter, 0)) for letter in "ABCD") for name in SPLITS]
    lines.append(f"| A / B / C / D | {' | '.join(letters)} |")
    return {
        **{name: part["questions"] for name, part in splits.items()},
        "clips": sum(splits[name]["clips"] for name in SPLITS),
        "by_type": "\n".join(lines),
    }
