"""Shards: immutable lists of raw clips, known by the SHA-256 of their bytes, and how new files become one.

    <shard>/manifest.json                        the sealed, ordered list of what the shard holds
    <shard>/<sha256><suffix>                     a clip's bytes
    <shard>/<sha256>.<role><suffix>              what belongs to it: truth, caption, pose, calibration, intrinsics

Names come from outside and are only ever text: no path is built from one.
"""

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from assets.progress import Progress

CLIP = re.compile(r"[0-9a-f]{64}")
SUFFIX = re.compile(r"\.[a-z0-9]{1,11}")
ROLE = re.compile(r"[a-z]{1,20}")
KINDS = ("video", "av2", "kitti", "unusable")
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ogv", ".mxf", ".gif"}
    | {".mpg", ".mpeg", ".ts", ".m2ts", ".mts"}
)
_CHUNK = 1 << 20
_PARTIAL = ".ingest.partial"
_INCOMING = "incoming"
# What travels with the video whose stem it shares.
_SIDECARS = {"truth": ".truth.safetensors", "caption": ".caption.txt"}
# Captions of all videos of a folder in one table, with the columns of Koala-36M.
_CAPTIONS = "captions.csv"


class ShardError(ValueError):
    """A source cannot be ingested, or a sealed shard is damaged."""


@dataclass(frozen=True)
class RawClip:
    """One entry of a manifest.

    Attributes:
        clip: SHA-256 of the bytes (of the name, where the bytes could not be read).
        name: path inside the source as text, for people only.
        suffix: of the stored file, lower case with its dot.
        bytes: size.
        kind: "video", "av2", "kitti", or "unusable" (listed with its reason, bytes not kept).
        companions: role -> {"sha256", "suffix", "bytes", "name"} of the files that belong to the clip.
        duplicates: names of further files with the same bytes.
        reason: why an unusable file is unusable.
    """

    clip: str
    name: str
    suffix: str
    bytes: int
    kind: str
    companions: dict[str, dict] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    reason: str = ""

    def __post_init__(self):
        """Refuse anything that could not safely become part of a path."""
        parts = [(CLIP, self.clip), (SUFFIX, self.suffix)]
        for role, file in self.companions.items():
            parts += [(ROLE, role), (CLIP, file["sha256"]), (SUFFIX, file["suffix"])]
        for pattern, text in parts:
            if not pattern.fullmatch(text):
                raise ShardError(f"{text!r} in the entry of {self.name!r} does not look like {pattern.pattern}")
        if self.kind not in KINDS:
            raise ShardError(f"{self.name!r} is of unknown kind {self.kind!r}, expected one of {', '.join(KINDS)}")

    def path(self, raw_shard: Path) -> Path:
        """Where the clip's bytes lie."""
        return raw_shard / f"{self.clip}{self.suffix}"

    def companion_path(self, raw_shard: Path, role: str) -> Path:
        """Where a companion's bytes lie; KeyError if the clip has none of that role."""
        return raw_shard / f"{self.clip}.{role}{self.companions[role]['suffix']}"


