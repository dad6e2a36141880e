from __future__ import annotations

import hashlib
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
)
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

from models.grounded_sam import (
    GroundedSam,
    Prompt,
    Segmenter,
    Track,
    best_names,
    box_iou,
    clean_names,
    joined,
    load_grounded_sam,
    mask_iou,
    new_things,
    non_maximum_suppression,
    prompts_of,
    sam_pixels,
)
from models.weights import WeightsError

WORDS = ("dog", "car", "sports", "skate", "##board", "##er", "person")
FRAMES = np.random.default_rng(0).integers(0, 256, (8, 30, 40, 3), np.uint8)


def tiny_tokenizer() -> BertTokenizer:
    # Grounding DINO knows the separators by BERT's own ids.
    places = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    places |= {word: 1030 + place for place, word in enumerate(WORDS)}
    vocabulary = {f"[unused{place}]": place for place in range(1030) if place not in places.values()} | places
    return BertTokenizer(vocab=vocabulary)


def tiny_detector() -> GroundingDinoForObjectDetection:
    torch.manual_seed(0)
    backbone = {"model_type": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}
    text = {"model_type": "bert", "vocab_size": 1040, "hidden_size": 16, "num_hidden_layers": 1}
    return GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config={**backbone, "image_size": 32, "out_indices": [2, 3, 4]},
            text_config={**text, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64},
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=10,
            max_text_len=24,
        )
    )


