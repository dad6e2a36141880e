"""The stage in which answers are stated."""

import numpy as np
import pytest

from models.data import questions_of
from models.guide import states_of
from models.prompt import LETTERS
from models.reading import WRONG, _drawn_out, open_share, reading_rows, stated_question

OPTIONS = [
    "(1) Becomes larger. (2) Keep nearly constant. (3) Becomes larger.",
    "(1) Becomes smaller.",
    "(1) Front|Left. (2) Behind.",
    "(1) Keep nearly constant and then become larger. (2) Becomes smaller.",
]
MOMENTS = 12


def drawn(options, times: int, moments: int = MOMENTS, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [stated_question(options, moments, rng) for _ in range(times)]


def merged(told) -> list[str]:
    return [state for place, state in enumerate(told) if told[place - 1 : place] != [state]]


def test_states_of_an_option():
    assert states_of(OPTIONS[0]) == ["Becomes larger", "Keep nearly constant", "Becomes larger"]
    assert states_of("(10) Left. (11) Right.") == ["Left", "Right"]
    assert states_of("red car") == ["red car"] and states_of("3.5 (metres). 2") == ["3.5 (metres). 2"]


def test_letters_of_stated_questions_are_even_and_options_are_all_there():
    found = drawn(OPTIONS, 1200)
    letters = [letter for *_, letter in found]
    assert all(240 < letters.count(letter) < 360 for letter in LETTERS)
    assert all(sorted(options) == sorted(OPTIONS) for _, options, _ in found)
    assert len({tuple(options) for _, options, _ in found}) == 24


def test_what_is_stated_is_what_the_letters_option_says(monkeypatch):
    monkeypatch.setattr("models.reading.WRONG", 0.0)
    begins, lengths = set(), set()
    for said, options, letter in drawn(OPTIONS, 400):
        told = [state for state in said if state]
        begin = said.index(told[0])
        assert said == [""] * begin + told + [""] * (MOMENTS - begin - len(told))
        assert merged(told) == states_of(options[LETTERS.index(letter)])
        begins.add(begin)
        lengths.add(len(told))
    # A quarter of the moments at least, all of them at most, anywhere.
    assert lengths == set(range(3, MOMENTS + 1)) and begins == set(range(10))


def test_some_of_the_stated_states_are_wrong(monkeypatch):
    found = drawn(OPTIONS, 500, seed=3)
    monkeypatch.setattr("models.reading.WRONG", 0.0)
    states = {state for option in OPTIONS for state in states_of(option)}
    assert {state for said, *_ in found for state in said} == states | {""}
    right = []
    for said, options, letter in found:
        told = [state for state in said if state]
        truth = states_of(options[LETTERS.index(letter)])
        right += [state in truth for state in told] if len(truth) == 1 else []
    # One in six of the wrong ones says the right thing all the same.
    expected = WRONG * (1 - 1 / len(states))
    assert len(right) > 500 and abs(1 - np.mean(right) - expected) < 0.05


def test_options_without_states_are_states_themselves(monkeypatch):
    monkeypatch.setattr("models.reading.WRONG", 0.0)
    four = ["red car", "blue box", "4.5s", "(no)."]
    for said, options, letter in drawn(four, 100):
        assert {state for state in said if state} == {options[LETTERS.index(letter)]}


@pytest.mark.parametrize("moments", [1, 2, 3])
def test_more_states_than_moments_leave_some_out(moments, monkeypatch):
    monkeypatch.setattr("models.reading.WRONG", 0.0)
    four = ["(1) a. (2) b. (3) c. (4) d. (5) e."] * 4
    seen = set()
    for said, *_ in drawn(four, 200, moments):
        assert len(said) == moments and "" not in said and said == sorted(said)
        seen |= set(said)
    assert seen == set("abcde")


def test_states_are_drawn_out_evenly():
    rng = np.random.default_rng(1)
    told = [_drawn_out(list("abc"), 9, rng) for _ in range(500)]
    runs = np.array([[some.count(state) for state in "abc"] for some in told])
    assert (runs.sum(1) == 9).all() and runs.min() == 1 and runs.max() == 7
    assert np.abs(runs.mean(0) - 3).max() < 0.3


def test_reading_begins_with_short_options(release):
    questions = questions_of(release.table, with_answer=True)
    lengths = [sum(map(len, question.options)) for question in questions]
    assert [lengths[row] for row in reading_rows([q.options for q in questions])] == sorted(lengths)
    shares = [open_share(step, 100) for step in range(100)]
    assert shares[0] == shares[8] == 0.05 < shares[10] and shares == sorted(shares)
    assert shares[68] < shares[69] == pytest.approx(1.0) and shares[99] == pytest.approx(1.0)
