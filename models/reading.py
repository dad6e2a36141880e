"""The text-only stage that stands in for pre-training where a model starts from nothing.

In front of a question, in the place that geometry tokens have later, stands what they will say: the state at each
moment of the interval, one after the other, then silence. The model has to find the option that tells the same, which
teaches it what a pre-trained one knows, to compare a story with four tellings of it and to name one by its letter. So
that it also learns to bear with geometry tokens that err, some of the stated states are wrong; and short options come
first, for matching one state leads to matching a list of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.guide import states_of
from models.prompt import LETTERS

FIRST_SHARE = 0.05
"""Share of the questions, the shortest, that the stage begins with."""
HOLD, ALL = 0.1, 0.7
"""Shares of the stage's steps after which longer questions join, and after which all have."""
WRONG = 0.15
"""Share of the stated states that are wrong."""
LEAST_SHARE = 0.25
"""An interval fills at least this share of the moments."""


def stated_question(options: Sequence[str], moments: int, rng: np.random.Generator) -> tuple[list[str], list[str], str]:
    """What is stated at each moment ("" for nothing), the options in a drawn order, and the letter that fits."""
    shuffled = [options[place] for place in rng.permutation(len(options))]
    truth = int(rng.integers(len(LETTERS)))
    states = states_of(shuffled[truth])
    if moments == 0:
        return [], shuffled, LETTERS[truth]
    least = min(max(len(states), int(LEAST_SHARE * moments)), moments)
    length = int(rng.integers(least, moments + 1))
    told = _drawn_out(states, length, rng)
    others = sorted({state for option in shuffled for state in states_of(option)})
    wrong = rng.random(length) < WRONG
    told = [
        others[rng.integers(len(others))] if is_wrong else state for state, is_wrong in zip(told, wrong, strict=True)
    ]
    begin = int(rng.integers(moments - length + 1))
    return [""] * begin + told + [""] * (moments - length - begin), shuffled, LETTERS[truth]


def _drawn_out(states: list[str], length: int, rng: np.random.Generator) -> list[str]:
    """The states in their order over so many moments, each at least once; some are left out if there are too many."""
    if len(states) > length:
        states = [states[place] for place in np.sort(rng.choice(len(states), length, replace=False))]
    cuts = np.sort(rng.choice(np.arange(1, length), len(states) - 1, replace=False)) if len(states) > 1 else []
    runs = np.diff([0, *cuts, length])
    return [state for state, run in zip(states, runs, strict=True) for _ in range(run)]


def reading_rows(options: Sequence[Sequence[str]]) -> np.ndarray:
    """Places of the questions, those with the shortest options first."""
    return np.argsort([sum(map(len, four)) for four in options], kind="stable")


def open_share(step: int, steps: int) -> float:
    """Share of the questions, counted from the shortest, that takes part at a step of the stage."""
    grown = min(max((step + 1) / steps - HOLD, 0.0) / (ALL - HOLD), 1.0)
    return FIRST_SHARE + (1 - FIRST_SHARE) * grown
