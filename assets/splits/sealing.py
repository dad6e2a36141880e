"""Sealing a release: the questions of each split in a file of their own, and a page of what was sealed."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.reuse import sha256_of
from assets.splits.release import FORMAT, GEOMETRY_ONLY, RELEASE_FILE, SPLITS, ReleaseError
from assets.videos.shards import CLIP
from assets.workspace import SHARD_KEY
from validations.leakage import find_leaks


def seal_release(
    questions: Path,
    videos: Path,
    geometry: Path,
    out: Path,
    copies: Mapping[str, str] = MappingProxyType({}),
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Any]:
    """Write `train.parquet`, `val.parquet`, `bench.parquet`, `geometry_only.parquet` and `release.json`.

    Questions about recordings without pixels (annotated driving logs) can be asked of no video model: they
    are kept aside in `geometry_only.parquet` with the split they belong to. `release.json` names the bytes of
    every part, and of every frame file and scene record that the questions refer to.

    Args:
        questions: folder holding `questions.parquet`.
        videos: folder holding `<shard>/frames/<clip>.safetensors`.
        geometry: folder holding `<shard>/<clip>.safetensors`.
        out: folder of the release; made if missing. `release.json` is removed first and written last, so that
            whoever finds it finds the very files it describes.
        copies: clips that show the same as another clip; such a pair must not lie in two splits.
        progress: called with (clips hashed, clips in all, what).

    Returns:
        The contents of `release.json`: `format`, `generator_version` (list), `splits` (for each split and
        `geometry_only`: file, sha256, questions, clips, quads, by_type, by_answer) and `clips` (for each of
        those: clip -> shard and SHA-256 of its `frames` and `geometry` file; frames null without pixels).

    Raises:
        ReleaseError: the table is missing or malformed, something lies in two splits, or a file that a
            question refers to is missing.
    """
    table = _read_questions(questions / "questions.parquet")
    _refuse_leaks(table, copies)
    parts = _parts(table)
    clips = _sealed_clips(parts, videos, geometry, progress)
    out.mkdir(parents=True, exist_ok=True)
    (out / RELEASE_FILE).unlink(missing_ok=True)
    splits = {}
    for name, part in parts.items():
        path = out / f"{name}.parquet"
        _write_parquet(part, path)
        splits[name] = {"file": path.name, "sha256": sha256_of(path), **_counts(part)}
    release = {
        "format": FORMAT,
        "generator_version": sorted(set(table["generator_version"].cast(pa.string()).to_pylist())),
        "splits": splits,
        "clips": clips,
    }
    _write_text(out / RELEASE_FILE, json.dumps(release, indent=1, sort_keys=True) + "\n")
    return release


def _read_questions(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ReleaseError(f"{path}: cannot be read; build the questions first") from error
    needed = {"qa_id", "clip", "videoID", "shard", "type", "answer", "split", "quad", "has_video"}
    if missing := sorted(needed - set(table.column_names)):
        raise ReleaseError(f"{path}: column {missing[0]!r} is missing; build the questions again")
    for column, known in (
        ("split", "|".join(SPLITS)),
        ("clip", CLIP.pattern),
        ("shard", SHARD_KEY.pattern),
    ):
        strange = [value for value in pc.unique(table[column]).to_pylist() if not re.fullmatch(known, str(value))]
        if strange:
            raise ReleaseError(f"{path}: {column} {strange[0]!r} is malformed; build the questions again")
    return table.replace_schema_metadata(None)


def _refuse_leaks(table: pa.Table, copies: Mapping[str, str]) -> None:
    leaks = find_leaks(table.select(["split", "clip", "videoID", "quad", "qa_id"]).to_pandas(), copies)
    if leaks:
        raise ReleaseError(f"questions.parquet: {leaks[0]} ({len(leaks)} leaks in all); build the questions again")


def _parts(table: pa.Table) -> dict[str, pa.Table]:
    """The parts of a release, each sorted by clip (whose questions are read together) and question."""
    ordered = table.sort_by([("clip", "ascending"), ("qa_id", "ascending")])
    seen = pc.fill_null(ordered["has_video"], False)
    parts = {name: ordered.filter(pc.and_(seen, pc.equal(ordered["split"], name))) for name in SPLITS}
    return {**parts, GEOMETRY_ONLY: ordered.filter(pc.invert(seen))}


def _sealed_clips(
    parts: dict[str, pa.Table], videos: Path, geometry: Path, progress: Callable[[int, int, str], None]
) -> dict[str, dict[str, dict[str, str | None]]]:
    """For each part: clip -> its shard and the SHA-256 of the files that its questions refer to."""
    shards = {
        name: dict(sorted(zip(part["clip"].to_pylist(), part["shard"].to_pylist(), strict=True)))
        for name, part in parts.items()
    }
    total, done = sum(map(len, shards.values())), 0
    sealed: dict[str, dict[str, dict[str, str | None]]] = {}
    for name, clips in shards.items():
        sealed[name] = {}
        for clip, shard in clips.items():
            frames = videos / shard / "frames" / f"{clip}.safetensors"
            sealed[name][clip] = {
                "shard": shard,
                "frames": None if name == GEOMETRY_ONLY else _sealed_file(frames, "prepare the videos again"),
                "geometry": _sealed_file(geometry / shard / f"{clip}.safetensors", "estimate the geometry again"),
            }
            done += 1
            progress(done, total, "clips sealed")
    return sealed


def _sealed_file(path: Path, remedy: str) -> str:
    if not path.is_file():
        raise ReleaseError(f"{path}: missing though a question refers to it; {remedy}")
    return sha256_of(path)


def _counts(part: pa.Table) -> dict[str, Any]:
    return {
        "questions": part.num_rows,
        "clips": len(pc.unique(part["clip"])),
        "quads": len(pc.unique(part["quad"])),
        "by_type": dict(sorted(Counter(part["type"].to_pylist()).items())),
        "by_answer": dict(sorted(Counter(part["answer"].to_pylist()).items())),
    }


def _write_parquet(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
