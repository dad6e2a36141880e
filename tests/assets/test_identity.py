"""What DVC says of a small pipeline of copies, one link after the other."""

from pathlib import Path

import pytest
import yaml

from assets.identity import Identity, IdentityError

LINKS = {"first": "data/raw", "second": "data/first"}


@pytest.fixture
def pipeline(tmp_path, monkeypatch) -> Path:
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "clip").write_text("seen")
    (tmp_path / "code.py").write_text("pass")
    (tmp_path / "params.yaml").write_text("size: 1\n")
    stages = {
        name: {"cmd": "true", "deps": ["code.py", source], "outs": [f"data/{name}"], "params": ["size"]}
        for name, source in LINKS.items()
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for name in LINKS:
        make(tmp_path, name)
        Identity(tmp_path).commit(name)
    return tmp_path


def make(pipeline: Path, name: str, text: str = "made") -> None:
    folder = pipeline / "data" / name
    folder.mkdir(exist_ok=True)
    (folder / "clip").unlink(missing_ok=True)
    (folder / "clip").write_text(text)


def current(identity: Identity) -> dict[str, bool]:
    return {name: identity.is_current(name) for name in LINKS}


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("data/raw/clip", "another", {"first": False, "second": True}),
        ("data/raw/more", "seen", {"first": False, "second": True}),
        ("data/first/clip", "another", {"first": False, "second": False}),
        ("data/second/clip", "another", {"first": True, "second": False}),
        ("code.py", "None", {"first": False, "second": False}),
        ("params.yaml", "size: 2\n", {"first": False, "second": False}),
        ("params.yaml", "size: 1\nother: 2\n", {"first": True, "second": True}),
    ],
)
def test_a_link_is_current_while_nothing_of_it_changed(pipeline, path, text, expected):
    identity = Identity(pipeline)
    assert current(identity) == {"first": True, "second": True}
    (pipeline / path).unlink(missing_ok=True)
    (pipeline / path).write_text(text)
    assert current(identity) == expected
    from dvc.repo import Repo

    changed = Repo(str(pipeline)).status()
    assert {name: name not in changed for name in LINKS} == expected


def test_a_commit_by_someone_else_is_seen_after_a_refresh(pipeline):
    identity, other = Identity(pipeline), Identity(pipeline)
    make(pipeline, "first", "anew")
    assert current(identity) == {"first": False, "second": False}
    other.commit("first")
    identity.refresh()
    assert current(identity) == {"first": True, "second": False}
    assert identity.locked_hash("first") == other.hash_on_disk("first")


def test_a_changed_command_and_a_link_never_made_are_not_current(pipeline):
    document = yaml.safe_load((pipeline / "dvc.yaml").read_text())
    document["stages"]["second"]["cmd"] = "false"
    document["stages"]["third"] = {"cmd": "true", "outs": ["data/third"]}
    (pipeline / "dvc.yaml").write_text(yaml.safe_dump(document))
    identity = Identity(pipeline)
    assert [identity.is_current(name) for name in ("first", "second", "third")] == [True, False, False]
    assert identity.locked_hash("third") is None
    with pytest.raises(IdentityError, match="no stage 'fourth'"):
        identity.is_current("fourth")


def test_nobody_else_writes_while_dvc_is_asked(pipeline, monkeypatch):
    from dvc.stage import PipelineStage

    status, held = PipelineStage.status, []
    monkeypatch.setattr(PipelineStage, "status", lambda stage: held.append(stage.repo.lock.is_locked) or status(stage))
    assert Identity(pipeline).is_current("first")
    assert held == [True]
