"""The benchmark report for people: one page that needs nothing else, a short Markdown summary, five lines."""

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from assets.checkpoints.card import escape_markdown, flatten

if TYPE_CHECKING:
    from assets.benchmark.examples import Example

LARGEST_PAGE = 3_000_000

FAMILIES = {
    "dis": "distance",
    "dir": "direction",
    "ori": "orientation",
    "spd": "speed",
    "spd_comp": "speed comparison",
    "dir_pred": "direction prediction",
}


def verdict(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """What the figures allow to say, and no more.

    Args:
        metrics: contents of `metrics.json`.

    Returns:
        (headline, sentence with the numbers).
    """
    overall, blind, gain, chance = (metrics[name] for name in ("overall", "blind", "difference", "chance"))
    low, high = overall["ci95"]
    asked = f"{overall['n']:,} questions about {_count(overall['clips'], 'clip')}"
    sentence = (
        f"The model answers {percent(overall['accuracy'])} of {asked} (95 % interval {span(overall['ci95'])}). "
        f"Without the video, the same model answers {percent(blind['accuracy'])}; "
        f"a guess is right {percent(chance)} of the time. "
    )
    seeing = f"The video is worth {points(gain['value'])} ({points_span(gain['ci95'])})"
    if low <= chance <= high:
        return "Not distinguishable from chance.", f"{sentence}{seeing}. {_scarcity(overall)}"
    if high < chance:
        return "Worse than chance.", f"{sentence}{seeing}."
    if gain["ci95"][0] > 0:
        return "Better than chance, and because of the video.", f"{sentence}{seeing}."
    if gain["ci95"][1] < 0:
        return "Better than chance, but worse with the video than without.", f"{sentence}{seeing}."
    reads = "so that what it knows may come from the text of the questions alone"
    return "Better than chance, but not demonstrably because of the video.", f"{sentence}{seeing}, {reads}."


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
    """The summary that code hosts and Dagster show: verdict, table by type, identity."""
    headline, sentence = verdict(metrics)
    lines = [f"# {headline}", "", sentence, ""]
    lines += ["| type | accuracy | 95 % interval | blind | questions | clips |", "|---|---:|---:|---:|---:|---:|"]
    rows = {**metrics["by_type"], "all questions": {**metrics["overall"], "blind": metrics["blind"]["accuracy"]}}
    lines += [
        f"| {escape_markdown(name)} | {percent(part['accuracy'])} | {span(part['ci95'])} | {percent(part['blind'])} "
        f"| {part['n']} | {part['clips']} |"
        for name, part in rows.items()
    ]
    lines += ["", f"Mean of types: {percent(metrics['macro']['accuracy'])} ({span(metrics['macro']['ci95'])}). "]
    lines[-1] += f"Expected calibration error: {metrics['calibration']['ece']:.3f}. "
    lines[-1] += f"Not scored: {metrics['missing']['n']}."
    lines += ["", "| identity | value |", "|---|---|"]
    identity = flatten({**metrics["identity"], "bench": metrics["protocol"]["bench_sha256"]})
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
        examples = [*examples[:bare], *(replace(e, pictures=[], view=None) for e in examples[bare:])]
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
        examples=examples,
        headline=headline,
        sentence=sentence.replace(" %", "\N{NO-BREAK SPACE}%"),
        by_type=dict(ordered),
        style=room.joinpath("report.css").read_text(encoding="utf-8"),
        identity=flatten(metrics["identity"]),
        protocol=flatten(metrics["protocol"]),
        missing=_missing_reasons(metrics["missing"]["questions"]),
    )


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


def _scarcity(overall: Mapping[str, Any]) -> str:
    """How wide the interval is: whether the bench is too small to tell, or large enough to show."""
    width = overall["ci95"][1] - overall["ci95"][0]
    if width > 0.15:
        return f"The interval is {100 * width:.0f} points wide: a larger bench could tell more."
    return f"The interval is only {100 * width:.0f} points wide: had it learnt much, this would show."
