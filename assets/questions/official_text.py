"""What the text of a question in the official wording says: viewpoint, targets, interval, states of every option.

Tolerant in wording and strict in meaning: other words for the same thing are read as our own, but words that fit no
part make that part unread. Every pattern is linear in the text, and the text is bounded before it is looked at.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

from assets.geometry.marks import JOINERS
from assets.questions.row import FAMILIES, LETTERS, NON_TEMPLATE
from assets.questions.states import DIRECTION_STATES, SPEED_STATES, TREND_STATES
from assets.questions.wording import CAMERA

LONGEST_TEXT = 4096
LONGEST_NAME = 128
MOST_STATES = 64
MOST_SPLITS = 16

_TIME = r"([0-9]{1,6}(?:\.[0-9]{1,6})?)"
_UNIT = r"(?:seconds|second|secs|sec|s)\b"
_NUMBER = r"(-?[0-9]{1,5}(?:\.[0-9]{1,4})?)"
_INTERVAL = re.compile(
    rf"\b(?:between|from|during) {_TIME} ?(?:{_UNIT})? ?(?:and|to|until|-|–) ?{_TIME} ?{_UNIT}", re.IGNORECASE
)
_VIEW = re.compile(r"\b(following|from) the (?:perspective|viewpoint|point of view) of ", re.IGNORECASE)
_MOMENT = re.compile(rf",? at (?:time )?(?:t ?= ?)?{_TIME} ?{_UNIT}$", re.IGNORECASE)
_BOX = re.compile(rf"\[ ?{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER} ?\]")
_BOXED = re.compile(
    r"(?P<name>[^\[\]]*?)"
    r"(?:(?:^|,? )(?:(?:with|at|in|having) )?(?:(?:the|its|an|a) )?(?:(?P<when>initial|final|first|last) )?"
    r"(?:bounding[ -]?box|bbox)(?: coordinates?| coords)?(?: of| at|:)?"
    r"|(?:^|,? )with (?:(?:the|its|an|a) )?(?:(?P<moment>initial|final|first|last) )?box"
    rf"|(?:^|,? )(?:at|in|with))? ?{_BOX.pattern}",
    re.IGNORECASE,
)
_MARKED = re.compile(r" marked [0-9]{1,3}$")
_CHANGE = re.compile(
    r" (?:change|changes|changed|vary|varies|evolve|evolves)(?: over (?:the |this )?(?:time|period|interval|clip))?$",
    re.IGNORECASE,
)
_UP_TO_COMMA = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])*")
_WHEN = {"initial": "initial", "first": "initial", "final": "final", "last": "final"}

_HOW = r"(?:how (?:does|did|do|has|is) )?"
_ASKS = {
    "dis": _HOW + "the distance (?:between|from) ",
    "dir": _HOW + "the direction of ",
    "ori": _HOW + "the orientation of ",
    "spd": _HOW + "the speed of ",
    "spd_comp": "(?:compare (?:the )?speeds? (?:between|of) |how (?:does|did|do) the speed of )",
    "dir_pred": "predict the (?:moving direction|(?:movement|motion) direction|direction of (?:motion|movement)) of ",
}
_ASKED = {
    "dis": "how a distance changes",
    "dir": "how a direction changes",
    "ori": "how an orientation changes",
    "spd": "how a speed changes",
    "spd_comp": "to compare two speeds",
    "dir_pred": "to predict a moving direction",
}
_JOINERS = {
    "dis": " (?:and|to) ",
    "dir": " (?:relative to|with respect to|to) ",
    "spd_comp": " (?:and|to|compared? (?:to|with)|with(?= that of | the speed of )) (?:that of |the speed of )?",
}

_NUMBERING = re.compile(r"\(([0-9]{1,3})\)|(?:^|(?<= ))([0-9]{1,3})[.)](?= |$)")
# A letter counts as an option's label where a space or the first number of a procedural answer follows it.
_LABELS = {letter: re.compile(rf"{letter}[.):](?: |(?=\())|\({letter}\) ") for letter in LETTERS}
_SAID = re.compile(r"[a-z|/,+&\- ]+")
_TREND_FILLERS = frozenset(
    ["keep", "keeps", "kept", "stay", "stays", "stayed", "remain", "remains", "remained", "become", "becomes", "became"]
).union(
    ["get", "gets", "got", "is", "are", "nearly", "almost", "roughly", "approximately", "about", "always", "and"],
    ["then", "the", "it", "its", "their", "distance", "speed", "speeds", "between", "them", "object", "one"],
)
# Without "then": a direction that follows another is a state of its own.
_DIRECTION_FILLERS = frozenset(["and", "directly", "the", "to"])
_SAME = ["constant", "unchanged", "stable", "steady", "same", "equal"]
_LARGER = ["larger", "bigger", "greater", "higher", "increase", "increases", "increased", "increasing"]
_SMALLER = ["smaller", "lower", "less", "decrease", "decreases", "decreased", "decreasing"]
_TREND_WORDS = dict.fromkeys(_SAME, "same") | dict.fromkeys(_LARGER, "larger") | dict.fromkeys(_SMALLER, "smaller")
_AXES = (("Front", "Behind"), ("Left", "Right"), ("Above", "Below"))
_DIRECTION_WORDS = {
    **dict.fromkeys(["front", "forward", "forwards", "ahead"], "Front"),
    **dict.fromkeys(["behind", "back", "backward", "backwards", "rear"], "Behind"),
    **dict.fromkeys(["left", "leftward", "leftwards"], "Left"),
    **dict.fromkeys(["right", "rightward", "rightwards"], "Right"),
    **dict.fromkeys(["above", "up", "upward", "upwards"], "Above"),
    **dict.fromkeys(["below", "down", "downward", "downwards", "under", "beneath"], "Below"),
}
_WORDS = {
    "dis": _TREND_WORDS
    | dict.fromkeys(["farther", "further", "longer"], "larger")
    | dict.fromkeys(["closer", "nearer", "shorter"], "smaller"),
    "spd": _TREND_WORDS | {"faster": "larger", "slower": "smaller"},
    "spd_comp": dict.fromkeys(_SAME, "same")
    | {word: word for word in ("former", "latter", "faster", "slower", "than")},
}
_CONSTANT, _LARGER_STATE, _SMALLER_STATE, _THEN_LARGER, _THEN_SMALLER = TREND_STATES
_TRENDS = {
    ("same",): _CONSTANT,
    ("larger",): _LARGER_STATE,
    ("smaller",): _SMALLER_STATE,
    ("same", "larger"): _THEN_LARGER,
    ("same", "smaller"): _THEN_SMALLER,
}
_ALIKE, _FORMER, _LATTER = SPEED_STATES
_COMPARISONS = {
    ("same",): _ALIKE,
    **dict.fromkeys([("former", "faster"), ("former", "faster", "than", "latter")], _FORMER),
    **dict.fromkeys([("latter", "slower"), ("latter", "slower", "than", "former")], _FORMER),
    **dict.fromkeys([("latter", "faster"), ("latter", "faster", "than", "former")], _LATTER),
    **dict.fromkeys([("former", "slower"), ("former", "slower", "than", "latter")], _LATTER),
}
_SENTENCES = {"dis": _TRENDS, "spd": _TRENDS, "spd_comp": _COMPARISONS}


class OfficialFormatError(ValueError):
    """Something from outside is not in an official format, or ours cannot be written in one."""


class UnreadError(OfficialFormatError):
    """A part of a question cannot be read; the message says why."""


@dataclass(frozen=True)
class Entity:
    """Who looks or is asked about.

    Attributes:
        name: as the text has it, without the article.
        box: (x1, y1, x2, y2) in pixels of the frame that the file's author used; None where the text gives none.
        box_at: frame of the box: "initial" or "final" of the interval, "" where the text does not say.
    """

    name: str
    box: tuple[float, float, float, float] | None = None
    box_at: str = ""

    @property
    def is_camera(self) -> bool:
        """Whether it is the recording camera; a camera with a box is a thing that is seen."""
        return self.name == CAMERA and self.box is None


@dataclass(frozen=True)
class Parts:
    """What a question says; a part that cannot be read, or contradicts the type, is named in ``unread``.

    Attributes:
        viewpoint_kind: "rel" (moves with its subject), "abs" (frozen at a time) or None.
        viewpoint: whose it is.
        viewpoint_time: when it is frozen, s; None where it moves.
        targets: one or two, the former first; none in free text.
        interval: start and end, s; None where the text names none.
        states: of each of the four options, in our vocabulary, equal neighbours merged; None where unread or free text.
        free_text: whether targets and options are free text (non-template questions).
        unread: part -> why it cannot be read.
    """

    viewpoint_kind: str | None
    viewpoint: Entity | None
    viewpoint_time: float | None
    targets: tuple[Entity, ...]
    interval: tuple[float, float] | None
    states: tuple[tuple[str, ...] | None, ...]
    free_text: bool
    unread: dict[str, str]


def read_parts(kind: str, question: str, options: Sequence[str]) -> Parts:
    """Read a question of a known type.

    Args:
        kind: one of ``row.TYPES``.
        question: its text.
        options: the four options, with or without their letters.

    Returns:
        All its parts; of non-template questions the viewpoint and the interval, where the text names them.
    """
    unread: dict[str, str] = {}
    if kind == NON_TEMPLATE:
        asked = _read_free(question, unread)
        return Parts(**asked, targets=(), states=(None,) * len(options), free_text=True, unread=unread)
    asked = _read_template(kind, question, unread)
    states = tuple(
        _attempt(unread, f"option {letter}", read_states, kind, unlabelled(option, letter))
        for letter, option in zip(LETTERS, options, strict=True)
    )
    return Parts(**asked, states=states, free_text=False, unread=unread)


def infer_type(question: str, options: Sequence[str]) -> str:
    """The type of a question: the one template type that its words and all its options fit, else ``non_temp``."""
    fitting = [kind for family in FAMILIES if (kind := _fitting(family, question, options))]
    return fitting[0] if len(fitting) == 1 else NON_TEMPLATE


def _fitting(family: str, question: str, options: Sequence[str]) -> str | None:
    """The type of that family that a question has, or None."""
    try:
        frame, _, about = _clauses(family, _INTERVAL.sub("", _flat(question)))
        _body(family, about)
        kind = f"{frame}_{family}"
        for letter, option in zip(LETTERS, options, strict=True):
            read_states(kind, unlabelled(option, letter))
    except UnreadError:
        return None
    return kind


def _attempt(unread: dict[str, str], part: str, read: Callable[..., Any], *given: Any) -> Any:
    try:
        return read(*given)
    except UnreadError as error:
        unread.setdefault(part, str(error))
        return None


def _flat(text: str) -> str:
    """One line of single spaces in compatibility form.

    Raises:
        UnreadError: the text is too long to be a question.
    """
    if len(text) > LONGEST_TEXT:
        raise UnreadError(f"longer than {LONGEST_TEXT} characters")
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _read_free(question: str, unread: dict[str, str]) -> dict[str, Any]:
    """Viewpoint and interval that a non-template question starts with."""
    asked = dict.fromkeys(("viewpoint_kind", "viewpoint", "viewpoint_time", "interval"))
    text = _attempt(unread, "question", _flat, question)
    if text is None:
        return asked
    if found := _INTERVAL.search(text):
        asked["interval"] = _attempt(unread, "interval", _ordered, found)
    lead = text.removeprefix(found[0]).lstrip(" ,") if found and found.start() == 0 else text
    if view := _VIEW.match(lead):
        asked["viewpoint_kind"] = _kind_of(view)
        body = _UP_TO_COMMA.match(lead, view.end())[0]
        asked["viewpoint"], asked["viewpoint_time"] = _attempt(unread, "viewpoint", _viewpoint, body) or (None, None)
    return asked


def _read_template(kind: str, question: str, unread: dict[str, str]) -> dict[str, Any]:
    """Everything that a template question asks, without its options."""
    frame, family = kind[:3], kind[4:]
    asked: dict[str, Any] = dict.fromkeys(("viewpoint_kind", "viewpoint", "viewpoint_time", "interval"))
    asked["targets"] = ()
    text = _attempt(unread, "question", _flat, question)
    if text is None:
        return asked
    asked["interval"] = _attempt(unread, "interval", _interval, text, family)
    clauses = _attempt(unread, "question", _clauses, family, _INTERVAL.sub("", text))
    if clauses is None:
        return asked
    asked["viewpoint_kind"], seen_by, about = clauses
    asked["viewpoint"], asked["viewpoint_time"] = _attempt(unread, "viewpoint", _viewpoint, seen_by) or (None, None)
    _attempt(unread, "viewpoint", _agree, frame, asked["viewpoint_kind"], asked["viewpoint_time"])
    asked["targets"] = _attempt(unread, "targets", _targets, family, about) or ()
    return asked


def _ordered(found: re.Match) -> tuple[float, float]:
    start, end = float(found[1]), float(found[2])
    if start >= end:
        raise UnreadError(f"{found[0]!r} does not end after it starts")
    return start, end


def _interval(text: str, family: str) -> tuple[float, float] | None:
    """The one interval of a template question; it may be said twice, and a prediction needs none."""
    intervals = {_ordered(found) for found in _INTERVAL.finditer(text)}
    if len(intervals) > 1:
        raise UnreadError(f"{len(intervals)} different intervals")
    if not intervals and family != "dir_pred":
        raise UnreadError("no interval in seconds")
    return intervals.pop() if intervals else None


def _clauses(family: str, text: str) -> tuple[str, str, str]:
    """Split a question into the viewpoint's kind, whose it is, and what is asked about."""
    ask = re.search(rf"\b{_ASKS[family]}", text, re.IGNORECASE)
    if not ask:
        raise UnreadError(f"does not ask {_ASKED[family]}")
    view = _VIEW.search(text)
    if not view:
        raise UnreadError("names no viewpoint")
    if view.start() < ask.start():
        lead, seen_by, about = text[: view.start()], text[view.end() : ask.start()], text[ask.end() :]
    else:
        lead, seen_by, about = text[: ask.start()], text[view.end() :], text[ask.end() : view.start()]
    if rest := lead.strip(" ,;:"):
        raise UnreadError(f"{rest[:60]!r} belongs to no part")
    return _kind_of(view), seen_by, about


