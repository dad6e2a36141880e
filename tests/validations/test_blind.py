"""The blind audit finds the shortcut of reference-style distractors and finds none in quads."""

import numpy as np
import pandas as pd
import pytest

from validations.blind import BlindAuditError, blind_audit, states_of, wilson

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


def test_reference_style_distractors_are_seen_through():
    audit = blind_audit(reference_style(600, 0), reference_style(300, 1), seed=0)
    for reader in ("options", "question", "words"):
        assert audit.of(reader).accuracy > 0.6
        assert audit.of(reader).low > 0.55
    assert audit.best().accuracy == max(score.accuracy for score in audit.scores if score.type == "overall")


def test_quads_leave_every_reader_at_chance():
    audit = blind_audit(quads(800, 0), quads(400, 1), seed=0)
    # A reader of the options alone picks one of four that are each true once: exactly a quarter, whatever it learnt.
    for reader in ("options", "longest", "central"):
        assert audit.of(reader).accuracy == 0.25
    for reader in ("question", "words"):
        assert audit.of(reader).low < 0.25 and audit.of(reader).accuracy < 0.3


def test_a_question_that_tells_its_answer_is_caught():
    def telling(table):
        kinds = [
            states_of(options["ABCD".index(letter)])[0].split()[-1]
            for options, letter in zip(table["options"], table["answer"], strict=True)
        ]
        return table.assign(question=[f"How does the {kind} thing move?" for kind in kinds])

    audit = blind_audit(telling(quads(800, 0)), telling(quads(400, 1)), seed=0)
    assert audit.of("words").low > 0.3


def test_large_tables_are_audited_on_whole_quads():
    audit = blind_audit(quads(160, 0), quads(160, 1), seed=0, most=80)
    assert {score.n for score in audit.scores} == {80}
    assert audit.of("options").accuracy == 0.25


def test_scores_are_given_per_reader_and_type_and_do_not_change():
    train, held_out = quads(200, 0), quads(80, 1)
    held_out["type"] = np.where(np.arange(len(held_out)) < 40, "rel_dis", "abs_spd")
    audit = blind_audit(train, held_out, seed=1)
    report = audit.as_dict()
    assert set(report["readers"]) == {"options", "question", "words", "longest", "central"}
    for scores in report["readers"].values():
        assert {kind: score["n"] for kind, score in scores.items()} == {"overall": 80, "rel_dis": 40, "abs_spd": 40}
    assert blind_audit(train, held_out, seed=1).as_dict() == report


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


def test_states_are_read_from_options():
    assert states_of("(1) Front|Left. (2) Behind.") == ["Front|Left", "Behind"]
    assert states_of("None of them") == ["None of them"]
