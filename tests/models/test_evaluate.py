import csv
import json

import numpy as np
import pytest
import torch

from models.data import questions_of
from models.evaluate import drawn
from models.parameters import TrainingParameters
from models.predict import predict
from models.train import InputError, read_split, train
from tests.models.conftest import TINY
from tests.models.test_train import both_sides  # noqa: F401

WATCHED = {**TINY, "evaluate_every": 3, "evaluate_questions": 16, "steps": 8, "learning_rates": {"language": 5e-3}}


@pytest.fixture(scope="module")
def watched(release, both_sides, tmp_path_factory):  # noqa: F811
    """Folders of the same training, publishing its last and its best weights."""
    roots = {}
    for keep in ("last", "best"):
        roots[keep] = tmp_path_factory.mktemp(keep)
        parameters = TrainingParameters.from_mapping({**WATCHED, "keep": keep})
        places = (both_sides, release.videos, release.geometry, roots[keep] / "checkpoint", roots[keep] / "work")
        torch.set_num_threads(1)
        train(*places, parameters, progress=lambda *_: None)
    return roots


def read_curves(root) -> list[dict]:
    with (root / "checkpoint" / "curves.csv").open() as file:
        return list(csv.DictReader(file))


def test_validation_is_in_the_curves(watched):
    rows = [row for row in read_curves(watched["last"]) if row["validation"]]
    # Reading takes steps 1 to 3; then every third step and the last.
    assert [row["step"] for row in rows] == ["6", "9", "11"]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_published_weights_answer_as_the_curves_say(watched, release, keep):
    report = json.loads((watched[keep] / "checkpoint" / "training.json").read_text())
    by_step = {int(row["step"]): float(row["validation"]) for row in read_curves(watched[keep]) if row["validation"]}
    best = max(by_step.values())
    first_best = min(step for step, accuracy in by_step.items() if accuracy == best)
    assert (report["kept"]["best_step"], report["kept"]["best_accuracy"]) == (first_best, best)
    assert report["kept"]["step"] == (first_best if keep == "best" else 11)
    table = release.table
    given = predict(watched[keep] / "checkpoint", table, release.videos, release.geometry)
    truth = ["ABCD".index(answer) for answer in table["answer"].to_pylist()]
    assert np.mean(given.argmax(1) == truth) == pytest.approx(by_step[report["kept"]["step"]])


def test_best_and_last_weights_stay_in_the_work_folder(watched):
    for root in watched.values():
        names = sorted(path.name for path in (root / "work").iterdir())
        assert names == [f"best-{names[0][5:13]}.safetensors", "last.safetensors", "timing.json"]


def test_drawn_questions_are_whole_clips(release):
    questions = questions_of(release.table, with_answer=True)
    some = drawn(questions, 7, seed=0)
    assert len(some) == 7 and some == drawn(questions, 7, seed=0) != drawn(questions, 7, seed=1)
    assert len({(question.clip, question.visible_until) for question in some}) <= 5
    assert sorted(question.qa_id for question in drawn(questions, 99, seed=0)) == [q.qa_id for q in questions]


def test_missing_validation_split_is_told(release):
    with pytest.raises(InputError, match=r"val\.parquet is missing"):
        read_split(release.splits, "val")
