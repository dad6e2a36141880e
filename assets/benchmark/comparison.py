"""Two checkpoints on the same rows: how much better one is, and how sure that is."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.benchmark.statistics import Estimate, PairedDifference
from assets.geometry.scene_page import plain

CONFIDENCE = 0.95
MOST_ROWS = 2_000_000


class ComparisonError(ValueError):
    """The answers cannot be read, or two sets of answers are not to the same questions."""


@dataclass(frozen=True)
class Answers:
    """What one checkpoint got right of one benchmark, sorted by question.

    Attributes:
        bench: sha256 of the file of questions.
        qa_id: (n,) identity of each question.
        clip: (n,) its clip.
        answer: (n,) its right answer.
        right: (n,) bool, whether the checkpoint gave it.
    """

    bench: str
    qa_id: np.ndarray
    clip: np.ndarray
    answer: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.qa_id)


@dataclass(frozen=True)
class Scores(Answers):
    """Answers to the project's sealed bench, with the control.

    Attributes:
        quad: (n,) the four questions that share four options.
        blind_right: (n,) bool, whether the same checkpoint is right without the video.
    """

    quad: np.ndarray
    blind_right: np.ndarray


def read_answers(path: Path, bench: str) -> Answers:
    """Read answers with the columns qa_id, clip, answer, right.

    Args:
        path: Parquet file.
        bench: sha256 of the file of questions.

    Raises:
        ComparisonError: it is no such file, is empty, or names a question twice.
    """
    return Answers(bench, **_columns(path, ("qa_id", "clip", "answer"), ("right",)))


def read_scores(path: Path, bench: str) -> Scores:
    """Read the `predictions.parquet` of a report; arguments and errors as `read_answers`."""
    return Scores(bench, **_columns(path, ("qa_id", "clip", "answer", "quad"), ("right", "blind_right")))


def _columns(path: Path, texts: tuple[str, ...], marks: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of text and of marks by name, sorted by question."""
    again = "evaluate the checkpoint again"
    try:
        rows = pq.ParquetFile(path).metadata.num_rows
        if not 0 < rows <= MOST_ROWS:
            raise ComparisonError(f"{path}: {rows} rows, not 1 to {MOST_ROWS}; {again}")
        table = pq.read_table(path, columns=[*texts, *marks])
        if any(table[name].null_count for name in (*texts, *marks)):
            raise ComparisonError(f"{path}: a question, clip, answer or mark is missing; {again}")
        columns = {name: table[name].cast(pa.string()).to_numpy().astype(str) for name in texts}
        columns |= {name: table[name].cast(pa.bool_()).to_numpy() for name in marks}
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ComparisonError(f"{path}: no table of answers ({type(error).__name__}); {again}") from error
    order = np.argsort(columns["qa_id"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    ids = columns["qa_id"]
    if len(twice := ids[1:][ids[1:] == ids[:-1]]):
        raise ComparisonError(f"{path}: question {str(twice[0])[:80]!r} stands twice; {again}")
    return columns


def why_not_comparable(first: Answers, second: Answers) -> str | None:
    """None where both answered the same questions of the same release; else why not, in one line."""
    if first.bench != second.bench:
        return f"one was measured on bench {first.bench[:12]}, the other on bench {second.bench[:12]}"
    if not np.array_equal(first.qa_id, second.qa_id):
        shared = len(np.intersect1d(first.qa_id, second.qa_id))
        return f"one answered {len(first)} questions, the other {len(second)}, of which {shared} are the same"
    changed = (first.answer != second.answer) | (first.clip != second.clip)
    if changed.any():
        return f"question {str(first.qa_id[int(np.argmax(changed))])[:80]!r} has another answer or clip in one of them"
    return None


@dataclass(frozen=True)
class Comparison:
    """How much better the first reader is than the second on the same questions.

    The test is McNemar's for questions that come in clips: the mean of the paired differences over its standard error
    between clips, Student's t, and never surer than for independent questions (`PairedDifference`).

    Attributes:
        difference: of their shares of right answers, with its 95 % interval.
        only_first: questions that only the first had right, or had nearer.
        only_second: questions that only the second had right, or had nearer.
        p_better: one-sided, against "the first is not better".
        p_worse: one-sided, against "the first is not worse".
        cohens_g: effect size: the first's share of the questions on which they differ, less one half (J. Cohen,
            Statistical Power Analysis, 1988: 0.05 small, 0.15 medium, 0.25 large); 0 where they never differ.
    """

    difference: Estimate
    only_first: int
    only_second: int
    p_better: float
    p_worse: float
    cohens_g: float

    @property
    def p_value(self) -> float:
        """Two-sided."""
        return min(1.0, 2 * min(self.p_better, self.p_worse))


def compare(first: np.ndarray, second: np.ndarray, clips: np.ndarray) -> Comparison:
    """Compare two readers of the same questions.

    Args:
        first: (n,) what each answer of the first reader is worth: whether it is right, or for a number 0..1.
        second: (n,) the same of the second.
        clips: (n,) clip of each question.
    """
    gain = np.asarray(first, float) - np.asarray(second, float)
    clip_of = np.unique(np.asarray(clips, dtype=str), return_inverse=True)[1]
    paired = PairedDifference.of(gain, clip_of)
    only_first, only_second = int(np.sum(gain > 0)), int(np.sum(gain < 0))
    differing = only_first + only_second
    return Comparison(
        paired.estimate(CONFIDENCE),
        only_first,
        only_second,
        paired.p_above(),
        paired.p_below(),
        only_first / differing - 0.5 if differing else 0.0,
    )


# Folders of `dsr evaluate` ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What one reader was asked of a published benchmark.

    Attributes:
        reader: its name.
        suite: the benchmark's name, and the version of its reading.
        way: of asking, in words.
        blind: without the videos.
        checkpoint: DVC hash of what was asked, where it was the workspace's own checkpoint.
        answers: what each is worth, as `Answers.right`; for a number 0..1. Only questions that were asked.
        videos: (n,) the publisher's name of each question's video.
    """

    reader: str
    suite: str
    way: str
    blind: bool
    checkpoint: str | None
    answers: Answers
    videos: np.ndarray


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `dsr evaluate` wrote; rotations other than the published order are left out.

    Raises:
        ComparisonError: it is no such folder, or nothing was asked.
    """
    folder, again = Path(folder), "name a folder that `dsr evaluate` wrote"
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        suite, protocol = metrics["suite"], metrics["protocol"]
        head = (
            plain(metrics["reader"]["name"]),
            plain(f"{suite['name']} as read by version {suite['version']}"),
            plain(protocol["name"]),
            bool(protocol["blind"]),
            metrics["identity"]["checkpoint"],
        )
        columns = ["item_id", "clip", "answer", "score", "video"]
        chosen = [("rotation", "=", 0), ("status", "=", "asked")]
        table = pq.read_table(folder / "predictions.parquet", columns=columns, filters=chosen).sort_by("item_id")
        texts = [
            table[name].cast(pa.string()).to_numpy().astype(str) for name in ("item_id", "clip", "answer", "video")
        ]
        scores = table["score"].cast(pa.float64()).to_numpy()
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise ComparisonError(f"{folder}: no evaluation can be read ({type(error).__name__}); {again}") from error
    if not len(table) or not ((scores >= 0) & (scores <= 1)).all():
        raise ComparisonError(f"{folder}: no question was asked, or one has no score; {again}")
    *given, videos = texts
    return Evaluation(*head, Answers(str(suite["sha256"]), *given, scores), videos)


def read_general(folder: Path, checkpoint: str) -> Answers:
    """Read a checkpoint's answers to a benchmark of general understanding, as a promotion weighs them.

    Args:
        folder: that `dsr evaluate` wrote.
        checkpoint: DVC hash of the checkpoint that is to be judged.

    Returns:
        The answers; `bench` stands for the published file, the version of its reading and the way of asking.

    Raises:
        ComparisonError: as `read_evaluation`, or another checkpoint was asked, or blind, or for numbers.
    """
    found = read_evaluation(folder)
    if found.checkpoint != checkpoint:
        asked = str(found.checkpoint)[:12] if found.checkpoint else "another model"
        raise ComparisonError(
            f"{folder}: {asked} was asked, not the judged checkpoint {checkpoint[:12]}; "
            "run `dsr evaluate … --model data/checkpoint` again"
        )
    if found.blind:
        raise ComparisonError(f"{folder}: asked without the videos; evaluate without --blind")
    worth = found.answers.right
    if ((worth > 0) & (worth < 1)).any():
        raise ComparisonError(f"{folder}: numbers are neither right nor wrong; choose a benchmark with options alone")
    parts = [found.answers.bench, found.suite, found.way]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return replace(found.answers, bench=digest, right=worth == 1)


def write_answers(path: Path, answers: Answers) -> None:
    """Write answers as `read_answers` reads them."""
    columns = {name: getattr(answers, name) for name in ("qa_id", "clip", "answer", "right")}
    pq.write_table(pa.table(columns), path, compression="zstd")


def compare_evaluations(first: Path, second: Path) -> dict[str, Any]:
    """Compare two readers of one published benchmark, question by question.

    Args:
        first: folder of `dsr evaluate`.
        second: another of the same benchmark; asked in another way, or without the videos, if that is the comparison.

    Returns:
        Names, ways and shares of both, the difference of the first less the second with its interval, its p value and
        its effect size.

    Raises:
        ComparisonError: a folder cannot be read, or they hold answers to different questions.
    """
    both = [read_evaluation(folder) for folder in (first, second)]
    if len({one.suite for one in both}) > 1:
        raise ComparisonError(
            f"{first} is of {both[0].suite}, {second} of {both[1].suite}; evaluate both on one benchmark"
        )
    answers = [one.answers for one in both]
    if len({one.blind for one in both}) > 1:
        # Who sees no video has no clips, only the names of their videos.
        answers = [replace(one.answers, clip=one.videos) for one in both]
    if why := why_not_comparable(*answers):
        raise ComparisonError(f"{first} and {second}: {why}; evaluate both on the same file and clips")
    found = compare(answers[0].right, answers[1].right, answers[0].clip)
    gain = found.difference
    return {
        "suite": both[0].suite,
        "readers": [
            {
                "name": one.reader,
                "way": f"{one.way}{', blind' if one.blind else ''}",
                "accuracy": float(mine.right.mean()),
            }
            for one, mine in zip(both, answers, strict=True)
        ],
        "difference": gain.value,
        "ci95": [gain.low, gain.high],
        "n": gain.n,
        "clips": gain.clips,
        "only_first": found.only_first,
        "only_second": found.only_second,
        "p_value": found.p_value,
        "cohens_g": found.cohens_g,
    }


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """A comparison for a terminal."""
    low, high = found["ci95"]
    size = abs(found["cohens_g"])
    word = next(
        name for least, name in ((0.25, "large"), (0.15, "medium"), (0.05, "small"), (0, "none")) if size >= least
    )
    lines = [f"{one['name']} ({one['way']}): {one['accuracy']:.1%}" for one in found["readers"]]
    return [
        *lines,
        f"difference {100 * found['difference']:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, "
        f"on {found['n']} questions of {found['clips']} clips",
        f"p = {found['p_value']:.2g} (two-sided, paired by question, clips as what is independent)",
        f"effect size: Cohen's g {found['cohens_g']:+.2f} ({word}); where they differ the first is ahead on "
        f"{found['only_first']} questions, the second on {found['only_second']}",
    ]
