import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.checkpoints.card import CardError, escape_markdown, flatten, model_card
from assets.splits.release import ReleaseError
from assets.splits.sealing import seal_release

TRAINING = {
    "parameters": {
        "base": "Qwen/Qwen2.5-VL-7B-Instruct",
        "reading_steps": 0,
        "naming_steps": 20,
        "grounding_steps": 40,
        "steps": 500,
        "geometry": {"queries": 16},
        "guidance": {"cells": 1.0, "options": 0.0, "positions": 30.0},
    },
    "steps": 560,
    "questions_seen": {"reading": 0, "naming": 80, "grounding": 320, "videos": 4000},
    "kept": {"which": "best", "step": 400, "best_step": 400, "best_accuracy": 0.6123456},
    "skipped": {"damaged file": 2, "question too long or malformed": 1},
    "skipped_val": {},
    "base_sha256": "ab" * 32,
    "loss": 0.123456789,
    "accuracy": {"train": 0.9, "val": 0.5},
    "history": list(range(100)),
}


@pytest.fixture
def trained(tmp_path):
    """A checkpoint folder with what the card needs, and the release it was trained on."""
    rows = [
        {
            "qa_id": f"{number}-{place}",
            "clip": f"{number:064x}",
            "videoID": f"{number:064x}",
            "shard": "shard-000000",
            "type": "abs_dis",
            "question": "?",
            "options": list("abcd"),
            "answer": "ABCD"[place],
            "split": split,
            "quad": str(number),
            "has_video": True,
            "generator_version": "1",
        }
        for number, split in enumerate(("train", "val", "bench"))
        for place in range(4)
    ]
    for folder in ("questions", "videos/shard-000000/frames", "geometry/shard-000000", "checkpoint"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(3):
        for folder in ("videos/shard-000000/frames", "geometry/shard-000000"):
            (tmp_path / folder / f"{number:064x}.safetensors").write_bytes(b"x")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions" / "questions.parquet")
    seal_release(*(tmp_path / name for name in ("questions", "videos", "geometry", "splits")))
    (tmp_path / "checkpoint" / "training.json").write_text(json.dumps(TRAINING))
    (tmp_path / "checkpoint" / "lineage.json").write_text(json.dumps({"splits": "0f" * 16}))
    return tmp_path


def card_of(root):
    return model_card(root / "checkpoint", root / "splits")


def test_the_card_says_on_what_how_and_what_came_out(trained):
    card = card_of(trained)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert 'base_model: "Qwen/Qwen2.5-VL-7B-Instruct"' in card
    assert "4 questions. The 4 validation questions and the bench's 4 come from other source videos" in card
    assert f"| splits | {'0f' * 16} |" in card
    assert "| geometry.queries | 16 |" in card
    assert "| loss | 0.123457 |" in card
    assert "| accuracy.val | 0.5 |" in card
    assert "| history | 100 values |" in card
    assert card == card_of(trained)


def test_the_card_says_what_was_taught_left_out_and_kept(trained):
    card = card_of(trained)
    stages = card.split("## Stages\n\n")[1].split("\n\n")[0].splitlines()
    assert stages[0] == "| stage | teaches | steps | questions seen |"
    assert [line.split(" | ")[0] for line in stages[2:]] == ["| naming", "| grounding", "| videos"]
    assert [line.split(" | ")[2:] for line in stages[2:]] == [["20", "80 |"], ["40", "320 |"], ["500", "4000 |"]]
    assert "Said beside the answers, by weight: cells 1, positions 30." in card
    assert f"| base weights | {'ab' * 32} |" in card
    left_out = card.split("## Questions left out\n\n")[1].split("\n\n")[0].splitlines()
    assert left_out[2:] == ["| train | damaged file | 2 |", "| train | question too long or malformed | 1 |"]
    assert "The best weights, of step 400 of 560. The best accuracy on validation questions was 0.612346, at" in card


def test_the_card_of_a_plain_training(trained):
    plain = {"parameters": {"guidance": {"options": 0.0}}, "steps": 7, "kept": {"which": "last", "step": 7}}
    (trained / "checkpoint" / "training.json").write_text(json.dumps({**plain, "base_sha256": None, "skipped": {}}))
    card = card_of(trained)
    assert "Nothing was said beside the answers." in card
    assert "| base weights |" not in card and "None: every question could be used." in card
    assert "The last weights, of step 7 of 7; the validation questions were not asked." in card


def test_parameters_of_another_project_have_no_card(trained):
    (trained / "checkpoint" / "training.json").write_text(json.dumps({"parameters": {"epochs": 3}}))
    with pytest.raises(CardError, match=r"training\.json: epochs: no such parameter"):
        card_of(trained)


def test_front_matter_is_yaml_that_hubs_read(trained):
    import yaml

    front = yaml.safe_load(card_of(trained).split("---")[1])
    assert front["pipeline_tag"] == "video-text-to-text"
    assert "geometry" in front["tags"]


@pytest.mark.parametrize("base", [None, "/home/somebody/weights", "../x", 'a/b"\nevil: true'])
def test_a_base_that_is_no_hub_name_is_not_advertised(trained, base):
    changed = {**TRAINING, "parameters": {"base": base}}
    (trained / "checkpoint" / "training.json").write_text(json.dumps(changed))
    front = card_of(trained).split("---")[1]
    assert "base_model" not in front and "evil" not in front


def test_what_comes_from_outside_cannot_leave_its_cell(trained):
    hostile = {"<img src=x onerror=alert(1)>": "a | b\n# heading\n[link](javascript:x) `code`"}
    (trained / "checkpoint" / "lineage.json").write_text(json.dumps(hostile))
    card = card_of(trained)
    assert "<img" not in card and "\n# heading" not in card and "[link](" not in card
    (line,) = [line for line in card.splitlines() if "onerror" in line]
    assert len(re.findall(r"(?<!\\)\|", line)) == 3


@pytest.mark.parametrize("name", ["training.json", "lineage.json"])
def test_a_missing_or_damaged_file_is_named(trained, name):
    (trained / "checkpoint" / name).write_text("[]")
    with pytest.raises(CardError, match=name):
        card_of(trained)
    (trained / "checkpoint" / name).unlink()
    with pytest.raises(CardError, match=name):
        card_of(trained)


def test_a_damaged_release_has_no_card(trained):
    (trained / "splits" / "train.parquet").write_bytes(b"")
    with pytest.raises(ReleaseError):
        card_of(trained)


def test_flatten_and_escape():
    assert flatten({"b": {"y": None, "x": 1 / 3}, "a": [1, 2]}) == {"a": "1, 2", "b.x": "0.333333", "b.y": "none"}
    assert escape_markdown("a_b\n<c> & |d|") == r"a\_b &lt;c&gt; &amp; \|d\|"
