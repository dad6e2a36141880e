"""Quads: four questions, four options, every option true exactly once, nothing else true."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from assets.questions.blind_reader import Reading
from assets.questions.build import finish
from assets.questions.options import compatible, letter_of, match_quads, stratum, told_apart
from assets.questions.parameters import QuestionParameters
from assets.questions.row import NON_TEMPLATE, TYPES
from assets.questions.wording import answer_text

from .conftest import split_by_number


@pytest.fixture(scope="module")
def rows(derived):
    return [row for clip in derived for row in clip.rows]


@pytest.fixture(scope="module")
def finished(rows, parameters):
    return finish(rows, parameters, split_by_number)[0]


def quads_of(finished):
    quads = defaultdict(list)
    for row in finished:
        quads[row["quad"]].append(row)
    return quads


def candidate(number: int, meaning: str, **changes) -> dict:
    """A rel_dis candidate that reads like every other one."""
    row = {
        "qa_id": f"{number:04d}",
        "clip": f"clip {number}",
        "has_video": True,
        "type": "rel_dis",
        "viewpoint_subject": "camera",
        "viewpoint_role": "camera",
        "viewpoint_time": None,
        "targets": ["red robot", "blue crate"],
        "target_roles": ["agent", "object"],
        "target_classes": ["robot", "crate"],
        "interval_start": 1.0,
        "interval_end": 3.0,
        "states": [f"state {state}" for state in meaning.split(".")],
        "meaning": meaning,
        "tolerated": [],
    }
    return row | changes


def test_all_types_reach_train_and_bench(finished):
    for split in ("train", "bench"):
        assert {row["type"] for row in finished if row["split"] == split} == set(TYPES)


def test_every_option_is_the_truth_of_exactly_one_question(finished):
    for members in quads_of(finished).values():
        assert len(members) == 4
        assert sorted(row["answer"] for row in members) == ["A", "B", "C", "D"]
        assert len({tuple(row["options"]) for row in members}) == 1
        assert len(set(members[0]["options"])) == 4
        for row in members:
            bare = row["type"] == NON_TEMPLATE and row["states"][0] in row["options"]
            truth = row["states"][0] if bare else answer_text(row["states"])
            assert row["options"]["ABCD".index(row["answer"])] == truth


def test_a_quad_stays_in_one_split_and_one_stratum(finished, rows):
    known = {row["qa_id"]: row for row in rows}
    for members in quads_of(finished).values():
        assert len({row["split"] for row in members}) == 1
        assert all(row["split"] == split_by_number(row["clip"]) for row in members)
        assert len({stratum(known[row["qa_id"]]) for row in members}) == 1


def test_no_other_option_is_true_within_tolerance(finished, rows):
    known = {row["qa_id"]: row for row in rows}
    for members in quads_of(finished).values():
        for one in members:
            for other in members:
                if one is not other:
                    assert compatible(known[one["qa_id"]], known[other["qa_id"]])


def test_partners_span_about_the_same_time(finished, parameters):
    for members in quads_of(finished).values():
        lengths = [row["interval_end"] - row["interval_start"] for row in members]
        assert max(lengths) / min(lengths) <= 1 + parameters.interval_slack + 1e-6


def test_letters_are_even_and_unforeseeable(finished):
    letters = Counter(row["answer"] for row in finished)
    assert len(set(letters.values())) == 1
    orders = Counter(tuple(np.argsort(members[0]["options"])) for members in quads_of(finished).values())
    assert len(orders) == 24


def test_a_stratum_without_four_answers_makes_no_quad(parameters):
    assert match_quads([candidate(n, "0.1.2"[: 1 + 2 * (n % 3)]) for n in range(30)], parameters) == []


def test_an_answer_that_is_also_true_of_a_partner_disqualifies(parameters):
    rows = [candidate(n, meaning) for n, meaning in enumerate(("0", "1", "0.1", "1.0"))]
    assert len(match_quads(rows, parameters)) == 1
    rows[2]["tolerated"] = ["0"]
    assert match_quads(rows, parameters) == []


def test_partners_that_read_alike_are_preferred(parameters):
    answers = ("0", "1", "0.1", "1.0")
    near = [candidate(n, meaning, interval_start=1.0, interval_end=3.0) for n, meaning in enumerate(answers)]
    far = [
        candidate(n + 4, meaning, interval_start=5.0, interval_end=7.5, target_classes=["dog", "barrel"])
        for n, meaning in enumerate(answers)
    ]
    rows = [row for pair in zip(far, near, strict=True) for row in pair]
    starts = [{rows[member]["interval_start"] for member in quad.members} for quad in match_quads(rows, parameters)]
    assert starts and all(len(start) == 1 for start in starts)


def test_questions_that_the_reader_tells_apart_do_not_share_options(parameters):
    rows = [candidate(n, meaning) for n, meaning in enumerate(("0", "1", "0.1", "1.0") * 2)]
    products = np.zeros((8, 8), np.float32)
    # Of the first four the reader knows the answers; the other four look alike to it.
    products[:4, :4] = 9 * np.eye(4)
    reading = Reading(products, np.eye(8, dtype=np.float32))
    quads = match_quads(rows, parameters, reading)
    assert quads and all(sum(member < 4 for member in quad.members) < 2 for quad in quads)
    assert len(match_quads(rows, parameters)) == 2


def test_what_a_reader_finds_is_measured_as_its_beliefs_differ():
    sure = 20 * np.eye(4)
    alike = np.tile([3.0, 1.0, 0.0, -2.0], (4, 1))
    quad = np.arange(4)[None]
    assert told_apart(sure, quad) == (pytest.approx([0.75]), pytest.approx([0.75]))
    assert told_apart(alike, quad) == (pytest.approx([0.0]), pytest.approx([0.0]))


def test_a_quad_stays_within_a_group(parameters):
    rows = [candidate(n, meaning) for n, meaning in enumerate(("0", "1", "0.1", "1.0"))]
    assert len(match_quads(rows, parameters, groups=["a"] * 4)) == 1
    assert match_quads(rows, parameters, groups=["a", "a", "a", "b"]) == []


def test_matching_does_not_depend_on_order(rows, parameters):
    pool = rows[::7]
    shuffled = [pool[index] for index in np.random.default_rng(0).permutation(len(pool))]
    one, other = match_quads(pool, parameters), match_quads(shuffled, parameters)

    def named(quads, rows):
        return [(quad.quad, [(rows[m]["qa_id"], letter_of(quad, m)) for m in quad.members]) for quad in quads]

    assert named(one, pool) == named(other, shuffled)


def test_no_type_outweighs_the_others(finished, rows):
    even = QuestionParameters(type_balance=1.0, max_per_clip=10_000, reader_epochs=0)
    outcome = finish(rows, even, lambda clip: "train")[1]
    found, kept = ([outcome["train", kind, what] for kind in TYPES] for what in ("quads", "kept_quads"))
    assert max(found) > max(kept) == np.ceil(np.median(found))
    assert all(k == min(f, max(kept)) for f, k in zip(found, kept, strict=True))


def test_no_clip_outweighs_the_others(finished, rows, parameters):
    assert max(Counter(row["clip"] for row in finished).values()) <= parameters.max_per_clip
    few = finish(rows, QuestionParameters(max_per_clip=12, reader_epochs=0), split_by_number)[0]
    assert len(few) > 100 and max(Counter(row["clip"] for row in few).values()) <= 12
    assert {row["type"] for row in few if row["split"] == "train"} == set(TYPES)
