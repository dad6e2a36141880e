"""The checkpoint that a report is read against: the champion, or whichever came before."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from assets.benchmark.comparison import Scores, compare, why_not_comparable

DECIMALS = 6


@dataclass(frozen=True)
class Baseline:
    """Another checkpoint's answers to the bench.

    Attributes:
        name: what the report calls it, for example "the champion, version 3".
        scores: its answers.
    """

    name: str
    scores: Scores


def placed(baseline: Baseline, table: pa.Table, bench: str, right: np.ndarray) -> tuple[np.ndarray | None, str | None]:
    """Its outcomes in the order of the report's questions.

    Args:
        baseline: whose answers.
        table: (n rows) the report's questions.
        bench: sha256 of their file.
        right: (n,) bool, the report's own outcomes.

    Returns:
        (n,) bool and None; or None and why the two cannot be compared, in one line.
    """
    ids, clips, quads, answers = (
        np.array(table[name].to_pylist(), dtype=str) for name in ("qa_id", "clip", "quad", "answer")
    )
    order = np.argsort(ids, kind="stable")
    columns = (column[order] for column in (ids, clips, answers, right, quads, np.zeros(len(ids), bool)))
    if reason := why_not_comparable(Scores(bench, *columns), baseline.scores):
        return None, reason
    outcomes = np.empty(len(ids), bool)
    outcomes[order] = baseline.scores.right
    return outcomes, None


def compared(baseline: Baseline, right: np.ndarray, before: np.ndarray, clips: np.ndarray) -> dict[str, Any]:
    """What the report says of the two.

    Args:
        baseline: whose name is given.
        right: (n,) bool, outcomes of the report's checkpoint.
        before: (n,) bool, outcomes of the baseline.
        clips: (n,) clip of each question.
    """
    found = compare(right, before, clips)
    gain = found.difference
    return {
        "name": baseline.name,
        "accuracy": round(float(before.mean()), DECIMALS),
        "difference": {"value": gain.value, "ci95": [gain.low, gain.high], "n": gain.n, "clips": gain.clips},
        "gained": found.only_first,
        "lost": found.only_second,
        "p_value": float(f"{found.p_value:.6g}"),
        "cohens_g": round(found.cohens_g, DECIMALS),
    }
