import dataclasses
import importlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.training import parity as parity_of
from benchmarks.training import published_loops
from benchmarks.training.parity import BOUND, CLIPS, batch_of, figures, parity, save_published
from benchmarks.training.published_loops import Sizes
from models import published
from models.batch import Branch, Tree, pack
from models.configuration import GeometricQwenConfig
from models.geometric_qwen import GeometricQwen
from models.parameters import ParameterError
from models.published import (
    continue_after_time,
    is_published,
    load_published_with_prior,
    prompt_tokens_read,
    published_keys,
    reads_prompt,
    slot_starts,
)
from models.weights import WeightsError

FULL = Sizes(3584, 28, 28, 4, 18944, 152064, 1280, 32, 16, 3420, 1024, 24, 16, 37)
PER_SECOND = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    save_published(folder, published_loops.random_weights(Sizes()), published_loops.configuration(Sizes()))
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_published_with_prior(str(folder))


def questions():
    return [published_loops.random_question(grid, seconds, seed=place) for place, (grid, seconds) in enumerate(CLIPS)]


def logits_of(loaded, asked=None) -> torch.Tensor:
    """At the last prompt token of each question."""
    model, prior = loaded
    with torch.inference_mode():
        batch = batch_of(asked or questions(), prior, model.geometry_tokens, PER_SECOND)
        return model.score(batch, batch.prompt_end)


def difference(found, expected) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_layout_of_the_published_size_is_ours_key_for_key():
    """9.16 billion parameters, as GeoSR counts the baseline; 563 million of them new and trained."""
    config = GeometricQwenConfig(**published_loops.configuration(FULL))
    shapes = published_loops.layout(FULL)
    weights = published.Weights(None, (), "")
    config.geometry_config = published._geometry_config(weights, shapes)
    with torch.device("meta"):
        whole = torch.nn.ModuleDict({"model": GeometricQwen(config), "prior": published.PatchPrior(encoder(shapes))})
    ours = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    assert ours == {published._place(published_keys(name)): shape for name, shape in shapes.items()}
    assert {published._published_name(name) for name in ours} == shapes.keys()
    count = {name: torch.Size(shape).numel() for name, shape in ours.items()}
    assert round(sum(count.values()) / 1e9, 2) == 9.16
    assert round(sum(size for name, size in count.items() if name.startswith("model.gsm")) / 1e6) == 563


def encoder(shapes):
    return published.Encoder(published._encoder_config(published.Weights(None, (), ""), shapes))


def test_parity_with_an_independent_implementation(folder, loaded):
    """The published weights give the logits that another implementation gives.

    The other one is `benchmarks.training.published_loops`, plain float64 arithmetic. Whoever has the reference's code
    can put it in its place: DSR_PUBLISHED_REFERENCE names an importable module with a function `logits` of the same
    contract as `published_loops.logits`; `benchmarks.training.parity.parity` says what it has to do.
    """
    if "DSR_PUBLISHED_REFERENCE" in os.environ:
        other = importlib.import_module(os.environ["DSR_PUBLISHED_REFERENCE"])
        assert parity(other.logits, Sizes(encoder_width=1024, encoder_grid=37)) <= BOUND
    (figure,) = figures().values()
    assert figure.value <= BOUND and not figure.missed


@pytest.mark.parametrize(
    "broken",
    [
        ("continue_after_time", lambda batch: batch),
        ("slot_starts", lambda slots, seconds: slot_starts(slots, seconds) + seconds),
        ("prompt_tokens_read", lambda ids: ids[-20:]),
        ("prompt_tokens_read", lambda ids: prompt_tokens_read(ids, in_training=True)),
    ],
)
def test_parity_notices_what_the_reference_does_differently(loaded, monkeypatch, broken):
    expected = logits_of(loaded)
    monkeypatch.setattr(parity_of, *broken)
    assert difference(logits_of(loaded), expected) > 10 * BOUND


def test_parity_notices_every_published_weight_of_the_geometry(loaded):
    expected = logits_of(loaded)
    parts = {**dict(loaded[0].gsm.named_parameters()), **dict(loaded[1].named_parameters())}
    unseen = []
    with torch.no_grad():
        for name, parameter in parts.items():
            kept = parameter.clone()
            # A key's bias adds the same to every score of unturned keys, hence one for each channel.
            parameter.add_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape))
            if difference(logits_of(loaded, questions()[:1]), expected[:1]) < BOUND:
                unseen.append(name)
            parameter.copy_(kept)
    assert not unseen
    assert torch.equal(logits_of(loaded), expected)


def test_videos_of_a_batch_do_not_mix(loaded):
    """The reference takes the first video's size for all of a pack and lays all queries behind all videos."""
    together = logits_of(loaded)
    for place, asked in enumerate(questions()):
        assert difference(logits_of(loaded, [asked])[0], together[place]) < 1e-5
    prior = loaded[1]
    both = questions()
    patches = torch.cat([asked.patches for asked in both])
    found = prior(patches, torch.tensor([asked.grid for asked in both]))
    for asked, features in zip(both, found, strict=True):
        (alone,) = prior(asked.patches, torch.tensor([asked.grid]))
        assert features.shape[:3] == (asked.grid[0], asked.grid[1] // 2, asked.grid[2] // 2)
        torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="give the patches of these videos"):
        prior(patches[:-4], torch.tensor([asked.grid for asked in both]))


