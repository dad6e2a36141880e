import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import load_file, save_file

from models.data import ClipError, ClipStore, TreeMaker, _middles, groups_of, questions_of, without_answers
from models.gsm import CELL_CHANNELS
from models.guide import Procedure
from models.parameters import TrainingParameters
from models.prompt import QuestionError
from tests.models.conftest import SHARD, TINY, clip_name, write_clip


def test_questions_with_the_same_view_share_a_prefix(release):
    questions = questions_of(release.table, with_answer=True)
    groups = groups_of(questions)
    assert len(groups) == 8
    for group in groups:
        views = {(questions[row].clip, questions[row].visible_until) for row in group.rows}
        assert views == {(group.clip, group.visible_until)}
    assert sorted(row for group in groups for row in group.rows) == list(range(16))


def test_hidden_part_is_not_read(release, parameters):
    clips = ClipStore(release.videos, release.geometry, parameters)
    whole, part = (clips.video(SHARD, release.clips[0], until) for until in (None, 2.0))
    assert (whole.grid[0], part.grid[0]) == (3, 3)
    # Frames at 0, 0.5, … 2.0 s: five, the last one repeated; nothing of 2.5 s and later.
    assert part.seconds_per_slot == pytest.approx(1.0)
    last = part.patches[-part.grid[1] * part.grid[2] :].reshape(-1, 3, 2, 14, 14)
    assert np.array_equal(last[:, :, 0], last[:, :, 1])
    assert clips.prior(SHARD, release.clips[0], None).times.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert clips.prior(SHARD, release.clips[0], 2.0).times.tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("times", "merge", "middles"),
    [
        ([0.5, 1.5, 2.5], 1, [0.0, 1.0, 2.0]),
        ([0.5, 1.5, 2.5, 3.5], 2, [0.5, 2.5]),
        # A slot that is half filled ends with what it holds.
        ([0.5, 1.5, 2.5, 3.5, 4.5], 2, [0.5, 2.5, 4.0]),
        ([0.5, 2.5, 3.0], 1, [-0.5, 1.5, 2.75]),
        ([0.7], 1, [0.7]),
        ([0.5, 1.5], 2, [1.5]),
    ],
)
def test_slots_have_their_moments_in_the_middle(times, merge, middles):
    assert _middles(np.array(times), merge).tolist() == pytest.approx(middles)


def test_states_are_those_of_the_middles_of_the_slots_that_are_seen(maker):
    """Slots end at 0.5, 1.5, … s, and the last that is seen at 1.5 s; a state changes between middle and end."""
    make, _, questions = maker
    evidence = {"objects": {"former": 0}, "runs": [1, 1, 1], "times": [0.0, 0.7, 1.2, 3.5]}
    row = {"states": ["a", "b", "c"], "targets": ["red box 0"], "viewpoint_subject": "camera"}
    how = Procedure.of(row | {"evidence": json.dumps(evidence)})
    asked = {}
    for group in groups_of(questions)[:2]:
        question = replace(questions[group.rows[0]], procedure=how)
        asked[group.visible_until] = make.grounding_tree(group, [question]).branches[0].notes.states
    # Middles of the slots of the three queries: 0, 1 and 1 s of what is seen; 0, 2 and 3 s of all.
    assert asked == {2.0: ["", "b", "b"], None: ["", "c", "c"]}


def test_changes_after_the_visible_part_change_nothing(release, parameters, tmp_path):
    write_clip(tmp_path, clip_name(0), seed=0)
    path = tmp_path / "geometry" / SHARD / f"{clip_name(0)}.safetensors"
    clips = ClipStore(tmp_path / "videos", tmp_path / "geometry", parameters)
    before, _ = clips.prior(SHARD, clip_name(0), 2.0), clips.prior(SHARD, clip_name(0), None)
    stored = load_file(path)
    stored["prior_features"][2:] *= np.float16(7)
    save_file(stored, path)
    fresh = ClipStore(tmp_path / "videos", tmp_path / "geometry", parameters)
    whole = fresh.prior(SHARD, clip_name(0), None).features
    assert not np.allclose(whole[2:], clips.prior(SHARD, clip_name(0), None).features[2:])
    assert np.array_equal(fresh.prior(SHARD, clip_name(0), 2.0).features, before.features)


def test_clip_seen_from_nothing_on_still_has_a_frame_and_an_empty_cell(release, parameters, maker):
    make, model, questions = maker
    group = replace(groups_of(questions)[0], visible_until=-1.0)
    tree = make.tree(group, [questions[row] for row in group.rows])
    assert tree.video.grid[0] == 1 and tree.prior.features.shape == (1, 1, 1, CELL_CHANNELS)
    assert not tree.prior.features.any()
    batch = make.pack([tree])
    assert torch.isfinite(model.score(batch, batch.prompt_end)).all()


