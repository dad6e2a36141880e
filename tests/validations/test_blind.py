"""The blind audit finds the shortcut of reference-style distractors and finds none in quads."""

import json

import numpy as np
import pandas as pd
import pytest

from validations.blind import BlindAudit, BlindAuditError, Score, audit_data_set, blind_audit
from validations.blind_statistics import clustered_share, holm, wilson
from validations.blind_text import question_words, states_of

READERS = {"options", "question", "words", "transformer", "longest", "central"}

TRENDS = ("Keep nearly constant", "Becomes larger", "Becomes smaller")


def described(values: np.ndarray) -> list[str]:
    """Trend of every step, merged: the reference's describer, thresholds 0.8 and 1.2."""
    ratio = values[1:] / values[:-1]
    labels = np.where(ratio > 1.2, 1, np.where(ratio < 0.8, 2, 0))
    return [TRENDS[label] for step, label in enumerate(labels) if step == 0 or label != labels[step - 1]]


def option(states: list[str]) -> str:
    return " ".join(f"({number}) {state}." for number, state in enumerate(states, 1))


def smooth(rng: np.random.Generator) -> np.ndarray:
    """A distance along a smooth path."""
    time = np.linspace(0, 1, 12)
    waves = sum(rng.normal() / k * np.sin(2 * np.pi * k * time + rng.uniform(0, 6.3)) for k in (1, 2))
    return np.exp(1.6 * waves)


def question(number: int, options: list[str], answer: int, kind: str = "rel_dis") -> dict:
    start, end = number % 5, number % 7 + 6
    text = f"Between {start}.0s and {end}.0s, how does the distance between thing {number % 11} and camera change?"
    return {"type": kind, "question": text, "options": options, "answer": "ABCD"[answer]}


def reference_style(count: int, seed: int) -> pd.DataFrame:
    """True answers of smooth paths among three of independent noise, cut to a random length near the true one."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        true = described(smooth(rng))
        options = [option(true)]
        while len(options) < 4:
            noise = described(rng.uniform(0.2, 2.0, 16))
            length = rng.integers(max(1, len(true) - 3), len(true) + 4)
            if option(noise[:length]) not in options:
                options.append(option(noise[:length]))
        order = rng.permutation(4)
        rows.append(question(number, [options[place] for place in order], int(np.flatnonzero(order == 0)[0])))
    return pd.DataFrame(rows)


def quads(count: int, seed: int) -> pd.DataFrame:
    """The same true answers, four questions sharing four options."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count // 4):
        options: set[str] = set()
        while len(options) < 4:
            options.add(option(described(smooth(rng))))
        shown = [sorted(options)[place] for place in rng.permutation(4)]
        rows += [question(4 * number + place, shown, place) for place in range(4)]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def reference_audit():
    return blind_audit(reference_style(320, 0), reference_style(160, 1), seed=0, most_steps=40)


@pytest.fixture(scope="module")
def quad_audit():
    held_out = quads(300, 1)
    held_out["type"] = np.where(np.arange(300) < 100, "rel_dis", "abs_spd")
    return blind_audit(quads(300, 0), held_out, seed=0, most_steps=25)


def test_reference_style_distractors_are_seen_through(reference_audit):
    for reader in ("options", "question", "words", "transformer"):
        assert reference_audit.of(reader).accuracy > 0.55
        assert reference_audit.of(reader).low > 0.45
    overall = [score.accuracy for score in reference_audit.scores if score.type == "overall"]
    assert reference_audit.best().accuracy == max(overall)
    verdict = reference_audit.verdict()
    assert not verdict.passed and reference_audit.best().reader in verdict.reason
    assert any("smooth" in item.text or "length" in item.text for item in reference_audit.giveaways["question"])


def test_quads_leave_every_reader_at_chance(quad_audit):
    # A reader of the options alone picks one of four that are each true once: exactly a quarter, whatever it learnt.
    for reader in ("options", "longest", "central"):
        assert quad_audit.of(reader).accuracy == 0.25
    for reader in ("question", "words", "transformer"):
        assert quad_audit.of(reader).low < 0.25 and quad_audit.of(reader).accuracy < 0.34
    assert quad_audit.verdict().passed


def test_scores_are_given_per_reader_and_type(quad_audit):
    report = quad_audit.as_dict()
    assert set(report["readers"]) == READERS
    for scores in report["readers"].values():
        assert {kind: score["n"] for kind, score in scores.items()} == {"overall": 300, "rel_dis": 100, "abs_spd": 200}
    json.dumps(report)


def test_a_question_that_tells_its_answer_is_caught():
    def telling(table):
        kinds = [
            states_of(options["ABCD".index(letter)])[0].split()[-1]
            for options, letter in zip(table["options"], table["answer"], strict=True)
        ]
        return table.assign(question=[f"How does the {kind} thing move?" for kind in kinds])

    train, held_out = telling(quads(320, 0)), telling(quads(200, 1))
    audit = blind_audit(train, held_out, seed=0, most_steps=40)
    assert audit.of("words").low > 0.3 and audit.of("transformer").low > 0.3
    assert not audit.verdict().passed
    assert any("in the question with" in item.text for item in audit.giveaways["words"])


def test_right_answers_under_one_letter_are_caught():
    rows = []
    for row in quads(240, 0).to_dict("records"):
        right = row["options"]["ABCD".index(row["answer"])]
        wrong = [option for option in row["options"] if option != right]
        rows.append(row | {"options": [*wrong[:2], right, wrong[2]], "answer": "C"})
    audit = blind_audit(pd.DataFrame(rows[:160]), pd.DataFrame(rows[160:]), seed=0, most_steps=25)
    for reader in ("options", "words", "transformer"):
        assert audit.of(reader).accuracy > 0.9


