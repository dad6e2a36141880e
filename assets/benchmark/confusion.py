"""Which answer is mistaken for which: by letter, and by what the options say happens."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

MOST_NAMES = 9
OTHERS = "others"

# States of one row are alternatives to each other; those of different rows never stand in the same options.
VOCABULARIES = {
    "distance and speed": ("dis", "spd"),
    "which is faster": ("spd_comp",),
    "direction and orientation": ("dir", "ori", "dir_pred"),
}


@dataclass(frozen=True)
class Confusion:
    """Counts of (truth, answer).

    Attributes:
        names: what rows and columns stand for.
        counts: (K, K); a row is what is true, a column what the model said.
        questions: how many questions were counted.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    questions: int


def letter_confusion(truth: np.ndarray, chosen: np.ndarray, letters: tuple[str, ...]) -> Confusion:
    """Which letter was said where which was true.

    Args:
        truth: (n,) index of the right letter.
        chosen: (n,) index of the letter that was said.
        letters: their names.
    """
    counts = np.zeros((len(letters), len(letters)), int)
    np.add.at(counts, (truth, chosen), 1)
    return Confusion(tuple(letters), counts, len(truth))


def state_confusion(table: pa.Table, chosen: np.ndarray) -> dict[str, Confusion]:
    """Which state was said to hold at moments at which which state holds, for each vocabulary of states.

    A row knows the states of its right option only. Those of the others are known from its quad: each of its four
    options is the right one of one of its four questions. A question counts where the chosen option is as long as the
    right one; its states are then compared one by one in their order.

    Args:
        table: (n rows) questions with `type, quad, options, answer, states`.
        chosen: (n,) index of the chosen option.
    """
    rows = table.select(["type", "quad", "options", "answer", "states"]).to_pylist()
    meant = {(row["quad"], row["options"]["ABCD".index(row["answer"])]): row["states"] for row in rows}
    pairs: dict[str, Counter] = {name: Counter() for name in VOCABULARIES}
    questions = Counter()
    for row, choice in zip(rows, chosen, strict=True):
        vocabulary = _vocabulary(row["type"])
        true, said = row["states"] or [], meant.get((row["quad"], row["options"][choice])) or []
        if vocabulary and true and len(true) == len(said):
            pairs[vocabulary].update(zip(true, said, strict=True))
            questions[vocabulary] += 1
    return {name: _table(pairs[name], questions[name]) for name in VOCABULARIES if pairs[name]}


def _vocabulary(kind: str) -> str | None:
    family = kind.partition("_")[2] if kind.startswith(("abs_", "rel_")) else ""
    return next((name for name, families in VOCABULARIES.items() if family in families), None)


def _table(pairs: Counter, questions: int) -> Confusion:
    """The most frequent states each on their own, the rest together."""
    seen = Counter()
    for (true, said), count in pairs.items():
        seen[true] += count
        seen[said] += count
    ranked = sorted(seen, key=lambda name: (-seen[name], name))
    names = ranked if len(ranked) <= MOST_NAMES else [*ranked[: MOST_NAMES - 1], OTHERS]
    place = {name: min(i, len(names) - 1) for i, name in enumerate(ranked)}
    counts = np.zeros((len(names), len(names)), int)
    for (true, said), count in pairs.items():
        counts[place[true], place[said]] += count
    return Confusion(tuple(names), counts, questions)
