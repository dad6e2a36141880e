"""What a user may tune about videos: the rendered sample world, and how clips are sampled."""

from pydantic import BaseModel, ConfigDict, Field


class SampleWorldParameters(BaseModel):
    """The rendered sample world: how many clips, how large, how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clips: int = Field(64, ge=1, description="Clips in a rendered shard.")
    seed: int = Field(0, ge=0, description="Every scene is drawn from (shard, clip number, this seed).")
    width: int = Field(192, ge=32, le=1920, multiple_of=2, description="Picture width in pixels.")
    height: int = Field(144, ge=32, le=1080, multiple_of=2, description="Picture height in pixels.")
    # 32 frames, all of which are sampled: steps of unequal length would tell part of an answer by the clock.
    fps: int = Field(2, ge=1, le=60, description="Frames per second.")
    seconds: int = Field(16, ge=1, le=120, description="Length of a clip in seconds.")
    fewest_things: int = Field(3, ge=2, le=8, description="Fewest named things in a clip.")
    most_things: int = Field(5, ge=2, le=8, description="Most named things in a clip.")
    crf: int = Field(18, ge=0, le=51, description="x264 constant rate factor: lower is sharper and larger.")


class VideoParameters(BaseModel):
    """How raw videos become clips: sampled frames, contact sheets, and when a read is given up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int = Field(32, ge=2, le=1024, description="Most frames sampled from a clip, uniformly in time.")
    max_pixels: int = Field(
        230_400, ge=1024, description="Largest area of a sampled frame in pixels (640x360); never upscaled."
    )
    timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Seconds one native read may take before its process is ended."
    )
    cut_threshold: float = Field(
        0.3, gt=0, le=1, description="Share of pixels whose colour bin must change between neighbours for a cut."
    )
    min_seconds: float = Field(1.0, ge=0, description="Shorter clips are unfit for questions (the paper: 20).")
    max_seconds: float = Field(120.0, gt=0, description="Longer clips are unfit for questions (the paper: 120).")
    max_cuts: int = Field(0, ge=0, description="Clips with more shot cuts are unfit for questions.")
    duplicate_bits: int = Field(
        80, ge=0, le=120, description="Clips are near-duplicates if no hashed frame differs by more of its 256 bits."
    )
    sheet_frames: int = Field(8, ge=1, le=32, description="Frames shown on a clip's contact sheet.")
    sheet_bytes: int = Field(60_000, ge=4096, description="Largest contact sheet in bytes.")
