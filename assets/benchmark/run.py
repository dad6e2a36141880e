"""One evaluation of a published benchmark: its questions, the clips that are at hand, one reader.

predictions.parquet   a row for each question, and for each rotation of its options (PREDICTIONS)
metrics.json          what `assets.benchmark.suite_figures` makes of them
summary.md            the same to be read
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.benchmark.boxes import BoxError
from assets.benchmark.clips import SHARD, ClipFolder, Ready, Say, wrong_channels
from assets.benchmark.extraction import Extraction, extract_letter, extract_number
from assets.benchmark.parameters import BenchmarkParameters
from assets.benchmark.predictions import PredictionCache, Progress, Reply, ask_all
from assets.benchmark.readers import GENERATION, LETTERS_PROTOCOL, Manner, Places, Reader
from assets.benchmark.suite import Item, Suite, Videos, credit, for_clip
from assets.benchmark.suite_figures import ASKED, figures, markdown

if TYPE_CHECKING:
    from models.data import Question

LETTERS = tuple("ABCDEFGHIJ")
DECIMALS = 6
UNUSABLE, MISSING, UNREADABLE, REFUSED = "unusable", "missing", "unreadable", "refused"
WEIGHED = "weighed"
PREDICTIONS = pa.schema(
    [
        ("item_id", pa.string()),
        ("video", pa.string()),
        ("clip", pa.string()),  # identity of the prepared clip; the video's name where none is shown
        ("type", pa.string()),
        ("rotation", pa.int32()),  # places by which each option was moved on, the last ones to the front
        ("question", pa.string()),  # as asked, like all that follows
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("status", pa.string()),  # asked, or why not: unusable, missing, unreadable, refused
        ("reason", pa.string()),
        ("predicted", pa.string()),  # letter or number, null where the reply comes to none
        ("rule", pa.string()),  # how it was read: weighed, or as `assets.benchmark.extraction` names it
        ("choice", pa.int32()),  # the option that means, counted in the published order
        ("score", pa.float64()),  # 1 or 0; of a number its mean relative accuracy; null where it was not asked
        ("shares", pa.list_(pa.float64())),
        ("text", pa.string()),
    ]
)


class EvaluationError(ValueError):
    """The report of an evaluation cannot be written."""


@dataclass(frozen=True)
class _Case:
    """One question as it is put, or the reason why it is not.

    Attributes:
        item: of the suite, as the clip needs it.
        rotation: places by which the options are moved on.
        ready: its clip; None where none is shown.
        status, reason: as in PREDICTIONS.
    """

    item: Item
    rotation: int = 0
    ready: Ready | None = None
    status: str = ASKED
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.item.item_id}/{self.rotation}"

    @property
    def options(self) -> tuple[str, ...]:
        given, first = self.item.options, len(self.item.options) - self.rotation
        return given[first:] + given[:first]

    @property
    def answer(self) -> str:
        """The right letter as asked, or the number."""
        if not self.item.options or self.status == UNUSABLE:
            return self.item.answer
        return LETTERS[(LETTERS.index(self.item.answer) + self.rotation) % len(self.item.options)]

    def published(self, letter: str) -> int:
        """The option behind a letter as asked, counted in the published order."""
        return (LETTERS.index(letter) - self.rotation) % len(self.item.options)

    def question(self) -> Question:
        from models.data import Question

        clip = self.ready.clip if self.ready else ""
        asked = (self.item.type, self.item.question, self.options, self.item.visible_until)
        return Question(self.name, clip, SHARD, *asked)


def evaluate_suite(
    suite: Suite,
    videos: Videos,
    reader: Reader,
    clips: ClipFolder | None,
    manner: Manner,
    cache: PredictionCache,
    out: Path,
    parameters: BenchmarkParameters,
    *,
    identity: Mapping[str, str | None],
    rotations: bool = False,
    say: Say = lambda step: None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Ask a reader all questions of a benchmark that can be asked, and write what came of it.

    Args:
        suite: the questions.
        videos: files of the videos that are at hand, and why the others are not.
        reader: what is asked.
        clips: makes clips ready; None where the manner is blind.
        manner: of asking. Numbers are generated in either protocol.
        cache: of answers.
        out: folder of predictions.parquet, metrics.json and summary.md.
        parameters: of the intervals.
        identity: names and hashes of what was evaluated, told as they are; no path and no date.
        rotations: ask each question once for every rotation of its options.
        say: told of each step before it begins.
        progress: called with questions done, questions in all and a word.

    Returns:
        The contents of metrics.json. Where no question can be asked it says so, and no model is loaded.

    Raises:
        PredictionCacheError: the kept answers cannot be used.
        EvaluationError: the folder cannot be written to.
    """
    cases = [_usable(item) for item in suite.items]
    if not manner.blind:
        cases = _prepared([_at_hand(case, videos) for case in cases], videos, reader, clips, say)
    if rotations:
        cases = [turned for case in cases for turned in _rotated(case)]
    say(f"asking {sum(case.status == ASKED for case in cases)} questions")
    places = clips.places if clips else Places(out, out)
    cases, replies = _asked(cases, reader, places, manner, cache, progress)
    rows = [_row(case, replies.get(case.name)) for case in cases]
    metrics = _head(suite, reader, manner, rotations, identity) | figures(rows, suite.unusable, parameters, rotations)
    _write(out, rows, metrics)
    return metrics


