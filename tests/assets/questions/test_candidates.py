"""Questions of a clip: all types, never trivial, traceable, equal to a slow second derivation, true to symmetries."""

import json
import time
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.geometry.record import save
from assets.questions.candidates import derive, derive_shard, rederive
from assets.questions.parameters import QuestionParameters
from assets.questions.row import CANDIDATES, TEMPLATE_TYPES, TYPES
from assets.questions.states import DIRECTION_STATES, STATE_TEXTS, Thresholds, describe
from benchmarks.questions import slow

from .conftest import UP, clip_of, of_templates, synthetic_record

STEADY = QuestionParameters(draws=2, min_stability=0.0, pool_per_type=10_000, candidates_per_type=20)


@cache
def record_of(number: int):
    return synthetic_record(number)


def rows_of(record, parameters=STEADY):
    return derive(record, clip_of(0), "shard-000000", True, parameters).rows


def flat(derived):
    return [row for clip in derived for row in clip.rows]


def test_every_type_is_asked(derived):
    assert {row["type"] for row in flat(derived)} == set(TYPES)


def test_evidence_rederives_every_answer(derived):
    for row in flat(derived):
        assert rederive(row) == row["states"]


def test_evidence_is_sorted_json_and_says_what_a_viewpoint_changes(derived):
    for row in of_templates(flat(derived)):
        evidence = json.loads(row["evidence"])
        assert json.dumps(evidence, sort_keys=True) == row["evidence"]
        decorative = row["type"].endswith("_dis") or row["type"] in ("abs_spd", "abs_spd_comp")
        assert evidence["depends_on_viewpoint"] is not decorative


def test_runs_tell_the_state_of_every_step(derived):
    for row in of_templates(flat(derived)):
        evidence = json.loads(row["evidence"])
        values = np.array(evidence["values"], np.float64)[None, None]
        thresholds = Thresholds(**evidence["thresholds"])
        labels = describe(evidence["family"], values, np.ones(values.shape[1:3], bool), thresholds)[0, 0]
        texts = STATE_TEXTS[evidence["family"]]
        told = [state for state, run in zip(row["states"], evidence["runs"], strict=True) for _ in range(run)]
        assert told == [texts[label] for label in labels]
        # The last of the times end these steps, the one before them, if any, begins the first.
        assert len(told) <= len(evidence["times"]) <= len(told) + 2
        assert evidence["times"][-1] == row["interval_end"]


def test_evidence_names_the_objects_of_the_record(derived):
    roles = set()
    for number, clip in enumerate(derived):
        names = synthetic_record(number).names
        for row in of_templates(clip.rows):
            objects = json.loads(row["evidence"])["objects"]
            said = dict(zip(("former", "latter"), row["targets"], strict=False)) | {
                "viewpoint": row["viewpoint_subject"]
            }
            assert set(objects) == set(said)
            for role, thing in objects.items():
                assert ("camera" if thing is None else names[thing]) == said[role]
                roles.add((role, thing is None))
    assert len(roles) == 6


def test_a_changed_number_in_the_evidence_is_noticed(derived):
    row = next(row for row in flat(derived) if row["type"] == "rel_dis" and len(row["states"]) > 1)
    evidence = json.loads(row["evidence"])
    evidence["values"] = [1.0] * len(evidence["values"])
    assert rederive(row | {"evidence": json.dumps(evidence)}) == ["Keep nearly constant"] != row["states"]


def test_nothing_trivial_is_asked(derived):
    for row in flat(derived):
        own = row["viewpoint_subject"] in row["targets"]
        family = row["type"][4:]
        assert len(set(row["targets"])) == len(row["targets"])
        if row["type"].startswith("rel_") and family in ("spd", "spd_comp", "dir_pred", "ori"):
            assert not own
        if family == "dir":
            assert not (own and row["viewpoint_role"] == "camera")
        if family == "ori":
            assert row["target_roles"] == ["agent"] and not own


def test_intervals_keep_their_distance_from_each_other_and_from_the_end(derived, parameters):
    times = synthetic_record(0).timestamps
    for row in of_templates(flat(derived)):
        first, last = np.searchsorted(times, [row["interval_start"] - 1e-4, row["interval_end"] - 1e-4])
        if row["type"].endswith("dir_pred"):
            assert row["visible_until"] == row["interval_start"] <= times[-1] - parameters.hidden_seconds
            assert last == len(times) - 1
            assert row["viewpoint_time"] is None or row["viewpoint_time"] <= row["visible_until"]
        else:
            assert row["visible_until"] is None
            assert last - first >= parameters.min_steps and last < len(times) - parameters.skip_last
        assert (row["viewpoint_time"] is None) == row["type"].startswith("rel_")
        assert 1 <= len(row["states"]) <= parameters.max_states


def test_answers_are_balanced_over_numbers_of_states(derived):
    numbers = Counter(min(len(row["states"]), 4) for row in flat(derived) if not row["type"].endswith("dir_pred"))
    assert min(numbers.values()) / sum(numbers.values()) > 0.1


