"""The text of questions and answers: one fixed wording per type, in the paper's style."""

from collections.abc import Sequence

from assets.geometry.marks import CAMERA, NAMELESS, pointed, printable_name, unnumbered

_WORDINGS = {
    "dis": "Between {start}s and {end}s, {view}, how does the distance between {former} and {latter} change?",
    "dir": "Between {start}s and {end}s, {view}, how does the direction of {former} to {latter} change?",
    "ori": "Between {start}s and {end}s, {view}, how does the orientation of {former} change?",
    "spd": "Between {start}s and {end}s, {view}, how does the speed of {former} change?",
    "spd_comp": "Between {start}s and {end}s, {view}, compare the speed between {former} and {latter}.",
    "dir_pred": "{View}, predict the moving direction of {former}.",
}


def clean_names(names: Sequence[str], length: int) -> list[str]:
    """Make object names fit for a table of questions: printable, one line, bounded, unique, never "camera".

    Args:
        names: names as a record gives them; they may hold anything.
        length: longest name, characters (a number that tells equal names apart comes on top).
    """
    return _distinct([_bounded(name, length) for name in names])


def pointing_names(names: Sequence[str], marks: Sequence[int], length: int) -> list[str]:
    """How the text of a question calls each thing of a clip that can be watched: "red car", "car marked 2".

    Args:
        names: names as a record gives them; they may hold anything.
        marks: the number that each carries on the video, 0 where its name points (see ``geometry.marks``).
        length: longest name, characters (the mark comes on top).
    """
    return _distinct([pointed(_bounded(name, length), mark) for name, mark in zip(names, marks, strict=True)])


def boxed_name(name: str, box: Sequence[float], when: str, length: int) -> str:
    """The paper's way to point at a thing: "car with initial bounding box coordinates [1,2,3,4]".

    Args:
        name: as a record gives it.
        box: (x1, y1, x2, y2) in pixels of the stored frame, whole numbers.
        when: "initial" or "final" of the interval, "" for a moment that the text names beside it.
        length: longest name, characters.
    """
    sides = ",".join(str(int(side)) for side in box)
    frame = f"{when} bounding" if when else "bounding"
    return f"{unnumbered(_bounded(name, length))} with {frame} box coordinates [{sides}]"


def _bounded(name: str, length: int) -> str:
    return printable_name(name)[:length].strip() or NAMELESS


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that were taken before, by the camera too."""
    taken, distinct = {CAMERA}, []
    for name in names:
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name} {number}"
        taken.add(unique.casefold())
        distinct.append(unique)
    return distinct


def question_text(
    family: str, viewpoint: str, moment: float | None, former: str, latter: str | None, start: float, end: float
) -> str:
    """Ask the question.

    Args:
        family: one of ``row.FAMILIES``.
        viewpoint: what points at the camera or the agent whose viewpoint it is.
        moment: time at which the viewpoint is frozen, s; None where it moves.
        former: what points at the first target.
        latter: what points at the second target, or None.
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
