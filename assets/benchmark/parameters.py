"""What a user may tune about the benchmark."""

from pydantic import BaseModel, ConfigDict, Field


class BenchmarkParameters(BaseModel):
    """Parameters of evaluation and report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_clips: int = Field(4, ge=1, description="Clips answered at once; their questions share one encoding.")
    resamples: int = Field(2000, ge=200, description="Draws of clips behind every interval.")
    seed: int = Field(0, ge=0, description="Another seed draws the clips anew.")
    shuffled: bool = Field(True, description="Also ask every question about another clip, as a control.")
    calibration_bins: int = Field(10, ge=2, le=50, description="Bins of confidence between 0 and 1.")
    examples: int = Field(12, ge=0, le=24, description="Worked examples shown in the report.")
    frames_per_example: int = Field(4, ge=1, le=8, description="Frames shown with each worked example.")
    picture_width: int = Field(280, ge=64, le=640, description="Width of those frames, pixels.")
    picture_quality: int = Field(72, ge=10, le=95, description="JPEG quality of those frames.")
