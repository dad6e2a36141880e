"""Fixtures of the whole suite: real data where it is at hand, and workspaces of one's own."""

import shutil
import subprocess
from pathlib import Path

import hypothesis
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("assets", "models", "validations", "orchestration", ".dvc/config", "dvc.yaml", "params.yaml", ".dvcignore")

# Small enough for the suite, large enough that every link has something to do.
TINY = {
    "sample_world": {"clips": 12, "width": 96, "height": 72, "seconds": 8},
    "videos": {"sheet_frames": 4},
    "geometry": {"points_side": 48, "prior_side": 8},
    "questions": {
        "pool_per_type": 256,
        "candidates_per_type": 12,
        "max_per_clip": 24,
        "draws": 4,
        "reader_epochs": 1,
        "audit_steps": 20,
    },
    "checkpoint": {
        "tiny": {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 1, "intermediate_size": 64}
        | {"vision_depth": 1, "vision_width": 32, "vision_heads": 2},
        "geometry": {"heads": 0},
        "reading_steps": 2,
        "naming_steps": 2,
        "grounding_steps": 2,
        "steps": 6,
        "clips_per_batch": 2,
        "questions_per_clip": 2,
        "max_frames": 4,
        "max_pixels": 784,
        "threads": 1,
        "checkpoint_every": 3,
        "log_every": 2,
    },
    "benchmark": {"examples": 4, "resamples": 200},
}

# How long one example takes says nothing where several processes share two cores.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the whole chain run first, for they take longest, and in one process, for they share a workspace."""
    items.sort(key=lambda item: "finished" not in item.fixturenames)
    for item in items:
        if "finished" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("chain"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips, truth and benchmark rows that lie beside a developer's checkout and never in the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


def merged(parameters: dict, changes: dict) -> dict:
    """Nested parameters with some of them changed."""
    return parameters | {
        name: merged(parameters[name], value) if isinstance(value, dict) else value for name, value in changes.items()
    }


def make_workspace(folder: Path, overrides: dict | None = None) -> Path:
    """A workspace of its own in `folder`: a copy of the code that DVC hashes, with the laptop profile made tiny."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (folder / "shards.yaml").write_text("sample_shards: [shard-000000]\nshards: [shard-000000]\n")
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    laptop = merged(merged(document["laptop"], TINY), overrides or {})
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "laptop", "laptop": laptop}))
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


@pytest.fixture
def workspace(tmp_path) -> Path:
    """A fresh tiny workspace."""
    return make_workspace(tmp_path / "workspace")
