"""The model card: what a checkpoint was trained on, how, and what came out, in Markdown beside its weights."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.splits.release import release_page, summarize
from models.parameters import ParameterError, TrainingParameters
from models.stages import stages_of

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LONGEST_LIST = 8
TEACHES = {
    "reading": "to find what is stated in words among the options; text alone",
    "naming": "the cells of the prior alone: whose they are",
    "grounding": "the geometry module alone: where to look and what to say",
    "videos": "to answer questions about videos; everything together",
}
# Keys of training.json with the questions that could not be used, by side of the release.
LEFT_OUT = {"skipped": "train", "skipped_val": "val"}


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
    told_apart = ("parameters", "questions_seen", "kept", "base_sha256", *LEFT_OUT)
    outcome = {name: value for name, value in training.items() if name not in told_apart}
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
            "Each identity is the hash DVC gives the artifact; the release names every clip by its bytes. Base weights "
            "are named by the SHA-256 of their files.",
            _table("input", "identity", flatten(lineage) | base_identity(training)),
            "## Questions left out",
            _rows(left_out(training), "None: every question could be used."),
            "## Stages",
            _rows(stages(training), "None recorded."),
            escape_markdown(guidance_line(parameters)),
            "## Parameters",
            _table("parameter", "value", flatten(parameters)),
            "## What came out",
            escape_markdown(kept_line(training)),
            _table("figure", "value", flatten(outcome)),
            "## How good it is",
            "The benchmark report says so and names this checkpoint by its hash. Figures above are from "
            "training and are no substitute: always read an accuracy beside chance (25 %) and beside the same "
            "model without the video.\n",
        ]
    )


def base_identity(training: Mapping[str, Any]) -> dict[str, str]:
    """Hash of the weights that training began with, nothing where the model was made from nothing."""
    digest = training.get("base_sha256")
    return {"base weights": str(digest)} if digest else {}


def left_out(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How many questions could not be used, by side of the release and reason."""
    return [
        {"side": side, "reason": reason, "questions": count}
        for name, side in LEFT_OUT.items()
        for reason, count in sorted(training.get(name, {}).items())
    ]


def stages(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a training in their order, with steps and questions.

    Raises:
        CardError: the parameters are none of this project's.
    """
    try:
        planned = stages_of(TrainingParameters.from_mapping(training.get("parameters", {})))
    except ParameterError as error:
        raise CardError(f"training.json: {error}; train the checkpoint again") from error
    seen = training.get("questions_seen", {})
    return [
        {
            "stage": stage.name,
            "teaches": TEACHES[stage.name],
            "steps": stage.steps,
            "questions seen": seen.get(stage.name, "not recorded"),
        }
        for stage in planned
    ]


def guidance_line(parameters: Mapping[str, Any]) -> str:
    """What training said beside the answers."""
    weights = {name: weight for name, weight in parameters.get("guidance", {}).items() if weight}
    listed = ", ".join(f"{name} {_plain(weight)}" for name, weight in sorted(weights.items()))
    return f"Said beside the answers, by weight: {listed}." if listed else "Nothing was said beside the answers."


def kept_line(training: Mapping[str, Any]) -> str:
    """Which weights of the training these are."""
    kept = training.get("kept", {})
    if "step" not in kept:
        return "Which weights were kept is not recorded."
    line = f"The {kept['which']} weights, of step {kept['step']} of {training.get('steps', 'unknown')}"
    if "best_step" not in kept:
        return f"{line}; the validation questions were not asked."
    accuracy = f"accuracy on validation questions was {_plain(kept['best_accuracy'])}"
    return f"{line}. The best {accuracy}, at step {kept['best_step']}."


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
    return _rows([{name: key, value: text} for key, text in rows.items()], "None recorded.")


def _rows(rows: Sequence[Mapping[str, Any]], otherwise: str) -> str:
    """Rows of the same keys as a table, or what to say where there are none."""
    if not rows:
        return otherwise
    lines = [[*rows[0]], ["---"] * len(rows[0]), *(map(escape_markdown, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"{path}: cannot be read ({type(error).__name__}); train the checkpoint again") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: holds no mapping; train the checkpoint again")
    return content
