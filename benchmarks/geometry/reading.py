"""What reading costs beside a bare decord read, whether it grows, and what a thousand damaged videos do to it."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from assets.videos import reader
from assets.videos.parameters import SampleWorldParameters, VideoParameters
from assets.videos.prepare import prepare_shard
from assets.videos.shards import VIDEO_SUFFIXES, ingest, read_manifest
from assets.videos.world import encode, render_shard
from benchmarks.figure import Figure

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
ROUNDS = 3
GENERATED, READ_BEFORE, READ_AFTER = 20, 100, 1000
MUTANTS, PER_SHARD, LARGEST_MUTANT = 1000, 100, 100_000
# Reading one video takes at most four native reads: packets, decord, then PyAV's two passes.
READS, STARTING_S = 4, 5.0
QUICK = VideoParameters(frames=8, max_pixels=20_000, timeout_s=5.0)
# Fields of ISO 14496-12, Matroska and AVI headers that decide sizes, counts, times and rotation.
HEADERS = (b"mvhd", b"tkhd", b"mdhd", b"stsd", b"avcC", b"stts", b"ctts", b"stsz", b"stsc", b"stco", b"stss", b"elst")
HEADERS += (b"ftyp", b"moov", b"mdat", b"avih", b"strh", b"strf", b"idx1", b"\x1aE\xdf\xa3", b"\x16T\xaek")


def figures() -> dict[str, Figure]:
    """Cost, growth and robustness of reading."""
    with tempfile.TemporaryDirectory(prefix="reading-") as folder:
        clips = _generated(Path(folder) / "clips", GENERATED, 128, 96, 24)
        return {**_cost(Path(folder)), **_growth(clips), **_mutants(clips, Path(folder))}


def _generated(folder: Path, count: int, width: int, height: int, frames: int) -> list[Path]:
    """Distinct videos of blocks that drift under grain, so that they compress like footage."""
    folder.mkdir()
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        wide = rng.integers(20, 230, (height // 8, width // 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        grain = rng.integers(0, 20, (4, height, width, 3), dtype=np.uint8)
        pictures = [wide[:, 2 * t % width :][:, :width] + grain[t % 4] for t in range(frames)]
        encode(folder / f"{number:02d}.mp4", np.stack(pictures), 15)
        paths.append(folder / f"{number:02d}.mp4")
    return paths


def _cost(folder: Path) -> dict[str, Figure]:
    """The whole path (probe, sample, read) against decord alone, alternating; best of some rounds for each clip."""
    real = sorted((REAL / "videos").glob("*")) if (REAL / "videos").is_dir() else []
    clips, parameters = real or _generated(folder / "footage", 2, 640, 360, 300), VideoParameters()
    whole, same, full = np.array([_times(path, parameters) for path in clips]).sum(axis=0).tolist()
    how = (
        f"seconds of probe + sample + read over decord alone (one thread, the same frames at the same size), summed "
        f"over {len(clips)} {'real' if real else 'generated'} clips, best of {ROUNDS} alternating rounds; "
        f"against decord's full-size frames {whole / full:.2f}"
    )
    return {"decode_cost": Figure(round(whole / same, 3), 1.25, "lower", "ratio", how)}


def _times(path: Path, parameters: VideoParameters) -> list[float]:
    """Best seconds of our read, of decord's at our size, and of decord's at full size."""
    import decord

    probed, frames, chosen = reader.read_clip(path, parameters.frames, parameters.max_pixels, parameters.timeout_s)
    indices, (height, width) = probed.indices[chosen], frames.shape[1:3]

    def ours() -> None:
        reader.read_clip(path, parameters.frames, parameters.max_pixels, parameters.timeout_s)

    def bare(**size: int) -> None:
        decord.VideoReader(str(path), num_threads=1, **size).get_batch(indices).asnumpy()

    best = [np.inf] * 3
    for _ in range(ROUNDS):
        for place, read in enumerate((ours, lambda: bare(width=width, height=height), bare)):
            begun = time.perf_counter()
            read()
            best[place] = min(best[place], time.perf_counter() - begun)
    return best


def _growth(clips: list[Path]) -> dict[str, Figure]:
    """Resident memory of this process and its decoder after a thousand reads, less that after a hundred."""
    resident = []
    for count in (READ_BEFORE, READ_AFTER - READ_BEFORE):
        for number in range(count):
            reader.read_clip(clips[number % len(clips)], QUICK.frames, QUICK.max_pixels, QUICK.timeout_s)
        resident.append(_resident_mb())
    how = (
        f"resident memory of reader and decoder after {READ_AFTER} clips less that after {READ_BEFORE}; "
        f"{len(clips)} distinct generated clips, read again and again"
    )
    return {"memory_growth_mb": Figure(round(max(0.0, resident[1] - resident[0]), 1), 50, "lower", "MB", how)}


def _resident_mb() -> float:
    """Resident memory of this process and its children in MB."""
    import psutil

    this = psutil.Process(os.getpid())
    return sum(process.memory_info().rss for process in (this, *this.children(recursive=True))) / 1e6


def _mutants(generated: list[Path], folder: Path) -> dict[str, Figure]:
    """A thousand damaged videos through `ingest` and `prepare_shard`: none lost, no run ended, none over time."""
    incoming, raw = folder / "mutants", folder / "raw"
    incoming.mkdir()
    sources = _sources(generated, folder)
    for number, (suffix, content) in enumerate(_distinct(sources)):
        (incoming / f"{number:04d}{suffix}").write_bytes(content)
    outcomes: Counter[str] = Counter()
    for shard in ingest(str(incoming), raw, set(), 0, PER_SHARD):
        outcomes += _prepared(raw / shard, folder / "out" / shard, shard)
    kinds = f"{MUTANTS} bit flips, truncations and header edits of {len(sources)} videos, seeded"
    limit = READS * QUICK.timeout_s + STARTING_S
    return {
        "mutants_lost": Figure(MUTANTS - outcomes["found"], 0, "lower", "videos", f"{kinds}; in neither table or both"),
        "mutants_crashed_run": Figure(
            outcomes["crashed"], 0, "lower", "runs", f"runs of {PER_SHARD} that ended early; {outcomes['kept']} kept"
        ),
        "mutants_over_time": Figure(
            outcomes["late"],
            0,
            "lower",
            "videos",
            f"longer than {READS} reads of {QUICK.timeout_s:g} s each, plus {STARTING_S:g} s to start decoders "
            f"({limit:g} s)",
        ),
    }


def _sources(generated: list[Path], folder: Path) -> list[Path]:
    """What is mutated: generated videos, one of the sample world, and real ones that are small."""
    render_shard("shard-000009", SampleWorldParameters(clips=2, width=96, height=72, seconds=3), folder / "world")
    world = [path for path in sorted((folder / "world").iterdir()) if path.suffix in VIDEO_SUFFIXES]
    real = [*(REAL / "bad_videos").glob("*"), *(REAL / "videos").glob("*")] if REAL.is_dir() else []
    small = [path for path in sorted(real) if 200 < path.stat().st_size <= LARGEST_MUTANT]
    return generated[:4] + world + small


def _distinct(sources: list[Path]) -> Iterator[tuple[str, bytes]]:
    """MUTANTS pairs of suffix and content, no two alike and none like its source."""
    contents = [path.read_bytes() for path in sources]
    rng, seen = np.random.default_rng(0), set(contents)
    while len(seen) < len(set(contents)) + MUTANTS:
        place = int(rng.integers(len(sources)))
        mutant = (_flipped, _cut, _edited)[int(rng.integers(3))](contents[place], rng)
        if mutant and mutant not in seen:
            seen.add(mutant)
            yield sources[place].suffix, mutant


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """Between one and a few hundred bits turned over, anywhere."""
    data = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(data), int(2 ** rng.uniform(0, 8)))
    np.bitwise_xor.at(data, places, (1 << rng.integers(0, 8, len(places))).astype(np.uint8))
    return data.tobytes()


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    """The beginning, the end, or all but a piece."""
    begin, end = sorted(rng.integers(0, len(content), 2))
    return (content[:end], content[begin:], content[:begin] + content[end:])[int(rng.integers(3))]


def _edited(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes of a header field replaced by extreme or random ones."""
    fields = [place for name in HEADERS if (place := content.find(name)) >= 0] or [0]
    place = int(rng.choice(fields)) + int(rng.integers(-4, 60))
    place = min(max(place, 0), len(content) - 1)
    new = (b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", rng.bytes(4))[int(rng.integers(4))]
    new = new[: int(rng.integers(1, 5))]
    return content[:place] + new + content[place + len(new) :]


def _prepared(raw: Path, out: Path, shard: str) -> Counter[str]:
    """One shard prepared: videos found in exactly one table, those that took too long, and whether the run ended."""
    outcomes: Counter[str] = Counter()
    last = time.monotonic()

    def progress(done: int, total: int, what: str) -> None:
        nonlocal last
        outcomes["late"] += time.monotonic() - last > READS * QUICK.timeout_s + STARTING_S
        last = time.monotonic()

    try:
        prepare_shard(raw, out, shard, QUICK, progress=progress)
    except Exception:
        outcomes["crashed"] += 1
        return outcomes
    kept, refused = (pq.read_table(out / f"{name}.parquet")["clip"].to_pylist() for name in ("clips", "quarantine"))
    times_listed = Counter(kept + refused)
    outcomes["found"] = sum(times_listed[clip.clip] == 1 for clip in read_manifest(raw))
    outcomes["kept"] = len(kept)
    return outcomes
