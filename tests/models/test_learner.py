from dataclasses import replace

import lightning
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator

from models.attention import FLOAT32
from models.data import questions_of
from models.gsm import CELL_CHANNELS
from models.learner import build_learner, on_cpu


@pytest.mark.parametrize(
    ("accelerator", "found", "attention", "taken"),
    [
        ("cpu", False, "sdpa", FLOAT32),
        ("cpu", True, "sdpa", FLOAT32),
        ("auto", False, "sdpa", FLOAT32),
        ("auto", True, "sdpa", "sdpa"),
        ("gpu", True, "sdpa", "sdpa"),
        ("auto", False, "flex_attention", "flex_attention"),
    ],
)
def test_sdpa_is_in_float32_wherever_a_training_ends_up_on_the_cpu(
    release, parameters, monkeypatch, accelerator, found, attention, taken
):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found)
    chosen = replace(parameters, accelerator=accelerator, attention=attention)
    model = build_learner(questions_of(release.table, with_answer=True), CELL_CHANNELS, chosen).model
    assert model.model.language_model.config._attn_implementation == taken


def test_auto_is_what_lightning_makes_of_it(parameters):
    trainer = lightning.Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
    assert on_cpu(replace(parameters, accelerator="auto")) == isinstance(trainer.accelerator, CPUAccelerator)
