"""Worked examples for the report: which questions to show, and what to show of their clips."""

import base64
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from assets.benchmark.above import View, from_above
from assets.benchmark.parameters import BenchmarkParameters
from assets.geometry.marks import CAMERA, pointed
from models.pixels import Marks, draw_marks

LETTERS = ("A", "B", "C", "D")
# Hues of the targets, told apart also without colour vision (Okabe and Ito, 2008).
TARGET_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
LONGEST_LABEL = 24


@dataclass(frozen=True)
class Option:
    """One option of an example, with what each reader thought of it (shares 0..1)."""

    letter: str
    text: str
    true: bool
    chosen: bool
    model: float
    blind: float


@dataclass(frozen=True)
class Picture:
    """One frame as a data URI, with the moment it shows."""

    source: str
    seconds: float


@dataclass(frozen=True)
class Example:
    """One question as the report shows it; texts are from outside and not escaped."""

    qa_id: str
    clip: str
    type: str
    question: str
    right: bool
    blind_right: bool
    start: float
    end: float
    hidden_after: float | None
    targets: list[tuple[str, str]]
    options: list[Option]
    pictures: list[Picture]
    view: View | None
    estimator: str
    group: str = "sample"
    before_right: bool | None = None


@dataclass(frozen=True)
class Choice:
    """A row to show, and the group it is shown in: "hardest", "improved", "lost" or "sample"."""

    row: int
    group: str


