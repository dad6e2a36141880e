"""What the geometry module is taught, each part against its sum by hand."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.batch import pack
from models.grounding import (
    BARE_TAKING_PART,
    HAPPENS,
    Guides,
    _look_at_cells,
    _merged_cover,
    _Moment,
    _of_roles,
    _wanted,
    blinkers_of,
    grounding_losses,
    meaning,
    naming_loss,
    option_losses,
    spoken,
)
from models.gsm import CODE_WIDTH, Looks, Selection, Window
from models.guide import KINDS, NO_THING, NO_WORD, UNKNOWN, Notes, Things
from models.loss import stage_loss, totals_of
from models.parameters import TrainingParameters
from tests.models.small_models import WINDOWED, model_of, tree_of

PARTS = ("words", "kinds", "names", "cells", "positions", "states")
PARAMETERS = TrainingParameters()
LETTERS = torch.tensor([20, 21, 22, 23])
STATES = ["", "left", "right"]


def words(text: str) -> list[int]:
    return [10 + ord(character) % 50 for character in text[:5]]


def guided_tree(model, seed: int, questions: int, known: bool = True, seen: bool = True):
    """A clip of two things: one fills a column of cells, the other a cell and a half that wander."""
    tree = tree_of(model, seed, questions)
    t, h, w, _ = tree.prior.features.shape
    cover = np.zeros((2, t, h, w), np.float32)
    if seen:
        cover[0, :, :, 0] = 1.0
        cover[1, range(t), np.arange(t) % h, 2] = 0.8
        cover[1, range(t), np.arange(t) % h, 3] = 0.4
        # Before the second moment the second thing is not there.
        cover[1, 0] = 0.0
    branches = []
    for number, branch in enumerate(tree.branches):
        spans = np.zeros((3, len(branch.question)), bool)
        spans[0, :2] = spans[1, 2] = spans[2, 3] = True
        things = (number % 2, (number + 1) % 2, NO_THING)
        states = [STATES[(number + k) % 3] for k in range(model.geometry_tokens)]
        noted = Notes((1, 2, 3, 4), states=states, things=things, spans=spans, kind=number % 2)
        # An answer that is a letter stands where the prompt ends.
        answer = [int(LETTERS[number % 4]), 2]
        targets = branch.targets[:-2] + answer
        branches.append(replace(branch, targets=targets, notes=noted if known else Notes((1, 2, 3, 4))))
    return replace(tree, branches=branches, things=Things(["box", "robot"], cover))


def packed(model, trees):
    return pack(trees, model.config.video_token_id, model.geometry_tokens, model.tokens_per_second, None, words)


@pytest.fixture
def model():
    return model_of("qwen2_5", "gsm", **WINDOWED)


@pytest.fixture
def guides(model):
    torch.manual_seed(1)
    return Guides(32)


def two_clips(model, **known):
    return [guided_tree(model, 0, 3, **known), guided_tree(model, 1, 1, **known)]


def looking(model, batch, words_at, cells_at) -> Selection:
    """A selection of six heads whose looks are given: shares (Q,6,N,L) and (Q,6,N,W)."""
    size = tuple(batch.prior.shape[1:4])
    window = Window.of(batch.prior_grid, size, model.geometry_tokens, 2)
    tokens = torch.zeros(len(batch.owner), model.geometry_tokens, 32)
    keys = torch.randn(len(batch.prior), math.prod(size), 32, generator=torch.Generator().manual_seed(2))
    looks = Looks(words_at(batch).log(), cells_at(batch, window).log(), window, keys, torch.ones(keys.shape[:2]) > 0)
    return Selection(tokens, None, looks, thoughts=tokens, code=tokens[..., :CODE_WIDTH])


def all_words(batch):
    visible = batch.question_visible[:, None, None].float()
    return (visible / visible.sum(-1, keepdim=True)).expand(-1, 6, 3, -1)


def named_words(batch):
    spans = batch.guide.spans.float()
    return (spans / spans.sum(-1, keepdim=True)).repeat(1, 2, 1)[:, :, None].expand(-1, -1, 3, -1)


def all_cells(batch, window):
    visible = window.visible[batch.owner].float()
    return (visible / visible.sum(-1, keepdim=True))[:, None].expand(-1, 6, -1, -1)


def cover_seen(batch, window, question: int, query: int, role: int, lag: int):
    """What a thing covers of the keys a query sees, at its own slot or the one before; None where it is nowhere."""
    thing, row = int(batch.guide.things[question, role]), int(batch.owner[question])
    at = int(window.slots[row, query]) - lag
    if thing == NO_THING or at < 0:
        return None
    cover, cells = batch.guide.cover[row, thing, at], math.prod(batch.prior.shape[2:4])
    if cover.max() <= 0.03:
        return None
    weights = torch.zeros(window.keys.shape[2])
    for place, (key, visible) in enumerate(zip(window.keys[row, query], window.visible[row, query], strict=True)):
        if visible and key // cells == at:
            weights[place] = cover.flatten()[key % cells] / cover.max()
    return weights


def best_cells(batch, window):
    """All attention of a head where its thing is best seen; anywhere where it is not."""
    shares = all_cells(batch, window).clone()
    for question in range(len(batch.owner)):
        for head in range(6):
            for query in range(3):
                weights = cover_seen(batch, window, question, query, head % 3, head // 3)
                if weights is not None:
                    shares[question, head, query] = torch.nn.functional.one_hot(weights.argmax(), len(weights))
    return shares


def test_looking_at_the_right_place_costs_nothing(model, guides):
    batch = packed(model, two_clips(model))
    parts = grounding_losses(model, guides, batch, looking(model, batch, named_words, best_cells))
    assert float(parts["words"]) == pytest.approx(0.0, abs=1e-5)
    assert float(parts["cells"]) == pytest.approx(0.0, abs=1e-4)


def test_looking_everywhere_costs_what_the_hand_says(model, guides):
    batch = packed(model, two_clips(model))
    selection = looking(model, batch, all_words, all_cells)
    window, shares = selection.looks.window, all_cells(batch, selection.looks.window)
    parts = grounding_losses(model, guides, batch, selection)
    in_words, in_cells = 0.0, 0.0
    for question in range(len(batch.owner)):
        length = int(batch.question_visible[question].sum())
        # Heads look for the three roles in turn, twice; the names are of two, one and one word.
        in_words += np.mean([math.log(length / n) for n in (2, 1, 1)])
        costs = []
        for head in range(6):
            for query in range(3):
                weights = cover_seen(batch, window, question, query, head % 3, head // 3)
                if weights is not None:
                    costs.append(-math.log(float(shares[question, head, query] @ weights)))
        assert 6 < len(costs) < 12
        in_cells += np.mean(costs)
    assert float(parts["words"]) == pytest.approx(in_words, rel=1e-5)
    assert float(parts["cells"]) == pytest.approx(in_cells, rel=1e-4)


def shown_by_hand(batch, window) -> torch.Tensor:
    """(Q,6,N,W) what heads should look at: the cells that the thing of their role fills by more than half as well as
    its best one, at the query's own slot or the one before."""
    shown = torch.zeros(len(batch.owner), 6, *window.keys.shape[1:], dtype=torch.bool)
    for question, head, query in np.ndindex(*shown.shape[:3]):
        weights = cover_seen(batch, window, question, query, head % 3, head // 3)
        if weights is not None:
            shown[question, head, query] = weights > 0.5
    return shown


@pytest.mark.parametrize("slots", [2, 0])
def test_blinkers_show_the_cells_of_the_named_things_at_both_moments(model, monkeypatch, slots):
    batch = packed(model, two_clips(model))
    monkeypatch.setattr(model.gsm.selector[0].attention, "heads", 6)
    monkeypatch.setattr(model.gsm, "window", slots)
    window = model.gsm.window_of(batch.prior, batch.prior_grid)
    expected = shown_by_hand(batch, window)
    assert torch.equal(blinkers_of(model, batch, 1.0), expected)
    shown = expected.any(-1)
    # Nobody is the viewpoint; the second thing is not there at first, and nothing is before the clip begins.
    assert shown[:, [0, 1, 3, 4]].any() and not shown[:, [2, 5]].any() and not shown[:, 3:, 0].any()
    # A column of the clip's cells, and one cell of the one and a half that wander.
    assert set(expected[0, 0].sum(-1).tolist()) == {batch.prior_grid[0, 1].item()}
    assert set(expected[0, 1].sum(-1).tolist()) == {0, 1}


def test_blinkers_are_for_the_first_questions_of_each_row_and_for_them_alone(model):
    batch = packed(model, two_clips(model))
    assert batch.owner.tolist() == [0, 0, 0, 1]
    every, none = blinkers_of(model, batch, 1.0), blinkers_of(model, batch, 0.0)
    assert none is None and every[0].any() and every[1].any()
    for share, told in ((0.9, [True, True, True, True]), (0.6, [True, True, False, True]), (0.3, [True] + 3 * [False])):
        some = blinkers_of(model, batch, share)
        assert torch.equal(some, every & torch.tensor(told)[:, None, None, None])
    # However a step is cut into micro-batches, the same questions are told.
    alone = [blinkers_of(model, packed(model, [tree]), 0.6) for tree in two_clips(model)]
    assert [part.flatten(1).any(1).tolist() for part in alone] == [
        (every[:3] & torch.tensor([True, True, False])[:, None, None, None]).flatten(1).any(1).tolist(),
        every[3:].flatten(1).any(1).tolist(),
    ]


def test_what_nobody_knows_or_sees_is_not_shown(model):
    for given in ({"known": False}, {"seen": False}):
        assert not blinkers_of(model, packed(model, two_clips(model, **given)), 1.0).any()
    empty = Things([], np.zeros((0, 1, 1, 1), np.float32))
    bare = packed(model, [replace(tree, things=empty) for tree in two_clips(model, known=False)])
    assert not blinkers_of(model, bare, 1.0).any()


@torch.no_grad()
def test_being_told_changes_what_is_said_and_not_where_heads_look(model, guides):
    batch = packed(model, two_clips(model))

    def parts(stage, told):
        return stage_loss(model, batch, stage, PARAMETERS, None, guides, LETTERS, told).parts

    found, told = parts("grounding", 0.0), parts("grounding", 1.0)
    assert all(torch.equal(found[name], told[name]) for name in ("words", "names", "cells"))
    assert all(abs(float(found[name] - told[name])) > 1e-4 for name in ("positions", "states"))
    open_eyes, still = parts("videos", 0.0), parts("videos", 1.0)
    assert all(torch.equal(open_eyes[name], still[name]) for name in PARTS)


def test_few_heads_look_for_the_first_roles(model, guides):
    """Two heads know nothing of the viewpoint and of the slot before."""
    batch = packed(model, two_clips(model))
    selection = looking(model, batch, all_words, all_cells)
    looks = selection.looks
    few = replace(looks, words=looks.words[:, :2], cells=looks.cells[:, :2])
    batch.guide.spans[:, 2], batch.guide.things[:, 2] = False, 0
    parts = grounding_losses(model, guides, batch, replace(selection, looks=few))
    lengths = batch.question_visible.sum(1).tolist()
    expected = sum((math.log(n / 2) + math.log(n)) / 2 for n in lengths)
    assert float(parts["words"]) == pytest.approx(expected, rel=1e-5)


def test_saying_what_happens(model, guides):
    batch = packed(model, two_clips(model))
    selection = looking(model, batch, all_words, all_cells)
    silent = grounding_losses(model, guides, batch, selection)["states"]
    # All states as likely, and each as far away as it is long.
    assert float(silent) == pytest.approx(len(batch.owner) * (math.log(3) + 1), rel=1e-3)
    with torch.no_grad():
        said = spoken(model.get_input_embeddings(), batch.guide)
        right = replace(selection, tokens=said[batch.guide.states])
        loud = replace(selection, tokens=3 * said[batch.guide.states])
        wrong = replace(selection, tokens=said[(batch.guide.states + 1) % 3])
        found = [float(grounding_losses(model, guides, batch, each)["states"]) for each in (right, loud, wrong)]
        # Said too loud a state is as clear, but two of its lengths from how the language model knows it.
        assert found[0] < 0.5 and found[1] == pytest.approx(4 * len(batch.owner), rel=1e-2) and found[2] > 10
        by_hand = meaning(model.get_input_embeddings(), torch.tensor([words(") left.")]))[0]
        torch.testing.assert_close(said[1], by_hand / by_hand.square().mean().sqrt(), rtol=1e-3, atol=1e-5)


def test_saying_where_things_are(model, guides):
    batch = packed(model, two_clips(model))
    selection = looking(model, batch, all_words, all_cells)
    torch.nn.init.zeros_(guides.place.weight)
    torch.nn.init.zeros_(guides.place.bias)
    expected = 0.0
    for question, row in enumerate(batch.owner.tolist()):
        errors = []
        for lag in range(2):
            for role in range(3):
                for query in range(3):
                    thing, at = (
                        int(batch.guide.things[question, role]),
                        int(selection.looks.window.slots[row, query]) - lag,
                    )
                    if thing == NO_THING or at < 0 or batch.guide.cover[row, thing, at].max() <= 0.03:
                        continue
                    cover = batch.guide.cover[row, thing, at]
                    # Half a cell less than the fullest does not count: 0.8 and 0.4 are one cell.
                    full = cover > 0.5 * cover.max()
                    mean = batch.prior[row, at][full].mean(0)
                    # Motion counts five times as much as place, headings, which are the last channels, a third.
                    place = torch.cat([mean[:6], 5 * mean[6:9], 0.3 * mean[14:20]])
                    errors.append(float(place.square().mean()))
        expected += np.mean(errors)
    found = grounding_losses(model, guides, batch, selection)["positions"]
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_knowing_what_is_asked_for(model, guides):
    batch = packed(model, two_clips(model))
    selection = looking(model, batch, all_words, all_cells)
    blank = torch.zeros(len(batch.owner), selection.tokens.shape[1], CODE_WIDTH)
    unsure = grounding_losses(model, guides, batch, replace(selection, code=blank))["kinds"]
    assert float(unsure) == pytest.approx(len(batch.owner) * len(KINDS) * math.log(2), rel=1e-5)
    code = blank.clone()
    code[..., : len(KINDS)] = 10 * (2 * functional.one_hot(batch.guide.kinds, len(KINDS)) - 1).float()[:, None]
    known = grounding_losses(model, guides, batch, replace(selection, code=code))["kinds"]
    assert batch.guide.kinds.tolist() == [0, 1, 0, 0] and float(known) < 1e-3
    assert "kinds" not in grounding_losses(model, guides, batch, replace(selection, code=None))


def test_kinds_that_nobody_knows_teach_nothing(model, guides):
    batch = packed(model, two_clips(model))
    selection = looking(model, batch, all_words, all_cells)
    code = torch.randn(len(batch.owner), selection.tokens.shape[1], CODE_WIDTH, requires_grad=True)
    guide = replace(batch.guide, kinds=torch.full_like(batch.guide.kinds, UNKNOWN))
    taught = grounding_losses(model, guides, replace(batch, guide=guide), replace(selection, code=code))["kinds"]
    taught.backward()
    assert float(taught) == 0 and not code.grad.any()


def test_a_head_looks_at_nobody_for_the_camera():
    """Where the module can, all attention on nobody costs nothing for the viewpoint, which is the camera here."""
    model = model_of("qwen2_5", "gsm", **{**WINDOWED, "heads": 2, "nobody": True})
    batch = packed(model, two_clips(model))
    window = model.gsm.window_of(batch.prior, batch.prior_grid)

    def cells(batch, window):
        shares = functional.pad(all_cells(batch, window), (0, 1)).clone()
        shares[:, 2::3] = functional.one_hot(torch.tensor(shares.shape[-1] - 1), shares.shape[-1]).float()
        return shares

    moment = _Moment.of(
        _of_roles(_merged_cover(batch.guide.cover, (1, 1, 1)), batch.guide, batch.owner), window.slots[batch.owner]
    )
    weight, known = _wanted(moment, 2, window, batch, True)
    assert known.all() and weight[..., -1].eq(1).all() and not weight[..., :-1].any()
    former, seen = _wanted(moment, 0, window, batch, True)
    assert not former[..., -1].any() and torch.equal(seen, moment.known[:, 0])
    told = blinkers_of(model, batch, 1.0)
    assert told.shape[-1] == window.keys.shape[-1] + 1
    untold = packed(model, two_clips(model, known=False))
    assert not _wanted(moment, 2, window, untold, True)[1].any()
    spread = looking(model, batch, all_words, lambda *given: functional.pad(all_cells(*given), (0, 1)) + 1e-9)
    there = looking(model, batch, all_words, lambda *given: cells(*given) + 1e-9)
    costs = [float(_look_at_cells(each.looks, [moment] * 2, batch, True)) for each in (spread, there)]
    assert costs[1] < costs[0] - 5


def test_keys_that_tell_nothing_cost_the_choice_of_names(model, guides):
    batch = packed(model, two_clips(model))
    torch.nn.init.zeros_(guides.name.weight)
    torch.nn.init.zeros_(guides.name.bias)
    found = grounding_losses(model, guides, batch, looking(model, batch, all_words, all_cells))["names"]
    assert float(found) == pytest.approx(len(batch.owner) * math.log(3), rel=1e-5)
    assert BARE_TAKING_PART > 1


def test_what_nobody_knows_or_sees_contributes_nothing(model, guides):
    nothing = packed(model, two_clips(model, known=False))
    assert (nothing.guide.states == UNKNOWN).all()
    parts = grounding_losses(model, guides, nothing, model.select(nothing.geometry, with_looks=True))
    assert {name for name, value in parts.items() if float(value)} == {"names"}
    unseen = packed(model, two_clips(model, seen=False))
    selection = model.select(unseen.geometry, with_looks=True)
    parts = grounding_losses(model, guides, unseen, selection)
    assert (float(parts["cells"]), float(parts["positions"])) == (0.0, 0.0)
    assert float(parts["words"]) > 0 and float(parts["states"]) > 0
    (parts["cells"] + parts["positions"] + parts["words"]).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.gsm.parameters() if p.grad is not None)


