import numpy as np
import torch

from models.batch import NO_TARGET, PADDING, PREFIX, Branch, Prior, Tree, pack, video_positions
from models.pixels import Video

PAD = 99


def video(t: int = 2, h: int = 4, w: int = 6, seconds: float = 1.0) -> Video:
    return Video(np.zeros((t * h * w, 1176), np.float32), (t, h, w), seconds)


def branch(*tokens: int) -> Branch:
    return Branch(list(tokens), [NO_TARGET] * (len(tokens) - 1) + [7], list(tokens[:1]), len(tokens) - 1)


def prior(t: int = 2) -> Prior:
    return Prior(np.ones((t, 3, 2, 14), np.float32), np.arange(t) + 1.0)


def test_layout_of_a_tree():
    tree = Tree([1, 2], video(), prior(), [branch(11, 12, 13), branch(21, 22)])
    batch = pack([tree], PAD, 2, 2.0)
    assert batch.tokens[0].tolist() == [1, 2, *[PAD] * 12, PAD, PAD, 11, 12, 13, PAD, PAD, 21, 22]
    assert batch.branch[0].tolist() == [PREFIX] * 14 + [0] * 5 + [1] * 4
    assert batch.video_slots[0].nonzero().flatten().tolist() == list(range(2, 14))
    assert batch.geometry_slots[0].nonzero().flatten().tolist() == [14, 15, 19, 20]
    assert batch.prompt_end[0].nonzero().flatten().tolist() == [17, 21]
    # Two text positions, then three for the longer side of the grid: both branches go on at 5.
    assert batch.positions[0, 0, 14:].tolist() == [5, 6, 7, 8, 9, 5, 6, 7, 8]
    assert torch.equal(batch.positions[0, :, 14:], batch.positions[2, :, 14:])
    assert batch.owner.tolist() == [0, 0] and batch.question[:, 0].tolist() == [11, 21]


def test_mask_slot_by_slot():
    trees = [Tree([1], video(1, 2, 2), None, [branch(11, 12), branch(21, 22, 23)]), Tree([1], None, None, [branch(5)])]
    batch = pack(trees, PAD, 0, 2.0)
    mask = batch.attention_mask(torch.float32)[:, 0]
    for row in range(2):
        kind = batch.branch[row].tolist()
        for i, mine in enumerate(kind):
            for j, other in enumerate(kind):
                sees = i == j or (mine != PADDING and j < i and other in (PREFIX, mine))
                assert (mask[row, i, j] == 0) == sees, (row, i, j)
    assert batch.branch[1].tolist().count(PADDING) == 5


def test_mixed_trees_keep_their_own():
    trees = [
        Tree([1], video(1), prior(1), [branch(11, 12)]),
        Tree([2], None, None, [branch(21, 22), branch(23, 24)]),
        Tree([3], video(3), prior(3), [branch(31, 32), branch(33, 34, 35)]),
    ]
    batch = pack(trees, PAD, 2, 2.0)
    assert batch.video_grid.tolist() == [[1, 4, 6], [3, 4, 6]] and len(batch.patches) == 4 * 24
    assert batch.prior.shape == (2, 3, 3, 2, 14) and batch.prior_grid.tolist() == [[1, 3, 2], [3, 3, 2]]
    assert batch.prior[0, 1:].abs().sum() == 0
    assert batch.owner.tolist() == [0, 1, 1]
    assert batch.video_slots.sum(1).tolist() == [6, 0, 18]
    assert batch.geometry_slots.sum(1).tolist() == [2, 0, 4]
    assert batch.prompt_end.sum(1).tolist() == [1, 2, 2]


def test_time_positions_are_whole_and_rounded_down():
    positions, following = video_positions((3, 4, 2), 1.3, 10)
    assert positions[0].tolist() == [10, 10, 11, 11, 12, 12]
    assert positions[1].tolist() == [10, 11] * 3 and positions[2].tolist() == [10] * 6
    assert following == 12


def test_batch_moves_as_a_whole():
    batch = pack([Tree([1], video(), prior(), [branch(11, 12)])], PAD, 1, 2.0)
    moved = batch.to("meta")
    assert moved.tokens.device.type == moved.prior.device.type == "meta"
    assert pack([Tree([1], None, None, [branch(1, 2)])], PAD, 1, 2.0).to("cpu").patches is None


def test_cells_of_the_prior_follow_the_vision_tokens_of_their_own_tree():
    trees = [
        Tree([1], video(1), prior(3), [branch(11, 12), branch(13, 14)]),
        Tree([2], None, None, [branch(21, 22)]),
        Tree([3], video(2), prior(2), [branch(31, 32)]),
    ]
    batch = pack(trees, PAD, 0, 2.0, (2, 2, 1))
    # 3×3×2 features merge to 2×2×2 cells, 2×3×2 to 1×2×2.
    assert batch.geometry_slots.sum(1).tolist() == [8, 0, 4]
    assert batch.geometry_slots[0].nonzero().flatten().tolist() == list(range(7, 15))
    # Behind the video's longer side text positions count on, over the cells and into every branch.
    assert batch.positions[0, 0, 7:].tolist() == [*range(4, 12), 12, 13, 12, 13]
    assert batch.prior_video.tolist() == [0, 1]


def test_timestamps_part_the_temporal_patches():
    tree = Tree([1, 2], video(3), None, [branch(11, 12)], [[5, 6], [7]])
    batch = pack([tree], PAD, 0, 2.0)
    seen = [PAD] * 6
    assert batch.tokens[0].tolist() == [1, 2, *seen, 5, 6, *seen, 7, *seen, 11, 12]
    # Every patch of time starts anew on the time axis and ends after the three columns of its grid.
    times = [0, 1, *[2] * 6, 5, 6, *[7] * 6, 10, *[11] * 6, 14, 15]
    assert batch.positions[0, 0].tolist() == times
    assert batch.positions[2, 0, 2:8].tolist() == [2, 3, 4] * 2


def test_geometry_inputs_are_those_of_the_batch():
    trees = [Tree([1], video(), prior(t), [branch(11, 12), branch(21, 22)][: 3 - t]) for t in (1, 2)]
    geometry = pack(trees, PAD, 1, 2.0).geometry
    assert geometry.owner.tolist() == [0, 0, 1] and len(geometry.prior) == 2
    each = geometry.with_row_per_question()
    assert each.owner.tolist() == [0, 1, 2] and each.prior_grid.tolist() == [[1, 3, 2], [1, 3, 2], [2, 3, 2]]
    assert torch.equal(each.prior[1], geometry.prior[0]) and torch.equal(each.question, geometry.question)
    assert geometry.to("meta").prior.device.type == "meta"
    assert pack([Tree([1], video(), None, [branch(11, 12)])], PAD, 1, 2.0).geometry is None