def choose_examples(
    table: pa.Table, model: np.ndarray, before: np.ndarray, right: np.ndarray, before_right: np.ndarray, count: int
) -> list[Choice]:
    """Rows to show: a third the hardest, a third the most improved and lost, the rest a sample that no outcome chose.

    Hardest are wrong answers with the least share on the truth. Improved are questions that only the model has right,
    those first whose share on the truth grew most; lost are those that only the other reader has right, the most
    shrunk first. Within a group types take turns, and clips within a type. Where a group runs out, the sample fills up.

    Args:
        table: (n rows) questions with `type, clip, qa_id`.
        model: (n,) share that the model gave the truth.
        before: (n,) the same of the reader it is held against; its outcome where shares are not known.
        right: (n,) bool, whether the model answered each.
        before_right: (n,) bool, of the other reader.
        count: how many rows to choose.

    Returns:
        Rows in groups. The choice does not depend on the rows' order: among equals, a hash of the question decides.
    """
    order = [hashlib.sha256(str(identity).encode()).hexdigest() for identity in table["qa_id"].to_pylist()]
    gain = model - before
    third = count // 3
    wanted = (
        ("hardest", ~right, model, third),
        ("improved", right & ~before_right, -gain, third - third // 3),
        ("lost", before_right & ~right, gain, third // 3),
        ("sample", np.ones(len(order), bool), np.zeros(len(order)), count),
    )
    types, clips = table["type"].to_pylist(), table["clip"].to_pylist()
    chosen: dict[int, str] = {}
    for group, among, rank, most in wanted:
        seen_types, seen_clips = Counter(), Counter()
        left = {int(i) for i in np.flatnonzero(among)} - chosen.keys()
        for _ in range(min(most, len(left), count - len(chosen))):
            row = min(left, key=lambda i: (seen_types[types[i]], seen_clips[clips[i]], float(rank[i]), order[i]))
            left.remove(row)
            chosen[row] = group
            seen_types[types[row]] += 1
            seen_clips[clips[row]] += 1
    return [Choice(row, group) for row, group in chosen.items()]


def draw_example(
    row: dict[str, Any],
    model: np.ndarray,
    blind: np.ndarray,
    videos: Path,
    geometry: Path,
    parameters: BenchmarkParameters,
    group: str = "sample",
    before_right: bool | None = None,
) -> Example:
    """Everything the report shows of one question.

    Args:
        row: the question row.
        model: (4,) probabilities with the video.
        blind: (4,) probabilities without it.
        videos: folder holding `<shard>/frames/<clip>.safetensors`.
        geometry: folder holding `<shard>/<clip>.safetensors`.
        parameters: how many pictures, how large.
        group: as `Choice`.
        before_right: whether the baseline answered it; None without a baseline.

    Raises:
        RecordError: the scene record cannot be read.
    """
    from assets.geometry.record import load

    file = f"{row['clip']}.safetensors"
    fields = ["timestamps", "world_from_camera", "boxes", "centers_world", "forward_world", "is_agent"]
    record = load(geometry / row["shard"] / file, fields)
    named = dict.fromkeys([*row["targets"], row["viewpoint_subject"]])
    things = [record.names.index(name) for name in named if name in record.names and name != CAMERA]
    colours = {thing: TARGET_COLOURS[i % len(TARGET_COLOURS)] for i, thing in enumerate(things)}
    called = {thing: _called(record, thing) for thing in things}
    pictures = _pictures(videos / row["shard"] / "frames" / file, record, row, colours, parameters)
    asked, shown = (row["interval_start"], row["interval_end"]), [picture.seconds for picture in pictures]
    truth = LETTERS.index(row["answer"])
    return Example(
        qa_id=row["qa_id"],
        clip=row["clip"],
        type=row["type"],
        question=row["question"],
        right=int(np.argmax(model)) == truth,
        blind_right=int(np.argmax(blind)) == truth,
        start=row["interval_start"],
        end=row["interval_end"],
        hidden_after=row["visible_until"],
        targets=[(called[thing], colour) for thing, colour in colours.items()],
        options=[
            Option(letter, text, i == truth, i == int(np.argmax(model)), float(model[i]), float(blind[i]))
            for i, (letter, text) in enumerate(zip(LETTERS, row["options"], strict=True))
        ],
        pictures=pictures,
        view=from_above(record, colours, called, asked, row["visible_until"], shown),
        estimator=row["estimator"],
        group=group,
        before_right=before_right,
    )


def shown_moments(
    timestamps: np.ndarray, start: float, end: float, visible_until: float | None, count: int
) -> np.ndarray:
    """Which frames to show: evenly over the interval, never one that was hidden from the model.

    Args:
        timestamps: (T,) seconds, ascending.
        start: of the interval, seconds.
        end: of the interval, seconds.
        visible_until: frames after it are hidden; None hides none.
        count: how many at most.

    Returns:
        (<= count,) distinct frame numbers, ascending. Where hidden frames leave too few of the interval, those that
        lead up to it.
    """
    last = end if visible_until is None else min(end, visible_until)
    inside = np.flatnonzero((timestamps >= start - 1e-6) & (timestamps <= last + 1e-6))
    if not len(inside) or (visible_until is not None and len(inside) < count):
        visible = np.flatnonzero(timestamps <= last + 1e-6)
        inside = visible[-count:] if len(visible) else np.array([0])
    return np.unique(inside[np.round(np.linspace(0, len(inside) - 1, count)).astype(int)])


def _called(record: Any, thing: int) -> str:
    """What questions call a thing of a clip that can be watched."""
    return pointed(record.names[thing], record.marks[thing])


def _pictures(
    path: Path, record: Any, row: dict[str, Any], colours: dict[int, str], parameters: BenchmarkParameters
) -> list[Picture]:
    """Frames of the interval as the model sees them, with the boxes of what the question is about."""
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        timestamps = file.get_tensor("timestamps")
        frames = file.get_slice("frames")
        shown = shown_moments(
            timestamps, row["interval_start"], row["interval_end"], row["visible_until"], parameters.frames_per_example
        )
        images = [frames[int(i) : int(i) + 1][0] for i in shown]
    return [
        Picture(
            _framed(image, *_seen_at(record, float(timestamps[i]), colours), parameters), round(float(timestamps[i]), 3)
        )
        for i, image in zip(shown, images, strict=True)
    ]


def _seen_at(record: Any, seconds: float, colours: dict[int, str]) -> tuple[Marks, list[tuple[str, str, np.ndarray]]]:
    """Every mark of a moment, and (name, colour, (4,) box) of each target seen then; boxes as shares of the frame."""
    moment = int(np.argmin(np.abs(record.timestamps - seconds)))
    height, width = record.frame_size
    if not width or not height:
        return Marks((), np.empty((0, 1, 4))), []
    boxes = np.clip(record.boxes[:, moment] / [width, height, width, height], 0, 1)
    marked = np.flatnonzero(record.marks)
    targets = [
        (_called(record, thing), colour, boxes[thing])
        for thing, colour in colours.items()
        if np.isfinite(boxes[thing]).all()
    ]
    return Marks(tuple(record.marks[thing] for thing in marked), boxes[marked, None]), targets


def _framed(
    image: np.ndarray, marks: Marks, boxes: list[tuple[str, str, np.ndarray]], parameters: BenchmarkParameters
) -> str:
    """A (h, w, 3) frame as a small JPEG data URI with marks, boxes and names drawn in."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[:2]
    size = (parameters.picture_width, max(1, round(height * parameters.picture_width / width)))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    picture = Image.fromarray(draw_marks(resized[None], marks)[0])
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for name, colour, box in boxes:
        left, top, right, bottom = (box * [*size, *size]).tolist()
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
        label = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
        across, down = pen.textbbox((0, 0), label, font=font)[2:]
        x = max(0, min(left, size[0] - across - 4))
        y = top - down - 3 if top >= down + 3 else min(bottom, size[1] - down - 3)
        pen.rectangle((x, y, x + across + 4, y + down + 3), fill=colour)
        pen.text((x + 2, y + 1), label, fill="black", font=font)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=parameters.picture_quality, optimize=True)
    return _data_uri(buffer.getvalue(), "image/jpeg")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