def test_clips_without_things_contribute_nothing(model, guides):
    bare = [
        replace(tree, things=Things([], np.zeros((0, 1, 1, 1), np.float32))) for tree in two_clips(model, known=False)
    ]
    empty = packed(model, bare)
    parts = grounding_losses(model, guides, empty, model.select(empty.geometry, with_looks=True))
    assert all(math.isfinite(float(value)) for value in parts.values()) and float(parts["cells"]) == 0


def test_names_and_padding_with_no_words():
    embed = torch.nn.Embedding(60, 4)
    found = meaning(embed, torch.tensor([[1, 2, NO_WORD], [NO_WORD] * 3]))
    torch.testing.assert_close(found, torch.stack([embed.weight[1:3].mean(0), torch.zeros(4)]))


def shares_and_whole(model, guides, stage: str):
    trees = [*two_clips(model), guided_tree(model, 2, 2)]
    whole = packed(model, trees)
    totals = totals_of(whole)

    def parts_of(batch):
        loss = stage_loss(model, batch, stage, PARAMETERS, totals, guides, LETTERS)
        return {"total": float(loss.total), **{name: float(value) for name, value in loss.parts.items()}}

    alone = [parts_of(packed(model, [tree])) for tree in trees]
    return parts_of(whole), {name: sum(parts[name] for parts in alone) for name in alone[0]}


