"""The benchmark report for people: one page that needs nothing else, a short Markdown summary, five lines."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from assets.benchmark.above import SIDE
from assets.benchmark.confusion import OTHERS
from assets.benchmark.published import CAVEATS
from assets.checkpoints.card import escape_markdown, flatten

if TYPE_CHECKING:
    from assets.benchmark.examples import Example

LARGEST_PAGE = 3_000_000

# Of the findings, the first so many bear on whether the figure may be believed.
CONTROLS = 4
WIDE_POINTS = 15

# Expected calibration errors of large language models on questions with options: about 0.03 to 0.15 before any tuning.
CALIBRATED, ROUGHLY_CALIBRATED = 0.05, 0.15

# Whom the model stands beside in charts and tables, and what they are called there.
READERS = {
    "blind": "blind",
    "shuffled": "another clip",
    "baseline": "baseline",
}

GROUPS = {
    "hardest": ("Hardest", "wrong, and the truth was given the least share of all"),
    "improved": ("Most improved", ""),
    "lost": ("Lost", ""),
    "sample": ("A sample", "drawn by a hash of the question, whatever the outcome"),
}

FAMILIES = {
    "dis": "distance",
    "dir": "direction",
    "ori": "orientation",
    "spd": "speed",
    "spd_comp": "speed comparison",
    "dir_pred": "direction prediction",
}


@dataclass(frozen=True)
class Finding:
    """One question a reader has about the result.

    Attributes:
        question: in words.
        answer: "yes", "no", "unclear", or "not measured".
        good: whether the answer speaks for the result; None where it says nothing either way.
        reason: with its numbers.
    """

    question: str
    answer: str
    good: bool | None
    reason: str


def verdict(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """What the figures allow to say, and no more.

    Args:
        metrics: contents of `metrics.json`.

    Returns:
        (headline, one sentence: how good, beside what, whether it can be trusted, and how the baseline compares).
    """
    overall, blind, chance = metrics["overall"], metrics["blind"], metrics["chance"]
    asked = f"{overall['n']:,} questions about {_count(overall['clips'], 'clip')}"
    sentence = (
        f"The model answers {percent(overall['accuracy'])} of {asked} right, where a guess is right "
        f"{percent(chance)} of the time and the same model without the video {percent(blind['accuracy'])}; "
        f"{_trust(metrics)}{_against(metrics['baseline'])}."
    )
    return _headline(overall["ci95"], metrics["difference"]["ci95"], chance), sentence


def _headline(interval: list[float], gain: list[float], chance: float) -> str:
    low, high = interval
    if low <= chance <= high:
        return "Not distinguishable from chance."
    if high < chance:
        return "Worse than chance."
    if gain[0] > 0:
        return "Better than chance, and because of the video."
    if gain[1] < 0:
        return "Better than chance, but worse with the video than without."
    return "Better than chance, but not demonstrably because of the video."


def _trust(metrics: Mapping[str, Any]) -> str:
    """Whether the controls agree that the figure says what it seems to say."""
    low, high = metrics["overall"]["ci95"]
    if low <= metrics["chance"] <= high:
        width = 100 * (high - low)
        if width > WIDE_POINTS:
            return f"with an interval {width:.0f} points wide, a larger bench could tell more"
        return f"with an interval only {width:.0f} points wide, had it learnt much, this would show"
    asked = [finding for finding in findings(metrics)[1:CONTROLS] if finding.answer != "not measured"]
    doubts = [finding for finding in asked if not finding.good]
    if not doubts:
        measured = "every control agrees" if metrics["shuffled"] else "the blind control agrees"
        return f"{measured} that this can be trusted"
    return f"do not build on it yet: {_lower(doubts[0].reason)}"


def _against(baseline: Mapping[str, Any] | None) -> str:
    if baseline is None:
        return ""
    if "not_comparable" in baseline:
        return f"; it cannot be compared with {baseline['name']}"
    low, high = (gain := baseline["difference"])["ci95"]
    how = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
    return f"; against {baseline['name']} it is {how}: {points(gain['value'])} ({points_span(gain['ci95'])})"


def findings(metrics: Mapping[str, Any]) -> list[Finding]:
    """What a reader wants to know before believing the figure, the controls first.

    Args:
        metrics: contents of `metrics.json`.
    """
    return [
        _above_chance(metrics),
        _from_video(metrics["difference"], metrics["blind"]),
        _from_this_video(metrics["shuffled"]),
        _blind_at_chance(metrics["blind"], metrics["chance"]),
        _better(metrics["baseline"]),
        _calibrated(metrics["calibration"]),
        _even_handed(metrics["positions"]),
        _complete(metrics["missing"]["n"], metrics["overall"]["n"]),
    ]


def _above_chance(metrics: Mapping[str, Any]) -> Finding:
    overall, chance = metrics["overall"], metrics["chance"]
    reason = f"{percent(overall['accuracy'])} right ({span(overall['ci95'])}), a guess {percent(chance)}"
    return Finding("Better than guessing?", *_sign([end - chance for end in overall["ci95"]]), reason)


def _from_video(gain: Mapping[str, Any], blind: Mapping[str, Any]) -> Finding:
    reason = f"The video is worth {points(gain['value'])} ({points_span(gain['ci95'])}); "
    reason += f"without it {percent(blind['accuracy'])} are right"
    return Finding("Does it use the video?", *_sign(gain["ci95"]), reason)


def _from_this_video(shuffled: Mapping[str, Any] | None) -> Finding:
    question = "Does it have to be the right video?"
    if shuffled is None:
        return Finding(question, "not measured", None, "Questions were not asked about another clip's video")
    gain = shuffled["difference"]
    reason = f"With another clip's video and geometry {percent(shuffled['accuracy'])} are right: the right one is "
    reason += f"worth {points(gain['value'])} ({points_span(gain['ci95'])})"
    return Finding(question, *_sign(gain["ci95"]), reason)


def _blind_at_chance(blind: Mapping[str, Any], chance: float) -> Finding:
    fair = blind["ci95"][0] <= chance
    reason = f"Without the video {percent(blind['accuracy'])} are right ({span(blind['ci95'])}), "
    reason += "which is no more than guessing" if fair else "so the questions' text gives answers away"
    return Finding("Do the questions keep their answers to themselves?", "yes" if fair else "no", fair, reason)


def _better(baseline: Mapping[str, Any] | None) -> Finding:
    if baseline is None:
        reason = "This page rests on this checkpoint alone; no other was given"
        return Finding("Better than the one before?", "not measured", None, reason)
    question = f"Better than {baseline['name']}?"
    if "not_comparable" in baseline:
        return Finding(question, "not measured", None, f"Not comparable: {baseline['not_comparable']}")
    gain = baseline["difference"]
    reason = f"{points(gain['value'])} ({points_span(gain['ci95'])}): {baseline['gained']} questions gained, "
    reason += f"{baseline['lost']} lost, two-sided p = {baseline['p_value']:.2g}, Cohen's g {baseline['cohens_g']:+.2f}"
    return Finding(question, *_sign(gain["ci95"]), reason)


def _calibrated(calibration: Mapping[str, Any]) -> Finding:
    error = calibration["ece"]
    answer = "yes" if error <= CALIBRATED else "roughly" if error <= ROUGHLY_CALIBRATED else "no"
    good = {"yes": True, "roughly": None, "no": False}[answer]
    reason = f"Its confidence is off by {100 * error:.1f} points on average (expected calibration error)"
    return Finding("Is it as sure as it should be?", answer, good, reason)


def _even_handed(positions: Mapping[str, Any]) -> Finding:
    leaning = {
        letter: part["excess"]["value"]
        for letter, part in positions["by_letter"].items()
        if part["excess"]["ci95"][0] > 0 or part["excess"]["ci95"][1] < 0
    }
    reason = f"{percent(positions['bias'])} of its answers would have to move to another letter"
    if leaning:
        most = max(leaning, key=lambda letter: (abs(leaning[letter]), letter))
        often = "more" if leaning[most] > 0 else "less"
        reason += f"; {most} is said {100 * abs(leaning[most]):.1f} points {often} often than it is true"
    return Finding("Are all letters alike to it?", "no" if leaning else "yes", not leaning, reason)


def _complete(missing: int, asked: int) -> Finding:
    if not missing:
        return Finding("Was everything asked?", "yes", True, f"All {asked:,} questions of the bench were scored")
    reason = f"{missing:,} of {missing + asked:,} questions could not be asked and are not scored"
    return Finding("Was everything asked?", "no", False, reason)


def _sign(interval: list[float]) -> tuple[str, bool | None]:
    """What an interval of a gain answers to "is there one?"."""
    if interval[0] > 0:
        return "yes", True
    return ("no", False) if interval[1] < 0 else ("unclear", None)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def five_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The report in five lines for a terminal."""
    overall, blind, gain, macro = (metrics[name] for name in ("overall", "blind", "difference", "macro"))
    ranked = sorted(metrics["by_type"].items(), key=lambda item: (-item[1]["accuracy"], item[0]))
    best, worst = ranked[0], ranked[-1]
    return [
        verdict(metrics)[0],
        f"accuracy   {percent(overall['accuracy'])} ({span(overall['ci95'])}) over {overall['n']:,} questions, "
        f"{_count(overall['clips'], 'clip')}; mean of types {percent(macro['accuracy'])}",
        f"blind      {percent(blind['accuracy'])} ({span(blind['ci95'])}) without the video; chance "
        f"{percent(metrics['chance'])}",
        f"video adds {points(gain['value'])} ({points_span(gain['ci95'])}); McNemar p = {gain['mcnemar_p']:.2g}",
        f"best type  {best[0]} {percent(best[1]['accuracy'])} (n={best[1]['n']}), worst {worst[0]} "
        f"{percent(worst[1]['accuracy'])} (n={worst[1]['n']})",
    ]


