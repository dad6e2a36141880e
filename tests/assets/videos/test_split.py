from collections import Counter

import pytest

from assets.videos.scenery import seed_of
from assets.videos.split import SplitParameters, split_of

PINNED = ["train", "train", "bench", "bench", *["train"] * 4, "bench", *["train"] * 3]


def test_a_source_never_changes_sides():
    """Pinned: a release would leak if an update of this project dealt the same sources anew."""
    sides = [split_of(str(i), SplitParameters()) for i in range(12)]
    assert sides == PINNED
    assert sides != [split_of(str(i), SplitParameters(salt="other")) for i in range(12)]


def test_shares_are_as_asked():
    parameters = SplitParameters(train=0.6, val=0.15, bench=0.25)
    counts = Counter(split_of(f"{seed_of(i):064x}", parameters) for i in range(4000))
    assert {side: n / 4000 for side, n in counts.items()} == pytest.approx(
        {"train": 0.6, "val": 0.15, "bench": 0.25}, abs=0.03
    )


def test_shares_must_make_one():
    with pytest.raises(ValueError, match=r"make 1\.1, not 1"):
        SplitParameters(train=0.8)
