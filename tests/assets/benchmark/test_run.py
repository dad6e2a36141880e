"""One evaluation of a small suite: real videos, a checkpoint of a few steps, a real local endpoint."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from assets.benchmark.clips import SHARD, ClipFolder
from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.predictions import PredictionCache, PredictionCacheError, Reply, ask_all, prediction_key
from assets.benchmark.readers import GENERATION, EndpointReader, LocalReader, Manner, Places
from assets.benchmark.run import evaluate_suite
from assets.benchmark.suite import Item, Suite, Unusable, Videos
from assets.benchmark.suite_figures import table_lines
from assets.geometry.parameters import GeometryParameters
from assets.videos.parameters import VideoParameters
from models.data import Question
from models.endpoint import Endpoint, EndpointError
from models.parameters import TrainingParameters
from tests.assets.benchmark.test_real_model import checkpoint  # noqa: F401
from tests.assets.videos.conftest import grey_frames, write_video
from tests.models.test_endpoint import completion, serving

LETTERS = Manner("letters")
SPOKEN = Manner(GENERATION, max_tokens=4)
VIDEOS = VideoParameters(frames=6, max_pixels=4096, timeout_s=20)
# The networks of no estimator run in these tests: nothing here supports a video.
GEOMETRY = GeometryParameters(estimators=("rendered",))
LIKE = TrainingParameters(max_frames=4, max_pixels=3136, threads=1)


BENCHMARK = BenchmarkParameters(resamples=200)


ITEMS = (
    Item("a", "one", "dir", "Where does it go?", ("left", "right", "up", "down"), "A"),
    Item("b", "one", "dir", "Does it turn?", ("yes", "no"), "B", visible_until=0.3),
    Item("c", "one", "count", "How many are there?", (), "4"),
    Item("d", "two", "dir", "Is it red?", ("yes", "no", "partly"), "C", segment=(0.2, 0.5)),
    Item("e", "gone", "dir", "Is it red?", ("yes", "no"), "A"),
    Item("f", "broken", "dir", "Is it red?", ("yes", "no"), "A"),
    Item("g", "two", "dir", "Is it?", tuple(map(str, range(11))), "A"),
    Item("h", "two", "dir", "far " * 3000, ("yes", "no"), "A"),
    Item("i", "two", "dir", "far " * 3000, ("yes", "no"), "B"),
)


def suite_of(*items: Item) -> Suite:
    return Suite("tiny", "1", items, (Unusable(7, "no answer"),), "0" * 64)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    one, two = write_video(folder / "<b>one.mp4"), write_video(folder / "two.mp4", grey_frames(20)[::-1].copy())
    return {"one": one, "two": two, "broken": folder / "broken.mp4"}


@pytest.fixture
def clips(tmp_path):
    return ClipFolder(tmp_path / "clips", VIDEOS, GEOMETRY, with_geometry=True, workers=1)


class Counting:
    """A reader that counts what it is asked."""

    def __init__(self, reader):
        self.reader, self.asked = reader, []
        self.name, self.identity = reader.name, reader.identity
        self.channels, self.clips_at_once = reader.channels, reader.clips_at_once

    def answer(self, questions, places, manner):
        replies = self.reader.answer(questions, places, manner)
        self.asked += [question.qa_id for question in questions]
        return replies


def evaluated(reader, found, clips, tmp_path, items=ITEMS, manner=LETTERS, out="out", **how):
    cache = PredictionCache(tmp_path / "kept" / "predictions.sqlite")
    videos = Videos(found, {"gone": "gone.mp4 is not among the files"})
    where = (clips, manner, cache, tmp_path / out, BENCHMARK)
    metrics = evaluate_suite(suite_of(*items), videos, reader, *where, identity={"code": "1"}, **how)
    return metrics, pq.read_table(tmp_path / out / "predictions.parquet").to_pylist()


def test_a_suite_is_asked_and_what_could_not_be_is_told(checkpoint, found, clips, tmp_path):  # noqa: F811
    reader = Counting(LocalReader(str(checkpoint)))
    metrics, rows = evaluated(reader, found, clips, tmp_path, rotations=True)
    by_item = {}
    for row in rows:
        by_item.setdefault(row["item_id"], []).append(row)
    assert [len(by_item[name]) for name in "abcdefghi"] == [4, 2, 1, 3, 1, 1, 1, 2, 2]
    states = {name: by_item[name][0]["status"] for name in by_item}
    assert states == dict.fromkeys("abcd", "asked") | dict(
        e="missing", f="unreadable", g="unusable", h="refused", i="refused"
    )
    assert by_item["e"][0]["reason"] == "gone.mp4 is not among the files"
    assert "Not a readable video" in by_item["f"][0]["reason"]
    assert all("max_text_tokens" in row["reason"] for row in by_item["h"] + by_item["i"])
    for row in by_item["a"]:
        first = 4 - row["rotation"]
        turned = ITEMS[0].options[first:] + ITEMS[0].options[:first]
        assert tuple(row["options"]) == turned and turned["ABCD".index(row["answer"])] == "left"
        assert sum(row["shares"]) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == "ABCD"[int(np.argmax(row["shares"]))]
        assert ITEMS[0].options[row["choice"]] == turned["ABCD".index(row["predicted"])]
        assert row["score"] == (row["choice"] == 0)
    assert by_item["c"][0]["text"] is not None and by_item["c"][0]["shares"] is None
    assert metrics["overall"]["n"] == 4 and metrics["overall"]["numeric"] == 1
    assert set(metrics["by_type"]) == {"dir", "count"} and metrics["by_type"]["dir"]["n"] == 3
    assert metrics["by_type"]["dir"]["chance"] == pytest.approx((1 / 4 + 1 / 2 + 1 / 3) / 3, abs=1e-6)
    told = {(one["status"], one["n"]) for one in metrics["not_asked"]}
    assert told == {("missing", 1), ("unreadable", 1), ("unusable", 1), ("refused", 2)}
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| dir | 3 | 2 |" in summary and "1 not asked, missing: gone.mp4" in summary
    assert metrics["counts"] == {"asked": 4, "missing": 1, "unreadable": 1, "unusable": 2, "refused": 2}
    assert metrics["rotations"].keys() == {"2", "3", "4"} == metrics["positions"].keys()
    turned = metrics["rotations"]["4"]
    assert (turned["questions"], turned["accuracy"]["n"], turned["left_out"]) == (1, 4, 0)
    assert turned["accuracy"]["accuracy"] == np.mean([row["score"] for row in by_item["a"]])
    assert metrics["overall"]["clips"] == 2 and metrics["overall"]["interval"] == "cluster robust"
    assert metrics["by_options"]["3"]["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert metrics["macro"]["accuracy"] == pytest.approx(
        np.mean([part["accuracy"] for part in metrics["by_type"].values()]), abs=1e-6
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert any("over all 4 rotations" in line for line in table_lines(metrics))

    again = Counting(LocalReader(str(checkpoint)))
    repeated, same = evaluated(again, found, clips, tmp_path, out="again", rotations=True)
    assert (repeated, same) == (metrics, rows) and again.asked == []
    # Rotation 0 is a question like any other, so an evaluation without rotations knows its answers already.
    straight, few = evaluated(again, found, clips, tmp_path, out="straight")
    assert again.asked == [] and straight["overall"] == metrics["overall"] and straight["rotations"] is None
    assert few == [row for row in rows if row["rotation"] == 0]
    # What was refused is tried again; where nothing is left to be asked, no model is loaded.
    idle = LocalReader(str(checkpoint))
    evaluated(idle, found, clips, tmp_path, ITEMS[:7], out="idle")
    assert "_opened" not in vars(idle)


def test_generation_and_blindness_are_questions_of_their_own(checkpoint, found, clips, tmp_path):  # noqa: F811
    reader = Counting(LocalReader(str(checkpoint)))
    metrics, rows = evaluated(reader, found, clips, tmp_path, ITEMS[:4], SPOKEN)
    assert sorted(reader.asked) == ["a/0", "b/0", "c/0", "d/0"] and all(row["text"] is not None for row in rows)
    assert metrics["overall"]["without_answer"] == sum(row["predicted"] is None for row in rows)
    blind, _ = evaluated(reader, {}, None, tmp_path, ITEMS[:5], replace(LETTERS, blind=True), out="blind")
    assert blind["overall"]["n"] == 5 and blind["protocol"]["blind"] and len(reader.asked) == 9


def test_boxes_and_hidden_ends_are_the_clips_own(checkpoint, found, clips, tmp_path):  # noqa: F811
    reader = Counting(LocalReader(str(checkpoint)))
    boxed = replace(ITEMS[0], question="Where is [0,0,640,480]?", frame_limit=(640, 480), hidden_seconds=0.3)
    outside = replace(boxed, item_id="out", question="Where is [0,0,700,480]?")
    kept = []
    answer = reader.answer
    reader.answer = lambda questions, places, manner: kept.extend(questions) or answer(questions, places, manner)
    metrics, rows = evaluated(reader, found, clips, tmp_path, (boxed, outside))
    assert rows[0]["question"] == "Where is [0,0,64,48]?" and kept[0].visible_until == pytest.approx(0.46)
    assert (rows[1]["status"], rows[1]["score"]) == ("unusable", None)
    assert "lies outside a 640x480 frame" in rows[1]["reason"] and metrics["overall"]["n"] == 1


def test_where_nothing_can_be_asked_the_report_says_so(checkpoint, clips, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(clips, "prepare", None)
    reader = LocalReader(str(checkpoint))
    metrics, rows = evaluated(reader, {}, clips, tmp_path, (ITEMS[4], ITEMS[6]))
    assert metrics["overall"] is None and metrics["counts"] == {"asked": 0, "missing": 1, "unusable": 2}
    assert all(row["score"] is None for row in rows) and "_opened" not in vars(reader)
    assert table_lines(metrics)[:2] == [
        "no question could be asked",
        "1 not asked, missing: gone.mp4 is not among the files",
    ]
    assert "Asked 0 of 2 questions" in (tmp_path / "out" / "summary.md").read_text()


class Dying:
    """A reader that comes to its end on the third call."""

    def __init__(self, reader):
        self.reader, self.left = reader, 2
        self.name, self.identity = reader.name, reader.identity
        self.channels, self.clips_at_once = reader.channels, reader.clips_at_once

    def answer(self, questions, places, manner):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.reader.answer(questions, places, manner)


def test_an_interrupted_evaluation_comes_to_the_same_figures(checkpoint, found, clips, tmp_path):  # noqa: F811
    (tmp_path / "whole").mkdir()
    whole = evaluated(LocalReader(str(checkpoint)), found, clips, tmp_path / "whole", ITEMS[:4], rotations=True)
    with pytest.raises(KeyboardInterrupt):
        evaluated(Dying(LocalReader(str(checkpoint))), found, clips, tmp_path, ITEMS[:4], rotations=True)
    assert not (tmp_path / "out").exists()
    rest = Counting(LocalReader(str(checkpoint)))
    assert evaluated(rest, found, clips, tmp_path, ITEMS[:4], rotations=True) == whole
    assert 0 < len(rest.asked) < 10 and len(set(rest.asked)) == len(rest.asked)


# Clips.


def test_clips_are_prepared_once(found, clips, monkeypatch):
    (first, none), reasons = clips.prepare([found["one"], found["broken"]])
    assert none is None and reasons[0] == "" and "Not a readable video" in reasons[1]
    assert first.size == (64, 48) and first.provenance["status"] == "refused"
    assert first.seconds == pytest.approx(0.76)
    monkeypatch.setattr("assets.benchmark.clips.prepare_batch", None)
    assert clips.prepare([found["one"], found["one"]]) == ([first, first], ["", ""])


def test_other_parameters_have_clips_of_their_own_and_a_lost_file_is_a_reason(found, clips, tmp_path):
    fewer = ClipFolder(
        tmp_path / "clips", VIDEOS.model_copy(update={"frames": 4}), GEOMETRY, with_geometry=True, workers=1
    )
    bare = ClipFolder(tmp_path / "clips", VIDEOS, GEOMETRY, with_geometry=False, workers=1)
    wanted = [found["one"], found["one"].with_name("none.mp4")]
    ready = [folder.prepare(wanted) for folder in (clips, fewer, bare)]
    assert len({made[0].digest for made, _ in ready}) == 3
    assert all(made[1] is None and "cannot be read (no such file)" in reasons[1] for made, reasons in ready)
    assert ready[2][0][0].provenance["reason"] == "the model reads none"
    # A note that a killed process left half written is no note.
    note = clips._note(ready[0][0][0].clip)
    note.write_text(note.read_text()[:20])
    assert clips.prepare(wanted[:1])[0] == ready[0][0][:1]


# The kept answers.


def question(name="q", text="Where?", options=("x", "y"), clip="c" * 64, until=None):
    return Question(name, clip, SHARD, "dir", text, options, until)


def test_an_answer_is_known_by_what_it_rests_on():
    reader = SimpleNamespace(identity="r")
    base = prediction_key(reader, question(), "seen", LETTERS)
    assert prediction_key(reader, question(name="other"), "seen", LETTERS) == base
    others = [
        prediction_key(SimpleNamespace(identity="s"), question(), "seen", LETTERS),
        prediction_key(reader, question(text="When?"), "seen", LETTERS),
        prediction_key(reader, question(options=("y", "x")), "seen", LETTERS),
        prediction_key(reader, question(until=1.0), "seen", LETTERS),
        prediction_key(reader, question(), "other", LETTERS),
        prediction_key(reader, question(), "seen", SPOKEN),
        prediction_key(reader, question(), "seen", replace(SPOKEN, max_tokens=5)),
        prediction_key(reader, question(), "seen", replace(LETTERS, blind=True)),
    ]
    assert len({base, *others}) == 9
    blind = replace(LETTERS, blind=True)
    assert prediction_key(reader, question(until=1.0), "x", blind) == prediction_key(reader, question(), "y", blind)


def test_kept_answers_stay_as_they_were_first(tmp_path):
    cache = PredictionCache(tmp_path / "kept.sqlite")
    cache.add({"k": Reply("a", (0.1, 0.9)), "t": Reply("b", text="\ud800 <i>")})
    cache.add({"k": Reply("a", (0.5, 0.5))})
    known = PredictionCache(tmp_path / "kept.sqlite").known(["k", "t", "none"])
    assert known == {"k": Reply("", (0.1, 0.9)), "t": Reply("", text="\ud800 <i>")}
    (tmp_path / "kept.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    with pytest.raises(PredictionCacheError, match=r"kept\.sqlite: the kept answers cannot be used .* delete the file"):
        PredictionCache(tmp_path / "kept.sqlite")


# An endpoint.


def chances(**shares) -> bytes:
    likeliest = [{"token": token, "logprob": float(np.log(share)), "bytes": None} for token, share in shares.items()]
    told = {"token": "A", "logprob": 0.0, "bytes": None, "top_logprobs": likeliest}
    body = json.loads(completion("A"))
    body["choices"][0]["logprobs"] = {"content": [told], "refusal": None}
    return json.dumps(body).encode()


def endpoint(server, **how):
    return EndpointReader(Endpoint(server.url, "m", attempts=1, back_off_s=0.01, **how), 3, 1024, at_once=1)


def test_an_endpoint_is_shown_frames_and_asked_both_ways(found, clips, tmp_path):
    with serving() as server:
        server.script[:] = [(200, completion("The answer is B."), {}, 0.0)]
        reader = endpoint(server, cache=tmp_path / "answers")
        _, rows = evaluated(reader, found, clips, tmp_path, ITEMS[:2], SPOKEN)
        assert [row["predicted"] for row in rows] == ["B", "B"] and rows[1]["score"] == 1
        # Questions that may see less of a clip come first: this one 0.3 of 0.76 seconds.
        assert server.seen[0][1]["messages"][0]["content"][-2]["text"].endswith("at 0.0, 0.2 seconds.")
        *pictures, told, asked = server.seen[1][1]["messages"][0]["content"]
        assert len(pictures) == 3 and all(one["image_url"]["url"].startswith("data:image/jpeg") for one in pictures)
        assert "at 0.0, " in told["text"] and "A left\nB right\nC up\nD down" in asked["text"]
        kept = "".join(path.read_text() for path in (tmp_path / "answers").iterdir())
        assert "base64" not in kept and "sha256:" in kept
        server.script[:] = [(200, chances(**{"A": 0.2, " b": 0.6, "The": 0.1}), {}, 0.0)]
        _, rows = evaluated(reader, found, clips, tmp_path, ITEMS[1:2], LETTERS, out="letters")
        assert rows[0]["shares"] == pytest.approx([0.25, 0.75]) and rows[0]["predicted"] == "B"
        server.script[:] = [(200, chances(The=0.9), {}, 0.0)]
        metrics, _ = evaluated(reader, found, clips, tmp_path, ITEMS[:1], LETTERS, out="none")
        assert metrics["overall"]["without_answer"] == 1 and metrics["overall"]["accuracy"] == 0
        server.script[:] = [(200, completion("A"), {}, 0.0)]
        with pytest.raises(EndpointError, match="tells no probabilities of tokens"):
            evaluated(reader, found, clips, tmp_path, ITEMS[3:4], LETTERS, out="no")


BLIND = Manner(GENERATION, blind=True, max_tokens=4)


def test_the_same_question_is_asked_once_however_often_it_stands_there(tmp_path):
    with serving() as server:
        server.script[:] = [(200, completion("A"), {}, 0.0)]
        twice = [question("q1"), question("q2"), question("q3", clip="d" * 64)]
        replies = ask_all(
            endpoint(server), twice, {}, Places(tmp_path, tmp_path), BLIND, PredictionCache(tmp_path / "kept.sqlite")
        )
        assert [reply.item_id for reply in replies] == ["q1", "q2", "q3"] and len(server.seen) == 1


# A plain model.


def test_a_plain_model_is_a_reader_and_its_bytes_are_its_identity(checkpoint, found, clips, tmp_path):  # noqa: F811
    from models.geometric_qwen import load_base
    from models.predict import open_checkpoint

    plain = load_base(str(checkpoint), None)
    plain.save_pretrained(tmp_path / "plain")
    open_checkpoint(checkpoint).tokenizer.save_pretrained(tmp_path / "plain")
    reader = LocalReader(str(tmp_path / "plain"), LIKE)
    bare = ClipFolder(tmp_path / "clips", VIDEOS, GEOMETRY, with_geometry=False, workers=1)
    assert reader.channels is None and reader.name == "plain"
    _, rows = evaluated(reader, found, bare, tmp_path, ITEMS[:4])
    assert [row["status"] for row in rows] == ["asked"] * 4
    assert LocalReader(str(tmp_path / "plain"), LIKE).identity == reader.identity
    other = TrainingParameters(max_frames=3, max_pixels=3136, threads=1)
    assert LocalReader(str(tmp_path / "plain"), other).identity != reader.identity
    config = tmp_path / "plain" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert LocalReader(str(tmp_path / "plain"), LIKE).identity != reader.identity
