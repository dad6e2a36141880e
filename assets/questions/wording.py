"""The text of questions and answers: one fixed wording per type, in the paper's style."""

import unicodedata
from collections.abc import Sequence

CAMERA = "camera"
# Characters that mean something to a prompt, to a tokenizer or to the "Front|Left" notation.
_FORBIDDEN = frozenset("<>|{}[]")

_WORDINGS = {
    "dis": "Between {start}s and {end}s, {view}, how does the distance between {former} and {latter} change?",
    "dir": "Between {start}s and {end}s, {view}, how does the direction of {former} to {latter} change?",
    "ori": "Between {start}s and {end}s, {view}, how does the orientation of {former} change?",
    "spd": "Between {start}s and {end}s, {view}, how does the speed of {former} change?",
    "spd_comp": "Between {start}s and {end}s, {view}, compare the speed between {former} and {latter}.",
    "dir_pred": "{View}, predict the moving direction of {former}.",
}


def clean_names(names: Sequence[str], length: int) -> list[str]:
    """Make object names fit for a question: printable, one line, bounded, unique, never "camera".

    Args:
        names: names as a record gives them; they may hold anything.
        length: longest name, characters (a number that tells equal names apart comes on top).
    """
    taken, cleaned = {CAMERA}, []
    for name in names:
        printable = "".join(
            " " if char.isspace() else char
            for char in unicodedata.normalize("NFKC", name)
            if char.isspace() or not (unicodedata.category(char).startswith("C") or char in _FORBIDDEN)
        )
        base = " ".join(printable.split())[:length].strip() or "object"
        unique, number = base, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{base} {number}"
        taken.add(unique.casefold())
        cleaned.append(unique)
    return cleaned


def question_text(
    family: str, viewpoint: str, moment: float | None, former: str, latter: str | None, start: float, end: float
) -> str:
    """Ask the question.

    Args:
        family: one of ``row.FAMILIES``.
        viewpoint: name of the camera or the agent whose viewpoint it is.
        moment: time at which the viewpoint is frozen, s; None where it moves.
        former: name of the first target.
        latter: name of the second target, or None.
        start: start of the interval, s.
        end: end of the interval, s.
    """
    view = (
        f"following the perspective of {viewpoint}"
        if moment is None
        else f"from the perspective of {viewpoint} at {moment:.1f}s"
    )
    return _WORDINGS[family].format(
        view=view,
        View=view[0].upper() + view[1:],
        former=former,
        latter=latter,
        start=f"{start:.1f}",
        end=f"{end:.1f}",
    )


def answer_text(states: Sequence[str]) -> str:
    """Number the merged states: "(1) Becomes larger. (2) Keep nearly constant."."""
    return " ".join(f"({number}) {state}." for number, state in enumerate(states, start=1))
