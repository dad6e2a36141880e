"""Whether something a model was trained on comes back in what it is tested on.

Five things may cross the wall between splits: the clip, the source video it was cut from, footage that two clips
share, a quad whose four questions give each other's answers away, and a question itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

CROSSING = {"clip": "clip", "videoID": "source video", "footage": "footage", "quad": "quad", "qa_id": "question"}
LETTERS = "ABCD"


@dataclass(frozen=True)
class Leak:
    """One thing that lies in more than one split.

    Attributes:
        kind: "clip", "source video", "footage", "quad" or "question".
        identity: which one.
        splits: the splits it lies in, sorted.
    """

    kind: str
    identity: str
    splits: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.identity[:16]} lies in {' and '.join(self.splits)}"


def find_leaks(rows: pd.DataFrame, copies: Mapping[str, str] = MappingProxyType({})) -> list[Leak]:
    """Everything that lies in more than one split.

    Args:
        rows: all splits concatenated, with the columns `split, clip, videoID, quad, qa_id`.
        copies: clip -> the clip whose footage it shows again.

    Returns:
        The leaks, sorted by kind and identity; empty where the wall holds.

    Raises:
        KeyError: a column is missing.
    """
    leaks = []
    shown_twice = {clip: clip for clip in copies.values()} | dict(copies)
    rows = rows.assign(footage=rows["clip"].map(shown_twice))
    for column, kind in CROSSING.items():
        pairs = rows[[column, "split"]].dropna().drop_duplicates()
        crossing = pairs[pairs.duplicated(column, keep=False)]
        for identity, splits in sorted(crossing.groupby(column)["split"]):
            leaks.append(Leak(kind, str(identity), tuple(sorted(splits))))
    return leaks


def repeated_share(train: pd.DataFrame, held_out: pd.DataFrame) -> float:
    """Share of held-out rows whose question, options and true option stand word for word in training.

    Such a row can be answered from memory without looking at its clip. With few templates and few names some
    repetition is natural, and harmless where training also holds the same question with other true options.

    Args:
        train: rows with the columns `question, options, answer`.
        held_out: the same columns.

    Returns:
        0..1; 0 for an empty table.
    """
    known = set(_said(train))
    said = _said(held_out)
    return sum(row in known for row in said) / len(said) if said else 0.0


def _said(rows: pd.DataFrame) -> list[tuple]:
    """Per row: question, options in any order, and the true option."""
    columns = zip(rows["question"], rows["options"], rows["answer"], strict=True)
    return [(question, tuple(sorted(options)), options[LETTERS.index(answer)]) for question, options, answer in columns]