def render_markdown(metrics: Mapping[str, Any]) -> str:
    """The summary that code hosts and Dagster show: verdict, what speaks for it, table by type, identity."""
    headline, sentence = verdict(metrics)
    lines = [f"# {headline}", "", escape_markdown(sentence), ""]
    lines += ["| question | answer | why |", "|---|---|---|"]
    lines += [f"| {' | '.join(map(escape_markdown, (f.question, f.answer, f.reason)))} |" for f in findings(metrics)]
    readers = [who for who in READERS if who in metrics["by_type"][min(metrics["by_type"])]]
    lines += ["", f"| type | accuracy | 95 % interval | {' | '.join(readers)} | questions | clips |"]
    lines += ["|---|---:|---:|" + "---:|" * (len(readers) + 2)]
    whole = {who: metrics[who]["accuracy"] for who in readers}
    rows = {**metrics["by_type"], "all questions": {**metrics["overall"], **whole}}
    lines += [
        f"| {escape_markdown(name)} | {percent(part['accuracy'])} | {span(part['ci95'])} "
        f"| {' | '.join(percent(part[who]) for who in readers)} | {part['n']} | {part['clips']} |"
        for name, part in rows.items()
    ]
    lines += ["", f"All questions alike (micro): {percent(metrics['overall']['accuracy'])}; "]
    lines[-1] += f"mean of types (macro): {percent(metrics['macro']['accuracy'])} ({span(metrics['macro']['ci95'])}). "
    lines[-1] += f"Expected calibration error: {metrics['calibration']['ece']:.3f}. "
    lines[-1] += f"Not scored: {metrics['missing']['n']}."
    lines += ["", "| identity | value |", "|---|---|"]
    told = {"bench": metrics["protocol"]["bench_sha256"], "seed": metrics["protocol"]["parameters"]["seed"]}
    identity = flatten({**metrics["identity"], **told})
    lines += [f"| {escape_markdown(name)} | {escape_markdown(value)} |" for name, value in identity.items()]
    return "\n".join(lines) + "\n"