@pytest.mark.parametrize("stage", ["grounding", "videos"])
@torch.no_grad()
def test_shares_of_a_step_add_up(model, guides, stage):
    whole, summed = shares_and_whole(model, guides, stage)
    assert set(whole) == {"total", *PARTS, *(["options"] if stage == "videos" else [])}
    for name in set(whole) - {"total", "names"}:
        assert summed[name] == pytest.approx(whole[name], rel=1e-4), name
        assert whole[name] > 1e-3


@pytest.mark.parametrize("stage", ["naming", "grounding"])
@torch.no_grad()
def test_shares_of_names_add_up(model, guides, stage):
    whole, summed = shares_and_whole(model, guides, stage)
    assert summed["names"] == pytest.approx(whole["names"], rel=1e-4) and whole["names"] > 1e-3


def test_naming_is_the_names_of_the_prior_alone(model, guides):
    batch = packed(model, two_clips(model))
    loss = stage_loss(model, batch, "naming", PARAMETERS, None, guides)
    selection = model.select(batch.geometry, with_looks=True)
    torch.testing.assert_close(
        naming_loss(model, guides, batch), grounding_losses(model, guides, batch, selection)["names"]
    )
    assert set(loss.parts) == {"names"} and loss.logits is None
    torch.testing.assert_close(loss.total, naming_loss(model, guides, batch) / 4)
    loss.total.backward()
    taught = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    keys = {f"gsm.prior.{name}" for name, _ in model.gsm.prior.named_parameters() if name.startswith("mlp")}
    assert taught == keys | {"gsm.selector.0.attention_norm.weight"}
    readers = {name for name, parameter in guides.named_parameters() if parameter.grad is not None}
    assert readers == {"name.weight", "name.bias", "nobody"}


