"""What storing a record loses is measured on records whose exact points are known."""

from dataclasses import replace

import numpy as np
import pytest

from assets.geometry.record import load, save
from benchmarks.geometry import records


@pytest.fixture(scope="module")
def example():
    small = records.FULL.model_copy(update={"width": 168, "height": 98})
    return records.full_size(2, small)


def test_stored_centers_are_those_of_the_exact_points(example):
    stored, exact, whole = records.centers(example)
    distance = np.linalg.norm(exact, axis=-1)
    assert len(stored) >= 4 and (distance > 1).all()
    assert 0 < (np.linalg.norm(stored - exact, axis=-1) / distance).max() < 1e-3
    assert np.median(np.linalg.norm(stored - whole, axis=-1) / distance) < 0.05
    coarse = replace(example, record=replace(example.record, points=example.record.points.round(0)))
    assert records._lossy(coarse)["compression_center_error"].missed


def test_a_record_of_it_is_read_and_timed(example, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "COPIES", 2)
    path = tmp_path / "record.safetensors"
    save(example.record, path)
    assert load(path).prior_features.dtype == np.uint16
    assert all(figure.value > 0 for figure in records._read(path).values())
