import numpy as np
import pytest
import torch

from assets.geometry import prior as cache
from assets.geometry.estimators.foundation import reconstruct
from assets.geometry.parameters import FoundationParameters
from benchmarks.geometry import pi3_loops
from benchmarks.geometry.networks import TINY
from models.data import _as_float32
from models.online_prior import CLIP_STD, REFERENCE_CLIP_MEAN, OnlinePrior, PatchPrior, pooled, stacked
from models.pi3 import Pi3
from models.pixels import CLIP_MEAN, prepare_video

MAX_PIXELS = 14 * 14 * 24


@pytest.fixture(scope="module")
def network() -> Pi3:
    model = Pi3(TINY).eval().requires_grad_(False)
    model.load_state_dict({name: torch.from_numpy(v) for name, v in pi3_loops.random_weights(TINY).items()})
    return model


def frames(count: int = 3, height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("merge", ["stack", "mean"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_features_are_those_that_a_geometry_cache_holds(network, kind, merge):
    """Bit for bit, for a number of frames and a grid that do not come out even."""
    options = FoundationParameters(
        prior=kind, prior_merge=merge, max_pixels=MAX_PIXELS, min_confidence=0, edge_rtol=1e3
    )
    tokens = reconstruct(network, frames(), options).tokens
    assert tokens.shape[:3] == (3, 4, 6)
    kept = cache.stacked(tokens) if merge == "stack" else cache.pooled(tokens, 4)
    online = OnlinePrior(network, kind, merge, 4, MAX_PIXELS)(frames())
    assert np.array_equal(_as_float32(kept), online.numpy())
    assert online.dtype is torch.float32 and not online.requires_grad and online.std() > 0.1


def test_other_kinds_are_refused(network):
    with pytest.raises(ValueError, match="choose encoder or decoder"):
        OnlinePrior(network, "cells")
    with pytest.raises(ValueError, match="uint8"):
        OnlinePrior(network)(frames().astype(np.float32))


def test_stacked_tokens_lie_in_the_order_frame_row_column():
    tokens = torch.arange(4 * 2 * 6.0).reshape(4, 2, 6, 1)
    found = stacked(tokens)
    assert found.shape == (2, 1, 3, 8)
    near = [tokens[2 + f, r, 4 + c, 0] for f in (0, 1) for r in (0, 1) for c in (0, 1)]
    assert found[1, 0, 2].tolist() == near
    assert stacked(tokens[:3, :1, :5]).shape == (2, 1, 3, 8)
    assert stacked(tokens[:3, :1, :5])[1, 0, 2].tolist() == [tokens[2, 0, 4, 0], 0, 0, 0, 0, 0, 0, 0]


def test_pooled_tokens_are_never_finer_than_tokens():
    tokens = torch.randn(3, 4, 6, 2)
    assert pooled(tokens, 16).shape == (2, 4, 6, 2) and pooled(tokens, 3).shape == (2, 2, 3, 2)
    torch.testing.assert_close(pooled(tokens, 16)[0], tokens[:2].mean(0))
    torch.testing.assert_close(pooled(tokens, 16)[1], tokens[2])


def test_patches_become_the_frames_they_were_cut_from(network):
    """The encoder on a video's patches against the encoder on its frames, up to the reference's green."""
    shown = frames(4, 56, 84)
    video = prepare_video(shown, np.arange(4.0), 4, 784, 56 * 84)
    (found,) = PatchPrior(network.encoder)(torch.from_numpy(video.patches), torch.tensor([video.grid]))
    images = torch.from_numpy(shown).permute(0, 3, 1, 2)[None].float() / 255
    wrong_green = torch.tensor(REFERENCE_CLIP_MEAN) - torch.from_numpy(CLIP_MEAN)
    assert wrong_green.abs().argmax() == 1 and wrong_green[[0, 2]].abs().max() < 1e-7
    expected = stacked(network.encode(images + wrong_green[:, None, None])[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert len(CLIP_STD) == 3 and found.shape == (2, 2, 3, 8 * TINY.width)
