"""Per-clip results that may be used again: made from the same things by the same code, and still the same bytes.

What a result was made from stands in a small file beside it, which DVC ignores. So no key reaches an artifact's hash:
code that changed without changing a result re-runs its link, and nothing behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

SUFFIX = ".made_from"


def key_of(parts: Mapping[str, object], code: Iterable[Path]) -> str:
    """A key over what a result is made from.

    Args:
        parts: plain values: hashes of the inputs, parameters.
        code: the source files that make it; only their contents count.
    """
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(code)]
    return hashlib.sha256(json.dumps([parts, sources], sort_keys=True).encode()).hexdigest()


def reusable(result: Path, key: str) -> bool:
    """Whether a result was made from what `key` stands for and has not changed since."""
    try:
        return _note(result).read_text() == f"{key} {sha256_of(result)}\n"
    except OSError:
        return False


def mark_reusable(result: Path, key: str) -> None:
    """Note what a finished result was made from."""
    partial = result.with_name(f".{result.name}{SUFFIX}.partial")
    partial.write_text(f"{key} {sha256_of(result)}\n")
    os.replace(partial, _note(result))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(result: Path) -> Path:
    return result.with_name(result.name + SUFFIX)
