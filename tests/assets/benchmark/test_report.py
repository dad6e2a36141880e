import copy
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from assets.benchmark.examples import choose_examples, draw_example, shown_moments
from assets.benchmark.report import LARGEST_PAGE, five_lines, render_html, render_markdown, verdict

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks nesting and collects what a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loads, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(evaluated):
    return (evaluated.out / "report.html").read_text(encoding="utf-8")


def examples_of(world, count, parameters):
    bench = pq.read_table(world / "splits" / "bench.parquet")
    rows = choose_examples(bench, np.arange(bench.num_rows) % 2 == 0, count)
    even = np.full(4, 0.25)
    return [
        draw_example(bench.slice(i, 1).to_pylist()[0], even, even, world / "videos", world / "geometry", parameters)
        for i in rows
    ]


def test_the_page_is_well_formed_and_loads_nothing(page):
    parsed = Page(page)
    assert parsed.loads and all(value.startswith("data:") for value in parsed.loads)
    assert "script" not in parsed.tags
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|@import|url\(", page)
    assert len(page.encode()) <= LARGEST_PAGE


def test_the_page_says_first_what_was_found(page, evaluated):
    headline, _ = verdict(evaluated.metrics)
    assert headline == "Better than chance, and because of the video."
    assert page.index(headline) < page.index("By question type")
    accuracy = f"{100 * evaluated.metrics['overall']['accuracy']:.1f}"
    assert accuracy in page.split("By question type")[0]


def test_the_page_names_identity_types_and_parameters(page, evaluated, identity):
    text = Page(page).text
    for value in (*identity.values(), evaluated.metrics["protocol"]["bench_sha256"], "abs_dis", "parameters.seed"):
        assert value in text


def test_examples_show_frames_options_and_paths(page):
    assert page.count("<article") == 6
    assert page.count("data:image/jpeg;base64,") == 6 * 4
    assert page.count("data:image/png;base64,") == 6
    assert page.count('class="truth">the truth') == 6
    assert page.count("the model's answer</em>") == 6


def test_everything_from_outside_shows_as_text(evaluated, world, parameters):
    metrics = copy.deepcopy(evaluated.metrics)
    metrics["identity"] = {HOSTILE: HOSTILE}
    metrics["by_type"] = {HOSTILE: metrics["by_type"]["abs_dis"]}
    metrics["missing"] = {"n": 1, "questions": [{"qa_id": "x", "clip": "y", "reason": HOSTILE}]}
    (example,) = examples_of(world, 1, parameters)
    option = replace(example.options[0], text=HOSTILE, letter=HOSTILE)
    hostile = replace(
        example,
        question=HOSTILE,
        type=HOSTILE,
        qa_id=HOSTILE,
        clip=HOSTILE,
        estimator=HOSTILE,
        targets=[(HOSTILE, "#000000")],
        options=[option] * 4,
    )
    page = render_html(metrics, [hostile])
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "<script" not in page
    assert parsed.text.count(HOSTILE) >= 10


def test_an_object_with_a_hostile_name_reaches_the_page_as_text(world, parameters, evaluated):
    bench = pq.read_table(world / "splits" / "bench.parquet").to_pylist()
    row = next(row for row in bench if HOSTILE in row["question"])
    even = np.full(4, 0.25)
    page = render_html(
        evaluated.metrics, [draw_example(row, even, even, world / "videos", world / "geometry", parameters)]
    )
    assert "<script" not in page
    assert Page(page).text.count(HOSTILE) == 2


def test_markdown_escapes_what_would_be_markup(evaluated):
    metrics = copy.deepcopy(evaluated.metrics)
    metrics["by_type"] = {"a|b <b>*x*": metrics["by_type"]["abs_dis"]}
    summary = render_markdown(metrics)
    assert r"| a\|b &lt;b&gt;\*x\* |" in summary
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 + 1 + 4


def test_a_page_that_would_be_too_large_drops_pictures_from_the_end(evaluated, world, parameters):
    examples = examples_of(world, 3, parameters)
    heavy = [
        replace(e, pictures=[replace(e.pictures[0], source="data:image/jpeg;base64," + "A" * 1_200_000)])
        for e in examples
    ]
    page = render_html(evaluated.metrics, heavy)
    assert len(page.encode()) <= LARGEST_PAGE
    assert page.count("data:image/jpeg") == 2
    assert page.count("<article") == 3


def with_figures(metrics, accuracy, interval, gain):
    metrics = copy.deepcopy(metrics)
    metrics["overall"] |= {"accuracy": accuracy, "ci95": interval}
    metrics["difference"] |= {"value": sum(gain) / 2, "ci95": gain}
    return metrics


@pytest.mark.parametrize(
    ("accuracy", "interval", "gain", "headline"),
    [
        (0.27, [0.2, 0.34], [-0.05, 0.1], "Not distinguishable from chance."),
        (0.27, [0.2, 0.34], [0.01, 0.1], "Not distinguishable from chance."),
        (0.15, [0.1, 0.2], [-0.1, 0.1], "Worse than chance."),
        (0.6, [0.5, 0.7], [0.2, 0.3], "Better than chance, and because of the video."),
        (0.6, [0.5, 0.7], [-0.1, 0.1], "Better than chance, but not demonstrably because of the video."),
        (0.6, [0.5, 0.7], [-0.2, -0.1], "Better than chance, but worse with the video than without."),
    ],
)
def test_the_verdict_says_no_more_than_the_figures(evaluated, accuracy, interval, gain, headline):
    metrics = with_figures(evaluated.metrics, accuracy, interval, gain)
    said, sentence = verdict(metrics)
    assert said == headline
    assert f"{100 * accuracy:.1f} %" in sentence and "48 questions about 6 clips" in sentence
    assert headline in render_html(metrics, []) and headline in render_markdown(metrics)


def test_five_lines_for_a_terminal(evaluated):
    lines = five_lines(evaluated.metrics)
    assert len(lines) == 5
    assert all(0 < len(line) <= 110 and "\n" not in line for line in lines)
    assert "48 questions, 6 clips" in lines[1] and "blind" in lines[2]


def test_examples_are_various_and_the_same_every_time(world):
    bench = pq.read_table(world / "splits" / "bench.parquet")
    right = np.arange(bench.num_rows) % 5 > 0
    chosen = choose_examples(bench, right, 8)
    assert len(set(chosen)) == 8
    assert sum(right[chosen]) == 4
    types, clips = ([bench[name][i].as_py() for i in chosen] for name in ("type", "clip"))
    assert sorted(types) == ["abs_dis"] * 4 + ["rel_dis"] * 4
    assert len(set(clips)) == 6
    order = np.random.default_rng(0).permutation(bench.num_rows)
    shuffled = choose_examples(bench.take(order), right[order], 8)
    assert [order[i] for i in shuffled] == chosen
    assert len(choose_examples(bench, np.ones(48, bool), 100)) == 48


def test_moments_lie_in_the_interval_and_never_where_frames_are_hidden():
    times = np.arange(10) * 0.5
    assert shown_moments(times, 1.0, 3.0, None, 3).tolist() == [2, 4, 6]
    assert shown_moments(times, 1.0, 4.5, 2.0, 3).tolist() == [2, 3, 4]
    assert shown_moments(times, 1.0, 4.5, 2.0, 4).tolist() == [1, 2, 3, 4]
    assert shown_moments(times, 3.0, 4.5, 1.0, 2).tolist() == [1, 2]
    assert shown_moments(times, 3.0, 4.5, -1.0, 2).tolist() == [0]
    assert shown_moments(times, 1.1, 1.2, None, 2).tolist() == [1, 2]


def test_boxes_are_drawn_where_the_targets_are(world, parameters):
    import base64
    import io

    from PIL import Image

    (example,) = examples_of(world, 1, parameters)
    data = base64.b64decode(example.pictures[0].source.split(",")[1])
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert picture.shape == (210, 280, 3)
    assert example.targets[0][0] == "pillar"
    # The pillar's box, (28, 18)-(36, 30) of 64 x 48, is outlined in the first target colour, orange.
    scale = 280 / 64
    edge = picture[round(24 * scale), round(28 * scale) : round(28 * scale) + 2].mean(0)
    assert np.abs(edge - [230, 159, 0]).max() < 60
