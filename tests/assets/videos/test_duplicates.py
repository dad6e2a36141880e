import numpy as np
import pytest
from PIL import Image

from assets.videos.duplicates import HashError, duplicates, perceptual_hash
from assets.videos.parameters import VideoParameters
from assets.videos.reader import read_clip
from assets.videos.world import encode

MOST_BITS = VideoParameters().duplicate_bits


def footage(seed: int, frames: int = 12, width: int = 160, height: int = 120) -> np.ndarray:
    """(T, H, W, 3) u8: a camera that pans over a rough landscape of its own."""
    rough = np.random.default_rng(seed).integers(0, 256, (12, 24, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(rough).resize((2 * width, height), Image.Resampling.BICUBIC))
    return np.stack([wide[:, 6 * t : 6 * t + width] for t in range(frames)])


def resized(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def brightened(frames: np.ndarray) -> np.ndarray:
    return np.clip(frames * 1.2 + 8, 0, 255).astype(np.uint8)


COPIES = {
    "smaller": lambda frames: resized(frames, 96, 72),
    "cropped": lambda frames: frames[:, 3:-3, 4:-4],
    "brighter": brightened,
    "grey": lambda frames: np.broadcast_to(frames.mean(-1, keepdims=True).astype(np.uint8), frames.shape),
    "all at once": lambda frames: brightened(resized(frames[:, 3:-3, 4:-4], 100, 76)),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found(copy):
    hashes = [perceptual_hash(footage(1)), perceptual_hash(COPIES[copy](footage(1))), perceptual_hash(footage(2))]
    assert duplicates("abc", hashes, MOST_BITS) == {"b": "a"}


def test_a_re_encoding_is_found(tmp_path):
    encode(tmp_path / "a.mp4", footage(1), 4, crf=18)
    encode(tmp_path / "b.mp4", footage(1), 4, crf=40)
    hashes = [perceptual_hash(read_clip(tmp_path / name, 12, 10**6, 20)[1]) for name in ("a.mp4", "b.mp4")]
    assert duplicates("ab", hashes, MOST_BITS) == {"b": "a"}


def test_clips_that_only_begin_alike_are_two():
    other = np.concatenate([footage(1)[:6], footage(2)[6:]])
    assert duplicates("ab", [perceptual_hash(footage(1)), perceptual_hash(other)], MOST_BITS) == {}


def flipped(text: str, bits: int) -> str:
    """A hash with so many bits of its middle frame turned over."""
    data = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    data[512 : 512 + bits] ^= 1
    return np.packbits(data).tobytes().hex()


def test_the_bound_is_the_bound_and_the_smallest_clip_is_kept_in_any_order():
    one = perceptual_hash(footage(1))
    pool = {"a": one, "b": flipped(one, 6), "c": flipped(one, 12), "d": flipped(one, 13)}
    # c is like b, and d like c; but only what is like a kept clip goes.
    expected = {"b": "a", "d": "c"}
    assert duplicates(pool, pool.values(), 6) == expected
    backwards = dict(reversed(pool.items()))
    assert duplicates(backwards, backwards.values(), 6) == expected
    assert duplicates(pool, pool.values(), 5) == {"d": "c"}


def test_against_every_pair_of_a_large_pool():
    rng = np.random.default_rng(0)
    whole = [perceptual_hash(footage(seed, 5, 32, 24)) for seed in range(40)]
    names = [f"{n:04d}" for n in range(400)]
    hashes = [flipped(whole[int(rng.integers(40))], int(rng.integers(0, 90))) for _ in names]
    bits = np.stack([np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)).reshape(5, 256) for text in hashes])
    expected, kept = {}, []
    for this, name in enumerate(names):
        like = [names[other] for other in kept if ((bits[this] != bits[other]).sum(-1) <= 40).all()]
        expected.update({name: like[0]} if like else {})
        kept += [] if like else [this]
    assert 100 < len(expected) < 400
    assert duplicates(names, hashes, 40) == expected


def test_what_is_nought_but_for_rounding_is_nought():
    assert perceptual_hash(np.full((3, 20, 30, 3), 77, np.uint8)) == "8" + "0" * 63 + ("8" + "0" * 63) * 4
    assert duplicates([], [], MOST_BITS) == {}


@pytest.mark.parametrize("text", ["", "zz" * 160, "00", None])
def test_a_text_that_is_no_hash_is_named(text):
    with pytest.raises(HashError, match=r"clip a: .* prepare its shard again"):
        duplicates(["a"], [text], MOST_BITS)
