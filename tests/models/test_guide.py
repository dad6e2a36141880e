"""What training knows of a question: from its row to tensors beside its batch."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from assets.questions.candidates import derive
from assets.questions.parameters import QuestionParameters
from assets.questions.row import FAMILIES, TEMPLATE_TYPES
from models.data import groups_of
from models.guide import NO_THING, NO_WORD, NOTHING, ROLES, SILENCE, UNKNOWN, Notes, Procedure, Things, guide_of
from tests.assets.questions.conftest import clip_of, of_templates, synthetic_record
from tests.models.conftest import THINGS

FEW = QuestionParameters(draws=2, min_stability=0.0, pool_per_type=500, candidates_per_type=6)
ROW = {
    "states": ["Becomes larger", "Front"],
    "targets": ["red box", "blue car"],
    "viewpoint_subject": "camera",
    "evidence": json.dumps(
        {
            "objects": {"former": 2, "latter": 0, "viewpoint": None},
            "runs": [2, 1],
            "times": [1.0, 1.5, 2.0, 2.5],
        }
    ),
}


@cache
def real_rows() -> list[dict]:
    return [row for n in (0, 3) for row in of_templates(derive(synthetic_record(n), clip_of(n), "s", True, FEW).rows)]


def rows_of_family(family: str) -> list[dict]:
    rows = [row for row in real_rows() if row["type"][4:] == family]
    assert {row["type"] for row in rows} == {kind for kind in TEMPLATE_TYPES if kind[4:] == family}
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_a_procedure_tells_a_real_row_again(family):
    record = {number: synthetic_record(number) for number in (0, 3)}
    for row in rows_of_family(family):
        names = next([*r.names, "camera"] for n, r in record.items() if clip_of(n) == row["clip"])
        how = Procedure.of(row)
        merged = [s for place, s in enumerate(how.states) if place == 0 or s != how.states[place - 1]]
        assert merged == row["states"] and len(how.states) == len(how.ends)
        assert (np.diff([how.begin, *how.ends]) > 0).all()
        assert how.ends[-1] == pytest.approx(row["interval_end"], abs=1e-5)
        # Directions are of a moment, distances of a step, changes of speed of a step and the one before.
        times = json.loads(row["evidence"])["times"]
        before = {"dir": -1, "ori": -1, "spd": 1}.get(family, 0)
        assert len(how.states) == len(times) - 1 - before and times[0] == row["interval_start"]
        assert [how.begin, *how.ends][-before if before < 0 else 0 :] == times[max(before, 0) :]
        called = dict(zip(ROLES, how.names, strict=True))
        assert [called["former"], called["latter"]][: len(row["targets"])] == row["targets"]
        assert called["viewpoint"] == row["viewpoint_subject"]
        for thing, name in zip(how.things, how.names, strict=True):
            assert name in ("", "camera") if thing == NO_THING else names[thing] == name
        assert len(row["targets"]) == 2 or (called["latter"], how.things[1]) == ("", NO_THING)


def test_a_prediction_is_said_at_the_last_moment_that_is_seen():
    for row in rows_of_family("dir_pred"):
        how = Procedure.of(row)
        seen = np.linspace(0, row["visible_until"], 6)
        assert how.states_at(seen) == [""] * 5 + row["states"]
        # The slot of time before it may end a little earlier.
        assert how.states_at(seen - 0.01)[-1] == row["states"][0]


def test_states_change_where_steps_end():
    how = Procedure.of(ROW)
    assert (how.states, how.begin, how.ends.tolist()) == (("Becomes larger",) * 2 + ("Front",), 1.0, [1.5, 2.0, 2.5])
    assert (how.things, how.names) == ((2, 0, NO_THING), ("red box", "blue car", "camera"))
    moments = np.array([0.5, 1.0, 1.001, 1.5, 2.0, 2.001, 2.5, 2.501, 4.0])
    grown = "Becomes larger"
    assert how.states_at(moments) == ["", "", grown, grown, grown, "Front", "Front", "", ""]
    assert how.states_at(np.array([1.5 + 1e-7, 2.5 + 1e-7, 9.0])) == [grown, "Front", ""]
    # An interval that lies behind all moments is one to predict.
    assert how.states_at(np.array([0.3, 0.6])) == ["", "Front"]


def test_states_of_moments_have_a_step_before_the_first():
    evidence = json.loads(ROW["evidence"]) | {"runs": [2, 2]}
    how = Procedure.of(ROW | {"evidence": json.dumps(evidence)})
    assert (how.begin, how.ends.tolist()) == (0.5, [1.0, 1.5, 2.0, 2.5])
    alone = Procedure.of(ROW | {"states": ["Front"], "evidence": json.dumps(evidence | {"runs": [1], "times": [2.0]})})
    assert (alone.begin, alone.ends.tolist(), alone.states) == (2.0, [2.0], ("Front",))


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(ROW["evidence"]).items() if key != name})


@pytest.mark.parametrize(
    "evidence",
    [None, "", "{", "[]", "null", "3", b"\xff", *map(without, ("objects", "runs", "times"))],
    ids=str,
)
def test_rows_that_do_not_say_have_no_procedure(evidence):
    assert Procedure.of(ROW | {"evidence": evidence}) is None


@pytest.mark.parametrize("runs", [[], [3], [1, 1, 1], [0, 0], [9, 9], [2, 10**12]], ids=str)
def test_runs_that_do_not_fit_the_row_are_no_procedure(runs):
    changed = json.dumps(json.loads(ROW["evidence"]) | {"runs": runs})
    assert Procedure.of(ROW | {"evidence": changed}) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"runs": None},
        {"runs": "ab"},
        {"runs": ["x", 1]},
        {"runs": [-1, 4]},
        {"runs": [2.0, 1.0]},
        {"times": None},
        {"times": 3},
        {"times": [[1, 2], [3, 4], [5, 6], [7, 8]]},
        {"times": [float("nan")] * 4},
        {"objects": []},
        {"objects": None},
        {"objects": {"former": "x"}},
        {"objects": {"former": -5}},
    ],
    ids=str,
)
def test_hostile_evidence_is_no_procedure(wrong):
    assert Procedure.of(ROW | {"evidence": json.dumps(json.loads(ROW["evidence"]) | wrong)}) is None


def words(text: str) -> list[int]:
    return [ord(character) % 50 for character in text]


def test_notes_are_laid_out_by_explicit_loops():
    spans = np.zeros((3, 4), bool)
    spans[0, 1:3] = spans[2, 0] = True
    notes = [
        Notes((1, 2, 3, 4), states=["", "a", "b"], things=(1, 0, NO_THING), spans=spans),
        Notes((1, 2, 3, 4)),
        Notes((1, 2, 3, 4), states=["b", "b", "c"], things=(0, NO_THING, NO_THING), spans=spans[:, :2]),
    ]
    cover = np.random.default_rng(0).random((2, 2, 3, 2)).astype(np.float32)
    things = [Things(["red box", "car"], cover), Things(["x"], cover[:1, :, :1]), Things([], np.zeros((0, 1, 1, 1)))]
    ends = torch.zeros(3, 9, dtype=torch.bool)
    guide = guide_of(notes, things, ends, words, 3, (4, 3, 5, 6))
    said = [[NO_WORD] * 0 + words(text) for text in (SILENCE, ") a.", ") b.", ") c.")]
    longest = max(map(len, said))
    assert guide.state_words.shape == (4, longest)
    for row, ids in zip(guide.state_words.tolist(), said, strict=True):
        assert row == ids + [NO_WORD] * (longest - len(ids))
    assert guide.states.tolist() == [[NOTHING, 1, 2], [UNKNOWN] * 3, [2, 2, 3]]
    assert guide.things.tolist() == [[1, 0, -1], [-1] * 3, [0, -1, -1]]
    assert guide.spans.shape == (3, 3, 6) and guide.spans.dtype == torch.bool
    assert guide.spans.nonzero().tolist() == [[0, 0, 1], [0, 0, 2], [0, 2, 0], [2, 0, 1], [2, 2, 0]]
    assert guide.cover.shape == (3, 2, 4, 3, 5)
    assert torch.equal(guide.cover[0, :, :2, :, :2], torch.from_numpy(cover))
    assert torch.equal(guide.cover[1, :1, :2, :1, :2], torch.from_numpy(cover[:1, :, :1]))
    assert guide.cover.sum() == pytest.approx(cover.sum() + cover[:1, :, :1].sum(), rel=1e-5)
    assert guide.thing_words.tolist()[1:] == [[words("x") + [NO_WORD] * 6, [NO_WORD] * 7], [[NO_WORD] * 7] * 2]
    assert guide.thing_words[0].tolist() == [words("red box"), words("car") + [NO_WORD] * 4]
    assert guide.option_ends is ends
    moved = guide.to("meta")
    assert moved.cover.device.type == moved.states.device.type == "meta"


def test_a_guide_without_priors_or_things():
    ends = torch.ones(1, 4, dtype=torch.bool)
    stated = guide_of([Notes((0, 1, 2, 3), states=["a", ""])], [], ends, words, 2, (0, 0, 0, 0))
    assert stated.cover is None and stated.to("cpu").cover is None and stated.states.tolist() == [[1, 0]]
    empty = guide_of([Notes((0,))], [Things([], np.zeros((0, 1, 1, 1)))], ends, words, 2, (3, 2, 1, 5))
    # A thing without a name that shows nowhere.
    assert empty.cover.shape == (1, 1, 3, 2, 1) and not empty.cover.any() and (empty.thing_words == -1).all()


def test_trees_carry_what_their_rows_and_records_say(maker):
    make, model, questions = maker
    groups = [group for group in groups_of(questions) if group.clip == questions[0].clip]
    assert [group.visible_until for group in groups] == [2.0, None]
    for build in (make.tree, make.grounding_tree):
        batch = make.pack([build(group, [questions[row] for row in group.rows]) for group in groups])
        guide, asked = batch.guide, [questions[row] for group in groups for row in group.rows]
        assert (batch.prior_grid[:, 0].tolist(), model.geometry_tokens) == ([2, 4], 3)
        # Slots end at 0.5, 1.5, … s, so their middles are whole seconds: what each of three queries is at.
        middles = {2.0: [0.0, 1.0, 1.0], None: [0.0, 2.0, 3.0]}
        texts = [make.prompt.tokenizer.decode(row[row != NO_WORD]) for row in guide.state_words]
        for place, question in enumerate(asked):
            states = question.procedure.states_at(np.array(middles[question.visible_until]))
            assert [texts[k] for k in guide.states[place]] == [f") {state}." if state else SILENCE for state in states]
            thing, visible = int(question.question.split("red box ")[1][0]), batch.question_visible[place]
            assert guide.things[place].tolist() == [thing, NO_THING, NO_THING]
            spoken = [batch.question[place][guide.spans[place, role]] for role in range(3)]
            assert [make.prompt.tokenizer.decode(ids).strip() for ids in spoken] == [f"red box {thing}"] + [
                "camera"
            ] * 2
            assert not (guide.spans[place] & ~visible).any()
        assert guide.cover.shape == (2, THINGS, *batch.prior.shape[1:4]) and guide.cover.max() == 1
        for row in range(2):
            filled = batch.prior_grid[row, 0]
            assert guide.cover[row, 1, :filled, 1, :2].eq(1).all() and not guide.cover[row, :, filled:].any()
        names = [make.prompt.tokenizer.decode(row[row != NO_WORD]) for row in guide.thing_words[0]]
        assert names == [f"red box {thing}" for thing in range(THINGS)]
        assert guide.option_ends.sum() == 4 * len(asked) and guide.option_ends[batch.branch < 0].sum() == 0


def test_rows_that_do_not_say_are_noted_without_a_procedure(maker):
    make, _, questions = maker
    group = groups_of(questions)[0]
    silent = [replace(questions[row], procedure=None) for row in group.rows]
    guide = make.pack([make.tree(group, silent)]).guide
    assert (guide.states == UNKNOWN).all() and (guide.things == NO_THING).all() and not guide.spans.any()
    make.guided = False
    assert make.pack([make.tree(group, silent)]).guide is None
