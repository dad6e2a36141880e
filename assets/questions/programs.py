"""A small typed language for questions about a scene: what can be asked, read from text and written as text.

A program is one expression, such as::

    argmin(['red robot', 'blue dog', 'van', 'bin'], min(distance(it, 'camera'), between(2.0, 6.0)))

Inside a list operation ``it`` stands for each thing of the list in turn. A program asks about one interval, lists
things at most once, and never lists what it also refers to by name: so nothing is compared with itself, and a thing
that the question's words single out is never among its answers.
"""

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from assets.questions.wording import CAMERA

LONGEST_PROGRAM = 2000
MOST_LISTED = 8
# A question for a name offers four names.
LEAST_NAMES = 4
FACTORS = (0.1, 10.0)

# Operation -> the kinds of its arguments and of its value.
SIGNATURES = {
    "between": (("moment", "moment"), "span"),
    "distance": (("thing", "thing"), "track"),
    "speed": (("thing",), "track"),
    "direction": (("thing", "thing"), "vectors"),
    "max": (("track", "span"), "number"),
    "min": (("track", "span"), "number"),
    "mean": (("track", "span"), "number"),
    "first": (("track", "span"), "number"),
    "last": (("track", "span"), "number"),
    "travelled": (("thing", "span"), "number"),
    "turned": (("thing", "span"), "number"),
    "at": (("track", "moment"), "number"),
    "when_max": (("track", "span"), "moment"),
    "when_min": (("track", "span"), "moment"),
    "when_starts": (("thing", "span"), "moment"),
    "more": (("number", "number"), "condition"),
    "less": (("number", "number"), "condition"),
    "argmax": (("things", "number|moment"), "thing"),
    "argmin": (("things", "number|moment"), "thing"),
    "count": (("things", "condition"), "count"),
    "quarter": (("moment", "span"), "quarter"),
    "order": (("things", "moment"), "order"),
    "both": (("thing", "thing"), "both"),
    "how": (("track|vectors", "span"), "states"),
}
OVER_THINGS = frozenset({"argmax", "argmin", "count", "order"})
# What a program may ask for: a thing of the list, how many, which quarter of the interval, an order of three, two
# choices between the same two, or a procedural answer.
ANSWERS = ("thing", "count", "quarter", "order", "both", "states")
_LISTED = {"thing": (LEAST_NAMES, MOST_LISTED), "count": (3, MOST_LISTED), "order": (3, 3), "both": (2, 2)}
# Operations whose value would differ if the camera's own motion were unknown.
MOTION = frozenset({"speed", "travelled", "turned", "when_starts"})


class ProgramError(ValueError):
    """A text is no program of this language, or a program asks nothing; the message says why in one line."""


@dataclass(frozen=True)
class Node:
    """One expression; two are equal exactly if their texts are.

    Attributes:
        text: the expression as ``parse`` reads it.
        op: an operation of ``SIGNATURES``, or "name", "names", "it", "time", "times".
        args: its arguments.
        kind: what its value is.
        value: of a leaf: the name, the names, or the number; of "times" the factor.
    """

    text: str
    op: str = field(compare=False)
    args: "tuple[Node, ...]" = field(compare=False)
    kind: str = field(compare=False)
    value: str | float | tuple[str, ...] | None = field(compare=False, default=None)

    @cached_property
    def nodes(self) -> "tuple[Node, ...]":
        """This expression and all inside it, outermost first."""
        found, left = [], [self]
        while left:
            found.append(left.pop())
            left += reversed(found[-1].args)
        return tuple(found)


IT = Node("it", "it", (), "thing")


def thing(name: str) -> Node:
    """A thing by its name."""
    return Node(repr(name), "name", (), "thing", name)


def things(names: Sequence[str]) -> Node:
    """A list of things."""
    return Node(f"[{', '.join(map(repr, names))}]", "names", (), "things", tuple(names))


def time(seconds: float) -> Node:
    """A time, s."""
    return Node(repr(float(seconds)), "time", (), "moment", float(seconds))


def times(factor: float, number: Node) -> Node:
    """A number times a factor."""
    if number.kind != "number" or not FACTORS[0] <= factor <= FACTORS[1]:
        raise ProgramError(
            f"{factor} * {_short(number.text)} is no number times a factor of {FACTORS[0]} to {FACTORS[1]}"
        )
    return Node(f"{float(factor)!r} * {number.text}", "times", (number,), "number", float(factor))


def call(op: str, *args: Node) -> Node:
    """An operation on its arguments.

    Raises:
        ProgramError: there is no such operation, or its arguments are of another number or kind.
    """
    if op not in SIGNATURES:
        raise ProgramError(f"{_short(op)} is no operation; there are {', '.join(SIGNATURES)}")
    wanted, kind = SIGNATURES[op]
    if len(args) != len(wanted) or any(arg.kind not in want.split("|") for arg, want in zip(args, wanted, strict=True)):
        given = ", ".join(arg.kind for arg in args)
        raise ProgramError(f"{op} takes ({', '.join(wanted)}), not ({_short(given)})")
    return Node(f"{op}({', '.join(arg.text for arg in args)})", op, args, kind)


