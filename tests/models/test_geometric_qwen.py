import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from models.geometric_qwen import GeometricQwen, check_weights, load_base, load_checkpoint
from models.gsm import CELL_CHANNELS, CELL_PLACE, PLACE_GAIN, QUERY_SPREAD
from models.parameters import ParameterError
from tests.models.small_models import FAMILIES, model_of, one_by_one, packed, tree_of, without_geometry


def test_questions_do_not_see_each_other():
    model = model_of("qwen2_5", "gsm")
    tree = tree_of(model, 0, 3)
    batch = packed(model, [tree])
    longer = replace(tree.branches[0], tokens=[*range(20, 40), *tree.branches[0].tokens], prompt_length=25)
    longer = replace(longer, targets=[-100] * 20 + longer.targets)
    changed = packed(model, [replace(tree, branches=[longer, *tree.branches[1:]])])
    with torch.no_grad():
        before, after = model.score(batch, batch.prompt_end), model.score(changed, changed.prompt_end)
    assert (before[0] - after[0]).abs().max() > 1e-3
    torch.testing.assert_close(before[1:], after[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.6])
def test_a_tree_of_one_question_is_the_plain_models_sequence(seconds):
    """Without geometry: our embeddings, positions and mask against the plain model's own forward."""
    model = model_of("qwen2_5", "gsm")
    tree = one_by_one([tree_of(model, 0, 1, slots=3, with_prior=False)])[0]
    batch = packed(model, [replace(tree, video=replace(tree.video, seconds_per_slot=seconds))])
    plain = without_geometry(model)
    types = batch.video_slots.int() * 2
    video = {"video_grid_thw": batch.video_grid, "second_per_grid_ts": torch.tensor([seconds])}
    positions, _ = plain.model.get_rope_index(batch.tokens, types, **video)
    assert torch.equal(batch.positions, positions)
    with torch.no_grad():
        ours = model.score(batch, torch.ones_like(batch.tokens, dtype=torch.bool))
        theirs = plain(
            input_ids=batch.tokens, mm_token_type_ids=types, pixel_values_videos=batch.patches, **video
        ).logits
    torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_geometry_is_added_to_a_plain_base(family, tmp_path):
    model = model_of(family, "fused")
    config = copy.deepcopy(model.config)
    config.geometry_config = None
    plain = type(model).__mro__[2](config)
    plain.save_pretrained(tmp_path)
    torch.manual_seed(3)
    grown = load_base(str(tmp_path), model.config.geometry_config)
    assert grown.geometry_tokens == 3
    assert grown.gsm.queries.detach().std() == pytest.approx(QUERY_SPREAD, rel=0.3)
    assert grown.gsm.condenser[0].mlp.up_proj.weight.detach().std() == pytest.approx(0.04, rel=0.2)
    assert grown.fusion.gate.weight.detach().std() == pytest.approx(0.04, rel=0.2)
    assert grown.fusion.spread.in_proj_weight.detach().abs().max() > 0.01
    assert grown.fusion.vision_norm.weight.detach().eq(1).all()
    for name, value in plain.state_dict().items():
        assert torch.equal(grown.state_dict()[name], value), name
    torch.manual_seed(3)
    again = load_base(str(tmp_path), model.config.geometry_config).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in grown.state_dict().items())


def test_a_module_that_is_added_begins_with_reading_places(tmp_path):
    model_of("qwen2_5", "none").save_pretrained(tmp_path)
    config = model_of("qwen2_5", "gsm", merge_time=2, merge_space=1, nobody=True).config.geometry_config
    gsm = load_base(str(tmp_path), config).gsm
    # Places in both merged cells and the logarithms of their speeds lead the values, and each head reads them first.
    chosen = [*CELL_PLACE, CELL_CHANNELS]
    leading = gsm.prior.straight.weight.detach()[: len(chosen)].unflatten(1, (2, -1))
    expected = torch.zeros(16, CELL_CHANNELS + 1)
    expected[range(16), chosen] = PLACE_GAIN / 2
    assert len(chosen) == 16 and all(torch.equal(leading[:, cell], expected) for cell in range(2))
    assert gsm.prior.straight.weight.detach()[16:].std() == pytest.approx(0.04, rel=0.3)
    attention = gsm.selector[0].attention
    for head in attention.v_proj.weight.detach().split(attention.head_dim):
        assert torch.equal(head[:, :16], torch.eye(16)) and 0 < head[:, 16:].abs().max() < 0.3
    assert torch.equal(attention.o_proj.weight, torch.eye(32)) and not attention.nobody.any()
    assert not torch.equal(gsm.condenser[0].attention.v_proj.weight.detach()[:16, :16], torch.eye(16))