@torch.no_grad()
def test_moments_at_which_something_happens_weigh_more(model, guides):
    """With silent tokens all states are as likely, and as far away; what is left are the two weights."""
    batch = packed(model, two_clips(model))
    selection = looking(model, batch, all_words, all_cells)
    chance = math.log(3) + 1
    for states, weight in (([0, 0, 0], 1 - HAPPENS), ([1, 2, 1], HAPPENS), ([0, 0, 1], 1.0), ([UNKNOWN, 0, 0], 0.2)):
        batch.guide.states[:] = torch.tensor(states)
        found = grounding_losses(model, guides, batch, selection)["states"]
        assert float(found) == pytest.approx(4 * weight * chance, rel=1e-3)


def test_gradients_of_the_grounding_stage_stay_in_the_geometry_module(model, guides):
    loss = stage_loss(model, packed(model, two_clips(model)), "grounding", PARAMETERS, None, guides)
    assert loss.logits is None and set(loss.parts) == set(PARTS)
    loss.total.backward()
    taught = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert taught == {name for name, _ in model.named_parameters() if name.startswith("gsm.")}
    assert all(p.grad.abs().sum() > 0 for name, p in model.gsm.named_parameters() if not name.endswith("k_proj.bias"))
    assert model.get_input_embeddings().weight.grad is None
    readers = {name for name, parameter in guides.named_parameters() if parameter.grad is not None}
    assert readers == {name for name, _ in guides.named_parameters() if not name.startswith(("option.", "agree."))}


