"""The question that a program asks, in one fixed wording: the same words for the same program, whoever wrote it."""

from collections.abc import Callable, Sequence

from assets.questions.programs import IT, MOTION, Node, interval, listing
from assets.questions.wording import CAMERA

_SUPERLATIVES = {"argmax": "greatest", "argmin": "smallest"}
_COMPARATIVES = {"more": "greater", "less": "smaller"}
_EXTREMES = {
    "max": {"speed": "top", "distance": "longest"},
    "min": {"speed": "lowest", "distance": "shortest"},
    "mean": {"speed": "average", "distance": "average"},
}
_ENDS = {"first": "beginning", "last": "end"}
_RANKS = {"argmax": "last", "argmin": "first"}


def view_of(program: Node) -> float | None:
    """Return when the camera's viewpoint is frozen, s; None where it moves along.

    Speeds and ways are meant against the ground, which is what a viewpoint that stands still sees; distances and
    directions are those of each instant.
    """
    return interval(program)[0] if any(node.op in MOTION for node in program.nodes) else None


def program_question(program: Node, said: Callable[[str], str] = str) -> str:
    """Ask what a checked program asks.

    Args:
        program: it.
        said: what points at the thing of a name.
    """
    start, end = interval(program)
    moment = view_of(program)
    seen = "following the perspective of" if moment is None else "from the perspective of"
    at = "" if moment is None else f" at {moment:.1f}s"
    return f"Between {start:.1f}s and {end:.1f}s, {seen} {CAMERA}{at}, {_Wording(said).asked(program)}?"


class _Wording:
    """Words for the parts of one program."""

    def __init__(self, said: Callable[[str], str]):
        self.said = said

    def asked(self, program: Node) -> str:
        """The question without its interval and its viewpoint."""
        kind, listed = program.kind, listing(program)
        if kind == "thing":
            return f"which of {self.joined(listed)} {self.stands_out(program)}"
        if kind == "both":
            first, second = map(self.stands_out, program.args)
            return f"which of {self.joined(listed)} {first}, and which of the two {second}"
        if kind == "count":
            return f"for how many of {self.joined(listed)} is {self.compares(program.args[1])}"
        if kind == "order":
            return f"in which order do {self.joined(listed)} reach the moment of {self.event(program.args[1], 'their')}"
        if kind == "quarter":
            return f"in which quarter of that time is the moment of {self.event(program.args[0])}"
        return f"how does the {self.noun(program.args[0])} change"

    def joined(self, names: Sequence[str]) -> str:
        return f"{', '.join(map(self.said, names[:-1]))} and {self.said(names[-1])}"

    def stands_out(self, choice: Node) -> str:
        """What the chosen one of a list does: "has the greatest top speed"."""
        wanted = choice.args[1]
        if wanted.kind == "moment":
            return f"is the {_RANKS[choice.op]} to reach the moment of {self.event(wanted)}"
        if choice.op == "argmin" and wanted.op == "min" and wanted.args[0].op == "distance":
            return f"comes closest to {self.noun(wanted.args[0]).removeprefix('distance to ')}"
        return f"has the {_SUPERLATIVES[choice.op]} {self.noun(wanted)}"

    def compares(self, condition: Node) -> str:
        """What holds of the counted ones: "its distance to B at the end smaller than 0.8 times its …"."""
        left, right = map(self.compared, condition.args)
        return f"{left} {_COMPARATIVES[condition.op]} than {right}"

    def compared(self, number: Node) -> str:
        """One side of a comparison."""
        if number.op == "times":
            return f"{number.value:g} times {self.compared(number.args[0])}"
        return f"{'its' if IT in number.nodes else 'the'} {self.noun(number)}"

    def noun(self, node: Node) -> str:
        """A number, a track or vectors as a noun without an article; what belongs to ``it`` belongs to nobody named."""
        if node.op == "times":
            return f"{node.value:g} times the {self.noun(node.args[0])}"
        if node.op in ("max", "min", "mean"):
            return f"{_EXTREMES[node.op][node.args[0].op]} {self.noun(node.args[0])}"
        if node.op in _ENDS:
            return f"{self.noun(node.args[0])} at the {_ENDS[node.op]}"
        if node.op == "at":
            return f"{self.noun(node.args[0])} {self.when(node.args[1])}"
        if node.op == "speed":
            return f"speed{self.whose(node.args[0])}"
        if node.op == "travelled":
            return f"length of way{self.whose(node.args[0])}"
        if node.op == "turned":
            return f"angle between first and last heading{self.whose(node.args[0])}"
        if node.op == "direction":
            former, latter = map(self.thing, node.args)
            comma = "" if node.args[0].op == "name" else ","
            return f"direction of {former}{comma} relative to {latter}{comma}"
        # A name first, so that it is clear where the description of the other ends.
        others = sorted((arg for arg in node.args if arg != IT), key=lambda arg: arg.op != "name")
        return f"distance {'to' if len(others) == 1 else 'between'} {' and '.join(map(self.thing, others))}"

    def event(self, moment: Node, own: str = "its") -> str:
        """A moment as a noun: "the top speed of A", or "its top speed" for each one of a list."""
        article = own if IT in moment.nodes else "the"
        if moment.op == "when_starts":
            return f"{article} start of moving{self.whose(moment.args[0])}"
        return f"{article} {_EXTREMES[moment.op[5:]][moment.args[0].op]} {self.noun(moment.args[0])}"

    def when(self, moment: Node) -> str:
        return f"at {moment.value:.1f}s" if moment.op == "time" else f"at the moment of {self.event(moment)}"

    def whose(self, owner: Node) -> str:
        return "" if owner == IT else f" of {self.thing(owner)}"

    def thing(self, node: Node) -> str:
        if node.op == "name":
            return self.said(node.value)
        return f"the one of {self.joined(listing(node))} that {self.stands_out(node)}"
