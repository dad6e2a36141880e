"""A language model behind a real HTTP server: what it says is believed only where it can be checked."""

import json
import random

import pytest

from assets.questions.compositional import derive_compositional, rederive_program
from assets.questions.language import mentions, propose, table
from assets.questions.parameters import MOST_PROPOSALS, LanguageParameters
from assets.questions.paraphrase import paraphrase
from models.endpoint import Endpoint
from tests.models.test_endpoint import completion, serving

from .test_compositional import NAMES, clip

SPAN = "between(1.0, 6.0)"
LANGUAGE = LanguageParameters(proposals=3)
FREE = LANGUAGE.model_copy(update={"free_text": True, "passes": 2})
VIEW = "Between 1.0s and 6.0s, following the perspective of camera, "


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def model(server):
    """Opens an endpoint that gives the replies in turn, the last for ever."""

    def opened(*replies, **how) -> Endpoint:
        server.script[:] = [(200, completion(reply), {}, 0.0) for reply in replies]
        return Endpoint(server.url, "m", **({"attempts": 2, "timeout_s": 5.0, "back_off_s": 0.001} | how))

    return opened


@pytest.fixture(scope="module")
def scene():
    return clip(0)


@pytest.fixture(scope="module")
def known(scene):
    return derive_compositional(*scene)[0]


def proposals(rows):
    return [{"program": json.loads(row["evidence"])["program"], "answer": row["states"]} for row in rows]


def reasons(came):
    return [refusal.reason for refusal in came.refusals]


# Proposals --------------------------------------------------------------------------------------------------------


def test_what_the_engine_verifies_is_taken_in_our_own_words(model, scene, known, server):
    wanted = [row for row in known if len(row["states"]) == 1][:3]
    reply = json.dumps(proposals(wanted))
    came = propose(model(f"Here you are:\n```json\n{reply}\n```"), *scene, LANGUAGE)
    assert came.rows == wanted and not came.refusals
    assert all(rederive_program(row) == row["states"] for row in came.rows)
    system, user = (message["content"] for message in server.seen[0][1]["messages"])
    assert "argmin" in system and all(name in user for name in NAMES)


def test_procedural_answers_are_compared_without_their_numbering(model, scene, known):
    row = next(row for row in known if len(row["states"]) > 1)
    item = proposals([row])[0]
    item["answer"] = " ".join(f"({number}) {state.lower()}." for number, state in enumerate(row["states"], 1))
    assert propose(model(json.dumps([item])), *scene, LANGUAGE).rows == [row]


def test_a_liar_is_refused_with_what_is_true(model, scene, known):
    rows = [row for row in known if row["states"][0].startswith("In the ")][:3]
    lies = [item | {"answer": "In the ninth quarter"} for item in proposals(rows)]
    came = propose(model(json.dumps(lies)), *scene, LANGUAGE)
    assert came.rows == []
    assert [
        f"{row['states'][0].lower()!r}, not 'in the ninth quarter'" in reason
        for row, reason in zip(rows, reasons(came), strict=True)
    ] == [True] * 3
    assert all(refusal.clip == scene[2].clip and "quarter" in refusal.said for refusal in came.refusals)


def test_nonsense_is_refused_and_nothing_is_stored(model, scene):
    draw = random.Random(0)
    babble = [
        "".join(chr(draw.choice([draw.randrange(32, 127), draw.randrange(160, 0xD7FF)])) for _ in range(200))
        for _ in range(4)
    ]
    for said in [*babble, "", "[" * 100_000, "{}", "null", '"text"', "1e999", "x" * 200_000]:
        came = propose(model(said), *scene, FREE)
        assert came.rows == [] and len(came.refusals) == 1
        assert came.refusals[0].said.isascii() and came.refusals[0].said.isprintable()
        assert len(came.refusals[0].said) <= 300


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"program": "__import__('os')", "answer": "x"}, "no operation"),
        ({"program": ["argmax"], "answer": "x"}, "no text"),
        ({"program": f"how(speed('unicorn'), {SPAN})", "answer": "x"}, "no 'unicorn'"),
        ({"program": "how(speed('dog'), between(1.0, 600.0))", "answer": "x"}, "outside the clip"),
        ({"program": f"max(speed('dog'), {SPAN})", "answer": 3}, "asks for a number"),
        ({"program": f"how(speed('dog'), {SPAN})", "answer": {"a": [1]}}, "the answer is"),
        ({"question": "Which?", "answer": "dog"}, "free text is not allowed"),
        ({"program": f"how(speed('dog'), {SPAN})"}, "no program or question with an answer"),
        ("dog", "no program or question with an answer"),
    ],
)
def test_every_refusal_has_its_reason(model, scene, item, reason):
    came = propose(model(json.dumps([item])), *scene, LANGUAGE)
    assert came.rows == [] and len(came.refusals) == 1 and reason in came.refusals[0].reason


def test_repeats_and_too_many_are_refused_and_the_rest_is_taken(model, scene, known):
    item = proposals(known[:1])
    came = propose(model(json.dumps(item * (MOST_PROPOSALS + 5))), *scene, LANGUAGE)
    assert came.rows == known[:1]
    assert reasons(came).count("asks what another asks") == MOST_PROPOSALS - 1
    assert f"{MOST_PROPOSALS + 5} proposals, more than {MOST_PROPOSALS}" in reasons(came)


def test_motion_is_not_taken_where_the_cameras_path_is_unknown(model, scene):
    item = {"program": f"how(speed('dog'), {SPAN})", "answer": "x"}
    came = propose(model(json.dumps([item])), *scene, LANGUAGE, poses_known=False)
    assert "camera's path is unknown" in reasons(came)[0]


