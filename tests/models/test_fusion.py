import math

import pytest
import torch
from torch.nn import functional

from models.configuration import geometry_config
from models.fusion import resampled
from models.parameters import GeometryModelParameters
from tests.models.small_models import (
    CHANNELS,
    FAMILIES,
    model_of,
    one_by_one,
    packed,
    tree_of,
)


@pytest.mark.parametrize("size", [(2, 3, 4), (5, 3, 2), (1, 1, 1), (3, 7, 9)])
def test_resampling_is_linear_interpolation(size):
    cells = torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    theirs = functional.interpolate(cells.permute(3, 0, 1, 2)[None], size, mode="trilinear", align_corners=False)
    torch.testing.assert_close(resampled(cells, size), theirs[0].permute(1, 2, 3, 0))


def trees(model, questions: int = 2):
    return [tree_of(model, 0, questions), tree_of(model, 1, 1, slots=3)]


@torch.no_grad()
def test_addition_adds_the_projected_prior_at_its_place():
    model = model_of("qwen2_5", "addition")
    batch = packed(model, trees(model))
    assert batch.geometry_slots.sum() == 0 and not model.geometry_tokens
    with_geometry = model.read(batch).embeddings
    model.fusion.prior.mlp[2].weight.zero_()
    model.fusion.prior.straight.weight.zero_()
    without = model.read(batch).embeddings
    assert torch.equal(with_geometry[~batch.video_slots], without[~batch.video_slots])
    model = model_of("qwen2_5", "addition")
    # The second clip, cell by cell: 3×4×4 features merge to 2×2×2 cells, the vision tokens are 3×2×2.
    cells = model.fusion.prior(batch.prior, batch.prior_grid, batch.prior_times)
    keys, visible = cells.whole, cells.visible
    assert visible[1].all() and keys.shape[1] == 8
    cells = keys[1].reshape(2, 2, 2, -1)
    added = (with_geometry - without)[1][batch.video_slots[1]] + model.fusion.prior.mlp[2].bias
    expected = torch.stack([cells[0], (cells[0] + cells[1]) / 2, cells[1]])
    torch.testing.assert_close(added.reshape(3, 2, 2, -1), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_concatenation_puts_every_cell_behind_the_vision_tokens():
    model = model_of("qwen2_5", "concatenation")
    batch = packed(model, trees(model))
    assert model.prior_merge == (2, 2, 2)
    # 3×3×4 and 3×4×4 features merge to 2×2×2 cells each; questions have no slots of their own.
    assert batch.geometry_slots.sum(1).tolist() == [8, 8]
    assert (batch.branch[batch.geometry_slots] == -1).all()
    for row in range(2):
        video, cells = (slots[row].nonzero().flatten() for slots in (batch.video_slots, batch.geometry_slots))
        assert cells[0] == video[-1] + 1
        assert torch.equal(batch.positions[:, row, cells], batch.positions[:1, row, cells].expand(3, -1))
    keys = model.fusion.prior(batch.prior, batch.prior_grid, batch.prior_times).whole
    torch.testing.assert_close(model.read(batch).embeddings[batch.geometry_slots], keys.flatten(0, 1))


def fused(family: str = "qwen2_5"):
    model = model_of(family, "fused")
    assert not model.shares_prefix
    return model, packed(model, one_by_one(trees(model)))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_geometry_opens_the_gate_and_follows_the_vision_tokens(family):
    model, batch = fused(family)
    fusion, reading = model.fusion, model.read(batch, with_attention=True)
    vision = model.get_video_features(batch.patches, batch.video_grid, return_dict=True).pooler_output
    cells = model.gsm.prior(batch.prior, batch.prior_grid, batch.prior_times)
    keys, visible = cells.whole, cells.visible
    for row, plain in enumerate(vision):
        tokens = reading.selection.tokens[row]
        seen = reading.embeddings[row][batch.video_slots[row]]
        # The last token by hand, which lies in the last cell: the gate's share of it, the rest from geometry.
        place, last = len(plain) - 1, keys[row][visible[row]][-1]
        heard = fusion.token_norm(tokens)
        spread = fusion.spread(fusion.query_norm(last)[None, None], heard[None], heard[None])[0][0, 0]
        sees, knows = fusion.vision_norm(plain[place]), fusion.geometry_norm(spread)
        gate = torch.sigmoid(fusion.gate.weight @ torch.cat([sees, knows]) + fusion.gate.bias)
        torch.testing.assert_close(seen[place], gate * sees + (1 - gate) * knows, rtol=1e-4, atol=1e-4)
        assert torch.equal(reading.embeddings[row][batch.geometry_slots[row]], tokens)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_hiding_takes_the_vision_that_the_selection_looks_at(family):
    model = model_of(family, "fused")
    # The second clip has as many vision tokens as cells: what is hidden there is what is looked at most.
    batch = packed(model, one_by_one([tree_of(model, 0, 2, slots=3), tree_of(model, 1, 1)]))
    plain = model.read(batch)
    model.train()
    model.fusion.mask_probability = 0.0
    torch.testing.assert_close(model.read(batch).embeddings, plain.embeddings)
    model.fusion.mask_probability = 1.0
    hidden = model.read(batch)
    for row in range(len(batch.tokens)):
        slots = batch.video_slots[row]
        # Where the selection's attention is asked for, it is computed another way: equal to rounding.
        changed = (hidden.embeddings[row][slots] - plain.embeddings[row][slots]).abs().amax(-1) > 1e-4
        assert changed.sum() == math.ceil(0.8 * slots.sum())
    looked = hidden.selection.attention[row].mean(0)
    assert len(looked) == len(changed) == 8
    assert looked[changed].min() >= looked[~changed].max()
    for layer, before in zip(hidden.deepstack, plain.deepstack, strict=True):
        assert (layer == 0).all(-1).sum() == sum(math.ceil(0.8 * n) for n in batch.video_slots.sum(1).tolist())
        assert not (before == 0).all(-1).any()


def test_hiding_is_drawn_from_the_cpu_generator_and_only_in_training():
    model, batch = fused()
    assert model.fusion.draw_hidden(1000) == [False] * 1000
    model.train()
    torch.manual_seed(5)
    drawn = model.fusion.draw_hidden(1000)
    torch.manual_seed(5)
    assert model.fusion.draw_hidden(1000) == drawn and 440 < sum(drawn) < 560
    torch.manual_seed(5)
    first = model.score(batch, batch.prompt_end)
    torch.manual_seed(5)
    assert torch.equal(model.score(batch, batch.prompt_end), first)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_the_fusion_learns(family):
    model, batch = fused(family)
    model.train()
    model.score(batch, batch.prompt_end).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("fusion.", "gsm.")):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_variants_without_geometry_need_no_prior():
    for parameters in (GeometryModelParameters(variant="none"), GeometryModelParameters(queries=0)):
        assert geometry_config(parameters, CHANNELS) is None
    for variant in ("addition", "concatenation"):
        assert geometry_config(GeometryModelParameters(variant=variant, queries=0), CHANNELS)["variant"] == variant
    model = model_of("qwen2_5", "none")
    assert not model.reads_prior and model.shares_prefix and model.prior_merge is None
    assert packed(model, trees(model)).geometry is None


def test_a_prior_without_a_video_is_read_too():
    """The grounding stage has no use for the video."""
    for variant in ("gsm", "addition"):
        model = model_of("qwen2_5", variant)
        batch = packed(model, [tree_of(model, 0, 2, with_video=False), tree_of(model, 1, 1)])
        assert batch.prior_video.tolist() == [-1, 0]
        assert torch.isfinite(model.score(batch, batch.prompt_end)).all()
