"""How a clip's things are pointed at: by a name where it is clear which one is meant, else by a mark on the video."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

CAMERA = "camera"
NAMELESS = "object"
# Characters that mean something to a prompt, to a tokenizer or to the "Front|Left" notation.
_FORBIDDEN = frozenset("<>|{}[]")
# Characters that end a part of a sentence.
_SEPARATORS = frozenset(",;:?!")
_RUNNING_NUMBER = re.compile(r"(?: [0-9]+)+$")
# Words that stand between two targets in a question: a name that holds one does not show where it ends.
JOINERS = (" and ", " to ")


def printable_name(name: str) -> str:
    """A name as one line of printable characters that cannot be taken for anything else; it may be empty."""
    kept = "".join(
        " " if char.isspace() or char in _SEPARATORS else char
        for char in unicodedata.normalize("NFKC", name)
        if char.isspace() or not (unicodedata.category(char).startswith("C") or char in _FORBIDDEN)
    )
    return " ".join(kept.split()).rstrip(" .")


def unnumbered(name: str) -> str:
    """A name without the running number that tells equal names apart: nobody who watches a video can know it."""
    plain = _RUNNING_NUMBER.sub("", name)
    return NAMELESS if not plain or plain.isdecimal() else plain


def pointed(name: str, mark: int) -> str:
    """How a text points at a thing: "red car", or "car marked 2" where it has a mark (0: none)."""
    return f"{unnumbered(name)} marked {mark}" if mark else unnumbered(name)


def marks_of(names: Sequence[str], boxes: np.ndarray) -> list[int]:
    """Which things of a clip carry which number on its video.

    A name points at a thing if, without its running number, its words are not part of another thing's name nor the
    camera's, and it shows where it ends. The others are numbered from 1, in the order of a hash of where they are
    seen: objects come the longest seen first, and what is seen long tends to be slow, which a number must not tell.

    Args:
        names: N names as a record gives them; they may hold anything.
        boxes: (N, T, 4) as they are stored.

    Returns:
        N marks; 0 where the name points.
    """
    plain = [f" {unnumbered(printable_name(name)).casefold()} " for name in names]
    everything = [*plain, f" {CAMERA} "]
    unclear = [
        index
        for index, name in enumerate(plain)
        if sum(name in other for other in everything) > 1 or any(word in name for word in JOINERS)
    ]
    order = sorted(unclear, key=lambda index: hashlib.sha256(boxes[index : index + 1].tobytes()).digest())
    marks = [0] * len(plain)
    for number, index in enumerate(order, start=1):
        marks[index] = number
    return marks
