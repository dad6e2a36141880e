"""The model that a training begins with: its weights, its adapters, what of it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning
import torch
import transformers

from models.attention import FLOAT32
from models.configuration import geometry_config
from models.data import Question
from models.geometric_qwen import GeometricQwen, load_base
from models.lora import add_lora
from models.module import choose_trained
from models.parameters import TrainingParameters
from models.prompt import build_tokenizer, question_text, special_ids
from models.tiny import tiny_config
from models.weights import open_weights

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Learner:
    """A model as it is before its first step.

    Attributes:
        model: with frozen parts frozen, and adapters where there are any.
        tokenizer: of transformers.
        view: peft's of the same model, or None.
    """

    model: GeometricQwen
    tokenizer: Any
    view: PeftModel | None


def build_model(
    questions: Sequence[Question], channels: int, parameters: TrainingParameters
) -> tuple[GeometricQwen, Any]:
    """The model to train and its tokenizer: from `base`, or the tiny one drawn from the seed."""
    geometry = geometry_config(parameters.geometry, channels)
    lightning.seed_everything(parameters.seed, workers=True, verbose=False)
    if parameters.base:
        dtype = torch.bfloat16 if parameters.precision == "bf16-true" else torch.float32
        model = load_base(
            parameters.base, geometry, revision=parameters.revision, attention=parameters.attention, dtype=dtype
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(parameters.base, revision=parameters.revision or "main")
        return model.train(), tokenizer
    texts = {question_text(question.question, question.options) for question in questions}
    tokenizer = build_tokenizer(texts, parameters.tiny.vocabulary)
    config = tiny_config(parameters.tiny, special_ids(tokenizer), geometry)
    config.text_config._attn_implementation = parameters.attention
    return GeometricQwen(config), tokenizer


def build_learner(questions: Sequence[Question], channels: int, parameters: TrainingParameters) -> Learner:
    """The model with its adapters and with everything frozen that is not trained; the same at every call."""
    model, tokenizer = build_model(questions, channels, parameters)
    view = add_lora(model, parameters) if parameters.lora.rank else None
    choose_trained(model, parameters)
    if parameters.attention == "sdpa" and on_cpu(parameters):
        model.attend_with(FLOAT32)
    if parameters.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # It also has the pixels' embedding ask for gradients, and with them the whole frozen vision tower.
        model.disable_input_require_grads()
    if parameters.compile:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=True)
    return Learner(model, tokenizer, view)


def on_cpu(parameters: TrainingParameters) -> bool:
    """Whether Lightning will train on the CPU, which `auto` stands for where there is nothing else."""
    found = torch.accelerator.is_available()
    return parameters.accelerator == "cpu" or (parameters.accelerator == "auto" and not found)


def base_sha256(parameters: TrainingParameters) -> str | None:
    """Hash of the bytes of the base's weights; None where the model is made from nothing."""
    if not parameters.base:
        return None
    return open_weights("@".join(filter(None, (parameters.base, parameters.revision)))).sha256
