"""The data card of an exported release: what a data-set hub reads first, generated from the tables themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from assets.questions.build import SPLITS
from assets.questions.row import LETTERS

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
LARGEST = "n>10M"
_ESCAPED = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]()#+!|~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
COLUMNS = {
    "videoID": "the clip, by the hash of its file",
    "type": "one of 12 template types, or non_temp",
    "question": "what is asked",
    "options": "four answers behind the letters A to D",
    "answer": "letter of the right one",
    "viewpoint_kind": "abs: frozen at a time; rel: moves with its subject",
    "viewpoint_subject": "the camera, or what lends its viewpoint",
    "viewpoint_time": "when a frozen viewpoint is taken, s",
    "targets": "what is asked about",
    "interval_start": "start of the interval, s",
    "interval_end": "end of the interval, s",
    "states": "the right answer, state by state",
    "evidence": "the numbers the answer was derived from, as JSON",
    "stability": "share of draws from the geometry's error under which the answer stands",
    "visible_until": "frames after this time, s, are to be hidden from the model",
    "quad": "the four questions that share one set of options",
    "estimator": "where the geometry came from",
    "generator_version": "version of the rules",
}


def data_card(
    tables: Mapping[str, pa.Table],
    files: Mapping[str, str],
    sources: Mapping[str, str],
    license: str,
    audit: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write the card of a data set.

    Args:
        tables: questions of each part; splits make up the default configuration, any other part one of its own.
        files: path inside the data set -> SHA-256.
        sources: file of the release -> SHA-256.
        license: identifier of the licence, as hubs know it.
        audit: rows of a table of blind-audit figures, all with the same keys; none leaves the section out.

    Returns:
        Markdown with YAML front matter. It holds no date and no path of a machine: same release, same card.
    """
    questions = sum(table.num_rows for table in tables.values())
    sections = [
        _front_matter(tables, questions, license),
        "# Questions about how things move in 3D, over time",
        "Four-way multiple choice about videos: how distances, directions, orientations and speeds of moving things "
        "change, seen by the camera or by something in the scene, from a frozen or a moving viewpoint.",
        "## How it was made",
        "Cameras and things are placed in 3D and answers are computed from their trajectories. Every answer is "
        "computed again under draws from the geometry's measured error; answers that waver are dropped. Four "
        "questions share one set of four options, each the right answer of exactly one of them, so the options alone "
        "say nothing. Such a quad never crosses splits, and neither does a source video.",
        "A thing whose name does not tell it from another is called by a mark, such as *car marked 2*: that number has "
        "to be drawn on the video at the thing. Data made with `pointing: boxes` need no marks.",
        _made(tables),
        "## Questions",
        _counts(tables),
        "## Columns",
        _table(
            ["column", "meaning"],
            [
                [name, text]
                for name, text in COLUMNS.items()
                if all(name in table.column_names for table in tables.values())
            ],
        ),
    ]
    if audit:
        names = list(audit[0])
        rows = [[_figure(row.get(name)) for name in names] for row in audit]
        sections += [
            "## What can be answered without the video",
            "Accuracy of readers that see the text only; chance is 0.25.",
            _table(names, rows),
        ]
    sections += [
        "## Identity",
        "SHA-256 of the sealed release this was exported from, and of every file here.",
        _table(["file", "SHA-256"], [[name, digest] for name, digest in [*sources.items(), *files.items()]]),
        "## Before use",
        "Videos are not included; their owners' licences go on to apply to them. Read every accuracy beside chance and "
        "beside the same model without the video. Honour `visible_until`, or predictions can be looked up.\n",
    ]
    return "\n\n".join(sections)


def _front_matter(tables: Mapping[str, pa.Table], questions: int, license: str) -> str:
    filled = [name for name, table in tables.items() if table.num_rows]
    data_files = {name: {"split": name, "path": f"{name}/{name}-*.parquet"} for name in filled}
    together = [data_files[name] for name in filled if name in SPLITS]
    configs = [{"config_name": "default", "data_files": together}] if together else []
    configs += [{"config_name": name, "data_files": [data_files[name]]} for name in filled if name not in SPLITS]
    front = {
        "pretty_name": "Dynamic spatial reasoning questions",
        "license": license,
        "language": ["en"],
        "task_categories": ["video-text-to-text", "multiple-choice"],
        "size_categories": [next((name for limit, name in SIZES if questions < limit), LARGEST)],
        "tags": ["spatial-reasoning", "video-question-answering", "4d"],
        "configs": configs,
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=False)}---"


def _made(tables: Mapping[str, pa.Table]) -> str:
    """One row per part: clips, quads, stability, and where the geometry came from."""
    rows = []
    for name, table in tables.items():
        stability = pc.mean(table["stability"]).as_py() if "stability" in table.column_names else None
        rows.append(
            [
                name,
                str(len(pc.unique(table["videoID"]))),
                str(len(pc.unique(table["quad"]))) if "quad" in table.column_names else "",
                _figure(stability),
                _values(table, "estimator"),
                _values(table, "generator_version"),
            ]
        )
    return _table(["part", "clips", "quads", "mean stability", "geometry from", "rules' version"], rows)


def _values(table: pa.Table, column: str) -> str:
    if column not in table.column_names:
        return ""
    return ", ".join(sorted(map(str, pc.unique(table[column]).to_pylist())))


def _counts(tables: Mapping[str, pa.Table]) -> str:
    """Questions per type and part, and how often each letter is right."""
    counted = {name: _tally(table, "type") for name, table in tables.items()}
    lettered = {name: _tally(table, "answer") for name, table in tables.items()}
    kinds = sorted(set().union(*counted.values()))
    rows = [[kind, *(str(counted[name].get(kind, 0)) for name in tables)] for kind in kinds]
    rows.append(["all", *(str(table.num_rows) for table in tables.values())])
    rows.append(["A / B / C / D", *(" / ".join(str(lettered[n].get(letter, 0)) for letter in LETTERS) for n in tables)])
    return _table(["type", *tables], rows)


def _tally(table: pa.Table, column: str) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(table[column]).to_pylist()}


def _figure(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_line(header), "|" + "---|" * len(header)]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    """One row of a Markdown table, whose cells show as themselves and stay on their line."""
    return f"| {' | '.join(' '.join(str(cell).split()).translate(_ESCAPED) for cell in cells)} |"
