"""Parameters of the geometry link."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from assets.text_model import TextModelParameters

EstimatorName = Literal["rendered", "annotated", "foundation", "classical"]
# The networks of the foundation estimator whose weights are given by place.
WEIGHTS = ("pi3", "detector", "segmenter", "orientation")
# What a detector may be asked for: a short lower-case noun without the dot that separates nouns in its prompt.
Noun = Annotated[str, StringConstraints(pattern=r"^[a-z]+([ '-][a-z]+)*$", min_length=2, max_length=40)]


class ClassicalParameters(BaseModel):
    """What the classical estimator takes for support, and where it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    require_motion: bool = Field(
        True, description="refuse a third dimension where nothing moves; false for clips of static scenes"
    )
    features: int = Field(1000, ge=100, le=10_000, description="features sought in a frame")
    min_frames: int = Field(6, ge=3, description="fewer sampled frames are refused")
    min_sharpness: float = Field(12.0, gt=0, description="median variance of the Laplacian; less is refused as blurred")
    cut_survival: float = Field(
        0.1, gt=0, lt=1, description="share of features that must be found in the next frame, else a shot cut"
    )
    static_pixels: float = Field(
        1.0, gt=0, description="px; a camera whose background never moves more between two frames is static"
    )
    inlier_pixels: float = Field(1.0, gt=0, description="px; median reprojection error a model may have")
    rotation_share: float = Field(
        0.7, gt=0, le=1, description="share of features a pure rotation may explain before parallax is denied"
    )
    min_epipolar: float = Field(
        0.6, gt=0, lt=1, description="share of matches that must keep to an epipolar geometry, median of pairs"
    )
    min_registered: float = Field(0.9, gt=0, le=1, description="share of the frames a model must place")
    min_points: int = Field(300, ge=20, description="static points a model must hold")
    min_angle: float = Field(2.0, gt=0, description="degrees; median triangulation angle a model must reach")
    forward_cosine: float = Field(
        0.9, gt=0, lt=1, description="cosine to the optical axis from which a path is forward motion"
    )
    depths: int = Field(64, ge=8, le=256, description="inverse depths tried per pixel")
    min_object_share: float = Field(
        0.002, gt=0, lt=1, description="share of the frame a moving region must cover to count"
    )


