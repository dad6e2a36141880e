"""The cache of a shard: one scene record per clip, and a table of what became of each.

A clip's record is reused while its key (clip, companions, sampled frames, estimator, parameters) and its digest hold;
one clip's failure is that clip's outcome and never stops the shard.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import models
from assets.geometry import fitness
from assets.geometry.estimators import ONE_PROCESS, Clip, EstimateError, SetupError, choose, provenance
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import SceneRecord, load, save, unknown
from assets.processes import processes
from assets.reuse import SUFFIX, key_of, mark_reusable, reusable, sha256_of

Progress = Callable[[int, int, str], None]

SUMMARY_FIELDS = ("timestamps", "points", "confidence", "is_agent", *fitness.FIELDS)


# The link's own code decides a record too; how Dagster is told of it, how it is drawn and how it is judged do not.
BESIDE = ("asset.py", "view.py", "scene_page.py", "fitness.py")
CODE = [path for path in Path(__file__).parent.rglob("*.py") if path.name not in BESIDE]
# So do the networks that an estimator runs.
NETWORKS = {
    "foundation": [
        Path(models.__file__).parent / f"{name}.py"
        for name in ("pi3", "grounded_sam", "orient_anything", "online_prior", "pixels", "weights", "endpoint")
    ]
}


@dataclass(frozen=True)
class Job:
    """One clip's work, small enough to be sent to another process."""

    clip: Clip
    companions: tuple[tuple[str, str], ...]
    destination: Path
    parameters: GeometryParameters


