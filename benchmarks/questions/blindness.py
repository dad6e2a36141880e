"""How much readers that never see a video make of our questions, and of the same questions built the usual way."""

from __future__ import annotations

import numpy as np
import pandas as pd

from assets.questions.row import NON_TEMPLATE
from benchmarks.figure import Figure
from benchmarks.questions.pool import Pool
from benchmarks.questions.reference_style import reference_style
from validations.blind import blind_audit
from validations.blind_text import states_of

SEED = 20_251_223


def of_sample_world(pool: Pool) -> dict[str, Figure]:
    """Figures of the sample world's pool."""
    rows = pd.DataFrame(pool.questions)
    audit = _audit(rows)
    best = audit.best()
    worst = audit.worst_type()
    templates = [row for row in pool.questions if row["type"] != NON_TEMPLATE]
    easy = _audit(pd.DataFrame(reference_style(templates, SEED))).best()
    how = f"best of the text-only readers ({best.reader}) on {best.n} held-out of {len(rows)} rows, {_interval(best)}"
    return {
        "blind_accuracy": Figure(best.accuracy, 0.28, "lower", "share", how),
        "blind_worst_type": Figure(
            worst.accuracy, 0.31, "lower", "share", f"{worst.type}, {worst.reader}, {worst.n} rows, {_interval(worst)}"
        ),
        "blind_accuracy_reference_style": Figure(
            easy.accuracy,
            0.85,
            "higher",
            "share",
            f"the same readers where wrong options are noise ({easy.reader}); predictions, built otherwise, left out",
        ),
        **_hardness(rows),
        "yield": Figure(
            len(rows) / len(pool.candidates), None, "higher", "share", "stable candidates that became questions"
        ),
    }


def of_real_logs(pool: Pool) -> dict[str, Figure]:
    """Figures of the pool of real logs."""
    rows = pd.DataFrame(pool.questions)
    best = _audit(rows).best()
    how = f"Argoverse 2 and KITTI, {best.reader} on {best.n} held-out of {len(rows)} rows, {_interval(best)}"
    return {
        "blind_accuracy_real": Figure(best.accuracy, 0.28, "lower", "share", how),
        "yield_real": Figure(
            len(rows) / len(pool.candidates), None, "higher", "share", "stable candidates that became questions"
        ),
    }


def _audit(rows: pd.DataFrame):
    training = rows["split"] == "train"
    return blind_audit(rows[training], rows[~training], seed=SEED)


def _interval(score) -> str:
    return f"95 % interval {score.low:.3f} to {score.high:.3f}"


def _hardness(rows: pd.DataFrame) -> dict[str, Figure]:
    """How near the wrong options are to the truth for somebody who sees the video."""
    distances, same = [], []
    for options, answer in zip(rows["options"], rows["answer"], strict=True):
        split = [states_of(option) for option in options]
        truth = split.pop("ABCD".index(answer))
        distances += [edit_distance(truth, wrong) / max(len(truth), len(wrong)) for wrong in split]
        same += [len(truth) == len(wrong) for wrong in split]
    return {
        "wrong_option_distance": Figure(
            float(np.mean(distances)), None, "lower", "share", "edits from the truth to a wrong option over its length"
        ),
        "wrong_option_same_states": Figure(
            float(np.mean(same)), None, "higher", "share", "wrong options with as many states as the truth"
        ),
    }


def edit_distance(one: list[str], other: list[str]) -> int:
    """Levenshtein's distance between two sequences of states."""
    previous = list(range(len(other) + 1))
    for row, state in enumerate(one, start=1):
        current = [row]
        for column, compared in enumerate(other, start=1):
            replaced = previous[column - 1] + (state != compared)
            current.append(min(previous[column] + 1, current[-1] + 1, replaced))
        previous = current
    return previous[-1]
