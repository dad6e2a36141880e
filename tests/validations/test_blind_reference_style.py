"""Rows made the reference's way keep their right answer and get wrong options of described noise."""

import json
import re
from dataclasses import asdict
from itertools import pairwise

import pytest

from assets.questions.parameters import QuestionParameters
from assets.questions.states import STATE_TEXTS, Thresholds
from assets.questions.wording import answer_text
from benchmarks.questions.reference_style import reference_style
from validations.blind_text import states_of

TRUE = {
    "dis": ["Becomes larger", "Keep nearly constant"],
    "spd": ["Becomes smaller"] * 6,
    "spd_comp": ["Nearly the same", "The former is faster"],
    "dir": ["Front", "Front|Left", "Left", "Behind|Left", "Behind"],
    "ori": ["Right"],
    "dir_pred": ["Front"],
}


def row(number: int, family: str, states: list[str]) -> dict:
    evidence = {"family": family, "thresholds": asdict(Thresholds.of(QuestionParameters(), 0.01 * number + 0.01))}
    return {
        "qa_id": f"{number}",
        "quad": "q",
        "type": f"rel_{family}",
        "states": states,
        "evidence": json.dumps(evidence),
    }


@pytest.fixture(scope="module")
def rows():
    return [row(number, family, states) for number, (family, states) in enumerate(20 * list(TRUE.items()))]


def test_the_right_answer_stands_among_noise_of_like_length(rows):
    made = reference_style(rows, 0)
    assert [new["qa_id"] for new in made] == [old["qa_id"] for old in rows if not old["type"].endswith("dir_pred")]
    lengths = set()
    for new in made:
        family, options = new["type"][4:], list(new["options"])
        assert len(set(options)) == 4 and "quad" not in new
        assert options.pop("ABCD".index(new["answer"])) == answer_text(new["states"])
        for option in options:
            states = states_of(option)
            assert set(states) <= set(STATE_TEXTS[family])
            assert all(one != other for one, other in pairwise(states))
            lengths.add(len(states) - len(new["states"]))
            assert max(1, len(new["states"]) - 3) <= len(states) <= len(new["states"]) + 3
    assert lengths == set(range(-3, 4))
    assert {new["answer"] for new in made} == set("ABCD")


def test_a_comparison_that_never_changes_has_its_own_words():
    (new,) = reference_style([row(0, "spd_comp", ["The latter is faster"])], 0)
    assert new["options"]["ABCD".index(new["answer"])] == "(1) The latter is always faster."
    assert sum(bool(re.search("always", option)) for option in new["options"]) == 1


def test_options_depend_on_seed_and_rows_alone(rows):
    made = reference_style(rows, 0)
    assert reference_style(rows[::-1], 0)[::-1] == made
    assert reference_style(rows, 1) != made
