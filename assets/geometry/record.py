"""The scene record: what every estimator yields and every question is derived from, one file per clip.

A record is a safetensors file: tensors are read lazily from a memory map, everything that is not a tensor (names,
classes, marks, provenance, a digest of the tensors) is JSON under the single metadata key ``record``. Floats are
rounded before they are stored (``DECIMALS``), so that last-bit differences between processors do not change the bytes.
Beside the fields of ``SceneRecord`` the file holds ``prior_cover``, where in the prior features each object is: it
follows from the masks, and whoever trains on the features needs it without the masks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from assets.geometry.grid import block_means
from assets.geometry.marks import marks_of

FORMAT = 4
STATUSES = ("3d", "2d", "refused")

# Decimals kept per field; points, confidence and prior_features are rounded by their type.
DECIMALS = {
    "timestamps": 6,
    "intrinsics": 3,
    "world_from_camera": 5,
    "boxes": 2,
    "centers_world": 4,
    "forward_world": 5,
    "forward_confidence": 3,
    "prior_times": 6,
}
DTYPES = {
    "timestamps": np.float64,
    "intrinsics": np.float32,
    "world_from_camera": np.float32,
    "points": np.float16,
    "confidence": np.float16,
    "object_ids": np.int64,
    "is_agent": np.bool_,
    "boxes": np.float32,
    "centers_world": np.float32,
    "forward_world": np.float32,
    "forward_confidence": np.float32,
    "prior_features": np.float16,
    "prior_times": np.float64,
}
TEXT_FIELDS = ("names", "classes", "marks", "provenance")
# Where the frames of a field are; the prior's slots are merged frames and are not cut.
FRAME_AXIS = {
    "timestamps": 0,
    "intrinsics": 0,
    "world_from_camera": 0,
    "points": 0,
    "confidence": 0,
    "boxes": 1,
    "centers_world": 1,
    "forward_world": 1,
    "forward_confidence": 1,
}

Mask = dict[str, Any]


class RecordError(ValueError):
    """A scene record that is damaged, incomplete or inconsistent; the message names the file or the field."""


@dataclass(frozen=True)
class SceneRecord:
    """Geometry of one clip over its T sampled frames and N objects.

    The world is the first sampled camera frame (OpenCV axes: x right, y down, z forward). Lengths are metres where
    ``provenance["metric"]`` is true, else relative. A field that was not asked for in ``load`` is None.

    Attributes:
        timestamps: (T,) f64, seconds from the clip's first frame.
        intrinsics: (T, 3, 3) f32, pixels of the stored frames (pixel centres at whole numbers); NaN where unknown.
        world_from_camera: (T, 4, 4) f32 camera-to-world poses; NaN where unknown.
        points: (T, h, w, 3) f16 local point map in the camera frame. Cell (i, j) is the frame pixel
            ``(floor((i + .5) * H / h), floor((j + .5) * W / w))``. Zero where the confidence is zero.
        confidence: (T, h, w) f16, 0..1.
        object_ids: (N,) i64, unique in the clip.
        names: N names, unique in the clip, as questions call the objects.
        classes: N class names.
        is_agent: (N,) bool; agents have a front and can lend a viewpoint.
        masks: (N, T) nested lists of COCO RLE ``{"size": [H, W], "counts": bytes}`` in frame pixels; None where no
            mask can be known (no picture).
        boxes: (N, T, 4) f32 xyxy in frame pixels; NaN where not seen.
        centers_world: (N, T, 3) f32; NaN where not seen.
        forward_world: (N, T, 3) f32 unit vectors; NaN where unknown.
        forward_confidence: (N, T) f32, 0..1.
        prior_features: (T', h', w', C), what the geometry network reads: geometric cells as f16, or tokens of a
            reconstruction network as bfloat16, which numpy lacks: u16 that hold the bits of one each.
        prior_times: (T',) f64, time of each slot's last frame in seconds, so that a reader can hide later slots.
        provenance: estimator, version, parameters, status ("3d", "2d" or "refused"), reason, error_model, metric,
            frame_size [H, W], up_world, and what else the estimator has to say.
        marks: N whole numbers that are drawn on the clip's video beside what its name does not point at, 0 for none;
            they follow from names and boxes (see ``marks_of``).
    """

    timestamps: np.ndarray | None
    intrinsics: np.ndarray | None
    world_from_camera: np.ndarray | None
    points: np.ndarray | None
    confidence: np.ndarray | None
    object_ids: np.ndarray | None
    names: list[str]
    classes: list[str]
    is_agent: np.ndarray | None
    masks: list[list[Mask | None]] | None
    boxes: np.ndarray | None
    centers_world: np.ndarray | None
    forward_world: np.ndarray | None
    forward_confidence: np.ndarray | None
    prior_features: np.ndarray | None
    prior_times: np.ndarray | None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    marks: list[int] = field(default_factory=list)

    @property
    def status(self) -> str:
        """One of ``STATUSES``."""
        return str(self.provenance["status"])

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the stored frames in pixels; (0, 0) where the clip has no picture."""
        height, width = self.provenance["frame_size"]
        return int(height), int(width)


TENSOR_FIELDS = tuple(DTYPES)
FIELDS = tuple(item.name for item in fields(SceneRecord))


def unknown(
    timestamps: np.ndarray, names: Sequence[str] = (), classes: Sequence[str] = (), **known: Any
) -> SceneRecord:
    """A record of T frames and N objects of which nothing is known but what is given.

    Args:
        timestamps: (T,) seconds.
        names: N unique names.
        classes: N class names.
        **known: any other field of ``SceneRecord``; the rest is NaN, zero confidence, empty, or no mask.
    """
    frames, count = len(timestamps), len(names)
    blank: dict[str, Any] = {
        "timestamps": timestamps,
        "intrinsics": np.full((frames, 3, 3), np.nan),
        "world_from_camera": np.full((frames, 4, 4), np.nan),
        "points": np.zeros((frames, 0, 0, 3)),
        "confidence": np.zeros((frames, 0, 0)),
        "object_ids": np.arange(count),
        "names": list(names),
        "classes": list(classes),
        "is_agent": np.zeros(count, bool),
        "masks": [[None] * frames for _ in range(count)],
        "boxes": np.full((count, frames, 4), np.nan),
        "centers_world": np.full((count, frames, 3), np.nan),
        "forward_world": np.full((count, frames, 3), np.nan),
        "forward_confidence": np.zeros((count, frames)),
        "prior_features": np.zeros((0, 0, 0, 0)),
        "prior_times": np.zeros(0),
    }
    return rounded(SceneRecord(**(blank | known)))


def rounded(record: SceneRecord) -> SceneRecord:
    """The record as it is stored: every tensor in its type, rounded to ``DECIMALS``, one NaN, no -0; its marks."""
    stored = replace(record, **{name: _rounded(name, getattr(record, name)) for name in TENSOR_FIELDS})
    return replace(stored, marks=marks_of(stored.names, stored.boxes))


def _rounded(name: str, values: np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if name == "prior_features" and array.dtype == np.uint16:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        array = np.round(array, DECIMALS[name]) if name in DECIMALS else array
        array = np.where(np.isnan(array), np.nan, array + 0.0)
    with np.errstate(over="raise"):
        try:
            return np.ascontiguousarray(array, dtype=DTYPES[name])
        except FloatingPointError:
            raise RecordError(f"{name}: a value is too large to store as {DTYPES[name].__name__}") from None


def check(record: SceneRecord) -> None:
    """Raise ``RecordError`` where shapes, names or the status contradict each other."""
    frames, count, slots = len(record.timestamps), len(record.names), len(record.prior_times)
    height, width = record.points.shape[1:3]
    expected = {
        "timestamps": (frames,),
        "intrinsics": (frames, 3, 3),
        "world_from_camera": (frames, 4, 4),
        "points": (frames, height, width, 3),
        "confidence": (frames, height, width),
        "object_ids": (count,),
        "is_agent": (count,),
        "boxes": (count, frames, 4),
        "centers_world": (count, frames, 3),
        "forward_world": (count, frames, 3),
        "forward_confidence": (count, frames),
        "prior_features": (slots, *record.prior_features.shape[1:]),
    }
    for name, shape in expected.items():
        if getattr(record, name).shape != shape:
            raise RecordError(f"{name}: shape {getattr(record, name).shape}, expected {shape}")
    if record.prior_features.ndim != 4:
        raise RecordError(f"prior_features: {record.prior_features.ndim} dimensions, expected 4")
    if len(record.classes) != count or len(record.masks) != count or any(len(m) != frames for m in record.masks):
        raise RecordError(f"classes and masks: expected {count} objects over {frames} frames")
    if len(set(record.names)) != count or len(set(record.object_ids.tolist())) != count:
        raise RecordError("names and object ids: expected unique ones")
    if record.provenance.get("status") not in STATUSES:
        raise RecordError(f"status: {record.provenance.get('status')!r}, expected one of {STATUSES}")


def encode_mask(mask: np.ndarray) -> Mask:
    """COCO RLE of an (H, W) boolean mask."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"]}


def decode_mask(mask: Mask) -> np.ndarray:
    """(H, W) boolean mask of a COCO RLE."""
    from pycocotools import mask as coco

    return coco.decode(mask).astype(bool)


def box_of(mask: np.ndarray) -> np.ndarray:
    """(4,) xyxy box of an (H, W) boolean mask in pixels, right and lower edge exclusive; NaN where it is empty."""
    if not mask.any():
        return np.full(4, np.nan)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def prior_cover(masks: list[list[Mask | None]], grid: tuple[int, int, int]) -> np.ndarray:
    """How much of each cell of the prior features each object covers.

    Args:
        masks: (N, T) as in ``SceneRecord``.
        grid: T', h', w' of the prior features; slots of time merge T / T' neighbouring frames.

    Returns:
        (N, T', h', w') u8, 255 where an object covers a cell in all of the slot's frames.
    """
    slots, rows, columns = grid
    shares = np.zeros((len(masks), *grid))
    for thing, over_time in enumerate(masks):
        merged = -(-len(over_time) // max(slots, 1))
        for frame, mask in enumerate(over_time if shares.size else []):
            if mask is not None:
                shares[thing, frame // merged] += block_means(decode_mask(mask), rows, columns) / merged
    return np.round(255 * np.minimum(shares, 1)).astype(np.uint8)


def save(record: SceneRecord, path: Path) -> None:
    """Write the record to ``path``: same record, same bytes; the file appears whole or not at all.

    Raises:
        RecordError: the record contradicts itself.
    """
    from safetensors.numpy import save as serialize

    record = rounded(record)
    check(record)
    tensors = {name: getattr(record, name) for name in TENSOR_FIELDS} | _packed(record.masks)
    tensors["prior_cover"] = prior_cover(record.masks, record.prior_features.shape[:3])
    text = {name: getattr(record, name) for name in TEXT_FIELDS}
    text |= {"format": FORMAT, "digest": _digest(tensors)}
    data = serialize(tensors, metadata={"record": json.dumps(text, sort_keys=True)})
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, fields: Iterable[str] | None = None, frames: slice | None = None) -> SceneRecord:
    """Read a record, or only some of its fields and frames; its text (``TEXT_FIELDS``) always comes along.

    Nothing else of the file is read, so bytes that were altered behind its header go unnoticed: see ``verify``.

    Args:
        path: the record's file.
        fields: names of the tensor fields (and "masks") to read; None for all. The others are None in the result.
        frames: neighbouring sampled frames to read, as a slice without a step; None for all. ``prior_features`` and
            ``prior_times`` come whole.

    Raises:
        RecordError: the file is missing, damaged or of another format, or a field does not exist.
        ValueError: the slice has a step.
    """
    wanted = set(FIELDS if fields is None else fields)
    if wanted - set(FIELDS):
        raise RecordError(f"{sorted(wanted - set(FIELDS))}: no such field, choose from {', '.join(FIELDS)}")
    with _opened(path) as file:
        text = _text(file, path)
        names = set(file.keys())
        missing = {*TENSOR_FIELDS, "prior_cover", "masks.counts", "masks.offsets", "masks.size"} - names
        if missing:
            raise RecordError(f"{path}: damaged, lacks {sorted(missing)}; delete it and estimate the clip again")
        span = _span(file, frames)
        tensors = {name: _read(file, name, span) if name in wanted else None for name in TENSOR_FIELDS}
        masks = _unpacked(file, len(text["names"])) if "masks" in wanted else None
        masks = masks and [row[span] for row in masks]
    return SceneRecord(**tensors, masks=masks, **{name: text[name] for name in TEXT_FIELDS})


def verify(path: Path) -> None:
    """Read every byte of a record and compare it with the digest it carries.

    Raises:
        RecordError: the file is missing or damaged.
    """
    with _opened(path) as file:
        text = _text(file, path)
        if _digest({name: file.get_tensor(name) for name in file.keys()}) != text["digest"]:  # noqa: SIM118
            raise RecordError(f"{path}: damaged, its digest differs; delete it and estimate the clip again")


def _opened(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="np")
    except (OSError, SafetensorError) as error:
        raise RecordError(
            f"{path}: not a scene record ({error}); delete it and estimate the clip again".replace("\n", " ")
        ) from error


def _span(file, frames: slice | None) -> slice:
    """The frames asked for, from the first to behind the last, whole numbers within the clip."""
    start, stop, step = (frames or slice(None)).indices(file.get_slice("timestamps").get_shape()[0])
    if step != 1:
        raise ValueError(f"frames {frames}: a slice without a step is needed, take every {step}th of what it gives")
    return slice(start, max(start, stop))


def _read(file, name: str, span: slice) -> np.ndarray:
    """One tensor, of the frames asked for where it has frames."""
    axis = FRAME_AXIS.get(name)
    if axis is None:
        return file.get_tensor(name)
    stored, index = file.get_slice(name), (*[slice(None)] * axis, span)
    # safetensors cuts nothing out of an empty tensor, and no empty piece out of any.
    empty = 0 in stored.get_shape() or span.start == span.stop
    return file.get_tensor(name)[index] if empty else stored[index]


def _text(file, path: Path) -> dict[str, Any]:
    try:
        text = json.loads((file.metadata() or {})["record"])
        if text["format"] == FORMAT:
            return text
    except (KeyError, TypeError, json.JSONDecodeError):
        raise RecordError(f"{path}: no scene record in its header; delete it and estimate the clip again") from None
    raise RecordError(f"{path}: format {text['format']}, this version reads {FORMAT}; estimate the clip again")


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _packed(masks: list[list[Mask | None]]) -> dict[str, np.ndarray]:
    """All run lengths in one byte tensor; mask k of N*T lies at offsets[k]:offsets[k + 1], nothing where it is None."""
    flat = [mask for row in masks for mask in row]
    sizes = {tuple(mask["size"]) for mask in flat if mask is not None}
    if len(sizes) > 1:
        raise RecordError(f"masks: sizes {sorted(sizes)} differ, expected one frame size")
    counts = [b"" if mask is None else bytes(mask["counts"]) for mask in flat]
    return {
        "masks.counts": np.frombuffer(b"".join(counts), np.uint8),
        "masks.offsets": np.cumsum([0, *map(len, counts)], dtype=np.int64),
        "masks.size": np.array(sizes.pop() if sizes else (0, 0), np.int64),
    }


def _unpacked(file, count: int) -> list[list[Mask | None]]:
    counts = file.get_tensor("masks.counts").tobytes()
    offsets = file.get_tensor("masks.offsets").tolist()
    size = file.get_tensor("masks.size").tolist()
    frames = (len(offsets) - 1) // count if count else 0
    spans = pairwise(offsets)
    flat = [{"size": list(size), "counts": counts[a:b]} if b > a else None for a, b in spans]
    return [flat[i * frames : (i + 1) * frames] for i in range(count)]