def test_what_is_not_seen_throughout_is_not_asked():
    record = record_of(3)
    centers = record.centers_world.copy()
    centers[0, 10:20] = np.nan
    gone = record.timestamps[[10, 19]]
    rows = rows_of(replace(record, centers_world=centers))
    involved = [row for row in rows if record.names[0] in row["targets"]]
    assert involved
    for row in involved:
        assert row["interval_end"] < gone[0] or row["interval_start"] > gone[1]


def test_headings_of_low_confidence_lend_no_viewpoint():
    record = record_of(3)
    rows = rows_of(replace(record, forward_confidence=record.forward_confidence * 0.5))
    assert rows and all(row["viewpoint_subject"] == "camera" for row in rows)
    assert not any(row["type"].endswith("_ori") for row in rows)


def test_without_poses_only_what_stays_true_is_asked():
    record = record_of(3)
    provenance = {**record.provenance, "poses": "unknown"}
    kinds = {row["type"] for row in rows_of(replace(record, provenance=provenance))}
    assert "rel_dir" in kinds
    assert not kinds & {"abs_dir", "abs_ori", "abs_spd", "abs_spd_comp", "abs_dir_pred"}


@pytest.mark.parametrize("status", ["2d", "refused"])
def test_a_clip_without_3d_is_not_asked_about(status):
    record = record_of(3)
    assert rows_of(replace(record, provenance={**record.provenance, "status": status})) == []


def test_a_clip_too_short_for_an_interval_is_not_asked_about():
    assert rows_of(synthetic_record(1, length=4)) == []
    assert rows_of(synthetic_record(1, length=2)) == []


@pytest.mark.parametrize("length", [16, 32, 120])
def test_densely_sampled_clips_are_described_in_steps_of_human_length(length, parameters):
    record = synthetic_record(4, length=length)
    for row in of_templates(rows_of(record, parameters)):
        times = np.array(json.loads(row["evidence"])["times"])
        assert len(row["states"]) >= 1
        if not row["type"].endswith("dir_pred"):
            assert np.allclose(np.diff(times), np.diff(times).mean(), rtol=0.05)
            assert 0.3 < np.diff(times).mean() < 0.8 and len(times) >= 3


def test_unstable_answers_are_dropped_and_counted(parameters):
    record = record_of(5)
    noisy = replace(record, provenance={**record.provenance, "error_model": {"center": 0.1, "heading_deg": 25.0}})
    derived = derive(noisy, clip_of(5), "shard-000000", True, parameters)
    calm = derive(record, clip_of(5), "shard-000000", True, parameters)
    count = sum(row["count"] for row in derived.dropped if row["reason"] == "unstable")
    assert count > sum(row["count"] for row in calm.dropped if row["reason"] == "unstable")
    assert len(derived.rows) < len(calm.rows)
    assert all(row["stability"] >= parameters.min_stability for row in derived.rows)


def test_a_slow_plain_loop_derives_the_same_answers():
    rows = [(record_of(n), row) for n in range(3) for row in of_templates(rows_of(record_of(n)))]
    assert {row["type"] for _, row in rows} == set(TEMPLATE_TYPES)
    wrong = [row["question"] for record, row in rows if slow.states(record, row) != row["states"]]
    # A number within rounding of a threshold may fall on either side.
    assert len(wrong) <= 0.002 * len(rows), wrong


def _answers(record) -> dict[str, list[str]]:
    return {row["question"]: row["states"] for row in rows_of(record)}


def _agreement(record, changed, expected, families) -> float:
    """Share of the questions asked of both scenes whose answers changed as they should."""
    before, after = _answers(record), _answers(changed)
    shared = [text for text in before if text in after and any(words in text for words in families)]
    assert len(shared) >= 10
    return float(np.mean([after[text] == expected(before[text]) for text in shared]))


SPD, DIS, DIR = ("the speed",), ("the distance",), ("direction", "orientation")
ALL = (*SPD, *DIS, *DIR)
SEED = st.integers(0, 11)


def _moved(record, rotation=None, shift=(0, 0, 0), scale=1.0):
    """The scene turned (or mirrored), shifted and rescaled as a whole, camera included."""
    rotation = np.eye(3) if rotation is None else rotation
    mirror = np.sign(np.linalg.det(rotation))
    poses = record.world_from_camera.astype(float).copy()
    # A mirrored camera still has x to its right: its right axis is mirrored once more.
    poses[:, :3, :3] = rotation @ poses[:, :3, :3] @ np.diag([mirror, 1, 1])
    poses[:, :3, 3] = scale * poses[:, :3, 3] @ rotation.T + shift
    return replace(
        record,
        world_from_camera=poses,
        centers_world=scale * record.centers_world @ rotation.T + shift,
        forward_world=record.forward_world @ rotation.T,
        provenance={**record.provenance, "up_world": (rotation @ UP).tolist()},
    )


@settings(max_examples=4, deadline=None)
@given(SEED, st.floats(-3, 3), st.floats(-1, 1))
def test_a_scene_turned_and_shifted_as_a_whole_keeps_every_answer(number, yaw, pitch):
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    record = record_of(number)
    assert _agreement(record, _moved(record, turn @ tilt, (3, 2, 1)), lambda states: states, ALL) > 0.99


