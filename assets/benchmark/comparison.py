"""Two checkpoints on the same rows: how much better one is, and how sure that is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.benchmark.statistics import Estimate, PairedDifference

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
        only_first: questions that only the first had right.
        only_second: questions that only the second had right.
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
        first: (n,) bool, whether the first reader was right.
        second: (n,) bool, whether the second was.
        clips: (n,) clip of each question.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    clip_of = np.unique(np.asarray(clips, dtype=str), return_inverse=True)[1]
    paired = PairedDifference.of(first.astype(float) - second, clip_of)
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    differing = only_first + only_second
    return Comparison(
        paired.estimate(CONFIDENCE),
        only_first,
        only_second,
        paired.p_above(),
        paired.p_below(),
        only_first / differing - 0.5 if differing else 0.0,
    )
