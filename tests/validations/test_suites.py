import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from validations.suites import SUITES, Limits, SuiteError, rules, validate


def broken(table: str, frame: pd.DataFrame, limits: Limits | None = None) -> dict[str, str]:
    """Names and messages of the rules that do not hold, information aside."""
    verdicts = validate(table, frame, limits)
    return {v.name: v.message for v in verdicts if not v.passed and v.severity != "info"}


@pytest.fixture
def breaks(monkeypatch):
    """Whether a table breaks one rule, evaluated alone (a whole suite takes several times as long)."""

    def one(table: str, frame: pd.DataFrame, name: str, limits: Limits | None = None) -> bool:
        (rule,) = [rule for rule in rules(table, limits) if rule.name == name]
        with monkeypatch.context() as patch:
            patch.setitem(SUITES, table, lambda limits: [rule])
            (verdict,) = validate(table, frame, limits)
        assert not verdict.message.startswith("could not evaluate")
        return not verdict.passed

    return one


@pytest.mark.parametrize(("table", "fixture"), [("clips", "clips"), ("scenes", "scenes")])
def test_well_formed_tables_pass(table, fixture, request):
    assert broken(table, request.getfixturevalue(fixture)) == {}


def test_well_formed_questions_and_splits_pass(questions):
    assert broken("questions", questions) == {}
    assert broken("splits", questions) == {}


def test_tables_read_from_parquet_hold_lists_as_arrays(questions, tmp_path):
    questions.to_parquet(tmp_path / "questions.parquet", index=False)
    frame = pd.read_parquet(tmp_path / "questions.parquet")
    assert isinstance(frame["options"][0], np.ndarray)
    assert broken("splits", frame) == {}


def test_verdicts_keep_the_order_and_severity_of_the_rules(questions):
    verdicts = validate("splits", questions)
    assert [(v.name, v.severity) for v in verdicts] == [(r.name, r.severity) for r in rules("splits")]
    assert len({v.name for v in verdicts}) == len(verdicts)


QUESTION_FAULTS = [
    ("qa_id", "0000-0", "no question appears twice"),
    ("clip", "../../etc/passwd", "clip identities are SHA-256 hashes"),
    ("shard", "shard-1", "shard keys are well formed"),
    ("type", "abs_size", "types are the thirteen of the paper"),
    ("answer", "E", "answers are A, B, C or D"),
    ("answer", None, "every question has an answer"),
    ("options", ["Becomes larger", "Becomes larger", "b", "c"], "the four options differ"),
    ("options", ["a", "b", "c"], "there are four options"),
    ("options", ["a", "b", "c", " "], "no option is blank"),
    ("interval_start", 3.0, "intervals start before they end"),
    ("interval_start", -1.0, "intervals start before they end"),
    ("stability", 0.3, "answers survive the geometry's error"),
    ("stability", None, "every question knows its stability"),
    ("states", ["larger", "smaller", "larger"], "states match the numbered answer"),
    ("visible_until", 1.0, "frames are hidden for predictions only"),
    ("viewpoint_kind", "rel", "viewpoint kind agrees with the type"),
    ("viewpoint_time", None, "only absolute viewpoints have a time"),
    ("evidence", "not json", "evidence is readable"),
    ("split", "test", "splits are train, val or bench"),
    ("quad", None, "every question belongs to a quad"),
    ("quad", "quad-0", "every quad has its four questions"),
    ("options", ["a", "b", "c", "d"], "the questions of a quad share their options"),
    ("answer", "B", "each option of a quad is true exactly once"),
    ("answer", "B", "the letters of a quad are all different"),
    ("split", "val", "no quad lies in two splits"),
    ("split", "val", "no clip lies in two splits"),
    ("question", " ", "questions are worded"),
    ("question", "x" * 3000, "questions are of readable length"),
]


@pytest.mark.parametrize(("column", "value", "rule"), QUESTION_FAULTS, ids=[f"{c}: {r}" for c, _, r in QUESTION_FAULTS])
def test_each_fault_breaks_its_rule(breaks, questions, column, value, rule):
    questions = questions.copy()
    questions[column] = questions[column].astype(object)
    questions.at[4, column] = value
    assert breaks("questions", questions, rule)


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("has_video", False, "every question can be seen"),
        ("videoID", f"{0:064x}", "no source video lies in two splits"),
    ],
)
def test_each_split_fault_breaks_its_rule(breaks, questions, column, value, rule):
    questions.loc[questions["split"] == "bench", column] = value
    assert breaks("splits", questions, rule)