def write_manifest(folder: Path, shard: str, clips: list[RawClip]) -> None:
    """Write manifest.json of a shard that is about to be sealed."""
    document = {"shard": shard, "files": [asdict(clip) for clip in clips]}
    (folder / "manifest.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def read_manifest(raw_shard: Path) -> list[RawClip]:
    """Entries of a sealed shard, in their order.

    Raises:
        ShardError: no manifest, or one this project cannot have written.
    """
    path = Path(raw_shard) / "manifest.json"
    try:
        return [RawClip(**entry) for entry in json.loads(path.read_text())["files"]]
    except FileNotFoundError:
        raise ShardError(f"{path} does not exist: ingest or render the shard, or `dvc checkout` it") from None
    except ShardError as error:
        raise ShardError(f"{path}: {error}; restore the shard with `dvc checkout`") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ShardError(f"{path} is damaged ({error}); restore the shard with `dvc checkout`") from None


def verify_shard(raw_shard: Path) -> None:
    """Hash every stored byte again.

    Raises:
        ShardError: names the first file that is missing or differs from the manifest.
    """
    raw_shard = Path(raw_shard)
    for clip in read_manifest(raw_shard):
        if clip.kind == "unusable":
            continue
        files = [(clip.path(raw_shard), clip.clip)]
        files += [(clip.companion_path(raw_shard, role), c["sha256"]) for role, c in clip.companions.items()]
        for path, expected in files:
            if not path.is_file():
                raise ShardError(f"{path} ({clip.name!r}) is missing; restore the shard with `dvc checkout`")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise ShardError(
                    f"{path} ({clip.name!r}) is damaged: its SHA-256 is {found}, the manifest says {expected}; "
                    "restore the shard with `dvc checkout`"
                )


def seal(folder: Path, shard: str, clips: list[RawClip], destination: Path) -> None:
    """Write the manifest into a filled temporary folder and rename it to its final place."""
    write_manifest(folder, shard, clips)
    try:
        folder.rename(destination)
    except OSError:
        raise ShardError(f"{destination} already exists; a sealed shard never changes") from None


def ingest(
    source: str,
    raw: Path,
    known: set[str],
    next_index: int,
    size: int,
    progress: Progress = lambda done, total, what: None,
) -> list[str]:
    """Take what a folder holds into new sealed shards, reading every byte once.

    A shard is filled in a temporary folder and renamed when full, so that a killed run leaves sealed shards or
    nothing; what it left half done is thrown away by the next. Hidden folders and linked folders are not entered.

    Args:
        source: local folder or fsspec URL.
        raw: folder that holds the shards.
        known: identities already ingested; such content is skipped.
        next_index: number of the first new shard.
        size: entries per shard.
        progress: told after each entry; the total is 0, as the source is never listed in advance.

    Returns:
        Keys of the new shards, in order; empty if everything was known.

    Raises:
        ShardError: the source is missing, is no folder, or holds no file.
    """
    if size < 1:
        raise ShardError(f"a shard of {size} clips holds nothing; choose 1 or more")
    files, root = _open_source(source)
    raw.mkdir(parents=True, exist_ok=True)
    for leftover in raw.glob(f"*{_PARTIAL}"):
        shutil.rmtree(leftover)
    filling, shards, seen = _Filling(raw, next_index), [], 0
    known = set(known)
    for group in _groups(files, root):
        seen += 1
        clip = _fetch(files, group, root, filling.folder())
        progress(seen, 0, clip.name)
        filling.add(clip, known)
        if len(filling.entries) == size:
            known |= filling.entries.keys()
            shards.append(filling.seal())
    if not seen:
        raise ShardError(f"{source} holds no file; name a folder of videos or of annotated logs")
    if filling.entries:
        shards.append(filling.seal())
    filling.discard()
    return shards


class _Filling:
    """The shard that is being filled, in a temporary folder beside the sealed ones."""

    def __init__(self, raw: Path, index: int):
        self._raw, self._index = raw, index
        self.entries: dict[str, RawClip] = {}

    def _key(self) -> str:
        return f"shard-{self._index:06d}"

    def folder(self) -> Path:
        """The temporary folder, made when first asked for."""
        folder = self._raw / f".{self._key()}{_PARTIAL}"
        folder.mkdir(exist_ok=True)
        return folder

    def add(self, clip: RawClip, known: set[str]) -> None:
        """Give the bytes that `_fetch` left their final names, or remove them if they are here or known already."""
        new = clip.clip not in self.entries and clip.clip not in known
        if clip.clip in self.entries:
            self.entries[clip.clip].duplicates.append(clip.name)
        if new:
            self.entries[clip.clip] = clip
        for path in self.folder().glob(f"{_INCOMING}*"):
            if not new or clip.kind == "unusable":
                path.unlink()
            elif path.name == _INCOMING:
                os.replace(path, clip.path(self.folder()))
            else:
                os.replace(path, clip.companion_path(self.folder(), path.suffix.removeprefix(".")))

    def seal(self) -> str:
        """Seal what is there and begin the next shard; returns the sealed shard's key."""
        key = self._key()
        seal(self.folder(), key, list(self.entries.values()), self._raw / key)
        self._index, self.entries = self._index + 1, {}
        return key

    def discard(self) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self.folder())


@dataclass(frozen=True)
class _Group:
    """Files that make one clip: fsspec paths, and a caption from a table. `reason` says why they can be none."""

    kind: str
    primary: str
    companions: dict[str, str] = field(default_factory=dict)
    caption: str = ""
    reason: str = ""


class _UnreadableError(Exception):
    """The source did not give a file's bytes."""