def _kind_of(view: re.Match) -> str:
    return "rel" if view[1].lower() == "following" else "abs"


def _viewpoint(text: str) -> tuple[Entity, float | None]:
    body = text.strip(" ,.?")
    moment = _MOMENT.search(body)
    if not moment:
        return _entity(body), None
    return _entity(body[: moment.start()]), float(moment[1])


def _agree(frame: str, kind: str, time: float | None) -> None:
    """A type promises a kind of viewpoint, and a kind a time."""
    if kind != frame:
        raise UnreadError(f"the type is {frame}, the text says {kind}")
    if kind == "abs" and time is None:
        raise UnreadError("frozen at no time")
    if kind == "rel" and time is not None:
        raise UnreadError("moves and yet is frozen at a time")


def _targets(family: str, text: str) -> tuple[Entity, ...]:
    body = _body(family, text)
    return _pair(body, _JOINERS[family]) if family in _JOINERS else (_entity(body),)


def _body(family: str, text: str) -> str:
    """The targets without the verb behind them, which only some types have."""
    body = text.strip(" ,.?!")
    changes = _CHANGE.search(body)
    if bool(changes) == (family in ("spd_comp", "dir_pred")):
        raise UnreadError(f"does not ask {_ASKED[family]}")
    return body[: changes.start()] if changes else body


