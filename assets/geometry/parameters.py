"""Parameters of the geometry link."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

EstimatorName = Literal["rendered", "annotated", "classical"]


class ClassicalParameters(BaseModel):
    """What the classical estimator takes for support, and where it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    work_side: int = Field(512, ge=128, le=2048, description="longest side, px, at which corners are tracked")
    corners: int = Field(600, ge=100, le=5000, description="corners tracked at a time")
    min_frames: int = Field(6, ge=3, description="fewer sampled frames are refused")
    min_sharpness: float = Field(
        12.0, gt=0, description="median variance of the Laplacian at the working size; less is refused as blurred"
    )
    cut_survival: float = Field(
        0.1, gt=0, lt=1, description="share of corners that must survive to the next frame, else a shot cut"
    )
    static_pixels: float = Field(
        1.0, gt=0, description="px at the working size; a camera whose background moves less is static"
    )
    inlier_pixels: float = Field(1.5, gt=0, description="px at the working size; reprojection error of an inlier")
    rotation_share: float = Field(
        0.75, gt=0, le=1, description="share of tracks a pure rotation may explain before parallax is denied"
    )
    min_angle: float = Field(2.0, gt=0, description="degrees; median triangulation angle a model must reach")
    min_points: int = Field(60, ge=20, description="static points a model must hold")
    min_inliers: float = Field(0.7, gt=0, lt=1, description="share of tracked corners the model must explain")
    moving_pixels: float = Field(
        2.5, gt=0, description="px at the working size; a track this far from what the camera explains moves"
    )
    min_object_share: float = Field(
        0.002, gt=0, lt=1, description="share of the frame a moving region must cover to count"
    )
    agreement_degrees: float = Field(
        2.0, gt=0, description="degrees by which half of the corners may turn the cameras that all of them give"
    )
    agreement_share: float = Field(
        0.1, gt=0, description="share of the camera's path by which half of the corners may move it"
    )
    evaluations: int = Field(30, ge=1, le=500, description="steps of bundle adjustment")


class GeometryParameters(BaseModel):
    """How scene records are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimators: tuple[EstimatorName, ...] = Field(
        ("rendered", "annotated", "classical"),
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
