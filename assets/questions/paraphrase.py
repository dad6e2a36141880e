"""Template questions in a language model's words, taken only if they still say every part and no more."""

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from assets.questions.language import (
    FENCE,
    LONGEST_REPLY,
    Ask,
    Refusal,
    fit_text,
    mentions,
    printable,
)
from assets.questions.official_text import Parts, read_parts
from assets.questions.parameters import LanguageParameters
from assets.questions.programs import ProgramError
from assets.questions.wording import answer_text

if TYPE_CHECKING:
    from models.endpoint import Endpoint

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_WORD = re.compile(r"[a-z]+")
# Words that would tell an answer.
_HINTS = frozenset(
    """
    front forward forwards ahead behind back backward backwards rear left right above below up down upward downward
    under over toward towards away closer nearer farther further larger bigger greater smaller less more higher
    lower faster slower increase increases increasing decrease decreases decreasing constant constantly same equal
    stationary steady steadily accelerates decelerates approaches approaching recedes receding shrinks grows north
    south
    """.split()  # noqa: SIM905
)


def paraphrase(
    endpoint: "Endpoint", row: dict, names: Iterable[str], language: LanguageParameters
) -> tuple[str | None, list[Refusal]]:
    """Ask a template question in a model's words.

    Args:
        endpoint: where the model answers.
        row: a candidate row of a template type whose text points by names.
        names: what texts call all things of its clip, the camera too.
        language: whether the model may read back what our own reader cannot.

    Returns:
        The new text, or None; and what was refused.
    """
    refusals: list[Refusal] = []
    ask = Ask(endpoint, lambda reason, said: refusals.append(Refusal(row["clip"], reason, printable(said))))
    reply = ask(_REWORD, row["question"])
    if reply is None:
        return None, refusals
    try:
        text = fit_text(reply)
        _same_words(text, row["question"], names)
        _same_parts(text, row, ask, language)
    except ProgramError as error:
        ask.refuse(str(error), reply)
        return None, refusals
    return text, refusals


_REWORD = (
    "Reword the question. Keep its meaning, every name, every time, the viewpoint and the order of the things; say "
    "nothing about the answer. Reply with the reworded question alone."
)
_READ_BACK = (
    "Reply with a JSON object that says what a question asks: "
    '{"asks": one of "distance", "direction", "orientation", "speed", "compare speeds", "predict direction", '
    '"viewpoint": whose, "moves": whether the viewpoint moves along, "at": seconds at which it is frozen or null, '
    '"things": list of what is asked about in its order, "start": seconds or null, "end": seconds or null}.'
)
_ASKS = {
    "dis": "distance",
    "dir": "direction",
    "ori": "orientation",
    "spd": "speed",
    "spd_comp": "compare speeds",
    "dir_pred": "predict direction",
}


def _same_words(text: str, original: str, names: Iterable[str]) -> None:
    """Whether the names and times are the original's and no word tells an answer.

    Raises:
        ProgramError: they are not, or one does.
    """
    names = list(names)
    lost = set(mentions(original, names)) ^ set(mentions(text, names))
    if lost:
        raise ProgramError(f"loses or adds {printable(min(lost))!r}")
    if set(map(float, _NUMBER.findall(text))) != set(map(float, _NUMBER.findall(original))):
        raise ProgramError("changes a number")
    added = _HINTS & set(_WORD.findall(text.casefold())) - set(_WORD.findall(original.casefold()))
    if added:
        raise ProgramError(f"adds the word {min(added)!r}")


def _same_parts(text: str, row: dict, ask: Ask, language: LanguageParameters) -> None:
    """Whether a text says the parts of a row, read by our own reader, else by a second pass of the model.

    Raises:
        ProgramError: a part is lost, changed or unread.
    """
    # Only the questions are of interest; the reader wants four options of the type.
    options = [answer_text(row["states"])] * 4
    before, after = (read_parts(row["type"], question, options) for question in (row["question"], text))
    if not after.unread:
        if _parts(before, row["type"]) != _parts(after, row["type"]):
            raise ProgramError("says other parts than the question")
        return
    if not language.second_reading:
        part = min(after.unread)
        raise ProgramError(f"{part}: {printable(after.unread[part])}")
    reply = ask(_READ_BACK, text)
    if reply is None:
        raise ProgramError("could not be read back")
    fenced = FENCE.search(reply[:LONGEST_REPLY])
    try:
        read = json.loads(fenced[1] if fenced else reply[:LONGEST_REPLY])
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict) or read != _expected(row, before):
        raise ProgramError("reads back as another question")


def _parts(parts: Parts, kind: str) -> tuple:
    """What must stay: a distance has no order."""
    targets = [target.name.casefold() for target in parts.targets]
    targets = sorted(targets) if kind.endswith("_dis") else targets
    return parts.viewpoint_kind, parts.viewpoint.name.casefold(), parts.viewpoint_time, targets, parts.interval


def _expected(row: dict, parts: Parts) -> dict[str, Any]:
    start, end = parts.interval or (None, None)
    return {
        "asks": _ASKS[row["type"][4:]],
        "viewpoint": parts.viewpoint.name,
        "moves": parts.viewpoint_kind == "rel",
        "at": parts.viewpoint_time,
        "things": [target.name for target in parts.targets],
        "start": start,
        "end": end,
    }