def tiny_segmenter() -> Sam2VideoModel:
    torch.manual_seed(1)
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1] * 4,
        "window_size_per_stage": [4, 2, 2, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {"model_type": "sam2_vision_model", "backbone_config": backbone, "fpn_hidden_size": 128}
    vision |= {"backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    decoder = {"hidden_size": 128, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return Sam2VideoModel(
        Sam2VideoConfig(
            vision_config=vision,
            prompt_encoder_config={"hidden_size": 128, "image_size": 64, "mask_input_channels": 4},
            mask_decoder_config=decoder,
            image_size=64,
            num_maskmem=3,
            max_object_pointers_in_encoder=4,
            memory_attention_hidden_size=128,
            memory_attention_num_layers=1,
            memory_attention_feed_forward_hidden_size=16,
            memory_attention_rope_feat_sizes=[4, 4],
            memory_encoder_hidden_size=128,
            mask_downsampler_embed_dim=128,
            memory_fuser_embed_dim=128,
            memory_fuser_intermediate_dim=16,
            memory_fuser_num_layers=1,
        )
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Both networks, random, as published: config, safetensors, tokenizer and preprocessor files."""
    root = tmp_path_factory.mktemp("grounded_sam")
    tiny_detector().save_pretrained(root / "detector")
    tiny_tokenizer().save_pretrained(root / "detector")
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(root / "detector")
    tiny_segmenter().save_pretrained(root / "segmenter")
    return root


@pytest.fixture(scope="module")
def loaded(checkpoints):
    thresholds = {"box_threshold": 0.01, "text_threshold": 0.01, "redetect_every": 3, "max_objects": 3}
    return load_grounded_sam(str(checkpoints / "detector"), str(checkpoints / "segmenter"), **thresholds)


def test_names_from_captions_are_cleaned_bounded_and_told_apart():
    hostile = ["  Dog ", "dog", "", " . ", "a\tman?\nin. red", "x" * 500, "t-shirt", "child's _toy_", "🙂", "Straße"]
    assert clean_names(hostile) == ["dog", "a man in red", "x" * 48, "t-shirt", "child's toy", "straße"]
    assert len(clean_names([f"name {number}" for number in range(1000)])) == 64


def test_blank_classes_do_not_shift_the_spans():
    tokenizer = tiny_tokenizer()
    names = ["dog", "sports car", "skateboarder"]
    (prompt,) = prompts_of(clean_names(["Dog", "", " . ", "sports car.", "🙂", "skateboarder"]), tokenizer, 24)
    assert list(prompt.tokens) == tokenizer("dog. sports car. skateboarder.")["input_ids"]
    assert prompt.names == tuple(names)
    spoken = [tokenizer.convert_ids_to_tokens(prompt.tokens[start:end]) for start, end in prompt.spans]
    assert spoken == [["dog"], ["sports", "car"], ["skate", "##board", "##er"]]


def test_prompts_never_grow_beyond_what_the_model_reads():
    tokenizer = tiny_tokenizer()
    prompts = prompts_of(["dog", "sports car", "zebra", "person", "skateboarder", "dog " * 20], tokenizer, 8)
    names = [("dog", "sports car"), ("person", "skateboarder"), ("dog " * 20,)]
    assert [prompt.names for prompt in prompts] == names
    assert max(len(prompt.tokens) for prompt in prompts) == 8
    assert prompts_of(["zebra"], tokenizer, 8) == []


def test_a_name_is_scored_by_its_own_tokens_only():
    probabilities = np.zeros((6, 10), np.float32)
    spans = [(1, 2), (3, 5)]
    probabilities[0, 1] = 0.9
    probabilities[1, 3:5] = 0.3, 0.6
    probabilities[2, [0, 2, 5, 6]] = 0.99
    probabilities[3, 1] = 0.35
    probabilities[4, 3:5] = 0.45, 0.04
    probabilities[5, [1, 3, 4]] = 0.6, 0.1, 0.7
    chosen, score = best_names(probabilities, spans, 0.35, 0.25)
    assert chosen.tolist() == [0, 1, -1, -1, -1, 0]
    assert score[[0, 1, 5]] == pytest.approx([0.9, 0.6, 0.6])


def test_overlaps_of_boxes_and_masks():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [1, 1, 1, 1]], float)
    ious = box_iou(boxes, boxes)
    assert ious[0] == pytest.approx([1, 1 / 3, 0, 0]) and ious[3] == pytest.approx(np.zeros(4))
    masks = np.zeros((3, 6, 6), bool)
    masks[0, :2, :2] = masks[1, :2, 1:3] = True
    assert mask_iou(masks, masks)[:2] == pytest.approx(np.array([[1, 1 / 3, 0], [1 / 3, 1, 0]]))
    assert mask_iou(masks, masks)[2, 2] == 0 and mask_iou(masks, masks[:0]).shape == (3, 0)


def test_suppression_goes_by_what_is_kept_not_by_what_is_near():
    chain = np.array([[1, 0.7, 0.3], [0.7, 1, 0.7], [0.3, 0.7, 1]])
    assert non_maximum_suppression(chain, 0.6) == [0, 2]
    assert non_maximum_suppression(chain, 0.7) == [0, 1, 2]


def square(*places: tuple[int, int], size: int = 4, frame: int = 20) -> np.ndarray:
    """(T,frame,frame) masks of a square at (row, column) in each frame; None where it is not seen."""
    masks = np.zeros((len(places), frame, frame), bool)
    for mask, place in zip(masks, places, strict=True):
        if place:
            mask[place[0] : place[0] + size, place[1] : place[1] + size] = True
    return masks


def test_only_what_is_not_followed_yet_is_new():
    found = square((0, 0), (10, 10), None, (0, 1), (10, 11), (15, 0))
    assert new_things(found, square((0, 0)), 0.5) == [1, 5]
    assert new_things(found, found[:0], 0.5) == [0, 1, 5]
    assert new_things(found[:0], found, 0.5) == []


def test_a_thing_lost_and_found_again_stays_one_track():
    lost = Track("cat", 0.5, square((0, 0), (0, 1), (9, 9), (9, 9)))
    found = Track("dog", 0.8, square((0, 0), (0, 1), (0, 2), (0, 3)))
    other = Track("dog", 0.7, square((0, 9), (0, 9), (0, 9), None))
    one, two = joined([lost, other, found], [0, 0, 2], 0.5)
    assert (one.class_name, one.score) == ("dog", 0.8) and two is other
    assert np.array_equal(one.masks, found.masks)


def test_tracks_that_meet_for_a_moment_stay_two():
    one = Track("dog", 0.5, square((0, 0), (0, 1), (0, 2), (0, 3)))
    two = Track("dog", 0.5, square((0, 9), (0, 6), (0, 3), (0, 3)))
    never_together = Track("dog", 0.5, square(None, None, None, None))
    assert joined([one, two, never_together], [0, 1, 3], 0.5) == [one, two, never_together]


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


class ColourDetector:
    """Finds squares of the named colours; counts how often it looks."""

    looks = 0

    def prompts(self, names):
        spans = tuple((place, place + 1) for place in range(len(names)))
        return [Prompt(tuple(names), tuple(range(len(names))), spans)] if names else []

    def probabilities(self, frame, prompt):
        self.looks += 1
        boxes = np.zeros((len(prompt.names), 4), np.float32)
        probabilities = np.zeros((len(prompt.names), len(prompt.names)), np.float32)
        for place, name in enumerate(prompt.names):
            rows, columns = np.nonzero((frame == COLOURS[name]).all(-1))
            if len(rows):
                boxes[place] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                probabilities[place, place] = 0.9 - 0.1 * place
        return probabilities, boxes


class ColourSegmenter:
    """Follows a colour; forward it loses what it does not see in one frame, as a tracker may."""

    def watch(self, frames):
        self.frames = frames
        return self

    def follow(self, time, boxes):
        middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).astype(int)
        session = [{"colour": self.frames[time, y, x], "lost": False} for x, y in middle]
        return session, self.masks(session, time)

    def masks(self, session, time, backward=False):
        masks = np.stack([(self.frames[time] == thing["colour"]).all(-1) for thing in session])
        for thing, mask in zip(session, masks, strict=True):
            mask &= not thing["lost"]
            thing["lost"] |= not backward and not mask.any()
        return masks

    def forget_tracked(self, session):
        for thing in session:
            thing["lost"] = False


def painted() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Red all the time, green in frames 5 to 10, blue but for frames 4 to 6, white from frame 6."""
    truth = {
        "red": square(*((0, time) for time in range(12))),
        "green": square(*((8, time) if 5 <= time < 11 else None for time in range(12))),
        "blue": square(*(None if 4 <= time < 7 else (15, time) for time in range(12))),
        "white": square(*(None if time < 6 else (4, time) for time in range(12))),
    }
    frames = np.full((12, 20, 20, 3), 90, np.uint8)
    for name, masks in truth.items():
        frames[masks] = COLOURS[name]
    return frames, truth


def test_things_that_enter_late_are_picked_up_and_identities_kept():
    frames, truth = painted()
    detector = ColourDetector()
    tracks = GroundedSam(detector, ColourSegmenter(), redetect_every=8).track(
        frames, ["Blue", "red.", "", "green", "red"]
    )
    assert [track.class_name for track in tracks] == ["blue", "red", "green"]
    assert [track.score for track in tracks] == pytest.approx([0.9, 0.8, 0.7])
    for track in tracks:
        assert np.array_equal(track.masks, truth[track.class_name]), track.class_name
    assert detector.looks == 2


def test_no_more_than_max_objects_are_followed():
    frames, _ = painted()
    sam = GroundedSam(ColourDetector(), ColourSegmenter(), redetect_every=8, max_objects=3)
    classes = ["white", "green", "blue", "red"]
    assert [track.class_name for track in sam.track(frames, classes)] == ["blue", "red", "white"]
    assert sam.detect(frames[8], sam.detector.prompts(classes)).names == classes[:3]
    assert sam.track(frames, [" ", "?"]) == [] and sam.track(frames[:0], ["red"]) == []


def test_pixels_are_those_of_the_published_preprocessing():
    published = Sam2VideoVideoProcessor
    assert published.size == {"height": 1024, "width": 1024}
    frame = FRAMES[0].repeat(3, 0).repeat(3, 1)
    resized = np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BILINEAR))
    expected = (resized / 255 - published.image_mean) / published.image_std
    level = 1 / 255 / min(published.image_std)
    assert np.abs(sam_pixels(frame, 64).permute(1, 2, 0).numpy() - expected).max() <= 1.01 * level


