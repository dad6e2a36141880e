"""From trajectories to procedural answers: series of numbers, states, merged states.

Everything is batched as (K, n, …): K noise draws of one scene, n candidates of one family. Names follow the paper's
section 2: *dis* distance, *dir* direction, *ori* orientation, *spd* speed, *spd_comp* comparison
of two speeds, *dir_pred* prediction of a moving direction.
"""

from dataclasses import dataclass, replace

import numpy as np

from assets.questions.parameters import QuestionParameters

TREND_STATES = (
    "Keep nearly constant",
    "Becomes larger",
    "Becomes smaller",
    "Keep nearly constant and then become larger",
    "Keep nearly constant and then become smaller",
)
SPEED_STATES = ("Nearly the same", "The former is faster", "The latter is faster")
_AXIS_WORDS = (("", "Front", "Behind"), ("", "Left", "Right"), ("", "Above", "Below"))
DIRECTION_STATES = tuple(
    "|".join(word for word in (front, left, above) if word)
    for front in _AXIS_WORDS[0]
    for left in _AXIS_WORDS[1]
    for above in _AXIS_WORDS[2]
)
STATE_TEXTS = {
    "dis": TREND_STATES,
    "spd": TREND_STATES,
    "spd_comp": SPEED_STATES,
    "dir": DIRECTION_STATES,
    "ori": DIRECTION_STATES,
    "dir_pred": DIRECTION_STATES,
}
NONE = -1
SIGNIFICANT_DIGITS = 6
# The longest described step of an interval takes at most so many times the shortest.
EVEN = 1.25


@dataclass(frozen=True)
class Thresholds:
    """Where one state ends and the next begins; ``still`` is in scene units (and scene units per second)."""

    shrink: float
    growth: float
    slower: float
    faster: float
    axis_degrees: float
    still: float

    @classmethod
    def of(cls, parameters: QuestionParameters, still: float) -> "Thresholds":
        """Take the ratios and the angle from the parameters; ``still`` depends on the scene."""
        return cls(
            parameters.shrink,
            parameters.growth,
            parameters.slower,
            parameters.faster,
            parameters.axis_degrees,
            float(significant(still)),
        )

    def tolerated(self, ratio: float, degrees: float) -> "list[Thresholds]":
        """Return the thresholds moved inwards and outwards by a tolerance."""
        return [
            replace(
                self,
                shrink=self.shrink - sign * ratio,
                growth=self.growth + sign * ratio,
                slower=self.slower - sign * ratio,
                faster=self.faster + sign * ratio,
                axis_degrees=self.axis_degrees + sign * degrees,
            )
            for sign in (-1, 1)
        ]


@dataclass(frozen=True)
class Scene:
    """Where everything is and looks, in world coordinates; the camera is the last entity.

    ``times`` (T,) s; ``positions`` (K,N+1,T,3); ``axes`` (K,N+1,T,3,3), whose rows are the forward, left and up unit
    vectors of a viewer in world coordinates. NaN where unseen, and in ``axes`` where nothing can look (objects that
    are no agents, headings of low confidence).
    """

    times: np.ndarray
    positions: np.ndarray
    axes: np.ndarray

    @property
    def camera(self) -> int:
        """Index of the camera among the entities."""
        return self.positions.shape[1] - 1


@dataclass(frozen=True)
class Candidates:
    """n possible questions of one type as parallel (n,) integer arrays.

    ``viewpoint``, ``former`` and ``latter`` are entities (``latter`` is NONE for one target); ``moment`` is the frame
    at which the viewpoint is frozen (NONE: it moves); ``start`` and ``end`` are the frames of the interval.
    """

    viewpoint: np.ndarray
    moment: np.ndarray
    former: np.ndarray
    latter: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, which: np.ndarray) -> "Candidates":
        """Select candidates by a mask or by indices."""
        return Candidates(**{name: column[which] for name, column in vars(self).items()})