def test_cells_do_not_depend_on_the_unit_of_length(parameters, tmp_path):
    write_clip(tmp_path, clip_name(0))
    clips = ClipStore(tmp_path / "videos", tmp_path / "geometry", parameters)
    cells = clips.prior(SHARD, clip_name(0), None).features
    path = tmp_path / "geometry" / SHARD / f"{clip_name(0)}.safetensors"
    distance = np.median(np.linalg.norm(cells[..., :3].reshape(-1, 3), axis=-1))
    assert distance == pytest.approx(1.0, rel=1e-3)
    stored = load_file(path)
    stored["prior_features"][..., :9] *= np.float16(4)
    save_file(stored, path)
    other = ClipStore(tmp_path / "videos", tmp_path / "geometry", parameters)
    np.testing.assert_allclose(other.prior(SHARD, clip_name(0), None).features, cells, rtol=1e-5)


def test_unusable_numbers_become_zero(parameters, tmp_path):
    write_clip(tmp_path, clip_name(0))
    path = tmp_path / "geometry" / SHARD / f"{clip_name(0)}.safetensors"
    cells = np.full((2, 2, 2, CELL_CHANNELS), np.nan, np.float16)
    cells[0, 0, 0] = np.inf
    save_file({"prior_features": cells, "prior_times": np.arange(2.0)}, path)
    clips = ClipStore(tmp_path / "videos", tmp_path / "geometry", parameters)
    assert not clips.prior(SHARD, clip_name(0), None).features.any()


def test_missing_and_damaged_clips_are_named(release, parameters, tmp_path):
    clips = ClipStore(tmp_path, tmp_path, parameters)
    with pytest.raises(ClipError, match=rf"clip {clip_name(9)}: .* is missing"):
        clips.video(SHARD, clip_name(9), None)
    write_clip(tmp_path, clip_name(9))
    (tmp_path / "videos" / SHARD / "frames" / f"{clip_name(9)}.safetensors").write_bytes(b"\x08")
    with pytest.raises(ClipError, match=r"cannot be read"):
        ClipStore(tmp_path / "videos", tmp_path, parameters).video(SHARD, clip_name(9), None)
    path = tmp_path / "geometry" / SHARD / f"{clip_name(9)}.safetensors"
    save_file({"prior_features": np.zeros((2, 2, 14)), "prior_times": np.zeros(2)}, path)
    with pytest.raises(ClipError, match=r"expected \(T,h,w,C\)"):
        ClipStore(tmp_path, tmp_path / "geometry", parameters).prior(SHARD, clip_name(9), None)


def test_shape_tells_what_reading_will_give_without_reading_it(release, parameters):
    clips = ClipStore(release.videos, release.geometry, parameters)
    for until in (None, 2.0, -1.0):
        for clip in release.clips:
            assert clips.video_tokens(SHARD, clip, until) == clips.video(SHARD, clip, until).tokens
            assert (
                clips.prior_size(SHARD, clip, until)
                == clips.prior(SHARD, clip, until, CELL_CHANNELS).features.shape[:3]
            )
    shape = clips.shape(SHARD, release.clips[1])
    assert (shape.size, shape.prior, len(shape.times)) == ((42, 60), (5, 4, 4, CELL_CHANNELS), 10)
    blind = TrainingParameters.from_mapping({**TINY, "geometry": {"queries": 0}})
    without = ClipStore(release.videos, release.geometry, blind)
    assert without.shape(SHARD, release.clips[1]).prior is None