def test_a_missing_split_and_missing_types_are_seen(questions):
    without = questions[(questions["split"] != "val") & (questions["type"] != "rel_ori")]
    found = broken("splits", without)
    assert "val" in found["train, val and bench all exist"]
    assert "rel_ori" in found["bench asks all twelve template types"]


def test_too_few_questions_in_a_split(breaks, questions):
    assert breaks("splits", questions, "every split has enough questions", Limits(minimum_rows=49))
    assert not breaks("splits", questions, "every split has enough questions", Limits(minimum_rows=48))


def test_unbalanced_letters_are_seen_even_when_one_never_appears(breaks, questions):
    questions = questions.copy()
    questions.loc[questions["answer"] == "D", "answer"] = "A"
    assert breaks("questions", questions, "answer letters are balanced")


def test_a_question_asked_twice_is_a_warning(questions):
    questions = questions.copy()
    questions.loc[4:7, ["clip", "question"]] = questions.loc[0:3, ["clip", "question"]].to_numpy()
    verdict = {v.name: v for v in validate("questions", questions)}["nothing is asked twice of a clip"]
    assert (verdict.passed, verdict.severity) == (False, "warning")
    assert "8 of 144" in verdict.observed


def test_a_rule_that_cannot_be_evaluated_fails_and_says_so(questions):
    found = broken("questions", questions.drop(columns=["options"]))
    assert "options" in found["columns are all there"]
    assert found["there are four options"] == "could not evaluate: the table lacks 'options'"
    assert "types are the thirteen of the paper" not in found
    found = broken("questions", questions.drop(columns=["type"]))
    assert found["types are the thirteen of the paper"].startswith("could not evaluate:")


def test_an_empty_table_fails(questions):
    assert "table is not empty" in broken("questions", questions.iloc[:0])


CLIP_FAULTS = [
    ("kind", "unusable", "clips are of a known kind"),
    ("sampled", 400, "no more frames are sampled than there are"),
    ("frame_width", 2000, "frames are never upscaled"),
    ("rotation", 45, "rotation is a quarter turn"),
    ("width", None, "videos are fully measured"),
    ("seconds", 0.0, "clips last longer than nothing"),
]


@pytest.mark.parametrize(("column", "value", "rule"), CLIP_FAULTS)
def test_each_clip_fault_breaks_its_rule(breaks, clips, column, value, rule):
    clips.loc[0, column] = value
    assert breaks("clips", clips, rule)


SCENE_FAULTS = [
    ("status", "guessed", "status is 3d, 2d or refused"),
    ("moving", 4, "moving things are among the objects"),
    ("agents", 4, "agents are among the objects"),
    ("estimator", None, "every scene names its estimator"),
]


@pytest.mark.parametrize(("column", "value", "rule"), SCENE_FAULTS)
def test_each_scene_fault_breaks_its_rule(breaks, scenes, column, value, rule):
    scenes.loc[0, column] = value
    assert breaks("scenes", scenes, rule)


def test_a_refusal_without_reason_and_too_many_refusals(scenes):
    scenes["status"], scenes["reason"] = "refused", ""
    assert {"every refusal gives its reason", "most clips have usable geometry"} <= set(broken("scenes", scenes))


def test_an_unknown_table_is_refused_in_one_line():
    with pytest.raises(SuiteError, match="choose one of clips, scenes, questions, splits"):
        rules("videos")


def test_listing_rules_does_not_load_great_expectations_and_validating_connects_to_nothing():
    program = """
import socket, sys
import pandas
attempts = []
socket.socket.connect = lambda self, address: attempts.append(address)
socket.getaddrinfo = lambda *address, **options: attempts.append(address) or []
from validations.suites import rules, validate
rules("clips")
assert "great_expectations" not in sys.modules
validate("clips", pandas.DataFrame({"clip": ["x"]}))
assert "great_expectations" in sys.modules
assert not attempts, attempts
"""
    environment = {key: value for key, value in os.environ.items() if key != "GX_ANALYTICS_ENABLED"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Calculating" not in done.stderr