def significant(values: np.ndarray, digits: int = SIGNIFICANT_DIGITS) -> np.ndarray:
    """Round to significant digits, whatever the scale; what is stored and what is described are the same numbers."""
    values = np.asarray(values, np.float64)
    magnitude = np.floor(np.log10(np.where(values == 0, 1.0, np.abs(values))))
    power = 10.0 ** np.clip(digits - 1 - magnitude, -30, 30)
    return np.round(values * power) / power


def series(scene: Scene, family: str, candidates: Candidates, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the numbers that the states of each candidate come from.

    Args:
        scene: K draws of one scene.
        family: one of ``row.FAMILIES``.
        candidates: n candidates; ``end - start`` is a multiple of ``stride`` (except for *dir_pred*).
        stride: sampled steps per described step.

    Returns:
        values: *dis* (K,n,F) scene units; *spd* (K,n,F-1) scene units per second; *spd_comp* (K,n,F-1,2) the same for
            the former and the latter; *dir*, *ori* (K,n,F,3) vectors in the viewpoint's frame (x forward, y left,
            z up); *dir_pred* (K,n,1,3) displacement in the viewpoint's frame. Rounded to 6 significant digits.
        valid: (n,F or F-1) which of them lie inside the interval.
        frames: (n,F) sampled frame of every described step, clipped to the end.
    """
    if family == "dir_pred":
        frames = np.stack([candidates.start, candidates.end], axis=1)
        inside = np.ones(frames.shape, bool)
    else:
        steps = (candidates.end - candidates.start) // stride
        offsets = np.arange(steps.max(initial=0) + 1)
        frames = np.minimum(candidates.start[:, None] + stride * offsets, candidates.end[:, None])
        inside = offsets <= steps[:, None]
    view = np.where(candidates.moment[:, None] == NONE, frames, candidates.moment[:, None])
    if family == "dis":
        apart = _positions(scene, candidates.former, frames) - _positions(scene, candidates.latter, frames)
        return significant(np.linalg.norm(apart, axis=-1)), inside, frames
    axes = scene.axes[:, candidates.viewpoint[:, None], view]
    if family == "dir":
        apart = _positions(scene, candidates.former, frames) - _positions(scene, candidates.latter, frames)
        return significant(_turn(axes, apart)), inside, frames
    if family == "ori":
        forward = scene.axes[:, candidates.former[:, None], frames, 0]
        return significant(_turn(axes, forward)), inside, frames
    origin = _positions(scene, candidates.viewpoint, view)
    moved = [
        np.diff(_turn(axes, _positions(scene, target, frames) - origin), axis=2)
        for target in (candidates.former, candidates.latter)[: 2 if family == "spd_comp" else 1]
    ]
    if family == "dir_pred":
        return significant(moved[0]), inside[:, 1:], frames
    seconds = np.where(inside[:, 1:], np.diff(scene.times[frames], axis=1), 1.0)
    speeds = [significant(np.linalg.norm(step, axis=-1) / seconds) for step in moved]
    return (np.stack(speeds, axis=-1) if family == "spd_comp" else speeds[0]), inside[:, 1:], frames


def _positions(scene: Scene, entity: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(K,n,F,3) world positions of one entity per candidate."""
    return scene.positions[:, entity[:, None], frames]


