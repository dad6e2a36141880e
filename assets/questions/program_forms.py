"""Which programs a clip is asked: a fixed set of forms, filled with its things and intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from assets.questions.parameters import QuestionParameters
from assets.questions.programs import LEAST_NAMES, MOTION, Node, parse
from assets.questions.states import EVEN, Scene

if TYPE_CHECKING:
    from assets.questions.candidates import Clip

# Lengths of intervals, as shares of the clip; questions share options only among about equally long ones.
LENGTHS = (0.3, 0.6, 0.8)
SHORTEST_STEPS = 4
# A moment is known to half a step, so a quarter has to be longer than one.
QUARTER_STEPS = 8
# So many lists of four are tried.
LISTINGS = 40
NAME_SPANS = 12
# So many programs of every other form are drawn per clip.
PER_FORM = 5


@dataclass(frozen=True)
class Form:
    """A way to ask: how many things it lists, whether it takes one thing beside them, and the program.

    In the program, ``other`` is the camera or a thing that is not listed. ``steps`` is the least number of described
    steps that its interval takes.
    """

    listed: int
    takes_thing: bool
    program: str
    steps: int = SHORTEST_STEPS


# Forms that ask for a name: of what moves most, and of what is nearest.
MOVING_FORMS = [
    Form(4, False, "argmax({listed}, travelled(it, {span}))"),
    Form(4, False, "argmax({listed}, max(speed(it), {span}))"),
    Form(4, False, "argmax({listed}, turned(it, {span}))"),
    Form(4, False, "argmin({listed}, when_max(speed(it), {span}))"),
]
NEAR_FORMS = [
    Form(4, False, "argmin({listed}, min(distance(it, {other}), {span}))"),
    Form(4, False, "argmin({listed}, when_min(distance(it, {other}), {span}))"),
    Form(4, False, "argmin({listed}, at(distance(it, {other}), when_max(speed({other}), {span})))"),
]
_CLOSER = "less(last(distance(it, {other}), {span}), first(distance(it, {other}), {span}))"
_COMES_CLOSER = "less(min(distance(it, {other}), {span}), min(distance({thing}, {other}), {span}))"
_CLOSEST = "argmin({listed}, min(distance(it, {other}), {span}))"
_CLOSEST_AT_FIRST = "argmin({listed}, first(distance(it, {other}), {span}))"
_FIRST_CLOSEST = "argmin({listed}, when_min(distance(it, {other}), {span}))"
_FARTHEST = "argmax({listed}, travelled(it, {span}))"
_FASTEST = "argmax({listed}, max(speed(it), {span}))"
_FIRST_FASTEST = "argmin({listed}, when_max(speed(it), {span}))"
FORMS = [
    Form(4, True, "count({listed}, more(travelled(it, {span}), travelled({thing}, {span})))"),
    Form(4, True, "count({listed}, more(max(speed(it), {span}), max(speed({thing}), {span})))"),
    Form(4, True, f"count({{listed}}, {_COMES_CLOSER})"),
    Form(4, False, f"count({{listed}}, {_CLOSER})"),
    Form(0, True, "quarter(when_min(distance({thing}, {other}), {span}), {span})", QUARTER_STEPS),
    Form(0, True, "quarter(when_max(speed({thing}), {span}), {span})", QUARTER_STEPS),
    Form(0, True, "quarter(when_starts({thing}, {span}), {span})", QUARTER_STEPS),
    Form(3, False, f"quarter(when_max(speed({_CLOSEST_AT_FIRST}), {{span}}), {{span}})", QUARTER_STEPS),
    Form(3, False, f"quarter(when_max(speed({_CLOSEST}), {{span}}), {{span}})", QUARTER_STEPS),
    Form(3, False, "order({listed}, when_max(speed(it), {span}))"),
    Form(3, False, "order({listed}, when_min(distance(it, {other}), {span}))"),
    Form(3, False, "order({listed}, when_starts(it, {span}))"),
    Form(2, False, f"both({_FARTHEST}, {_FIRST_FASTEST})"),
    Form(2, False, f"both({_CLOSEST}, {_FASTEST})"),
    Form(2, False, f"both({_FIRST_CLOSEST}, {_FARTHEST})"),
    Form(3, False, f"how(distance({_CLOSEST_AT_FIRST}, {{other}}), {{span}})"),
    Form(3, False, f"how(distance({_FASTEST}, {{other}}), {{span}})"),
    Form(3, False, f"how(speed({_FARTHEST}), {{span}})"),
    Form(2, True, f"how(direction({_CLOSEST}, {{thing}}), {{span}})"),
]


def drawn_programs(
    scene: Scene, about: "Clip", parameters: QuestionParameters, rng: np.random.Generator, poses_known: bool = True
) -> Iterator[Node]:
    """Draw programs that a scene may answer.

    Args:
        scene: at described times.
        about: the clip's names.
        parameters: which times may end an interval, in sampled steps.
        rng: chooses things and intervals.
        poses_known: whether motion against the ground may be asked for.
    """
    spans = _spans(scene.times, parameters)
    if not len(spans):
        return
    for text in chain(_name_casts(scene, about, spans, parameters, rng), _casts(scene, about, spans, rng)):
        program = parse(text)
        if poses_known or all(node.op not in MOTION for node in program.nodes):
            yield program


def _name_casts(
    scene: Scene, about: "Clip", spans: np.ndarray, parameters: QuestionParameters, rng: np.random.Generator
) -> Iterator[str]:
    """Programs that ask for a name: of the same four things over many about equally long intervals."""
    start, end = spans[rng.integers(len(spans))]
    present = _present(scene, start, end, rng)
    if len(present) < LEAST_NAMES:
        return
    ratio = np.diff(spans)[:, 0] / (end - start)
    near = (ratio <= 1 + parameters.interval_slack) & (ratio >= 1 / (1 + parameters.interval_slack))
    alike = rng.permutation(spans[near])[:NAME_SPANS]
    other = scene.camera if len(present) == LEAST_NAMES or rng.random() < 0.5 else present[-1]
    present = present[present != other]
    apart = np.linalg.norm(scene.positions[0, present] - scene.positions[0, other], axis=-1)
    steps = np.linalg.norm(np.diff(scene.positions[0, present], axis=1), axis=-1)
    moved = np.stack([steps[:, first:last].sum(axis=1) for first, last in alike], axis=1)
    nearness = np.stack([-apart[:, first : last + 1].min(axis=1) for first, last in alike], axis=1)
    for table, forms in ((moved, MOVING_FORMS), (nearness, NEAR_FORMS)):
        listed = _four_winners(np.nan_to_num(table, nan=-np.inf), rng)
        if listed is not None:
            yield from (
                _cast(form, scene, about, span, present[listed], other, other) for form in forms for span in alike
            )


def _four_winners(table: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Four rows of a table (n, S), each the greatest of the four in some column; None where none are found."""
    for _ in range(LISTINGS):
        four = rng.permutation(len(table))[:LEAST_NAMES]
        if len(np.unique(table[four].argmax(axis=0))) == LEAST_NAMES:
            return four
    return None


