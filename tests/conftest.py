"""Fixtures of the whole suite: real data where it is at hand, and workspaces of one's own."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("assets", "models", "validations", "orchestration", ".dvc/config", "dvc.yaml", "params.yaml", ".dvcignore")

# Small enough for the suite, large enough that every link has something to do.
TINY = {
    "sample_world": {"clips": 12, "width": 96, "height": 72},
    "questions": {"candidates_per_type": 12, "max_per_clip": 24, "draws": 4, "reader_epochs": 1, "audit_steps": 20},
    "checkpoint": {"reading_steps": 4, "steps": 6, "checkpoint_every": 3, "log_every": 2},
    "benchmark": {"examples": 4},
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips, truth and benchmark rows that lie beside a developer's checkout and never in the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


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
    laptop = document["laptop"]
    for section, values in {**TINY, **(overrides or {})}.items():
        laptop[section] = {**laptop[section], **values}
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "laptop", "laptop": laptop}))
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


@pytest.fixture
def workspace(tmp_path) -> Path:
    """A fresh tiny workspace."""
    return make_workspace(tmp_path / "workspace")
