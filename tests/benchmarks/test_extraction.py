import gzip
import json

from assets.workspace import Workspace
from benchmarks.evaluation.extraction import figures

CHOICES = {"A": "left", "B": "right", "C": 2, "D": "not moving"}


def published(folder, replies):
    """A workspace beside published replies (mode, reply, judge)."""
    path = folder / "shared" / "data" / "benchmarks" / "vlm4d" / "model_responses_6000.jsonl.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        for number, (mode, reply, judge) in enumerate(replies):
            row = {"split": "real", "mode": mode, "model": "m", "id": f"v_{number}", "choices": CHOICES, "gt": "left"}
            file.write(json.dumps(row | {"response": reply, "judge": judge, "correct": False}) + "\n")
    (folder / "project").mkdir()
    return Workspace(folder / "project")


def test_agreement_is_counted_and_disagreements_are_listed_by_class(tmp_path):
    replies = [("cot", "The answer is: A", "A: left")] * 6 + [("direct-output", "B", "B: right")] * 8
    replies += [("cot", "The answer is: A", "B: right"), ("cot", "Who knows.", "A: left")]
    replies += [("cot", "It goes left.", "No Valid Answer"), ("cot", "Who knows.", "No Valid Answer")]
    workspace = published(tmp_path, replies)
    found = figures(workspace)
    assert (found["extraction_cot"].value, found["extraction_direct"].value) == (0.7, 1.0)
    assert (found["extraction_cot"].missed, found["extraction_direct"].missed) == (True, False)
    how = found["extraction_cot"].how
    assert "1 another option" in how and "1 we found none" in how and "1 judge found none" in how
    listed = json.loads((workspace.root / "reports" / "benchmarks" / "extraction_disagreements.json").read_text())
    assert [row["class"] for row in listed] == ["another option", "judge found none", "we found none"]


def test_without_the_replies_there_is_a_reason(tmp_path):
    (tmp_path / "project").mkdir()
    found = figures(Workspace(tmp_path / "project"))
    assert {figure.value for figure in found.values()} == {None}
    assert "no published replies" in found["extraction_cot"].how


def test_the_published_replies_are_read_as_their_judge_reads_them(shared_data, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "shared").symlink_to(shared_data.parent)
    for name, figure in figures(Workspace(tmp_path / "project")).items():
        assert not figure.missed, f"{name}: {figure.value}"