def test_detector_is_asked_and_read_as_transformers_does(loaded):
    detector = loaded[0].detector
    reference = GroundingDinoProcessor(detector.processor, detector.tokenizer)
    (prompt,) = detector.prompts(["dog", "sports car"])
    inputs = reference(images=FRAMES[0], text=[["dog", "sports car"]], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == list(prompt.tokens)
    with torch.no_grad():
        outputs = detector.model(**inputs)
    result = reference.post_process_grounded_object_detection(outputs, threshold=0, target_sizes=[(30, 40)])[0]
    probabilities, boxes = detector.probabilities(FRAMES[0], prompt)
    assert np.allclose(boxes, result["boxes"].clamp(torch.zeros(4), torch.tensor([40, 30, 40, 30])), atol=1e-3)
    assert np.allclose(probabilities.max(1), result["scores"], atol=1e-5)


def streamed_by_transformers(model: Sam2VideoModel, boxes: np.ndarray, begin: int) -> np.ndarray:
    """(D,T,64/4,64/4) logits of transformers' own streaming, every frame kept, forward and then backward."""
    session = Sam2VideoInferenceSession(video_height=30, video_width=40, dtype=torch.float32)
    for thing, (x0, y0, x1, y1) in enumerate(boxes):
        corners = torch.tensor([[[[x0 * 64 / 40, y0 * 64 / 30], [x1 * 64 / 40, y1 * 64 / 30]]]], dtype=torch.float32)
        point = {"point_coords": corners, "point_labels": torch.tensor([[[2, 3]]])}
        session.add_point_inputs(session.obj_id_to_idx(thing), begin, point)
    session.obj_with_new_inputs = list(range(len(boxes)))
    answers = {}
    for time in range(begin, len(FRAMES)):
        answers[time] = model(session, frame=sam_pixels(FRAMES[time], 64), frame_idx=time).pred_masks
    for outputs in session.output_dict_per_obj.values():
        outputs["non_cond_frame_outputs"].clear()
    for time in range(begin - 1, -1, -1):
        answers[time] = model(session, frame=sam_pixels(FRAMES[time], 64), frame_idx=time, reverse=True).pred_masks
    return torch.stack([answers[time][:, 0] for time in range(len(FRAMES))], 1)


def test_bounded_memory_changes_no_mask(loaded):
    model = loaded[0].segmenter.model
    boxes = np.array([[3, 4, 20, 22], [10, 2, 38, 28]], np.float32)
    clip = Segmenter(model).watch(FRAMES)
    masks = np.zeros((2, *FRAMES.shape[:3]), bool)
    session, masks[:, 2] = clip.follow(2, boxes)
    for time in range(3, len(FRAMES)):
        masks[:, time] = clip.masks(session, time)
    kept = [outputs["non_cond_frame_outputs"] for outputs in session.output_dict_per_obj.values()]
    assert [sorted(frames) for frames in kept] == [[4, 5, 6, 7]] * 2
    assert not any("high_res_masks" in output for frames in kept for output in frames.values())
    assert not session.processed_frames
    clip.forget_tracked(session)
    for time in (1, 0):
        masks[:, time] = clip.masks(session, time, backward=True)
    logits = streamed_by_transformers(model, boxes, 2)
    expected = torch.nn.functional.interpolate(logits, (30, 40), mode="bilinear", align_corners=False) > 0
    assert np.array_equal(masks, expected.numpy())
    assert 0 < masks.mean() < 1


def test_each_frame_is_encoded_once_however_many_sessions_watch(loaded):
    model = loaded[0].segmenter.model
    encoded = Counter()
    hook = model.vision_encoder.register_forward_hook(lambda *_: encoded.update(["frame"]))
    clip = Segmenter(model).watch(FRAMES)
    sessions = [clip.follow(0, np.array([[2, 2, 20, 20]], np.float32))[0] for _ in range(3)]
    for session in sessions:
        clip.masks(session, 1)
    hook.remove()
    assert encoded["frame"] == 2


def test_tracks_of_published_checkpoints(loaded, checkpoints):
    sam, hashes = loaded
    assert hashes == {
        name: hashlib.sha256((checkpoints / folder / "model.safetensors").read_bytes()).hexdigest()
        for name, folder in (("grounding_dino", "detector"), ("sam2", "segmenter"))
    }
    tracks, again = (sam.track(FRAMES, ["dog", "sports car"]) for _ in range(2))
    assert 1 <= len(tracks) <= 3
    for track, repeated in zip(tracks, again, strict=True):
        assert track.masks.shape == FRAMES.shape[:3] and track.masks.dtype == bool and track.masks.any()
        assert track.class_name in ("dog", "sports car") and 0 < track.score < 1
        assert np.array_equal(track.masks, repeated.masks)


def test_half_precision_follows_and_the_detector_stays_single(checkpoints):
    sam, _ = load_grounded_sam(
        str(checkpoints / "detector"), str(checkpoints / "segmenter"), dtype=torch.bfloat16, redetect_every=2
    )
    assert sam.detector.model.dtype == torch.float32 and sam.segmenter.model.dtype == torch.bfloat16
    clip = sam.segmenter.watch(FRAMES)
    session, first = clip.follow(0, np.array([[3, 4, 20, 22]], np.float32))
    assert first.shape == clip.masks(session, 1).shape == (1, 30, 40)


def damaged(folder, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "lacks a tensor":
        tensors = load_file(weights)
        del tensors["no_memory_embedding"]
        save_file(tensors, weights, {"format": "pt"})
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "pickled":
        torch.save(load_file(weights), folder / "pytorch_model.pt")
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize("how", ["lacks a tensor", "truncated", "pickled", "no config"])
def test_damaged_checkpoints_are_refused_in_one_line(checkpoints, tmp_path, how):
    shutil.copytree(checkpoints / "segmenter", tmp_path / "segmenter")
    damaged(tmp_path / "segmenter", how)
    with pytest.raises(WeightsError, match="segmenter") as caught:
        load_grounded_sam(str(checkpoints / "detector"), str(tmp_path / "segmenter"))
    assert "\n" not in str(caught.value)


def test_a_detector_without_its_tokenizer_is_refused(checkpoints, tmp_path):
    shutil.copytree(checkpoints / "detector", tmp_path / "detector")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "detector" / name).unlink(missing_ok=True)
    with pytest.raises(WeightsError, match="detector"):
        load_grounded_sam(str(tmp_path / "detector"), str(checkpoints / "segmenter"))
