"""What the answers to a published benchmark amount to: figures with intervals, and the same to be read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.statistics import ClipBootstrap, Estimate, PositionBias, position_bias
from assets.benchmark.statistics import rotations as compare_rotations
from assets.benchmark.suite import Unusable
from assets.checkpoints.card import escape_markdown
from assets.geometry.scene_page import plain

ASKED = "asked"
CONFIDENCE = 0.95
DECIMALS = 6
NUMBERS = "number"

Row = Mapping[str, Any]


def figures(
    rows: Sequence[Row], unusable: Sequence[Unusable], parameters: BenchmarkParameters, rotations: bool
) -> dict[str, Any]:
    """The figures of an evaluation; intervals respect that the questions of a clip are not independent.

    Args:
        rows: of predictions.parquet.
        unusable: rows of the published file that are no questions.
        parameters: of the intervals.
        rotations: whether all rotations of the options were asked.

    Returns:
        `overall` (micro), `macro` (mean over types), `by_type` and `by_options` (with their chance level), all of the
        questions asked with their options as published; `counts` and `not_asked`; `positions` by number of options, of
        the replies that name one; `rotations` likewise, None where they were not asked. None stands for no question.
    """
    first = [row for row in rows if row["rotation"] == 0]
    asked = [row for row in first if row["status"] == ASKED]
    reasons = Counter((row["status"], row["reason"]) for row in first if row["status"] != ASKED)
    reasons += Counter(("unusable", one.reason) for one in unusable)
    counts = Counter({ASKED: len(asked)})
    for (status, _), count in reasons.items():
        counts[status] += count
    return {
        **_shares(asked, parameters),
        "counts": dict(sorted(counts.items())),
        "not_asked": [
            {"status": status, "reason": reason, "n": count} for (status, reason), count in sorted(reasons.items())
        ],
        "positions": {
            str(count): _positions(_bias(some, count, parameters))
            for count, some in _by_options(row for row in asked if row["predicted"] is not None)
            if count
        },
        "rotations": _rotations(rows, parameters) if rotations else None,
    }


def _shares(asked: Sequence[Row], parameters: BenchmarkParameters) -> dict[str, Any]:
    if not asked:
        return {"overall": None, "macro": None, "by_type": {}, "by_options": {}}
    bootstrap, scores = _bootstrap(asked, parameters), np.array([row["score"] for row in asked])
    types = np.array([row["type"] for row in asked])
    options = np.array([len(row["options"]) for row in asked])

    def figure(among: np.ndarray) -> dict[str, Any]:
        some = [row for row, chosen in zip(asked, among, strict=True) if chosen]
        return {**_figure(bootstrap.share(scores, among)), **_beside(some)}

    return {
        "overall": figure(np.ones(len(asked), bool)),
        "macro": {**_figure(bootstrap.macro(scores, types)), "types": len(set(types.tolist()))},
        "by_type": {name: figure(types == name) for name in sorted(set(types.tolist()))},
        "by_options": {_options_word(count): figure(options == count) for count in sorted(set(options.tolist()))},
    }


def _bootstrap(rows: Sequence[Row], parameters: BenchmarkParameters) -> ClipBootstrap:
    return ClipBootstrap(np.array([row["clip"] for row in rows]), parameters.resamples, CONFIDENCE, parameters.seed)


def _figure(estimate: Estimate) -> dict[str, Any]:
    return {
        "accuracy": estimate.value,
        "ci95": [estimate.low, estimate.high],
        "n": estimate.n,
        "clips": estimate.clips,
        "interval": estimate.method,
    }


def _beside(rows: Sequence[Row]) -> dict[str, Any]:
    """What belongs to an accuracy: chance over the questions with options, numbers, replies without an answer."""
    chances = [1 / len(row["options"]) for row in rows if row["options"]]
    return {
        "chance": round(math.fsum(chances) / len(chances), DECIMALS) if chances else None,
        "numeric": len(rows) - len(chances),
        "without_answer": sum(row["predicted"] is None for row in rows),
    }


def _options_word(count: int) -> str:
    return str(count) if count else NUMBERS


def _by_options(rows: Iterable[Row]) -> list[tuple[int, list[Row]]]:
    """Rows by their number of options; 0 for numbers."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(len(row["options"]), []).append(row)
    return sorted(groups.items())


def _place(letter: str | None) -> int:
    """Position of a letter; -1 of none."""
    return -1 if letter is None else ord(letter) - ord("A")


def _bias(rows: Sequence[Row], count: int, parameters: BenchmarkParameters) -> PositionBias:
    chosen, truth = (np.array([_place(row[name]) for row in rows]) for name in ("predicted", "answer"))
    return position_bias(_bootstrap(rows, parameters), chosen, truth, count)


def _positions(bias: PositionBias) -> dict[str, Any]:
    """Accuracy where the right option stands at a letter, how often it is named, and by how much too often."""
    parts = zip(bias.accuracy, bias.chosen, bias.excess, strict=True)
    by_letter = {
        chr(ord("A") + place): {
            "accuracy": accuracy.value if accuracy.n else None,
            "right_there": accuracy.n,
            "chosen": chosen.value,
            "excess": excess.value,
            "excess_ci95": [excess.low, excess.high],
        }
        for place, (accuracy, chosen, excess) in enumerate(parts)
    }
    return {"n": bias.chosen[0].n, "by_letter": by_letter, "bias": bias.total}


