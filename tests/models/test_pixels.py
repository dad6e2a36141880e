import hashlib

import numpy as np
import pytest

from models.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    QWEN2_5_PATCHING,
    QWEN3_PATCHING,
    FrameSizeError,
    Marks,
    draw_marks,
    patchify,
    prepare_video,
    resize,
    target_size,
)


@pytest.mark.parametrize("size", [(42, 60), (240, 320), (360, 640), (17, 900), (28, 28), (101, 57), (1080, 1920)])
@pytest.mark.parametrize("budget", [(3136, 12544), (784, 3136), (3136, 230_400)])
@pytest.mark.parametrize("side", [14, 16])
def test_size_is_that_of_transformers(size, budget, side):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assert target_size(*size, *budget, side) == smart_resize(*size, 2 * side, *budget)


@pytest.mark.parametrize("patching", [QWEN2_5_PATCHING, QWEN3_PATCHING], ids=["qwen2_5", "qwen3"])
@pytest.mark.parametrize(("height", "width"), [(42, 60), (37, 111), (200, 90)])
def test_patches_are_those_of_transformers_image_processor(height, width, patching):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rng = np.random.default_rng(height)
    images = rng.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    # Both families publish this processor; Qwen3-VL's files set another patch, mean and deviation.
    processor = Qwen2VLImageProcessorPil(
        min_pixels=3136,
        max_pixels=12544,
        patch_size=patching.side,
        image_mean=patching.mean.tolist(),
        image_std=patching.std.tolist(),
    )
    theirs = processor(list(images), return_tensors="np")
    # An image is a pair of equal frames to the vision tower.
    ours = prepare_video(np.repeat(images, 2, 0), np.arange(6.0), 6, 3136, 12544, patching=patching)
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
    assert video.moments == pytest.approx((0.2, 1.0))
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


def marked(*boxes: tuple[float, ...], numbers: tuple[int, ...] = (7, 42)) -> Marks:
    return Marks(numbers[: len(boxes)], np.array(boxes, float)[:, None])


def changed(frames: np.ndarray, marks: Marks) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of what a drawing changed."""
    rows, columns = np.nonzero((draw_marks(frames, marks) != frames).any((0, 3)))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


GREY = np.full((1, 168, 168, 3), 90, np.uint8)


@pytest.mark.parametrize(
    ("box", "place"),
    [
        # In a large box at its top; on top of a small one; within the picture at its edges.
        ((0.25, 0.25, 0.75, 0.75), (78, 42, 89, 53)),
        ((0.5, 0.5, 0.51, 0.51), (79, 73, 90, 84)),
        ((-9, -9, 0.01, 0.01), (0, 0, 11, 11)),
        ((0.99, 0.99, 2, 2), (157, 155, 168, 166)),
    ],
)
def test_a_mark_lies_at_its_box(box, place):
    assert changed(GREY, marked(box)) == place


def test_marks_grow_with_the_picture_and_the_number():
    box = (0.2, 0.2, 0.8, 0.8)
    small = changed(GREY[:, :56, :84], marked(box))
    large = changed(np.tile(GREY, (1, 2, 4, 1)), marked(box))
    assert (small[3] - small[1], large[3] - large[1]) == (11, 22)
    longer = changed(GREY, marked(box, numbers=(42,)))
    assert longer[3] - longer[1] == 17


def test_a_mark_shows_its_number():
    left, top, _, _ = changed(GREY, marked((0.2, 0.2, 0.8, 0.8)))
    seven = draw_marks(GREY, marked((0.2, 0.2, 0.8, 0.8)))[0, top + 2 : top + 9, left + 3 : left + 8, 0]
    assert ["".join(".#"[int(pixel == 255)] for pixel in row) for row in seven] == [
        "#####",
        "....#",
        "...#.",
        "..#..",
        ".#...",
        ".#...",
        ".#...",
    ]


def test_marks_are_the_same_bytes_everywhere():
    frames = np.random.default_rng(0).integers(0, 256, (2, 336, 616, 3), dtype=np.uint8)
    boxes = np.random.default_rng(1).uniform(-0.2, 1.2, (5, 2, 4))
    drawn = draw_marks(frames, Marks((1, 20, 3, 456, 7), boxes))
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == "732654dbbfc97cad"
    assert not np.array_equal(drawn, frames)


def test_nothing_is_drawn_where_nothing_is_seen():
    frames = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    boxes = np.array([[[np.nan] * 4, [0.2, 0.2, 0.9, 0.9]], [[2, 2, 3, 3], [0.5, 0.1, 0.5, 0.9]]])
    drawn = draw_marks(frames, Marks((1, 2), boxes))
    assert np.array_equal(drawn[0], frames[0]) and not np.array_equal(drawn[1], frames[1])
    # A picture smaller than the disc shows what fits.
    assert draw_marks(frames[:, :4, :4], Marks((1,), boxes[:1])).shape == (2, 4, 4, 3)


def test_marks_go_with_the_frames_that_are_used():
    frames, times = np.zeros((9, 56, 56, 3), np.uint8), np.arange(9.0)
    boxes = np.full((1, 9, 4), np.nan)
    boxes[0, 5] = [0, 0, 1, 1]
    prepared = [prepare_video(frames, times, 4, 784, 3136, marks) for marks in (None, Marks((1,), boxes))]
    lit = (prepared[1].patches != prepared[0].patches).reshape(2, -1, 3, 2, 14 * 14).any((1, 2, 4))
    assert lit.tolist() == [[False, False], [True, False]]
