"""Both families and all variants: plain sequences, trees, generation, saving."""

import inspect

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from models.attention import FLOAT32
from models.batch import NO_TARGET, with_geometry_slots
from models.geometric_qwen import load_base, load_checkpoint
from models.parameters import ParameterError
from tests.models.small_models import (
    FAMILIES,
    IDS,
    VARIANTS,
    model_of,
    one_by_one,
    packed,
    sequences,
    tree_of,
    without_geometry,
)

EVERY = pytest.mark.parametrize("family", FAMILIES)


def clips(model):
    """Three clips with 3, 1 and 2 questions and different numbers of frames."""
    return [tree_of(model, 0, 3), tree_of(model, 1, 1, slots=3), tree_of(model, 2, 2, slots=1)]


def shared(model, trees):
    return trees if model.shares_prefix else one_by_one(trees)


@EVERY
@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_sequences_give_what_the_tree_gives(family, variant):
    model = model_of(family, variant)
    trees = clips(model)
    batch = packed(model, shared(model, trees))
    inputs, geometry = sequences(model, trees)
    with torch.no_grad():
        scored = model.score(batch, batch.prompt_end)
        logits = model(**inputs, geometry=geometry).logits
    # The last token of a sequence is the answer's; the prompt ends one before.
    torch.testing.assert_close(logits[:, -2], scored, rtol=1e-4, atol=1e-4)
    if variant != "none":
        moved = geometry.__class__(**{**vars(geometry), "prior": geometry.prior.flip(1) + 1})
        with torch.no_grad():
            other = model(**inputs, geometry=moved).logits[:, -2]
        assert ((other - scored).abs().amax(1) > 1e-3).all()


@EVERY
@pytest.mark.parametrize("variant", ["addition", "concatenation", "gsm"])
def test_sharing_a_prefix_keeps_loss_and_gradients(family, variant):
    model = model_of(family, variant)
    trees = clips(model)

    def gradients(batches):
        model.zero_grad()
        total = 0.0
        for batch in batches:
            slots = batch.targets != NO_TARGET
            loss = torch.nn.functional.cross_entropy(model.score(batch, slots), batch.targets[slots], reduction="sum")
            loss.backward()
            total += loss.item()
        return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together, apart = gradients([packed(model, trees)]), gradients([packed(model, [t]) for t in one_by_one(trees)])
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    assert set(together[1]) == set(apart[1]) == {name for name, _ in model.named_parameters()}
    for name, gradient in together[1].items():
        difference = (gradient - apart[1][name]).norm() / apart[1][name].norm().clamp(min=1e-4)
        assert difference < 1e-4, name


def mixed_inputs(model, seed: int = 0) -> dict:
    """A sequence with an image and a video, one with an image, one of text: left-padded, as a processor gives them."""
    generator = torch.Generator().manual_seed(seed)
    width = 6 * model.patching.side**2
    image, video = [IDS["<|image_pad|>"]], [model.config.video_token_id]
    rows = [
        [(1, 0), *[(i, 1) for i in image * 6], (4, 0), *[(v, 2) for v in video * 4], (4, 0), (20, 0)],
        [(30, 0), *[(i, 1) for i in image * 6], (4, 0), (21, 0)],
        [(40, 0), (41, 0), (42, 0)],
    ]
    length = max(map(len, rows))
    whole = [[(0, 0)] * (length - len(row)) + row for row in rows]
    return {
        "input_ids": torch.tensor([[token for token, _ in row] for row in whole]),
        "mm_token_type_ids": torch.tensor([[kind for _, kind in row] for row in whole]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": torch.randn(48, width, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 6]] * 2),
        "pixel_values_videos": torch.randn(16, width, generator=generator),
        "video_grid_thw": torch.tensor([[1, 4, 4]]),
    }


@EVERY
def test_without_geometry_it_is_the_plain_model_bit_for_bit(family):
    model = model_of(family, "fused")
    plain = without_geometry(model)
    mixed = mixed_inputs(model)
    text = {"input_ids": torch.arange(20).view(2, 10) + 10}
    images = {name: mixed[name][1:2] for name in ("input_ids", "mm_token_type_ids", "attention_mask")}
    images |= {"pixel_values": mixed["pixel_values"][24:], "image_grid_thw": mixed["image_grid_thw"][1:]}
    for inputs in (text, images, mixed):
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
        options = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))
    assert inspect.signature(type(model).forward) == inspect.signature(type(plain).forward)


@EVERY
def test_images_and_text_ride_along_with_geometry(family):
    """Only the sequence with the video is changed by its geometry; the image in front of it is still seen."""
    model = model_of(family, "gsm")
    inputs = mixed_inputs(model)
    geometry = packed(model, [tree_of(model, 0, 1)]).geometry
    prepared = model.with_slots(inputs, geometry)
    assert prepared["input_ids"].shape == (3, inputs["input_ids"].shape[1] + 3)
    with torch.no_grad():
        plain, with_geometry = model(**inputs).logits, model(**prepared, geometry=geometry).logits
        blurred = {**prepared, "pixel_values": torch.zeros_like(prepared["pixel_values"])}
        torch.testing.assert_close(with_geometry[1:, -2:], plain[1:, -2:], rtol=1e-4, atol=1e-4)
        assert (with_geometry[0, -1] - plain[0, -1]).abs().max() > 1e-3
        assert (model(**blurred, geometry=geometry).logits[0, -1] - with_geometry[0, -1]).abs().max() > 1e-3