def estimate_shard(
    raw_shard: Path,
    videos_shard: Path,
    out: Path,
    shard: str,
    parameters: GeometryParameters,
    workers: int = 1,
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Write one scene record per clip of a shard, and scenes.parquet, to ``out``.

    Records that are still valid are kept, whoever made them; files of clips that left the shard are removed.

    Args:
        raw_shard: folder with manifest.json and the raw files.
        videos_shard: folder with clips.parquet and frames/.
        out: folder of the records.
        shard: key of the shard, written to the table.
        parameters: how records are made.
        workers: processes; 1 works in this one.
        progress: called with (done, total, name of the clip).

    Raises:
        EstimateError: clips.parquet and the manifest disagree.
    """
    out.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(raw_shard, videos_shard, out, parameters)
    _remove_strangers(out, jobs)
    for done, (job, died) in enumerate(_run(jobs, workers), 1):
        if died:
            _save_death(job)
        progress(done, len(jobs), str(job.clip.row["name"]))
    _write_table([summary(job.destination, job.clip.row, shard, parameters) for job in jobs], out)


def estimate_clip(job: Job) -> None:
    """Make sure that a valid record of the clip lies at its destination."""
    row = job.clip.row
    chosen = choose(row, job.clip.companions, job.parameters)
    name, identity = (chosen[0], chosen[1].identity()) if chosen else ("none", "none")
    key = _key(job, name, identity)
    if reusable(job.destination, key):
        return
    try:
        if chosen is None:
            raise EstimateError(_unsupported(job))
        record = chosen[1].estimate(job.clip)
    except EstimateError as error:
        record = _refused(job, name, identity, str(error))
    except (SetupError, OSError, MemoryError):  # the machine's failure, not the clip's
        raise
    except Exception as error:  # a clip's failure is its outcome, and the shard goes on
        # Only the type: messages of libraries hold absolute paths, which must not reach a hashed file.
        record = _refused(job, name, identity, f"the estimator failed: {type(error).__name__}")
    save(record, job.destination)
    mark_reusable(job.destination, key)


def summary(path: Path, row: Mapping[str, Any], shard: str, parameters: GeometryParameters) -> dict[str, Any]:
    """The row of scenes.parquet of a saved record.

    ``parallax`` is the extent of the camera's path as share of the median depth of the points (NaN where unknown);
    the columns of fitness are those of ``fitness.judge``.
    """
    record = load(path, SUMMARY_FIELDS)
    known = record.provenance
    parallax = _parallax(record) if known["poses"] != "unknown" else float("nan")
    return {
        "clip": row["clip"],
        "shard": shard,
        "name": row["name"],
        "kind": row["kind"],
        "estimator": known["estimator"],
        "version": known["version"],
        "status": known["status"],
        "reason": known["reason"],
        "objects": len(record.names),
        "agents": int(record.is_agent.sum()),
        "frames": len(record.timestamps),
        "seconds": float(record.timestamps[-1] - record.timestamps[0]) if len(record.timestamps) else 0.0,
        "parallax": parallax,
        "metric": bool(known["metric"]),
        "poses": known["poses"],
        **fitness.judge(record, row, parallax, parameters.moving_share, parameters.fitness),
    }


def _jobs(raw_shard: Path, videos_shard: Path, out: Path, parameters: GeometryParameters) -> list[Job]:
    """Jobs of the clips of clips.parquet, in order of their identity."""
    import pyarrow.parquet as pq

    from assets.videos.shards import read_manifest

    manifest = {raw.clip: raw for raw in read_manifest(raw_shard)}
    rows = pq.read_table(videos_shard / "clips.parquet").to_pylist()
    jobs = []
    for row in sorted(rows, key=lambda row: row["clip"]):
        raw = manifest.get(row["clip"])
        if raw is None:
            raise EstimateError(f"{videos_shard / 'clips.parquet'}: clip {row['clip']} is not in the shard's manifest")
        frames = videos_shard / "frames" / f"{raw.clip}.safetensors"
        companions = {role: raw.companion_path(raw_shard, role) for role in sorted(raw.companions)}
        jobs.append(
            Job(
                Clip(row, raw.path(raw_shard), companions, frames if frames.exists() else None),
                tuple((role, known["sha256"]) for role, known in sorted(raw.companions.items())),
                out / f"{raw.clip}.safetensors",
                parameters,
            )
        )
    return jobs


def _unsupported(job: Job) -> str:
    """Why no estimator is meant for the clip."""
    names = job.parameters.estimators
    reason = f"no estimator of {', '.join(names)} supports {job.clip.row['kind']} clips"
    if "foundation" in names and not job.parameters.foundation.given:
        reason += "; foundation has no weights, name them under geometry.foundation"
    return reason


def _key(job: Job, name: str, identity: str) -> str:
    """What the record was made from; another key means another record."""
    frames = job.clip.frames_file
    parts = {
        "clip": job.clip.row["clip"],
        "companions": job.companions,
        "frames": None if frames is None else sha256_of(frames),
        "estimator": identity,
        "parameters": job.parameters.deciding(),
    }
    return key_of(parts, [*CODE, *NETWORKS.get(name, ())])


def _refused(job: Job, name: str, identity: str, reason: str) -> SceneRecord:
    """A record without any geometry, which still says when the frames were and why there is no more."""
    try:
        sampled = job.clip.sampled
        times, size = sampled["timestamps"], list(sampled["frames"].shape[1:3])
    except (EstimateError, KeyError):
        times, size = np.zeros(0), [0, 0]
    known = provenance(name, identity, job.parameters, "refused", reason, frame_size=size)
    return unknown(times, provenance=known)


def _save_death(job: Job) -> None:
    """The outcome of a clip that takes its process down; not marked reusable, so a changed shard tries it again."""
    save(_refused(job, "none", "none", "the estimator's process died"), job.destination)


def _run(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, bool]]:
    """Do the jobs and yield each with whether its process died.

    A native crash takes a whole pool of processes with it and does not say who caused it; what was not done by then is
    done again, each clip in a process of its own.
    """
    if workers <= 1:
        for job in jobs:
            estimate_clip(job)
            yield job, False
        return
    alone = [job for job in jobs if _estimator(job) in ONE_PROCESS]
    yield from _run_in_processes([job for job in jobs if _estimator(job) not in ONE_PROCESS], workers)
    yield from _run_in_processes(alone, 1)


def _estimator(job: Job) -> str | None:
    chosen = choose(job.clip.row, job.clip.companions, job.parameters)
    return chosen[0] if chosen else None


def _run_in_processes(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, bool]]:
    """As ``_run``, with as many processes as are given; a failure that is no clip's drops the clips that wait."""
    if not jobs:
        return
    left = dict(enumerate(jobs))
    with processes(workers) as pool:
        futures = {pool.submit(estimate_clip, job): i for i, job in left.items()}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                continue
            if error is not None:
                pool.shutdown(cancel_futures=True)
                raise error
            yield left.pop(futures[future]), False
    for job in left.values():
        with processes(1) as pool:
            error = pool.submit(estimate_clip, job).exception()
        if error is not None and not isinstance(error, BrokenProcessPool):
            raise error
        yield job, error is not None


def _remove_strangers(out: Path, jobs: Sequence[Job]) -> None:
    """Remove what no clip of the shard owns, such as the temporary file of a killed run."""
    owned = {job.destination.name for job in jobs} | {"scenes.parquet"}
    for path in out.iterdir():
        if path.name.removesuffix(SUFFIX) not in owned and path.is_file():
            path.unlink()


def _parallax(record: SceneRecord) -> float:
    positions = record.world_from_camera[:, :3, 3].astype(float)
    depths = record.points[..., 2][record.confidence > 0].astype(float)
    if not len(depths) or not np.isfinite(positions).all():
        return float("nan")
    return round(float(np.linalg.norm(np.ptp(positions, axis=0)) / np.median(depths)), 4)


def _write_table(rows: list[dict[str, Any]], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.string()) for name in ("clip", "shard", "name", "kind", "estimator", "version", "status", "reason")]
        + [(name, pa.int64()) for name in ("objects", "moving", "agents", "frames")]
        + [("seconds", pa.float64()), ("parallax", pa.float64()), ("metric", pa.bool_()), ("poses", pa.string())]
        + [(name, pa.float64()) for name in ("smallest_share", "largest_share", "mount_share")]
        + [("fit", pa.bool_()), ("unfit", pa.string())]
    )
    path = out / "scenes.parquet"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema), temporary, compression="zstd")
    os.replace(temporary, path)