def _open_source(source: str):
    """(file system, path of the root) of a local folder or fsspec URL."""
    import fsspec

    if "://" in source:
        try:
            files, root = fsspec.core.url_to_fs(source)
        except (ImportError, ValueError) as error:
            raise ShardError(f"{source}: {error}") from None
    else:
        files, root = fsspec.filesystem("file"), os.path.abspath(source)
    if not files.exists(root):
        raise ShardError(f"{source} does not exist; name a folder or fsspec URL that holds videos")
    if not files.isdir(root):
        raise ShardError(f"{source} is a file; name the folder that holds it")
    return files, root


def _groups(files, folder: str) -> Iterator[_Group]:
    """All groups under a folder, in an order that depends on names only; a folder is listed when reached."""
    listing = sorted(files.ls(folder, detail=True), key=lambda entry: _text(entry["name"]))
    listing = [entry for entry in listing if entry["name"].rstrip("/") != folder.rstrip("/")]
    inside = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in listing}
    claimed: set[str] = set()
    for group in (*_argoverse(files, folder, inside), *_kitti(files, inside)):
        claimed |= {group.primary, *group.companions.values()}
        yield group
    captions = _captions(files, inside)
    for entry in _plain_files(inside):
        if entry["name"] not in claimed:
            yield _single(files, entry, inside, captions)
    for name, entry in inside.items():
        if entry["type"] != "directory" or name.startswith("."):
            continue
        for group in _groups(files, entry["name"]):
            if group.primary not in claimed:
                yield group


def _plain_files(inside: dict[str, dict]) -> Iterator[dict]:
    """Everything that is no folder, except the sidecars that travel with their video."""
    videos = {PurePosixPath(name).stem for name in inside if _suffix(name) in VIDEO_SUFFIXES}
    for name, entry in inside.items():
        owned = name == _CAPTIONS or any(
            name.endswith(end) and name.removesuffix(end) in videos for end in _SIDECARS.values()
        )
        if entry["type"] != "directory" and not owned:
            yield entry


def _captions(files, inside: dict[str, dict]) -> dict[str, str]:
    """Caption of each video of a folder by its stem, from the folder's table of captions; empty where it has none."""
    if _CAPTIONS not in inside:
        return {}
    path, stems = inside[_CAPTIONS]["name"], {PurePosixPath(name).stem for name in inside}
    try:
        with files.open(path, "rt", encoding="utf-8", errors="replace", newline="") as file:
            rows = ((row.get("videoID"), row.get("caption")) for row in csv.DictReader(file))
            return {stem: caption for stem, caption in rows if stem in stems and caption}
    except csv.Error as error:
        raise ShardError(f"{path}: {error}; mend or remove the table of captions") from None


def _single(files, entry: dict, inside: dict[str, dict], captions: dict[str, str]) -> _Group:
    """A file on its own, or a video with its sidecars."""
    if entry["type"] != "file" and not files.isfile(entry["name"]):
        if files.isdir(entry["name"]):
            return _Group("unusable", entry["name"], reason="A linked folder: ingest the folder it points to.")
        return _Group("unusable", entry["name"], reason="Not a regular file: a broken link, pipe or device.")
    name = entry["name"].rpartition("/")[2]
    stem, companions = PurePosixPath(name).stem, {}
    if _suffix(name) in VIDEO_SUFFIXES:
        companions = {role: inside[stem + end]["name"] for role, end in _SIDECARS.items() if stem + end in inside}
    caption = "" if "caption" in companions or _suffix(name) not in VIDEO_SUFFIXES else captions.get(stem, "")
    return _Group("video", entry["name"], companions, caption)


def _argoverse(files, folder: str, inside: dict[str, dict]) -> Iterator[_Group]:
    """Argoverse 2 sensor logs: 3D annotations beside the vehicle's poses."""
    pose = inside.get("city_SE3_egovehicle.feather")
    if pose is None:
        return
    companions = {"pose": pose["name"]}
    for role, name in (("calibration", "egovehicle_SE3_sensor"), ("intrinsics", "intrinsics")):
        path = f"{folder.rstrip('/')}/calibration/{name}.feather"
        if files.exists(path):
            companions[role] = path
    for name, entry in inside.items():
        if name.startswith("annotations") and name.endswith(".feather") and entry["type"] == "file":
            yield _Group("av2", entry["name"], companions)


