"""The describers against the paper's rules, against a slow plain-loop derivation, and against geometry's symmetries."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from assets.questions.states import (
    DIRECTION_STATES,
    NONE,
    TREND_STATES,
    Thresholds,
    describe,
    directions,
    key,
    meaning,
    merge,
    runs,
    significant,
)
from benchmarks.questions import slow

THRESHOLDS = Thresholds(shrink=0.8, growth=1.2, slower=0.83, faster=1.2, axis_degrees=70.0, still=0.01)
CONSTANT, LARGER, SMALLER, DRIFT_LARGER, DRIFT_SMALLER = range(5)
values_strategy = arrays(np.float64, st.integers(2, 14), elements=st.floats(0.02, 50.0))


def trend(values) -> list[int]:
    values = np.array(values, float)[None, None]
    merged = merge(describe("dis", values, np.ones(values.shape[1:], bool), THRESHOLDS))[0, 0]
    return [int(label) for label in merged if label != NONE]


@pytest.mark.parametrize(
    ("values", "states"),
    [
        ([5, 5, 5, 5], [CONSTANT]),
        ([1, 2, 4, 8], [LARGER]),
        ([8, 4, 2, 4], [SMALLER, LARGER]),
        ([10, 11, 12, 13], [DRIFT_LARGER]),
        ([10, 9, 8.1, 7.5], [DRIFT_SMALLER]),
        ([10, 10, 20, 20, 20], [CONSTANT, LARGER, CONSTANT]),
        ([0.001, 0.005, 0.002], [CONSTANT]),
    ],
)
def test_trends_follow_the_papers_ratios(values, states):
    assert trend(values) == states


@given(values_strategy)
def test_trends_agree_with_a_plain_loop(values):
    assert trend(values) == [TREND_STATES.index(state) for state in slow.trend(list(values))]


@given(values_strategy, st.sampled_from([0.25, 2.0, 1024.0]))
def test_a_rescaled_scene_has_the_same_answer(values, scale):
    scaled = replace(THRESHOLDS, still=THRESHOLDS.still * scale)
    valid = np.ones((1, len(values)), bool)
    one = describe("dis", values[None, None], valid, THRESHOLDS)
    assert np.array_equal(one, describe("dis", values[None, None] * scale, valid, scaled))


@given(values_strategy)
def test_an_answer_read_backwards_swaps_jumps(values):
    """With symmetric thresholds a jump up is a jump down of the reversed series."""
    even = replace(THRESHOLDS, shrink=0.8, growth=1.25)
    forth, back = (
        describe("dis", series[None, None], np.ones((1, len(values)), bool), even)[0, 0]
        for series in (values, values[::-1])
    )
    # Where forward and backward ratios sit on a threshold, rounding may decide either way.
    ratios = values[1:] / values[:-1]
    clear = (np.abs(ratios - 1.25) > 1e-9) & (np.abs(ratios - 0.8) > 1e-9)
    swapped = back[::-1]
    assert np.array_equal((forth == LARGER)[clear], (swapped == SMALLER)[clear])
    assert np.array_equal((forth == SMALLER)[clear], (swapped == LARGER)[clear])


@given(arrays(np.float64, (7, 3), elements=st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3)))
def test_directions_mirror(vectors):
    mirrored = directions(vectors * [1, -1, 1], THRESHOLDS)
    for label, other in zip(directions(vectors, THRESHOLDS), mirrored, strict=True):
        swapped = DIRECTION_STATES[label].replace("Left", "?").replace("Right", "Left").replace("?", "Right")
        assert DIRECTION_STATES[other] == swapped


@pytest.mark.parametrize(
    ("vector", "text"),
    [
        ((1, 0, 0), "Front"),
        ((-1, 0, 0), "Behind"),
        ((0, 1, 0), "Left"),
        ((0, -1, 0), "Right"),
        ((0, 0, 1), "Above"),
        ((0, 0, -1), "Below"),
        ((1, 1, 0), "Front|Left"),
        ((-1, -1, -1), "Behind|Right|Below"),
        ((np.cos(np.radians(21)), np.sin(np.radians(21)), 0), "Front|Left"),
        ((np.cos(np.radians(19)), np.sin(np.radians(19)), 0), "Front"),
    ],
)
def test_an_axis_is_named_within_seventy_degrees(vector, text):
    assert DIRECTION_STATES[directions(np.array(vector, float), THRESHOLDS)] == text


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=20))
def test_merge_agrees_with_a_plain_loop(labels):
    expected = []
    for label in labels:
        if label != NONE and (not expected or expected[-1] != label):
            expected.append(label)
    assert key(merge(np.array(labels, np.int8))) == ".".join(map(str, expected))


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=20))
def test_states_drawn_out_by_their_runs_are_the_labels(labels):
    labels = np.array(labels, np.int8)
    merged = [label for label in merge(labels) if label != NONE]
    lengths = runs(labels)
    assert len(lengths) == len(merged) and all(type(length) is int and length > 0 for length in lengths)
    assert np.repeat(merged, lengths).tolist() == labels[labels != NONE].tolist()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([DRIFT_LARGER], [CONSTANT, LARGER], True),
        ([DRIFT_LARGER, DRIFT_LARGER], [DRIFT_LARGER], True),
        ([DRIFT_LARGER, LARGER], [CONSTANT, LARGER], True),
        ([CONSTANT, SMALLER, LARGER], [DRIFT_SMALLER, LARGER], True),
        ([LARGER], [DRIFT_LARGER], False),
        ([CONSTANT], [DRIFT_LARGER], False),
    ],
)
def test_answers_mean_the_same_however_they_are_worded(one, other, same):
    first, second = (key(meaning("dis", np.array(labels, np.int8))) for labels in (one, other))
    assert (first == second) is same
    assert len(TREND_STATES) == 5


def test_speed_comparison_uses_its_own_band():
    values = np.array([[1.0, 1.0], [1.21, 1.0], [0.82, 1.0], [0.84, 1.0], [0.004, 0.002]])[None, None]
    labels = describe("spd_comp", values, np.ones((1, 5), bool), THRESHOLDS)
    assert labels.ravel().tolist() == [0, 1, 2, 0, 0]


@given(st.floats(1e-12, 1e12))
@settings(max_examples=50)
def test_significant_digits_do_not_depend_on_scale(value):
    assert float(significant(value)) == pytest.approx(value, rel=1e-5)
    assert float(significant(significant(value))) == float(significant(value))
