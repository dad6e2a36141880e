import copy
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from models.batch import NO_TARGET, PREFIX, Tree
from models.data import groups_of
from models.geometric_qwen import GeometricQwen, load_base, load_checkpoint
from models.module import tree_loss
from models.parameters import ParameterError


def trees_of(maker, questions) -> list[Tree]:
    return [maker.tree(group, [questions[row] for row in group.rows]) for group in groups_of(questions)]


def one_by_one(trees: list[Tree]) -> list[Tree]:
    return [replace(tree, branches=[branch]) for tree in trees for branch in tree.branches]


def loss_and_gradients(model, batches, counts):
    """Loss over all targets and its gradient, from batches that hold `counts` targets each."""
    model.zero_grad()
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = tree_loss(model, batch)[0] * count / sum(counts)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def sharpened(maker):
    """The fixture's model with larger weights, so that attention and geometry really matter."""
    make, model, questions = maker
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return make, model, questions


def test_shared_prefix_gives_the_loss_and_gradients_of_separate_sequences(sharpened):
    make, model, questions = sharpened
    trees = trees_of(make, questions)
    singles = one_by_one(trees)
    assert len(singles) == len(questions) and len(trees) == 8
    shared = loss_and_gradients(model, [make.pack(trees)], [1])
    separate = loss_and_gradients(model, [make.pack([tree]) for tree in singles], [1] * len(singles))
    assert shared[0] == pytest.approx(separate[0], rel=1e-5)
    assert set(shared[1]) == set(separate[1]) == {name for name, _ in model.named_parameters()}
    for name, gradient in shared[1].items():
        difference = (gradient - separate[1][name]).norm() / separate[1][name].norm().clamp(min=1e-6)
        assert difference < 1e-4, name


def test_questions_do_not_see_each_other(sharpened):
    make, model, questions = sharpened
    group = groups_of(questions)[0]
    asked = [questions[row] for row in group.rows]
    before = tree_loss(model, make.pack([make.tree(group, asked)]))[1]
    asked[0] = replace(asked[0], question="Something else altogether, and much longer than it was before?")
    after = tree_loss(model, make.pack([make.tree(group, asked)]))[1]
    assert (before[0] - after[0]).abs().max() > 1e-3
    torch.testing.assert_close(before[1:], after[1:], rtol=1e-4, atol=1e-5)


def test_geometry_reaches_the_answer(sharpened):
    make, model, questions = sharpened
    tree = trees_of(make, questions)[0]
    before = tree_loss(model, make.pack([tree]))[1]
    moved = replace(tree, prior=replace(tree.prior, features=tree.prior.features[::-1].copy()))
    assert (tree_loss(model, make.pack([moved]))[1] - before).abs().max() > 1e-3


@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.6])
def test_a_tree_of_one_question_is_the_plain_models_sequence(sharpened, seconds):
    """Without geometry: our embeddings, positions and mask against the plain model's own forward."""
    make, model, questions = sharpened
    tree = one_by_one(trees_of(make, questions))[0]
    tree = replace(tree, prior=None, video=replace(tree.video, seconds_per_slot=seconds))
    batch = make.pack([tree])
    ours = model.score(batch, torch.ones_like(batch.tokens, dtype=torch.bool))
    types = torch.where(batch.tokens == make.prompt.video_pad, 2, 0).int()
    plain = Qwen2_5_VLForConditionalGeneration(model.config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("gsm.")})
    theirs = plain(
        input_ids=batch.tokens,
        mm_token_type_ids=types,
        pixel_values_videos=batch.patches,
        video_grid_thw=batch.video_grid,
        second_per_grid_ts=torch.tensor([seconds]),
    ).logits
    positions = plain.model.get_rope_index(
        batch.tokens, types, video_grid_thw=batch.video_grid, second_per_grid_ts=torch.tensor([seconds])
    )[0]
    assert torch.equal(batch.positions, positions)
    torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-4)


def test_forward_and_generate_are_the_plain_models(maker):
    _, model, _ = maker
    plain = Qwen2_5_VLForConditionalGeneration(model.config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("gsm.")})
    tokens = torch.arange(20).view(2, 10) + 40
    assert torch.equal(model(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    assert torch.equal(
        model.generate(tokens, max_new_tokens=3, do_sample=False),
        plain.generate(tokens, max_new_tokens=3, do_sample=False),
    )


def test_saved_model_is_loaded_bit_for_bit(maker, tmp_path):
    make, model, questions = maker
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(tmp_path.glob("*.bin"))
    loaded = load_checkpoint(tmp_path)
    batch = make.pack(trees_of(make, questions))
    slots = batch.targets != NO_TARGET
    assert torch.equal(loaded.score(batch, slots), model.score(batch, slots))


def test_geometry_is_added_to_a_plain_base(maker, tmp_path):
    _, model, _ = maker
    config = copy.deepcopy(model.config)
    config.geometry_config = None
    plain = Qwen2_5_VLForConditionalGeneration(config)
    plain.save_pretrained(tmp_path)
    torch.manual_seed(3)
    grown = load_base(str(tmp_path), model.config.geometry_config)
    assert grown.geometry_tokens == 3
    assert grown.gsm.queries.detach().std() == pytest.approx(1.0, abs=0.3)
    assert grown.gsm.condenser[0].mlp.up_proj.weight.detach().std() == pytest.approx(0.04, rel=0.2)
    for name, value in plain.state_dict().items():
        assert torch.equal(grown.state_dict()[name], value), name


def test_checkpoint_is_a_plain_model_to_transformers(checkpoint):
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    whole = GeometricQwen.from_pretrained(checkpoint)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_weights_have_the_published_names(checkpoint):
    names = set(load_file(checkpoint / "model.safetensors"))
    assert {"lm_head.weight", "model.embed_tokens.weight", "visual.patch_embed.proj.weight"} <= names


def test_checkpoint_that_lacks_weights_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "short")
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "short" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParameterError, match=r"lacks 1 weights, the first is model\.language_model\.norm\.weight"):
        load_checkpoint(tmp_path / "short")
    with pytest.raises(ParameterError, match="lacks 1 weights"):
        load_base(str(tmp_path / "short"), None)


def test_base_that_is_none_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="can be loaded from there"):
        load_base(str(tmp_path), None)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ParameterError, match="not a qwen2_5_vl"):
        load_base(str(tmp_path), None)


def test_blind_tree_holds_text_only(maker):
    make, model, questions = maker
    batch = make.pack([make.blind_tree(questions[:3])])
    assert batch.patches is None and batch.prior is None
    assert not batch.video_slots.any() and not batch.geometry_slots.any()
    assert (batch.tokens != make.prompt.video_pad).all()
    prefix = batch.tokens[batch.branch == PREFIX].tolist()
    assert prefix == make.prompt.prefix(False)
    assert torch.isfinite(tree_loss(model, batch)[0])
