"""The text-only stage that stands in for pre-training where a model starts from nothing.

The answer to a question is stated in front of it, in the place that geometry tokens have later, and has to be
found among the question's four options. That teaches the language model what a pre-trained one knows: to tie
an option's content to its letter. Two things make it find that at all within minutes: every word of the prompt
is to be predicted, not the letter alone, which is what brings attention to copy; and short options come first,
for matching one word leads to matching a list of states.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.prompt import LETTERS

FIRST_SHARE = 0.03
"""Share of the questions, the shortest, that the stage begins with; at its end all take part."""
HOLD = 0.5
"""Share of the stage's steps spent on the shortest alone: as long as it takes to tie letters to options."""


def stated_question(options: Sequence[str], rng: np.random.Generator) -> tuple[str, list[str], str]:
    """A statement, the four options in a drawn order, and the letter of the one that is stated."""
    shuffled = [options[place] for place in rng.permutation(len(options))]
    truth = int(rng.integers(len(LETTERS)))
    return f"{shuffled[truth]}\n", shuffled, LETTERS[truth]


def reading_rows(options: Sequence[Sequence[str]]) -> np.ndarray:
    """Places of the questions, those with the shortest options first."""
    return np.argsort([sum(map(len, four)) for four in options], kind="stable")


def open_share(step: int, steps: int) -> float:
    """Share of the questions, counted from the shortest, that takes part at a step of the stage."""
    grown = max((step + 1) / steps - HOLD, 0.0) / (1 - HOLD)
    return FIRST_SHARE + (1 - FIRST_SHARE) * grown
