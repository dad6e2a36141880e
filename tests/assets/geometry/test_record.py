import dataclasses
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.geometry import record as records
from assets.geometry.grid import block_means, membership
from assets.geometry.record import (
    RecordError,
    box_of,
    decode_mask,
    encode_mask,
    load,
    prior_cover,
    save,
    unknown,
    verify,
)


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in records.TENSOR_FIELDS)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.integers(1, 6), objects=st.integers(0, 4), seed=st.integers(0, 1000))
def test_what_is_saved_is_loaded(tmp_path, make_record, frames, objects, seed):
    record = make_record(frames, objects, seed)
    save(record, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors")
    assert same(record, loaded)
    assert loaded.masks == record.masks
    assert (loaded.names, loaded.classes, loaded.provenance) == (record.names, record.classes, record.provenance)


def test_same_record_same_bytes(tmp_path, record):
    save(record, tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_noise_below_the_stored_decimals_does_not_change_the_bytes(tmp_path):
    record = unknown(np.array([0.0, 1.0]), ["car 1"], ["car"], provenance={"status": "3d", "frame_size": [0, 0]})
    for name, offset in (("a", 0.0), ("b", 1e-9)):
        moved = dataclasses.replace(
            record, centers_world=np.full((1, 2, 3), 1.25) + offset, timestamps=np.ones(2) + offset
        )
        save(moved, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_only_the_fields_asked_for_are_read(tmp_path, record):
    save(record, tmp_path / "a")
    partial = load(tmp_path / "a", ["timestamps", "centers_world"])
    assert np.array_equal(partial.centers_world, record.centers_world)
    assert partial.points is None and partial.masks is None
    assert partial.names == record.names
    with pytest.raises(RecordError, match="poins"):
        load(tmp_path / "a", ["poins"])


@pytest.mark.parametrize("frames", [slice(1, 3), slice(-2, None), slice(4, 99), slice(3, 2), slice(5, None)])
def test_only_the_frames_asked_for_are_read(tmp_path, make_record, frames):
    for objects in (2, 0):
        record = make_record(objects=objects)
        save(record, tmp_path / "a")
        loaded = load(tmp_path / "a", frames=frames)
        for name in records.TENSOR_FIELDS:
            axis, whole = records.FRAME_AXIS.get(name), getattr(record, name)
            expected = whole if axis is None else whole[(*[slice(None)] * axis, frames)]
            assert np.array_equal(getattr(loaded, name), expected, equal_nan=True), name
        assert loaded.masks == [row[frames] for row in record.masks]
    with pytest.raises(ValueError, match="without a step"):
        load(tmp_path / "a", frames=slice(None, None, 2))


def test_masks_without_a_picture_stay_unknown(tmp_path):
    record = unknown(np.zeros(3), ["car 1"], ["car"], provenance={"status": "3d", "frame_size": [0, 0]})
    save(record, tmp_path / "a")
    assert load(tmp_path / "a").masks == [[None, None, None]]


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_named(tmp_path, record, keep):
    path = tmp_path / "clip.safetensors"
    save(record, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RecordError, match=r"clip\.safetensors") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_is_found(tmp_path, record):
    path = tmp_path / "clip.safetensors"
    save(record, path)
    verify(path)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    load(path)
    with pytest.raises(RecordError, match=r"clip\.safetensors.*digest"):
        verify(path)


def test_a_missing_or_foreign_file_is_named(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(RecordError, match="gone"):
        load(tmp_path / "gone")
    save_file({"x": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(RecordError, match="other"):
        load(tmp_path / "other")


def test_a_failed_write_leaves_the_old_file(tmp_path, make_record, record, monkeypatch):
    path = tmp_path / "a"
    save(record, path)
    before = path.read_bytes()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save(make_record(seed=1), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": ["a", "a"]}, "unique"),
        ({"boxes": np.zeros((2, 4, 4))}, "boxes"),
        ({"masks": [[None]]}, "masks"),
        ({"provenance": {"status": "fine"}}, "status"),
        ({"points": np.full((5, 6, 8, 3), 1e6)}, "points"),
    ],
)
def test_a_record_that_contradicts_itself_is_not_written(tmp_path, record, change, message):
    with pytest.raises(RecordError, match=message):
        save(dataclasses.replace(record, **change), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_masks_and_boxes():
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:8] = True
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)
    assert box_of(mask).tolist() == [3, 2, 8, 5]
    assert np.isnan(box_of(np.zeros((3, 3), bool))).all()


def loop_cover(masks: list[np.ndarray | None], grid: tuple[int, int, int]) -> np.ndarray:
    """Pixel by pixel: the share of a cell's pixels, over all frames of its slot, that a thing covers."""
    slots, rows, columns = grid
    merged = -(-len(masks) // slots)
    height, width = next(mask.shape for mask in masks if mask is not None)
    covered, pixels = np.zeros(grid), np.zeros((rows, columns))
    for i in range(height):
        for j in range(width):
            cell = int((i + 0.5) * rows / height), int((j + 0.5) * columns / width)
            pixels[cell] += 1
            for frame, mask in enumerate(masks):
                if mask is not None and mask[i, j]:
                    covered[frame // merged, *cell] += 1
    return np.round(255 * covered / np.maximum(pixels, 1) / merged)


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 5),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    cells=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_cover_agrees_with_a_count_of_pixels(frames, size, cells, seed):
    rng = np.random.default_rng(seed)
    masks = [None if rng.random() < 0.2 else rng.random(size) < rng.random() for _ in range(frames)]
    masks[0] = np.ones(size, bool)
    encoded = [None if mask is None else encode_mask(mask) for mask in masks]
    for merged in (1, 2):
        grid = (-(-frames // merged), *cells)
        found = prior_cover([encoded, encoded[::-1]], grid)
        assert found.shape == (2, *grid) and found.dtype == np.uint8
        for one, given_masks in zip(found, (masks, masks[::-1]), strict=True):
            # Halves may be rounded either way.
            assert np.abs(one - loop_cover(given_masks, grid)).max() <= 1


def test_cover_of_known_masks():
    left = np.zeros((4, 6), bool)
    left[:, :3] = True
    encoded = encode_mask(left)
    grown = prior_cover([[encoded, encoded, None, encoded]], (2, 1, 3))
    assert grown.tolist() == [[[[255, 128, 0]], [[128, 64, 0]]]]
    # An odd last frame fills half of its slot, as does a thing that is seen in one frame of two.
    assert prior_cover([[encoded] * 3], (2, 1, 2)).tolist() == [[[[255, 0]], [[128, 0]]]]
    assert prior_cover([], (2, 3, 4)).shape == (0, 2, 3, 4)
    assert prior_cover([[encoded]], (0, 0, 0)).shape == (1, 0, 0, 0)
    assert not prior_cover([[None, None]], (1, 2, 2)).any()


def test_blocks_are_cells_of_whole_pixels():
    assert membership(5, 2).argmax(1).tolist() == [0, 0, 1, 1, 1] and membership(5, 2).sum() == 5
    values = np.arange(20.0).reshape(4, 5)
    means = block_means(values, 2, 2)
    assert means[0, 0] == values[:2, :2].mean() and means[1, 1] == values[2:, 2:].mean()
    # More cells than pixels: those under which no pixel lies are empty.
    assert block_means(np.ones((1, 1)), 3, 1).ravel().tolist() == [0, 1, 0]


def test_a_file_holds_the_cover_of_its_masks(tmp_path, record):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "clip.safetensors"
    save(record, path)
    stored = load_file(path)
    expected = prior_cover(record.masks, record.prior_features.shape[:3])
    assert np.array_equal(stored["prior_cover"], expected)
    assert stored["prior_cover"].shape == (len(record.names), *record.prior_features.shape[:3])
    del stored["prior_cover"]
    with records._opened(path) as file:
        save_file(stored, tmp_path / "old.safetensors", file.metadata())
    with pytest.raises(RecordError, match=r"lacks \['prior_cover'\]; delete it and estimate the clip again"):
        load(tmp_path / "old.safetensors")


def test_records_of_an_older_format_are_refused(tmp_path, record, monkeypatch):
    monkeypatch.setattr(records, "FORMAT", 2)
    save(record, tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(RecordError, match="format 2, this version reads 4; estimate the clip again"):
        load(tmp_path / "a")
