"""From a raw shard to clips: probed, sampled to frames with checked times, shown on contact sheets, or quarantined.

<out>/clips.parquet            one row per clip (CLIPS)
<out>/quarantine.parquet       one row per file that could not become one (QUARANTINE)
<out>/frames/<clip>.safetensors       frames (T, h, w, 3) u8 RGB upright; timestamps (T,) f64 s; indices (T,) i64
<out>/contact_sheets/<clip>.jpg
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.processes import processes
from assets.progress import Progress
from assets.reuse import key_of, mark_reusable, reusable
from assets.videos import reader
from assets.videos.contact_sheet import contact_sheet
from assets.videos.duplicates import perceptual_hash
from assets.videos.parameters import VideoParameters
from assets.videos.shards import RawClip, ShardError, read_manifest

CLIPS = pa.schema(
    [
        ("clip", pa.string()),
        ("shard", pa.string()),
        ("name", pa.string()),
        ("kind", pa.string()),
        # The rest is null for annotated logs, which have no pictures.
        ("reader", pa.string()),
        ("codec", pa.string()),
        ("width", pa.int32()),  # upright
        ("height", pa.int32()),
        ("rotation", pa.int32()),  # degrees clockwise, already applied
        ("seconds", pa.float64()),  # from the first frame's time to the last's
        ("frame_count", pa.int64()),
        ("variable_rate", pa.bool_()),
        ("sampled", pa.int32()),
        ("frame_width", pa.int32()),
        ("frame_height", pa.int32()),
        ("has_truth", pa.bool_()),
        ("cuts", pa.int32()),  # jumps of the colour histogram between neighbouring sampled frames
        ("damaged", pa.int32()),  # packets that could not be decoded
        ("phash", pa.string()),  # `duplicates.perceptual_hash` of the sampled frames
        # Known for logs too: whether no rule of VideoParameters speaks against the clip, and the rules that do.
        ("fit", pa.bool_()),
        ("unfit", pa.string()),
    ]
)
QUARANTINE = pa.schema(
    [
        ("clip", pa.string()),
        ("shard", pa.string()),
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)

# What decides a clip's result beside its bytes and the parameters.
CODE = [
    Path(__file__).with_name(f"{name}.py") for name in ("contact_sheet", "decoder", "duplicates", "prepare", "reader")
]

# What judges results without changing them, and how long making them may take.
JUDGING = {"min_seconds", "max_seconds", "max_cuts", "duplicate_bits", "timeout_s"}

# A cut's jump is at least this many times the median jump of its clip.
OUTSTANDING = 2.5


@dataclass(frozen=True)
class _Job:
    """One video to prepare."""

    clip: RawClip
    source: Path
    out: Path
    parameters: VideoParameters

    @property
    def frames(self) -> Path:
        return self.out / "frames" / f"{self.clip.clip}.safetensors"

    @property
    def sheet(self) -> Path:
        return self.out / "contact_sheets" / f"{self.clip.clip}.jpg"

    @property
    def key(self) -> str:
        """What the result was made from; another key means another result."""
        tuned = self.parameters.model_dump(mode="json", exclude=JUDGING)
        return key_of({"clip": self.clip.clip, "parameters": tuned}, CODE)


@dataclass(frozen=True)
class _Outcome:
    """What became of a video: the measured columns of its row, or a message for quarantine."""

    clip: str
    measured: dict | None = None
    message: str = ""


def prepare_shard(
    raw_shard: Path,
    out: Path,
    shard: str,
    parameters: VideoParameters,
    workers: int = 1,
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Prepare every entry of a raw shard; each ends in exactly one of the two tables.

    Clips whose frames and contact sheet are there, made by the same reader with the same parameters, are not read
    again; quarantined ones always are.

    Args:
        raw_shard: folder of the sealed shard.
        out: folder to fill; what no clip of the shard owns is removed from it.
        shard: shard key.
        parameters: of sampling.
        workers: processes; their number changes no byte.
        progress: told after each video.

    Raises:
        ShardError: the shard has no manifest, or bytes of a clip are missing.
    """
    clips = read_manifest(raw_shard)
    jobs = [_Job(clip, clip.path(raw_shard), out, parameters) for clip in clips if clip.kind == "video"]
    for job in jobs:
        if not job.source.is_file():
            raise ShardError(f"{job.source} ({job.clip.name!r}) is missing; restore the shard with `dvc checkout`")
    for folder in ("frames", "contact_sheets"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    outcomes = {job.clip.clip: _Outcome(job.clip.clip, found) for job in jobs if (found := _cached(job))}
    for job, outcome in _run([job for job in jobs if job.clip.clip not in outcomes], workers):
        outcomes[outcome.clip] = outcome
        progress(len(outcomes), len(jobs), job.clip.name)
    kept, refused = _tables(clips, outcomes, shard, parameters)
    _write(pa.Table.from_pylist(kept, CLIPS), out / "clips.parquet")
    _write(pa.Table.from_pylist(refused, QUARANTINE), out / "quarantine.parquet")
    _remove_strangers(out, [job for job in jobs if outcomes[job.clip.clip].measured])


def _run(jobs: list[_Job], workers: int) -> Iterator[tuple[_Job, _Outcome]]:
    """Prepare the jobs, as they get done."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, _prepare(job)
        return
    with processes(workers) as pool:
        futures = {pool.submit(_prepare, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _prepare(job: _Job) -> _Outcome:
    """Read one video and write its frames and contact sheet."""
    tuned = job.parameters
    try:
        probed, frames, chosen = reader.read_clip(job.source, tuned.frames, tuned.max_pixels, tuned.timeout_s)
    except reader.ReaderError as error:
        return _Outcome(job.clip.clip, message=str(error))
    measured = {
        "reader": probed.reader,
        "codec": probed.codec,
        "width": probed.width,
        "height": probed.height,
        "rotation": probed.rotation,
        "seconds": probed.seconds,
        "frame_count": len(probed.indices),
        "variable_rate": probed.variable_rate,
        "sampled": len(frames),
        "frame_width": frames.shape[2],
        "frame_height": frames.shape[1],
        "cuts": count_cuts(frames, tuned.cut_threshold),
        "damaged": probed.damaged,
        "phash": perceptual_hash(frames),
    }
    timestamps = probed.timestamps[chosen]
    _replace(job.sheet, contact_sheet(frames, timestamps, tuned.sheet_frames, tuned.sheet_bytes))
    _save_frames(job, frames, timestamps, probed.indices[chosen], measured)
    for result in (job.frames, job.sheet):
        mark_reusable(result, job.key)
    return _Outcome(job.clip.clip, measured)


def count_cuts(frames: np.ndarray, threshold: float) -> int:
    """Shot cuts between neighbouring frames: jumps of the colour histogram that stand out from the clip's usual ones.

    Args:
        frames: (T, h, w, 3) u8 RGB.
        threshold: share of the pixels that must change their bin of 8x8x8 colours.

    Returns:
        Number of jumps above the threshold and above OUTSTANDING times the clip's median jump, which a moving camera
        and few frames per second raise. A cut between two shots of like colours is not seen.
    """
    bins = (frames >> 5).astype(np.int32)
    flat = (bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2]).reshape(len(frames), -1)
    shares = np.stack([np.bincount(row, minlength=512) for row in flat]) / flat.shape[1]
    jumps = np.abs(np.diff(shares, axis=0)).sum(axis=1) / 2
    return int(((jumps > threshold) & (jumps > OUTSTANDING * np.median(jumps))).sum())


def _save_frames(job: _Job, frames: np.ndarray, timestamps: np.ndarray, indices: np.ndarray, measured: dict) -> None:
    """Write a clip's frames; the metadata holds the columns of its row."""
    from safetensors.numpy import save

    record = json.dumps({"measured": measured}, sort_keys=True)
    tensors = {"frames": frames, "timestamps": timestamps.astype(np.float64), "indices": indices.astype(np.int64)}
    _replace(job.frames, save(tensors, {"record": record}))


def _cached(job: _Job) -> dict | None:
    """The measured columns an earlier run left, if its files are whole and made from the same things."""
    from safetensors import safe_open

    if not (reusable(job.frames, job.key) and reusable(job.sheet, job.key)):
        return None
    with safe_open(str(job.frames), "np") as file:
        return json.loads(file.metadata()["record"])["measured"]


def unfit_for(measured: dict, parameters: VideoParameters) -> list[str]:
    """The columns of a clip's row that speak against it; none for an annotated log, of which nothing is measured."""
    if not measured:
        return []
    too_long_or_short = not parameters.min_seconds <= measured["seconds"] <= parameters.max_seconds
    return [*["seconds"] * too_long_or_short, *["cuts"] * (measured["cuts"] > parameters.max_cuts)]


def _tables(
    clips: list[RawClip], outcomes: dict[str, _Outcome], shard: str, parameters: VideoParameters
) -> tuple[list[dict], list[dict]]:
    """Rows of the two tables, by identity: kept and refused."""
    kept, refused = [], []
    for clip in sorted(clips, key=lambda clip: clip.clip):
        common = {"clip": clip.clip, "shard": shard, "name": clip.name}
        message = clip.reason if clip.kind == "unusable" else ""
        measured: dict | None = {}
        if clip.kind == "video":
            measured, message = outcomes[clip.clip].measured, outcomes[clip.clip].message
        if message:
            refused.append({**common, "bytes": clip.bytes, "reason": _reason(message), "message": message})
        else:
            truth = "truth" in clip.companions if clip.kind == "video" else None
            unfit = unfit_for(measured, parameters)
            verdict = {"fit": not unfit, "unfit": ", ".join(unfit)}
            kept.append({**common, "kind": clip.kind, "has_truth": truth, **measured, **verdict})
    return kept, refused


def _reason(message: str) -> str:
    """What is wrong, without the remedy: the part before the colon, and without details in brackets."""
    return message.partition(":")[0].partition(" (")[0].rstrip(".")


def _write(table: pa.Table, path: Path) -> None:
    """Write a table under a temporary name and rename it."""
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def _replace(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _remove_strangers(out: Path, kept: list[_Job]) -> None:
    """Remove frames and sheets that no clip of the shard owns, such as what a killed run left."""
    owned = {job.frames for job in kept} | {job.sheet for job in kept}
    for folder in ("frames", "contact_sheets"):
        for path in (out / folder).iterdir():
            if path not in owned and path.with_suffix("") not in owned:
                path.unlink()
