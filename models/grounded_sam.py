"""From class names to tracked masks: Grounding DINO finds things, SAM 2 follows them (both transformers' own classes).

Every few frames the detector looks again. What it finds is segmented and held against the masks that are being
followed: what overlaps one of them is that thing, the rest are new things. Once the clip has been seen forward, it is
seen backward once, so that a thing that was found late is followed to its first frame; a late track that turns out to
be an earlier one, lost and found again, is joined to it.

Sources: arXiv 2303.05499 (Grounding DINO), 2408.00714 (SAM 2); thresholds of the paper, section 1.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    BertTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    PreTrainedModel,
    Sam2VideoModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceCache, Sam2VideoInferenceSession

from models.weights import WeightsError, locate, open_weights

# Class names come from captions that anyone may have written.
MAX_CLASSES, MAX_NAME_LENGTH = 64, 48
FILES = ("*.safetensors", "*.json", "*.txt")
# Grounding DINO tells names apart by these ids of BERT's, whatever vocabulary it is given.
SEPARATORS = {"[CLS]": 101, "[SEP]": 102, ".": 1012}
# SAM 2's labels of a box's two corners among point prompts.
BOX_CORNERS = (2, 3)


@dataclass
class Track:
    """One thing through a clip.

    Attributes:
        class_name: as `clean_names` writes it.
        score: 0 to 1, of the detection that the track began with.
        masks: (T,H,W) bool, at the size of the frames; empty where the thing is not seen.
    """

    class_name: str
    score: float
    masks: np.ndarray


@dataclass(frozen=True)
class Prompt:
    """`[CLS] name . name . [SEP]` as token ids, and where each name stands in it: [start, end)."""

    names: tuple[str, ...]
    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Detections:
    """D boxes of one frame, best first: (D,4) f32 xyxy in frame pixels, (D,) scores, and D names."""

    boxes: np.ndarray
    scores: np.ndarray
    names: list[str]


@dataclass
class Following:
    """Things that were found in the same frame and are followed together.

    Attributes:
        born: the frame.
        found: what the detector said of them.
        session: SAM 2's memory of them.
        masks: (D,T,H,W) bool, filled frame by frame.
    """

    born: int
    found: Detections
    session: Sam2VideoInferenceSession
    masks: np.ndarray


def clean_names(classes: Sequence[str]) -> list[str]:
    """Class names fit for a prompt: lower case, one line of words, no doubles, at most 64 of at most 48 characters.

    Full stops and question marks would split a name in two, so only letters, digits, blanks, - and ' stay; names
    of which nothing is left are dropped.
    """
    words = (" ".join(re.sub(r"[^\w\s'-]|_", " ", name[: 8 * MAX_NAME_LENGTH].lower()).split()) for name in classes)
    names = dict.fromkeys(name[:MAX_NAME_LENGTH].strip() for name in words)
    return [name for name in names if re.search(r"\w", name)][:MAX_CLASSES]


def prompts_of(names: Sequence[str], tokenizer: BertTokenizer, max_tokens: int) -> list[Prompt]:
    """As few prompts of at most `max_tokens` tokens as hold the names in order.

    Each name is tokenised alone, so its span is known and cannot shift; names of which the tokenizer knows nothing
    are left out.
    """
    stop = tokenizer.convert_tokens_to_ids(".")
    opening, closing = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    prompts, held, tokens = [], [], list(opening)
    for name in names:
        pieces = tokenizer(name, add_special_tokens=False)["input_ids"][: max_tokens - 3]
        if not set(pieces) - {tokenizer.unk_token_id}:
            continue
        if len(tokens) + len(pieces) + 2 > max_tokens:
            prompts.append(_prompt(held, tokens + closing))
            held, tokens = [], list(opening)
        held.append((name, (len(tokens), len(tokens) + len(pieces))))
        tokens += [*pieces, stop]
    return [*prompts, _prompt(held, tokens + closing)] if held else []


def _prompt(held: Sequence[tuple[str, tuple[int, int]]], tokens: Sequence[int]) -> Prompt:
    return Prompt(tuple(name for name, _ in held), tuple(tokens), tuple(span for _, span in held))


def best_names(
    probabilities: np.ndarray, spans: Sequence[tuple[int, int]], box_threshold: float, text_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The name of each query and its score; -1 where no name fits.

    A name scores the highest probability among its own tokens. It fits if that exceeds `box_threshold` and the mean
    over its tokens, the phrase as a whole, exceeds `text_threshold`. Of those that fit the one with the highest mean
    is taken: "car" and "sports car" share their highest token.

    Args:
        probabilities: (Q,L), of each token for each query.
        spans: where the names stand, [start, end).
        box_threshold: least highest probability.
        text_threshold: least mean probability.

    Returns:
        (Q,) index of the name or -1, (Q,) score.
    """
    peaks = np.stack([probabilities[:, start:end].max(1) for start, end in spans], 1)
    means = np.stack([probabilities[:, start:end].mean(1) for start, end in spans], 1)
    fitting = np.where((peaks > box_threshold) & (means > text_threshold), means, -1.0)
    chosen = fitting.argmax(1)
    rows = np.arange(len(chosen))
    return np.where(fitting[rows, chosen] > 0, chosen, -1), peaks[rows, chosen]


