"""One evaluation of a published benchmark: its questions, the clips that are at hand, one reader.

predictions.parquet   a row for each question, and for each rotation of its options (PREDICTIONS)
metrics.json          plain counts: overall, by type, what was not asked and why, what rotating the options changes
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.benchmark.clips import SHARD, ClipFolder, Ready, Wanted, wrong_channels
from assets.benchmark.predictions import PredictionCache, Progress, Reply, ask_all
from assets.benchmark.readers import GENERATION, Manner, Places, Reader
from assets.geometry.scene_page import plain

if TYPE_CHECKING:
    from models.data import Question

LETTERS = tuple("ABCDEFGHIJ")
DECIMALS = 6
ASKED, UNUSABLE, MISSING, UNREADABLE, REFUSED = "asked", "unusable", "missing", "unreadable", "refused"
# Shares of the truth within which an estimate has to lie, from half of it to a twentieth (J. Yang et al., "Thinking in
# Space", CVPR 2025, section 3: mean relative accuracy over confidences 0.5, 0.55 … 0.95).
CONFIDENCES = np.arange(50, 100, 5) / 100
PREDICTIONS = pa.schema(
    [
        ("item_id", pa.string()),
        ("video", pa.string()),
        ("clip", pa.string()),  # identity of the prepared clip, null where there is none
        ("type", pa.string()),
        ("rotation", pa.int32()),  # places by which the options were moved on
        ("question", pa.string()),  # as asked, like all that follows
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("status", pa.string()),  # asked, or why not: unusable, missing, unreadable, refused
        ("reason", pa.string()),
        ("predicted", pa.string()),  # letter or number, null where the reply comes to none
        ("choice", pa.int32()),  # the option that means, counted in the published order
        ("score", pa.float64()),  # 1 or 0; of a number its mean relative accuracy; null where it was not asked
        ("shares", pa.list_(pa.float64())),
        ("text", pa.string()),
    ]
)

Extract = Callable[[str, Sequence[str]], str | None]
Fit = Callable[[Any, tuple[int, int]], Any]
Say = Callable[[str], None]


class EvaluationError(ValueError):
    """Nothing of a benchmark can be asked, or its report cannot be written."""


@dataclass(frozen=True)
class _Case:
    """One question as it is put, or the reason why it is not.

    Attributes:
        item: of the suite, as the clip needs it.
        rotation: places by which the options are moved on.
        ready: its clip; None where none is shown.
        status, reason: as in PREDICTIONS.
    """

    item: Any
    rotation: int = 0
    ready: Ready | None = None
    status: str = ASKED
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.item.item_id}/{self.rotation}"

    @property
    def options(self) -> tuple[str, ...]:
        given = tuple(self.item.options)
        return given[self.rotation :] + given[: self.rotation]

    @property
    def answer(self) -> str:
        """The right letter as asked, or the number."""
        if not self.item.options or self.status == UNUSABLE:
            return self.item.answer
        return LETTERS[(LETTERS.index(self.item.answer) - self.rotation) % len(self.item.options)]

    def question(self) -> Question:
        from models.data import Question

        clip = self.ready.clip if self.ready else ""
        asked = (self.item.type, self.item.question, self.options, self.item.visible_until)
        return Question(self.name, clip, SHARD, *asked)


def evaluate_suite(
    suite: Any,
    found: Mapping[str, Path],
    lacking: Mapping[str, str],
    reader: Reader,
    clips: ClipFolder | None,
    manner: Manner,
    cache: PredictionCache,
    out: Path,
    *,
    extract: Extract,
    rotations: bool = False,
    fit: Fit = lambda item, size: item,
    say: Say = lambda step: None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Ask a reader all questions of a benchmark that can be asked, and write what came of it.

    Args:
        suite: with `name`, `version`, `digest`, `items` and `unusable`, as `assets.benchmark.suite` has it.
        found: file of each video that is at hand, by the publisher's name.
        lacking: why the others are not.
        reader: what is asked.
        clips: makes clips ready; None where the manner is blind.
        manner: of asking. Numbers are generated in either protocol.
        cache: of answers.
        out: folder of predictions.parquet and metrics.json.
        extract: from a text and the options as asked to a letter, or to a number where there are no options.
        rotations: ask each question once for every rotation of its options.
        fit: an item for a clip of so many pixels (width, height), such as with its boxes in these.
        say: told of each step before it begins.
        progress: called with questions done, questions in all and a word.

    Returns:
        The contents of metrics.json.

    Raises:
        EvaluationError: no question can be asked at all.
        PredictionCacheError: the kept answers cannot be used.
    """
    cases = [_usable(item) for item in suite.items]
    if not manner.blind:
        cases = [_at_hand(case, found, lacking) for case in cases]
        _refuse_nothing(cases, suite)
        cases = _prepared(cases, found, reader, clips, fit, say)
    _refuse_nothing(cases, suite)
    if rotations:
        cases = [turned for case in cases for turned in _rotated(case)]
    say(f"asking {sum(case.status == ASKED for case in cases)} questions")
    places = clips.places if clips else Places(out, out)
    cases, replies = _asked(cases, reader, places, manner, cache, progress)
    rows = [_row(case, replies.get(case.name), extract) for case in cases]
    metrics = measure(suite, rows, reader, manner, rotations)
    _write(out, rows, metrics)
    return metrics


