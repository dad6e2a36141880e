"""Every question that one clip's geometry can answer, a balanced choice of them, and their stability."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from assets.geometry.frames_of_reference import LEVEL_UP, viewer_from_world
from assets.geometry.record import SceneRecord, load
from assets.processes import processes
from assets.questions.compositional import derive_compositional, rederive_program
from assets.questions.parameters import QuestionParameters
from assets.questions.pointing import Pointing
from assets.questions.row import (
    CANDIDATES,
    DROPPED,
    GENERATOR_VERSION,
    NON_TEMPLATE,
    REFUSALS,
    TEMPLATE_TYPES,
    content_id,
    content_seed,
    write_table,
)
from assets.questions.stability import noisy, shares
from assets.questions.states import (
    EVEN,
    NONE,
    STATE_TEXTS,
    Candidates,
    Scene,
    Thresholds,
    counts,
    describe,
    key,
    meaning,
    merge,
    runs,
    series,
)
from assets.questions.wording import CAMERA, clean_names, question_text
from assets.text_model import open_text_model

RECORD_FIELDS = (
    "timestamps",
    "world_from_camera",
    "is_agent",
    "boxes",
    "centers_world",
    "forward_world",
    "forward_confidence",
)
# How often the number of kept candidates is looked at for stability at most.
ATTEMPTS = 3
TWO_TARGETS = frozenset({"dis", "dir", "spd_comp"})
# What stays true where the camera's own motion is unknown: what is compared within one instant or seen from something
# that moves along. Speeds and headings against a frozen frame would need the camera's path.
WITHOUT_POSES = frozenset(kind for kind in TEMPLATE_TYPES if kind.startswith("rel_") or kind == "abs_dis")


@dataclass(frozen=True)
class Clip:
    """What the rows of one clip have in common; what is told of each thing ends with the camera.

    Attributes:
        clip: the clip's SHA-256.
        shard: the shard's key.
        has_video: whether the clip has frames to look at.
        estimator: who measured it.
        names: what the rows call each thing.
        roles: "agent", "object" or "camera".
        classes: what each thing is.
        pointing: how the text of a question points at each.
        scale: the scene's own unit of length.
    """

    clip: str
    shard: str
    has_video: bool
    estimator: str
    names: list[str]
    roles: list[str]
    classes: list[str]
    pointing: Pointing
    scale: float


@dataclass(frozen=True)
class Derived:
    """Rows of one clip, how many candidates were dropped per (type, reason), and what a text model said in vain."""

    rows: list[dict]
    dropped: list[dict]
    refusals: list[dict] = field(default_factory=list)


def scene_of(record: SceneRecord, heading_confidence: float) -> Scene:
    """Put cameras and objects of a record on one footing: positions and viewer axes over time, camera last.

    Where the camera's path is unknown, the world is the camera's own frame at each instant.
    """
    frames, objects = len(record.timestamps), len(record.is_agent)
    poses = np.asarray(record.world_from_camera, np.float64)
    if record.provenance.get("poses") == "unknown":
        poses = np.broadcast_to(np.eye(4), (frames, 4, 4))
    centers = np.asarray(record.centers_world, np.float64).reshape(objects, frames, 3)
    looks = record.is_agent[:, None] & (record.forward_confidence >= heading_confidence)
    forward = np.where(looks[..., None], record.forward_world, np.nan)
    up = np.asarray(record.provenance.get("up_world") or LEVEL_UP, np.float64)
    agents = viewer_from_world(center=centers, forward=forward, up=up)[..., :3, :3]
    agents = np.where(np.isfinite(agents).all(axis=(-2, -1), keepdims=True), agents, np.nan)
    return Scene(
        times=np.asarray(record.timestamps, np.float64),
        positions=np.concatenate([centers, poses[None, :, :3, 3]])[None],
        axes=np.concatenate([agents, viewer_from_world(poses)[None, :, :3, :3]])[None],
    )


def scale_of(scene: Scene) -> float:
    """Return the scene's own unit of length: the median distance of what is seen from the camera (0: nothing seen)."""
    distance = np.linalg.norm(scene.positions[0, :-1] - scene.positions[0, -1:], axis=-1)
    seen = distance[np.isfinite(distance)]
    return float(np.median(seen)) if len(seen) else 0.0


