"""What the readers of the blind audit see: questions, their four options, and the words in both."""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from pandas import DataFrame

LETTERS = "ABCD"
_STATES = re.compile(r"\(\d+\)\s*([^()]+?)\s*\.?\s*(?=\(\d+\)|$)")
_WORDS = re.compile(r"(?P<time>\d+(?:\.\d+)?)s\b|(?P<number>\d+(?:\.\d+)?)|[^\W\d_]+")
_NUMBER_BUCKET = 50


@dataclass(frozen=True)
class Texts:
    """n questions as a reader sees them.

    ``kinds`` (n,) types, ``questions`` (n,) texts, ``options`` n tuples of four texts, ``keyed`` (n,) index of the
    right one.
    """

    kinds: np.ndarray
    questions: list[str]
    options: list[tuple[str, str, str, str]]
    keyed: np.ndarray

    @classmethod
    def of(cls, table: DataFrame) -> "Texts":
        """Take the columns type, question, options and answer of a checked table."""
        return cls(
            table["type"].to_numpy(str),
            list(table["question"]),
            [tuple(options) for options in table["options"]],
            np.array([LETTERS.index(letter) for letter in table["answer"]]),
        )

    def __len__(self) -> int:
        return len(self.questions)


def hashed(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little") / 2**48


def distinct(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the different texts, in order of appearance, and which of them each text is, (n,)."""
    places: dict[str, int] = {}
    which = np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64)
    return list(places), which


@lru_cache(maxsize=2**17)
def states_of(option: str) -> tuple[str, ...]:
    """Split "(1) Front. (2) Front|Left." into its states; an option without numbers is one state."""
    return tuple(_STATES.findall(option)) or (option.strip(),)


def question_words(question: str) -> list[str]:
    """Words of a question in lower case.

    A time becomes its whole seconds and its tenths (which can betray how a clip was sampled), and every time after the
    first also how long after the first it is, in half seconds. Numbers of pixels become fifties.
    """
    words, first = [], None
    for match in _WORDS.finditer(question.lower()):
        if match["time"]:
            time = float(match["time"])
            words += [f"{int(time)}s", f".{int(10 * time + 0.5) % 10}"]
            if first is not None:
                words.append(f"{round(2 * (time - first)) / 2:+g}s")
            first = time if first is None else first
        elif match["number"]:
            number = float(match["number"])
            words.append(
                f"{number:g}" if number < _NUMBER_BUCKET else f"#{number // _NUMBER_BUCKET * _NUMBER_BUCKET:g}"
            )
        else:
            words.append(match[0])
    return words


def question_grams(question: str) -> list[str]:
    """Words of a question and the pairs of neighbours among them."""
    words = question_words(question)
    return [*words, *(" ".join(two) for two in pairwise(words))]


def option_words(option: str) -> list[str]:
    """States of an option, each as one word; the words themselves where it has no numbered states."""
    states = states_of(option)
    return list(states) if _STATES.search(option) else question_words(option)
