"""The benchmark's scenes, tiny."""

import pytest

from benchmarks.geometry import scenes
from tests.assets.geometry.conftest import make_record  # noqa: F401

KINDS = ("truck", "pan", "cut", "frozen")


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """One tiny clip of each of KINDS, by kind."""
    with pytest.MonkeyPatch.context() as patch:
        small = scenes.SCENES.model_copy(update={"width": 96, "height": 72, "fps": 6, "seconds": 1, "most_things": 3})
        patch.setattr(scenes, "SCENES", small)
        patch.setattr(scenes.tempfile, "tempdir", str(tmp_path_factory.mktemp("scenes")))
        yield {kind: scenes._clip((f"tiny-{kind}", kind, number)) for number, kind in enumerate(KINDS)}
