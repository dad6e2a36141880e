import csv
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from assets.geometry.classes import AnswerError, classes_of, conversation, parsed, read_caption
from assets.geometry.parameters import FoundationParameters, GeometryParameters
from assets.text_model import TextModelParameters

KOALA = Path(__file__).parents[4] / "shared" / "data" / "benchmarks" / "dsr" / "koala36m_sample.csv"
LISTED = {"agents": ("person", "dog"), "objects": ("ball", "dog")}


class Model:
    """Says the same to everything, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def complete(self, messages, *, max_tokens=512):
        self.asked.append(messages)
        return self.answer


def test_without_a_caption_the_noun_lists_hold_and_nobody_is_asked():
    model = Model("{}")
    classes = classes_of("", **LISTED, model=model, most=5)
    assert (classes.agents, classes.objects, classes.source) == (("person", "dog"), ("ball",), "parameters")
    assert classes.all == ("person", "dog", "ball") and not classes.reason and not model.asked


def test_a_caption_decides_where_a_text_model_reads_it():
    model = Model('{"agents": ["Jockey", " race  horse"], "objects": ["race horse", "white fence", "white fence"]}')
    classes = classes_of("a horse race", **LISTED, model=model, most=5)
    assert (classes.agents, classes.objects) == (("jockey", "race horse"), ("white fence",))
    assert classes.source == "caption" and not classes.reason
    assert "a horse race" in model.asked[0][-1]["content"]


def test_a_caption_that_nobody_reads_is_noted():
    assert "no text model" in classes_of("a horse race", **LISTED, model=None, most=5).reason


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "not JSON"),
        ("Sure! {}", "not JSON"),
        ("[" * 3000, "not JSON"),
        ("null", "no object of"),
        ('{"agents": ["dog"]}', "no object of"),
        ('{"agents": ["dog"], "objects": [], "more": 1}', "no object of"),
        ('{"agents": "dog", "objects": []}', "no list of at most 5"),
        (json.dumps({"agents": ["dog"] * 6, "objects": []}), "no list of at most 5"),
        ('{"agents": ["dog", 7], "objects": []}', "no short noun"),
        ('{"agents": ["dog. cat"], "objects": []}', "no short noun"),
        ('{"agents": ["../etc/passwd"], "objects": []}', "no short noun"),
        ('{"agents": ["<b>dog</b>"], "objects": []}', "no short noun"),
        ('{"agents": ["dog\\u202e"], "objects": []}', "no short noun"),
        (json.dumps({"agents": ["d" * 41], "objects": []}), "no short noun"),
        ('{"agents": [""], "objects": []}', "no short noun"),
        ('{"agents": [], "objects": []}', "names nothing"),
        ('{"agents": ["dog"], "objects": []}' + " " * 5000, "longer than"),
    ],
)
def test_nonsense_falls_back_to_the_noun_lists_with_the_reason(answer, why):
    with pytest.raises(AnswerError, match=why):
        parsed(answer, 5)
    classes = classes_of("a dog", **LISTED, model=Model(answer), most=5)
    assert classes.agents == ("person", "dog") and classes.source == "parameters" and why in classes.reason


def test_a_fenced_answer_is_an_answer():
    assert parsed('```json\n{"agents": ["dog"], "objects": ["tennis ball"]}\n```', 5) == (("dog",), ("tennis ball",))


def test_a_caption_is_quoted_bounded_and_free_of_control_characters(tmp_path):
    path = tmp_path / "caption.txt"
    path.write_bytes(b'a "dog"\r\n\x00\x1b[31m ' + b"\xff" + "é ".encode() * 20000)
    caption = read_caption(path)
    assert caption.startswith('a "dog" [31m \ufffdé é') and len(caption) <= 8000 and caption.isprintable()
    quoted = conversation(caption, 5)[1]["content"].removeprefix("Description: ")
    assert json.loads(quoted) == caption


@pytest.mark.skipif(not KOALA.exists(), reason="needs ../shared/data (real captions)")
def test_real_captions_come_through_whole(tmp_path):
    with KOALA.open(newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    assert len(captions) == 5
    for number, caption in enumerate(captions):
        path = tmp_path / f"{number}.txt"
        path.write_text(caption)
        assert read_caption(path) == " ".join(caption.split())


def test_parameters_take_nouns_only_and_all_weights_or_none():
    for nouns in (("Dog",), ("dog. cat",), ("x" * 50,)):
        with pytest.raises(ValidationError):
            FoundationParameters(agents=nouns)
    with pytest.raises(ValidationError, match="weights of all networks or of none, and segmenter, orientation has"):
        FoundationParameters(pi3="a", detector="b")
    assert not FoundationParameters().given
    for url in ("ftp://host/v1", "http://user:secret@host/v1", "host"):
        with pytest.raises(ValidationError):
            TextModelParameters(url=url)


def test_what_decides_a_record_holds_no_place():
    places = {name: f"/somewhere/{name}" for name in ("pi3", "detector", "segmenter", "orientation")}
    here = GeometryParameters(foundation=FoundationParameters(device="cuda:1", **places))
    assert here.deciding() == GeometryParameters().deciding() and "somewhere" not in json.dumps(here.deciding())
    other = GeometryParameters(foundation=FoundationParameters(endpoint=TextModelParameters(model="another")))
    assert other.deciding() != here.deciding()
