import copy
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from assets.benchmark.baseline import Baseline
from assets.benchmark.comparison import read_scores
from assets.benchmark.examples import choose_examples, draw_example, shown_moments
from assets.benchmark.folder import ReportError, page_against
from assets.benchmark.report import LARGEST_PAGE, findings, five_lines, render_html, render_markdown, verdict
from tests.assets.geometry.test_scene_page import BROWSER, Browser

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
    bench = pq.read_table(world / "splits" / "bench.parquet").slice(0, count)
    even = np.full(4, 0.25)
    return [
        draw_example(row, even, even, world / "videos", world / "geometry", parameters) for row in bench.to_pylist()
    ]


def test_the_page_is_well_formed_and_loads_nothing(page):
    parsed = Page(page)
    assert parsed.loads and all(value.startswith(("data:", "#")) for value in parsed.loads)
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
    titles = re.findall(r'class="group">([^<]+) <', page)
    assert titles == ["Hardest", "Most improved", "A sample"]
    assert page.count("data:image/jpeg;base64,") == 6 * 4
    assert page.count("Seen from above:") == 6
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
    assert Page(page).text.count(HOSTILE) == 3


def test_markdown_escapes_what_would_be_markup(evaluated):
    metrics = copy.deepcopy(evaluated.metrics)
    metrics["by_type"] = {"a|b <b>*x*": metrics["by_type"]["abs_dis"]}
    summary = render_markdown(metrics)
    assert r"| a\|b &lt;b&gt;\*x\* |" in summary
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 8 + 1 + 2 + 1 + 5


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


def answer_to(metrics, question):
    return next(finding for finding in findings(metrics) if question in finding.question)


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


def test_the_verdict_trusts_only_what_the_controls_agree_on(evaluated):
    metrics = copy.deepcopy(evaluated.metrics)
    assert "every control agrees that this can be trusted" in verdict(metrics)[1]
    metrics["shuffled"]["difference"] |= {"value": 0.01, "ci95": [-0.02, 0.04]}
    assert "do not build on it yet: with another clip's video" in verdict(metrics)[1]
    assert answer_to(metrics, "right video").answer == "unclear"
    metrics = copy.deepcopy(evaluated.metrics)
    metrics["blind"] |= {"accuracy": 0.4, "ci95": [0.35, 0.45]}
    assert "the questions' text gives answers away" in verdict(metrics)[1]
    assert answer_to(metrics, "to themselves").answer == "no"
    metrics["shuffled"] = None
    assert answer_to(metrics, "right video").answer == "not measured"


def test_findings_follow_the_figures(evaluated):
    metrics = copy.deepcopy(evaluated.metrics)
    metrics["calibration"]["ece"] = 0.3
    for part in metrics["positions"]["by_letter"].values():
        part["excess"] |= {"value": 0.0, "ci95": [-0.1, 0.1]}
    assert answer_to(metrics, "as sure").answer == "no" and answer_to(metrics, "letters").answer == "yes"
    metrics["positions"]["by_letter"]["C"]["excess"] |= {"value": -0.1, "ci95": [-0.2, -0.05]}
    assert "C is said 10.0 points less often than it is true" in answer_to(metrics, "letters").reason
    metrics["missing"]["n"] = 2
    assert answer_to(metrics, "everything").reason.startswith("2 of 50 questions")


@pytest.fixture(scope="module")
def bench(world):
    return pq.read_table(world / "splits" / "bench.parquet")


def test_examples_are_the_hardest_the_improved_the_lost_and_a_sample(bench):
    generator = np.random.default_rng(0)
    model, before = generator.random((2, 48))
    right, held = model > 0.5, before > 0.5
    chosen = choose_examples(bench, model, before, right, held, 12)
    groups = [choice.group for choice in chosen]
    assert groups == ["hardest"] * 4 + ["improved"] * 3 + ["lost"] + ["sample"] * 4
    rows = np.array([choice.row for choice in chosen])
    assert len(set(rows)) == 12
    assert not right[rows[:4]].any() and right[rows[4:7]].all() and not held[rows[4:7]].any()
    assert held[rows[7]] and not right[rows[7]]
    types = np.array(bench["type"].to_pylist())
    # The first is the hardest of all that begin a type; the others take turns.
    assert sorted(types[rows[:4]]) == ["abs_dis"] * 2 + ["rel_dis"] * 2
    assert model[rows[0]] == model[~right].min()
    order = generator.permutation(48)
    again = choose_examples(bench.take(order), model[order], before[order], right[order], held[order], 12)
    assert [order[choice.row] for choice in again] == rows.tolist()


