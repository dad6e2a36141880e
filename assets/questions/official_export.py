"""Writing finished questions in the official file formats.

Every row passes the check of the way in first, so that everything written can be read back as it was.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.questions.data_card import data_card
from assets.questions.official import BATCH, COLUMNS, OFFICIAL, BadRowError, Refused, checked_row, said, shown
from assets.questions.official_text import OfficialFormatError, labelled, unlabelled
from assets.questions.row import LETTERS, NON_TEMPLATE
from assets.reuse import sha256_of

FORMATS = ("parquet", "train_json", "conversations", "huggingface")
ROWS_PER_SHARD = 100_000
PART = re.compile(r"[a-z][a-z_]{0,31}")


def export_questions(
    parts: Mapping[str, Path],
    out: Path,
    form: str,
    license: str = "other",
    audit: Sequence[Mapping[str, Any]] = (),
    rows_per_shard: int = ROWS_PER_SHARD,
) -> list[Path]:
    """Write finished questions in an official format.

    Args:
        parts: name of each part (train, val, …) -> its table of questions (schema ``row.QUESTIONS``).
        out: folder to write to, new or empty.
        form: "parquet" (``<part>.parquet``, columns of DSR-Bench), "train_json" (``<part>.json`` keyed by video, as
            DSR-Train), "conversations" (``<part>.json`` as the reference trains on; carries no type) or
            "huggingface" (Parquet shards with all columns, and a data card).
        license: identifier for the data card.
        audit: rows of a table of blind-audit figures for the data card.
        rows_per_shard: questions per Parquet shard of the Hugging Face folder.

    Returns:
        The files written.

    Raises:
        OfficialFormatError: unknown format, a folder in use, an unreadable part, or a row that could not be read back.
    """
    if form not in FORMATS:
        raise OfficialFormatError(f"format {shown(form)} is unknown; choose one of: {', '.join(FORMATS)}")
    if strange := [name for name in parts if not PART.fullmatch(name)]:
        raise OfficialFormatError(f"part {shown(strange[0])} is no plain name; use lower-case letters")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OfficialFormatError(f"{out}: exists and is not an empty folder; choose a new one")
    tables = {name: _questions(path, form) for name, path in parts.items()}
    out.mkdir(parents=True, exist_ok=True)
    if form == "huggingface":
        return _write_hub_folder(tables, parts, out, license, audit, rows_per_shard)
    written = []
    for name, table in tables.items():
        path = out / f"{name}.{'parquet' if form == 'parquet' else 'json'}"
        official = table.select(COLUMNS)
        if form == "parquet":
            _write_parquet(_with_letters(official).cast(OFFICIAL), path)
        else:
            _write_text(_train_items(official) if form == "train_json" else _conversations(official), path)
        written.append(path)
    return written


def _questions(path: Path, form: str) -> pa.Table:
    """A part whose every row would survive the way back."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise OfficialFormatError(f"{path}: cannot be read ({type(error).__name__}); seal the release again") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise OfficialFormatError(f"{path}: column {missing[0]!r} is missing; seal the release again")
    for number, row in enumerate(_rows(table.select(COLUMNS))):
        try:
            _refuse_unreadable(row, form)
        except BadRowError as bad:
            raise OfficialFormatError(said(path, Refused(f"row {number}", bad.reason, bad.value))) from bad
    return table


def _refuse_unreadable(row: Mapping[str, Any], form: str) -> None:
    checked_row(row)
    if checked_row({**row, "options": _lettered(row["options"])}) != row:
        raise BadRowError("would be read back as another", row["answer"])
    broken = [text for text in (row["question"], *row["options"]) if "\n" in text]
    if broken and form == "conversations":
        raise BadRowError("a line break does not fit the format", broken[0])


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    return chain.from_iterable(batch.to_pylist() for batch in table.to_batches(BATCH))


def _lettered(options: Sequence[str]) -> list[str]:
    return [labelled(option, letter) for letter, option in zip(LETTERS, options, strict=True)]


def _with_letters(table: pa.Table) -> pa.Table:
    """Options as the official files carry them, each behind its letter."""
    lettered = [_lettered(options) for options in table["options"].to_pylist()]
    column = table.column_names.index("options")
    return table.set_column(column, "options", pa.array(lettered, pa.list_(pa.string())))


def _bare(options: Sequence[str]) -> list[str]:
    """Options for a format that names the letters itself; any that begins like a label shields all behind one."""
    own = [unlabelled(option, letter) != option for letter, option in zip(LETTERS, options, strict=True)]
    return _lettered(options) if any(own) else list(options)


def _train_items(table: pa.Table) -> Iterator[str]:
    """JSON text of {video: [question, …]}, in pieces."""
    by_video: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in _rows(table):
        item = {
            "Type": row["type"],
            "Question": row["question"],
            **dict(zip(LETTERS, _bare(row["options"]), strict=True)),
        }
        if row["type"] == NON_TEMPLATE:
            del item["Type"]
        by_video[row["videoID"]].append(item | {"Correct": row["answer"]})
    pieces = (f"{json.dumps(video)}: {json.dumps(items, ensure_ascii=False)}" for video, items in by_video.items())
    yield from _enclosed("{", pieces, "}")


def _conversations(table: pa.Table) -> Iterator[str]:
    """JSON text of [{video, conversations}, …], in pieces; the layout is one of lines, so no text breaks one."""
    yield from _enclosed("[", (json.dumps(_conversation(row), ensure_ascii=False) for row in _rows(table)), "]")


def _conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    options = "\n".join(f"{letter} {option}" for letter, option in zip(LETTERS, _bare(row["options"]), strict=True))
    return {
        "video": f"{row['videoID']}.mp4",
        "conversations": [
            {"from": "human", "value": f"<video>\n{row['question']}\nOptions:\n{options}"},
            {"from": "gpt", "value": row["answer"]},
        ],
    }


def _enclosed(opening: str, pieces: Iterable[str], closing: str) -> Iterator[str]:
    yield opening
    for number, piece in enumerate(pieces):
        yield f"{',' if number else ''}\n{piece}"
    yield f"\n{closing}\n"


def _write_hub_folder(
    tables: Mapping[str, pa.Table],
    parts: Mapping[str, Path],
    out: Path,
    license: str,
    audit: Sequence[Mapping[str, Any]],
    rows_per_shard: int,
) -> list[Path]:
    written = []
    for name, table in tables.items():
        shards = -(-table.num_rows // rows_per_shard)
        for number in range(shards):
            path = out / name / f"{name}-{number:05d}-of-{shards:05d}.parquet"
            path.parent.mkdir(exist_ok=True)
            _write_parquet(_with_letters(table.slice(number * rows_per_shard, rows_per_shard)), path)
            written.append(path)
    digests = {path.relative_to(out).as_posix(): sha256_of(path) for path in written}
    sources = {path.name: sha256_of(path) for path in parts.values()}
    card = data_card(tables, digests, sources, license, audit)
    _write_text([card], out / "README.md")
    return [*written, out / "README.md"]


def _write_parquet(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table.replace_schema_metadata(None), partial, compression="zstd")
    os.replace(partial, path)


def _write_text(pieces: Iterable[str], path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(pieces)
    os.replace(partial, path)