@pytest.mark.parametrize("speak", [True, False])
def test_what_values_and_tokens_go_through_is_saved_and_loaded(tmp_path, speak):
    model = model_of("qwen2_5", "gsm", speak=speak)
    batch = packed(model, [tree_of(model, 0, 2)])
    model.save_pretrained(tmp_path)
    linear = {"gsm.prior.straight.weight"}
    if speak:
        linear |= {f"gsm.speech.{name}" for name, _ in model.gsm.speech.named_parameters()}
    assert {
        name for name in load_file(tmp_path / "model.safetensors") if "straight" in name or "speech" in name
    } == linear
    for loaded in (load_checkpoint(tmp_path), load_base(str(tmp_path), model.config.geometry_config)):
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name
        with torch.no_grad():
            tokens = [each.select(batch.geometry).tokens for each in (model, loaded.eval())]
            assert torch.equal(*tokens)
            for weight in map(loaded.get_parameter, sorted(linear)):
                kept = weight.clone()
                weight.normal_()
                assert not torch.allclose(loaded.select(batch.geometry).tokens, tokens[0], atol=1e-3)
                weight.copy_(kept)


def test_attention_and_precision_are_those_asked_for(tmp_path):
    model_of("qwen2_5", "gsm").save_pretrained(tmp_path)
    model = load_base(str(tmp_path), None, attention="flex_attention", dtype=torch.bfloat16)
    assert model.model.language_model.config._attn_implementation == "flex_attention"
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    half = model_of("qwen2_5", "fused").bfloat16()
    batch = packed(half, [tree_of(half, 0, 1)])
    batch = replace(batch, patches=batch.patches.bfloat16())
    with torch.no_grad():
        assert half.score(batch, batch.prompt_end).dtype == torch.bfloat16


def test_checkpoint_is_a_plain_model_to_transformers(checkpoint):
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    whole = GeometricQwen.from_pretrained(checkpoint)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_weights_have_the_published_names(tmp_path):
    model_of("qwen2_5", "gsm").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(tmp_path.glob("*.bin"))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"lm_head.weight", "model.embed_tokens.weight", "visual.patch_embed.proj.weight"} <= names


def test_older_checkpoints_that_name_no_variant_are_gsm(tmp_path):
    model = model_of("qwen2_5", "gsm")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("variant", "fusion_mask_share", "fusion_mask_probability", "heads", "window", "context"):
        del config["geometry_config"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(tmp_path).variant == "gsm"


def test_checkpoint_that_lacks_weights_is_refused(tmp_path):
    model_of("qwen2_5", "gsm").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParameterError, match=r"lacks 1 weights, the first is model\.language_model\.norm\.weight"):
        load_checkpoint(tmp_path)
    with pytest.raises(ParameterError, match="lacks 1 weights"):
        load_base(str(tmp_path), None)


def test_base_that_is_none_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="can be loaded from there"):
        load_base(str(tmp_path), None)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ParameterError, match="is a bert, not one of qwen2_5_vl, qwen3_vl"):
        load_base(str(tmp_path), None)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ParameterError, match=r"model\.safetensors is missing: fetch the model's weights"):
        load_base(str(tmp_path), None)


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "sharded"
    model_of("qwen2_5", "none").save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return folder, shards


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_shard_that_is_cut_short_is_named(sharded, keep):
    folder, shards = sharded
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    for load in (lambda: load_base(str(folder), None), lambda: load_checkpoint(folder)):
        with pytest.raises(
            ParameterError, match=rf"{shards[1].name} is damaged or cut short .*: fetch it again"
        ) as error:
            load()
        assert "\n" not in str(error.value)


def test_a_shard_that_is_missing_is_named(sharded):
    folder, shards = sharded
    shards[2].unlink()
    with pytest.raises(ParameterError, match=rf"{shards[2].name} is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../../x"}}'])
def test_an_index_that_is_none_is_refused(sharded, content):
    folder, _ = sharded
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"(index\.json|sharded/x is missing).*"):
        check_weights(folder)


def test_weights_of_another_size_are_refused(tmp_path):
    model_of("qwen2_5", "gsm").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ParameterError, match=r"mlp\.\w+\.weight has shape \(.*\), the configuration asks for \(.*64.*\)"
    ):
        load_checkpoint(tmp_path)


def test_a_folder_is_copied_as_a_whole(checkpoint, tmp_path):
    """Nothing in a checkpoint points back to where it was made."""
    shutil.copytree(checkpoint, tmp_path / "copy")
    moved, original = load_checkpoint(tmp_path / "copy"), load_checkpoint(checkpoint)
    for name, value in original.state_dict().items():
        assert torch.equal(moved.state_dict()[name], value), name
