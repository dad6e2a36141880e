"""Published benchmarks behind one interface: their questions, what could not be used of them, where their videos lie.

A suite is read from the file as it was published (`assets/benchmark/official`, one module per benchmark). What is in it
is hostile: sizes are bounded, types checked, and a video's name is only ever compared with names of files there are.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from assets.benchmark.boxes import rescale_text
from assets.reuse import sha256_of

# The modules of assets/benchmark/official, under the names that parameters and reports use.
SUITES = ("dsr_bench", "vlm4d", "sti_bench", "vsi_bench", "video_mme")
VIDEO_SUFFIXES = frozenset([".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv"])
MOST_FILES = 2_000_000
# Thresholds of the mean relative accuracy, as VSI-Bench publishes it.
THRESHOLDS = np.linspace(0.5, 0.95, 10)


class SuiteError(ValueError):
    """A benchmark's file or its folder of videos cannot be used as it is."""


@dataclass(frozen=True)
class Item:
    """One question of a published benchmark.

    Attributes:
        item_id: the publisher's id where it gives a plain one, else a hash of the content; unique within its suite.
        video: the publisher's name of the video, with the folder it is published in if there is one ("davis/bear");
            never used as a path.
        type: the publisher's own category.
        question: as the model is to read it; boxes are in pixels of the publisher's frame until ``for_clip``.
        options: without their letters; () for a numeric answer.
        answer: letter "A" to "Z" of the right option, or the number as text.
        visible_until: s; frames after it are hidden from the model. None hides none.
        segment: (start, end) in s that the question names; the whole video is shown all the same. None for all of it.
        frame_limit: (width, height) in pixels of the largest frame that the publisher's boxes are given in; a clip of
            another shape was scaled to fit inside. None where there are no boxes.
        hidden_seconds: how much of the clip's end is to be hidden from the model, where that follows from the type.
    """

    item_id: str
    video: str
    type: str
    question: str
    options: tuple[str, ...]
    answer: str
    visible_until: float | None = None
    segment: tuple[float, float] | None = None
    frame_limit: tuple[int, int] | None = None
    hidden_seconds: float = 0.0


@dataclass(frozen=True)
class Unusable:
    """A row of the published file that is no question: its number (as the file counts, from 0) and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class Suite:
    """A published benchmark as it was read.

    Attributes:
        name: one of ``SUITES``.
        version: of the reading; it changes when the same file gives other items.
        items: the questions, in the file's order.
        unusable: the other rows.
        digest: sha256 of the published file.
    """

    name: str
    version: str
    items: tuple[Item, ...]
    unusable: tuple[Unusable, ...]
    digest: str


@dataclass(frozen=True)
class Videos:
    """Where the videos of a suite are, by the publisher's names, and for the others why there is none."""

    found: dict[str, Path]
    missing: dict[str, str]


def read_suite(name: str, path: Path) -> Suite:
    """Read a benchmark from its published file.

    Args:
        name: one of ``SUITES``.
        path: the file as its publisher gives it; the suite's module says which.

    Raises:
        SuiteError: no such suite, or no question in the file.
        OfficialFormatError: the file is not in the suite's format, damaged or too large.
    """
    if name not in SUITES:
        raise SuiteError(f"no benchmark {name!r}; choose one of {', '.join(SUITES)}")
    module = importlib.import_module(f"assets.benchmark.official.{name}")
    items, unusable = module.read(Path(path))
    if not items:
        why = f"for example row {unusable[0].row}: {unusable[0].reason}" if unusable else "it is empty"
        raise SuiteError(f"{path}: no question of {name} can be used, {why}; give the published file")
    return Suite(name, module.VERSION, tuple(items), tuple(unusable), sha256_of(Path(path)))