def stride_of(times: np.ndarray, parameters: QuestionParameters) -> int:
    """Sampled steps per described step: as asked for, more where samples are dense."""
    step = float(np.median(np.diff(times)))
    return max(parameters.stride, round(parameters.step_seconds / max(step, 1e-6)))


def enumerate_candidates(
    scene: Scene, kind: str, parameters: QuestionParameters, rng: np.random.Generator
) -> Candidates:
    """List the questions of one type that can be asked of a scene: well posed, not trivial, all of it seen.

    Args:
        scene: one scene, K = 1.
        kind: one of ``row.TEMPLATE_TYPES``.
        parameters: interval rules (with the stride of this scene) and the size of the pool.
        rng: chooses where the product of viewpoints, targets, moments and intervals exceeds the pool.
    """
    frozen, family = kind.startswith("abs_"), kind[4:]
    seen = np.isfinite(scene.positions[0]).all(axis=-1)
    looking = seen & np.isfinite(scene.axes[0]).all(axis=(-2, -1))
    viewers, targets = np.flatnonzero(looking.any(axis=1)), np.flatnonzero(seen.any(axis=1))
    pairs = _target_pairs(targets, family)
    moments = np.arange(len(scene.times)) if frozen else np.array([NONE])
    intervals = _intervals(scene.times, family, parameters)
    shape = (len(viewers), len(moments), len(pairs), len(intervals))
    chosen = np.unravel_index(_sample(int(np.prod(shape)), parameters.pool_per_type, rng), shape)
    former, latter = pairs[chosen[2]].T
    start, end = intervals[chosen[3]].T
    candidates = Candidates(viewers[chosen[0]], moments[chosen[1]], former, latter, start, end)
    return candidates.take(
        _visible(candidates, family, seen, looking)
        & ~_trivial(candidates, family, frozen, scene.camera)
        & ~(frozen & (family == "dir_pred") & (candidates.moment > candidates.start))
    )


def _target_pairs(targets: np.ndarray, family: str) -> np.ndarray:
    """(P,2) entities asked about; the second is NONE for one target."""
    if family not in TWO_TARGETS:
        return np.stack([targets, np.full_like(targets, NONE)], axis=1)
    former, latter = (grid.ravel() for grid in np.meshgrid(targets, targets, indexing="ij"))
    return np.stack([former, latter], axis=1)[former != latter]


def _intervals(times: np.ndarray, family: str, parameters: QuestionParameters) -> np.ndarray:
    """(I,2) first and last sampled frame of every interval that may be asked about."""
    last = len(times) - 1
    if family == "dir_pred":
        visible = np.flatnonzero(times <= times[last] - parameters.hidden_seconds)
        start = min(visible[-1] if len(visible) else 0, last - parameters.prediction_steps)
        return np.array([[start, last]] if start >= parameters.min_steps else np.empty((0, 2)), int).reshape(-1, 2)
    usable = np.arange(max(len(times) - parameters.skip_last, 0))
    start, end = (grid.ravel() for grid in np.meshgrid(usable, usable, indexing="ij"))
    # The change of a speed takes two described steps.
    least = max(parameters.min_steps, 2 * parameters.stride)
    allowed = (end - start >= least) & ((end - start) % parameters.stride == 0)
    intervals = np.stack([start, end], axis=1)[allowed]
    return intervals[_even(times, intervals, parameters.stride)]


