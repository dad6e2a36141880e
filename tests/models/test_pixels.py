import numpy as np
import pytest

from models.pixels import CLIP_MEAN, CLIP_STD, FrameSizeError, patchify, prepare_video, resize, target_size


@pytest.mark.parametrize("size", [(42, 60), (240, 320), (360, 640), (17, 900), (28, 28), (101, 57), (1080, 1920)])
@pytest.mark.parametrize("budget", [(3136, 12544), (784, 3136), (3136, 230_400)])
def test_size_is_that_of_transformers(size, budget):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assert target_size(*size, *budget) == smart_resize(*size, 28, *budget)


@pytest.mark.parametrize(("height", "width"), [(42, 60), (37, 111), (200, 90)])
def test_patches_are_those_of_transformers_image_processor(height, width):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rng = np.random.default_rng(height)
    images = rng.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12544)
    theirs = processor(list(images), return_tensors="np")
    # An image is a pair of equal frames to the vision tower.
    ours = prepare_video(np.repeat(images, 2, 0), np.arange(6.0), 6, 3136, 12544)
    assert ours.grid == (3, *theirs["image_grid_thw"][0][1:])
    np.testing.assert_allclose(ours.patches, theirs["pixel_values"], atol=2e-6)


def test_patches_by_explicit_loops():
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(4, 56, 84, 3)).astype(np.float32)
    expected = []
    for t in range(2):
        for window_row in range(2):
            for window_column in range(3):
                for row in range(2):
                    for column in range(2):
                        top, left = (2 * window_row + row) * 14, (2 * window_column + column) * 14
                        patch = frames[2 * t : 2 * t + 2, top : top + 14, left : left + 14]
                        expected.append([patch[f, :, :, c].ravel() for c in range(3) for f in range(2)])
    patches, grid = patchify(frames)
    assert grid == (2, 4, 6)
    assert np.array_equal(patches, np.array(expected).reshape(48, -1))


def test_odd_frame_is_repeated_and_time_is_measured():
    frames = np.stack([np.full((28, 28, 3), 60 * k, np.uint8) for k in range(3)])
    video = prepare_video(frames, np.array([0.0, 0.4, 1.0]), 8, 784, 784)
    assert video.grid == (2, 2, 2) and video.tokens == 2
    assert video.seconds_per_slot == pytest.approx(1.0)
    last = video.patches[4:].reshape(4, 3, 2, 14, 14)
    np.testing.assert_allclose(last[:, :, 0], last[:, :, 1])
    np.testing.assert_allclose(last[0, :, 0, 0, 0], (120 / 255 - CLIP_MEAN) / CLIP_STD, rtol=1e-5)


def test_frames_are_thinned_uniformly():
    frames = np.stack([np.full((28, 28, 3), k, np.uint8) for k in range(9)])
    video = prepare_video(frames, np.arange(9.0), 4, 784, 784)
    firsts = video.patches.reshape(2, 4, 3, 2, 14, 14)[:, 0, 0, :, 0, 0].ravel()
    shown = np.rint((firsts * CLIP_STD[0] + CLIP_MEAN[0]) * 255)
    assert shown.tolist() == [0, 3, 5, 8]
    assert video.seconds_per_slot == pytest.approx(2 * 8 / 3)


def test_frames_of_the_right_size_are_not_resampled():
    frames = np.random.default_rng(0).integers(0, 256, (2, 28, 56, 3), dtype=np.uint8)
    assert resize(frames, 28, 56) is frames


@pytest.mark.parametrize("shape", [(0, 28, 28, 3), (2, 0, 28, 3), (2, 1, 900, 3), (2, 28, 28, 4), (2, 28, 28)])
def test_impossible_frames_are_refused(shape):
    with pytest.raises(FrameSizeError):
        prepare_video(np.zeros(shape, np.uint8), np.arange(float(shape[0])), 8, 784, 784)
