import math

import pytest
import torch
from torch import nn

from models.geometric_qwen import GeometricQwen, geometry_config, tiny_config
from models.gsm import GeometrySelection, PriorProjection
from models.parameters import GeometryModelParameters, ParameterError, TinyModelParameters
from models.prompt import SPECIAL_TOKENS

IDS = {**{token: place for place, token in enumerate(SPECIAL_TOKENS)}, "vocabulary": 50}
SIZES = TinyModelParameters(hidden_size=32, layers=1, heads=2, key_value_heads=1, vision_width=16, vision_heads=2)


def selection(channels: int = 14, **geometry) -> GeometrySelection:
    torch.manual_seed(0)
    parameters = GeometryModelParameters(queries=5, **geometry)
    model = GeometricQwen(tiny_config(SIZES, IDS, geometry_config(parameters, channels)))
    for parameter in model.gsm.parameters():
        # The small weights that training starts from would hide mistakes behind the residuals.
        nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(model.gsm.prior.mlp[2].weight, std=1.0)
    return model.gsm


def inputs(rows: int = 2, channels: int = 14):
    generator = torch.Generator().manual_seed(1)
    question = torch.randn(3, 7, 32, generator=generator)
    visible = torch.ones(3, 7, dtype=torch.bool)
    prior = torch.randn(rows, 4, 6, 4, channels, generator=generator)
    grid = torch.tensor([[4, 6, 4]] * rows)
    times = torch.arange(4.0).expand(rows, -1) + 0.5
    return question, visible, prior, grid, times, torch.tensor([0, 1, 1])


def test_tokens_per_question():
    assert selection()(*inputs()).shape == (3, 5, 32)
    assert selection(condenser_depth=2, selector_depth=3)(*inputs()).shape == (3, 5, 32)
    assert selection(40, prior="tokens")(*inputs(channels=40)).shape == (3, 5, 32)


def test_padding_of_questions_and_priors_changes_nothing():
    gsm = selection()
    question, visible, prior, grid, times, owner = inputs()
    alone = gsm(question, visible, prior, grid, times, owner)
    longer = torch.cat([question, torch.full((3, 4, 32), 9.0)], 1)
    seen = torch.cat([visible, torch.zeros(3, 4, dtype=torch.bool)], 1)
    wider = torch.zeros(2, 7, 8, 5, 14)
    wider[:, :4, :6, :4] = prior
    later = torch.cat([times, torch.zeros(2, 3)], 1)
    torch.testing.assert_close(gsm(longer, seen, wider, grid, later, owner), alone, rtol=1e-5, atol=1e-5)


def test_clips_and_questions_do_not_mix():
    gsm = selection()
    question, visible, prior, grid, times, owner = inputs()
    together = gsm(question, visible, prior, grid, times, owner)
    for place in range(3):
        row = owner[place : place + 1]
        own = gsm(
            question[place : place + 1],
            visible[place : place + 1],
            prior[row],
            grid[row],
            times[row],
            torch.tensor([0]),
        )
        torch.testing.assert_close(own[0], together[place], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["question", "prior", "times", "place"])
def test_everything_that_should_matter_does(what):
    gsm = selection()
    question, visible, prior, grid, times, owner = inputs()
    before = gsm(question, visible, prior, grid, times, owner)
    if what == "question":
        question = question.flip(1)
    if what == "prior":
        prior = prior + 0.3
    if what == "times":
        times = times * 3
    if what == "place":
        prior = prior.roll(2, 2)
    assert (gsm(question, visible, prior, grid, times, owner) - before).abs().max() > 1e-4


def test_block_is_the_papers_arithmetic():
    """One block recomputed head by head, with rotary positions as rotations of pairs."""
    gsm = selection()
    block = gsm.condenser[0]
    question, visible, *_ = inputs()
    visible[:, 5:] = False
    queries = gsm.queries.expand(3, -1, -1)
    rotary = gsm._rotary(gsm._counting(queries)), gsm._rotary(gsm._counting(question))
    ours = block(
        queries, question, owner=torch.arange(3), visible=visible, query_rotary=rotary[0], target_rotary=rotary[1]
    )

    def norm(x, weight):
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    def rotate(x):
        rotated = x.clone()
        for place in range(x.shape[0]):
            for pair in range(8):
                angle = place * 10000.0 ** (-2 * pair / 16)
                a, b = x[place, pair], x[place, pair + 8]
                rotated[place, pair] = a * math.cos(angle) - b * math.sin(angle)
                rotated[place, pair + 8] = b * math.cos(angle) + a * math.sin(angle)
        return rotated

    attention, weight = block.attention, block.attention_norm.weight
    for row in range(3):
        x, target = queries[row], norm(question[row], weight)
        key = rotate(attention.k_proj(target))[:5]
        value = attention.v_proj(target)[:5]
        heads = []
        for head in range(2):
            query = rotate(attention.q_proj(norm(x, weight))[:, 16 * head : 16 * head + 16])
            heads.append((query @ key.T / 4).softmax(-1) @ value)
        x = x + attention.o_proj(torch.cat(heads, -1))
        y = norm(x, block.mlp_norm.weight)
        x = x + block.mlp.down_proj(nn.functional.silu(block.mlp.gate_proj(y)) * block.mlp.up_proj(y))
        torch.testing.assert_close(ours[row], x, rtol=1e-4, atol=1e-4)


def test_merging_by_explicit_loops():
    geometry = {"channels": 14, "octaves": 1, "prior": "cells", "merge_time": 2, "merge_space": 2}
    projection = PriorProjection(8, geometry)
    features = torch.randn(1, 3, 2, 5, 14)
    times = torch.tensor([[0.5, 1.0, 1.5]])
    keys, visible, coordinates = projection(features, torch.tensor([[3, 2, 5]]), times)
    assert keys.shape == (1, 2 * 1 * 3, 8) and visible.all()
    assert coordinates[0].tolist() == [[s, 0.0, w] for s in (1.0, 1.5) for w in range(3)]

    def cell(t, h, w):
        inside = t < 3 and h < 2 and w < 5
        raw = features[0, t, h, w] if inside else torch.zeros(14)
        angle = raw[:6] * math.pi / 4
        return torch.cat([raw, angle.sin(), angle.cos()])

    merged = [cell(2 + t, h, 4 + w) for t in range(2) for h in range(2) for w in range(2)]
    torch.testing.assert_close(keys[0, 5], projection.mlp(torch.cat(merged)))


def test_wrong_channels_are_refused():
    with pytest.raises(ParameterError, match="geometric cells have 14"):
        geometry_config(GeometryModelParameters(), 1024)
    with pytest.raises(ValueError, match="the model reads 14"):
        selection()(*inputs(channels=9))
    assert geometry_config(GeometryModelParameters(queries=0), 0) is None


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="multiple of 16 wide"):
        tiny_config(TinyModelParameters(hidden_size=40, heads=4), IDS, None)
    with pytest.raises(ParameterError, match="vision_width"):
        tiny_config(TinyModelParameters(vision_width=18), IDS, None)
