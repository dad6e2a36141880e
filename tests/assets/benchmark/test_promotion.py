import dataclasses

import pytest

from assets.benchmark.comparison import compare, read_scores
from assets.benchmark.promotion import ReleaseChecks, decide
from tests.assets.benchmark.answers import BENCH, draw_answers, write_report

RELEASE = ReleaseChecks("5" * 32, True, passed=("splits:must_hold",))


@pytest.fixture
def scores(tmp_path):
    def make(accuracy, blind=0.25, seed=0, bench=BENCH, **kind):
        folder = write_report(tmp_path / "report", draw_answers(accuracy, blind, seed=seed, **kind), "c" * 32)
        return read_scores(folder / "predictions.parquet", bench)

    return make


def failed(decision) -> list[str]:
    return [criterion.name for criterion in decision.criteria if not criterion.passed]


def test_a_better_challenger_is_promoted_and_every_condition_is_told(scores):
    decision = decide(scores(0.75), scores(0.5, seed=1), RELEASE)
    assert decision.promoted
    assert [criterion.name for criterion in decision.criteria] == [
        "better than the champion",
        "general understanding no worse",
        "release passed its checks",
        "blind score at chance",
    ]
    assert len(decision.reason.splitlines()) == 4
    assert "not measured" in decision.criteria[1].reason and decision.reason.splitlines()[1].startswith("-")
    assert decision.numbers["difference_low"] > 0 and decision.numbers["difference_p_better"] <= 0.025
    assert decision.numbers["questions"] == 240


def test_an_equal_or_a_worse_one_is_not(scores):
    champion = scores(0.6)
    for challenger in (champion, scores(0.6, seed=2), scores(0.3, seed=3)):
        decision = decide(challenger, champion, RELEASE)
        assert (decision.verdict, failed(decision)) == ("not promoted", ["better than the champion"])


def test_one_that_answers_without_the_video_is_not(scores):
    decision = decide(scores(0.8, blind=0.4), scores(0.5, seed=1), RELEASE)
    assert failed(decision) == ["blind score at chance"]
    assert "95 % interval" in decision.reason


@pytest.mark.parametrize(
    ("release", "says"),
    [
        (ReleaseChecks("5" * 32, True, failed=("questions:blind_audit",)), "questions:blind_audit"),
        (ReleaseChecks("5" * 32, False), "not the committed one"),
    ],
)
def test_one_of_a_release_that_failed_a_check_is_not(scores, release, says):
    decision = decide(scores(0.8), scores(0.5, seed=1), release)
    assert failed(decision) == ["release passed its checks"]
    assert says in decision.reason


def test_warnings_of_a_release_are_told_and_do_not_stand_in_the_way(scores):
    release = dataclasses.replace(RELEASE, warned=("splits:should_hold",))
    decision = decide(scores(0.8), scores(0.5, seed=1), release)
    assert decision.promoted and "warnings of splits:should_hold" in decision.reason


def test_one_that_forgot_general_understanding_is_not(scores):
    def general(first, second):
        return compare(scores(first, seed=5).right, scores(second, seed=6).right, scores(first).clip)

    challenger, champion = scores(0.8), scores(0.5, seed=1)
    assert failed(decide(challenger, champion, RELEASE, "not asked")) == ["general understanding no worse"]
    assert failed(decide(challenger, champion, RELEASE, general(0.4, 0.7))) == ["general understanding no worse"]
    kept = decide(challenger, champion, RELEASE, general(0.6, 0.6))
    assert kept.promoted and kept.criteria[1].measured and "general_p_worse" in kept.numbers


def test_without_a_champion_chance_and_the_blind_answers_are_to_be_beaten(scores):
    first = decide(scores(0.5), None, RELEASE)
    assert first.promoted and "no champion yet" in first.reason
    assert failed(decide(scores(0.25), None, RELEASE)) == ["better than chance", "better than without the video"]


@pytest.mark.parametrize("other", [{"bench": "c" * 64}, {"clips": 59}, {"prefix": "r"}])
def test_other_questions_decide_nothing_and_say_what_to_do(scores, other):
    decision = decide(scores(0.9), scores(0.3, **other), RELEASE)
    assert decision.verdict == "not comparable"
    assert "evaluate champion and challenger on one bench" in decision.reason
