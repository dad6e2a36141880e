"""Programs over a scene: read, refused, answered, derived again, equal to a slow second reading, fit to be options."""

import ast
import json
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.questions.candidates import Clip
from assets.questions.compositional import derive_compositional, find, measured, rederive_program, row_of
from assets.questions.evaluation import QUARTERS
from assets.questions.parameters import QuestionParameters
from assets.questions.pointing import Pointing
from assets.questions.program_wording import program_question
from assets.questions.programs import MOTION, ProgramError, listing, parse, skeleton
from assets.questions.row import CANDIDATES
from assets.questions.stability import noisy
from assets.questions.states import Scene
from assets.questions.wording import CAMERA

from .conftest import _path, clip_of

SPAN = "between(1.0, 6.0)"
FOUR = "['red car', 'blue car', 'dog', 'van']"
NAMES = ["red car", "blue car", "dog", "van", "robot", "bin"]
PARAMETERS = QuestionParameters(stride=2, draws=8)


def scene_of_movers(number: int) -> Scene:
    """Six things that move and a camera that drifts along."""
    rng = np.random.default_rng(number)
    times = np.linspace(0.0, 8.0, 33)
    things = np.stack([_path(rng, times, True) for _ in NAMES])
    camera = np.stack([0.2 * times, 0 * times, 0.1 * times], axis=1)
    # Rows forward, left, up of a level viewer: z forward, -x left, -y up.
    axes = np.broadcast_to([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], (len(NAMES) + 1, len(times), 3, 3))
    return Scene(times, np.concatenate([things, camera[None]])[None], axes[None].copy())


def about_of(number: int, names=NAMES) -> Clip:
    return Clip(
        clip=clip_of(number),
        shard="shard-000000",
        has_video=True,
        estimator="synthetic",
        names=[*names, CAMERA],
        roles=["agent"] * len(names) + [CAMERA],
        classes=[*names, CAMERA],
        pointing=Pointing([*names, CAMERA], list(names), None, 48),
        scale=8.0,
    )


def clip(number: int, parameters=PARAMETERS):
    scene = scene_of_movers(number)
    return scene, noisy(scene, {}, parameters, number), about_of(number), parameters


@pytest.fixture(scope="module")
def rows():
    return [row for number in (0, 10, 13, 14, 15) for row in derive_compositional(*clip(number))[0]]


def program_of(row):
    return parse(json.loads(row["evidence"])["program"])


# A second, slow reading -------------------------------------------------------------------------------------------


class Slow:
    """Reads a program's text with one number at a time, straight from what the operations are said to mean."""

    def __init__(self, scene: Scene, names, stride: int, still: float):
        self.frames = list(range(0, len(scene.times), stride))
        self.at = dict(zip([*names, CAMERA], scene.positions[0], strict=True))
        self.look = dict(zip([*names, CAMERA], scene.axes[0], strict=True))
        self.times, self.still, self.it = scene.times, still, None

    def read(self, node):
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.it
        if isinstance(node, ast.List):
            return [part.value for part in node.elts]
        if isinstance(node, ast.BinOp):
            return node.left.value * self.read(node.right)
        op, args = node.func.id, node.args
        if op in ("argmax", "argmin"):
            values = self.each(args)
            return (max if op == "argmax" else min)(values, key=values.get)
        if op == "order":
            values = self.each(args)
            return [list(values).index(name) for name in sorted(values, key=values.get)]
        if op == "count":
            return sum(self.each(args).values())
        if op == "both":
            pair = self.read(args[0].args[0])
            return [pair.index(self.read(arg)) for arg in args]
        return getattr(self, op)(*args)

    def each(self, args):
        values = {}
        for name in self.read(args[0]):
            self.it = name
            values[name] = self.read(args[1])
        self.it = None
        return values

    def inside(self, span):
        start, end = (part.value for part in span.args)
        return [frame for frame in self.frames if start - 0.01 <= self.times[frame] <= end + 0.01]

    def track(self, node, span):
        frames = self.inside(span)
        things = [self.read(arg) for arg in node.args]
        if node.func.id == "distance":
            return [(self.times[f], np.linalg.norm(self.at[things[0]][f] - self.at[things[1]][f])) for f in frames]
        pairs = pairwise(frames)
        where, when = self.at[things[0]], self.times
        return [((when[f] + when[g]) / 2, np.linalg.norm(where[g] - where[f]) / (when[g] - when[f])) for f, g in pairs]

    def max(self, node, span):
        return max(value for _, value in self.track(node, span))

    def min(self, node, span):
        return min(value for _, value in self.track(node, span))

    def first(self, node, span):
        return self.track(node, span)[0][1]

    def last(self, node, span):
        return self.track(node, span)[-1][1]

    def travelled(self, thing, span):
        frames, where = self.inside(span), self.at[self.read(thing)]
        return sum(np.linalg.norm(where[g] - where[f]) for f, g in pairwise(frames))

    def turned(self, thing, span):
        frames, look = self.inside(span), self.look[self.read(thing)]
        return float(np.degrees(np.arccos(np.clip(look[frames[0], 0] @ look[frames[-1], 0], -1, 1))))

    def when_max(self, node, span):
        return max(self.track(node, span), key=lambda pair: pair[1])[0]

    def when_min(self, node, span):
        return min(self.track(node, span), key=lambda pair: pair[1])[0]

    def when_starts(self, thing, span):
        speed = ast.Call(ast.Name("speed"), [thing], [])
        return next(time for time, value in self.track(speed, span) if value > self.still)

    def quarter(self, moment, span):
        start, end = (part.value for part in span.args)
        return min(int(4 * (self.read(moment) - start) / (end - start)), 3)

    def more(self, left, right):
        return self.read(left) > self.read(right)

    def less(self, left, right):
        return self.read(left) < self.read(right)

    def at_moment(self, track, moment):
        when = self.read(moment)
        frame = min(self.frames, key=lambda frame: abs(self.times[frame] - when))
        return np.linalg.norm(np.subtract(*(self.at[self.read(arg)][frame] for arg in track.args)))


