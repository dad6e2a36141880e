"""Geometry for the Qwen-VL models of transformers, without touching their code.

`Attachment` comes in front of one of transformers' classes. Without geometry everything is that class, bit for bit.
With it, `forward` and `generate` hand the class a video's vision tokens with the geometry tokens behind them, which
stand in the sequence as further video pads with a text's type and so a text's positions (paper 4.2). `read` and
`score` do the same for trees of questions on shared prefixes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.attention import FLOAT32
from models.batch import TEXT_TYPE, VIDEO_TYPE, GeometryInputs, TreeBatch, with_geometry_slots
from models.fusion import Addition, Concatenation, GatedFusion, Scene
from models.grounding import spoken
from models.gsm import GeometrySelection, Selection, merged_size
from models.parameters import ParameterError
from models.pixels import MERGE, Patching

GEOMETRY_PARTS = ("gsm.", "fusion.")
"""What names of weights of the geometry module begin with; all others are the base model's."""
FLEX = "flex_attention"
TREE_ATTENTION = ("sdpa", FLOAT32, "eager", FLEX)


@dataclass(frozen=True)
class Reading:
    """A tree batch, ready for the language model.

    Attributes:
        embeddings: (B,L,d) with vision and geometry tokens in their slots.
        selection: what the questions picked; None where the variant selects nothing.
        deepstack: Qwen3-VL's vision features for the first decoder layers, each (vision slots,d); empty otherwise.
    """

    embeddings: Tensor
    selection: Selection | None
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class _Sight:
    """What the encoders make of videos and priors.

    Attributes:
        vision: (n,d) of each video.
        deepstack: for each decoder layer concerned, (n,d) of each video.
        geometry: what fills geometry slots, in their order: for each question or each prior (count,d).
        selection: as in `Reading`.
        encoder: the vision tower's own output; None without a video.
    """

    vision: list[Tensor]
    deepstack: list[list[Tensor]]
    geometry: list[Tensor]
    selection: Selection | None
    encoder: Any


def accepts_geometry(forward: Callable) -> Callable:
    """Transformers' `forward` with one more argument, `geometry`; generation goes on reading the old signature."""

    @functools.wraps(forward)
    def with_geometry(
        self: Attachment,
        input_ids: Tensor | None = None,
        *arguments: Any,
        geometry: GeometryInputs | None = None,
        **inputs: Any,
    ) -> Any:
        if geometry is not None:
            inputs = self.encoded(input_ids, geometry, inputs)
        return forward(self, input_ids, *arguments, **inputs)

    return with_geometry


