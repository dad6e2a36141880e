"""Everything about the network and its training that a user may tune."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

FORBID_EXTRA: dict[str, str] = {"extra": "forbid"}


class ParameterError(ValueError):
    """A parameter is unknown, has the wrong type or lies outside its bounds."""


def _bounded(default: Any, description: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"description": description, "low": low, "high": high})


class _Checked:
    """Bounds and choices are checked when the object is made, so that a bad value never reaches training."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in dataclasses.fields(self):  # type: ignore[arg-type]
            value, low, high = getattr(self, entry.name), entry.metadata.get("low"), entry.metadata.get("high")
            choices = get_args(hints[entry.name]) if get_origin(hints[entry.name]) is Literal else ()
            if choices and value not in choices:
                raise ParameterError(f"{entry.name} = {value!r}: choose one of {', '.join(choices)}")
            if low is not None and value < low:
                raise ParameterError(f"{entry.name} = {value}: must be at least {low}")
            if high is not None and value > high:
                raise ParameterError(f"{entry.name} = {value}: must be at most {high}")


@dataclass(frozen=True)
class TinyModelParameters(_Checked):
    """The Qwen2.5-VL that is made from nothing where no `base` is given: the same classes, a laptop's size."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    vocabulary: int = _bounded(1024, "entries of the tokenizer built from the training text", 300)
    hidden_size: int = _bounded(128, "width of the language model", 32)
    layers: int = _bounded(4, "decoder layers", 1)
    heads: int = _bounded(4, "attention heads; hidden_size / heads must be a multiple of 16", 1)
    key_value_heads: int = _bounded(2, "key and value heads (grouped-query attention)", 1)
    intermediate_size: int = _bounded(256, "width of the decoder's SwiGLU", 32)
    vision_depth: int = _bounded(2, "blocks of the vision tower", 1)
    vision_width: int = _bounded(64, "width of the vision tower", 16)
    vision_heads: int = _bounded(4, "attention heads of the vision tower", 1)


@dataclass(frozen=True)
class GeometryModelParameters(_Checked):
    """The Geometry Selection Module (paper section 4)."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    queries: int = _bounded(16, "learned queries = geometry tokens per question; 0 trains without geometry", 0)
    condenser_depth: int = _bounded(1, "blocks of Q-Former 1, which reads the question", 1)
    selector_depth: int = _bounded(1, "blocks of Q-Former 2, which reads the prior features", 1)
    prior: Literal["cells", "tokens"] = _bounded(
        "cells", "what prior_features hold: geometric cells, or tokens of a reconstruction network"
    )
    octaves: int = _bounded(4, "Fourier octaves of a geometric cell's coordinates", 0)
    merge_time: int = _bounded(2, "time slots merged into one key", 1)
    merge_space: int = _bounded(2, "cells merged into one key along each side", 1)


@dataclass(frozen=True)
class LearningRates(_Checked):
    """AdamW's peak learning rate for each part; 0 freezes a part."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    language: float = _bounded(1.5e-3, "decoder, embeddings and head", 0)
    vision: float = _bounded(0.0, "vision tower without its merger", 0)
    merger: float = _bounded(1.5e-3, "the vision tower's patch merger", 0)
    geometry: float = _bounded(1.5e-3, "queries, Q-Formers and the projection of the prior", 0)


@dataclass(frozen=True)
class TrainingParameters(_Checked):
    """One training run. The defaults are the laptop profile: two cores, a few minutes, no downloaded weights."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    base: str | None = _bounded(None, "local folder or hub id of a Qwen2.5-VL; none makes the tiny model")
    tiny: TinyModelParameters = field(default_factory=TinyModelParameters)
    geometry: GeometryModelParameters = field(default_factory=GeometryModelParameters)
    learning_rates: LearningRates = field(default_factory=LearningRates)
    reading_steps: int = _bounded(
        400, "text-only steps in which the answer is stated and only has to be found among the options", 0
    )
    steps: int = _bounded(180, "steps on questions about the videos", 0)
    clips_per_batch: int = _bounded(4, "shared prefixes in a batch", 1)
    questions_per_clip: int = _bounded(4, "branches on one prefix", 1)
    max_frames: int = _bounded(16, "frames shown to the vision tower, uniform over what the frames file holds", 1)
    max_pixels: int = _bounded(7056, "pixels per frame after resizing to multiples of 28", 784)
    min_pixels: int = _bounded(784, "frames with fewer pixels are enlarged to this many", 784)
    max_text_tokens: int = _bounded(2048, "a longer question with its options is refused", 16)
    weight_decay: float = _bounded(0.01, "AdamW's, on matrices only", 0)
    warmup_share: float = _bounded(0.03, "share of each stage's steps with a rising learning rate", 0, 1)
    decay: Literal["cosine", "linear", "constant"] = _bounded("linear", "learning rate after the warm-up")
    clip_norm: float = _bounded(1.0, "gradients are scaled down to this norm", 0)
    precision: Literal["32-true", "bf16-mixed"] = _bounded("32-true", "as Lightning names it")
    accelerator: Literal["cpu", "gpu", "auto"] = _bounded("cpu", "as Lightning names it")
    threads: int = _bounded(2, "CPU threads of one operation; the last bits of a result depend on it", 1)
    cached_clips: int = _bounded(64, "clips whose decoded arrays are kept in memory", 0)
    checkpoint_every: int = _bounded(50, "steps between two saves of the resumable state", 1)
    log_every: int = _bounded(10, "steps between two rows of the learning curves", 1)
    seed: int = _bounded(0, "of weights and of the order of questions", 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reading_steps and not self.learning_rates.language:
            raise ParameterError(
                "learning_rates.language = 0: the reading stage trains the language model alone, set reading_steps to 0"
            )
        if self.steps and not any(dataclasses.astuple(self.learning_rates)):
            raise ParameterError("learning_rates: all are 0, nothing would be trained")
        if self.reading_steps + self.steps == 0:
            raise ParameterError("steps = 0 and reading_steps = 0: nothing would be trained")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TrainingParameters:
        """Build from plain nested mappings.

        Raises:
            ParameterError: for an unknown name, a wrong type or a value out of bounds.
        """
        return _from_mapping(cls, mapping, "")

    def to_mapping(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON; `from_mapping` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def _from_mapping(cls: type, mapping: Mapping[str, Any], path: str) -> Any:
    hints = get_type_hints(cls)
    known = {entry.name for entry in dataclasses.fields(cls)}
    if not isinstance(mapping, Mapping):
        raise ParameterError(f"{path.rstrip('.') or 'parameters'} = {mapping!r}: expected names with values")
    if unknown := sorted(set(mapping) - known):
        raise ParameterError(f"{path}{unknown[0]}: no such parameter; known are {', '.join(sorted(known))}")
    return cls(**{name: _converted(hints[name], value, f"{path}{name}") for name, value in mapping.items()})


def _converted(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _from_mapping(hint, value, f"{path}.")
    if get_origin(hint) is Literal:
        return value
    kinds = get_args(hint) or (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ParameterError(f"{path} = {value!r}: expected {names}")
    return value