def test_a_slow_second_reading_agrees():
    compared = Counter()
    for number in (10, 15):
        scene, draws, about, parameters = clip(number)
        slow = Slow(scene, NAMES, parameters.stride, parameters.still_share * about.scale)
        for row in derive_compositional(scene, draws, about, parameters)[0]:
            program = program_of(row)
            # At equal distance from two described times either may be meant.
            if program.kind == "states" or "at(" in program.text:
                continue
            said = slow.read(ast.parse(program.text, mode="eval").body)
            said = about.names.index(said) if program.kind == "thing" else said
            assert row["meaning"] == ".".join(map(str, said if isinstance(said, list) else [said])), program.text
            compared[program.kind] += 1
    assert set(compared) == {"thing", "count", "quarter", "order", "both"} and compared.total() > 40


# Rows -------------------------------------------------------------------------------------------------------------


def test_every_kind_of_answer_is_asked_within_the_limit(rows):
    assert {program_of(row).kind for row in rows} == {"thing", "count", "quarter", "order", "both", "states"}
    per_clip = Counter(row["clip"] for row in rows)
    assert max(per_clip.values()) <= PARAMETERS.candidates_per_type and min(per_clip.values()) > 20


def test_evidence_alone_gives_the_answer_again(rows):
    for row in rows:
        assert rederive_program(row) == row["states"]
        assert json.dumps(json.loads(row["evidence"]), sort_keys=True) == row["evidence"]


def test_a_changed_number_in_the_evidence_is_noticed(rows):
    row = next(row for row in rows if program_of(row).text.startswith("quarter(when_max(speed('"))
    evidence = json.loads(row["evidence"])
    steps = len(evidence["numbers"][0]["values"][0])
    last = row["states"] == [QUARTERS[3]]
    evidence["numbers"][0]["values"] = [np.arange(steps, dtype=float)[:: -1 if last else 1].tolist()]
    assert rederive_program(row | {"evidence": json.dumps(evidence)}) != row["states"]
    evidence["numbers"][0]["of"] = "another thing"
    with pytest.raises(ProgramError, match="does not hold"):
        rederive_program(row | {"evidence": json.dumps(evidence)})


def test_rows_have_the_columns_of_all_candidates(rows):
    for row in rows:
        assert set(row) - {"option_pool"} == set(CANDIDATES.names) - {"option_pool"}
        assert row["type"] == "non_temp" and row["viewpoint_subject"] == CAMERA
        assert (row["viewpoint_time"] is None) == (row["viewpoint_kind"] == "rel")
        assert all(part.isdecimal() for part in row["meaning"].split("."))
        assert len(row["targets"]) == len(row["target_roles"]) == len(row["target_classes"])
        assert row["meaning"] not in row["tolerated"] and row["stability"] >= PARAMETERS.min_stability
        assert all(name in row["question"] for name in row["targets"])


def test_identities_differ_and_the_same_clip_gives_the_same_rows(rows):
    assert len({row["qa_id"] for row in rows}) == len(rows)
    assert derive_compositional(*clip(3)) == derive_compositional(*clip(3))


