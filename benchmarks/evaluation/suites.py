"""Published questions from their files to the figures, with a tiny model; also killed on the way and begun again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from assets.benchmark.clips import ClipFolder
from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.predictions import PredictionCache, Reply
from assets.benchmark.readers import LETTERS_PROTOCOL, LocalReader, Manner, Places
from assets.benchmark.run import evaluate_suite
from assets.benchmark.suite import match_videos, read_suite
from assets.geometry.parameters import GeometryParameters
from assets.videos.parameters import VideoParameters
from assets.workspace import Workspace
from benchmarks.figure import Figure
from benchmarks.training.processes import SECONDS, SERVER, finish, start
from benchmarks.training.resume import BASE, write_release
from models.data import Question

VLM4D = Path("vlm4d", "real_mc_with_local_clips.json")
DSR_BENCH = Path("dsr", "benchmark_sample.parquet")
# What is to come out on the published samples.
ASKED, MISSING = 24, 46
VIDEOS = VideoParameters(frames=8, max_pixels=40_000)
# While this clip is asked about the evaluation is killed.
FATAL_CLIP = 3

Tell = Callable[[tuple[str, list[str]]], None]


def figures(workspace: Workspace) -> dict[str, Figure]:
    """`vlm4d_asked`, `dsr_bench_missing`, `evaluation_resumed_equal`."""
    data = workspace.root.parent / "shared" / "data"
    files = [data / "videos", data / "benchmarks" / VLM4D, data / "benchmarks" / DSR_BENCH]
    if gone := [path for path in files if not path.exists()]:
        how = f"no real data beside the repository ({gone[0].relative_to(data.parent.parent)})"
        return _figures(None, None, None, how, how, how)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        checkpoint = train_tiny(root)
        ways = {name: (root, data, checkpoint, root / name) for name in ("whole", "broken", "dsr")}
        asked = evaluate(*ways["whole"], "vlm4d", data / "benchmarks" / VLM4D)
        equal, told = resumed_equal(ways["whole"][-1], ways["broken"])
        missing = evaluate(*ways["dsr"], "dsr_bench", data / "benchmarks" / DSR_BENCH)
    counts = asked["counts"]
    said = f"of {asked['suite']['questions']} published questions on real clips, end to end with a tiny model"
    lacking = f"rows of the published sample, reported as missing for want of their clips; scored: {_scored(missing)}"
    return _figures(counts["asked"], missing["counts"].get("missing", 0) - _scored(missing), equal, said, lacking, told)


def _figures(asked: Any, missing: Any, equal: Any, *how: str) -> dict[str, Figure]:
    return {
        "vlm4d_asked": Figure(asked, ASKED, "higher", "rows", how[0]),
        "dsr_bench_missing": Figure(missing, MISSING, "higher", "rows", how[1]),
        "evaluation_resumed_equal": Figure(equal, 1, "higher", "of 1", how[2]),
    }


def _scored(metrics: dict[str, Any]) -> int:
    return metrics["counts"]["asked"]


def train_tiny(root: Path) -> Path:
    """A checkpoint of one step in each stage, on random clips."""
    from models.parameters import TrainingParameters
    from models.train import train

    write_release(root)
    places = (root / "splits", root / "videos", root / "geometry", root / "checkpoint", root / "work")
    train(*places, TrainingParameters.from_mapping({**BASE, "reading_steps": 1, "steps": 1}), lambda *_: None)
    return root / "checkpoint"


class Reporting:
    """A reader that tells what it is asked and what it has answered, clip by clip."""

    def __init__(self, reader: LocalReader, tell: Tell):
        self._reader, self._tell = reader, tell
        self.name, self.identity = reader.name, reader.identity
        self.channels, self.clips_at_once = reader.channels, reader.clips_at_once

    def answer(self, questions: Sequence[Question], places: Places, manner: Manner) -> list[Reply]:
        """As the reader itself."""
        names = [question.qa_id for question in questions]
        self._tell(("asked", names))
        replies = self._reader.answer(questions, places, manner)
        self._tell(("answered", names))
        return replies


def evaluate(
    root: Path, data: Path, checkpoint: Path, out: Path, suite: str, file: Path, tell: Tell = lambda told: None
) -> dict[str, Any]:
    """Ask a checkpoint a published benchmark by letters; answers are kept beside `out`, clips are shared."""
    read = read_suite(suite, file)
    clips = ClipFolder(root / "clips", VIDEOS, GeometryParameters(), with_geometry=True, workers=1)
    cache = PredictionCache(out.with_suffix(".sqlite"))
    asked = (Reporting(LocalReader(str(checkpoint)), tell), clips, Manner(LETTERS_PROTOCOL), cache, out)
    return evaluate_suite(read, match_videos(read, data / "videos"), *asked, BenchmarkParameters(), identity={})


def resumed_equal(whole: Path, broken: tuple[Path, Path, Path, Path]) -> tuple[int, str]:
    """Whether an evaluation that was killed and begun again writes what an unbroken one wrote, and asks nothing twice.

    Args:
        whole: folder that the unbroken one wrote.
        broken: what `evaluate` takes, for the other.

    Returns:
        1 or 0, and what was seen.

    Raises:
        RuntimeError: it ended before it could be killed.
    """
    reading, writing = SERVER.Pipe(duplex=False)
    (victim,) = start(_evaluate, (broken, writing), broken[0] / "log")
    writing.close()
    answered = _kill_at(victim, reading)
    after: list[str] = []
    evaluate(*broken, *_vlm4d(broken), lambda told: after.extend(told[1] if told[0] == "asked" else []))
    twice = answered & set(after)
    files = ("metrics.json", "predictions.parquet", "summary.md")
    same = all((whole / name).read_bytes() == (broken[3] / name).read_bytes() for name in files)
    told = (
        f"SIGKILL while clip {FATAL_CLIP} was asked about: {len(answered)} questions answered before, {len(after)} "
        f"asked after, {len(twice)} of them for the second time; {', '.join(files)} {'equal' if same else 'DIFFERENT'}"
    )
    return int(same and not twice and bool(answered)), told


def _vlm4d(places: tuple[Path, ...]) -> tuple[str, Path]:
    return "vlm4d", places[1] / "benchmarks" / VLM4D


def _evaluate(places: tuple[Path, Path, Path, Path], connection: Any) -> None:
    """In the process itself."""
    evaluate(*places, *_vlm4d(places), connection.send)


def _kill_at(victim: Any, told: Any) -> set[str]:
    """Kill the process when it is asked about its `FATAL_CLIP`th clip; the questions it had answered by then."""
    answered: set[str] = set()
    clips = 0
    try:
        while clips < FATAL_CLIP and told.poll(SECONDS):
            kind, names = told.recv()
            clips += kind == "asked"
            answered |= set(names) if kind == "answered" else set()
    except EOFError:
        clips = 0
    victim.kill()
    finish([victim])
    if clips < FATAL_CLIP:
        raise RuntimeError(f"the evaluation ended before clip {FATAL_CLIP}, at which it was to be killed")
    return answered