def test_gradients_of_the_stage_on_videos_reach_everything(model, guides):
    loss = stage_loss(model, packed(model, two_clips(model)), "videos", PARAMETERS, None, guides, LETTERS)
    loss.total.backward()
    untaught = [
        name for name, parameter in (*model.named_parameters(), *guides.named_parameters()) if parameter.grad is None
    ]
    assert untaught == []
    assert set(loss.parts) == {"options", *PARTS} and loss.logits.shape == (4, 64)


def test_guidance_is_weighed_and_can_be_left_out(model, guides):
    batch = packed(model, two_clips(model))

    def found(stage, given=guides, **weights):
        parameters = TrainingParameters(grounding_steps=0, guidance=replace(PARAMETERS.guidance, **weights))
        return stage_loss(model, batch, stage, parameters, None, given, LETTERS)

    with torch.no_grad():
        plain, full = found("videos", None), found("videos")
        assert plain.parts == {} and found("videos", options=0.0, in_videos=0.0).parts == {}
        assert float(found("videos", options=0.0, in_videos=0.0).total) == pytest.approx(float(plain.total))
        weights = vars(PARAMETERS.guidance)
        said = {name: float(value) * weights[name] for name, value in full.parts.items()}
        grounded = sum(said[name] for name in PARTS)
        assert float(full.total - plain.total) == pytest.approx(said["options"] + 0.3 * grounded, rel=1e-4)
        assert float(found("grounding").total) == pytest.approx(grounded, rel=1e-4)
        torch.testing.assert_close(plain.logits, full.logits, rtol=1e-4, atol=1e-5)