def _turn(axes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Express world vectors (…,3) in frames whose rows are ``axes`` (…,3,3)."""
    return np.einsum("...ij,...j->...i", axes, vectors)


def describe(family: str, values: np.ndarray, valid: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Name the state of every described step.

    Args:
        family: one of ``row.FAMILIES``.
        values: as ``series`` returns them, (K,n,L) or (K,n,L,·).
        valid: (n,L).
        thresholds: where states end.

    Returns:
        (K,n,L) int8 indices into ``STATE_TEXTS[family]``, NONE where not valid. *dis* has one label per step, so L-1.
    """
    if family in ("dis", "spd"):
        return _trends(np.maximum(values, thresholds.still), valid, thresholds)
    if family == "spd_comp":
        floored = np.maximum(values, thresholds.still)
        ratio = floored[..., 0] / floored[..., 1]
        labels = np.where(ratio > thresholds.faster, 1, np.where(ratio < thresholds.slower, 2, 0))
    else:
        labels = directions(values, thresholds)
    return np.where(valid, labels, NONE).astype(np.int8)


def directions(vectors: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Name the axes to which viewer-frame vectors (…,3) are close: (…) int8 index into ``DIRECTION_STATES``."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosine = vectors / np.where(norm > 0, norm, 1.0)
    limit = np.cos(np.radians(thresholds.axis_degrees))
    named = np.where(cosine > limit, 1, np.where(cosine < -limit, 2, 0))
    return (named @ np.array([9, 3, 1])).astype(np.int8)


def _trends(values: np.ndarray, valid: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """(K,n,L) positive values to (K,n,L-1) trend labels.

    A step is *larger* or *smaller* where its value leaves the band around the previous one; otherwise the run of
    nearly constant values goes on until it has drifted out of the band around its own first value, and the whole run
    is then named "keep nearly constant and then become …".
    """
    first = values[..., 0].copy()
    labels = np.full((*values.shape[:2], max(values.shape[2] - 1, 0)), NONE, np.int8)
    for step in range(labels.shape[2]):
        now = values[..., step + 1]
        jump, drift = now / values[..., step], now / first
        label = np.select(
            [
                jump > thresholds.growth,
                jump < thresholds.shrink,
                drift > thresholds.growth,
                drift < thresholds.shrink,
            ],
            [1, 2, 3, 4],
            0,
        )
        labels[..., step] = np.where(valid[:, step + 1], label, NONE)
        first = np.where(label == 0, first, now)
    for step in range(labels.shape[2] - 2, -1, -1):
        run = (labels[..., step] == 0) & (labels[..., step + 1] >= 3)
        labels[..., step] = np.where(run, labels[..., step + 1], labels[..., step])
    return labels


def merge(labels: np.ndarray) -> np.ndarray:
    """Merge equal consecutive labels: (…,L) int8 with NONE anywhere → (…,L) left-justified, NONE behind."""
    packed = _left(labels)
    if packed.shape[-1] < 2:
        return packed
    repeated = np.zeros(packed.shape, bool)
    repeated[..., 1:] = packed[..., 1:] == packed[..., :-1]
    return _left(np.where(repeated, NONE, packed))


def runs(labels: np.ndarray) -> list[int]:
    """For each state of a merged answer the number of labels (L,) that were merged into it."""
    said = labels[labels != NONE]
    begins = np.flatnonzero(np.r_[True, said[1:] != said[:-1]]) if len(said) else np.empty(0, int)
    return np.diff(np.r_[begins, len(said)]).tolist()


def _left(labels: np.ndarray) -> np.ndarray:
    """Move what is not NONE to the front, in its order."""
    rows = labels.reshape(-1, labels.shape[-1])
    packed = np.full(rows.shape, NONE, np.int8)
    said = rows != NONE
    row, _ = np.nonzero(said)
    packed[row, (np.cumsum(said, axis=1) - 1)[said]] = rows[said]
    return packed.reshape(labels.shape)


def meaning(family: str, labels: np.ndarray) -> np.ndarray:
    """Bring labels (…,L) to a form in which two answers are equal exactly if they say the same.

    "Keep nearly constant and then become larger" says the same as "(1) Keep nearly constant. (2) Becomes larger."
    """
    if family not in ("dis", "spd"):
        return merge(labels)
    merged = merge(labels)
    pause = np.where(merged >= 3, 0, NONE)
    change = np.where(merged >= 3, merged - 2, merged)
    return merge(np.stack([pause, change], axis=-1).reshape(*labels.shape[:-1], -1))


def counts(merged: np.ndarray) -> np.ndarray:
    """Number of merged states, (…)."""
    return (merged != NONE).sum(axis=-1)


def key(merged: np.ndarray) -> str:
    """Write one merged sequence (L,) as text, e.g. ``0.1.2``."""
    return ".".join(str(int(label)) for label in merged if label != NONE)
