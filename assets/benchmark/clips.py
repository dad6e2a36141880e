"""Clips that the pool does not hold, made ready for a model: through the functions of their links, once.

    <folder>/<key of parameters and code>/videos/shard-000000/frames/<clip>.safetensors
    <folder>/<key of parameters and code>/geometry/shard-000000/<clip>.safetensors
    <folder>/<key of parameters and code>/clips/<clip>.json      what is known of a clip that is ready; written last

So a model sees of such a clip what it saw of the clips that it was trained on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.benchmark.readers import Places
from assets.geometry import cache as geometry_cache
from assets.geometry.cache import estimate_shard
from assets.geometry.estimators import build, provenance
from assets.geometry.parameters import GeometryParameters
from assets.geometry.record import load, save, unknown
from assets.geometry.scene_page import plain
from assets.reuse import key_of, sha256_of
from assets.videos import prepare as prepare_module
from assets.videos.parameters import VideoParameters
from assets.videos.prepare import prepare_shard
from assets.videos.shards import SUFFIX, RawClip, write_manifest

SHARD = "shard-000000"
# Clips prepared together for each worker; a run that is killed loses at most these.
CLIPS_PER_WORKER = 8
NO_GEOMETRY = "the model reads none"

Say = Callable[[str], None]


class ClipsError(ValueError):
    """A folder or file with clips cannot be used at all."""


@dataclass(frozen=True)
class Ready:
    """A clip that a model can be asked about.

    Attributes:
        clip: its identity.
        digest: of its files, as `Places.digest` has it.
        provenance: of its scene record.
        unfit: columns by which such a clip is kept out of training, empty where none speaks against it.
        size: width and height of its frames as they are kept, pixels.
        seconds: from its first frame's time to its last's.
        channels: numbers a cell of its prior features; 0 where it has none.
    """

    clip: str
    digest: str
    provenance: Mapping[str, Any]
    unfit: str
    size: tuple[int, int]
    seconds: float
    channels: int


@dataclass
class Batch:
    """Some clips made ready.

    Attributes:
        ready: by identity.
        refused: why the others cannot be, by identity.
        seconds: what reading frames and estimating geometry took.
    """

    ready: dict[str, Ready] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def prepare_batch(
    folder: Path,
    wanted: Mapping[str, Path],
    videos: VideoParameters,
    geometry: GeometryParameters,
    *,
    with_geometry: bool = True,
    workers: int = 2,
    say: Say = lambda step: None,
) -> Batch:
    """Frames and scene records of clips that nobody prepared, in `folder`, as `Places` has them.

    Args:
        folder: `videos`, `geometry` and `raw` are made in it.
        wanted: video files by the hash of their bytes, which is their clips' identity.
        videos: how frames are sampled.
        geometry: how records are made.
        with_geometry: whether there shall be more in them than the frames' times.
        workers: processes. With two or more, native code that crashes is one clip's refusal, and what networks held is
            free again afterwards.
        say: told of each step before it begins.
    """
    raw, shard, records = (folder / name / SHARD for name in ("raw", "videos", "geometry"))
    _seal(raw, wanted)
    say("reading frames")
    started = time.monotonic()
    prepare_shard(raw, shard, SHARD, videos, workers)
    refused = {row["clip"]: row["message"] for row in pq.read_table(shard / "quarantine.parquet").to_pylist()}
    prepared = time.monotonic()
    if with_geometry:
        say("estimating geometry")
        estimate_shard(raw, shard, records, SHARD, geometry, workers=workers)
    seconds = {"frames": prepared - started, "geometry": time.monotonic() - prepared}
    places = Places(shard.parent, records.parent)
    ready = {}
    for clip in sorted(wanted.keys() - refused.keys()):
        record = places.record(SHARD, clip)
        if with_geometry:
            _remove_marks(record)
        else:
            _save_without_geometry(places.frames(SHARD, clip), record, geometry)
        ready[clip] = describe_clip(places, SHARD, clip)
    return Batch(ready, refused, seconds)


def describe_clip(places: Places, shard: str, clip: str) -> Ready:
    """What is known of a clip whose frames and record are there.

    Raises:
        ClipsError: the tables beside them cannot be read.
    """
    from safetensors import safe_open

    path = places.record(shard, clip)
    record = load(path, ("prior_features",))
    with safe_open(str(places.frames(shard, clip)), "np") as file:
        _, height, width, _ = file.get_slice("frames").get_shape()
        # The last frame of a clip is always among those that are kept.
        seconds = float(file.get_tensor("timestamps")[-1])
    features = record.prior_features
    return Ready(
        clip=clip,
        digest=places.digest(shard, clip),
        provenance=dict(record.provenance),
        unfit=_unfit(path.parent, clip),
        size=(width, height),
        seconds=seconds,
        channels=features.shape[-1] if features.size else 0,
    )


def wrong_channels(ready: Ready, channels: int | None) -> str:
    """What is wrong with a clip's features for a model that reads so many numbers a cell; empty where nothing is."""
    if not ready.channels or not channels or ready.channels == channels:
        return ""
    estimator = ready.provenance["estimator"]
    return f"the checkpoint reads {channels} numbers a cell, estimator {estimator} gave {ready.channels}"