def _usable(item: Any) -> _Case:
    """Whether a question can be put at all."""
    count = len(item.options)
    if count == 1 or count > len(LETTERS):
        return _Case(item, status=UNUSABLE, reason=f"{count} options, expected none or 2 to {len(LETTERS)}")
    if count and item.answer not in LETTERS[:count]:
        return _Case(item, status=UNUSABLE, reason=f"answer {plain(item.answer)!r} is none of {count} letters")
    if not count and _number(item.answer) is None:
        return _Case(item, status=UNUSABLE, reason=f"answer {plain(item.answer)!r} is no number")
    return _Case(item)


def _at_hand(case: _Case, found: Mapping[str, Path], lacking: Mapping[str, str]) -> _Case:
    if case.status != ASKED or case.item.video in found:
        return case
    return replace(case, status=MISSING, reason=lacking.get(case.item.video, "no such file among the clips"))


def _refuse_nothing(cases: Sequence[_Case], suite: Any) -> None:
    if not any(case.status == ASKED for case in cases):
        first = next((f"{case.status}: {case.reason}" for case in cases), "it holds none that can be read")
        raise EvaluationError(f"{suite.name}: no question can be asked, {first}; name the folder that holds its videos")


def _prepared(
    cases: Sequence[_Case],
    found: Mapping[str, Path],
    reader: Reader,
    clips: ClipFolder,
    fit: Fit,
    say: Say,
) -> list[_Case]:
    """The cases with their clips ready; a clip that cannot be is a reason, and the rest goes on."""
    wanted = {Wanted(found[case.item.video], case.item.segment): None for case in cases if case.status == ASKED}
    ready, reasons = clips.prepare(list(wanted), say)
    known = {one: (made, why) for one, made, why in zip(wanted, ready, reasons, strict=True)}
    done = []
    for case in cases:
        if case.status != ASKED:
            done.append(case)
            continue
        made, why = known[Wanted(found[case.item.video], case.item.segment)]
        why = why or wrong_channels(made, reader.channels)
        if why:
            done.append(replace(case, status=UNREADABLE, reason=why))
        else:
            done.append(replace(case, item=fit(case.item, made.size), ready=made))
    return done


def _rotated(case: _Case) -> list[_Case]:
    """The case with its options in every rotation; only as published where it is not asked or has none."""
    turns = len(case.item.options) if case.status == ASKED else 1
    return [replace(case, rotation=turn) for turn in range(max(turns, 1))]


def _asked(
    cases: Sequence[_Case],
    reader: Reader,
    places: Places,
    manner: Manner,
    cache: PredictionCache,
    progress: Progress,
) -> tuple[list[_Case], dict[str, Reply]]:
    """Replies by the cases' names, and the cases with those refused that the reader could not be asked."""
    open_cases = [case for case in cases if case.status == ASKED]
    seen = {case.ready.clip: case.ready.digest for case in open_cases if case.ready}
    refused: dict[str, str] = {}
    replies: dict[str, Reply] = {}
    ways = ((True, manner), (False, replace(manner, protocol=GENERATION)))
    for lettered, way in ways:
        some = [case.question() for case in open_cases if bool(case.options) == lettered]
        if some:
            how = {"batch_clips": reader.clips_at_once, "progress": progress, "refuse": refused.__setitem__}
            answers = ask_all(reader, some, seen, places, way, cache, **how)
            replies |= {one.item_id: one for one in answers if one is not None}
    done = [
        replace(case, status=REFUSED, reason=refused[case.name]) if case.name in refused else case for case in cases
    ]
    return done, replies


def _row(case: _Case, reply: Reply | None, extract: Extract) -> dict[str, Any]:
    """A row of predictions.parquet."""
    row = {
        "item_id": _storable(case.item.item_id),
        "video": _storable(case.item.video),
        "clip": case.ready.clip if case.ready else None,
        "type": _storable(case.item.type),
        "rotation": case.rotation,
        "question": _storable(case.item.question),
        "options": [_storable(option) for option in case.options],
        "answer": _storable(case.answer),
        "status": case.status,
        "reason": _storable(case.reason),
    }
    if case.status != ASKED or reply is None:
        return row
    predicted = _answer_of(reply, case.options, extract)
    choice = None
    if case.options and predicted is not None:
        choice = (LETTERS.index(predicted) + case.rotation) % len(case.options)
    score = float(predicted == case.answer) if case.options else relative_accuracy(predicted, case.answer)
    shares = None if reply.shares is None else [round(share, DECIMALS) for share in reply.shares]
    text = None if reply.text is None else _storable(reply.text)
    return {**row, "predicted": predicted, "choice": choice, "score": score, "shares": shares, "text": text}


def _storable(text: str) -> str:
    """The text without halves of characters, which JSON may hold and Parquet may not."""
    return text.encode("utf-8", "replace").decode()