@settings(max_examples=3, deadline=None)
@given(SEED, st.sampled_from([0.01, 0.5, 30.0]))
def test_a_rescaled_scene_keeps_every_answer(number, scale):
    record = record_of(number)
    assert _agreement(record, _moved(record, scale=scale), lambda states: states, ALL) > 0.99


def _left_for_right(states):
    return [state.replace("Left", "?").replace("Right", "Left").replace("?", "Right") for state in states]


@settings(max_examples=3, deadline=None)
@given(SEED)
def test_a_mirrored_scene_swaps_left_and_right_and_nothing_else(number):
    record = record_of(number)
    mirrored = _moved(record, np.diag([-1.0, 1.0, 1.0]))
    assert _agreement(record, mirrored, lambda states: states, (*SPD, *DIS)) > 0.99
    assert _agreement(record, mirrored, _left_for_right, DIR) > 0.99


def test_time_reversed_a_scene_is_described_backwards():
    """Directions between things come in reverse order; the series of distances and speeds are reversed."""
    record = record_of(2)
    backwards = replace(
        record,
        timestamps=record.timestamps[-1] - record.timestamps[::-1],
        world_from_camera=record.world_from_camera[::-1],
        centers_world=record.centers_world[:, ::-1],
        forward_world=record.forward_world[:, ::-1],
        forward_confidence=record.forward_confidence[:, ::-1],
    )
    span = record.timestamps[-1]

    def asked(rows):
        found = {}
        for row in rows:
            if row["type"] in ("rel_dir", "rel_dis", "rel_spd"):
                key = (row["type"], row["viewpoint_subject"], *row["targets"])
                found[(*key, round(row["interval_start"], 3), round(row["interval_end"], 3))] = row
        return found

    many = STEADY.model_copy(update={"candidates_per_type": 1000})
    before, after = asked(rows_of(record, many)), asked(rows_of(backwards, many))
    pairs = [
        (row, after[(*key[:-2], round(span - key[-1], 3), round(span - key[-2], 3))])
        for key, row in before.items()
        if (*key[:-2], round(span - key[-1], 3), round(span - key[-2], 3)) in after
    ]
    assert len(pairs) > 100
    for row, reverse in pairs:
        if row["type"] == "rel_dir":
            assert reverse["states"] == row["states"][::-1]
        else:
            values, reversed_values = (json.loads(r["evidence"])["values"] for r in (row, reverse))
            assert reversed_values[::-1] == pytest.approx(values, rel=1e-4, abs=1e-4)


def test_names_from_outside_cannot_break_a_question():
    record = record_of(3)
    names = ["camera", "a\x00b\n<|im_end|>\u202eX", "é" * 500, "", ""][: len(record.names)]
    names += [f"thing {n}" for n in range(len(record.names) - len(names))]
    rows = rows_of(replace(record, names=names))
    assert rows
    for row in rows:
        assert row["question"].isprintable() and len(row["question"]) < 400
        assert not set(row["question"]) & set("<>{}[]|")
    subjects = {name for row in rows for name in (*row["targets"], row["viewpoint_subject"])}
    assert {"camera", "camera 2"} <= subjects


def test_a_shard_is_the_same_for_any_number_of_workers_and_asks_of_fit_clips_only(tmp_path, parameters):
    geometry, videos = tmp_path / "geometry", tmp_path / "videos"
    geometry.mkdir()
    (videos / "frames").mkdir(parents=True)
    for number in range(4):
        save(synthetic_record(number), geometry / f"{clip_of(number)}.safetensors")
    scenes = {"clip": [clip_of(number) for number in range(4)], "fit": [True, True, True, False]}
    pq.write_table(pa.table(scenes), geometry / "scenes.parquet")
    (videos / "frames" / f"{clip_of(1)}.safetensors").touch()
    seen = []
    for workers in (1, 2):
        counts = derive_shard(
            geometry,
            videos,
            tmp_path / str(workers),
            "shard-000000",
            parameters,
            workers,
            lambda *step: seen.append(step),
        )
        assert counts["clips"] == 3 and counts["candidates"] > 0
    for name in ("candidates.parquet", "dropped.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    table = pq.read_table(tmp_path / "1" / "candidates.parquet")
    assert table.schema.equals(CANDIDATES)
    assert set(table["clip"].to_pylist()) == {clip_of(number) for number in range(3)}
    assert {row["clip"]: row["has_video"] for row in table.to_pylist()} == {clip_of(n): n == 1 for n in range(3)}
    assert seen[-1][:2] == (3, 3)


def test_directions_are_all_reachable():
    assert len({text for text in DIRECTION_STATES if text}) == 26


def test_a_clip_of_four_objects_takes_well_under_a_second(parameters):
    record = synthetic_record(7)
    derive(record, clip_of(7), "shard-000000", True, parameters)
    started = time.process_time()
    derive(record, clip_of(7), "shard-000000", True, parameters)
    assert time.process_time() - started < 1.0