def test_pools_ask_alike_and_answers_of_a_pool_can_be_told_apart(rows):
    pools = defaultdict(list)
    for row in rows:
        pools[row["option_pool"]].append(row)
    for pool in pools.values():
        kind = program_of(pool[0]).kind
        assert len({skeleton(program_of(row), kind == "thing") for row in pool}) == 1
        assert len({len(row["targets"]) for row in pool}) == 1
        words = defaultdict(set)
        for row in pool:
            words[row["meaning"]].add(tuple(row["states"]))
        if kind != "states":
            assert all(len(said) == 1 for said in words.values())
        assert len({tuple(said) for said in map(frozenset, words.values())}) == len(words)


def test_names_are_options_only_where_four_questions_of_the_clip_list_them(rows):
    pools = defaultdict(list)
    for row in rows:
        if program_of(row).kind == "thing":
            pools[row["option_pool"]].append(row)
    assert pools
    for pool in pools.values():
        assert len({row["clip"] for row in pool}) == 1 and len({row["meaning"] for row in pool}) == 4
        for row in pool:
            assert {one["states"][0] for one in pool} == set(listing(program_of(row)))


def test_without_the_cameras_path_no_motion_is_asked_for():
    rows, _ = derive_compositional(*clip(0), poses_known=False)
    assert rows and all(node.op not in MOTION for row in rows for node in program_of(row).nodes)


def test_a_clip_of_one_thing_or_few_frames_asks_nothing_wrong():
    scene, _, _, parameters = clip(0)
    one = Scene(scene.times, scene.positions[:, [0, -1]], scene.axes[:, [0, -1]])
    rows, _ = derive_compositional(one, noisy(one, {}, parameters, 0), about_of(0, NAMES[:1]), parameters)
    assert {row["targets"][0] for row in rows} <= {"red car"}
    short = Scene(scene.times[:6], scene.positions[:, :, :6], scene.axes[:, :, :6])
    assert derive_compositional(short, noisy(short, {}, parameters, 0), about_of(0), parameters) == ([], [])


def test_what_is_unseen_is_no_answer():
    scene, _, about, parameters = clip(0)
    scene.positions[0, 2, 10:14] = np.nan
    numbers = measured(scene, noisy(scene, {}, parameters, 0), about, parameters)
    assert find(parse(f"argmax({FOUR}, travelled(it, {SPAN}))"), numbers, about, parameters) == (None, "undefined")
    for row in derive_compositional(scene, noisy(scene, {}, parameters, 0), about, parameters)[0]:
        seen = row["interval_start"] > 3.3 or row["interval_end"] < 2.4
        assert "dog" not in row["targets"] or seen


def test_mirrored_and_scaled_scenes_give_the_same_answers_but_for_directions():
    scene, _, about, parameters = clip(1)
    parameters = parameters.model_copy(update={"min_stability": 0.0})
    moved = Scene(scene.times, 3 * scene.positions * [-1, 1, 1], scene.axes * [-1, 1, 1])
    larger = Clip(**(vars(about) | {"scale": 3 * about.scale}))
    compared = 0
    here = measured(scene, scene, about, parameters)
    there = measured(moved, moved, larger, parameters)
    for row in derive_compositional(scene, scene, about, parameters)[0]:
        program = program_of(row)
        if not any(node.op == "direction" for node in program.nodes):
            assert row_of(find(program, here, about, parameters)[0], here, about)["states"] == row["states"]
            assert row_of(find(program, there, larger, parameters)[0], there, larger)["states"] == row["states"]
            compared += 1
    assert compared > 20


# The language -----------------------------------------------------------------------------------------------------


def test_programs_are_read_back_as_they_are_written(rows):
    for row in rows:
        program = program_of(row)
        assert parse(program.text) == program and parse(program.text).text == json.loads(row["evidence"])["program"]