def _answer_of(reply: Reply, options: Sequence[str], extract: Extract) -> str | None:
    """The letter or number that a reply comes to: of the likeliest letter, the first among equals."""
    if reply.shares is not None:
        return LETTERS[int(np.argmax(np.round(reply.shares, DECIMALS)))]
    answer = None if reply.text is None else extract(reply.text, options)
    if not options:
        return answer if answer is not None and _number(answer) is not None else None
    return answer if answer in LETTERS[: len(options)] else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def relative_accuracy(predicted: str | None, truth: str) -> float:
    """Mean relative accuracy of an estimate: the share of CONFIDENCES within which it lies (see there).

    Args:
        predicted: a number as text; None counts as wrong.
        truth: a number as text.
    """
    estimate, right = None if predicted is None else _number(predicted), _number(truth)
    if estimate is None or right is None:
        return 0.0
    error = abs(estimate - right) / abs(right) if right else float(estimate != right)
    return float(np.mean(error < 1 - CONFIDENCES))


def measure(
    suite: Any, rows: Sequence[Mapping[str, Any]], reader: Reader, manner: Manner, rotations: bool
) -> dict[str, Any]:
    """Plain counts of an evaluation; rates are over the questions that were asked, with the options as published."""
    first = [row for row in rows if row["rotation"] == 0]
    asked = [row for row in first if row["status"] == ASKED]
    types = sorted({row["type"] for row in asked})
    reasons = Counter((row["status"], row["reason"]) for row in first if row["status"] != ASKED)
    reasons += Counter((UNUSABLE, one.reason) for one in suite.unusable)
    return {
        "suite": {"name": suite.name, "version": suite.version, "sha256": suite.digest},
        "reader": {"name": reader.name, "identity": reader.identity},
        "protocol": {"name": manner.protocol, "blind": manner.blind, "max_tokens": manner.max_tokens},
        "overall": _figure(asked),
        "by_type": {name: _figure([row for row in asked if row["type"] == name]) for name in types},
        "not_asked": [
            {"status": status, "reason": reason, "n": count} for (status, reason), count in sorted(reasons.items())
        ],
        "rotations": _rotation_figures(rows) if rotations else None,
    }


def _figure(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of some questions; a number counts by its mean relative accuracy."""
    chances = [1 / len(row["options"]) for row in rows if row["options"]]
    right = math.fsum(row["score"] for row in rows)
    return {
        "n": len(rows),
        "right": round(right, DECIMALS),
        "accuracy": round(right / len(rows), DECIMALS) if rows else None,
        "without_answer": sum(row["predicted"] is None for row in rows),
        "numeric": sum(not row["options"] for row in rows),
        "chance": round(math.fsum(chances) / len(chances), DECIMALS) if chances else None,
    }


def _rotation_figures(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the place of an option does to its being chosen, over the questions with options."""
    lettered = [row for row in rows if row["status"] == ASKED and row["options"]]
    items: dict[str, list[Mapping[str, Any]]] = {}
    for row in lettered:
        items.setdefault(row["item_id"], []).append(row)
    turns = sorted({row["rotation"] for row in lettered})
    letters = Counter(row["predicted"] for row in lettered if row["predicted"] is not None)
    steady = sum(len({row["choice"] for row in some} - {None}) == 1 for some in items.values())
    return {
        "all": _figure(lettered),
        "by_rotation": {str(turn): _figure([row for row in lettered if row["rotation"] == turn]) for turn in turns},
        "letters": {letter: letters[letter] for letter in sorted(letters)},
        "questions": len(items),
        "same_option_in_all": steady,
    }


def table_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The figures for a terminal; types and reasons come from outside."""
    lines = [f"{'type':32} {'right':>9} {'of':>6} {'accuracy':>9}"]
    parts = [*metrics["by_type"].items(), ("all", metrics["overall"])]
    for name, part in parts:
        lines.append(f"{plain(name, 32):32} {part['right']:9.6g} {part['n']:6} {part['accuracy']:9.1%}")
    overall = metrics["overall"]
    if overall["without_answer"]:
        lines.append(f"{overall['without_answer']} replies held no answer and count as wrong")
    lines += [f"{one['n']} not asked, {one['status']}: {plain(one['reason'])}" for one in metrics["not_asked"]]
    if turned := metrics["rotations"]:
        lines.append(
            f"over all rotations {turned['all']['accuracy']:.1%}; the same option in all of them for "
            f"{turned['same_option_in_all']} of {turned['questions']} questions"
        )
    return lines


def _write(out: Path, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> None:
    """Both files under temporary names, then in place; the metrics last."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        table = out / ".predictions.parquet.partial"
        pq.write_table(pa.Table.from_pylist(list(rows), PREDICTIONS), table, compression="zstd")
        os.replace(table, out / "predictions.parquet")
        page = out / ".metrics.json.partial"
        page.write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(page, out / "metrics.json")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise EvaluationError(
            f"{out}: no report can be written there ({error.strerror}); name another folder"
        ) from error