def test_where_nothing_is_wrong_the_sample_fills_the_page(bench):
    all_right = np.ones(48, bool)
    chosen = choose_examples(bench, np.ones(48), np.ones(48), all_right, all_right, 12)
    assert [choice.group for choice in chosen] == ["sample"] * 12
    assert len(choose_examples(bench, np.ones(48), np.ones(48), all_right, all_right, 100)) == 48
    assert choose_examples(bench, np.ones(48), np.ones(48), all_right, all_right, 0) == []


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

    # Where the distance becomes larger, the other thing's box is far away in the end.
    example = next(example for example in examples_of(world, 8, parameters) if example.options[0].true)
    data = base64.b64decode(example.pictures[-1].source.split(",")[1])
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert picture.shape == (210, 280, 3)
    assert example.targets[0][0] == "pillar"
    # The pillar's box, (28, 18)-(36, 30) of 64 x 48, is outlined in the first target colour, orange.
    scale = 280 / 64
    edge = picture[round(24 * scale), round(28 * scale) : round(28 * scale) + 2].mean(0)
    assert np.abs(edge - [230, 159, 0]).max() < 60


def others_of(evaluated, change=lambda right: ~right):
    """A baseline that is right where the model is not."""
    bench = evaluated.metrics["protocol"]["bench_sha256"]
    scores = read_scores(evaluated.out / "predictions.parquet", bench)
    return Baseline("the champion, version 3", replace(scores, right=change(scores.right)))


def test_a_finished_report_is_drawn_again_beside_a_champion(world, evaluated):
    paths = (evaluated.out, world / "splits", world / "videos", world / "geometry")
    page, summary = page_against(*paths, others_of(evaluated))
    gained = round(48 * evaluated.metrics["overall"]["accuracy"])
    assert f"{gained} questions gained, {48 - gained} lost" in page
    assert "against the champion, version 3 it is better: +" in page and "it is better" in summary
    assert "right here, wrong for the champion, version 3" in page
    assert page.count("the champion, version 3: wrong") > 0
    assert page_against(*paths, others_of(evaluated))[0] == page
    again, _ = page_against(*paths, others_of(evaluated, lambda right: right))
    assert "it is not distinguishable: +0.0 points" in again and "0 questions gained, 0 lost" in again


def test_a_champion_of_another_bench_is_not_compared(world, evaluated):
    paths = (evaluated.out, world / "splits", world / "videos", world / "geometry")
    other = others_of(evaluated)
    page, _ = page_against(*paths, replace(other, scores=replace(other.scores, bench="0" * 64)))
    assert "it cannot be compared with the champion, version 3" in page and "Not comparable: one was measured" in page
    assert 'class="key baseline"' not in page


def test_a_damaged_report_is_not_drawn_again(world, evaluated, tmp_path):
    paths = (world / "splits", world / "videos", world / "geometry")
    broken = tmp_path / "broken"
    shutil.copytree(evaluated.out, broken)
    (broken / "metrics.json").write_text("{}")
    with pytest.raises(ReportError, match="cannot be read \\(KeyError\\); make the benchmark again"):
        page_against(broken, *paths, others_of(evaluated))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not BROWSER:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize("width", [400, 1400])
def test_a_person_reads_the_page_on_a_phone_and_on_a_screen(browser, world, evaluated, tmp_path, width):
    page = tmp_path / "report.html"
    paths = (evaluated.out, world / "splits", world / "videos", world / "geometry")
    hostile = replace(others_of(evaluated), name="<script>document.title='pwned'</script>.mp4")
    page.write_text(page_against(*paths, hostile)[0], encoding="utf-8")
    browser.open(page, width, 900)
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelector('h1').getBoundingClientRect().bottom") < 450
    assert "<script>document.title='pwned'</script>.mp4" in browser.evaluate("document.body.innerText")
    assert HOSTILE in browser.evaluate("document.body.textContent")
    assert browser.evaluate("document.title") == f"Benchmark: {verdict(evaluated.metrics)[0]}"
    assert browser.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0 && one.alt)")
    # No text is drawn smaller than a person reads, and none runs out of the page.
    assert browser.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4,p,li,dd,b,small')].every(one => "
        "parseFloat(getComputedStyle(one).fontSize) >= 11 && (one.closest('.scroll') || "
        "one.getBoundingClientRect().right <= innerWidth + 1))"
    )
    assert browser.complaints == []
