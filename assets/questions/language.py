"""A language model as a source of questions; it is believed in nothing.

A proposed question is a program of our language: it is asked in our own words, and its answer is ours, with which the
model's claim has to agree. Free text, where it is allowed, has to be answered as claimed by independent passes that see
noise draws of the scene. Whatever is refused is kept with the reason.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.questions.compositional import find, measured, non_template_row, row_of
from assets.questions.evaluation import QUARTERS
from assets.questions.official_text import Parts, read_parts
from assets.questions.parameters import MOST_PROPOSALS, LanguageParameters, QuestionParameters
from assets.questions.programs import MOTION, SIGNATURES, ProgramError, parse
from assets.questions.row import NON_TEMPLATE, content_id
from assets.questions.states import Scene
from assets.questions.wording import CAMERA

if TYPE_CHECKING:
    from assets.questions.candidates import Clip
    from models.endpoint import Endpoint

# The table that a model reads has at most so many times and things.
MOST_TIMES, MOST_THINGS = 16, 12
LONGEST_QUESTION = 600
LONGEST_REPLY = 1 << 16
# How much of what was refused is kept.
KEPT = 300
MOST_COUNTED = 12
_MARKUP = frozenset('<>{}[]|`*_#\\"')
FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


@dataclass(frozen=True)
class Refusal:
    """What was not taken from a model: of which clip, why, and a printable beginning of what it said."""

    clip: str
    reason: str
    said: str


@dataclass
class Proposals:
    """What came of asking a model about a clip."""

    rows: list[dict] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def propose(
    endpoint: "Endpoint",
    scene: Scene,
    draws: Scene,
    about: "Clip",
    parameters: QuestionParameters,
    language: LanguageParameters,
    poses_known: bool = True,
) -> Proposals:
    """Ask a model for questions about a clip and take those that hold.

    Args:
        endpoint: where the model answers; retries and the budget are its.
        scene: the exact scene, K = 1, the camera last.
        draws: noise draws of it.
        about: what all rows of the clip share.
        parameters: thresholds and stability; ``stride`` is this scene's.
        language: how many questions, and whether free text may be taken.
        poses_known: whether the camera's path is; without it no motion may be asked for.

    Returns:
        Rows as ``row.CANDIDATES`` has them, and every refusal; an endpoint that fails is one.
    """
    came = Proposals()
    numbers = measured(scene, draws, about, parameters)
    ask = Ask(endpoint, lambda reason, said: came.refusals.append(Refusal(about.clip, reason, printable(said))))
    reply = ask(_instructions(language), f"{table(scene, about)}\nPropose {language.proposals} questions.")
    rows: dict[str, dict] = {}
    for item in _items(reply, ask.refuse) if reply is not None else ():
        try:
            if "program" in item:
                row = _verified(item, numbers, about, parameters, poses_known)
            elif language.free_text:
                row = _agreed(item, ask, scene, draws, about, parameters, language)
            else:
                raise ProgramError("has no program, and free text is not allowed")
            if row["qa_id"] in rows:
                raise ProgramError("asks what another asks")
            rows[row["qa_id"]] = row
        except ProgramError as error:
            ask.refuse(str(error), json.dumps(item))
    came.rows += rows.values()
    return came


class Ask:
    """One conversation's way to the model; what fails is refused."""

    def __init__(self, endpoint: "Endpoint", refuse: Callable[[str, str], None]):
        self.endpoint, self.refuse = endpoint, refuse

    def __call__(self, system: str, user: str, seed: int = 0) -> str | None:
        """The model's reply; None where it gave none, which is then refused."""
        from models.endpoint import EndpointError

        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            return self.endpoint.complete(messages, max_tokens=2048, seed=seed)
        except EndpointError as error:
            self.refuse(f"no reply: {error}", "")
            return None


def printable(text: str) -> str:
    """A bounded beginning of anything, in printable characters of one line."""
    return ascii(text[:KEPT])[1:-1][:KEPT]