def _pair(text: str, joiner: str) -> tuple[Entity, Entity]:
    """Split "A and B" where names may hold "and" too.

    In the official wording only the camera has no box, and in ours a name that holds such a word has a mark, so the
    split with the least doubt about its names is meant.

    Raises:
        UnreadError: no split, or no single best one.
    """
    joints = list(re.finditer(joiner, text, re.IGNORECASE))
    if len(joints) > MOST_SPLITS:
        raise UnreadError(f"{len(joints)} places to split two targets")
    splits, why = [], f"{text[:60]!r} does not name two targets"
    for joint in joints:
        try:
            pair = _entity(text[: joint.start()]), _entity(text[joint.end() :])
        except UnreadError as error:
            why = str(error)
            continue
        splits.append((sum(map(_doubt, pair)), pair))
    if not splits:
        raise UnreadError(why)
    least = min(doubt for doubt, _ in splits)
    best = [pair for doubt, pair in splits if doubt == least]
    if len(best) > 1:
        raise UnreadError(f"{text[:60]!r} splits into two targets in {len(best)} ways")
    return best[0]


def _doubt(target: Entity) -> int:
    """How unlikely it is that a text ends a target there: a bare name may be cut short, or hold two."""
    if target.is_camera or target.box is not None or _MARKED.search(target.name):
        return 0
    return 1 + any(joiner in target.name.lower() for joiner in JOINERS)


