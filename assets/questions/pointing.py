"""How the questions about one clip point at its things."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from assets.geometry.record import SceneRecord
from assets.questions.wording import CAMERA, boxed_name, clean_names, pointing_names


@dataclass(frozen=True)
class Pointing:
    """What texts call the N things of a clip; the camera is entity N.

    Attributes:
        names: N + 1 names; of a clip that can be watched, each points at its thing by itself or by its mark.
        plain: N names as the record gives them.
        boxes: (N, T, 4) whole pixels of the stored frame where texts shall point by them, NaN where there is none; None
            where they shall not.
        length: longest name, characters.
    """

    names: list[str]
    plain: list[str]
    boxes: np.ndarray | None
    length: int

    @classmethod
    def of(cls, record: SceneRecord, has_video: bool, by: str, length: int) -> Pointing:
        """Point at the things of a record (with boxes).

        Args:
            record: the clip's scene record.
            has_video: whether the clip has frames; without them there is nothing to point at, and the record's names
                stand.
            by: "names", or "boxes" as the paper does, which give away where in the picture a thing is.
            length: longest name, characters.
        """
        if not has_video:
            return cls([*clean_names(record.names, length), CAMERA], record.names, None, length)
        names = [*pointing_names(record.names, record.marks, length), CAMERA]
        return cls(names, record.names, _whole_boxes(record) if by == "boxes" else None, length)

    def said(self, entity: int, frame: int, when: str) -> str:
        """What a text calls an entity.

        Args:
            entity: its index.
            frame: the sampled frame in which it is pointed at.
            when: "initial" or "final" frame of the interval, "" for one whose time the text names.
        """
        if self.boxes is None or entity == len(self.plain) or np.isnan(self.boxes[entity, frame]).any():
            return self.names[entity]
        return boxed_name(self.plain[entity], self.boxes[entity, frame], when, self.length)


def _whole_boxes(record: SceneRecord) -> np.ndarray:
    """(N,T,4) boxes in whole pixels, cut at the frame's edge; NaN where there is none or none of it is in the frame."""
    height, width = record.frame_size
    low = np.floor(np.clip(record.boxes[..., :2].astype(float), 0, (width, height)))
    high = np.ceil(np.clip(record.boxes[..., 2:].astype(float), 0, (width, height)))
    boxes = np.concatenate([low, high], axis=-1)
    return np.where((low < high).all(axis=-1, keepdims=True), boxes, np.nan)