def test_large_tables_are_audited_on_whole_quads_the_same_every_time():
    audit, again = (blind_audit(quads(160, 0), quads(160, 1), seed=0, most=80, most_steps=2) for _ in range(2))
    assert {score.n for score in audit.scores} == {80}
    assert audit.of("options").accuracy == 0.25
    assert again.as_dict() == audit.as_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="options"), "options"),
        (lambda table: table.iloc[:0], "no questions"),
        (lambda table: table.assign(answer="E"), "letter"),
        (lambda table: table.assign(options=[["a", "b"]] * len(table)), "four options"),
    ],
)
def test_a_table_that_cannot_be_audited_is_named(change, message):
    table = quads(40, 0)
    with pytest.raises(BlindAuditError, match=message):
        blind_audit(table, change(table), seed=0)


def test_wilson_interval():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_questions_that_hang_together_say_less():
    rng = np.random.default_rng(0)
    clips = np.repeat(np.arange(40), 25)
    copied = np.repeat(rng.random(40) < 0.4, 25)
    alone, together = clustered_share(copied, [], 0.25), clustered_share(copied, [clips], 0.25)
    assert (alone.accuracy, alone.n) == (together.accuracy, together.n)
    assert together.high - together.low > 4 * (alone.high - alone.low)
    assert alone.p_value < together.p_value
    # Forty coins of 1000 copies each: the interval of forty coins.
    low, high = wilson(copied.mean() * 39, 39, 2.0227)
    assert (together.low, together.high) == pytest.approx((low, high), abs=1e-6)
    # One right in every quad is less than chance would vary; that must not narrow anything.
    quad = np.repeat(np.arange(250), 4)
    even = clustered_share(np.tile([True, False, False, False], 250), [quad], 0.25)
    assert (even.low, even.high) == pytest.approx(wilson(250, 1000), abs=1e-3)
    assert clustered_share(copied, [np.zeros(1000)], 0.25).p_value == 1.0


def test_intervals_use_the_clips_of_the_questions():
    held_out = quads(80, 1).assign(clip=np.arange(80) // 8, quad=np.arange(80) // 4)
    found = blind_audit(quads(40, 0), held_out, seed=0, most_steps=2).of("options")
    low, high = wilson(20, 80)
    # Student's t of ten clips, not the normal distribution of eighty questions.
    assert found.accuracy == 0.25 and found.low < low and found.high > high


def test_holm():
    assert holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])


def score(correct: int, n: int, kind: str = "overall", reader: str = "words") -> Score:
    share = clustered_share(np.arange(n) < correct, [], 0.25)
    return Score(**vars(share), reader=reader, type=kind)


@pytest.mark.parametrize(
    ("scores", "passed"),
    [
        ([score(250, 1000)], True),
        ([score(279, 1000)], True),
        ([score(300, 1000)], False),
        # Beyond the bound by luck: fourteen of forty.
        ([score(14, 40)], True),
        ([score(260, 1000), score(160, 500, "rel_dis")], False),
        ([score(260, 1000), score(150, 500, "rel_dis")], True),
        ([score(260, 1000), score(20, 60, "rel_dis")], True),
        # Significant alone, and no wonder among sixty readers and types.
        ([score(260, 1000), score(35, 100, "rel_dis"), *[score(24, 100, f"{n}") for n in range(60)]], True),
    ],
)
def test_verdict(scores, passed):
    verdict = BlindAudit(scores).verdict()
    assert verdict.passed == passed and "\n" not in verdict.reason and "25 %" in verdict.reason


def imported(count: int) -> pd.DataFrame:
    """Reference-style questions as official files give them: letters in the options, videos, no split."""
    table = reference_style(count, 3)
    return pd.DataFrame(
        {
            "videoID": [f"video{number // 4}" for number in range(count)],
            "question": table["question"],
            "options": [
                np.array([f"{letter}. {text}" for letter, text in zip("ABCD", four, strict=True)], dtype=object)
                for four in table["options"]
            ],
            "answer": table["answer"],
        }
    )


def test_any_data_set_is_audited_with_a_split_by_video():
    table = imported(240)
    told = table.assign(
        answer=[
            ["A", "A.", "(A)", ""][number % 4].replace("A", letter) or four["ABCD".index(letter)]
            for number, (letter, four) in enumerate(zip(table["answer"], table["options"], strict=True))
        ]
    )
    three = table.iloc[:2].assign(options=[["yes", "no", "maybe"]] * 2)
    audit = audit_data_set(pd.concat([told, three], ignore_index=True), seed=0, most_steps=2)
    assert audit.left_out == 2 and audit.of("options").n == 96
    assert audit.best().accuracy > 0.5 and not audit.verdict().passed
    assert {item.type for item in audit.scores} == {"overall", "all"}
    with pytest.raises(BlindAuditError, match="question"):
        audit_data_set(table.drop(columns="question"), seed=0)


def test_a_given_split_is_kept_and_split_quads_are_not_scored():
    table = quads(80, 0).assign(quad=np.arange(80) // 4, split=np.where(np.arange(80) < 42, "train", "bench"))
    assert audit_data_set(table, seed=0, most_steps=2).of("words").n == 36


def test_times_of_a_question_are_coarse_and_relative():
    words = question_words("Between 1.5s and 4.0s, the box [422,57] at 0.5s?")
    assert words == [
        "between",
        "1s",
        ".5",
        "and",
        "4s",
        ".0",
        "+2.5s",
        "the",
        "box",
        "#400",
        "#50",
        "at",
        "0s",
        ".5",
        "-1s",
    ]


def test_states_are_read_from_options():
    assert states_of("(1) Front|Left. (2) Behind.") == ("Front|Left", "Behind")
    assert states_of("None of them") == ("None of them",)
