import math

import pytest
import torch
from torch import nn

from models.configuration import geometry_config
from models.geometric_qwen import GeometricQwen
from models.gsm import (
    CELL_CHANNELS,
    CELL_PLACE,
    FLOW_SCALE,
    PLACE_GAIN,
    STILL,
    GeometrySelection,
    PriorProjection,
    Readers,
)
from models.parameters import GeometryModelParameters, ParameterError, TinyModelParameters
from models.prompt import SPECIAL_TOKENS
from models.tiny import tiny_config
from tests.models.small_models import AS_PUBLISHED

IDS = {**{token: place for place, token in enumerate(SPECIAL_TOKENS)}, "vocabulary": 50}
SIZES = TinyModelParameters(hidden_size=32, layers=1, heads=2, key_value_heads=1, vision_width=16, vision_heads=2)


def selection(channels: int = CELL_CHANNELS, **geometry) -> GeometrySelection:
    torch.manual_seed(0)
    parameters = GeometryModelParameters(**{"queries": 5, "condenser_depth": 1, **AS_PUBLISHED, **geometry})
    model = GeometricQwen(tiny_config(SIZES, IDS, geometry_config(parameters, channels)))
    for parameter in model.gsm.parameters():
        # The small weights that training starts from would hide mistakes behind the residuals.
        nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(model.gsm.prior.mlp[2].weight, std=1.0)
    return model.gsm


def inputs(rows: int = 2, channels: int = CELL_CHANNELS):
    generator = torch.Generator().manual_seed(1)
    question = torch.randn(3, 7, 32, generator=generator)
    visible = torch.ones(3, 7, dtype=torch.bool)
    prior = torch.randn(rows, 4, 6, 4, channels, generator=generator)
    grid = torch.tensor([[4, 6, 4]] * rows)
    times = torch.arange(4.0).expand(rows, -1) + 0.5
    return question, visible, prior, grid, times, torch.tensor([0, 1, 1])


def test_tokens_per_question():
    assert selection()(*inputs()).tokens.shape == (3, 5, 32)
    assert selection(condenser_depth=2, selector_depth=3)(*inputs()).tokens.shape == (3, 5, 32)
    assert selection(40, prior="tokens")(*inputs(channels=40)).tokens.shape == (3, 5, 32)


def test_padding_of_questions_and_priors_changes_nothing():
    gsm = selection()
    question, visible, prior, grid, times, owner = inputs()
    alone = gsm(question, visible, prior, grid, times, owner, with_attention=True)
    longer = torch.cat([question, torch.full((3, 4, 32), 9.0)], 1)
    seen = torch.cat([visible, torch.zeros(3, 4, dtype=torch.bool)], 1)
    wider = torch.zeros(2, 7, 8, 5, CELL_CHANNELS)
    wider[:, :4, :6, :4] = prior
    later = torch.cat([times, torch.zeros(2, 3)], 1)
    padded = gsm(longer, seen, wider, grid, later, owner, with_attention=True)
    torch.testing.assert_close(padded.tokens, alone.tokens, rtol=1e-5, atol=1e-5)
    on_grid = padded.attention.reshape(3, 5, 4, 4, 3)
    torch.testing.assert_close(on_grid[:, :, :2, :3, :2].flatten(2), alone.attention, rtol=1e-5, atol=1e-6)
    assert on_grid[:, :, 2:].count_nonzero() == on_grid[..., 2:].count_nonzero() == 0


def test_attention_is_asked_for_and_changes_no_token():
    gsm = selection(selector_depth=2)
    plain, asked = gsm(*inputs()), gsm(*inputs(), with_attention=True)
    assert plain.attention is None
    torch.testing.assert_close(asked.tokens, plain.tokens, rtol=1e-5, atol=1e-6)
    assert asked.attention.shape == (3, 5, 2 * 3 * 2) and asked.attention.dtype is torch.float32
    torch.testing.assert_close(asked.attention.sum(-1), torch.ones(3, 5))
    assert asked.attention.std() > 0.01