def _entity(text: str) -> Entity:
    """Read "dog", "the camera" or "dog with initial bounding box coordinates [1,2,3,4]".

    Raises:
        UnreadError: no name, more than a name, or a malformed box.
    """
    body = text.strip(" ,;:")
    if len(body) > 2 * LONGEST_NAME:
        raise UnreadError(f"{body[:40]!r}… is too long for a name")
    name, box, when = body, None, ""
    if "[" in body or "]" in body:
        found = _BOXED.fullmatch(body)
        if not found:
            raise UnreadError(f"{body[:80]!r} is not a name and a box of four numbers")
        name = found["name"]
        box = tuple(float(side) for side in found.groups()[-4:])
        when = _WHEN.get((found["when"] or found["moment"] or "").lower(), "")
        if box[0] >= box[2] or box[1] >= box[3]:
            raise UnreadError(f"box {list(box)} is empty or reversed")
    name = re.sub(r"^the ", "", name.strip(" ,"), flags=re.IGNORECASE)
    if not name or len(name) > LONGEST_NAME or "," in name:
        raise UnreadError(f"{name[:60]!r} is no name")
    return Entity(CAMERA if name.lower() == CAMERA else name, box, when)


def unlabelled(option: str, letter: str) -> str:
    """An option without the label of its own letter ("A. ", "A) ", "A: ", "(A) "), if it carries one."""
    found = _LABELS[letter].match(option)
    return option[found.end() :] if found else option