def table(scene: Scene, about: "Clip") -> str:
    """Trajectories as compact text: one line per time and thing, seen from the camera as it stands at the first time.

    Columns are seconds, name, forward, left and up in the scene's unit of length. At most ``MOST_TIMES`` times and
    ``MOST_THINGS`` things, those seen longest.
    """
    positions, origin = scene.positions[0], scene.positions[0, -1, 0]
    local = (positions - origin) @ scene.axes[0, -1, 0].T
    seen = np.isfinite(local).all(axis=-1)
    longest = np.argsort(-seen[:-1].sum(axis=1), kind="stable")[: MOST_THINGS - 1]
    moments = np.unique(np.linspace(0, len(scene.times) - 1, MOST_TIMES).round().astype(int))
    lines = []
    for moment in moments:
        for entity in [*sorted(longest.tolist()), scene.camera]:
            if seen[entity, moment]:
                where = ", ".join(f"{side:.3g}" for side in local[entity, moment])
                lines.append(f"{scene.times[moment]:.2f}, {about.names[entity]}, {where}")
    return "\n".join(["seconds, name, forward, left, up", *lines])


def _instructions(language: LanguageParameters) -> str:
    operations = "\n".join(f"{op}({', '.join(takes)}) -> {kind}" for op, (takes, kind) in SIGNATURES.items())
    free = (
        ' or {"question": ..., "answer": ...} with the name of a thing, a number or a quarter as answer'
        if language.free_text
        else ""
    )
    return (
        "You write questions about how things move in a video, from a table of where they are. "
        'Reply with a JSON list of {"program": ..., "answer": ...}' + free + " and nothing else. "
        "A program is one expression of these operations:\n"
        f"{operations}\n"
        "A thing is a quoted name of the table, things a list of quoted names, a moment a number of seconds; a number "
        "may be a factor times a number. Inside argmax, argmin, count and order, it stands for each listed thing. A "
        "program uses one between(start, end) and one list, and lists nothing that it names elsewhere. It ends in "
        "argmax or argmin over four or more things, in count, quarter, order of three, both of two, or how. "
        "The answer is the name, the number, 'In the first quarter' and so on, 'The second, then the first, then the "
        "third', 'The former both times' or 'The former, and then the latter', or the list of states. Example: "
        "quarter(when_min(distance('red car', 'camera'), between(1.0, 5.0)), between(1.0, 5.0))."
    )


def _items(reply: str, refuse: Callable[[str, str], None]) -> Iterable[dict[str, Any]]:
    """The proposals in a reply; what is none is refused."""
    fenced = FENCE.search(reply[:LONGEST_REPLY])
    try:
        if len(reply) > LONGEST_REPLY:
            raise ValueError
        items = json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError):
        refuse("the reply is no JSON of a bounded length", reply)
        return
    if not isinstance(items, list):
        refuse("the reply is no list", reply)
        return
    for item in items[:MOST_PROPOSALS]:
        if isinstance(item, dict) and ("program" in item or "question" in item) and "answer" in item:
            yield item
        else:
            refuse("a proposal is no program or question with an answer", str(item))
    if len(items) > MOST_PROPOSALS:
        refuse(f"{len(items)} proposals, more than {MOST_PROPOSALS}", reply)


def _verified(item: dict[str, Any], numbers, about: "Clip", parameters: QuestionParameters, poses_known: bool) -> dict:
    """The row of a proposed program whose claimed answer is its answer.

    Raises:
        ProgramError: the program breaks a rule, has no stable answer, or another one than is claimed.
    """
    if not isinstance(item["program"], str):
        raise ProgramError("the program is no text")
    program = parse(item["program"])
    if not poses_known and any(node.op in MOTION for node in program.nodes):
        raise ProgramError("asks for motion in a clip whose camera's path is unknown")
    finding, reason = find(program, numbers, about, parameters)
    if finding is None:
        raise ProgramError(f"the program's answer is {reason}")
    row = row_of(finding, numbers, about)
    claimed, true = _plain(item["answer"]), _plain(row["states"])
    if claimed != true:
        raise ProgramError(f"the answer is {printable(true)!r}, not {printable(claimed)!r}")
    return row


def _plain(answer: Any) -> str:
    """An answer without what does not change what it says: case, numbering, points, spaces."""
    pieces = answer if isinstance(answer, list) else [answer]
    text = " ".join(str(piece) for piece in pieces[:64])[:LONGEST_QUESTION]
    text = re.sub(r"\([0-9]{1,2}\)|[.,;]", " ", unicodedata.normalize("NFKC", text).casefold())
    return "none" if text.strip() == "0" else " ".join(text.split())


# Free text -------------------------------------------------------------------------------------------------------