class FoundationParameters(BaseModel):
    """Published networks: where their weights lie and how they are run. Thresholds are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pi3: str | None = Field(None, description="local folder or hub id of the weights of π³; none: no foundation")
    detector: str | None = Field(None, description="local folder or hub id of a Grounding DINO")
    segmenter: str | None = Field(None, description="local folder or hub id of a SAM 2 video model")
    orientation: str | None = Field(None, description="local folder or hub id of the weights of Orient Anything")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where the networks run, as torch names it")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="number format of the networks")
    max_pixels: int = Field(255_000, ge=196, description="largest area of a frame that π³ reads, px")
    min_confidence: float = Field(0.1, ge=0, lt=1, description="points of π³ below this confidence are dropped")
    edge_rtol: float = Field(0.03, gt=0, description="relative jump of depth to a neighbour that makes an edge")
    box_threshold: float = Field(0.35, gt=0, lt=1, description="least score of a detected box")
    text_threshold: float = Field(0.25, gt=0, lt=1, description="least score of a class name for a box")
    nms_iou: float = Field(0.6, gt=0, le=1, description="boxes that overlap more than this are one thing")
    redetect_every: int = Field(8, ge=1, description="frames between two looks for things that came in later")
    agents: tuple[Noun, ...] = Field(
        (
            *("person", "dog", "cat", "horse", "cow", "sheep", "elephant", "bear", "bird"),
            *("car", "truck", "bus", "motorcycle", "bicycle", "train", "boat", "airplane"),
        ),
        max_length=32,
        description="nouns of things with a front, which can lend a viewpoint",
    )
    objects: tuple[Noun, ...] = Field(
        ("ball", "frisbee", "skateboard", "surfboard", "kite", "balloon", "cart", "suitcase", "box", "bottle", "cup"),
        max_length=32,
        description="nouns of other things",
    )
    max_classes: int = Field(12, ge=1, le=32, description="most nouns of either kind taken from a caption")
    endpoint: TextModelParameters = Field(
        default_factory=TextModelParameters, description="text model that names what a caption speaks of"
    )
    prior: Literal["encoder", "decoder", "cells"] = Field(
        "encoder",
        description="what GSM reads: tokens of one frame each, tokens that know of all frames, or geometric cells",
    )
    prior_merge: Literal["stack", "mean"] = Field(
        "mean",
        description="means of tokens on prior_side (6 MB a clip), or 2x2x2 tokens side by side as published (89)",
    )
    # Assumed, not measured, as no weights were at hand: centres as rough as structure from motion gave them on rendered
    # clips, headings right to one of eight directions.
    center_error: float = Field(0.2, ge=0, description="expected error of a centre, as a share of its distance")
    heading_error: float = Field(22.5, ge=0, description="expected error of a heading, degrees")

    @property
    def given(self) -> bool:
        """Whether there are weights to run."""
        return self.pi3 is not None

    @model_validator(mode="after")
    def _whole(self):
        """Weights of all networks or of none: a record of half the networks would pass for a whole one."""
        missing = [name for name in WEIGHTS if getattr(self, name) is None]
        if 0 < len(missing) < len(WEIGHTS):
            raise ValueError(f"weights of all networks or of none, and {', '.join(missing)} has none")
        if self.given and not (self.agents or self.objects):
            raise ValueError("agents and objects are empty, nothing would be looked for")
        return self


class FitnessParameters(BaseModel):
    """Which scenes are fit for questions. Nothing here changes a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_moving: int = Field(1, ge=0, description="fewest moving things (the paper: 3)")
    min_share: float = Field(0.001, ge=0, lt=1, description="share of the frame of the smallest moving thing (0.01)")
    max_share: float = Field(0.5, gt=0, le=1, description="share of the frame of the largest moving thing (0.5)")
    max_mount_share: float = Field(
        0.02, ge=0, le=1, description="share of the frame of a thing that travels with the camera (the paper: none)"
    )
    travelling_parallax: float = Field(
        0.1, gt=0, description="extent of the camera's path as share of the depth from which the camera travels"
    )
    moving_path: float = Field(
        0.05, gt=0, lt=1, description="share of the frame's diagonal that a moving thing's box goes, without poses"
    )


class GeometryParameters(BaseModel):
    """How scene records are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimators: tuple[EstimatorName, ...] = Field(
        ("rendered", "annotated", "foundation", "classical"),
        min_length=1,
        description="the first of these that supports a clip estimates it",
    )
    points_side: int = Field(96, ge=8, le=1024, description="longest side of the stored point maps, cells")
    prior_side: int = Field(16, ge=2, le=64, description="longest side of the geometric cells, cells")
    min_pixels: int = Field(6, ge=1, description="px of the stored frame; a smaller mask counts as not seen")
    frames: int = Field(32, ge=4, le=512, description="frames sampled uniformly from an annotated log")
    max_distance: float = Field(60.0, gt=0, description="m; farther things of an annotated log count as not seen")
    max_objects: int = Field(24, ge=1, le=256, description="objects kept per clip, those seen in most frames first")
    moving_share: float = Field(
        0.05, gt=0, description="an object moves if its path spans more than this share of its distance"
    )
    classical: ClassicalParameters = Field(default_factory=ClassicalParameters, description="classical estimator")
    foundation: FoundationParameters = Field(default_factory=FoundationParameters, description="foundation estimator")
    fitness: FitnessParameters = Field(default_factory=FitnessParameters, description="scenes fit for questions")

    def deciding(self) -> dict[str, Any]:
        """What decides a record, as plain values: weights and answers count by content, not by where they lie."""
        tree = self.model_dump(mode="json", exclude={"fitness": True, "foundation": {*WEIGHTS, "device", "endpoint"}})
        tree["foundation"]["text_model"] = self.foundation.endpoint.model
        return tree