def test_a_program_is_asked_in_words():
    asked = {
        f"argmin({FOUR}, min(distance(it, 'camera'), {SPAN}))": "Between 1.0s and 6.0s, following the perspective of "
        "camera, which of red car, blue car, dog and van comes closest to camera?",
        f"quarter(when_max(speed('dog'), {SPAN}), {SPAN})": "Between 1.0s and 6.0s, from the perspective of camera at "
        "1.0s, in which quarter of that time is the moment of the top speed of dog?",
        f"how(distance(argmax({FOUR}, turned(it, {SPAN})), 'bin'), {SPAN})": "Between 1.0s and 6.0s, from the "
        "perspective of camera at 1.0s, how does the distance between bin and the one of red car, blue car, dog and "
        "van that has the greatest angle between first and last heading change?",
        f"count({FOUR}, less(last(distance(it, 'bin'), {SPAN}), 0.5 * first(distance(it, 'bin'), {SPAN})))": "Between "
        "1.0s and 6.0s, following the perspective of camera, for how many of red car, blue car, dog and van is its "
        "distance to bin at the end smaller than 0.5 times its distance to bin at the beginning?",
    }
    for text, words in asked.items():
        assert program_question(parse(text)) == words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__import__('os').system('true')", "no operation|no part"),
        ("open('x')", "no operation"),
        ("(lambda: 1)()", "no part"),
        ("'dog'", "asks for a thing"),
        (f"max(speed('dog'), {SPAN})", "asks for a number"),
        (f"argmax({FOUR}, travelled(it, 'dog'))", "takes"),
        (f"argmax({FOUR}, travelled('robot', {SPAN}))", "does not say 'it'"),
        (f"how(speed(it), {SPAN})", "outside"),
        (f"argmax(['dog', 'van'], travelled(it, {SPAN}))", "lists 2"),
        (f"argmin({FOUR}, min(distance(it, 'dog'), {SPAN}))", "lists 'dog' and refers"),
        (f"argmax(['dog', 'dog', 'van', 'bin'], travelled(it, {SPAN}))", "twice"),
        (f"argmin({FOUR}, min(distance(it, argmax({FOUR}, travelled(it, {SPAN}))), {SPAN}))", "another list"),
        (f"how(distance('dog', 'dog'), {SPAN})", "with itself"),
        (f"how(direction('dog', 'camera'), {SPAN})", "before it"),
        ("how(speed('dog'), between(6.0, 1.0))", "does not end"),
        (f"argmax({FOUR}, at(speed(it), 7.0))", "0 intervals"),
        (f"quarter(3.0, {SPAN})", "given time"),
        (f"quarter(when_max(speed('dog'), between(0.0, 2.0)), {SPAN})", "2 intervals"),
        (f"count({FOUR}, more(at(speed(it), 9.0), max(speed('bin'), {SPAN})))", "outside its interval"),
        (f"count({FOUR}, more(travelled(it, {SPAN}), 1e99 * travelled('bin', {SPAN})))", "no part"),
        ("(" * 500 + ")" * 500, "no expression"),
        ("-" * 1900 + "1", "no expression|no part"),
        ("1" * 5000, "longer"),
        ("how(speed('dog'), between(1.0, 6.0)", "no expression"),
        ("\x00", "no expression"),
    ],
)
def test_what_is_no_question_is_refused_with_the_reason(text, reason):
    with pytest.raises(ProgramError, match=reason):
        parse(text)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=80) | st.from_regex(r"(arg|max|count|it|\(|\)|'|,|between|1\.0| ){1,20}", fullmatch=True))
def test_no_text_does_more_than_be_refused(text):
    with pytest.raises(ProgramError):
        parse(text)


def test_a_name_or_time_that_the_clip_lacks_is_refused():
    scene, draws, about, parameters = clip(0)
    numbers = measured(scene, draws, about, parameters)
    with pytest.raises(ProgramError, match="no 'unicorn'"):
        find(parse(f"how(speed('unicorn'), {SPAN})"), numbers, about, parameters)
    with pytest.raises(ProgramError, match="outside the clip"):
        find(parse("how(speed('dog'), between(1.0, 99.0))"), numbers, about, parameters)


def test_an_answer_that_noise_or_tolerance_changes_is_unstable():
    scene, _, about, parameters = clip(0)
    scene.positions[0, 1] = scene.positions[0, 0] * 1.0001
    numbers = measured(scene, noisy(scene, {}, parameters, 0), about, parameters)
    two = "['red car', 'blue car']"
    close = f"both(argmax({two}, travelled(it, {SPAN})), argmax({two}, max(speed(it), {SPAN})))"
    assert find(parse(close), numbers, about, parameters) == (None, "unstable")


def test_the_moment_of_an_answer_is_where_it_was_put():
    scene, _, about, parameters = clip(0)
    times = scene.times
    for number, quarter in enumerate(QUARTERS):
        peak = 1.0 + 6.0 * (number + 0.5) / 4
        speed = 0.3 + 2 * np.exp(-(((times - peak) / 0.4) ** 2))
        scene.positions[0, 2, :, 0] = np.cumsum(speed) * 0.25
        scene.positions[0, 2, :, 1:] = [1.0, 6.0]
        numbers = measured(scene, noisy(scene, {}, parameters, 0), about, parameters)
        program = parse("quarter(when_max(speed('dog'), between(1.0, 7.0)), between(1.0, 7.0))")
        found, _ = find(program, numbers, about, parameters)
        assert row_of(found, numbers, about)["states"] == [quarter]
