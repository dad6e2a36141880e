from dataclasses import replace

import pytest
import torch

from benchmarks.evaluation import speed
from benchmarks.evaluation.speed import figures
from benchmarks.training.prefix import SMALL
from benchmarks.training.workload import configuration
from models.geometric_qwen import GeometricQwen

TINY = replace(SMALL, grid=(2, 4, 4), layers=2, questions=3)


def test_the_three_ways_agree_and_are_timed_in_one_run():
    found = figures(TINY, repetitions=1)
    assert set(found) == {"shared_prefix_speedup", "shared_prefix_speedup_bench"}
    assert [figure.bound for figure in found.values()] == [3, 2]
    for figure, questions in zip(found.values(), ("3", "2.6"), strict=True):
        assert figure.value > 0 and figure.how.startswith(f"{questions} questions on a clip")
        assert "generate call of 2 tokens" in figure.how and "same predictions" in figure.how


def test_other_predictions_are_not_timed(monkeypatch):
    wrong = speed.plain_logits
    monkeypatch.setattr(speed, "plain_logits", lambda model, tree: -wrong(model, tree))
    with pytest.raises(RuntimeError, match="different predictions"):
        figures(TINY, repetitions=1)


def test_the_full_size_can_be_built():
    """Widths that do not fit each other would be found out only where the figure is measured."""
    with torch.device("meta"):
        model = GeometricQwen(configuration(speed.EIGHTH))
    assert model.tokens_per_second == speed.TOKENS_PER_SECOND and speed.EIGHTH.vision_tokens == 4224