def _rotations(rows: Sequence[Row], parameters: BenchmarkParameters) -> dict[str, Any]:
    """By number of options: what a model makes of the same questions with their options moved round."""
    found = {}
    for count, some in _by_options(row for row in rows if row["status"] == ASKED and row["options"]):
        items: dict[str, dict[int, Row]] = {}
        for row in some:
            items.setdefault(row["item_id"], {})[row["rotation"]] = row
        whole = [turns for turns in items.values() if len(turns) == count]
        if whole:
            found[str(count)] = _rotation_figures(whole, count, parameters) | {"left_out": len(items) - len(whole)}
    return found


def _rotation_figures(
    items: Sequence[Mapping[int, Row]], count: int, parameters: BenchmarkParameters
) -> dict[str, Any]:
    result = compare_rotations(
        np.array([[_place(turns[turn]["predicted"]) for turn in range(count)] for turns in items]),
        np.array([_place(turns[0]["answer"]) for turns in items]),
        [turns[0]["clip"] for turns in items],
        parameters.resamples,
        CONFIDENCE,
        parameters.seed,
    )
    return {
        "questions": len(items),
        "accuracy": _figure(result.accuracy),
        "always_right": _figure(result.always_right),
        "consistent": _figure(result.consistent),
        "positions": _positions(result.bias),
    }


# To be read --------------------------------------------------------------------------------------------------------


def table_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The figures for a terminal; types and reasons come from outside."""
    overall = metrics["overall"]
    lines = [f"{'type':28} {'questions':>9} {'clips':>6} {'accuracy':>9} {'95 % interval':>17} {'chance':>7}"]
    parts = [(plain(name, 28), part) for name, part in metrics["by_type"].items()]
    if overall:
        parts += [("all (micro)", overall), ("mean of types (macro)", {**metrics["macro"], "chance": None})]
    for name, part in parts:
        low, high = part["ci95"]
        chance = "-" if part["chance"] is None else f"{part['chance']:.1%}"
        span = f"{low:.1%} to {high:.1%}"
        lines.append(f"{name:28} {part['n']:9} {part['clips']:6} {part['accuracy']:9.1%} {span:>17} {chance:>7}")
    if not overall:
        lines = ["no question could be asked"]
    elif overall["without_answer"]:
        lines.append(f"{overall['without_answer']} replies held no answer and count as wrong")
    lines += [f"{one['n']} not asked, {one['status']}: {plain(one['reason'])}" for one in metrics["not_asked"]]
    return lines + _place_lines(metrics)


def _place_lines(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for count, part in metrics["positions"].items():
        chosen = ", ".join(f"{letter} {one['chosen']:.1%}" for letter, one in part["by_letter"].items())
        lines.append(f"of {count} options {part['n']} replies name {chosen}; position bias {part['bias']:.1%}")
    for count, part in (metrics["rotations"] or {}).items():
        lines.append(
            f"over all {count} rotations {part['accuracy']['accuracy']:.1%} right; of {part['questions']} questions "
            f"{part['always_right']['accuracy']:.1%} right in every one, {part['consistent']['accuracy']:.1%} answered "
            f"with the same option in every one, position bias {part['positions']['bias']:.1%}"
        )
    return lines


def markdown(metrics: Mapping[str, Any]) -> str:
    """A short page: whom, what, how, and the figures."""
    suite, protocol, overall = metrics["suite"], metrics["protocol"], metrics["overall"]
    seen = "without the videos" if protocol["blind"] else "with the videos"
    lines = [
        f"# {escape_markdown(suite['name'])}: {escape_markdown(plain(metrics['reader']['name']))}",
        "",
        f"Asked {metrics['counts'][ASKED]} of {suite['questions']} questions {seen}, by {protocol['name']}"
        f"{', every rotation of the options' if protocol['rotations'] else ''}.",
        "",
    ]
    if overall:
        lines += ["| type | questions | clips | accuracy | 95 % interval | chance |", "|---|---|---|---|---|---|"]
        parts = [(escape_markdown(plain(name)), part) for name, part in metrics["by_type"].items()]
        parts += [("**all (micro)**", overall), ("**mean of types (macro)**", {**metrics["macro"], "chance": None})]
        for name, part in parts:
            low, high = part["ci95"]
            chance = "" if part["chance"] is None else f"{part['chance']:.1%}"
            share = f"{part['accuracy']:.1%} | {low:.1%} to {high:.1%} | {chance}"
            lines.append(f"| {name} | {part['n']} | {part['clips']} | {share} |")
        lines.append("")
    lines += [
        f"- {one['n']} not asked, {one['status']}: {escape_markdown(plain(one['reason']))}"
        for one in metrics["not_asked"]
    ]
    lines += [f"- {line}" for line in _place_lines(metrics)]
    named = {"questions": suite["sha256"], "reading": suite["version"], "reader": metrics["reader"]["identity"]}
    named |= {name: value for name, value in metrics["identity"].items() if value}
    lines += ["", "| identity | |", "|---|---|"]
    lines += [f"| {escape_markdown(name)} | `{escape_markdown(value)}` |" for name, value in named.items()]
    return "\n".join(lines) + "\n"