class ClipFolder:
    """Clips made ready once and for all, in a folder that several evaluations share."""

    def __init__(
        self,
        folder: Path,
        videos: VideoParameters,
        geometry: GeometryParameters,
        *,
        with_geometry: bool,
        workers: int = 2,
    ) -> None:
        """Choose what clips shall be like; another choice has other clips.

        Raises:
            SetupError: the weights of an estimator cannot be read.
        """
        self._parameters = videos, geometry
        self._with_geometry, self._workers = with_geometry, workers
        self._root = Path(folder) / _key(videos, geometry, with_geometry)[:16]
        self.places = Places(self._root / "videos", self._root / "geometry")

    def prepare(self, wanted: Sequence[Path], say: Say = lambda step: None) -> tuple[list[Ready | None], list[str]]:
        """Make clips ready; those that are already cost nothing but the hash of their file.

        Args:
            wanted: any files; the same clip may be there more than once.
            say: told what is done.

        Returns:
            For each what is ready, or None; and for each the reason why it is not, or "".
        """
        hashes, unread = _hashes(set(wanted))
        names = [hashes.get(path, "") for path in wanted]
        distinct = {name: path for name, path in zip(names, wanted, strict=True) if name}
        self._root.mkdir(parents=True, exist_ok=True)
        ready, refused = {}, {}
        with self._alone():
            ready = {name: known for name in distinct if (known := self._known(name))}
            missing = [name for name in distinct if name not in ready]
            size = CLIPS_PER_WORKER * max(self._workers, 1)
            for start in range(0, len(missing), size):
                say(f"preparing clips {start + 1} to {min(start + size, len(missing))} of {len(missing)}")
                batch = self._prepare({name: distinct[name] for name in missing[start : start + size]})
                ready |= batch.ready
                refused |= batch.refused
        reasons = [unread.get(path) or refused.get(name, "") for name, path in zip(names, wanted, strict=True)]
        return [ready.get(name) for name in names], reasons

    def _known(self, clip: str) -> Ready | None:
        try:
            known = json.loads(self._note(clip).read_text())
            return Ready(**{**known, "size": tuple(known["size"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _prepare(self, wanted: Mapping[str, Path]) -> Batch:
        """A batch aside, then each of its clips put in place, the note of it last."""
        aside = self._root / ".preparing"
        shutil.rmtree(aside, ignore_errors=True)
        batch = prepare_batch(
            aside, wanted, *self._parameters, with_geometry=self._with_geometry, workers=self._workers
        )
        made = Places(aside / "videos", aside / "geometry")
        for clip, ready in batch.ready.items():
            for place in ("frames", "record"):
                target = getattr(self.places, place)(SHARD, clip)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(getattr(made, place)(SHARD, clip), target)
            note = self._note(clip)
            note.parent.mkdir(exist_ok=True)
            partial = note.with_suffix(".partial")
            partial.write_text(json.dumps(asdict(ready), sort_keys=True) + "\n")
            os.replace(partial, note)
        shutil.rmtree(aside, ignore_errors=True)
        return batch

    def _note(self, clip: str) -> Path:
        return self._root / "clips" / f"{clip}.json"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time prepares clips here; the lock ends with the process, however it ends."""
        with (self._root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _hashes(paths: Iterable[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """SHA-256 of each file's bytes, and why others have none."""
    hashes, unread = {}, {}
    for path in paths:
        try:
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "no such file")
            hashes[path] = sha256_of(path)
        except OSError as error:
            unread[path] = f"cannot be read ({error.strerror})"
    return hashes, unread


def _key(videos: VideoParameters, geometry: GeometryParameters, with_geometry: bool) -> str:
    """What decides a prepared clip beside its bytes."""
    parts: dict[str, Any] = {"videos": videos.model_dump(mode="json", exclude=prepare_module.JUDGING), "geometry": None}
    code = [Path(__file__), *prepare_module.CODE]
    if with_geometry:
        parts["geometry"] = geometry.deciding()
        code += geometry_cache.CODE
        if "foundation" in geometry.estimators and geometry.foundation.given:
            parts["weights"] = build("foundation", geometry).identity()
            code += geometry_cache.NETWORKS["foundation"]
    return key_of(parts, code)


def _seal(raw: Path, wanted: Mapping[str, Path]) -> None:
    """A raw shard of clips whose bytes stay where they are."""
    raw.mkdir(parents=True)
    sealed = []
    for clip, path in sorted(wanted.items()):
        suffix = path.suffix.lower()
        known = suffix if SUFFIX.fullmatch(suffix) else ".bin"
        sealed.append(RawClip(clip, plain(path.name), known, path.stat().st_size, "video"))
        sealed[-1].path(raw).symlink_to(path.resolve())
    write_manifest(raw, SHARD, sealed)


def _remove_marks(path: Path) -> None:
    """Take the names and boxes out of a record: nobody who asks knows which number a thing would carry."""
    record = load(path)
    nothing = unknown(record.timestamps, provenance=record.provenance)
    save(replace(nothing, prior_features=record.prior_features, prior_times=record.prior_times), path)


def _save_without_geometry(frames_file: Path, path: Path, parameters: GeometryParameters) -> None:
    from safetensors.numpy import load_file

    held = load_file(frames_file)
    size = list(held["frames"].shape[1:3])
    known = provenance("none", "none", parameters, "refused", NO_GEOMETRY, frame_size=size)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(unknown(held["timestamps"], provenance=known), path)


def _unfit(geometry_shard: Path, clip: str) -> str:
    """What scenes.parquet says against the clip; nothing where the table is not there yet."""
    path = geometry_shard / "scenes.parquet"
    try:
        rows = pq.read_table(path, columns=["clip", "unfit"]).to_pylist() if path.exists() else []
    except (OSError, pa.ArrowException) as error:
        raise ClipsError(f"{plain(path)}: damaged or of another version, make geometry of its shard again") from error
    return next((row["unfit"] for row in rows if row["clip"] == clip), "")
