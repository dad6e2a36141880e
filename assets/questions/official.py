"""Reading the official file formats: DSR-Bench Parquet, DSR-Train JSON, the reference's training JSON, Hugging Face.

What comes in is hostile: sizes are bounded, every row is checked, and a row that fails is set aside with its reason.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.questions.official_text import (
    LONGEST_TEXT,
    OfficialFormatError,
    Parts,
    infer_type,
    read_parts,
    unlabelled,
)
from assets.questions.row import LETTERS, NON_TEMPLATE, QUESTIONS, TYPES, write_table

COLUMNS = ("videoID", "question", "options", "answer", "type")
MOST_ROWS = 5_000_000
MOST_JSON_BYTES = 1 << 30
MOST_PARQUET_BYTES = 16 << 30
BATCH = 8192
# Videos are found by this name, so it must never be a path.
VIDEO_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_ANSWER = re.compile(r"\(?([A-D])[).]{0,2}")
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"Rar!": "a rar archive",
}
OFFICIAL = pa.schema([(name, pa.list_(pa.string()) if name == "options" else pa.string()) for name in COLUMNS])
IMPORTED = pa.schema(
    [
        *OFFICIAL,
        ("viewpoint_kind", pa.string()),
        ("viewpoint_subject", pa.string()),
        ("viewpoint_box", pa.list_(pa.float64())),
        ("viewpoint_time", pa.float64()),
        ("targets", pa.list_(pa.string())),
        ("target_boxes", pa.list_(pa.list_(pa.float64()))),
        ("interval_start", pa.float64()),
        ("interval_end", pa.float64()),
        ("option_states", pa.list_(pa.list_(pa.string()))),
        ("states", pa.list_(pa.string())),
        ("free_text", pa.bool_()),
        ("unread", pa.string()),
    ]
)


@dataclass(frozen=True)
class Refused:
    """A row that was skipped: where it stands in its file, why (a countable reason) and the value that shows it."""

    place: str
    reason: str
    value: str


@dataclass(frozen=True)
class Imported:
    """Rows of an official file, what their texts say, and what was skipped.

    Attributes:
        rows: mappings of ``COLUMNS`` (options without their letters, answer "A" to "D", type one of
            ``TYPES``) and, from our own Hugging Face folders, every further column of ``row.QUESTIONS``.
        parts: of each row, in the same order.
        refused: rows that were skipped.
    """

    rows: list[dict[str, Any]]
    parts: list[Parts]
    refused: list[Refused]

    @property
    def parsed(self) -> int:
        """Number of rows of which every part that applies was read."""
        return sum(not parts.unread for parts in self.parts)

    def reasons(self) -> Counter[str]:
        """Why rows were skipped and parts unread, with counts."""
        skipped = Counter(f"skipped: {refused.reason}" for refused in self.refused)
        return skipped + Counter(f"unread: {part}" for parts in self.parts for part in parts.unread)


class BadRowError(ValueError):
    """A row is not what the formats promise; ``value`` shows why."""

    def __init__(self, reason: str, value: Any):
        super().__init__(reason)
        self.reason, self.value = reason, shown(value)


def import_rows(path: Path, skip_bad: bool = True) -> Imported:
    """Read a file or folder in any of the official formats; which one is told by its content.

    Args:
        path: Parquet with ``COLUMNS``; DSR-Train JSON ({video: [{Type, Question, A, B, C, D, Correct}]}); the
            reference's training JSON ([{video, conversations}]), whose types are inferred from the questions; JSON
            or JSON lines of rows; or a folder of Parquet shards, directly or one level down (Hugging Face).
        skip_bad: set bad rows aside; else the first one is an error.

    Raises:
        OfficialFormatError: no such file, another kind of file (an LFS pointer, a web page, an archive), a missing
            column, too large; or, without ``skip_bad``, a bad row.
    """
    rows: list[dict[str, Any]] = []
    refused: list[Refused] = []
    for place, raw in _read(path):
        try:
            rows.append(checked_row(raw))
        except BadRowError as bad:
            refused.append(Refused(place, bad.reason, bad.value))
            if not skip_bad:
                raise OfficialFormatError(said(path, refused[-1])) from bad
        if len(rows) + len(refused) > MOST_ROWS:
            raise OfficialFormatError(f"{path}: more than {MOST_ROWS} rows; import it in parts")
    parts = [read_parts(row["type"], row["question"], row["options"]) for row in rows]
    return Imported(rows, parts, refused)


def import_summary(path: Path, imported: Imported) -> list[str]:
    """What came of an import, in lines for people: counts, reasons, and one example of each reason to skip."""
    lines = [
        f"{path}: {len(imported.rows)} rows, {imported.parsed} read whole, {len(imported.refused)} skipped",
        *(f"  {count} {reason}" for reason, count in sorted(imported.reasons().items())),
    ]
    examples = {refused.reason: refused for refused in reversed(imported.refused)}
    return lines + [f"  for example {said(path, examples[reason])}" for reason in sorted(examples)]


def write_imported(imported: Imported, out: Path) -> None:
    """Write imported rows with their parts as one Parquet table (schema ``IMPORTED``)."""
    rows = [
        {name: row[name] for name in COLUMNS} | _part_columns(parts, row["answer"])
        for row, parts in zip(imported.rows, imported.parts, strict=True)
    ]
    write_table(rows, IMPORTED, out)


def _part_columns(parts: Parts, answer: str) -> dict[str, Any]:
    start, end = parts.interval or (None, None)
    return {
        "viewpoint_kind": parts.viewpoint_kind,
        "viewpoint_subject": parts.viewpoint.name if parts.viewpoint else None,
        "viewpoint_box": parts.viewpoint.box if parts.viewpoint else None,
        "viewpoint_time": parts.viewpoint_time,
        "targets": [target.name for target in parts.targets],
        "target_boxes": [target.box for target in parts.targets],
        "interval_start": start,
        "interval_end": end,
        "option_states": parts.states,
        "states": parts.states[LETTERS.index(answer)],
        "free_text": parts.free_text,
        "unread": "; ".join(f"{part}: {why}" for part, why in sorted(parts.unread.items())),
    }


def said(path: Path, refused: Refused) -> str:
    """One line about a bad row: file, place, reason, value, remedy."""
    return f"{path}: {refused.place}: {refused.reason} ({refused.value}); mend the row or skip it"


def shown(value: Any) -> str:
    """A value from outside in a message: escaped, on one line, bounded."""
    return ascii(value if not isinstance(value, str) else value[:200])[:80]


def checked_row(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A row as we keep it: options without their letters, answer a letter.

    Args:
        raw: a row as a file has it, under the names of ``COLUMNS``.

    Raises:
        BadRowError: a column is missing or holds what it must not.
    """
    for name in COLUMNS:
        if name not in raw:
            raise BadRowError(f"{name} is missing", sorted(map(str, raw))[:8])
    for name in ("videoID", "question", "answer", "type"):
        if not _is_text(raw[name]):
            raise BadRowError(f"{name} is no text", raw[name])
    if not VIDEO_ID.fullmatch(raw["videoID"]):
        raise BadRowError("videoID is no plain name", raw["videoID"])
    if not 0 < len(raw["question"].strip()) <= len(raw["question"]) <= LONGEST_TEXT:
        raise BadRowError(f"question is empty or longer than {LONGEST_TEXT} characters", raw["question"])
    answer = _ANSWER.fullmatch(raw["answer"].strip())
    if not answer:
        raise BadRowError("answer is no letter A to D", raw["answer"])
    if raw["type"] not in TYPES:
        raise BadRowError("type is none of the 13", raw["type"])
    return {**raw, "options": _options(raw["options"]), "answer": answer[1]}


