"""Near-duplicate clips: re-encodings, other sizes, slight crops and other brightness of footage the pool already has.

Equal bytes are one clip already; here clips are compared by what they show: a perceptual hash of some of their frames.
A copy that begins elsewhere in the footage shows other frames at the same share of its length and is not found; two
clips in which a fixed camera sees the same place at different hours may be taken for one.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HASHED_FRAMES = 5
# Side of the picture that is transformed, and of the corner of low frequencies that is kept. 64 bits, the usual 8x8,
# tell too few clips apart: in a pool of 100,000 some would fall together by chance.
_SIDE, _LOW = 64, 16
_WORDS = _LOW * _LOW // 64
_DECIMALS = 3  # of the coefficients: what is nought but for rounding must be nought on every processor


class HashError(ValueError):
    """A text that is no perceptual hash of this project."""


def perceptual_hash(frames: np.ndarray) -> str:
    """Hash of a clip: 256 bits for each of five frames spread over it, as 320 hexadecimal digits.

    A bit says whether a low frequency of the frame's grey picture (64x64, DCT-II, the 16x16 lowest) is stronger than
    the median one: the pHash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).

    Args:
        frames: (T, h, w, 3) u8 RGB, uniform in time.
    """
    from PIL import Image
    from scipy.fft import dctn

    chosen = np.linspace(0, len(frames) - 1, HASHED_FRAMES).round().astype(int)
    size = (_SIDE, _SIDE)
    pictures = [Image.fromarray(frames[i]).convert("L").resize(size, Image.Resampling.LANCZOS) for i in chosen]
    waves = dctn(np.stack(pictures).astype(float), axes=(1, 2))[:, :_LOW, :_LOW]
    waves = np.round(waves.reshape(HASHED_FRAMES, -1), _DECIMALS)
    return np.packbits(waves > np.median(waves, axis=1, keepdims=True), axis=1).tobytes().hex()


def copies_in_pool(shards: Iterable[Path], most_bits: int) -> dict[str, str]:
    """Which clips of all shards show the same as another; of two, the one of the older shard is kept.

    Args:
        shards: folders with clips.parquet, named after their shards.
        most_bits: see ``duplicates``.
    """
    tables = [pq.read_table(shard / "clips.parquet", columns=["shard", "clip", "phash"]) for shard in shards]
    rows = [row for row in pa.concat_tables(tables).to_pylist() if row["phash"]] if tables else []
    found = duplicates([f"{row['shard']}/{row['clip']}" for row in rows], [row["phash"] for row in rows], most_bits)
    return {copy.rpartition("/")[2]: kept.rpartition("/")[2] for copy, kept in found.items()}


def duplicates(clips: Iterable[str], hashes: Iterable[str], most_bits: int) -> dict[str, str]:
    """Which clips of a pool show the same as another.

    The clip with the smallest identity is kept, then the smallest of those that are not its duplicates, and so on:
    the outcome does not depend on the order in which clips came, no two kept clips are alike, and every other clip is
    like the one that is kept for it. One kept clip at a time is compared with all that are left: exact, without any
    table of pairs, and 100,000 clips take about a minute.

    Args:
        clips: identities.
        hashes: the perceptual hash of each.
        most_bits: two clips are alike where none of their hashed frames differs by more than so many of its 256 bits.

    Returns:
        Clip to the clip it duplicates; kept clips are no keys.

    Raises:
        HashError: a hash that `perceptual_hash` cannot have written.
    """
    pool = sorted(zip(clips, hashes, strict=True))
    names = [clip for clip, _ in pool]
    bits = np.stack([_bits(clip, text) for clip, text in pool]) if pool else np.zeros((0, HASHED_FRAMES, _WORDS))
    # The middle frame alone rules out nearly all: first and last ones are often black.
    middle = np.ascontiguousarray(bits[:, HASHED_FRAMES // 2].T)
    found = np.full(len(names), -1)
    for this in range(len(names)):
        if found[this] >= 0:
            continue
        near = this + 1 + np.flatnonzero(_apart(middle[:, this + 1 :], middle[:, this, None]) <= most_bits)
        near = near[found[near] < 0]
        alike = (_apart(bits[near].T, bits[this].T[..., None]) <= most_bits).all(axis=0)
        found[near[alike]] = this
    return {names[i]: names[found[i]] for i in np.flatnonzero(found >= 0)}


def _apart(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """Number of different bits, over the first axis of words."""
    # Word by word: numpy's sum over a short axis takes several times as long.
    return sum(np.bitwise_count(this ^ that).astype(np.uint16) for this, that in zip(these, those, strict=True))


def _bits(clip: str, text: str) -> np.ndarray:
    """(frames, words) u64 of a hash."""
    try:
        return np.frombuffer(bytes.fromhex(text), np.uint64).reshape(HASHED_FRAMES, _WORDS)
    except (TypeError, ValueError):
        shown = str(text)[:40]
        raise HashError(f"clip {clip[:16]}: {shown!r} is no perceptual hash, prepare its shard again") from None