def labelled(option: str, letter: str) -> str:
    """An option with its letter as the official files write it: "A. (1) Front."."""
    return f"{letter}. {option}"


def read_states(kind: str, option: str) -> tuple[str, ...]:
    """Read a procedural answer: "(1) Becomes larger. (2) Keep nearly constant.".

    Args:
        kind: a template type.
        option: the answer without its letter; a single state may go without its number.

    Returns:
        States in our vocabulary (``states.STATE_TEXTS``), equal neighbours merged.

    Raises:
        UnreadError: the numbering has gaps, a state is not of the vocabulary, or a prediction names several.
    """
    family = kind[4:]
    text = _flat(option)
    marks = list(_NUMBERING.finditer(text))
    if len(marks) > MOST_STATES:
        raise UnreadError(f"{len(marks)} states, more than {MOST_STATES}")
    if [int(mark[1] or mark[2]) for mark in marks] != list(range(1, len(marks) + 1)):
        raise UnreadError("states are not numbered 1, 2, 3, …")
    if marks and (lead := text[: marks[0].start()].strip()):
        raise UnreadError(f"{lead[:40]!r} stands before the first state")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    said = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)] if marks else [text]
    merged = tuple(state for state, _ in groupby(_state(family, one) for one in said))
    if family == "dir_pred" and len(merged) > 1:
        raise UnreadError(f"{len(merged)} directions where one is predicted")
    return merged


@lru_cache(maxsize=4096)
def _state(family: str, text: str) -> str:
    said = text.strip(" .;,").lower()
    if not _SAID.fullmatch(said):
        raise UnreadError(f"{said[:40]!r} is no state")
    vocabulary = _WORDS.get(family, _DIRECTION_WORDS)
    fillers = _TREND_FILLERS if family in _SENTENCES else _DIRECTION_FILLERS
    words = [word for word in re.findall("[a-z]+", said) if word not in fillers]
    if not words or any(word not in vocabulary for word in words):
        raise UnreadError(f"{said[:40]!r} is no state of {family}")
    meant = tuple(vocabulary[word] for word in words)
    if family not in _SENTENCES:
        return _direction(meant, said)
    if meant not in _SENTENCES[family]:
        raise UnreadError(f"{said[:40]!r} is no state of {family}")
    return _SENTENCES[family][meant]


def _direction(meant: tuple[str, ...], said: str) -> str:
    """Put words on axes: each axis at most once, never both ways."""
    named = [word for axis in _AXES for word in axis if word in meant]
    if len(named) != len(meant) or (state := "|".join(named)) not in DIRECTION_STATES:
        raise UnreadError(f"{said[:40]!r} is no direction")
    return state
