"""Questions of real annotated logs (Argoverse 2), which nobody drew for us."""

import hashlib

import numpy as np
import pytest

from assets.geometry.estimators import Clip, build
from assets.geometry.parameters import GeometryParameters
from assets.questions.candidates import derive, rederive
from assets.questions.row import TYPES


@pytest.fixture(scope="module")
def logs(shared_data, parameters):
    """Record and derived candidates of both logs."""
    found = []
    for annotations in sorted((shared_data / "truth" / "av2").glob("*/annotations*.feather")):
        companions = {"pose": annotations.parent / "city_SE3_egovehicle.feather"}
        clip = Clip({"kind": "av2"}, annotations, companions, None)
        record = build("annotated", GeometryParameters()).estimate(clip)
        identity = hashlib.sha256(annotations.name.encode()).hexdigest()
        found.append((record, derive(record, identity, "shard-000000", False, parameters)))
    return found


def test_real_traffic_answers_all_types_and_its_evidence_stands(logs):
    assert len(logs) == 2
    for _, derived in logs:
        assert {row["type"] for row in derived.rows} == set(TYPES)
        for row in derived.rows:
            assert rederive(row) == row["states"]
            assert not row["has_video"] and row["estimator"] == "annotated"


def test_parked_cars_are_said_to_keep_their_speed(logs):
    """What stays within the annotators' scatter has a constant (zero) speed from every frozen viewpoint."""
    checked = 0
    for record, derived in logs:
        for row in derived.rows:
            if row["type"] != "abs_spd" or row["targets"] == ["camera"]:
                continue
            path = record.centers_world[record.names.index(row["targets"][0])]
            path = path[(record.timestamps >= row["interval_start"]) & (record.timestamps <= row["interval_end"])]
            if np.linalg.norm(path - path[0], axis=1).max() < 0.15:
                checked += 1
                assert row["states"] == ["Keep nearly constant"]
    assert checked > 0
