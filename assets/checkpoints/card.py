"""The model card: what a checkpoint was trained on, how, and what came out, in Markdown beside its weights."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assets.splits.release import release_page, summarize

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LONGEST_LIST = 8


class CardError(ValueError):
    """A card cannot be written because the checkpoint lacks what it is about."""


def model_card(checkpoint: Path, splits: Path) -> str:
    """Write the card of a trained checkpoint.

    Args:
        checkpoint: model folder holding `training.json` (parameters and outcome) and `lineage.json` (identity of
            each input, as DVC gives it).
        splits: folder of the release it was trained on.

    Returns:
        Markdown with the front matter that model hubs read. It holds no date and no path: same checkpoint, same
        card.

    Raises:
        CardError: `training.json` or `lineage.json` is missing or damaged.
        ReleaseError: the release is.
    """
    training, lineage = (_read_json(checkpoint / name) for name in ("training.json", "lineage.json"))
    summary = summarize(release_page(splits))
    parameters = training.get("parameters", {})
    outcome = {name: value for name, value in training.items() if name != "parameters"}
    return "\n\n".join(
        [
            _front_matter(parameters),
            "# GSM on Qwen: reasoning about moving things in 3D",
            "A Qwen vision-language model with a Geometry Selection Module: learned queries read the question, then "
            "the geometry of the clip, and join the vision tokens. It answers multiple-choice questions about how "
            "things move in a video, as seen by the camera or by something in the scene.",
            "## Trained on",
            f"{summary['train']} questions. The {summary['val']} validation questions and the bench's "
            f"{summary['bench']} come from other source videos and were never trained on. "
            f"{summary['clips']} clips in all.",
            summary["by_type"],
            "## Inputs",
            "Each identity is the hash DVC gives the artifact; the release names every clip by its bytes.",
            _table("input", "identity", flatten(lineage)),
            "## Parameters",
            _table("parameter", "value", flatten(parameters)),
            "## What came out",
            _table("figure", "value", flatten(outcome)),
            "## How good it is",
            "The benchmark report says so and names this checkpoint by its hash. Figures above are from "
            "training and are no substitute: always read an accuracy beside chance (25 %) and beside the same "
            "model without the video.\n",
        ]
    )


def escape_markdown(text: Any) -> str:
    """A text that shows as itself in Markdown, inside or outside a table, and stays on its line."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", flat)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one: `{"a": {"b": 1}}` becomes `{"a.b": "1"}`, sorted by name; long lists are counted."""
    flat: dict[str, str] = {}
    for name in sorted(mapping, key=str):
        value = mapping[name]
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and len(value) > LONGEST_LIST:
            flat[f"{prefix}{name}"] = f"{len(value)} values"
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{name}"] = ", ".join(map(_plain, value))
        else:
            flat[f"{prefix}{name}"] = _plain(value)
    return flat


def _plain(value: Any) -> str:
    """One value for people: six digits of a float, "none" for nothing."""
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _front_matter(parameters: Mapping[str, Any]) -> str:
    base = parameters.get("base")
    lines = ["---", "library_name: transformers", "pipeline_tag: video-text-to-text"]
    # A local folder as base would tell where it lies on one machine.
    if isinstance(base, str) and HUB_NAME.fullmatch(base):
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join([*lines, "tags: [spatial-reasoning, video-question-answering, geometry]", "---"])


def _table(name: str, value: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return "None recorded."
    lines = [f"| {name} | {value} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {escape_markdown(k)} | {escape_markdown(v)} |" for k, v in rows.items())])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"{path}: cannot be read ({type(error).__name__}); train the checkpoint again") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: holds no mapping; train the checkpoint again")
    return content