def parse(text: str) -> Node:
    """Read a program.

    Raises:
        ProgramError: the text is none, or the program breaks a rule (see ``check``).
    """
    if len(text) > LONGEST_PROGRAM:
        raise ProgramError(f"longer than {LONGEST_PROGRAM} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        program = _read(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise error if isinstance(error, ProgramError) else ProgramError("is no expression") from error
    check(program)
    return program


def _read(tree: ast.AST) -> Node:
    match tree:
        case ast.Constant(value=str() as name):
            return thing(name)
        case ast.Constant(value=value) if _is_number(value):
            return time(value)
        case ast.Name(id="it"):
            return IT
        case ast.List(elts=parts) if all(isinstance(part, ast.Constant) and type(part.value) is str for part in parts):
            return things([part.value for part in parts])
        case ast.Call(func=ast.Name(id=op), args=args, keywords=[]):
            return call(op, *map(_read, args))
        case ast.BinOp(left=ast.Constant(value=factor), op=ast.Mult(), right=number) if _is_number(factor):
            return times(factor, _read(number))
    raise ProgramError(f"{type(tree).__name__} is no part of the language")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9 and math.isfinite(value)


def check(program: Node) -> None:
    """Hold a program against the rules that make it a question.

    Raises:
        ProgramError: it asks for nothing that can be an answer; it has no interval or several; a moment lies outside;
            it lists things twice, or lists what it refers to; it compares a thing with itself or the camera's view with
            the camera.
    """
    if program.kind not in ANSWERS or program.op in ("name", "it"):
        raise ProgramError(f"asks for a {program.kind}; can be asked for: {', '.join(ANSWERS)}")
    nodes = program.nodes
    start, end = interval(program)
    if not start < end:
        raise ProgramError(f"between({start}, {end}) does not end after it starts")
    if any(node.op == "time" and not start <= node.value <= end for node in nodes):
        raise ProgramError("names a moment outside its interval")
    _check_lists(program, nodes)
    for node in nodes:
        if node.op in ("distance", "direction") and node.args[0] == node.args[1]:
            raise ProgramError(f"{_short(node.text)} compares a thing with itself")
        if node.op == "direction" and thing(CAMERA) in node.args:
            raise ProgramError("what the camera sees lies before it; its direction from the camera is no question")


def _check_lists(program: Node, nodes: tuple[Node, ...]) -> None:
    lists = {node for node in nodes if node.op == "names"}
    listed = listing(program)
    if len(lists) > 1:
        raise ProgramError("lists things in two ways")
    if len(set(listed)) != len(listed) or CAMERA in listed:
        raise ProgramError("lists a thing twice, or the camera")
    if both := {node.value for node in nodes if node.op == "name"} & set(listed):
        raise ProgramError(f"lists {_short(min(both))} and refers to it by name")
    fewest, most = _LISTED.get(program.kind, (2, MOST_LISTED))
    if not fewest <= len(listed) <= most and (lists or program.kind in _LISTED):
        raise ProgramError(f"lists {len(listed)} things; asking for a {program.kind} takes {fewest} to {most}")
    for node in nodes:
        if node.op in OVER_THINGS and not _of_each(node.args[1]):
            raise ProgramError(f"{node.op} does not say 'it'")
        if node.op in OVER_THINGS and any(part.op in OVER_THINGS for part in node.args[1].nodes):
            raise ProgramError(f"{node.op} holds another list operation")
    if _of_each(program):
        raise ProgramError("says 'it' outside a list operation")
    if program.op == "quarter" and program.args[0].op == "time":
        raise ProgramError("asks in which quarter a given time lies")
    if program.op == "both" and any(arg.op not in ("argmax", "argmin") for arg in program.args):
        raise ProgramError("both takes two choices from a list")


def _of_each(node: Node) -> bool:
    """Whether an expression depends on an ``it`` that no list operation inside it binds."""
    if node.op in OVER_THINGS:
        return False
    return node == IT or any(map(_of_each, node.args))


@lru_cache(maxsize=256)
def interval(program: Node) -> tuple[float, float]:
    """Start and end of the one interval that a program asks about, s.

    Raises:
        ProgramError: none, several, or one that is not between two times.
    """
    spans = {node for node in program.nodes if node.op == "between"}
    if len(spans) != 1:
        raise ProgramError(f"asks about {len(spans)} intervals instead of one")
    start, end = spans.pop().args
    if start.op != "time" or end.op != "time":
        raise ProgramError("the interval is not between two times")
    return start.value, end.value


def listing(program: Node) -> tuple[str, ...]:
    """Return the things that a program lists; none where it lists none."""
    return next((node.value for node in program.nodes if node.op == "names"), ())


def named(program: Node) -> list[str]:
    """Return every name in a program once, what is listed first."""
    return list(dict.fromkeys((*listing(program), *(node.value for node in program.nodes if node.op == "name"))))


def skeleton(program: Node, keep_names: bool) -> str:
    """A program without its times, and without its names (but for the camera) unless they are kept.

    Programs of one skeleton are asked in the same words but for what was left out.
    """
    start, end = interval(program)
    marks, names = {start: "start", end: "end"}, named(program)

    def bare(node: Node) -> str:
        if node.op == "time":
            return marks.get(node.value, "time")
        if node.op == "names":
            return node.text if keep_names else f"things {len(node.value)}"
        if node.op == "name":
            return node.text if keep_names or node.value == CAMERA else f"thing {names.index(node.value)}"
        if node.op == "times":
            return f"{node.value} * {bare(node.args[0])}"
        return f"{node.op}({', '.join(map(bare, node.args))})" if node.args else node.text

    return bare(program)


def _short(text: str) -> str:
    return ascii(text[:60])
