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
            if value is None:
                continue
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
    key_value_heads: int = _bounded(4, "key and value heads (grouped-query attention)", 1)
    intermediate_size: int = _bounded(256, "width of the decoder's SwiGLU", 32)
    vision_depth: int = _bounded(2, "blocks of the vision tower", 1)
    vision_width: int = _bounded(64, "width of the vision tower", 16)
    vision_heads: int = _bounded(4, "attention heads of the vision tower", 1)


@dataclass(frozen=True)
class GeometryModelParameters(_Checked):
    """The Geometry Selection Module (paper section 4) and what the ablation puts in its place."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    variant: Literal["none", "addition", "concatenation", "gsm", "fused"] = _bounded(
        "gsm", "how geometry reaches the language model; fused adds a gated fusion with the vision tokens (GeoSR)"
    )
    reads: Literal["question", "prompt"] = _bounded(
        "question", "what Q-Former 1 reads: the question's own tokens, or the whole prompt as the reference does"
    )
    queries: int = _bounded(16, "learned queries = geometry tokens per question; 0 trains without geometry", 0)
    condenser_depth: int = _bounded(2, "blocks of Q-Former 1, which reads the question", 1)
    selector_depth: int = _bounded(1, "blocks of Q-Former 2, which reads the prior features", 1)
    prior: Literal["cells", "tokens"] = _bounded(
        "cells", "what prior_features hold: geometric cells, or tokens of a reconstruction network"
    )
    octaves: int = _bounded(4, "Fourier octaves of a geometric cell's coordinates and colour", 0)
    merge_time: int = _bounded(1, "time slots merged into one key", 1)
    merge_space: int = _bounded(1, "cells merged into one key along each side", 1)
    heads: int = _bounded(8, "attention heads of the module; 0 takes the language model's", 0)
    window: int = _bounded(2, "slots of time each query sees, the queries spread over the clip; 0 is all of them", 0)
    context: int = _bounded(4, "a token of the question is read with those before it, so many; 1 reads it alone", 1)
    nobody: bool = _bounded(
        True, "heads may look at nobody, who reads as zeros, as the camera's own place does; not at a cell then"
    )
    speak: bool = _bounded(
        True,
        "geometry tokens say what follows from the question and what was read, and show nothing of how they came to it",
    )
    fusion_mask_share: float = _bounded(
        0.8, "share of the vision tokens that training masks in the fused variant, the most attended first", 0, 1
    )
    fusion_mask_probability: float = _bounded(0.5, "how often it masks them", 0, 1)

    @property
    def uses_prior(self) -> bool:
        """Whether the model reads prior features at all."""
        return self.variant in ("addition", "concatenation") or self.selects

    @property
    def selects(self) -> bool:
        """Whether the model has a Geometry Selection Module."""
        return self.variant in ("gsm", "fused") and self.queries > 0


@dataclass(frozen=True)
class GuidanceParameters(_Checked):
    """What training says beside the answers, as weights of auxiliary losses (see models.grounding); 0 says nothing."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    options: float = _bounded(1.0, "which option is right, asked at the end of each", 0)
    words: float = _bounded(1.0, "Q-Former 1 looks at the words that name the question's things", 0)
    kinds: float = _bounded(1.0, "geometry tokens that speak know what a question asks for", 0)
    names: float = _bounded(1.0, "keys tell by name whose they are", 0)
    cells: float = _bounded(3.0, "Q-Former 2 looks at the cells of the question's things", 0)
    positions: float = _bounded(
        10.0, "what geometry tokens are made of holds where these things are and how they move", 0
    )
    states: float = _bounded(4.0, "geometry tokens say what happens at their moment", 0)
    in_videos: float = _bounded(0.3, "share of the last six weights in the stage on questions about videos", 0)

    @classmethod
    def silent(cls) -> GuidanceParameters:
        """Nothing is said."""
        return cls(**{entry.name: 0.0 for entry in dataclasses.fields(cls)})

    @property
    def given(self) -> bool:
        """Whether anything is said."""
        return any(dataclasses.astuple(self))