def render_html(metrics: Mapping[str, Any], examples: "list[Example]") -> str:
    """One self-contained page: no script, no request, light and dark, everything from outside escaped.

    Args:
        metrics: contents of `metrics.json`.
        examples: worked examples; where the page would exceed `LARGEST_PAGE` bytes, the last ones lose their
            pictures.
    """
    from dataclasses import replace

    page = _render(metrics, examples)
    bare = len(examples)
    while len(page.encode("utf-8")) > LARGEST_PAGE and bare:
        bare -= 1
        examples = [*examples[:bare], *(replace(e, pictures=[]) for e in examples[bare:])]
        page = _render(metrics, examples)
    return page


def percent(share: float) -> str:
    """0.589 as "58.9 %"."""
    return f"{100 * share:.1f} %"


def span(interval: list[float]) -> str:
    """[0.551, 0.624] as "55.1–62.4 %"."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f} %"


def points(difference: float) -> str:
    """0.288 as "+28.8 points"."""
    return f"{100 * difference:+.1f} points".replace("-", "−")


def points_span(interval: list[float]) -> str:
    """[-0.01, 0.2] as "−1.0 to +20.0"."""
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}".replace("-", "−")


def type_name(name: str) -> str:
    """A question type in words: "abs_dir_pred" as "direction prediction, frozen viewpoint"."""
    kind, _, family = name.partition("_")
    if kind in ("abs", "rel") and family in FAMILIES:
        return f"{FAMILIES[family]}, {'frozen' if kind == 'abs' else 'moving'} viewpoint"
    return "free questions" if name == "non_temp" else name


def _render(metrics: Mapping[str, Any], examples: "list[Example]") -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "span": span,
        "points": points,
        "points_span": points_span,
        "type_name": type_name,
        "at": lambda share: f"{100 * share:.2f}%",
    }
    room = files("assets.benchmark")
    headline, sentence = verdict(metrics)
    ordered = sorted(metrics["by_type"].items(), key=lambda item: _reading_order(item[0]))
    return environment.from_string(room.joinpath("report.html").read_text(encoding="utf-8")).render(
        metrics=metrics,
        groups=_grouped(examples, metrics["baseline"]),
        headline=headline,
        sentence=sentence.replace(" %", "\N{NO-BREAK SPACE}%"),
        findings=findings(metrics),
        readers=_beside(metrics),
        by_type=dict(ordered),
        charted=[row for row in metrics["published"] if row["charted"]],
        caveats=CAVEATS,
        confusions=_confusions(metrics["confusion"]),
        others=OTHERS,
        side=SIDE,
        style=room.joinpath("report.css").read_text(encoding="utf-8"),
        identity=flatten(metrics["identity"]),
        protocol=flatten(metrics["protocol"]),
        missing=_missing_reasons(metrics["missing"]["questions"]),
    )


def _beside(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The other readers in the charts: their names there by their names in the figures."""
    names = {who: name for who, name in READERS.items() if metrics[who] and "accuracy" in metrics[who]}
    return names | ({"baseline": metrics["baseline"]["name"]} if "baseline" in names else {})


