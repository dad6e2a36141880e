"""A second derivation of answers: one question at a time, in plain loops, written from the paper and not from ours.

It shares no code with `assets.questions.states`; the thresholds and the words are the paper's (section 3.3 and the
supplement). What agrees here was derived twice.
"""

from __future__ import annotations

import json
from itertools import pairwise
from math import acos, degrees, sqrt

from assets.geometry.record import SceneRecord

CONSTANT, LARGER, SMALLER = "Keep nearly constant", "Becomes larger", "Becomes smaller"
DRIFT_LARGER, DRIFT_SMALLER = f"{CONSTANT} and then become larger", f"{CONSTANT} and then become smaller"
AXES = (("Front", "Behind"), ("Left", "Right"), ("Above", "Below"))
SHRINK, GROWTH, SLOWER, FASTER, AXIS_DEGREES = 0.8, 1.2, 0.83, 1.2, 70.0

Vector = list[float]


def states(record: SceneRecord, row: dict) -> list[str]:
    """States of a question's answer, from the record, the names and times of the row, and its notion of stillness.

    Args:
        record: the clip's scene record.
        row: a row of a questions or candidates table; read are its type, viewpoint, targets, interval, and from its
            evidence the times of the described steps and the length that counts as zero.
    """
    family, evidence = row["type"].partition("_")[2], json.loads(row["evidence"])
    frames = [_frame(record, time) for time in evidence["times"]]
    still = evidence["thresholds"]["still"]
    former, latter = (row["targets"] + [None])[:2]
    if family == "dis":
        return trend([max(_length(_apart(record, former, latter, f)), still) for f in frames])
    if family == "spd":
        return trend([max(speed, still) for speed in _speeds(record, row, former, frames)])
    if family == "spd_comp":
        both = zip(_speeds(record, row, former, frames), _speeds(record, row, latter, frames), strict=True)
        return merged([compared(max(one, still), max(other, still)) for one, other in both])
    if family == "dir":
        seen = [_seen(record, row, _apart(record, former, latter, f), f) for f in frames]
    elif family == "ori":
        seen = [_seen(record, row, _axes(record, former, f)[0], f) for f in frames]
    else:
        start, end = (_seen_place(record, row, former, f) for f in (frames[0], frames[-1]))
        seen = [_minus(end, start)]
    return merged([named(vector) for vector in seen])


def trend(values: list[float], shrink: float = SHRINK, growth: float = GROWTH) -> list[str]:
    """Runs of nearly constant values, ended by a jump, by a drift from where the run began, or by the end."""
    said: list[str] = []
    began, pending = values[0], False
    for before, now in pairwise(values):
        if now > growth * before or now < shrink * before:
            said += [CONSTANT] * pending + [LARGER if now > before else SMALLER]
            began, pending = now, False
        elif now > growth * began or now < shrink * began:
            said.append(DRIFT_LARGER if now > began else DRIFT_SMALLER)
            began, pending = now, False
        else:
            pending = True
    return merged(said + [CONSTANT] * pending)


def compared(former: float, latter: float) -> str:
    """Which of two speeds is larger."""
    if former / latter > FASTER:
        return "The former is faster"
    return "The latter is faster" if former / latter < SLOWER else "Nearly the same"


def named(vector: Vector) -> str:
    """The axes that a vector (x forward, y left, z up) is close to."""
    length, words = _length(vector), []
    for component, (plus, minus) in zip(vector, AXES, strict=True):
        angle = degrees(acos(max(-1.0, min(1.0, component / length))))
        if angle < AXIS_DEGREES:
            words.append(plus)
        elif angle > 180 - AXIS_DEGREES:
            words.append(minus)
    return "|".join(words)


def merged(said: list[str]) -> list[str]:
    """Equal neighbours are said once."""
    return [state for place, state in enumerate(said) if place == 0 or state != said[place - 1]]


def _frame(record: SceneRecord, time: float) -> int:
    return min(range(len(record.timestamps)), key=lambda frame: abs(float(record.timestamps[frame]) - time))


def _pose(record: SceneRecord, frame: int) -> list[Vector]:
    """Rows of the camera-to-world pose; where the camera's path is unknown, the world is the camera of the instant."""
    if record.provenance.get("poses") == "unknown":
        return [[float(row == column) for column in range(4)] for row in range(4)]
    return [[float(value) for value in row] for row in record.world_from_camera[frame]]


def _place(record: SceneRecord, name: str, frame: int) -> Vector:
    if name == "camera":
        return [row[3] for row in _pose(record, frame)[:3]]
    return [float(value) for value in record.centers_world[record.names.index(name), frame]]


def _axes(record: SceneRecord, name: str, frame: int) -> list[Vector]:
    """Forward, left and up of the camera or an agent, in the world."""
    if name == "camera":
        right, down, forward = ([row[column] for row in _pose(record, frame)[:3]] for column in range(3))
        return [forward, [-value for value in right], [-value for value in down]]
    forward = _unit([float(value) for value in record.forward_world[record.names.index(name), frame]])
    up = _unit([float(value) for value in record.provenance.get("up_world") or (0.0, -1.0, 0.0)])
    left = _unit(_cross(up, forward))
    return [forward, left, _cross(forward, left)]


def _viewed_from(record: SceneRecord, row: dict, frame: int) -> int:
    """An absolute viewpoint stays at its moment; a relative one is where it is."""
    return frame if row["viewpoint_time"] is None else _frame(record, row["viewpoint_time"])


def _seen(record: SceneRecord, row: dict, vector: Vector, frame: int) -> Vector:
    """A world vector along the axes of the viewpoint."""
    axes = _axes(record, row["viewpoint_subject"], _viewed_from(record, row, frame))
    return [sum(a * b for a, b in zip(axis, vector, strict=True)) for axis in axes]


def _seen_place(record: SceneRecord, row: dict, name: str, frame: int) -> Vector:
    eye = _place(record, row["viewpoint_subject"], _viewed_from(record, row, frame))
    return _seen(record, row, _minus(_place(record, name, frame), eye), frame)


def _speeds(record: SceneRecord, row: dict, name: str, frames: list[int]) -> list[float]:
    places = [_seen_place(record, row, name, frame) for frame in frames]
    seconds = [float(record.timestamps[after] - record.timestamps[before]) for before, after in pairwise(frames)]
    moved = [_length(_minus(after, before)) for before, after in pairwise(places)]
    return [length / time for length, time in zip(moved, seconds, strict=True)]


def _apart(record: SceneRecord, former: str, latter: str, frame: int) -> Vector:
    return _minus(_place(record, former, frame), _place(record, latter, frame))


def _minus(one: Vector, other: Vector) -> Vector:
    return [a - b for a, b in zip(one, other, strict=True)]


def _cross(a: Vector, b: Vector) -> Vector:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _length(vector: Vector) -> float:
    return sqrt(sum(component * component for component in vector))


def _unit(vector: Vector) -> Vector:
    return [component / _length(vector) for component in vector]