def _kitti(files, inside: dict[str, dict]) -> Iterator[_Group]:
    """KITTI tracking: label_02/NNNN.txt with calib/NNNN.txt."""
    if not {"label_02", "calib"} <= inside.keys():
        return
    labels, calib = inside["label_02"]["name"].rstrip("/"), inside["calib"]["name"].rstrip("/")
    for path in sorted(files.ls(labels, detail=False)):
        name = path.rpartition("/")[2]
        if re.fullmatch(r"\d{4}\.txt", name) and files.exists(f"{calib}/{name}"):
            yield _Group("kitti", path, {"calibration": f"{calib}/{name}"})


def _fetch(files, group: _Group, root: str, folder: Path) -> RawClip:
    """Copy a group into the temporary folder under the names incoming and incoming.<role>, hashing it on the way."""
    name, suffix = _relative(group.primary, root), _suffix(group.primary)
    if group.reason:
        return _unread(name, suffix, group.reason)
    try:
        sha256, size, head = _copy(files, group.primary, folder / _INCOMING)
        reason = _why_unusable(head, suffix, group.kind)
        if reason:
            return RawClip(sha256, name, suffix, size, "unusable", reason=reason)
        companions = {}
        for role, path in sorted(group.companions.items()):
            digest, length, _ = _copy(files, path, folder / f"{_INCOMING}.{role}")
            companions[role] = {
                "sha256": digest,
                "suffix": _suffix(path),
                "bytes": length,
                "name": _relative(path, root),
            }
        if group.caption:
            companions["caption"] = _written(group.caption, folder / f"{_INCOMING}.caption")
    except _UnreadableError as error:
        return _unread(name, suffix, str(error))
    return RawClip(sha256, name, suffix, size, group.kind, companions)


def _written(caption: str, target: Path) -> dict:
    """Write a caption out of a table as a companion file of its own."""
    content = caption.encode("utf-8", "replace")
    target.write_bytes(content)
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "suffix": ".txt",
        "bytes": len(content),
        "name": _CAPTIONS,
    }


def _copy(files, source: str, target: Path) -> tuple[str, int, bytes]:
    """Copy one file while hashing it: (SHA-256, size, first bytes)."""
    digest, size, head = hashlib.sha256(), 0, b""
    with target.open("wb") as out:
        for chunk in _chunks(files, source):
            head = head or chunk[:64]
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    return digest.hexdigest(), size, head


def _chunks(files, source: str) -> Iterator[bytes]:
    """A file's bytes; whatever a remote store throws becomes one kind of error, the disk written to stays apart."""
    try:
        with files.open(source, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except Exception as error:
        raise _UnreadableError(
            f"The file could not be read ({type(error).__name__}): check it at its source."
        ) from error


def _unread(name: str, suffix: str, reason: str) -> RawClip:
    """An entry for something whose bytes are unknown; its identity is that of its name."""
    sha256 = hashlib.sha256(f"unreadable|{name}".encode()).hexdigest()
    return RawClip(sha256, name, suffix, 0, "unusable", reason=reason)


def _why_unusable(head: bytes, suffix: str, kind: str) -> str:
    """Why a file cannot be what it looks like, from its first bytes and suffix; empty if it may be."""
    if not head:
        return "The file is empty."
    if head.startswith(b"version https://git-lfs"):
        return f"Git LFS pointer, not a {'video' if kind == 'video' else 'log'}: run git lfs pull."
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "A web page, not a video: the download failed."
    if kind != "video" or suffix in VIDEO_SUFFIXES or _looks_like_video(head):
        return ""
    return f"Not a video: {suffix} files are not read."


def _looks_like_video(head: bytes) -> bool:
    """Magic numbers of MP4/MOV, Matroska, AVI, MPEG-PS, ASF, FLV and Ogg."""
    starts = (b"\x1aE\xdf\xa3", b"\x00\x00\x01\xba", b"0&\xb2u\x8ef\xcf\x11", b"FLV\x01", b"OggS")
    return head.startswith(starts) or head[4:8] in (b"ftyp", b"moov") or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def _suffix(path: str) -> str:
    """Lower-case suffix that is safe in a file name; ".bin" for anything else."""
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if SUFFIX.fullmatch(suffix) else ".bin"


def _relative(path: str, root: str) -> str:
    """Path inside the source, as text."""
    return _text(path.removeprefix(root.rstrip("/")).lstrip("/"))


def _text(name: str) -> str:
    """A file name as well-formed text: bytes that are no UTF-8 become backslash escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