def _agreed(
    item: dict[str, Any],
    ask: Ask,
    scene: Scene,
    draws: Scene,
    about: "Clip",
    parameters: QuestionParameters,
    language: LanguageParameters,
) -> dict:
    """The row of a free question that independent passes over noise draws answer as claimed.

    Raises:
        ProgramError: the text is unfit, the answer is none of the vocabularies, or too few passes agree.
    """
    question = fit_text(item["question"])
    asked = read_parts(NON_TEMPLATE, question, [])
    if asked.unread or asked.viewpoint_kind == "abs":
        raise ProgramError("the question's interval or viewpoint cannot be read, or is no moving camera's")
    if asked.interval is None:
        raise ProgramError("the question names no interval in seconds")
    if not 0 <= asked.interval[0] < asked.interval[1] <= float(scene.times[-1]) + 0.05:
        raise ProgramError("the question's interval lies outside the clip")
    mentioned = mentions(question, about.names)
    targets = [name for name in mentioned if name != CAMERA]
    if not targets:
        raise ProgramError("the question names no thing of the clip")
    if any(about.pointing.names[about.names.index(name)] != name for name in targets):
        raise ProgramError("names a thing that only a mark on the video can point at")
    words, meaning = _vocabulary(item["answer"], targets, about)
    agree = 0
    for index in range(language.passes):
        which = index % len(draws.positions)
        seen = Scene(scene.times, draws.positions[which : which + 1], draws.axes[which : which + 1])
        reply = ask(_ANSWER_ONLY, f"{table(seen, about)}\n{question}", seed=index + 1)
        agree += reply is not None and _plain(reply) == _plain(words)
    share = agree / language.passes
    if share < parameters.min_stability:
        raise ProgramError(f"{agree} of {language.passes} passes agree with the claimed answer")
    return _free_row(question, asked, targets, words, meaning, share, about)


_ANSWER_ONLY = (
    "Answer a question about how things move from a table of where they are. Reply with the answer alone: the name of "
    "a thing, a number, or a quarter such as 'In the first quarter'."
)


def _vocabulary(answer: Any, targets: list[str], about: "Clip") -> tuple[str, str]:
    """The words and the meaning of an answer that other questions can share.

    Raises:
        ProgramError: it is none.
    """
    plain = _plain(answer)
    for name in targets:
        if plain == _plain(name):
            return name, str(about.names.index(name))
    for number, words in enumerate(QUARTERS):
        if plain == _plain(words):
            return words, str(number)
    if (plain.isdecimal() and len(plain) <= 2 and int(plain) <= MOST_COUNTED) or plain == "none":
        number = 0 if plain == "none" else int(plain)
        return str(number) if number else "None", str(number)
    raise ProgramError("the answer is no name in the question, no small number and no quarter")


def _free_row(
    question: str, asked: Parts, targets: list[str], words: str, meaning: str, share: float, about: "Clip"
) -> dict:
    kind = "quarter" if words in QUARTERS else "thing" if words in targets else "count"
    # Free texts share options only with free texts about the same things, which is what can be told of their form.
    pool = content_id("free", kind, about.clip if kind == "thing" else "", *map(str, sorted(targets)))
    return non_template_row(
        about,
        question,
        targets,
        asked.interval,
        viewpoint_kind="rel",
        viewpoint_time=None,
        states=[words],
        evidence=json.dumps({"free_text": True, "agreeing_share": round(share, 4)}, sort_keys=True),
        stability=round(share, 4),
        meaning=meaning,
        tolerated=[],
        option_pool=f"{kind} {pool}",
    )


def fit_text(text: Any) -> str:
    """A model's question as one printable line.

    Raises:
        ProgramError: it is no text, empty, too long, holds control characters or markup.
    """
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_QUESTION:
        raise ProgramError(f"the question is no text of at most {LONGEST_QUESTION} characters")
    normal = unicodedata.normalize("NFKC", text)
    if any(unicodedata.category(char)[0] == "C" for char in normal.replace("\n", " ")) or _MARKUP & set(normal):
        raise ProgramError("the question holds control characters or markup")
    return " ".join(normal.split())


def mentions(text: str, names: Iterable[str]) -> list[str]:
    """Names that a text mentions, longest first taken, in the order in which they stand."""
    left, found = text.casefold(), []
    for name in sorted(names, key=lambda name: (-len(name), name)):
        pattern = re.compile(rf"(?<!\w){re.escape(name.casefold())}(?!\w)")
        if hit := pattern.search(left):
            found.append((hit.start(), name))
            left = pattern.sub(lambda match: " " * len(match[0]), left)
    return [name for _, name in sorted(found)]
