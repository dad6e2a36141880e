import shutil

import numpy as np
import pytest
import torch

from models.data import ClipError, questions_of
from models.predict import CheckpointError, predict
from models.prompt import QuestionError
from tests.models.conftest import SHARD


def test_probabilities_in_the_order_of_the_rows(checkpoint, release):
    places = (release.videos, release.geometry)
    whole = predict(checkpoint, release.table, *places)
    assert whole.shape == (16, 4) and whole.dtype == np.float64
    np.testing.assert_allclose(whole.sum(1), 1.0, rtol=1e-12)
    assert np.ptp(whole, axis=0).min() > 1e-4
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_allclose(predict(checkpoint, release.table.take(order), *places), whole[order], atol=1e-6)
    np.testing.assert_allclose(predict(checkpoint, release.table, *places, batch_clips=1), whole, atol=1e-6)
    alone = [predict(checkpoint, release.table.slice(row, 1), *places)[0] for row in range(4)]
    np.testing.assert_allclose(alone, whole[:4], atol=1e-6)


def test_prediction_is_deterministic_and_leaves_the_threads_alone(checkpoint, release):
    torch.set_num_threads(2)
    places = (release.videos, release.geometry)
    first = predict(checkpoint, release.table, *places)
    assert torch.get_num_threads() == 2
    assert np.array_equal(first, predict(checkpoint, release.table, *places))


def test_answers_are_not_read(checkpoint, release):
    places = (release.videos, release.geometry)
    blank = release.table.drop_columns(["answer"])
    assert np.array_equal(predict(checkpoint, blank, *places), predict(checkpoint, release.table, *places))


def test_questions_may_come_as_a_list(checkpoint, release):
    places = (release.videos, release.geometry)
    listed = questions_of(release.table, with_answer=True)
    assert np.array_equal(predict(checkpoint, listed, *places), predict(checkpoint, release.table, *places))


def test_blind_mode_needs_no_files(checkpoint, release, tmp_path):
    blind = predict(checkpoint, release.table, tmp_path, tmp_path, blind=True)
    seeing = predict(checkpoint, release.table, release.videos, release.geometry)
    np.testing.assert_allclose(blind.sum(1), 1.0)
    assert np.abs(blind - seeing).max() > 1e-4


def test_many_questions_of_a_clip_get_further_rows(checkpoint, release, monkeypatch):
    places = (release.videos, release.geometry)
    whole = predict(checkpoint, release.table, *places)
    monkeypatch.setattr("models.answering.BRANCHES_PER_ROW", 2)
    np.testing.assert_allclose(predict(checkpoint, release.table, *places), whole, atol=1e-6)


def test_progress_ends_at_all(checkpoint, release):
    seen = []
    places = (release.videos, release.geometry)
    predict(checkpoint, release.table, *places, batch_clips=3, progress=lambda *what: seen.append(what))
    assert seen[-1] == (16, 16, "with video") and len(seen) == 3
    assert predict(checkpoint, release.table.slice(0, 0), *places).shape == (0, 4)


@pytest.mark.parametrize("lost", ["videos", "geometry"])
def test_missing_file_names_the_clip(checkpoint, release, tmp_path, lost):
    places = {"videos": release.videos, "geometry": release.geometry}
    shutil.copytree(places[lost], tmp_path / lost)
    next((tmp_path / lost / SHARD).rglob(f"{release.clips[2]}.safetensors")).unlink()
    places[lost] = tmp_path / lost
    with pytest.raises(ClipError, match=f"clip {release.clips[2]}: .* is missing") as caught:
        predict(checkpoint, release.table, places["videos"], places["geometry"])
    assert "\n" not in str(caught.value)


def test_bad_folder_and_bad_table_are_told(checkpoint, release, tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        predict(tmp_path, release.table, release.videos, release.geometry)
    with pytest.raises(QuestionError, match="no column qa_id"):
        predict(checkpoint, release.table.drop_columns(["qa_id"]), release.videos, release.geometry)