def box_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(A,B) intersection over union of (A,4) and (B,4) xyxy boxes; 0 for boxes without area."""
    corner = np.maximum(one[:, None, :2], other[None, :, :2])
    opposite = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(opposite - corner, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def mask_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(A,B) intersection over union of (A,H,W) and (B,H,W) bool masks; 0 for two empty ones."""
    # The size is spelt out, for it cannot be told from no mask at all.
    flat = [masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(np.float32) for masks in (one, other)]
    shared = flat[0] @ flat[1].T
    union = flat[0].sum(1)[:, None] + flat[1].sum(1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def non_maximum_suppression(overlaps: np.ndarray, threshold: float) -> list[int]:
    """Places of the things that overlap none kept before them by more than `threshold`.

    Args:
        overlaps: (D,D) intersection over union, things in descending order of score.
        threshold: most overlap of two things that are both kept.
    """
    kept: list[int] = []
    for place in range(len(overlaps)):
        if not (overlaps[place, kept] > threshold).any():
            kept.append(place)
    return kept


def new_things(found: np.ndarray, followed: np.ndarray, threshold: float) -> list[int]:
    """Places of the found masks that are not empty, not followed yet, and not found with more certainty elsewhere.

    Args:
        found: (D,H,W) bool, in descending order of score.
        followed: (N,H,W) bool, of the same frame.
        threshold: intersection over union from which two masks are the same thing.
    """
    unknown = found.any((1, 2)) & ~(mask_iou(found, followed) > threshold).any(1)
    places = np.flatnonzero(unknown)
    return [int(places[kept]) for kept in non_maximum_suppression(mask_iou(found[places], found[places]), threshold)]


def joined(tracks: Sequence[Track], born: Sequence[int], threshold: float) -> list[Track]:
    """Tracks with those that are the same thing made one, in the order in which they were born.

    A late track is an earlier thing if the median intersection over union of their masks exceeds the threshold, over
    the frames before its birth that show both: the earlier one had it then and has lost it since. The late track
    speaks for the frames from its birth on, the earlier one for those before, each for those where the other sees
    nothing; name and score are those of the surer one.

    Args:
        tracks: in the order of their birth.
        born: frame in which each was found.
        threshold: of the median.
    """
    kept: list[Track] = []
    for track, birth in zip(tracks, born, strict=True):
        same = next((place for place, known in enumerate(kept) if _overlap(known, track, birth) > threshold), None)
        if same is None:
            kept.append(track)
        else:
            kept[same] = _one_of_two(kept[same], track, birth)
    return kept


def _overlap(earlier: Track, later: Track, birth: int) -> float:
    pairs = zip(earlier.masks[:birth], later.masks[:birth], strict=True)
    ious = [np.count_nonzero(a & b) / np.count_nonzero(a | b) for a, b in pairs if a.any() and b.any()]
    return float(np.median(ious)) if ious else 0.0


def _one_of_two(earlier: Track, later: Track, birth: int) -> Track:
    seen_early, seen_late = earlier.masks.any((1, 2)), later.masks.any((1, 2))
    speaks = seen_late & (~seen_early | (np.arange(len(seen_late)) >= birth))
    surer = max(earlier, later, key=lambda track: track.score)
    return Track(surer.class_name, surer.score, np.where(speaks[:, None, None], later.masks, earlier.masks))


class Detector:
    """Grounding DINO with its tokenizer and its preprocessing."""

    def __init__(
        self,
        model: GroundingDinoForObjectDetection,
        tokenizer: BertTokenizer,
        processor: GroundingDinoImageProcessorPil,
    ) -> None:
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    def prompts(self, names: Sequence[str]) -> list[Prompt]:
        """The names as prompts that the model can read."""
        return prompts_of(names, self.tokenizer, self.model.config.max_text_len)

    @torch.inference_mode()
    def probabilities(self, frame: np.ndarray, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
        """What the model says of a (H,W,3) u8 frame: (Q,L) of each token, and (Q,4) xyxy boxes in pixels, both f32."""
        device = self.model.device
        seen = self.processor(images=frame, input_data_format="channels_last", return_tensors="pt")
        tokens = torch.tensor([prompt.tokens], device=device)
        answer = self.model(
            pixel_values=seen["pixel_values"].to(device, self.model.dtype),
            pixel_mask=seen["pixel_mask"].to(device),
            input_ids=tokens,
            token_type_ids=torch.zeros_like(tokens),
            attention_mask=torch.ones_like(tokens),
        )
        height, width = frame.shape[:2]
        center, size = answer.pred_boxes[0].float().cpu().split(2, dim=1)
        corners = torch.cat([center - size / 2, center + size / 2], 1).clamp(0, 1)
        return answer.logits[0].float().sigmoid().cpu().numpy(), (corners * corners.new([width, height] * 2)).numpy()


class Segmenter:
    """SAM 2."""

    def __init__(self, model: Sam2VideoModel) -> None:
        self.model = model

    def watch(self, frames: np.ndarray) -> ClipView:
        """Look at a clip of (T,H,W,3) u8 frames."""
        return ClipView(self.model, frames)


class ClipView:
    """A clip as SAM 2 sees it: one frame at a time, encoded once however many things are followed through it."""

    def __init__(self, model: Sam2VideoModel, frames: np.ndarray) -> None:
        self.model, self.frames = model, frames
        self._cache = Sam2VideoInferenceCache(model.device, model.device)
        self._time, self._pixels = -1, None

    def follow(self, time: int, boxes: np.ndarray) -> tuple[Sam2VideoInferenceSession, np.ndarray]:
        """Begin to follow what the (D,4) xyxy boxes hold at a frame; the session and (D,H,W) bool masks there."""
        height, width = self.frames.shape[1:3]
        session = Sam2VideoInferenceSession(
            video_height=height,
            video_width=width,
            inference_device=self.model.device,
            inference_state_device=self.model.device,
            video_storage_device=self.model.device,
            dtype=self.model.dtype,
        )
        session.cache = self._cache
        scale = self.model.image_size / np.array([width, height])
        corners = torch.tensor(boxes.reshape(-1, 1, 1, 2, 2) * scale, dtype=torch.float32)
        for thing, points in enumerate(corners):
            session.add_point_inputs(
                session.obj_id_to_idx(thing),
                time,
                {"point_coords": points, "point_labels": torch.tensor([[BOX_CORNERS]])},
            )
        session.obj_with_new_inputs = list(range(len(boxes)))
        return session, self.masks(session, time)

    def masks(self, session: Sam2VideoInferenceSession, time: int, backward: bool = False) -> np.ndarray:
        """(D,H,W) bool masks of the session's things at the next frame (or, backward, at the one before)."""
        answer = self.model(session, frame=self._seen(time), frame_idx=time, reverse=backward)
        session.processed_frames.clear()
        self._forget(session, time)
        size = self.frames.shape[1:3]
        logits = functional.interpolate(answer.pred_masks.float(), size, mode="bilinear", align_corners=False)
        return (logits[:, 0] > 0).cpu().numpy()

    def forget_tracked(self, session: Sam2VideoInferenceSession) -> None:
        """Leave a session with nothing but what it was begun with."""
        for outputs in session.output_dict_per_obj.values():
            outputs["non_cond_frame_outputs"].clear()

    def _forget(self, session: Sam2VideoInferenceSession, time: int) -> None:
        """Drop what SAM 2 keeps and never reads again, so that memory does not grow with the clip."""
        horizon = max(self.model.num_maskmem, self.model.config.max_object_pointers_in_encoder)
        for outputs in session.output_dict_per_obj.values():
            tracked = outputs["non_cond_frame_outputs"]
            for old in [frame for frame in tracked if abs(frame - time) >= horizon]:
                del tracked[old]
            for kept in (*tracked.values(), *outputs["cond_frame_outputs"].values()):
                kept.pop("high_res_masks", None)

    def _seen(self, time: int) -> Tensor:
        if time != self._time:
            pixels = sam_pixels(self.frames[time], self.model.image_size)
            self._time, self._pixels = time, pixels.to(self.model.device, self.model.dtype)
        return self._pixels


def sam_pixels(frame: np.ndarray, size: int) -> Tensor:
    """(3,size,size) f32 as SAM 2 wants it, from (H,W,3) u8: bilinear with antialiasing on bytes, ImageNet's statistics.

    The numbers of transformers' own video processor, which needs torchvision.
    """
    channels = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))[None]
    resized = functional.interpolate(channels, (size, size), mode="bilinear", antialias=True)[0]
    mean, deviation = (torch.tensor(row)[:, None, None] for row in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (resized / 255 - mean) / deviation


class GroundedSam:
    """Finds and follows things of given classes.

    Args:
        detector: finds them.
        segmenter: follows them.
        box_threshold: least probability of a name's best token.
        text_threshold: least mean probability over a name's tokens.
        nms_iou: overlap of two boxes from which the less certain one is dropped.
        match_iou: overlap of two masks from which they are the same thing.
        redetect_every: frames from one look of the detector to the next.
        max_objects: most things followed in a clip; the surest of each look come first.
    """

    def __init__(
        self,
        detector: Detector,
        segmenter: Segmenter,
        *,
        box_threshold: float = 0.35,
        text_threshold: float = 0.25,
        nms_iou: float = 0.6,
        match_iou: float = 0.5,
        redetect_every: int = 8,
        max_objects: int = 16,
    ) -> None:
        self.detector, self.segmenter = detector, segmenter
        self.box_threshold, self.text_threshold, self.nms_iou = box_threshold, text_threshold, nms_iou
        self.match_iou, self.redetect_every, self.max_objects = match_iou, redetect_every, max_objects

    def track(self, frames: np.ndarray, classes: Sequence[str]) -> list[Track]:
        """Tracks of the things of these classes, in the order in which they were found.

        Holds masks of max_objects · T · H · W bytes; all else is bounded, however long the clip.

        Args:
            frames: (T,H,W,3) u8 RGB.
            classes: names; see `clean_names` for what is made of them.
        """
        prompts = self.detector.prompts(clean_names(classes))
        if not prompts:
            return []
        clip, followed = self.segmenter.watch(frames), []
        for time in range(len(frames)):
            for group in followed:
                group.masks[:, time] = clip.masks(group.session, time)
            if time % self.redetect_every == 0:
                followed += self._newcomers(clip, time, prompts, followed)
        self._look_back(clip, [group for group in followed if group.born > 0])
        born = [group.born for group in followed for _ in group.found.names]
        return joined([track for group in followed for track in _tracks(group)], born, self.match_iou)

    def detect(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> Detections:
        """What of the prompts' names is in a (H,W,3) u8 frame: at most `max_objects`, best first, without doubles."""
        boxes, scores, names = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.float32)], []
        for prompt in prompts:
            probabilities, corners = self.detector.probabilities(frame, prompt)
            chosen, score = best_names(probabilities, prompt.spans, self.box_threshold, self.text_threshold)
            boxes.append(corners[chosen >= 0])
            scores.append(score[chosen >= 0])
            names += [prompt.names[name] for name in chosen[chosen >= 0]]
        boxes, scores = np.concatenate(boxes), np.concatenate(scores)
        order = np.argsort(-scores, kind="stable")
        kept = order[non_maximum_suppression(box_iou(boxes[order], boxes[order]), self.nms_iou)][: self.max_objects]
        return Detections(boxes[kept], scores[kept], [names[place] for place in kept])

    def _newcomers(
        self, clip: ClipView, time: int, prompts: Sequence[Prompt], followed: Sequence[Following]
    ) -> list[Following]:
        """Begin to follow what the detector sees at a frame and nobody follows yet."""
        room = self.max_objects - sum(len(group.found.names) for group in followed)
        found = self.detect(clip.frames[time], prompts) if room > 0 else None
        if found is None or not found.names:
            return []
        _, candidates = clip.follow(time, found.boxes)
        known = np.concatenate([candidates[:0], *(group.masks[:, time] for group in followed)])
        new = new_things(candidates, known, self.match_iou)[:room]
        if not new:
            return []
        chosen = Detections(found.boxes[new], found.scores[new], [found.names[place] for place in new])
        masks = np.zeros((len(new), *clip.frames.shape[:3]), bool)
        session, masks[:, time] = clip.follow(time, chosen.boxes)
        return [Following(time, chosen, session, masks)]

    def _look_back(self, clip: ClipView, late: Sequence[Following]) -> None:
        """Follow things that were found late to the clip's first frame, all of them in one pass."""
        for group in late:
            clip.forget_tracked(group.session)
        for time in range(max((group.born for group in late), default=0) - 1, -1, -1):
            for group in late:
                if time < group.born:
                    group.masks[:, time] = clip.masks(group.session, time, backward=True)