def _is_text(value: Any) -> bool:
    """Whether it is a string that can be written; JSON may smuggle in halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _options(options: Any) -> list[str]:
    """The four options without their letters."""
    if not isinstance(options, list | tuple) or len(options) != len(LETTERS):
        raise BadRowError("options are not four", options if not isinstance(options, list) else len(options))
    for option in options:
        if not _is_text(option) or len(option) > LONGEST_TEXT:
            raise BadRowError(f"an option is no text of at most {LONGEST_TEXT} characters", option)
    bare = [unlabelled(option, letter) for letter, option in zip(LETTERS, options, strict=True)]
    if not all(option.strip() for option in bare):
        raise BadRowError("an option is empty", options)
    said = [" ".join(option.casefold().split()).rstrip(".") for option in bare]
    if twice := [option for option, count in Counter(said).items() if count > 1]:
        raise BadRowError("two options are equal", twice[0])
    return bare


def _read(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row of a file or folder, as the file has it, under the names of ``COLUMNS``, with its place."""
    if path.is_dir():
        # What starts with a dot is a cache or an unfinished file.
        shards = sorted({*path.glob("[!.]*.parquet"), *path.glob("[!.]*/[!.]*.parquet")})
        if not shards:
            raise OfficialFormatError(f"{path}: holds no Parquet files; give the file or the data set's folder")
        for shard in shards:
            yield from _read_parquet(shard, f"{shard.relative_to(path)} row")
        return
    head = _head(path)
    if head.startswith(b"PAR1"):
        yield from _read_parquet(path, "row")
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        yield from _read_json(path)
    else:
        raise OfficialFormatError(f"{path}: {_what_else(head)}")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise OfficialFormatError(f"{path}: cannot be read ({error.strerror}); give an existing file") from error


def _what_else(head: bytes) -> str:
    """What a file is that holds neither Parquet nor JSON, and what to do about it."""
    if not head:
        return "is empty; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "is a web page, not the file itself; accept the data set's terms, then download it again"
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            return f"is {name}; unpack it first"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it first"
    return f"is neither Parquet nor JSON (starts with {shown(head[:12])}); give a file in an official format"


