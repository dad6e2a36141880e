"""The reader that quads are built against learns what a question's words give away, and only from other groups."""

import numpy as np
import pytest

from assets.questions.blind_reader import read

from .test_options import candidate


def telling(count: int, start: int = 0) -> list[dict]:
    """Questions whose target's name gives the answer away: dogs come near, robots go away."""
    rows = []
    for number in range(start, start + count):
        near = number % 2 == 0
        name = "dog" if near else "robot"
        question = f"Between 1.0s and 3.0s, how does the distance between red {name} and blue crate change?"
        rows.append(candidate(number, "2" if near else "1") | {"question": question})
    return rows


def found(reading, rows: list[dict]) -> float:
    """Share of neighbouring pairs whose answers the reader gives to the right questions."""
    right = [
        np.argmax(reading.asked[i : i + 2] @ reading.answered[i : i + 2].T, axis=1) == [0, 1]
        for i in range(0, len(rows), 2)
    ]
    return float(np.mean(right))


@pytest.fixture(scope="module")
def rows():
    return telling(400)


def test_a_shortcut_of_other_clips_is_found(rows):
    groups = ["a"] * 200 + ["b"] * 200
    assert found(read(rows, groups, ["one"] * 400, epochs=20), rows) > 0.95


def test_what_only_a_group_itself_could_teach_is_not_found(rows):
    # In group b the names mean the opposite: whoever learns from a alone is wrong about b, and the other way round.
    turned = rows[:200] + [row | {"meaning": {"1": "2", "2": "1"}[row["meaning"]]} for row in rows[200:]]
    groups = ["a"] * 200 + ["b"] * 200
    assert found(read(turned, groups, ["one"] * 400, epochs=20), turned) < 0.05


def test_the_same_rows_are_read_the_same_way(rows):
    groups, strata = ["a"] * 200 + ["b"] * 200, ["one"] * 400
    one, other = read(rows, groups, strata, epochs=1), read(rows, groups, strata, epochs=1)
    assert np.array_equal(one.asked, other.asked) and np.array_equal(one.answered, other.answered)


def test_without_another_group_there_is_nothing_to_learn_from(rows):
    reading = read(rows, ["a"] * 400, ["one"] * 400, epochs=5)
    assert not reading.asked.any() and not reading.answered.any()