def _even(times: np.ndarray, intervals: np.ndarray, stride: int) -> np.ndarray:
    """Whether all described steps of an interval take about equally long, (I,).

    More changes in a longer step: where steps differ, the times in the question would tell part of the answer.
    """
    steps = np.arange((intervals[:, 1] - intervals[:, 0]).max(initial=0) // stride)
    begin = intervals[:, :1] + stride * steps
    inside = begin < intervals[:, 1:]
    last = len(times) - 1
    seconds = times[np.minimum(begin + stride, last)] - times[np.minimum(begin, last)]
    shortest = np.where(inside, seconds, np.inf).min(1, initial=np.inf)
    return np.where(inside, seconds, 0.0).max(1, initial=0.0) <= EVEN * shortest


def _sample(total: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of at most ``size`` of ``total`` items, sorted."""
    return np.arange(total) if total <= size else np.unique(rng.integers(total, size=size))


def _visible(candidates: Candidates, family: str, seen: np.ndarray, looking: np.ndarray) -> np.ndarray:
    """Whether all that a candidate needs is seen at every sampled frame of its interval, (n,)."""
    needed = np.ones(len(candidates), bool)
    for entity in (candidates.former, candidates.latter):
        needed &= (entity == NONE) | _throughout(seen, entity, candidates)
    if family == "ori":
        needed &= _throughout(looking, candidates.former, candidates)
    moves = candidates.moment == NONE
    along = _throughout(looking, candidates.viewpoint, candidates)
    return needed & np.where(moves, along, looking[candidates.viewpoint, candidates.moment])


def _throughout(flags: np.ndarray, entity: np.ndarray, candidates: Candidates) -> np.ndarray:
    """Whether ``flags[entity]`` (N+1,T) holds from start to end, by differences of a running count."""
    missing = np.cumsum(np.pad(~flags, ((0, 0), (1, 0))), axis=1)
    return missing[entity, candidates.end + 1] == missing[entity, candidates.start]


def _trivial(candidates: Candidates, family: str, frozen: bool, camera: int) -> np.ndarray:
    """Whether the answer follows from the words alone, (n,).

    Nothing moves, turns or has a speed in its own moving frame; what a camera sees lies before it; and from its own
    frozen viewpoint an agent looks to the front around that time. Orientation is asked of agents only.
    """
    own = (candidates.former == candidates.viewpoint) | (candidates.latter == candidates.viewpoint)
    if family == "dis":
        return np.zeros(len(candidates), bool)
    if family == "dir":
        return own & (candidates.viewpoint == camera)
    if family == "ori":
        return (candidates.former == camera) | own
    return own & (not frozen)


def answered(
    scene: Scene, family: str, candidates: Candidates, thresholds: Thresholds, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (K,n,L) of every described step, and whether the answer is defined, (n,).

    A direction needs a vector that is not zero in the first draw; a moving direction needs a thing that moves.
    """
    values, valid, frames = series(scene, family, candidates, stride)
    labels = describe(family, values, valid, thresholds)
    if family not in ("dir", "dir_pred"):
        return labels, np.ones(len(candidates), bool)
    length = np.linalg.norm(values[0], axis=-1)
    least = thresholds.still
    if family == "dir_pred":
        least = thresholds.still * (scene.times[frames[:, -1:]] - scene.times[frames[:, :1]])
    return labels, ((length > least) | ~valid).all(axis=1)


def derive(record: SceneRecord, clip: str, shard: str, has_video: bool, parameters: QuestionParameters) -> Derived:
    """Derive all candidate questions of one clip.

    Args:
        record: the clip's scene record; nothing is asked unless its status is "3d".
        clip: the clip's SHA-256.
        shard: the shard's key.
        has_video: whether the clip has frames to look at.
        parameters: thresholds, pools, stability.
    """
    if record.provenance["status"] != "3d" or len(record.timestamps) <= parameters.min_steps:
        return Derived([], [])
    scene = scene_of(record, parameters.heading_confidence)
    about = Clip(
        clip=clip,
        shard=shard,
        has_video=has_video,
        estimator=str(record.provenance.get("estimator", "")),
        names=[*clean_names(record.names, parameters.name_length), CAMERA],
        roles=["agent" if agent else "object" for agent in record.is_agent] + [CAMERA],
        classes=[*record.classes, CAMERA],
        pointing=Pointing.of(record, has_video, parameters.pointing, parameters.name_length),
        scale=scale_of(scene),
    )
    if about.scale == 0.0:
        return Derived([], [])
    parameters = parameters.model_copy(update={"stride": stride_of(scene.times, parameters)})
    draws = noisy(scene, record.provenance.get("error_model", {}), parameters, content_seed(clip, "noise"))
    known = record.provenance.get("poses") != "unknown"
    kinds = [kind for kind in TEMPLATE_TYPES if known or kind in WITHOUT_POSES]
    parts = [_derive_type(scene, draws, kind, about, parameters) for kind in kinds]
    parts.append(Derived(*derive_compositional(scene, draws, about, parameters, known)))
    derived = Derived([row for part in parts for row in part.rows], [row for part in parts for row in part.dropped])
    if not parameters.language.text_model.model:
        return derived
    return _with_model(derived, scene, draws, about, parameters, known)


def _with_model(
    derived: Derived, scene: Scene, draws: Scene, about: Clip, parameters: QuestionParameters, known: bool
) -> Derived:
    """What was derived, with a text model's questions beside it and some of its questions in the model's words."""
    from assets.questions.language import propose
    from assets.questions.paraphrase import paraphrase

    language = parameters.language
    model = open_text_model(language.text_model)
    proposed = propose(model, scene, draws, about, parameters, language, known)
    rows = {row["qa_id"]: row for row in (*derived.rows, *proposed.rows)}
    refusals = list(proposed.refusals)
    chance = np.random.default_rng(content_seed(about.clip, "paraphrase"))
    for row in [row for row in derived.rows if row["type"] != NON_TEMPLATE]:
        if chance.random() >= language.paraphrase_share:
            continue
        text, refused = paraphrase(model, row, about.names, language)
        refusals += refused
        if text is not None:
            del rows[row["qa_id"]]
            identity = content_id(about.clip, row["type"], text, GENERATOR_VERSION)
            rows[identity] = row | {"qa_id": identity, "question": text}
    return Derived(list(rows.values()), derived.dropped, [asdict(refusal) for refusal in refusals])


def _derive_type(scene: Scene, draws: Scene, kind: str, about: Clip, parameters: QuestionParameters) -> Derived:
    family = kind[4:]
    rng = np.random.default_rng(content_seed(about.clip, kind))
    candidates = enumerate_candidates(scene, kind, parameters, rng)
    if not len(candidates):
        return Derived([], [])
    thresholds = Thresholds.of(parameters, parameters.still_share * about.scale)
    labels, defined = answered(scene, family, candidates, thresholds, parameters.stride)
    short = counts(merge(labels[0])) <= parameters.max_states
    usable = np.flatnonzero(defined & short)
    picked = usable[_balanced(merge(labels[0, usable]), candidates.take(usable), scene.camera, rng)]
    rows: list[dict] = []
    unstable = 0
    # Whatever turns out unstable is replaced from further down the balanced order, within limits.
    for first in range(0, ATTEMPTS * parameters.candidates_per_type, parameters.candidates_per_type):
        some = candidates.take(picked[first : first + parameters.candidates_per_type])
        if not len(some) or len(rows) >= parameters.candidates_per_type:
            break
        stable, lost = _rows(scene, draws, kind, some, thresholds, about, parameters)
        rows += stable
        unstable += lost
    rows = rows[: parameters.candidates_per_type]
    # Times are asked to a tenth of a second, so two close intervals may read the same; only one of them is asked.
    unique = list({row["qa_id"]: row for row in rows}.values())
    dropped = {
        "too_long": int((defined & ~short).sum()),
        "unstable": unstable,
        "duplicate": len(rows) - len(unique),
    }
    return Derived(
        unique,
        [
            {"clip": about.clip, "type": kind, "reason": reason, "count": count}
            for reason, count in dropped.items()
            if count
        ],
    )


def _balanced(merged: np.ndarray, candidates: Candidates, camera: int, rng: np.random.Generator) -> np.ndarray:
    """Order candidates so that every prefix is balanced over answers and viewpoints.

    Groups are formed by number of states, first and last state and who looks at whom; the order takes one at random
    from each group in turn.
    """
    number = counts(merged)
    last = np.take_along_axis(merged, np.maximum(number - 1, 0)[:, None], axis=1)[:, 0]
    roles = np.stack([candidates.viewpoint == camera, candidates.former == camera, candidates.latter == camera])
    features = np.column_stack([np.minimum(number, 7), merged[:, 0], last, *roles.astype(int)])
    _, group = np.unique(features, axis=0, return_inverse=True)
    shuffled = rng.permutation(len(group))
    by_group = shuffled[np.argsort(group.ravel()[shuffled], kind="stable")]
    sorted_groups = group.ravel()[by_group]
    first = np.searchsorted(sorted_groups, sorted_groups)
    turn = np.empty(len(group), int)
    turn[by_group] = np.arange(len(group)) - first
    return np.lexsort([rng.permutation(len(group)), turn])


def _rows(
    scene: Scene,
    draws: Scene,
    kind: str,
    candidates: Candidates,
    thresholds: Thresholds,
    about: Clip,
    parameters: QuestionParameters,
) -> tuple[list[dict], int]:
    """Rows of the stable candidates, and how many were not."""
    family = kind[4:]
    values, valid, frames = series(scene, family, candidates, parameters.stride)
    labels = describe(family, values, valid, thresholds)[0]
    said = meaning(family, labels)
    noisy_values, _, _ = series(draws, family, candidates, parameters.stride)
    drawn = meaning(family, describe(family, noisy_values, valid, thresholds))
    moved = [
        meaning(family, describe(family, values, valid, other))[0]
        for other in thresholds.tolerated(parameters.tolerance_ratio, parameters.tolerance_degrees)
    ]
    stability = shares(drawn, said)
    also_true = _distinct(np.concatenate([drawn, np.stack(moved)]))
    merged = merge(labels)
    stable = np.flatnonzero(stability >= parameters.min_stability)
    rows = []
    for index in stable:
        row = _asked(kind, candidates, index, scene.times, about)
        row["states"] = [STATE_TEXTS[family][label] for label in merged[index] if label != NONE]
        row["evidence"] = _evidence(
            kind,
            values[0, index][valid[index]],
            scene.times[_unique(frames[index])],
            thresholds,
            about,
            {"objects": _objects(candidates, index, scene.camera), "runs": runs(labels[index])},
        )
        row["stability"] = round(float(stability[index]), 4)
        row["meaning"] = key(said[index])
        row["option_pool"] = None
        row["tolerated"] = sorted({key(sequence) for sequence in also_true(index)} - {row["meaning"]})
        rows.append(row)
    return rows, len(candidates) - len(stable)


def _distinct(sequences: np.ndarray) -> Callable[[int], list[np.ndarray]]:
    """The different ones among the sequences (K, n, L) int8 of each candidate; most draws of noise say the same."""
    length = sequences.shape[-1]
    packed = np.ascontiguousarray(np.moveaxis(sequences, 1, 0)).view(f"V{length}")[..., 0]
    return lambda index: [np.frombuffer(text, np.int8) for text in set(packed[index].tolist())]


def _unique(frames: np.ndarray) -> np.ndarray:
    return frames[np.concatenate([[True], np.diff(frames) > 0])]


def _asked(kind: str, candidates: Candidates, index: int, times: np.ndarray, about: Clip) -> dict:
    """Everything in a row that says what is asked, and of what."""
    chosen = {name: int(column[index]) for name, column in vars(candidates).items()}
    targets = [entity for entity in (chosen["former"], chosen["latter"]) if entity != NONE]
    moment = None if chosen["moment"] == NONE else round(float(times[chosen["moment"]]), 6)
    start, end = (round(float(times[chosen[name]]), 6) for name in ("start", "end"))
    names = [about.names[entity] for entity in targets]
    # A prediction hides what comes after its start, so what it starts from is the last that is seen.
    when = "final" if kind.endswith("dir_pred") else "initial"
    former, latter = [*(about.pointing.said(entity, chosen["start"], when) for entity in targets), None][:2]
    viewed = (chosen["start"], when) if moment is None else (chosen["moment"], "")
    text = question_text(
        kind[4:], about.pointing.said(chosen["viewpoint"], *viewed), moment, former, latter, start, end
    )
    return {
        "qa_id": content_id(about.clip, kind, text, GENERATOR_VERSION),
        "clip": about.clip,
        "shard": about.shard,
        "type": kind,
        "question": text,
        "viewpoint_kind": kind[:3],
        "viewpoint_subject": about.names[chosen["viewpoint"]],
        "viewpoint_time": moment,
        "targets": names,
        "interval_start": start,
        "interval_end": end,
        "visible_until": start if kind.endswith("dir_pred") else None,
        "has_video": about.has_video,
        "estimator": about.estimator,
        "generator_version": GENERATOR_VERSION,
        "viewpoint_role": about.roles[chosen["viewpoint"]],
        "target_roles": [about.roles[entity] for entity in targets],
        "target_classes": [about.classes[entity] for entity in targets],
    }


def _objects(candidates: Candidates, index: int, camera: int) -> dict[str, int | None]:
    """Which objects of the scene record a question is about, by role; None is the camera."""
    roles = {name: int(getattr(candidates, name)[index]) for name in ("former", "latter", "viewpoint")}
    return {name: None if entity == camera else entity for name, entity in roles.items() if entity != NONE}


def _evidence(
    kind: str, values: np.ndarray, times: np.ndarray, thresholds: Thresholds, about: Clip, grounds: dict
) -> str:
    """The numbers the states come from, as JSON with sorted keys.

    ``grounds`` says where they come from: ``objects``, and ``runs``, the number of described steps that each of the
    row's states lasts; the last of ``times`` are the ends of these steps.
    """
    evidence = grounds | {
        "family": kind[4:],
        "times": [round(float(time), 6) for time in times],
        "values": values.tolist(),
        "thresholds": asdict(thresholds),
        "scene_scale": round(about.scale, 6),
        # A distance is the same from everywhere, and a speed from every frame that stands still.
        "depends_on_viewpoint": not (kind.endswith("_dis") or kind in ("abs_spd", "abs_spd_comp")),
    }
    return json.dumps(evidence, sort_keys=True)


def rederive(row: dict) -> list[str]:
    """Derive the states of a row again from nothing but its evidence."""
    if row["type"] == NON_TEMPLATE:
        return rederive_program(row)
    evidence = json.loads(row["evidence"])
    values = np.array(evidence["values"], np.float64)[None, None]
    valid = np.ones(values.shape[1:3], bool)
    labels = describe(evidence["family"], values, valid, Thresholds(**evidence["thresholds"]))
    texts = STATE_TEXTS[evidence["family"]]
    return [texts[label] for label in merge(labels)[0, 0] if label != NONE]


def derive_file(path: Path, shard: str, frames: Path, parameters: QuestionParameters) -> Derived:
    """Derive the questions of one record file, named after its clip; ``frames`` is the shard's folder of frames."""
    record = load(path, fields=RECORD_FIELDS)
    has_video = (frames / path.name).is_file()
    return derive(record, path.stem, shard, has_video, parameters)


def derive_shard(
    geometry_shard: Path,
    videos_shard: Path,
    out: Path,
    shard: str,
    parameters: QuestionParameters,
    workers: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, int]:
    """Write candidates.parquet, dropped.parquet and refusals.parquet (what a text model said in vain) of one shard.

    Args:
        geometry_shard: folder of scene records ``<clip>.safetensors`` and of scenes.parquet, which says which of them
            are fit to be asked about.
        videos_shard: folder whose ``frames/`` tells which clips can be watched.
        out: folder to write to.
        shard: the shard's key.
        parameters: thresholds, pools, stability.
        workers: processes; the result does not depend on it.
        progress: called after every clip.

    Returns:
        Number of clips and of candidates.

    Raises:
        RecordError: a record is damaged.
    """
    scenes = pq.read_table(geometry_shard / "scenes.parquet", columns=["clip", "fit"]).to_pylist()
    paths = [geometry_shard / f"{scene['clip']}.safetensors" for scene in scenes if scene["fit"]]
    work = partial(derive_file, shard=shard, frames=videos_shard / "frames", parameters=parameters)
    rows: list[dict] = []
    dropped: list[dict] = []
    refusals: list[dict] = []
    for done, derived in enumerate(_mapped(work, paths, workers), start=1):
        rows += derived.rows
        dropped += derived.dropped
        refusals += derived.refusals
        progress(done, len(paths), "questions derived")
    rows.sort(key=lambda row: (row["clip"], row["type"], row["qa_id"]))
    dropped.sort(key=lambda row: (row["clip"], row["type"], row["reason"]))
    write_table(rows, CANDIDATES, out / "candidates.parquet")
    refusals.sort(key=lambda row: (row["clip"], row["reason"], row["said"]))
    write_table(dropped, DROPPED, out / "dropped.parquet")
    write_table(refusals, REFUSALS, out / "refusals.parquet")
    return {"clips": len(paths), "candidates": len(rows)}


def _mapped(work: Callable[[Path], Derived], paths: list[Path], workers: int) -> Iterator[Derived]:
    if workers == 1 or len(paths) < 2:
        yield from map(work, paths)
        return
    with processes(min(workers, os.cpu_count() or 1)) as pool:
        yield from pool.map(work, paths)