def test_attention_is_what_the_last_block_mixes_with():
    """Recomputed head by head from the projected queries and keys."""
    gsm = selection(selector_depth=2)
    last = gsm.selector[1].attention
    mixed = {}
    last.o_proj.register_forward_pre_hook(lambda _, arguments: mixed.update(heads=arguments[0]))
    with torch.no_grad():
        last.v_proj.weight.zero_()
        last.v_proj.bias.copy_(torch.arange(16.0))
    first = gsm(*inputs(), with_attention=True)
    # Equal values come out as they went in only where the shares of every head add up to 1.
    torch.testing.assert_close(mixed["heads"].unflatten(-1, (2, 16)), torch.arange(16.0).expand(3, 5, 2, 16))
    keys = {}
    last.k_proj.register_forward_hook(lambda _, arguments, output: keys.update(k=output))
    last.q_proj.register_forward_hook(lambda _, arguments, output: keys.update(q=output))
    assert torch.equal(gsm(*inputs(), with_attention=True).attention, first.attention)
    turned, angles = [], gsm._rotary(gsm._counting(torch.zeros(3, 5, 32)))
    places = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).float()
    # Two slots make one: it stands at the seconds of the later one, two positions per second.
    places[:, 0] = (torch.tensor([1.5, 3.5])[places[:, 0].long()] * 2).floor()
    key_angles = gsm._rotary(places.T[:, None])
    for question, row in enumerate((0, 1, 1)):
        heads = []
        for head in range(2):
            q = _turned(keys["q"][question, :, 16 * head : 16 * head + 16], *(a[0] for a in angles))
            k = _turned(keys["k"][row], *(a[0] for a in key_angles))
            heads.append((q @ k.T / 4).softmax(-1))
        turned.append(sum(heads) / 2)
    torch.testing.assert_close(first.attention, torch.stack(turned), rtol=1e-4, atol=1e-6)


def _turned(vectors, cosine, sine):
    return vectors * cosine + torch.cat([-vectors[:, 8:], vectors[:, :8]], -1) * sine


def test_gradients_reach_everything_through_the_attention_alone():
    gsm = selection(speak=True)
    found = gsm(*inputs(), with_attention=True).attention
    found[..., 0].log().sum().backward()
    still = {name for name, parameter in gsm.named_parameters() if parameter.grad is None}
    assert still == {
        f"selector.0.{name}"
        for name in (
            "attention.v_proj.weight",
            "attention.v_proj.bias",
            "attention.o_proj.weight",
            "mlp_norm.weight",
            "mlp.gate_proj.weight",
            "mlp.up_proj.weight",
            "mlp.down_proj.weight",
        )
    } | {"prior.straight.weight", "norm.weight"} | {f"speech.{name}" for name, _ in gsm.speech.named_parameters()}


def test_keys_are_projected_once_per_clip_in_any_order_of_questions():
    gsm = selection()
    question, visible, prior, grid, times, _ = inputs()
    seen = []
    gsm.selector[0].attention.k_proj.register_forward_hook(lambda _, arguments, output: seen.append(output.shape))
    owner = torch.tensor([1, 0, 1])
    tokens = gsm(question, visible, prior, grid, times, owner).tokens
    assert seen == [(2, 12, 16)]
    order = torch.tensor([1, 2, 0])
    other = gsm(question[order], visible[order], prior, grid, times, owner[order]).tokens
    torch.testing.assert_close(other, tokens[order], rtol=1e-5, atol=1e-5)


def test_readers_lie_side_by_side_and_come_back():
    readers = Readers.of(torch.tensor([2, 0, 2, 2]))
    assert readers.places == 3
    each = torch.arange(8.0).reshape(4, 2)
    laid_out = readers.together(each, 4)
    assert laid_out[2].tolist() == [[0, 1], [4, 5], [6, 7]] and laid_out[[1, 3]].count_nonzero() == 0
    assert torch.equal(readers.apart(laid_out), each)


def test_clips_and_questions_do_not_mix():
    gsm = selection()
    question, visible, prior, grid, times, owner = inputs()
    together = gsm(question, visible, prior, grid, times, owner).tokens
    for place in range(3):
        row = owner[place : place + 1]
        own = gsm(
            question[place : place + 1],
            visible[place : place + 1],
            prior[row],
            grid[row],
            times[row],
            torch.tensor([0]),
        ).tokens
        torch.testing.assert_close(own[0], together[place], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["question", "prior", "times", "place"])