def _casts(scene: Scene, about: "Clip", spans: np.ndarray, rng: np.random.Generator) -> Iterator[str]:
    """All other programs, each drawn on its own."""
    for form in FORMS:
        long = spans[np.diff(spans)[:, 0] >= form.steps]
        for span in long[rng.integers(len(long), size=PER_FORM)] if len(long) else ():
            present = _present(scene, *span, rng)
            needed = form.listed + form.takes_thing
            if len(present) < needed:
                continue
            other = scene.camera if len(present) == needed or rng.random() < 0.5 else present[needed]
            beside = present[form.listed] if form.takes_thing else other
            yield _cast(form, scene, about, span, present[: form.listed], other, beside)


def _cast(
    form: Form, scene: Scene, about: "Clip", span: np.ndarray, listed: np.ndarray, other: int, beside: int
) -> str:
    """A form with its names and times."""
    start, end = (round(float(scene.times[frame]), 6) for frame in span)
    return form.program.format(
        listed=[about.names[entity] for entity in listed],
        other=repr(about.names[other]),
        thing=repr(about.names[beside]),
        span=f"between({start}, {end})",
    )


def _present(scene: Scene, start: int, end: int, rng: np.random.Generator) -> np.ndarray:
    """What is seen throughout an interval, but for the camera, in a drawn order."""
    seen = np.isfinite(scene.positions[0, :-1, start : end + 1]).all(axis=(1, 2))
    return rng.permutation(np.flatnonzero(seen))


def _spans(times: np.ndarray, parameters: QuestionParameters) -> np.ndarray:
    """(S, 2) first and last described time of the intervals that may be asked about, of a few lengths."""
    last = len(times) - 1 - -(-parameters.skip_last // parameters.stride)
    lengths = sorted({max(SHORTEST_STEPS, round(share * last)) for share in LENGTHS})
    spans = [(start, start + length) for length in lengths for start in range(last - length + 1)]
    steps = np.diff(times)
    return np.array(
        [span for span in spans if steps[slice(*span)].max() <= EVEN * steps[slice(*span)].min()], int
    ).reshape(-1, 2)
