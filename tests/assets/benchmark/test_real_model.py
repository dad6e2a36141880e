"""The whole way with the project's own model: train it a few steps, card it, evaluate it."""

import json

import pytest

from assets.benchmark.evaluate import evaluate
from assets.checkpoints.card import model_card
from benchmarks.training.resume import SMALLEST

TINY = {
    "tiny": SMALLEST,
    "geometry": {"queries": 3, "octaves": 2, "heads": 0},
    "reading_steps": 2,
    "naming_steps": 1,
    "grounding_steps": 2,
    "steps": 4,
    "clips_per_batch": 2,
    "questions_per_clip": 4,
    "max_frames": 4,
    "max_pixels": 3136,
    "threads": 1,
}


@pytest.fixture(scope="module")
def checkpoint(world, tmp_path_factory):
    from models.parameters import TrainingParameters
    from models.train import train

    root = tmp_path_factory.mktemp("trained")
    places = (world / "splits", world / "videos", world / "geometry", root / "checkpoint", root / "work")
    train(*places, TrainingParameters.from_mapping(TINY), progress=lambda *_: None)
    return root / "checkpoint"


def test_the_real_model_is_evaluated_end_to_end(world, checkpoint, tmp_path, identity, parameters):
    places = [world / name for name in ("splits", "videos", "geometry")]
    seen = []
    metrics = evaluate(checkpoint, *places, tmp_path / "first", parameters, identity, lambda *what: seen.append(what))
    assert metrics["overall"]["n"] == 48
    assert {what for *_, what in seen} >= {"with video", "blind"}
    assert "chance" in (tmp_path / "first" / "report.md").read_text()
    evaluate(checkpoint, *places, tmp_path / "second", parameters, identity)
    for name in ("metrics.json", "predictions.parquet", "report.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_card_of_a_real_checkpoint(world, checkpoint):
    (checkpoint / "lineage.json").write_text(json.dumps({"splits": "0" * 32}))
    card = model_card(checkpoint, world / "splits")
    training = json.loads((checkpoint / "training.json").read_text())
    assert f"| train\\_questions | {training['train_questions']} |" in card
    assert "| geometry.queries | 3 |" in card
    assert str(world) not in card