def test_everything_that_should_matter_does(what):
    gsm = selection()
    question, visible, prior, grid, times, owner = inputs()
    before = gsm(question, visible, prior, grid, times, owner).tokens
    if what == "question":
        question = question.flip(1)
    if what == "prior":
        prior = prior + 0.3
    if what == "times":
        times = times * 3
    if what == "place":
        prior = prior.roll(2, 2)
    assert (gsm(question, visible, prior, grid, times, owner).tokens - before).abs().max() > 1e-4


def test_block_is_the_papers_arithmetic():
    """One block recomputed head by head, with rotary positions as rotations of pairs."""
    gsm = selection()
    block = gsm.condenser[0]
    question, visible, *_ = inputs()
    visible[:, 5:] = False
    queries = gsm.queries.expand(3, -1, -1)
    rotary = gsm._rotary(gsm._counting(queries)), gsm._rotary(gsm._counting(question))
    readers = Readers.alone(3, queries.device)
    ours, _, _ = block(
        queries, question, readers=readers, visible=visible, query_rotary=rotary[0], target_rotary=rotary[1]
    )

    def norm(x, weight):
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

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
    geometry = {"channels": CELL_CHANNELS, "octaves": 1, "prior": "cells", "merge_time": 2, "merge_space": 2}
    projection = PriorProjection(8, geometry)
    features = torch.randn(1, 3, 2, 5, CELL_CHANNELS)
    times = torch.tensor([[0.5, 1.0, 1.5]])
    cells = projection(features, torch.tensor([[3, 2, 5]]), times)
    assert cells.keys.shape == cells.values.shape == (1, 2 * 1 * 3, 8) and cells.visible.all()
    assert cells.places[0].tolist() == [[s, 0.0, w] for s in (1.0, 1.5) for w in range(3)]

    def cell(t, h, w):
        inside = t < 3 and h < 2 and w < 5
        raw = features[0, t, h, w] if inside else torch.zeros(CELL_CHANNELS)
        flow = raw[6:9] * FLOW_SCALE
        own = torch.cat([raw[:6], flow, raw[9:], torch.log(flow.norm() + STILL)[None]])
        light = (raw[9:12] + 1) / 2
        # 60 π / 32 of a minute is a wave of 64 seconds.
        waves = [2.0**octave * 60 * math.pi / 32 * raw[13] for octave in range(6)]
        tint = light / light.max().clamp(min=0.05)
        angle = torch.cat([raw[:6] * math.pi / 4, raw[9:12] * math.pi / 2, tint * math.pi / 2, torch.stack(waves)])
        return own, torch.cat([own, angle.sin(), angle.cos()])

    merged = [cell(2 + t, h, 4 + w) for t in range(2) for h in range(2) for w in range(2)]
    own, described = (torch.cat(parts) for parts in zip(*merged, strict=True))
    torch.testing.assert_close(cells.keys[0, 5], projection.mlp(described))
    torch.testing.assert_close(cells.values[0, 5], projection.straight(own))
    torch.testing.assert_close(cells.whole, cells.keys + cells.values)


def test_values_begin_as_the_mean_places_of_the_merged_cells():
    geometry = {"channels": CELL_CHANNELS, "octaves": 1, "prior": "cells", "merge_time": 2, "merge_space": 1}
    projection = PriorProjection(32, geometry)
    projection.begin_with_places()
    features = torch.randn(1, 2, 1, 1, CELL_CHANNELS)
    values = projection(features, torch.tensor([[2, 1, 1]]), torch.tensor([[0.5, 1.0]])).values[0, 0]
    scale = torch.ones(CELL_CHANNELS)
    scale[6:9] = FLOW_SCALE
    expected = (features[0, :, 0, 0] * scale).mean(0)[list(CELL_PLACE)] * PLACE_GAIN
    torch.testing.assert_close(values[: len(CELL_PLACE)], expected)


def test_wrong_channels_are_refused():
    with pytest.raises(ParameterError, match=f"geometric cells have {CELL_CHANNELS}"):
        geometry_config(GeometryModelParameters(), 1024)
    with pytest.raises(ValueError, match=f"the model reads {CELL_CHANNELS}"):
        selection()(*inputs(channels=9))
    assert geometry_config(GeometryModelParameters(queries=0), 0) is None


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="multiple of 16 wide"):
        tiny_config(TinyModelParameters(hidden_size=40, heads=4), IDS, None)
    with pytest.raises(ParameterError, match="vision_width"):
        tiny_config(TinyModelParameters(vision_width=18), IDS, None)
