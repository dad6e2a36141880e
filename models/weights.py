"""Published weights: where they lie, what they are (a hash of their bytes), and how they get into a module.

A location is a local folder, a local file, or a hub id (`owner/name`, or `owner/name@revision` to pin what is read).
Nothing is fetched at import. Only safetensors and `torch.load(weights_only=True)` are read: no checkpoint runs code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.pth", "*.pt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)
# The index of a model of 10,000 tensors is about 1 MB; what is longer than this is cut off and so not valid JSON.
MAX_JSON_BYTES = 32 * 2**20


class WeightsError(ValueError):
    """Weights cannot be had or do not fit; one line that names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Weights:
    """The files of one checkpoint.

    Attributes:
        folder: where they lie.
        files: the shards, by name.
        sha256: of one file, its own; of several, the hash of their sorted hashes, so names and places do not count.
    """

    folder: Path
    files: tuple[Path, ...]
    sha256: str


def locate(location: str, patterns: Sequence[str] = PATTERNS) -> Path:
    """The local folder or file that a location means, downloaded into the hub's cache if it is a hub id.

    Args:
        location: path of a folder or a file, or `owner/name[@revision]` on the Hugging Face hub.
        patterns: which files of a hub repository are wanted.

    Raises:
        WeightsError: if there is neither such a path nor such a repository.
    """
    if location and os.path.exists(location):
        return Path(location)
    if not HUB_ID.fullmatch(location):
        raise WeightsError(f"weights {_shown(location)}: no such folder or file; give one, or a hub id owner/name")
    from huggingface_hub import snapshot_download

    repository, _, revision = location.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:  # the client lets errors of its HTTP library through, and those differ by version
        raise WeightsError(
            f"weights {_shown(location)}: no such folder, and the hub gave none ({_reason(error)}); "
            "download the repository and give its folder"
        ) from error


def open_weights(location: str) -> Weights:
    """Find the files of a checkpoint and hash them; each byte is read once.

    Sharded safetensors (with their index) come before a single safetensors file, that before a single .pt or .pth.

    Raises:
        WeightsError: if nothing is found, a shard is missing, or it is not clear which file is meant.
    """
    path = locate(location)
    files = (path,) if path.is_file() else _files(path)
    return Weights(files[0].parent, files, _digest(files))


def load_into(
    module: nn.Module, weights: Weights, rename: Callable[[str], str] = lambda key: key, strict: bool = True
) -> None:
    """Load weights shard by shard; each tensor takes the dtype the module declares.

    A module on the meta device takes the tensors themselves (memory-mapped until they are moved or written), so a
    large model is never allocated twice; any other module is filled in place.

    Args:
        module: what to fill.
        weights: as `open_weights` found them.
        rename: from a key in the files to a key of the module's state dict.
        strict: whether keys that only one side has are errors. Shapes always have to fit.

    Raises:
        WeightsError: unreadable or truncated file, unexpected, doubled or missing key, wrong shape.
    """
    expected = module.state_dict()
    on_meta = any(tensor.is_meta for tensor in expected.values())
    loaded: set[str] = set()
    for file in weights.files:
        shard = {}
        for key, shape, read in _entries(file):
            name = rename(key)
            if name not in expected:
                if strict:
                    raise WeightsError(f"{file}: tensor {_shown(key)} is not part of this model; give its own weights")
                continue
            if name in loaded:
                raise WeightsError(f"{file}: tensor {_shown(key)} is there twice; download the weights again")
            if shape != tuple(expected[name].shape):
                wanted = tuple(expected[name].shape)
                raise WeightsError(f"{file}: {_shown(key)} is {shape}, not {wanted}; give weights of this model's size")
            shard[name] = read().to(expected[name].dtype)
            loaded.add(name)
        module.load_state_dict(shard, strict=False, assign=on_meta)
    missing = sorted(expected.keys() - loaded)
    if strict and missing:
        where = weights.files[0] if len(weights.files) == 1 else weights.folder
        raise WeightsError(
            f"{where}: tensor {_shown(missing[0])} is missing ({len(missing)} in all); download the weights again"
        )


def read_json(path: Path) -> dict:
    """A JSON object of bounded size that lies beside weights.

    Raises:
        WeightsError: if it is anything else.
    """
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({_reason(error)}); download the weights again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not an object; download the weights again")
    return content


def _files(folder: Path) -> tuple[Path, ...]:
    for endings in ((".safetensors.index.json",), (".safetensors",), (".pt", ".pth")):
        found = sorted(path for path in folder.iterdir() if path.name.endswith(endings))
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise WeightsError(f"{folder}: several weights ({_shown(names)}); give the path of the one that is meant")
        if found:
            return _shards(found[0]) if endings[0].endswith(".json") else (found[0],)
    raise WeightsError(f"{folder}: no *.safetensors, *.pt or *.pth; give the folder that holds the weights")


def _shards(index: Path) -> tuple[Path, ...]:
    mapping = read_json(index).get("weight_map")
    names = set(mapping.values()) if isinstance(mapping, dict) and _all_text(mapping.values()) else set()
    if not names:
        raise WeightsError(f"{index}: has no weight_map from tensors to files; download the weights again")
    for name in sorted(names):
        # The name comes from outside: it may only mean a file beside the index.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise WeightsError(f"{index}: {_shown(name)} is not the name of a shard; do not use these weights")
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index}: shard {_shown(name)} is missing beside it; download the weights again")
    return tuple(index.parent / name for name in sorted(names))


def _all_text(values) -> bool:
    return all(isinstance(value, str) for value in values)


def _digest(files: Sequence[Path]) -> str:
    digests = []
    for file in files:
        try:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise WeightsError(f"{file}: not readable ({_reason(error)}); check the file and its rights") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _entries(file: Path) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    """Key, shape and reader of each tensor in a file."""
    if file.suffix == ".safetensors":
        yield from _safe_entries(file)
    else:
        for key, tensor in _unpickled(file).items():
            yield key, tuple(tensor.shape), lambda tensor=tensor: tensor


def _safe_entries(file: Path) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118  (the handle is not a mapping)
                yield key, tuple(opened.get_slice(key).get_shape()), lambda key=key: opened.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file}: truncated or damaged ({_reason(error)}); download the weights again") from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        # Only the zip format, torch's own since 1.6, can be memory-mapped.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # damaged bytes lead the unpickler into any of a dozen exceptions
        raise WeightsError(
            f"{file}: truncated, damaged, or more than tensors ({_reason(error)}); download the weights again"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in content.items()
    ):
        raise WeightsError(f"{file}: holds no state dict (names to tensors); save it as safetensors")
    return content


def _shown(text: str) -> str:
    return repr(text if len(text) <= 160 else text[:157] + "...")


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