def _tracks(group: Following) -> list[Track]:
    return [
        Track(name, float(score), masks)
        for name, score, masks in zip(group.found.names, group.found.scores, group.masks, strict=True)
    ]


def load_grounded_sam(
    detector: str,
    segmenter: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **thresholds: float,
) -> tuple[GroundedSam, dict[str, str]]:
    """Both networks in eval mode, and the sha256 of the weights of each by name.

    Args:
        detector: folder or hub id of a Grounding DINO as transformers saves it (IDEA-Research/grounding-dino-tiny).
        segmenter: the same of a SAM 2 video model (facebook/sam2.1-hiera-large).
        device: where they run.
        dtype: of the segmenter. The detector stays in single precision: half has too few digits for a box's corners.
        thresholds: as `GroundedSam` has them.

    Raises:
        WeightsError: if a checkpoint is missing, damaged, incomplete or not in safetensors.
    """
    folder = locate(detector, FILES)
    finder, finder_sha256 = _published(GroundingDinoForObjectDetection, folder, torch.float32)
    follower, follower_sha256 = _published(Sam2VideoModel, locate(segmenter, FILES), dtype)
    tokenizer, processor = _reading(folder)
    found = Detector(finder.to(device), tokenizer, processor)
    hashes = {"grounding_dino": finder_sha256, "sam2": follower_sha256}
    return GroundedSam(found, Segmenter(follower.to(device)), **thresholds), hashes


def _reading(folder: Path) -> tuple[BertTokenizer, GroundingDinoImageProcessorPil]:
    try:
        tokenizer = BertTokenizer.from_pretrained(str(folder), local_files_only=True)
        processor = GroundingDinoImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder}: {_first_line(error)}; download the tokenizer and preprocessor files") from error
    # Without its files a tokenizer is made of nothing, and says nothing.
    if tokenizer.convert_tokens_to_ids(list(SEPARATORS)) != list(SEPARATORS.values()):
        raise WeightsError(f"{folder}: the tokenizer is not BERT's; download tokenizer.json or vocab.txt")
    return tokenizer, processor


def _published(kind: type[PreTrainedModel], folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    weights = open_weights(str(folder))
    try:
        model, report = kind.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        # Whatever a damaged or foreign checkpoint makes transformers raise; its types are not part of its interface.
        raise WeightsError(f"{folder}: no {kind.__name__} ({_first_line(error)}); download it again") from error
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(
            f"{folder}: tensor {missing[0][:160]!r} is missing ({len(missing)} in all); download the weights again"
        )
    return model.eval(), weights.sha256


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