def _read_parquet(path: Path, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file:
            known = _known_columns(file, path)
            number = 0
            for batch in file.iter_batches(BATCH, columns=known):
                for row in batch.to_pylist():
                    yield f"{place} {number}", row
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise OfficialFormatError(f"{path}: is damaged ({type(error).__name__}); download it again") from error


def _known_columns(file: pq.ParquetFile, path: Path) -> list[str]:
    """The columns to read of a Parquet file: the official ones and those of our own that it has besides."""
    names = file.schema_arrow.names
    if missing := [name for name in COLUMNS if name not in names]:
        had = ", ".join(shown(name) for name in names[:12])
        raise OfficialFormatError(f"{path}: column {missing[0]!r} is missing (has {had}); give a DSR data set")
    metadata = file.metadata
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    if metadata.num_rows > MOST_ROWS or size > MOST_PARQUET_BYTES:
        raise OfficialFormatError(f"{path}: {metadata.num_rows} rows, {size} bytes is too large; import it in parts")
    return [*COLUMNS, *(name for name in QUESTIONS.names if name in names and name not in COLUMNS)]


def _read_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.stat().st_size > MOST_JSON_BYTES:
        raise OfficialFormatError(f"{path}: larger than {MOST_JSON_BYTES} bytes; import it in parts")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OfficialFormatError(f"{path}: is no UTF-8 text (byte {error.start}); download it again") from error
    if text.lstrip().startswith("{"):
        first, _, rest = text.strip().partition("\n")
        if rest and first.rstrip().endswith("}"):
            yield from _json_lines(text, path)
            return
    content = _parsed(text, path, "the file")
    if isinstance(content, dict) and "question" not in content:
        yield from _train_rows(content, path)
        return
    for number, item in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(item, dict):
            raise OfficialFormatError(f"{path}: item {number} is {shown(item)}, no object; give rows as objects")
        yield f"item {number}", _from_conversation(item) if "conversations" in item else _official(item)


def _parsed(text: str, path: Path, where: str) -> Any:
    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise OfficialFormatError(f"{path}: {where} has the key {shown(twice)} twice; keep one")
        return mapping

    try:
        return json.loads(text, object_pairs_hook=refuse_twice)
    except OfficialFormatError:
        raise
    except (ValueError, RecursionError) as error:
        why = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise OfficialFormatError(f"{path}: {where} is no JSON ({why}); download it again") from error


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = _parsed(line, path, f"line {number}")
            if not isinstance(row, dict):
                raise OfficialFormatError(f"{path}: line {number} is {shown(row)}, no object; give rows as objects")
            yield f"line {number}", _official(row)


def _official(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in COLUMNS if name in item}


def _train_rows(videos: Mapping[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of {video: [{Type, Question, A, B, C, D, Correct}]}; what has no Type is not from a template."""
    names = {"Question": "question", "Correct": "answer"}
    for video, items in videos.items():
        if not isinstance(items, list):
            raise OfficialFormatError(f"{path}: {shown(video)} holds {shown(items)}, no list of questions")
        for number, item in enumerate(items):
            place = f"{shown(video)} question {number}"
            if not isinstance(item, dict):
                raise OfficialFormatError(f"{path}: {place} is {shown(item)}, no object; give questions as objects")
            row = {name: item[theirs] for theirs, name in names.items() if theirs in item}
            if all(letter in item for letter in LETTERS):
                row["options"] = [item[letter] for letter in LETTERS]
            yield place, row | {"videoID": video, "type": item.get("Type", NON_TEMPLATE)}


def _from_conversation(item: Mapping[str, Any]) -> dict[str, Any]:
    """A row of {video, conversations}; empty where it is not laid out as the reference does it."""
    turns = item["conversations"]
    if not isinstance(turns, list) or [_turn(turn)[0] for turn in turns] != ["human", "gpt"]:
        return {}
    (_, asked), (_, answer) = map(_turn, turns)
    lines = asked.removeprefix("<video>").removeprefix("\n").split("\n")
    if len(lines) < 6 or lines[-5].strip() != "Options:":
        return {}
    question = "\n".join(lines[:-5])
    options = [
        # "A " is the layout's own; "A. " would belong to the option and is taken off later.
        line[2:] if line.startswith(f"{letter} ") else line
        for letter, line in zip(LETTERS, lines[-4:], strict=True)
    ]
    return {
        "videoID": _stem(item.get("video")),
        "question": question,
        "options": options,
        "answer": answer,
        "type": infer_type(question, options),
    }


def _turn(turn: Any) -> tuple[str, str]:
    if isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str):
        return turn["from"], turn["value"]
    return "", ""


def _stem(video: Any) -> Any:
    return video.removesuffix(".mp4") if isinstance(video, str) else video
