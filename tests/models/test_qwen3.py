"""What only Qwen3-VL has: timestamps between its temporal patches, deepstack, heads of a width of their own."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from models.batch import Tree, pack
from models.configuration import geometry_config
from models.geometric_qwen import GeometricQwen3
from models.parameters import GeometryModelParameters
from models.pixels import prepare_video
from models.prompt import Prompt, build_tokenizer
from models.tiny import tiny_config3
from tests.models.small_models import CHANNELS, IDS, SIZES, model_of, packed, tree_of

TEXTS = ["user", "assistant", "How far is the red box?\nOptions:\nA near\nB far\nC gone\nD here", "<0.3 seconds>"]


@pytest.fixture(scope="module")
def prompt():
    return Prompt(build_tokenizer(TEXTS, 400), 100)


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_prefix_is_what_transformers_processor_writes(prompt, frames):
    """The processor's own text for a video, in the place of the template's, without the processor's torchvision."""
    import numpy as np

    pixels = np.zeros((frames, 64, 64, 3), np.uint8)
    video = prepare_video(pixels, np.arange(frames) / 3, 8, 64 * 64, 64 * 64, patching=GeometricQwen3.patching)
    stand_in = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token="<|video_pad|>",
    )
    stand_in._calculate_timestamps = lambda *arguments: Qwen3VLProcessor._calculate_timestamps(stand_in, *arguments)
    metadata = SimpleNamespace(fps=3, frames_indices=list(range(frames)))
    inputs = {"video_grid_thw": np.array([video.grid]), "video_metadata": [metadata]}
    theirs = Qwen3VLProcessor.replace_video_token(stand_in, inputs, 0)
    branch = prompt.branch("How far is the red box?", ["near", "far", "gone", "here"], None, True)
    rendered = prompt.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": ""}]}], tokenize=False
    ).replace("<|vision_start|><|video_pad|><|vision_end|>", theirs)
    expected = prompt.tokenizer(rendered.partition("<|im_end|>")[0], add_special_tokens=False).input_ids
    first, between = prompt.timed_prefix(video.moments)
    batch = pack([Tree(first, video, None, [branch], between)], prompt.video_pad, 0, 2.0)
    whole = batch.tokens[0].tolist()
    assert len(between) == video.grid[0] - 1
    assert whole[: len(expected)] == expected
    assert batch.video_slots.sum() == video.tokens == whole.count(prompt.video_pad)


def test_positions_are_those_of_transformers():
    model = model_of("qwen3", "none")
    batch = packed(model, [tree_of(model, 0, 1, slots=3)])
    types = batch.video_slots.int() * 2
    positions, _ = model.model.get_rope_index(batch.tokens, types, video_grid_thw=batch.video_grid)
    assert torch.equal(batch.positions, positions)


def test_timestamps_have_to_part_all_temporal_patches():
    model = model_of("qwen3", "none")
    tree = tree_of(model, 0, 1, slots=3)
    with pytest.raises(ValueError, match="1 timestamps between 3 temporal patches: expected 2"):
        packed(model, [Tree(tree.prefix, tree.video, None, tree.branches, tree.between[:1])])


@torch.no_grad()
def test_deepstack_reaches_the_answer():
    model = model_of("qwen3", "gsm")
    batch = packed(model, [tree_of(model, 0, 2)])
    reading = model.read(batch)
    assert [layer.shape for layer in reading.deepstack] == [(batch.video_slots.sum(), 32)]
    blind = reading.__class__(reading.embeddings, reading.selection, (torch.zeros_like(reading.deepstack[0]),))
    difference = model.score(batch, batch.prompt_end, reading) - model.score(batch, batch.prompt_end, blind)
    assert (difference.abs().amax(1) > 1e-3).all()


@torch.no_grad()
def test_heads_of_a_width_of_their_own():
    """Qwen3-VL-4B has 32 heads of 128 in a width of 2,560."""
    torch.manual_seed(0)
    geometry = geometry_config(GeometryModelParameters(variant="fused", queries=3, heads=0), CHANNELS)
    config = tiny_config3(SIZES, IDS, geometry)
    config.text_config.head_dim = 32
    config.text_config.rope_parameters["mrope_section"] = [8, 4, 4]
    model = GeometricQwen3(config).eval()
    assert model.gsm.selector[0].attention.q_proj.weight.shape == (64, 32)
    batch = packed(model, [tree_of(model, 0, 1)])
    assert torch.isfinite(model.score(batch, batch.prompt_end)).all()