@EVERY
@pytest.mark.parametrize("variant", ["concatenation", "fused"])
def test_generation_goes_on_where_forward_ends(family, variant):
    """Several clips and questions in a batch: greedy decoding against one full forward for each token."""
    model = model_of(family, variant)
    inputs, geometry = sequences(model, clips(model))
    said = model.generate(**inputs, geometry=geometry, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert said.shape[1] == inputs["input_ids"].shape[1] + 3
    for _ in range(3):
        with torch.no_grad():
            token = model(**inputs, geometry=geometry).logits[:, -1:].argmax(-1)
        for name, value in (("input_ids", token), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            added = value if torch.is_tensor(value) else torch.full_like(token, value)
            inputs[name] = torch.cat([inputs[name], added.to(inputs[name])], 1)
    assert torch.equal(said, inputs["input_ids"])


@EVERY
def test_several_answers_for_each_question(family):
    model = model_of(family, "gsm")
    inputs, geometry = sequences(model, clips(model))
    options = {"geometry": geometry, "max_new_tokens": 2, "eos_token_id": None}
    one = model.generate(**inputs, **options, num_beams=2)
    both = model.generate(**inputs, **options, num_beams=2, num_return_sequences=2)
    assert torch.equal(both[::2], one)


def test_room_is_made_behind_the_last_vision_token():
    inputs = {
        "input_ids": torch.tensor([[1, 6, 5, 6, 6, 9], [0, 0, 3, 3, 4, 4]]),
        "mm_token_type_ids": torch.tensor([[0, 2, 0, 2, 2, 0], [0] * 6]),
        "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]),
        "labels": torch.tensor([[-100] * 5 + [9], [-100] * 5 + [4]]),
        "video_grid_thw": torch.tensor([[1, 2, 2]]),
    }
    made = with_geometry_slots(inputs, [2], 6, 0)
    assert made["input_ids"].tolist() == [[1, 6, 5, 6, 6, 6, 6, 9], [0, 0, 0, 0, 3, 3, 4, 4]]
    assert made["mm_token_type_ids"].tolist()[0] == [0, 2, 0, 2, 2, 0, 0, 0]
    assert made["attention_mask"].tolist() == [[1] * 8, [0] * 4 + [1] * 4]
    assert made["labels"].tolist() == [[-100] * 7 + [9], [-100] * 7 + [4]]
    assert made["video_grid_thw"] is inputs["video_grid_thw"]
    with pytest.raises(ValueError, match="geometry for 2 questions, but 1 sequences"):
        with_geometry_slots(inputs, [2, 2], 6, 0)


def test_geometry_belongs_to_the_last_video_of_a_sequence():
    model = model_of("qwen2_5", "gsm")
    video, width = [(model.config.video_token_id, 2)] * 4, 6 * model.patching.side**2
    rows = [
        [(3, 0), *video, (4, 0), (20, 0), (3, 0), *video, (4, 0), (21, 0)],
        [(30, 0), (31, 0), *[(9, 0)] * 5, (3, 0), *video, (4, 0), (22, 0)],
    ]
    inputs = {
        "input_ids": torch.tensor([[token for token, _ in row] for row in rows]),
        "mm_token_type_ids": torch.tensor([[kind for _, kind in row] for row in rows]),
        "pixel_values_videos": torch.randn(48, width, generator=torch.Generator().manual_seed(0)),
        "video_grid_thw": torch.tensor([[1, 4, 4]] * 3),
    }
    geometry = packed(model, [tree_of(model, 0, 2)]).geometry
    prepared = model.with_slots(inputs, geometry)
    assert (prepared["input_ids"][0] == 6).nonzero().flatten().tolist() == [*range(1, 5), *range(8, 15)]
    features = model.encoded(prepared["input_ids"], geometry, prepared)["mm_encoder_outputs"]["video"].pooler_output
    assert [len(video) for video in features] == [4, 7, 7]
    tokens = model.select(geometry).tokens
    assert torch.equal(features[1][4:], tokens[0]) and torch.equal(features[2][4:], tokens[1])
    # Words behind the first video alone do not see geometry.
    logits = model(**prepared, geometry=geometry).logits
    torch.testing.assert_close(logits[0, :12], model(**inputs).logits[0, :12], rtol=1e-4, atol=1e-4)


def test_sequences_without_room_are_refused():
    model = model_of("qwen2_5", "gsm")
    inputs, geometry = sequences(model, clips(model))
    plain = mixed_inputs(model)
    alone = packed(model, [tree_of(model, 0, 1)]).geometry
    with pytest.raises(ValueError, match=r"have \[0\] slots for geometry behind their videos, the model fills \[3\]"):
        model(**plain, geometry=alone)
    with pytest.raises(ValueError, match="geometry for 1 questions, but 6 sequences have a video"):
        model(**inputs, geometry=alone)
    with pytest.raises(ValueError, match="mark other vision tokens"):
        model(**{**inputs, "video_grid_thw": inputs["video_grid_thw"] * 2}, geometry=geometry)
    with pytest.raises(ValueError, match="a model that reads it"):
        model_of("qwen2_5", "none")(**inputs, geometry=geometry)
    with pytest.raises(ValueError, match="needs a prefix of its own"):
        fused = model_of("qwen2_5", "fused")
        fused.read(packed(fused, clips(fused)))


@EVERY
@pytest.mark.parametrize("variant", ["concatenation", "gsm"])
def test_gradient_checkpointing_changes_nothing(family, variant):
    model = model_of(family, variant).train()
    batch = packed(model, clips(model))
    slots = batch.targets != NO_TARGET
    found = []
    for reentrant in (None, True, False):
        if reentrant is not None:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            assert model.model.language_model.layers[0].gradient_checkpointing
        model.zero_grad()
        torch.nn.functional.cross_entropy(model.score(batch, slots), batch.targets[slots]).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
        torch.testing.assert_close(found[2][name], gradient, msg=name)


def test_flex_attention_sees_what_the_dense_mask_shows():
    model = model_of("qwen2_5", "gsm")
    batch = packed(model, [*clips(model), tree_of(model, 3, 2, with_video=False, with_prior=False)])
    rows, length = batch.tokens.shape
    dense = batch.attention_mask(torch.float32)
    assert torch.equal(create_mask(batch.seeing(), rows, 1, length, length, "cpu"), dense == 0)
    q, k, v = torch.randn(3, rows, 2, length, 16, generator=torch.Generator().manual_seed(0)).unbind()
    ours = flex_attention(q, k, v, block_mask=batch.block_mask())
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@EVERY
@pytest.mark.parametrize("mixed", [True, False])
def test_branch_by_branch_is_what_the_dense_mask_shows(family, mixed):
    """Rows with and without video, of one to four branches of unlike lengths; and rows of one branch alone."""
    model = model_of(family, "gsm").train()
    alone = [tree_of(model, seed, 1, with_video=seed > 4, with_prior=False) for seed in (3, 4, 5)]
    batch = packed(model, [*clips(model), tree_of(model, 7, 4), *alone] if mixed else alone)
    slots = batch.targets != NO_TARGET
    found = []
    for kind in ("sdpa", FLOAT32):
        model.attend_with(kind)
        model.zero_grad()
        logits = model.score(batch, slots)
        torch.nn.functional.cross_entropy(logits, batch.targets[slots]).backward()
        found.append((logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (expected, gradients), (logits, ours) = found
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == ours.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_mask_is_the_loaded_models_kind():
    model = model_of("qwen2_5", "gsm")
    batch = packed(model, clips(model))
    with torch.no_grad():
        expected = model.score(batch, batch.prompt_end)
        model.attend_with("eager")
        torch.testing.assert_close(model.score(batch, batch.prompt_end), expected, rtol=1e-4, atol=1e-4)
    assert model.config.vision_config._attn_implementation == "sdpa"
    with pytest.raises(ParameterError, match="flash_attention_2: knows no mask of trees, take one of sdpa"):
        model.attend_with("flash_attention_2")
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(ParameterError, match="flash_attention_2: knows no mask of trees"):
        model.score(batch, batch.prompt_end)


@EVERY
def test_flex_attention_can_be_asked_for_by_the_configuration(family):
    config = model_of(family, "gsm").config
    config.text_config._attn_implementation = "flex_attention"
    model = FAMILIES[family][0](config)
    assert [layer.self_attn.config._attn_implementation for layer in model.model.language_model.layers] == [
        "flex_attention"
    ] * 2
    mask = model._tree_mask(packed(model, clips(model)), torch.float32)["attention_mask"]
    assert type(mask).__name__ == "BlockMask"
    assert model.config.vision_config._attn_implementation == "sdpa"


@EVERY
@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_models_come_back_bit_for_bit(family, variant, tmp_path):
    model = model_of(family, variant)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    batch = packed(model, shared(model, clips(model)))
    with torch.no_grad():
        expected = model.score(batch, batch.prompt_end)
        for loaded in (load_checkpoint(tmp_path), load_base(str(tmp_path), model.config.geometry_config)):
            assert type(loaded) is type(model)
            assert torch.equal(loaded.eval().score(batch, batch.prompt_end), expected)


@EVERY
def test_attention_comes_with_the_reading_where_it_is_asked_for(family):
    model = model_of(family, "gsm")
    batch = packed(model, clips(model))
    with torch.no_grad():
        reading = model.read(batch, with_attention=True)
        plain = model.read(batch)
    assert plain.selection.attention is None
    torch.testing.assert_close(reading.selection.attention.sum(-1), torch.ones(6, 3))
    torch.testing.assert_close(reading.embeddings, plain.embeddings)
    assert torch.equal(model.score(batch, batch.prompt_end, reading), model.score(batch, batch.prompt_end, reading))
    torch.testing.assert_close(model.select(batch.geometry).tokens, plain.selection.tokens)
