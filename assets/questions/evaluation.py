"""What a program's answer is: in a scene, in its noise draws, and from nothing but the numbers it was derived from.

Everything is batched as (K, n): K draws of one scene, n things that a list operation ranges over (1 outside of one).
Evaluation has two halves. *Measuring* takes geometry to numbers, rounded; *reducing* takes numbers to an answer.
Evidence holds the numbers in between, so an answer can be derived again without the geometry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from assets.questions.parameters import QuestionParameters
from assets.questions.programs import Node, ProgramError, interval, listing
from assets.questions.states import (
    NONE,
    STATE_TEXTS,
    Scene,
    Thresholds,
    describe,
    meaning,
    merge,
    significant,
)

QUARTERS = tuple(f"In the {place} quarter" for place in ("first", "second", "third", "fourth"))
PLACES = ("first", "second", "third")
CHOICES = (
    "The former both times",
    "The former, and then the latter",
    "The latter, and then the former",
    "The latter both times",
)
# What the described series of a track or of vectors is called in ``states``.
FAMILY = {"distance": "dis", "speed": "spd", "direction": "dir"}
_REDUCTIONS = {
    "max": lambda values: values.max(axis=-1),
    "min": lambda values: values.min(axis=-1),
    "mean": lambda values: values.mean(axis=-1),
    "first": lambda values: values[..., 0],
    "last": lambda values: values[..., -1],
}
# Tolerance draws come in so many kinds of sign per number; a program's next number takes the next.
_SLOTS = 8
_WIDEST = 16
# Numbers (K, n, …) and the times (F,) of a series among them.
Series = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What a program says in K draws.

    Attributes:
        kind: one of ``programs.ANSWERS``.
        said: (K, L) i8, two draws say the same exactly if their rows are equal; NONE behind the end.
        labels: (K, M) i8 merged labels of a procedural answer; ``said`` for every other kind.
        defined: (K,) whether there is an answer: nothing unseen, no tie.
    """

    kind: str
    said: np.ndarray
    labels: np.ndarray
    defined: np.ndarray


class Numbers(Protocol):
    """Where the numbers of an evaluation come from."""

    names: list[str]
    thresholds: Thresholds

    def measured(self, what: str, measure: Callable[[], Series]) -> Series:
        """Give numbers (K, n, …) and their times (F,), s, under a description of what they are."""

    def moments(self, seconds: np.ndarray) -> np.ndarray:
        """Give times (K, n) as they are to be used."""

    @property
    def described(self) -> list[tuple[np.ndarray, Thresholds]]:
        """Which draws are described under which thresholds, in order."""