def rewritten(path, **changes) -> None:
    """The file again with other tensors; None drops one."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    stored = {name: value for name, value in (load_file(path) | changes).items() if value is not None}
    save_file(stored, path, metadata)


@pytest.mark.parametrize(
    ("folder", "changes", "reason"),
    [
        ("videos", {"frames": np.zeros((8, 42, 60), np.uint8)}, "wrong shapes"),
        ("videos", {"frames": np.zeros((3, 42, 60, 3), np.uint8)}, "wrong shapes"),
        ("videos", {"frames": np.zeros((8, 1, 900, 3), np.uint8)}, "wrong shapes"),
        ("videos", {"frames": None}, "damaged file"),
        ("geometry", {"prior_features": None}, "damaged file"),
        ("geometry", {"prior_features": np.zeros((3, 2, 2, 14), np.float16)}, "wrong shapes"),
    ],
)
def test_a_look_finds_what_reading_would_stumble_over(parameters, tmp_path, folder, changes, reason):
    write_clip(tmp_path, clip_name(0))
    rewritten(next((tmp_path / folder / SHARD).rglob("*.safetensors")), **changes)
    clips = ClipStore(tmp_path / "videos", tmp_path / "geometry", parameters)
    with pytest.raises(ClipError) as caught:
        clips.shape(SHARD, clip_name(0))
    assert caught.value.reason == reason and clip_name(0) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ClipError):
        clips.video(SHARD, clip_name(0), None) if folder == "videos" else clips.prior(SHARD, clip_name(0), None)


def write_marks(root, marks, times=None, boxes=None) -> ClipStore:
    """The clip again, its first half with a thing on the left of the picture and its second with one on the right."""
    write_clip(root, clip_name(0))
    path = root / "geometry" / SHARD / f"{clip_name(0)}.safetensors"
    if boxes is None:
        boxes = np.full((2, 8, 4), np.nan, np.float32)
        boxes[0, :4], boxes[1, 4:] = [0, 0, 30, 42], [30, 0, 60, 42]
    stored = load_file(path) | {"boxes": boxes, "timestamps": np.arange(8) * 0.5 if times is None else times}
    save_file(stored, path, {"record": json.dumps({"marks": marks})})
    return ClipStore(root / "videos", root / "geometry", TrainingParameters(max_frames=8, max_pixels=3136))


def lit_columns(video, plain) -> list[list[int]]:
    """Columns of 28 pixels that differ, per pair of frames."""
    t, h, w = video.grid
    windows = (video.patches != plain.patches).reshape(t, h // 2, w // 2, -1).any((1, 3))
    return [np.flatnonzero(row).tolist() for row in windows]


def test_frames_carry_the_marks_of_the_clip(tmp_path):
    write_clip(tmp_path, clip_name(0))
    plain, unmarked, both, second = (
        write_marks(tmp_path, marks).video(SHARD, clip_name(0), None) for marks in ([], [0, 0], [1, 2], [0, 1])
    )
    assert np.array_equal(plain.patches, unmarked.patches)
    assert plain.grid == (4, 4, 4)
    assert lit_columns(both, plain) == [[0], [0], [1], [1]]
    assert lit_columns(second, plain) == [[], [], [1], [1]]
    half = write_marks(tmp_path, [1, 2]).video(SHARD, clip_name(0), 1.5)
    assert np.array_equal(half.patches, both.patches[: len(half.patches)])


@pytest.mark.parametrize(
    ("marks", "other", "said"),
    [
        ([1], {}, "1 marks with boxes"),
        ([1, 2, 3], {}, "3 marks with boxes"),
        ([1, 2], {"times": np.arange(8) * 0.4}, "do not fit its 8 frames"),
        ([1, 2], {"times": np.arange(3.0)}, "do not fit its 8 frames"),
        ([1, 2], {"boxes": np.zeros((2, 8, 3), np.float32)}, "do not fit its 8 frames"),
        ([1, -2], {}, "does not say which marks"),
        ([1, 10**9], {}, "does not say which marks"),
        ([1.5, True], {}, "does not say which marks"),
        (None, {}, "does not say which marks"),
    ],
)
def test_marks_that_cannot_be_drawn_name_the_clip(tmp_path, marks, other, said):
    with pytest.raises(ClipError, match=said) as error:
        write_marks(tmp_path, marks, **other).video(SHARD, clip_name(0), None)
    assert clip_name(0) in str(error.value) and "\n" not in str(error.value)


def test_a_model_that_reads_as_published_gets_prompt_times_and_positions_its_way(release, maker, monkeypatch):
    make, model, questions = maker
    whole = {group.clip: group for group in groups_of(questions) if group.visible_until is None}
    group = whole[release.clips[0]]
    asked = [questions[row] for row in group.rows]
    plain = make.tree(group, asked)
    monkeypatch.setitem(model.config.geometry_config, "reads", "prompt")
    monkeypatch.setitem(model.config.geometry_config, "merge_time", 2)
    other = TreeMaker(make.prompt, make.clips, model)
    tree, decode = other.tree(group, asked), make.prompt.tokenizer.decode
    read = decode(tree.branches[0].question)
    assert asked[0].question in read and read.startswith("user") and "<|" not in read and "assistant" not in read
    assert "assistant" in decode(other.tree(group, without_answers(asked)).branches[0].question)
    assert tree.branches[0].tokens == plain.branches[0].tokens
    # Four slots of a second, merged in pairs: keys stand where their pair begins, not where it ends.
    assert plain.prior.times.tolist() == [0.5, 1.5, 2.5, 3.5] and tree.video.seconds_per_slot * 3 == pytest.approx(4.2)
    assert tree.prior.times.tolist() == pytest.approx([0, 0, 2.1, 2.1])
    far = replace(tree, video=replace(tree.video, seconds_per_slot=30.0))
    assert other.pack([far]).positions.max() > make.pack([far]).positions.max()


def test_blind_trees_of_a_guided_training_are_answered(maker):
    make, model, questions = maker
    batch = make.pack([make.blind_tree(questions[:2])])
    assert torch.isfinite(model.score(batch, batch.prompt_end)).all()


@pytest.mark.parametrize(
    ("column", "value"), [("clip", "../x"), ("clip", None), ("shard", "shard-1"), ("clip", "A" * 64)]
)
def test_names_that_would_leave_the_folder_are_refused(release, column, value):
    place = release.table.column_names.index(column)
    table = release.table.set_column(place, column, [[value] * len(release.table)])
    with pytest.raises(QuestionError, match="is no clip of a shard"):
        questions_of(table, with_answer=True)
    with pytest.raises(QuestionError, match="no column options"):
        questions_of(release.table.drop_columns(["options"]), with_answer=True)