def test_a_failing_endpoint_and_a_spent_budget_are_refusals(server, model, scene, known):
    endpoint = model("")
    server.script[:] = [(503, b"{}", {}, 0.0)]
    assert "503" in reasons(propose(endpoint, *scene, LANGUAGE))[0] and len(server.seen) == 2
    endpoint = model(json.dumps(proposals(known[:1])), max_requests=1)
    assert propose(endpoint, *scene, LANGUAGE).rows and "budget" in reasons(propose(endpoint, *scene, LANGUAGE))[0]


def test_the_table_is_bounded_and_says_where_things_are(scene):
    lines = table(scene[0], scene[2]).splitlines()
    assert lines[0] == "seconds, name, forward, left, up" and len(lines) <= 1 + 16 * 12
    assert next(line for line in lines if ", camera, " in line) == "0.00, camera, 0, 0, 0"


# Free text --------------------------------------------------------------------------------------------------------


def asked(question, answer="dog"):
    return json.dumps([{"question": question, "answer": answer}])


def test_free_text_is_taken_only_if_independent_passes_agree(model, scene, server):
    question = VIEW + "which of dog and van looks livelier?"
    came = propose(model(asked(question), "Dog."), *scene, FREE)
    (row,) = came.rows
    assert row["question"] == question and row["states"] == ["dog"] and row["targets"] == ["dog", "van"]
    assert row["stability"] == 1.0 and not came.refusals
    tables = {request[1]["messages"][1]["content"] for request in server.seen[1:]}
    assert len(tables) == FREE.passes, "every pass sees another noise draw"
    came = propose(model(asked(question), "dog", "van"), *scene, FREE)
    assert came.rows == [] and "1 of 2 passes agree" in reasons(came)[0]


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        (VIEW + "which of dog and van is <b>faster</b>?", "dog", "markup"),
        (VIEW + "which of dog and van\u202e is it?", "dog", "control characters"),
        (VIEW + "which of dog and van" + " is" * 400, "dog", "no text of at most"),
        ("Which of dog and van is it?", "dog", "no interval"),
        ("Between 1.0s and 99.0s, which of dog and van is it?", "dog", "outside the clip"),
        (VIEW + "what is it?", "dog", "names no thing"),
        (VIEW + "which of dog and van is it?", "unicorn", "no name in the question"),
        (VIEW + "which of dog and van is it?", "1000000", "no name in the question"),
        (7, "dog", "no text"),
    ],
)
def test_unfit_free_text_is_refused_before_anything_is_asked(model, scene, server, question, answer, reason):
    came = propose(model(asked(question, answer), "dog"), *scene, FREE)
    assert came.rows == [] and reason in reasons(came)[0] and len(server.seen) == 1


def test_longer_names_are_found_first():
    assert mentions("The red car passes the car near the scar.", ["car", "red car", "bin"]) == ["red car", "car"]
    assert mentions("The red car passes.", ["car", "red car"]) == ["red car"]


# Paraphrase -------------------------------------------------------------------------------------------------------

ROW = {
    "clip": "c",
    "type": "rel_spd_comp",
    "question": VIEW + "compare the speed between dog and red car.",
    "states": ["Nearly the same"],
}
EVERYONE = [*NAMES, "camera"]
READ = {
    "asks": "compare speeds", "viewpoint": "camera", "moves": True, "at": None, "things": ["dog", "red car"],
    "start": 1.0, "end": 6.0,
}  # fmt: skip
STRICT = LANGUAGE.model_copy(update={"second_reading": False})


def test_other_words_for_the_same_question_are_taken(model):
    said = "Following the viewpoint of camera, compare the speeds of the dog and the red car from 1.0 to 6.0 seconds."
    assert paraphrase(model(said), ROW, EVERYONE, STRICT) == (said, [])


def test_words_that_our_reader_does_not_know_are_read_back_by_the_model(model):
    said = "Riding along with camera from 1.0s to 6.0s, which moves how, dog or red car?"
    text, refusals = paraphrase(model(said), ROW, EVERYONE, STRICT)
    assert text is None and len(refusals) == 1
    assert paraphrase(model(said, json.dumps(READ)), ROW, EVERYONE, LANGUAGE) == (said, [])
    for other in (READ | {"things": ["red car", "dog"]}, READ | {"end": 5.0}, READ | {"moves": False}, [], "nonsense"):
        text, refusals = paraphrase(model(said, json.dumps(other)), ROW, EVERYONE, LANGUAGE)
        assert text is None and refusals[0].reason == "reads back as another question"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (VIEW + "compare the speed between dog and blue car.", "loses or adds"),
        (VIEW + "compare the speed between dog and red car and van.", "loses or adds"),
        (VIEW + "compare the speed of dog.", "loses or adds"),
        (VIEW.replace("6.0", "7.0") + "compare the speed between dog and red car.", "changes a number"),
        (VIEW + "compare the speed between dog and red car, which is faster.", "adds the word 'faster'"),
        (VIEW + "compare the speed between red car and dog.", "other parts"),
        (VIEW + "compare the speed between **dog** and red car.", "markup"),
        (VIEW + "compare the speed between dog and red car." * 30, "no text of at most"),
        ("", "no text"),
    ],
)
def test_a_paraphrase_that_changes_anything_is_refused(model, said, reason):
    text, refusals = paraphrase(model(said), ROW, EVERYONE, LANGUAGE)
    assert text is None and len(refusals) == 1 and reason in refusals[0].reason


def test_a_distance_has_no_order(model):
    row = ROW | {
        "type": "rel_dis",
        "question": VIEW + "how does the distance between dog and van change?",
        "states": ["Becomes larger"],
    }
    said = VIEW + "how does the distance between van and dog change?"
    assert paraphrase(model(said), row, EVERYONE, STRICT) == (said, [])