def _usable(item: Item) -> _Case:
    """Whether a question can be put at all."""
    if len(item.options) > len(LETTERS):
        return _Case(item, status=UNUSABLE, reason=f"{len(item.options)} options, at most {len(LETTERS)} are asked")
    return _Case(item)


def _at_hand(case: _Case, videos: Videos) -> _Case:
    if case.status != ASKED or case.item.video in videos.found:
        return case
    return replace(case, status=MISSING, reason=videos.missing.get(case.item.video, "no file of this name"))


def _prepared(cases: Sequence[_Case], videos: Videos, reader: Reader, clips: ClipFolder, say: Say) -> list[_Case]:
    """The cases with their clips ready; a clip that cannot be is a reason, and the rest goes on."""
    wanted = list({videos.found[case.item.video]: None for case in cases if case.status == ASKED})
    if not wanted:
        return list(cases)
    known = dict(zip(wanted, zip(*clips.prepare(wanted, say), strict=True), strict=True))
    return [
        _fitted(case, *known[videos.found[case.item.video]], reader) if case.status == ASKED else case for case in cases
    ]


def _fitted(case: _Case, ready: Ready | None, why: str, reader: Reader) -> _Case:
    """The case as it is asked of its clip: boxes in its pixels, the end hidden that the type hides."""
    if why := why or wrong_channels(ready, reader.channels):
        return replace(case, status=UNREADABLE, reason=why)
    try:
        return replace(case, item=for_clip(case.item, *ready.size, ready.seconds), ready=ready)
    except BoxError as error:
        return replace(case, status=UNUSABLE, reason=str(error), ready=ready)


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


def _row(case: _Case, reply: Reply | None) -> dict[str, Any]:
    """A row of predictions.parquet."""
    row = {
        "item_id": _storable(case.item.item_id),
        "video": _storable(case.item.video),
        "clip": case.ready.clip if case.ready else _storable(case.item.video),
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
    read = _answer_of(reply, case.options)
    choice = case.published(read.answer) if case.options and read.answer is not None else None
    # The item holds the published letter, whatever the rotation.
    score = credit(case.item, read.answer if choice is None else LETTERS[choice])
    shares = None if reply.shares is None else [round(share, DECIMALS) for share in reply.shares]
    text = None if reply.text is None else _storable(reply.text)
    said = {"predicted": read.answer, "rule": read.rule, "choice": choice, "score": score}
    return {**row, **said, "shares": shares, "text": text}


def _storable(text: str) -> str:
    """The text without halves of characters, which JSON may hold and Parquet may not."""
    return text.encode("utf-8", "replace").decode()


def _answer_of(reply: Reply, options: Sequence[str]) -> Extraction:
    """The letter or number that a reply comes to: of the likeliest letter, the first among equals."""
    if reply.shares is not None:
        return Extraction(LETTERS[int(np.argmax(np.round(reply.shares, DECIMALS)))], WEIGHED)
    text = reply.text or ""
    return extract_letter(text, options) if options else extract_number(text)


def _head(
    suite: Suite, reader: Reader, manner: Manner, rotations: bool, identity: Mapping[str, str | None]
) -> dict[str, Any]:
    """Who was asked what, and how."""
    return {
        "suite": {
            "name": suite.name,
            "version": suite.version,
            "sha256": suite.digest,
            "questions": len(suite.items),
            "unusable_rows": len(suite.unusable),
        },
        "reader": {"name": reader.name, "identity": reader.identity},
        "protocol": {
            "name": manner.protocol,
            "blind": manner.blind,
            "rotations": rotations,
            # The letters protocol generates numbers alone.
            "max_tokens": None
            if manner.protocol == LETTERS_PROTOCOL and all(item.options for item in suite.items)
            else manner.max_tokens,
        },
        "identity": dict(identity),
    }


def _write(out: Path, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> None:
    """All files under temporary names, then in place; the metrics last."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        table = out / ".predictions.parquet.partial"
        pq.write_table(pa.Table.from_pylist(list(rows), PREDICTIONS), table, compression="zstd")
        os.replace(table, out / "predictions.parquet")
        texts = {"summary.md": markdown(metrics), "metrics.json": json.dumps(metrics, indent=1, sort_keys=True) + "\n"}
        for name, text in texts.items():
            page = out / f".{name}.partial"
            page.write_text(text, encoding="utf-8")
            os.replace(page, out / name)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise EvaluationError(
            f"{out}: no report can be written there ({error.strerror}); name another folder"
        ) from error
