"""Rows of a published file: Parquet, JSON or JSON lines, bounded and checked before anything is made of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.benchmark.suite import Item, Unusable
from assets.questions.official import BadRowError, shown
from assets.questions.official_text import LONGEST_TEXT, OfficialFormatError

MOST_BYTES = 256 << 20
MOST_UNPACKED_BYTES = 2 << 30
MOST_ROWS = 1_000_000
LONGEST_NAME = 128
_BATCH = 4096
# An id goes into keys and reports, so only a plain one is taken over.
_PLAIN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def read_items(
    path: Path, columns: Sequence[str], item_of: Callable[[Mapping[str, Any]], Item]
) -> tuple[list[Item], list[Unusable]]:
    """Make items of a file's rows.

    Args:
        path: the published file.
        columns: those that the file must have.
        item_of: makes an item of a row, or raises BadRowError.

    Raises:
        OfficialFormatError: no such file, another kind of file, damaged, too large, or a column is missing.
    """
    items: list[Item] = []
    unusable: list[Unusable] = []
    first: dict[str, int] = {}
    for number, row in _rows(path, columns):
        if number >= MOST_ROWS:
            raise OfficialFormatError(f"{path}: more than {MOST_ROWS} rows; give the benchmark's file alone")
        try:
            item = item_of(row)
            if item.item_id in first:
                raise BadRowError(f"the same question as row {first[item.item_id]}", item.item_id)
            first[item.item_id] = number
            items.append(item)
        except BadRowError as bad:
            unusable.append(Unusable(number, f"{bad.reason} ({bad.value})"))
    return items, unusable


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if path.stat().st_size > MOST_BYTES:
            raise OfficialFormatError(f"{path}: larger than {MOST_BYTES} bytes; give the benchmark's file alone")
    except OSError as error:
        raise OfficialFormatError(f"{path}: cannot be read ({error.strerror}); give an existing file") from error
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if head.startswith(b"PAR1"):
        yield from enumerate(_parquet(path, columns))
    elif start in (b"[", b"{"):
        yield from _json(path, columns)
    else:
        raise OfficialFormatError(
            f"{path}: is neither Parquet nor JSON (starts with {shown(head[:12])}); give the published file"
        )


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            if (
                file.metadata.num_rows > MOST_ROWS
                or sum(group.total_byte_size for group in groups) > MOST_UNPACKED_BYTES
            ):
                raise OfficialFormatError(
                    f"{path}: {file.metadata.num_rows} rows are too large; give the benchmark's file alone"
                )
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                had = ", ".join(shown(name) for name in file.schema_arrow.names[:12])
                raise OfficialFormatError(
                    f"{path}: column {missing[0]!r} is missing (has {had}); give the published file"
                )
            for batch in file.iter_batches(_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise OfficialFormatError(f"{path}: is damaged ({type(error).__name__}); download it again") from error


def _json(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a list of objects, or of one object per line; a row without a column is left to its reader to refuse."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            json.loads(text)
            if text.lstrip()[0] == "["
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    except (ValueError, RecursionError) as error:
        why = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise OfficialFormatError(f"{path}: is no JSON ({why}); download it again") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise OfficialFormatError(f"{path}: row {number} is {shown(row)}, no object; give the published file")
        yield number, row
    if rows and not any(set(columns) <= set(row) for row in rows):
        raise OfficialFormatError(f"{path}: no row has {', '.join(columns)}; give the published file")


# Values of a row --------------------------------------------------------------------------------------------------


def text_of(row: Mapping[str, Any], name: str, longest: int = LONGEST_TEXT) -> str:
    """A text that is there, stripped; a whole number becomes its digits.

    Raises:
        BadRowError: it is missing, empty, too long, or no text.
    """
    if row.get(name) is None:
        raise BadRowError(f"{name} is missing", sorted(map(str, row))[:8])
    return _text(row[name], name, longest)


def _text(value: Any, name: str, longest: int = LONGEST_TEXT) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = f"{value:.15g}" if isinstance(value, float) else str(value)[: longest + 1]
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRowError(f"{name} is no text", value)
    if not 0 < len(value.strip()) <= len(value) <= longest:
        raise BadRowError(f"{name} is empty or longer than {longest} characters", value)
    return value.strip()


def seconds_of(row: Mapping[str, Any], name: str) -> float:
    """A time in seconds, also where it is written as text.

    Raises:
        BadRowError: it is missing, no number, negative or not finite.
    """
    try:
        seconds = float(text_of(row, name, LONGEST_NAME))
    except ValueError as error:
        raise error if isinstance(error, BadRowError) else BadRowError(f"{name} is no number", row[name]) from error
    if not 0 <= seconds < math.inf:
        raise BadRowError(f"{name} is no time", row[name])
    return seconds


def options_of(values: Any) -> tuple[str, ...]:
    """The options without their letters, which go where all carry their own ("A. left", "(B) right").

    Args:
        values: a list of texts and numbers, or a mapping of letters from "A" on; those that hold None are not there.

    Raises:
        BadRowError: fewer than two or more than 26, an empty one, other letters than the first, two that are equal.
    """
    if isinstance(values, Mapping):
        values = {letter: value for letter, value in values.items() if value is not None}
        letters = sorted(map(str, values))
        if letters != list(string.ascii_uppercase[: len(letters)]):
            raise BadRowError("options are not under the first letters", letters[:8])
        values = [values[letter] for letter in letters]
    if not isinstance(values, list | tuple) or not 2 <= len(values) <= len(string.ascii_uppercase):
        raise BadRowError("options are not 2 to 26", values)
    texts = [_text(value, "an option") for value in values]
    labels = [
        re.match(rf"\(?{letter}[.):](?:\s|$)\s*", text)
        for letter, text in zip(string.ascii_uppercase, texts, strict=False)
    ]
    if all(labels):
        texts = [_text(text[label.end() :], "an option") for text, label in zip(texts, labels, strict=True)]
    same = [" ".join(text.casefold().split()).rstrip(".") for text in texts]
    if twice := [text for number, text in enumerate(same) if text in same[:number]]:
        raise BadRowError("two options are equal", twice[0])
    return tuple(texts)


def letter_of(answer: str, count: int) -> str:
    """The letter of an answer such as "B", "(B)" or "B.".

    Raises:
        BadRowError: it is none of the first ``count`` letters.
    """
    found = re.fullmatch(r"\(?([A-Z])[).]{0,2}", answer)
    if not found or string.ascii_uppercase.index(found[1]) >= count:
        raise BadRowError(f"answer is none of the {count} letters", answer)
    return found[1]


def letter_of_text(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that an answer repeats.

    Raises:
        BadRowError: it repeats none of them; options that are equal were refused before.
    """
    if answer not in options:
        raise BadRowError("answer is none of the options", answer)
    return string.ascii_uppercase[list(options).index(answer)]


def identity_of(given: Any, *content: Any) -> str:
    """The publisher's id where it is a plain one, else a hash of the content."""
    if isinstance(given, int | str) and not isinstance(given, bool) and _PLAIN_ID.fullmatch(str(given)[:65]):
        return str(given)
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:16]


def video_of(text: str) -> str:
    """A video's name: the end of a path or address, with one folder before it and without a video's suffix.

    Raises:
        BadRowError: nothing is left.
    """
    from urllib.parse import unquote, urlsplit

    path = unquote(urlsplit(text).path) if "://" in text else text
    parts = [part for part in re.split(r"[/\\]", path) if part.strip(". ")][-2:]
    if not parts:
        raise BadRowError("the video has no name", text)
    return "/".join([*parts[:-1], re.sub(r"\.(?:mp4|mkv|webm|avi|mov|m4v)$", "", parts[-1], flags=re.IGNORECASE)])
