"""What is asked of a model: the bench rows whose clip can be shown, and why the others cannot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.reuse import sha256_of
from assets.splits.release import release_page


class TaskError(ValueError):
    """The bench cannot be asked as it is."""


@dataclass(frozen=True)
class Tasks:
    """The bench as it can be asked here.

    Attributes:
        table: question rows to score, sorted by clip and qa_id; the columns of the release.
        missing: one mapping (qa_id, clip, reason) per row that is not scored, in the same order.
        release: the page of the sealed release.
    """

    table: pa.Table
    missing: list[dict[str, str]]
    release: dict[str, Any]


def load_tasks(splits: Path, videos: Path, geometry: Path) -> Tasks:
    """Read the bench of a sealed release and look for the files its rows refer to.

    Args:
        splits: folder of the release.
        videos: folder holding `<shard>/frames/<clip>.safetensors`.
        geometry: folder holding `<shard>/<clip>.safetensors`.

    Raises:
        ReleaseError: the release is damaged.
        TaskError: a frame file or scene record is not the one that was sealed, or no row can be asked.
    """
    release = release_page(splits)
    reasons = {clip: _why_missing(clip, sealed, videos, geometry) for clip, sealed in release["clips"]["bench"].items()}
    table = pq.read_table(splits / "bench.parquet")
    clips = table["clip"].to_pylist()
    shown = pa.array([reasons[clip] is None for clip in clips], pa.bool_())
    missing = [
        {"qa_id": qa_id, "clip": clip, "reason": reasons[clip]}
        for qa_id, clip in zip(table["qa_id"].to_pylist(), clips, strict=True)
        if reasons[clip] is not None
    ]
    if len(missing) == len(clips):
        why = f"for example {missing[0]['reason']}" if missing else "the bench is empty"
        raise TaskError(f"{splits / 'bench.parquet'}: no question can be asked, {why}; add videos or restore them")
    return Tasks(table.filter(shown), missing, release)


def _why_missing(clip: str, sealed: dict[str, str], videos: Path, geometry: Path) -> str | None:
    """None where the clip's files are there and are the sealed ones; the release's keys are well formed."""
    paths = {
        "frames": videos / sealed["shard"] / "frames" / f"{clip}.safetensors",
        "geometry": geometry / sealed["shard"] / f"{clip}.safetensors",
    }
    for kind, path in paths.items():
        if not path.is_file():
            return f"no {kind} file"
        if sha256_of(path) != sealed[kind]:
            raise TaskError(f"{path}: not the file that was sealed; restore it or seal the release again")
    return None
