"""What the selection does differently where it is asked to: windows of time, context of words, heads of its own."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from models.gsm import CELL_CHANNELS, Readers, Window, slots_of
from tests.models.small_models import WINDOWED
from tests.models.test_gsm import inputs, selection

QUERIES, SLOTS, CELLS = 5, 4, 24


def windowed(**changes):
    return selection(**{**WINDOWED, **changes})


@pytest.mark.parametrize(
    ("grid", "size", "queries", "slots"),
    [
        ([[4, 3, 2]], (4, 3, 2), 5, 2),
        ([[1, 3, 2]], (1, 3, 2), 6, 3),
        ([[9, 2, 2]], (9, 2, 2), 4, 2),
        ([[3, 3, 2], [5, 2, 1]], (5, 3, 2), 4, 3),
        ([[3, 3, 2], [5, 2, 1]], (5, 3, 2), 4, 0),
    ],
)
def test_windows_by_explicit_loops(grid, size, queries, slots):
    window = Window.of(torch.tensor(grid), size, queries, slots)
    for row, (time, height, width) in enumerate(grid):
        for query in range(queries):
            at = int((query + 0.5) / queries * time)
            assert window.slots[row, query] == at
            first = max(at - slots + 1, 0) if slots else 0
            last = at if slots else time - 1
            expected = {
                (t * size[1] + h) * size[2] + w
                for t in range(first, last + 1)
                for h in range(height)
                for w in range(width)
            }
            seen = window.keys[row, query][window.visible[row, query]].tolist()
            assert sorted(seen) == sorted(expected)
    each = torch.arange(math.prod(size) * 2.0).view(1, -1, 2).expand(len(grid), -1, -1)
    assert torch.equal(window.of_rows(each)[..., 0], window.keys * 2.0)


def test_notes_and_windows_agree_which_slot_a_query_is_at():
    for queries, slots in ((16, 8), (5, 90), (11, 22), (13, 26)):
        # As `TreeMaker` asks, in NumPy; and as fractions say.
        noted = torch.from_numpy(slots_of(np.arange(queries), queries, slots))
        assert noted.tolist() == [int(Fraction(2 * query + 1, 2 * queries) * slots) for query in range(queries)]
        assert torch.equal(Window.of(torch.tensor([[slots, 1, 1]]), (slots, 1, 1), queries, 2).slots[0], noted)


@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_a_query_sees_its_own_slots_and_no_others(depth):
    gsm = windowed(selector_depth=depth)
    question, visible, prior, grid, times, owner = inputs()
    before = gsm(question, visible, prior, grid, times, owner).tokens
    for slot in range(SLOTS):
        moved = prior.clone()
        moved[1, slot, 2, 1] += 1.0
        after = gsm(question, visible, moved, grid, times, owner).tokens
        for query in range(QUERIES):
            at = int((query + 0.5) / QUERIES * SLOTS)
            changed = (after - before)[1:, query].abs().amax(-1)
            assert bool((changed > 1e-5).all()) if at - 1 <= slot <= at else bool((changed == 0).all())
        assert torch.equal(after[0], before[0])


@torch.no_grad()
def test_seconds_and_places_are_told_by_the_cells_alone():
    """No rotary positions: times do not enter, and cells that change places within a slot give the same tokens."""
    gsm = windowed()
    question, visible, prior, grid, times, owner = inputs()
    before = gsm(question, visible, prior, grid, times, owner).tokens
    assert torch.equal(gsm(question, visible, prior, grid, times * 3, owner).tokens, before)
    swapped = gsm(question, visible, prior.flip(2), grid, times, owner).tokens
    torch.testing.assert_close(swapped, before, rtol=1e-4, atol=1e-4)
    assert (gsm(question, visible, prior.flip(1), grid, times, owner).tokens - before).abs().max() > 1e-3


@torch.no_grad()
def test_padding_of_priors_changes_nothing():
    gsm = windowed()
    question, visible, prior, grid, times, owner = inputs()
    alone = gsm(question, visible, prior, grid, times, owner, with_attention=True)
    wider = torch.full((2, 7, 8, 5, CELL_CHANNELS), 9.0)
    wider[:, :4, :6, :4] = prior
    later = torch.cat([times, torch.zeros(2, 3)], 1)
    padded = gsm(question, visible, wider, grid, later, owner, with_attention=True)
    torch.testing.assert_close(padded.tokens, alone.tokens, rtol=1e-5, atol=1e-5)
    on_grid = padded.attention.view(3, QUERIES, 7, 8, 5)
    torch.testing.assert_close(on_grid[:, :, :4, :6, :4].flatten(2), alone.attention, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(padded.attention.sum(-1), torch.ones(3, QUERIES))


@pytest.mark.parametrize("slots", [1, 2, 9])
@torch.no_grad()
def test_clips_shorter_and_longer_than_the_queries(slots):
    gsm = windowed()
    question, visible, _, _, _, owner = inputs()
    prior = torch.randn(2, slots, 3, 2, CELL_CHANNELS, generator=torch.Generator().manual_seed(2))
    times, grid = torch.arange(1.0 * slots).expand(2, -1), torch.tensor([[slots, 3, 2]] * 2)
    found = gsm(question, visible, prior, grid, times, owner, with_attention=True)
    by_slot = found.attention.view(3, QUERIES, slots, 6).sum(-1)
    for query in range(QUERIES):
        at = int((query + 0.5) / QUERIES * slots)
        torch.testing.assert_close(by_slot[:, query, max(at - 1, 0) : at + 1].sum(-1), torch.ones(3))


@torch.no_grad()
def test_windowed_attention_is_attention_under_a_mask():
    """Against softmax(q kᵀ / √16) v with what a query does not see left out, and against no window at all."""
    attention = windowed().selector[0].attention
    _, _, _, grid, _, owner = inputs()
    generator = torch.Generator().manual_seed(3)
    queries, target = torch.randn(3, QUERIES, 32, generator=generator), torch.randn(2, 4 * CELLS, 32)
    common = {"readers": Readers.of(owner), "visible": torch.ones(2, 4 * CELLS, dtype=torch.bool)}
    common |= {"query_rotary": None, "target_rotary": None, "with_looks": True}
    q, k, v = attention.q_proj(queries), attention.k_proj(target)[owner], attention.v_proj(target)[owner]
    for slots in (2, 0):
        window = Window.of(grid, (4, 6, 4), QUERIES, slots)
        mixed, looks = attention(queries, target, window=window, **common)
        seen = torch.zeros(2, QUERIES, 4 * CELLS, dtype=torch.bool)
        for row in range(2):
            for query in range(QUERIES):
                seen[row, query, window.keys[row, query][window.visible[row, query]]] = True
        heads = []
        for head in range(2):
            part = slice(16 * head, 16 * head + 16)
            scores = (q[..., part] @ k[..., part].mT / 4).masked_fill(~seen[owner], -math.inf)
            heads.append(scores.softmax(-1) @ v[..., part])
            shares = torch.zeros(3, QUERIES, 4 * CELLS).scatter_add(2, window.keys[owner], looks[:, head].exp())
            torch.testing.assert_close(shares, scores.softmax(-1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mixed, attention.o_proj(torch.cat(heads, -1)), rtol=1e-4, atol=1e-4)
    everything, plain_looks = attention(queries, target, window=None, **common)
    torch.testing.assert_close(mixed, everything, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(looks, plain_looks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"window": 0}, {"heads": 0}, {"heads": 0, "window": 0}], ids=str)
@torch.no_grad()
def test_blinkers_leave_a_head_what_they_show_and_everything_where_they_show_nothing(changes):
    """Against softmax(q kᵀ / √16) v over what is left; looks are those of open eyes."""
    gsm = windowed(**changes)
    attention = gsm.selector[0].attention
    _, _, prior, grid, _, owner = inputs()
    window = gsm.window_of(prior, grid)
    generator = torch.Generator().manual_seed(3)
    queries, target = torch.randn(3, QUERIES, 32, generator=generator), torch.randn(2, SLOTS * CELLS, 32)
    blinkers = torch.rand(3, 2, QUERIES, window.keys.shape[2], generator=generator) < 0.1
    blinkers[0, 1, 2] = blinkers[2, 0] = False
    # What lies outside the clip stays unseen, and who is shown nothing else is shown nothing.
    blinkers[1, 0, 0] = ~window.visible[1, 0]
    common = {"readers": Readers.of(owner), "visible": torch.ones(2, SLOTS * CELLS, dtype=torch.bool)}
    common |= {"query_rotary": None, "target_rotary": None, "with_looks": True}
    common |= {"window": window} if gsm.window else {}
    mixed, looks = attention(queries, target, blinkers=blinkers, **common)
    q, k, v = attention.q_proj(queries), attention.k_proj(target)[owner], attention.v_proj(target)[owner]
    heads = []
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        shared = slice(0, 16) if attention.key_value_heads == 1 else part
        open_eyes = torch.zeros(3, QUERIES, SLOTS * CELLS, dtype=torch.bool)
        shown = torch.zeros_like(open_eyes)
        for question, row in enumerate(owner.tolist()):
            for query in range(QUERIES):
                inside = window.visible[row, query]
                open_eyes[question, query, window.keys[row, query][inside]] = True
                shown[question, query, window.keys[row, query][inside & blinkers[question, head, query]]] = True
        seen = torch.where(shown.any(-1, keepdim=True), shown, open_eyes)
        scores = q[..., part] @ k[..., shared].mT / 4
        heads.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ v[..., shared])
    torch.testing.assert_close(mixed, attention.o_proj(torch.cat(heads, -1)), rtol=1e-4, atol=1e-4)
    open_mixed, open_looks = attention(queries, target, **common)
    assert torch.equal(looks, open_looks) and not torch.allclose(mixed, open_mixed, atol=1e-2)


@torch.no_grad()
def test_a_token_holds_only_what_its_blinkers_show():
    gsm = windowed()
    question, visible, prior, grid, times, owner = inputs()
    window = gsm.window_of(prior, grid)
    blinkers = torch.zeros(3, 2, QUERIES, window.keys.shape[2], dtype=torch.bool)

    def found(features, given):
        return gsm(question, visible, features, grid, times, owner, with_looks=True, blinkers=given)

    plain = found(prior, None)
    torch.testing.assert_close(found(prior, blinkers).tokens, plain.tokens, rtol=1e-5, atol=1e-5)
    # The second question's third query, at the third slot, is shown that slot's cell in row 2, column 1.
    blinkers[1, :, 2] = window.keys[1, 2] == 2 * CELLS + 2 * 4 + 1
    told = found(prior, blinkers)
    assert torch.equal(told.looks.cells, plain.looks.cells)
    moved = prior.clone()
    moved[1, 2] += 1.0
    moved[1, 2, 2, 1] = prior[1, 2, 2, 1]
    other = found(moved, blinkers)
    assert torch.equal(other.tokens[1, 2], told.tokens[1, 2])
    assert (other.tokens[2, 2] - told.tokens[2, 2]).abs().max() > 1e-3
    moved[1, 2, 2, 1] += 1.0
    assert (found(moved, blinkers).tokens[1, 2] - told.tokens[1, 2]).abs().max() > 1e-3


@torch.no_grad()
def test_only_the_first_selector_block_wears_blinkers():
    gsm = windowed(selector_depth=2)
    worn = []
    for block in gsm.selector:
        block.register_forward_pre_hook(
            lambda _, arguments, named: worn.append(named.get("blinkers") is not None), with_kwargs=True
        )
    question, visible, prior, grid, times, owner = inputs()
    blinkers = torch.ones(3, 2, QUERIES, gsm.window_of(prior, grid).keys.shape[2], dtype=torch.bool)
    gsm(question, visible, prior, grid, times, owner, blinkers=blinkers)
    assert worn == [True, False]


@pytest.mark.parametrize("changes", [{}, {"window": 0}, {"heads": 0}])
@torch.no_grad()
def test_looks_are_shares_and_change_no_token(changes):
    gsm = windowed(condenser_depth=2, selector_depth=2, **changes)
    question, visible, prior, grid, times, owner = inputs()
    visible[:, 5:] = False
    plain = gsm(question, visible, prior, grid, times, owner)
    asked = gsm(question, visible, prior, grid, times, owner, with_looks=True)
    assert plain.looks is None
    torch.testing.assert_close(asked.tokens, plain.tokens, rtol=1e-5, atol=1e-6)
    looks = asked.looks
    assert looks.words.shape == (3, 2, QUERIES, 7) and looks.cells.shape[:3] == (3, 2, QUERIES)
    assert looks.cells.shape[3] == looks.window.keys.shape[2] and looks.keys.shape == (2, 4 * CELLS, 32)
    for shares in (looks.words.exp(), looks.cells.exp()):
        torch.testing.assert_close(shares.sum(-1), torch.ones(3, 2, QUERIES))
    assert (looks.words[..., 5:] == -math.inf).all()
    hidden = ~looks.window.visible[owner][:, None].expand(-1, 2, -1, -1)
    assert (looks.cells[hidden] == -math.inf).all()
    # Of the first blocks, not of the last ones that attention is asked of.
    last = gsm(question, visible, prior, grid, times, owner, with_attention=True).attention
    assert not torch.allclose(last.amax(-1), looks.cells.exp().mean(1).amax(-1), atol=1e-4)


@torch.no_grad()
def test_a_word_is_read_with_those_before_it():
    gsm = windowed(context=3)
    question, visible, prior, grid, times, owner = inputs()
    read = []
    gsm.condenser[0].attention.k_proj.register_forward_hook(lambda _, arguments, output: read.append(arguments[0]))
    gsm(question, visible, prior, grid, times, owner)
    moved = question.clone()
    moved[:, 3] += torch.randn(32, generator=torch.Generator().manual_seed(4))
    gsm(moved, visible, prior, grid, times, owner)
    changed = (read[1] - read[0]).abs().amax(-1) > 1e-5
    assert changed.tolist() == [[False] * 3 + [True] * 3 + [False]] * 3
    # The first word has nothing before it; what follows on the right is padding and stays out.
    assert windowed(context=1).context is None and gsm.context.in_features == 3 * 32


def test_the_module_cuts_its_width_as_it_likes():
    gsm = windowed(heads=1)
    assert gsm.selector[0].attention.heads == 1 and gsm.selector[0].attention.head_dim == 32
    own = windowed()
    assert own.selector[0].attention.k_proj.out_features == 32
    # The language model of these tests shares one head of keys among two of queries.
    assert selection().selector[0].attention.k_proj.out_features == 16
    for wrong in (8, 3):
        with pytest.raises(ValueError, match=f"heads {wrong}: a width of 32 must give heads of a multiple of 16"):
            windowed(heads=wrong)


@pytest.mark.parametrize("window", [0, 2])
def test_a_head_may_look_at_nobody_and_reads_zeros(window):
    gsm = windowed(nobody=True, window=window)
    question, visible, prior, grid, times, owner = inputs()
    looks = gsm(question, visible, prior, grid, times, owner, with_looks=True).looks
    keys = looks.window.keys.shape[2]
    assert looks.cells.shape == (3, 2, QUERIES, keys + 1)
    torch.testing.assert_close(looks.cells.exp().sum(-1), torch.ones(3, 2, QUERIES))
    assert (looks.cells[..., -1] > -math.inf).all()
    attention = gsm(question, visible, prior, grid, times, owner, with_attention=True).attention
    assert attention.shape == (3, QUERIES, SLOTS * CELLS)
    torch.testing.assert_close(attention.sum(-1), 1 - looks.cells[..., -1].exp().mean(1))
    read = []
    gsm.speech.register_forward_pre_hook(lambda _, given: read.append(given[1]))
    only = torch.zeros(3, 2, QUERIES, keys + 1, dtype=torch.bool)
    for shown in (0, -1):
        only[..., shown], only[..., -1 - shown] = True, False
        gsm(question, visible, prior, grid, times, owner, blinkers=only)
    assert read[0].abs().max() > 0.01 and not read[1].any()