def _grouped(examples: "list[Example]", baseline: Mapping[str, Any] | None) -> "list[tuple[str, str, list[Example]]]":
    """(title, what is in it, examples) of each group that has any."""
    other = baseline["name"] if baseline and "accuracy" in baseline else "the same model without the video"
    explained = {
        "improved": f"right here, wrong for {other}",
        "lost": f"wrong here, right for {other}",
    }
    found = []
    for group, (title, what) in GROUPS.items():
        members = [example for example in examples if example.group == group]
        if members:
            found.append((title, what or explained[group], members))
    return found


@dataclass(frozen=True)
class _Grid:
    """A table of counts to be drawn: names, and per row (share of the row, count) of each column."""

    title: str
    names: list[str]
    rows: list[list[tuple[float, int]]]
    questions: int


def _confusions(confusion: Mapping[str, Any]) -> list[_Grid]:
    tables = {"letters": confusion["letters"], **confusion["states"]}
    return [
        _Grid(
            title,
            table["names"],
            [[(count / max(sum(row), 1), count) for count in row] for row in table["counts"]],
            table["questions"],
        )
        for title, table in tables.items()
    ]


def _reading_order(name: str) -> tuple[int, str]:
    """Frozen and moving viewpoint of one family side by side, families as in the paper, others last."""
    family = name.partition("_")[2]
    return (list(FAMILIES).index(family) if family in FAMILIES else len(FAMILIES), name)


def _missing_reasons(missing: list[Mapping[str, str]]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for row in missing:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    return dict(sorted(reasons.items()))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