def test_images_and_text_are_the_plain_model_bit_for_bit(folder, loaded):
    model, prior = loaded
    plain = Qwen2_5_VLForConditionalGeneration._from_config(model.config).eval()
    own = model.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    image = published_loops.random_question((1, 4, 4), 1.0, queries=0)
    tokens = torch.where(image.tokens == published_loops.VIDEO_PAD, model.config.image_token_id, image.tokens)[None]
    types = (tokens == model.config.image_token_id).int()
    shown = {"pixel_values": image.patches, "image_grid_thw": torch.tensor([image.grid]), "mm_token_type_ids": types}
    with torch.inference_mode():
        for inputs in ({"input_ids": tokens, **shown}, {"input_ids": tokens[:, -9:]}):
            assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
        # A still image has features too: a video of one slot.
        assert prior(image.patches, torch.tensor([image.grid]))[0].shape == (1, 2, 2, 512)


def test_a_saved_copy_is_ours_and_computes_the_same(loaded, folder, tmp_path):
    model, prior = loaded
    model.save_pretrained(tmp_path)
    assert is_published(str(folder)) and not is_published(str(tmp_path))
    again = GeometricQwen.from_pretrained(tmp_path, use_safetensors=True).eval()
    assert reads_prompt(again.config.geometry_config) and not reads_prompt({"reads": "question"})
    assert not reads_prompt(None)
    assert torch.equal(logits_of((again, prior)), logits_of(loaded))


def test_layouts_are_told_apart_by_names_alone(folder, tmp_path):
    assert not is_published(str(tmp_path))
    save_file({published.MARKER: torch.zeros(1)}, tmp_path / "model.safetensors")
    assert is_published(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"visual.merger.ln_q.weight": "a"}}')
    assert not is_published(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("visual.merger.ln_q.weight", None, "tensor 'visual.merger.ln_q.weight' is missing (1 in all)"),
        ("visual.merger.ln_q.weight", (3,), "'visual.merger.ln_q.weight' is (3,), not (32,)"),
        ("visual.spatial_merger.mlp.0.weight", (3,), "'visual.spatial_merger.mlp.0.weight' is (3,)"),
        ("visual.q_former_queries", None, "'visual.q_former_queries' is missing"),
        ("visual.spatial_encoder.pos_embed", (1, 26, 63), "visual.spatial_encoder.* are no DINOv2's"),
        ("visual.q_former_3.queries", (3,), "tensor 'visual.q_former_3.queries' is not part"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(folder, tmp_path, name, change, message):
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for path in folder.iterdir():
        os.link(path, tmp_path / path.name)
    shard = tmp_path / index.get(name, "model-00001-of-00002.safetensors")
    tensors = load_file(shard)
    tensors.pop(name, None)
    shard.unlink()
    save_file(tensors | ({name: torch.zeros(change)} if change else {}), shard)
    with pytest.raises(WeightsError) as refusal:
        load_published_with_prior(str(tmp_path))
    assert message in str(refusal.value) and "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_damaged_and_missing_files_are_refused(folder, tmp_path):
    for path in folder.iterdir():
        os.link(path, tmp_path / path.name)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    half = shard.read_bytes()[: shard.stat().st_size // 2]
    shard.unlink()
    with pytest.raises(WeightsError, match=r"00002-of-00002\.safetensors' is missing"):
        load_published_with_prior(str(tmp_path))
    shard.write_bytes(half)
    with pytest.raises(WeightsError, match=r"00002-of-00002\.safetensors: truncated or damaged"):
        load_published_with_prior(str(tmp_path))


@pytest.mark.parametrize(("config", "message"), [(None, "not readable"), ({"model_type": "qwen3_vl"}, "of a qwen3_vl")])
def test_weights_without_their_configuration_are_refused(tmp_path, config, message):
    save_file({published.MARKER: torch.zeros(1)}, tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((WeightsError, ParameterError), match=message):
        load_published_with_prior(str(tmp_path))


def test_the_prompt_is_read_without_special_tokens():
    ids = [151644, 5, 6, 151645, 6, 151652, 151656, 151656, 151653, 9, 151645, 6, 151644, 7, 6]
    assert prompt_tokens_read(ids) == [5, 6, 6, 9, 6, 7, 6]
    assert prompt_tokens_read(ids, in_training=True) == [5, 6, 6, 9, 6]
    assert prompt_tokens_read([0, 1, 2], unread={1}) == [0, 2]


def test_slots_start_evenly_from_zero():
    assert slot_starts(4, 0.75).tolist() == [0, 0.75, 1.5, 2.25]


def test_text_goes_on_behind_time_where_a_video_is_long(loaded):
    asked = [dataclasses.replace(item, seconds_per_slot=seconds) for item in questions() for seconds in (0.2, 5.0)]
    batch = batch_of(asked, loaded[1], 32, PER_SECOND)
    for row, item in enumerate(asked):
        length = len(item.tokens)
        assert torch.equal(batch.positions[:, row, :length].T, published_loops._positions(item))
    again = continue_after_time(batch)
    assert torch.equal(again.positions, batch.positions)
    blind = pack([Tree([1, 2], None, None, [Branch([3], [-100], [3], 1)])], 0, 32, PER_SECOND)
    assert torch.equal(continue_after_time(blind).positions, blind.positions)


def test_the_configuration_is_read_as_published(folder, loaded):
    config = loaded[0].config
    stated = json.loads((folder / "config.json").read_text())
    assert config.text_config.hidden_size == stated["hidden_size"]
    assert config.text_config.rope_parameters["rope_theta"] == stated["rope_theta"]
    assert config.vision_config.fullatt_block_indexes == stated["vision_config"]["fullatt_block_indexes"]
    assert loaded[0].geometry_tokens == 32 and config.geometry_config["channels"] == 8 * Sizes().encoder_width
