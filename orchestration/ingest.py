"""Taking new videos into the pool: sealed shards, their `.dvc` files and the ledger."""

from __future__ import annotations

import fcntl
from pathlib import Path

from assets.identity import Identity, stage_name
from assets.progress import console_progress
from assets.workspace import SHARD_KEY, Workspace


def ingest_new(workspace: Workspace, source: str, shard_size: int) -> list[str]:
    """Seal what `source` holds and the pool does not into new shards, track them, and append them to the ledger.

    A shard that was sealed by an earlier call which was killed before it reached the ledger is adopted first.

    Returns:
        Keys of the new shards; empty when every file is known.

    Raises:
        ValueError: the folder does not exist, cannot be read or is empty.
    """
    raw = workspace.root / "data" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    lock_file = workspace.root / ".dvc" / "tmp" / "ingest.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as lock:
        # The sensor and a person may ingest at the same time; the second finds what the first sealed.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _ingest(workspace, raw, source, shard_size)


def _ingest(workspace: Workspace, raw: Path, source: str, shard_size: int) -> list[str]:
    from assets.videos.shards import ingest, read_manifest

    ledger = workspace.shards()
    sealed = sorted(folder.name for folder in raw.iterdir() if SHARD_KEY.fullmatch(folder.name))
    orphans = [shard for shard in sealed if shard not in ledger]
    identity = Identity(workspace.root)
    known = set()
    for shard in [*ledger, *orphans]:
        if not workspace.raw(shard).exists():
            if shard in workspace.sample_shards():
                continue
            identity.restore(stage_name("raw_videos", shard))
        known |= {clip.clip for clip in read_manifest(workspace.raw(shard))}
    numbers = [int(shard.removeprefix("shard-")) for shard in {*ledger, *orphans}]
    new = ingest(source, raw, known, max(numbers, default=-1) + 1, shard_size, console_progress("ingest"))
    for shard in [*orphans, *new]:
        identity.add(workspace.raw(shard))
        workspace.add_shard(shard)
    return [*orphans, *new]