class Measured:
    """Numbers measured in a scene: its exact draw, noise draws, and draws in which every number is slightly off.

    Attributes:
        taken: what was measured since ``start``: description, times and the numbers of the exact draw.
    """

    def __init__(
        self,
        scene: Scene,
        draws: Scene,
        names: list[str],
        thresholds: Thresholds,
        parameters: QuestionParameters,
        tolerance_draws: int,
        seed: int,
    ):
        """Put the draws side by side.

        Args:
            scene: the exact scene, K = 1.
            draws: noise draws of it.
            names: of its entities, the camera last.
            thresholds: of states; ``still`` also says what stands still.
            parameters: the scene's stride; by how much numbers and thresholds may be off, and how much of that all
                numbers of a thing share. Moments may be off by half a described step.
            tolerance_draws: how many draws of that.
            seed: of those.
        """
        stride = parameters.stride
        exact = (np.repeat(array, tolerance_draws, axis=0) for array in (scene.positions, scene.axes))
        parts = zip((scene.positions, scene.axes), (draws.positions, draws.axes), exact, strict=True)
        positions, axes = (np.concatenate(part)[:, :, ::stride] for part in parts)
        self.names, self.thresholds, self.stride = names, thresholds, stride
        self.noise = slice(1, 1 + len(draws.positions))
        self.scene = Scene(scene.times[::stride], positions, axes)
        self.seconds = np.diff(self.scene.times)
        self._step = float(np.median(self.seconds))
        # Per described step, so one is moved by the same error in all that is measured of it.
        self.speeds = np.linalg.norm(np.diff(positions, axis=2), axis=-1) / self.seconds
        self.taken: list[dict[str, Any]] = []
        self._off = slice(len(positions) - tolerance_draws, None)
        off = np.array_split(np.arange(len(positions))[self._off], 2)
        moved = thresholds.tolerated(parameters.tolerance_ratio, parameters.tolerance_degrees)
        self.described = [(np.arange(self._off.start), thresholds), *zip(off, moved, strict=True)]
        rng = np.random.default_rng(seed)
        shape = (_SLOTS, tolerance_draws, _WIDEST, len(self.scene.times))
        signs = rng.choice([-1.0, 1.0], (*shape[:3], 1)), rng.choice([-1.0, 1.0], shape)
        common, own = np.sqrt(parameters.noise_correlation), np.sqrt(1 - parameters.noise_correlation)
        self._factors = 1 + parameters.tolerance_ratio * (common * signs[0] + own * signs[1])
        self._shifts = rng.uniform(-0.5, 0.5, (tolerance_draws, _WIDEST)) * self._step
        self._known: dict[tuple[str, int], Series] = {}

    def start(self) -> None:
        """Forget what was taken; the next numbers are another program's."""
        self.taken = []

    def measured(self, what: str, measure: Callable[[], Series]) -> Series:
        """Measure, or remember, numbers; see ``Numbers``."""
        slot = len(self.taken)
        if (what, slot) not in self._known:
            values, times = measure()
            values = np.array(values, np.float64)
            values[self._off] *= self._factors_of(values.shape, slot)
            self._known[what, slot] = significant(values), np.round(times, 6)
        values, times = self._known[what, slot]
        self.taken.append({"of": what, "times": times, "values": values[0]})
        return values, times

    def _factors_of(self, shape: tuple[int, ...], slot: int) -> np.ndarray:
        """(R, n) or (R, n, F) factors of numbers, or (R, n, F, 3) of vectors, whose sides are off independently."""
        if len(shape) == 4:
            return np.stack([self._factors_of(shape[:3], slot + axis) for axis in range(3)], axis=-1)
        factors = self._factors[slot % _SLOTS][:, : shape[1]]
        return factors[..., 0] if len(shape) == 2 else factors[..., : shape[2]]

    def frames(self, start: float, end: float) -> slice:
        """The described times of an interval.

        Raises:
            ProgramError: the interval reaches outside the clip, or holds fewer than two described steps.
        """
        times = self.scene.times
        first, last = (int(np.argmin(np.abs(times - moment))) for moment in (start, end))
        if max(abs(times[first] - start), abs(times[last] - end)) > 0.5 * self._step:
            raise ProgramError(
                f"between({start}, {end}) reaches outside the clip's {times[0]:.1f} to {times[-1]:.1f} s"
            )
        if last - first < 2:
            raise ProgramError(f"between({start}, {end}) holds fewer than two described steps")
        return slice(first, last + 1)

    def moments(self, seconds: np.ndarray) -> np.ndarray:
        """Move times in the tolerance draws by up to half a described step."""
        moved = np.array(np.broadcast_to(seconds, (len(self.scene.positions), seconds.shape[1])))
        moved[self._off] += self._shifts[:, : seconds.shape[1]]
        return moved


@dataclass
class Stored:
    """Numbers as evidence holds them, given out in the order in which they were taken; K = 1."""

    names: list[str]
    thresholds: Thresholds
    taken: list[dict[str, Any]]
    given: int = field(default=0)

    def measured(self, what: str, measure: Callable[[], Series]) -> Series:
        """Give the next numbers; see ``Numbers``.

        Raises:
            ProgramError: the evidence holds other numbers than the program asks for.
        """
        if self.given >= len(self.taken) or self.taken[self.given]["of"] != what:
            raise ProgramError(f"the evidence does not hold {what[:80]}; derive the question again")
        item = self.taken[self.given]
        self.given += 1
        return np.array(item["values"], np.float64)[None], np.array(item["times"], np.float64)

    def moments(self, seconds: np.ndarray) -> np.ndarray:
        """Give times as they are."""
        return seconds

    @property
    def described(self) -> list[tuple[np.ndarray, Thresholds]]:
        """The one draw is described under the thresholds as they are."""
        return [(np.arange(1), self.thresholds)]


def evaluate(program: Node, numbers: Numbers) -> Answer:
    """Answer a checked program.

    Raises:
        ProgramError: it names a thing or a time that the scene does not have.
    """
    evaluation = _Evaluation(program, numbers)
    said, labels, defined = getattr(evaluation, f"say_{program.kind}")(program)
    defined = defined & (labels != NONE).any(axis=1)
    return Answer(program.kind, said.astype(np.int8), labels.astype(np.int8), defined)


def vocabulary(program: Node) -> float:
    """How many answers a program can have."""
    sizes = {"quarter": len(QUARTERS), "both": len(CHOICES), "order": 6}
    sizes |= {"thing": len(listing(program)), "count": len(listing(program)) + 1, "states": np.inf}
    return sizes[program.kind]