@dataclass(frozen=True)
class LearningRates(_Checked):
    """AdamW's peak learning rate for each part; 0 freezes a part."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    language: float = _bounded(1.4e-3, "decoder, embeddings and head", 0)
    vision: float = _bounded(0.0, "vision tower without its merger", 0)
    merger: float = _bounded(2e-3, "the vision tower's patch merger", 0)
    geometry: float = _bounded(1e-2, "queries, Q-Formers, the projection of the prior, and what guides them", 0)


@dataclass(frozen=True)
class LoraParameters(_Checked):
    """Low-rank adapters on the language model's matrices (Hu et al. 2022), which then stay frozen themselves."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    rank: int = _bounded(0, "rank of the adapters; 0 trains the matrices themselves", 0)
    alpha: float = _bounded(32.0, "adapters are scaled by alpha / rank", 0)
    dropout: float = _bounded(0.0, "share of an adapter's inputs that is dropped in training", 0, 1)
    targets: tuple[str, ...] = _bounded(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "matrices of a decoder layer that get an adapter",
    )


@dataclass(frozen=True)
class TrainingParameters(_Checked):
    """One training run. The defaults are the laptop profile: two cores, a few minutes, no downloaded weights."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_EXTRA

    base: str | None = _bounded(None, "local folder or hub id of a Qwen2.5-VL or Qwen3-VL; none makes the tiny model")
    revision: str | None = _bounded(None, "commit, tag or branch of the hub id; none is the newest")
    tiny: TinyModelParameters = field(default_factory=TinyModelParameters)
    geometry: GeometryModelParameters = field(default_factory=GeometryModelParameters)
    lora: LoraParameters = field(default_factory=LoraParameters)
    learning_rates: LearningRates = field(default_factory=LearningRates)
    guidance: GuidanceParameters = field(default_factory=GuidanceParameters)
    reading_steps: int = _bounded(
        620, "text-only steps in which what happens is stated and has to be found among the options", 0
    )
    reading_questions: int = _bounded(24, "questions in such a step", 1)
    naming_steps: int = _bounded(150, "steps in which the prior's cells learn whose they are", 0)
    grounding_steps: int = _bounded(400, "steps of the geometry module alone, before the language model joins it", 0)
    steps: int = _bounded(185, "steps on questions about the videos", 0)
    grounding_rate: float = _bounded(0.5, "share of the learning rates that the stage of grounding has", 0, 1)
    videos_rate: float = _bounded(0.7, "share of the learning rates that the stage on videos has", 0, 1)
    videos_geometry_rate: float = _bounded(0.1, "the same for the geometry module, which knows its part by then", 0, 1)
    clips_per_batch: int = _bounded(4, "shared prefixes in a step, over all micro-batches and devices", 1)
    questions_per_clip: int = _bounded(16, "branches on one prefix, at most", 1)
    tokens_per_batch: int = _bounded(
        0, "steps on videos take as many prefixes as fit into so many slots with padding; 0: clips_per_batch of them", 0
    )
    accumulate: int = _bounded(1, "micro-batches that a device cuts its part of a step into; the objective stays", 1)
    max_frames: int = _bounded(4, "frames shown to the vision tower, uniform over what the frames file holds", 1)
    max_pixels: int = _bounded(3136, "pixels per frame after resizing to multiples of 28", 784)
    min_pixels: int = _bounded(784, "frames with fewer pixels are enlarged to this many", 784)
    max_text_tokens: int = _bounded(2048, "a longer question with its options is refused", 16)
    weight_decay: float = _bounded(0.01, "AdamW's, on matrices only", 0)
    warmup_share: float = _bounded(0.03, "share of each stage's steps with a rising learning rate", 0, 1)
    decay: Literal["cosine", "linear", "constant"] = _bounded("linear", "learning rate after the warm-up")
    clip_norm: float = _bounded(1.0, "gradients are scaled down to this norm", 0)
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = _bounded(
        "32-true", "bf16-mixed keeps what is trained in float32, bf16-true nothing; many CPUs compute neither well"
    )
    accelerator: Literal["cpu", "gpu", "auto"] = _bounded("cpu", "as Lightning names it")
    strategy: Literal["auto", "ddp", "fsdp"] = _bounded(
        "auto", "several devices: each holds the model (ddp, which auto takes) or a shard of it (fsdp)"
    )
    devices: int = _bounded(1, "devices of a machine", 1)
    nodes: int = _bounded(1, "machines", 1)
    attention: Literal["sdpa", "flex_attention"] = _bounded(
        "sdpa", "the language model's; flex_attention skips the blocks of long rows that no question sees"
    )
    gradient_checkpointing: bool = _bounded(False, "recompute activations in the backward pass to save memory")
    compile: bool = _bounded(False, "compile the decoder layers; pays on GPUs and long trainings")
    loader_workers: int = _bounded(0, "processes that prepare batches ahead; 0: the training process does", 0)
    threads: int = _bounded(2, "CPU threads of one operation; the last bits of a result depend on it", 1)
    cached_clips: int = _bounded(512, "clips whose decoded arrays are kept in memory", 0)
    checkpoint_every: int = _bounded(200, "steps between two saves of the resumable state", 1)
    log_every: int = _bounded(20, "steps between two rows of the learning curves", 1)
    evaluate_every: int = _bounded(0, "steps on videos between two looks at the validation questions; 0: none", 0)
    evaluate_questions: int = _bounded(400, "validation questions asked at each look, at most", 1)
    keep: Literal["best", "last"] = _bounded("last", "weights that are published: best on validation, or the last")
    bad_input: Literal["stop", "skip"] = _bounded("stop", "what a clip or question that cannot be used does")
    seed: int = _bounded(0, "of weights and of the order of questions", 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for wrong, message in (
            (
                self.reading_steps and not self.learning_rates.language,
                "learning_rates.language = 0: the reading stage trains the language model alone, "
                "set reading_steps to 0",
            ),
            (
                self.alone and not (self.geometry.selects and self.learning_rates.geometry),
                "naming_steps, grounding_steps: no geometry module is trained that selects, set them to 0",
            ),
            (
                self.alone and not self.guidance.given,
                "naming_steps, grounding_steps: all weights of guidance are 0, nothing would be said in them",
            ),
            (
                self.guidance.given and self.strategy == "fsdp",
                "guidance: is not for models in shards, set its weights to 0 or strategy to ddp",
            ),
            (
                self.guidance.given and self.geometry.reads == "prompt",
                "guidance: knows the question's own words, set its weights to 0 where geometry.reads is prompt",
            ),
            (
                self.guidance.given and self.geometry.selects and self.geometry.prior != "cells",
                "guidance: reads geometric cells, set its weights to 0 where geometry.prior is tokens",
            ),
            (
                self.steps and not any(dataclasses.astuple(self.learning_rates)),
                "learning_rates: all are 0, nothing would be trained",
            ),
            (
                self.lora.rank and not self.learning_rates.language,
                "learning_rates.language = 0: the adapters of lora would not be trained, set lora.rank to 0",
            ),
            (
                self.reading_steps + self.alone + self.steps == 0,
                "steps, reading_steps, naming_steps and grounding_steps are 0: nothing would be trained",
            ),
            (self.revision and not self.base, "revision: has no meaning without base"),
            (self.keep == "best" and not self.evaluate_every, "keep = best: needs evaluate_every above 0"),
            (
                self.tokens_per_batch == 0 and self.clips_per_batch < self.parts,
                f"clips_per_batch = {self.clips_per_batch}: is less than accumulate · devices · nodes = {self.parts}",
            ),
        ):
            if wrong:
                raise ParameterError(message)

    @property
    def alone(self) -> int:
        """Steps of the geometry module alone."""
        return self.naming_steps + self.grounding_steps

    @property
    def processes(self) -> int:
        """Training processes, one for each device."""
        return self.devices * self.nodes

    @property
    def parts(self) -> int:
        """Micro-batches of one step, over all processes."""
        return self.accumulate * self.processes

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
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ParameterError(f"{path} = {value!r}: expected a list of names")
        return tuple(value)
    kinds = get_args(hint) or (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ParameterError(f"{path} = {value!r}: expected {names}")
    return value