class Attachment:
    """The geometry module of a Qwen-VL, as `config.geometry_config` describes it; None makes the plain model.

    Attributes:
        gsm: `GeometrySelection` of the variants gsm and fused.
        fusion: the module of the variants addition, concatenation and fused.
    """

    patching: Patching
    """How the vision tower wants its pixels."""
    timestamps: bool
    """Whether the prompt says the time in front of each temporal patch."""

    def __init__(self, config: Any) -> None:
        geometry, text = config.geometry_config, config.text_config
        asked = text._attn_implementation
        if asked == FLEX:
            # transformers does not offer it for these classes, though their layers run it as they are.
            text._attn_implementation = "sdpa"
        super().__init__(config)
        if asked == FLEX:
            self.attend_with(FLEX)
        self.gsm, self.fusion = None, None
        if self.variant in ("gsm", "fused"):
            self.gsm = GeometrySelection(text, geometry, self.tokens_per_second)
        kinds = {"addition": Addition, "concatenation": Concatenation, "fused": GatedFusion}
        if self.variant in kinds:
            self.fusion = kinds[self.variant](text, geometry)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GeometrySelection):
            module.begin()

    @property
    def variant(self) -> str:
        """none, addition, concatenation, gsm or fused. Older checkpoints do not say; theirs is gsm."""
        geometry = self.config.geometry_config
        return geometry.get("variant", "gsm") if geometry else "none"

    @property
    def reads_prior(self) -> bool:
        """Whether the model needs prior features."""
        return self.variant != "none"

    @property
    def shares_prefix(self) -> bool:
        """Whether questions about a clip can share its encoding; not where vision tokens depend on the question."""
        return self.variant != "fused"

    @property
    def geometry_tokens(self) -> int:
        """Slots in front of each question of a tree."""
        return len(self.gsm.queries) if self.gsm is not None else 0

    @property
    def prior_merge(self) -> tuple[int, int, int] | None:
        """Features merged into one cell, where all cells of a clip follow its vision tokens; None where they do not."""
        return self.fusion.prior.merge if self.variant == "concatenation" else None

    @property
    def tokens_per_second(self) -> float:
        """Positions on the time axis per second; Qwen3-VL, which counts none, borrows Qwen2.5-VL's for GSM's keys."""
        return getattr(self.config.vision_config, "tokens_per_second", 2.0)

    def attend_with(self, attention: str) -> None:
        """Let the language model use sdpa, eager or flex_attention from now on; the vision tower keeps its own.

        In float32 (see `models.attention`) the vision tower attends too.

        Raises:
            ParameterError: for an attention that knows no mask of trees.
        """
        _check_attention(attention)
        self.model.language_model.config._attn_implementation = attention
        if attention == FLOAT32:
            self.model.visual.config._attn_implementation = attention

    def select(
        self,
        geometry: GeometryInputs,
        with_attention: bool = False,
        with_looks: bool = False,
        words_learn: bool = True,
        blinkers: Tensor | None = None,
    ) -> Selection:
        """GSM alone, from the questions' words and the priors; where words do not learn they have no gradient."""
        words = self.get_input_embeddings()(geometry.question)
        return self.gsm(
            words if words_learn else words.detach(),
            geometry.question_visible,
            geometry.prior,
            geometry.prior_grid,
            geometry.prior_times,
            geometry.owner,
            with_attention=with_attention,
            with_looks=with_looks,
            blinkers=blinkers,
        )

    def read(self, batch: TreeBatch, with_attention: bool = False, with_looks: bool = False) -> Reading:
        """Encode the videos and priors of a tree batch, or what is stated instead, and put them into their slots.

        Args:
            batch: questions on shared prefixes.
            with_attention: also give the selection's attention.
            with_looks: also give where the selection's heads looked.

        Raises:
            ValueError: if questions share a prefix that depends on the question.
        """
        embeddings = self.get_input_embeddings()(batch.tokens)
        asked = {"with_attention": with_attention, "with_looks": with_looks}
        sight = self._sight(batch.patches, batch.video_grid, batch.geometry, batch.prior_video, **asked)
        for slots, features in ((batch.video_slots, sight.vision), (batch.geometry_slots, sight.geometry)):
            if features:
                embeddings = embeddings.masked_scatter(slots[..., None], torch.cat(features).to(embeddings.dtype))
        if batch.prior is None and batch.guide is not None and batch.geometry_slots.any():
            stated = spoken(self.get_input_embeddings(), batch.guide)[batch.guide.states]
            embeddings = embeddings.masked_scatter(batch.geometry_slots[..., None], stated.to(embeddings.dtype))
        return Reading(embeddings, sight.selection, tuple(torch.cat(layer) for layer in sight.deepstack))

    def score(self, batch: TreeBatch, slots: Tensor, reading: Reading | None = None) -> Tensor:
        """Next-token logits at the chosen slots of a tree batch.

        Args:
            batch: questions on shared prefixes.
            slots: (B,L) bool.
            reading: what `read` made of the batch; None has it done here.

        Returns:
            (slots.sum(), vocabulary), in row-major order of the slots. Only these go through the head, which
            with a real vocabulary is most of the memory.

        Raises:
            ParameterError: if the model was loaded with an attention that knows no mask of trees.
        """
        return self.lm_head(self.think(batch, reading or self.read(batch))[slots])

    def think(self, batch: TreeBatch, reading: Reading) -> Tensor:
        """The language model's last hidden states (B,L,d) over a tree batch.

        Raises:
            ParameterError: as `score`.
        """
        deepstack = {}
        if reading.deepstack:
            deepstack = {
                "visual_pos_masks": batch.video_slots,
                "deepstack_visual_embeds": list(reading.deepstack),
            }
        return self.model.language_model(
            inputs_embeds=reading.embeddings,
            position_ids=batch.positions,
            use_cache=False,
            **self._tree_mask(batch, reading.embeddings.dtype),
            **deepstack,
        ).last_hidden_state

    def with_slots(self, inputs: Mapping[str, Tensor], geometry: GeometryInputs) -> dict[str, Tensor]:
        """A processor's inputs with room for the geometry tokens, ready for `forward` and `generate` with `geometry`.

        Args:
            inputs: `input_ids` and `mm_token_type_ids` (B,L), whatever else the processor gave, and `labels`.
            geometry: one question for each sequence that has a video, in order.
        """
        if self.variant == "concatenation":
            sizes = geometry.prior_grid[geometry.owner].tolist()
            slots = [torch.Size(merged_size(size, self.prior_merge)).numel() for size in sizes]
        else:
            slots = [self.geometry_tokens] * len(geometry.owner)
        filler = self.config.text_config.pad_token_id or 0
        return with_geometry_slots(inputs, slots, self.config.video_token_id, filler)

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, *arguments: Any, geometry: GeometryInputs | None = None, **options: Any
    ) -> Any:
        """Transformers' `generate`; with `geometry`, `with_slots` has to have made room for it."""
        if geometry is not None:
            inputs = options.pop("input_ids", inputs)
            options = self.encoded(inputs, geometry, options)
        return super().generate(inputs, *arguments, **options)

    def encoded(self, input_ids: Tensor, geometry: GeometryInputs, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The other inputs of `forward` with images and videos encoded, and geometry behind each sequence's last video.

        Raises:
            ValueError: if the sequences do not have room for the geometry, or a video or the types are missing.
        """
        inputs = dict(inputs)
        patches, grid = inputs.pop("pixel_values_videos", None), inputs.get("video_grid_thw")
        types = inputs.get("mm_token_type_ids")
        if not self.reads_prior or patches is None or types is None:
            raise ValueError("geometry needs a model that reads it, pixel_values_videos and mm_token_type_ids")
        if self.variant != "gsm":
            geometry = geometry.with_row_per_question()
        last = _last_videos(types, grid)
        if len(last) != len(geometry.owner):
            raise ValueError(f"geometry for {len(geometry.owner)} questions, but {len(last)} sequences have a video")
        sight = self._sight(patches, grid, geometry, last)
        self._check_room(input_ids, types, sight.geometry)
        for video, tokens in zip(last.tolist(), sight.geometry, strict=False):
            sight.vision[video] = torch.cat([sight.vision[video], tokens.to(sight.vision[video].dtype)])
            for layer in sight.deepstack:
                layer[video] = torch.cat([layer[video], layer[video].new_zeros(tokens.shape)])
        sight.encoder.pooler_output = sight.vision
        if sight.deepstack:
            sight.encoder.deepstack_features = sight.deepstack
        outputs = {"video": sight.encoder}
        if (images := inputs.pop("pixel_values", None)) is not None:
            outputs["image"] = self.get_image_features(images, inputs["image_grid_thw"], return_dict=True)
        return {**inputs, "mm_encoder_outputs": outputs}

    def _check_room(self, input_ids: Tensor, types: Tensor, geometry: list[Tensor]) -> None:
        room = ((input_ids == self.config.video_token_id) & (types == TEXT_TYPE)).sum(1)
        found = room[(types == VIDEO_TYPE).any(1)].tolist()
        wanted = [len(tokens) for tokens in geometry] or [0] * len(found)
        if found != wanted:
            raise ValueError(
                f"sequences have {found} slots for geometry behind their videos, the model fills {wanted}: "
                "make them with with_slots"
            )

    def _sight(
        self,
        patches: Tensor | None,
        grid: Tensor | None,
        geometry: GeometryInputs | None,
        prior_video: Tensor | None,
        with_attention: bool = False,
        with_looks: bool = False,
    ) -> _Sight:
        encoder, vision, deepstack, sizes = None, [], [], []
        if patches is not None:
            encoder = self.get_video_features(patches, grid, return_dict=True)
            vision = list(encoder.pooler_output)
            deepstack = [list(layer) for layer in getattr(encoder, "deepstack_features", None) or []]
            sizes = [(t, h // MERGE, w // MERGE) for t, h, w in grid.tolist()]
        tokens, selection = [], None
        if geometry is not None and self.variant == "addition":
            vision = self.fusion(vision, sizes, geometry, prior_video)
        elif geometry is not None and self.variant == "concatenation":
            tokens = self.fusion(geometry)
        elif geometry is not None and self.gsm is not None:
            hidden = self.fusion.draw_hidden(len(geometry.owner)) if self.fusion is not None else []
            selection = self.select(geometry, with_attention or any(hidden), with_looks)
            tokens = list(selection.tokens)
            if self.fusion is not None:
                cells = self.gsm.prior(geometry.prior, geometry.prior_grid, geometry.prior_times).whole
                scene = Scene(geometry, prior_video, cells, self.gsm.prior.merge)
                vision, deepstack = self.fusion(vision, deepstack, sizes, scene, selection, hidden)
        return _Sight(vision, deepstack, tokens, selection, encoder)

    def _tree_mask(self, batch: TreeBatch, dtype: torch.dtype) -> dict[str, Any]:
        """What tells the language model's attention who sees whom."""
        kind = self.model.language_model.config._attn_implementation
        _check_attention(kind)
        if kind == FLOAT32:
            # A mask of four axes is handed on as it is; this one stands for none.
            return {"attention_mask": batch.branch.new_zeros(1, 1, 1, 1, dtype=dtype), "tree": batch.layout()}
        return {"attention_mask": batch.block_mask() if kind == FLEX else batch.attention_mask(dtype)}


def _check_attention(kind: str) -> None:
    if kind not in TREE_ATTENTION:
        raise ParameterError(f"attention {kind}: knows no mask of trees, take one of {', '.join(TREE_ATTENTION)}")


def _last_videos(types: Tensor, grid: Tensor) -> Tensor:
    """For each sequence with a video the number of its last one, (Q,).

    Raises:
        ValueError: if the vision tokens are not those of the videos.
    """
    tokens = (types == VIDEO_TYPE).sum(1)
    ends = (grid.prod(1) // MERGE**2).cumsum(0)
    reached = tokens.cumsum(0)[tokens > 0].to(ends)
    last = torch.searchsorted(ends, reached).clamp(max=len(ends) - 1)
    if not torch.equal(ends[last], reached):
        raise ValueError("mm_token_type_ids mark other vision tokens than video_grid_thw has, sequence by sequence")
    return last