def for_clip(item: Item, width: int, height: int, seconds: float) -> Item:
    """An item as it is asked of a clip: boxes in the clip's pixels, the end hidden that its type hides.

    Args:
        item: of a suite.
        width: of the clip's frames, pixels.
        height: of the clip's frames, pixels.
        seconds: how long the clip is.

    Raises:
        BoxError: a box lies outside the frame it is said to be given in, or the clip has no size.
    """
    if item.hidden_seconds:
        last = max(0.0, seconds - item.hidden_seconds)
        item = replace(item, visible_until=last if item.visible_until is None else min(last, item.visible_until))
    if item.frame_limit is None:
        return item
    question, *options = (
        rescale_text(text, item.frame_limit, (width, height)) for text in (item.question, *item.options)
    )
    return replace(item, question=question, options=tuple(options))


def credit(item: Item, answer: str | None) -> float:
    """What an answer is worth, 0..1: right or wrong for a letter, the mean relative accuracy for a number."""
    if item.options:
        return float(answer == item.answer)
    try:
        said = float(answer) if answer is not None else math.nan
    except ValueError:
        said = math.nan
    return mean_relative_accuracy(said, float(item.answer))


def mean_relative_accuracy(said: float, truth: float) -> float:
    """Share of the ten thresholds under which a number is right: |said - truth| / truth <= 1 - threshold.

    "Thinking in Space" (VSI-Bench), arXiv 2412.14171, section 3.2, with the "<=" of its published evaluation. The truth
    is positive; a number that is not finite is worth nothing.
    """
    if not math.isfinite(said):
        return 0.0
    # A last-bit error must not decide at a threshold.
    return float(np.mean(abs(said - truth) / truth <= 1 - THRESHOLDS + 1e-9))


def match_videos(suite: Suite, folder: Path) -> Videos:
    """Find the video of every item in a folder and the folders below it, by name.

    A file is a video's if its name without suffix is the publisher's; where the publisher names a folder too,
    "davis/bear" may also lie there as "davis_bear.mp4", and the folder decides between several of one name. Where
    nothing is spelt so, case and signs such as "-" and "_" are not told apart. No path is built from a suite's names.

    Raises:
        SuiteError: the folder is missing or holds too many files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SuiteError(f"{folder}: no such folder; give the one that holds the videos of {suite.name}")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in _video_files(folder):
        for name in {path.stem, _plain(path.stem)}:
            by_name[name].append(path)
    found, missing = {}, {}
    for video in dict.fromkeys(item.video for item in suite.items):
        paths = _candidates(video, by_name)
        reason = _why_not(paths, folder)
        if reason:
            missing[video] = reason
        else:
            found[video] = paths[0]
    return Videos(found, missing)


def _video_files(folder: Path) -> Iterator[Path]:
    """Every video file below a folder in order, except hidden ones; links to folders are not followed."""
    seen = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(files)
        if seen > MOST_FILES:
            raise SuiteError(f"{folder}: more than {MOST_FILES} files; give the folder of the videos alone")
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield Path(place, name)


def _plain(name: str) -> str:
    """A name in which case and signs are not told apart; it cannot be a file's own, as it holds a slash."""
    return "/" + re.sub(r"[\W_]+", "_", name.casefold())


def _candidates(video: str, by_name: dict[str, list[Path]]) -> list[Path]:
    """The files that a video's name may mean; the closest spelling that any file has."""
    parts = PurePosixPath(video).parts[-2:]
    for spelt in (str, _plain):
        if paths := by_name.get(spelt(parts[-1])):
            inside = [path for path in paths if len(parts) > 1 and spelt(path.parent.name) == spelt(parts[0])]
            return inside or paths
        if paths := by_name.get(spelt("_".join(parts))):
            return paths
    return []


def _why_not(paths: list[Path], folder: Path) -> str | None:
    """Why these files do not give one video, or None."""
    if not paths:
        return "no file of this name"
    if len(paths) > 1:
        shown = ", ".join(ascii(str(path.relative_to(folder))) for path in paths[:3])
        return f"{len(paths)} files of this name: {shown}; keep one"
    try:
        with paths[0].open("rb") as file:
            head = file.read(64)
    except OSError as error:
        return f"its file cannot be read ({error.strerror})"
    if not head:
        return "its file is empty; download it again"
    return (
        "its file is a Git LFS pointer; fetch it with `git lfs pull`"
        if head.startswith(b"version https://git-lfs")
        else None
    )