def test_options_are_chosen_by_what_stands_at_their_ends(model, guides):
    batch = packed(model, two_clips(model))
    hidden = torch.randn(*batch.tokens.shape, 32, generator=torch.Generator().manual_seed(4))
    answers = torch.tensor([2, 0, 3, 1])
    said = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
    found = option_losses(guides, hidden, batch, said, answers)
    for question, (row, number) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0)]):
        first = int((batch.branch[row] == number).nonzero()[0]) + model.geometry_tokens
        scores = guides.option(hidden[row, [first + place for place in (1, 2, 3, 4)]])[:, 0]
        both = (scores, said[question])
        expected = sum(four.logsumexp(0) - four[answers[question]] for four in both)
        torch.testing.assert_close(found[question], expected)


def test_options_are_also_judged_state_by_state(model, guides):
    batch = packed(model, two_clips(model))
    hidden = torch.randn(*batch.tokens.shape, 32, generator=torch.Generator().manual_seed(4))
    answers, said = torch.tensor([2, 0, 3, 1]), torch.zeros(4, 4)
    before = option_losses(guides, hidden, batch, said, answers)
    places = {1: ((0, 1, 4), 1), 3: ((1, 0, 2), 0)}
    expected = torch.zeros(4)
    for question, ((row, number, further), agrees) in places.items():
        slot = int((batch.branch[row] == number).nonzero()[0]) + further
        batch.guide.agrees[row, slot] = agrees
        score = guides.agree(hidden[row, slot])[0]
        expected[question] = functional.softplus(-score if agrees else score) / 4
    torch.testing.assert_close(option_losses(guides, hidden, batch, said, answers) - before, expected)


def test_guides_are_no_part_of_the_model(model):
    assert not any("guides" in name for name in copy.deepcopy(model).state_dict())