def texts(program: Node, labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """The words of one draw's answer (M,): one piece, or the states of a procedural answer."""
    values = [int(label) for label in labels if label != NONE]
    if program.kind == "states":
        return [STATE_TEXTS[FAMILY[program.args[0].op]][value] for value in values]
    if program.kind == "thing":
        return [names[values[0]]]
    if program.kind == "count":
        return [str(values[0]) if values[0] else "None"]
    if program.kind == "quarter":
        return [QUARTERS[values[0]]]
    if program.kind == "both":
        return [CHOICES[2 * values[0] + values[1]]]
    return ["The " + ", then the ".join(PLACES[value] for value in values)]


class _Evaluation:
    """One program over one source of numbers."""

    def __init__(self, program: Node, numbers: Numbers):
        self.numbers = numbers
        self.span = interval(program)
        self.listed = self._entities(listing(program))
        self.each: np.ndarray | None = None

    def _entities(self, names: Sequence[str]) -> np.ndarray:
        """(1, n) indices of names."""
        try:
            return np.array([[self.numbers.names.index(name) for name in names]], int).reshape(1, -1)
        except ValueError:
            unknown = next(name for name in names if name not in self.numbers.names)
            raise ProgramError(f"the scene has no {unknown[:60]!a}") from None

    # What is said -----------------------------------------------------------------------------------------------

    def say_thing(self, node: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self.thing(node)
        return chosen, chosen, chosen[:, 0] != NONE

    def say_count(self, node: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        left, right = self.over(lambda condition: [self.number(arg) for arg in condition.args], node.args[1])
        holds = left > right if node.args[1].op == "more" else left < right
        count = holds.sum(axis=1, keepdims=True)
        return count, count, np.isfinite(left + right).all(axis=1)

    def say_quarter(self, node: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        moment = self.moment(node.args[0])
        share = (moment - self.span[0]) / (self.span[1] - self.span[0])
        defined = np.isfinite(share)
        quarter = np.clip(np.floor(4 * np.where(defined, share, 0.0)), 0, 3)
        return quarter, quarter, defined[:, 0]

    def say_order(self, node: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        moments = self.over(self.moment, node.args[1])
        order = np.argsort(moments, axis=1, kind="stable")
        apart = np.diff(np.sort(moments, axis=1), axis=1)
        return order, order, (apart > 0).all(axis=1)

    def say_both(self, node: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = np.concatenate([self.thing(arg) for arg in node.args], axis=1)
        places = (chosen == self.listed[:, 1:]).astype(int)
        return places, places, (chosen != NONE).all(axis=1)

    def say_states(self, node: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, _ = self.samples(node.args[0])
        family = FAMILY[node.args[0].op]
        seen = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if family == "dir":
            seen &= (np.linalg.norm(values, axis=-1) > self.numbers.thresholds.still).all(axis=(1, 2))
        values = np.where(np.isfinite(values), values, 1.0)
        valid = np.ones(values.shape[1:3], bool)
        parts = [describe(family, values[draws], valid, thresholds) for draws, thresholds in self.numbers.described]
        labels = np.concatenate(parts)[:, 0]
        return meaning(family, labels), merge(labels), seen

    # Choices and reductions -------------------------------------------------------------------------------------

    def over(self, evaluate: Callable[[Node], Any], node: Node) -> Any:
        """Evaluate with ``it`` standing for each listed thing."""
        self.each = self.listed
        try:
            return evaluate(node)
        finally:
            self.each = None

    def thing(self, node: Node) -> np.ndarray:
        """(K or 1, n) entities; NONE where a choice is not defined."""
        if node.op == "name":
            return self._entities([node.value])
        if node.op == "it":
            return self.each
        values = self.over(self.moment if node.args[1].kind == "moment" else self.number, node.args[1])
        signed = -values if node.op == "argmin" else values
        seen = np.isfinite(signed).all(axis=1, keepdims=True)
        best = np.where(seen, signed, 0.0).max(axis=1, keepdims=True)
        unique = seen & ((signed == best).sum(axis=1, keepdims=True) == 1)
        place = np.argmax(np.where(seen, signed, 0.0), axis=1)
        return np.where(unique, self.listed[0][place][:, None], NONE)

    def number(self, node: Node) -> np.ndarray:
        """(K, n) numbers; NaN where unseen."""
        if node.op == "times":
            return node.value * self.number(node.args[0])
        if node.op == "at":
            return self.at(node)
        if node.op in ("travelled", "turned"):
            subject = self.thing(node.args[0])
            return self.numbers.measured(self.label(node), lambda: self.measure(node.op, subject))[0]
        values, _ = self.samples(node.args[0])
        return _REDUCTIONS[node.op](values)

    def moment(self, node: Node) -> np.ndarray:
        """(K, n) times, s; NaN where there is no such moment or several."""
        if node.op == "time":
            return np.array([[node.value]])
        if node.op == "when_starts":
            values, times = self.samples(Node(f"speed({node.args[0].text})", "speed", node.args[:1], "track"))
            moves = values > self.numbers.thresholds.still
            first = np.argmax(moves, axis=-1)
            found = moves.any(axis=-1) & (first > 0)
        else:
            values, times = self.samples(node.args[0])
            signed = values if node.op == "when_max" else -values
            best = np.where(np.isfinite(signed), signed, -np.inf).max(axis=-1, keepdims=True)
            first = np.argmax(signed == best, axis=-1)
            found = (signed == best).sum(axis=-1) == 1
        found &= np.isfinite(values).all(axis=-1)
        return self.numbers.moments(np.where(found, times[first], np.nan))

    # Numbers ----------------------------------------------------------------------------------------------------

    def label(self, node: Node) -> str:
        """What a number is of, unique within a scene."""
        among = f" for {[self.numbers.names[entity] for entity in self.each[0]]}" if self.each is not None else ""
        return f"{node.text} from {self.span[0]} to {self.span[1]}{among}"

    def samples(self, track: Node) -> Series:
        """Series (K, n, F) of a track, or vectors (K, n, F, 3), over the interval, and its times (F,)."""
        subjects = [self.thing(arg) for arg in track.args]
        return self.numbers.measured(self.label(track), lambda: self.measure(track.op, *subjects))

    def at(self, node: Node) -> np.ndarray:
        """(K, n) what a track is at a moment: at the described time, or in the described step, nearest to it."""
        subjects = [self.thing(arg) for arg in node.args[0].args]
        moment = self.moment(node.args[1])

        def measure() -> Series:
            values, times = self.measure(node.args[0].op, *subjects)
            known = np.isfinite(moment)
            nearest = np.abs(np.where(known, moment, 0.0)[..., None] - times).argmin(axis=-1)
            nearest, known = (np.broadcast_to(array, values.shape[:2]) for array in (nearest, known))
            return np.where(known, np.take_along_axis(values, nearest[..., None], axis=-1)[..., 0], np.nan), times[:0]

        return self.numbers.measured(self.label(node), measure)[0]

    def measure(self, op: str, *subjects: np.ndarray) -> Series:
        """Numbers of things in the source's scene."""
        return _measure(self.numbers, op, self.numbers.frames(*self.span), subjects)


def _measure(numbers: Measured, op: str, frames: slice, subjects: Sequence[np.ndarray]) -> Series:
    """Numbers (K, n) or (K, n, F) or vectors (K, n, F, 3), and the times of F."""
    scene, times = numbers.scene, numbers.scene.times[frames]
    steps = slice(frames.start, frames.stop - 1)
    if op == "speed":
        return _of(numbers.speeds[:, :, steps], subjects[0]), (times[1:] + times[:-1]) / 2
    if op == "travelled":
        return _of(numbers.speeds[:, :, steps] * numbers.seconds[steps], subjects[0]).sum(axis=-1), times[:0]
    if op == "turned":
        ends = scene.axes[:, :, [frames.start, frames.stop - 1], 0]
        cosine = np.einsum("kec,kec->ke", ends[:, :, 0], ends[:, :, 1])
        return _of(np.degrees(np.arccos(np.clip(cosine, -1, 1))), subjects[0]), times[:0]
    former, latter = (_of(scene.positions[:, :, frames], subject) for subject in subjects)
    apart = former - latter
    if op == "distance":
        distance = np.linalg.norm(apart, axis=-1)
        # A choice may turn out to be the very thing it is compared with.
        return np.where((subjects[0] == subjects[1])[..., None], np.nan, distance), times
    seen_from = scene.axes[:, scene.camera : scene.camera + 1, frames]
    return np.einsum("knfij,knfj->knfi", np.broadcast_to(seen_from, (*apart.shape, 3)), apart), times


def _of(table: np.ndarray, entities: np.ndarray) -> np.ndarray:
    """(K, n, …) entries of a table (K, E, …) for entities (K or 1, n); NaN for NONE."""
    chosen = table[:, entities[0]] if len(entities) == 1 else table[np.arange(len(table))[:, None], entities]
    none = (entities == NONE).reshape(*entities.shape, *(1,) * (table.ndim - 2))
    return np.where(none, np.nan, chosen) if none.any() else chosen
