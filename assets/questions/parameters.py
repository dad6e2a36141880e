"""What a user may tune about questions."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from assets.text_model import TextModelParameters

MOST_PROPOSALS = 32


class LanguageParameters(BaseModel):
    """Questions and wordings that a text model proposes; nothing it says is taken unchecked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_model: TextModelParameters = Field(default_factory=TextModelParameters, description="Where the model answers.")
    proposals: int = Field(8, ge=0, le=MOST_PROPOSALS, description="Questions asked of the model per clip.")
    free_text: bool = Field(
        False, description="Also take questions that are no programs, if independent passes agree on the answer."
    )
    passes: int = Field(4, ge=2, le=16, description="Independent passes over noise draws that answer a free question.")
    paraphrase_share: float = Field(
        0.0, ge=0, le=1, description="Share of template questions that the model is asked to put in other words."
    )
    second_reading: bool = Field(
        True, description="The model itself may read back a paraphrase whose words our own reader does not know."
    )


class QuestionParameters(BaseModel):
    """Parameters of question derivation; the thresholds default to the paper's (section 2 of its supplement)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shrink: float = Field(0.8, gt=0, lt=1, description="Ratio below which a distance or speed became smaller.")
    growth: float = Field(1.2, gt=1, description="Ratio above which a distance or speed became larger.")
    slower: float = Field(0.83, gt=0, lt=1, description="Speed ratio below which the latter is faster.")
    faster: float = Field(1.2, gt=1, description="Speed ratio above which the former is faster.")
    axis_degrees: float = Field(
        70.0, gt=54.7, lt=90, description="A direction names every axis to which its angle is smaller than this."
    )
    still_share: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Distances below this share of the scene's scale, and speeds below it per second, count as zero.",
    )
    heading_confidence: float = Field(
        0.6, ge=0, le=1, description="Orientations of agents below this confidence are not used."
    )
    min_steps: int = Field(4, ge=1, description="Smallest number of sampled steps between the ends of an interval.")
    skip_last: int = Field(
        2, ge=0, description="So many of the last sampled timestamps never end (or start) an interval."
    )
    stride: int = Field(
        1, ge=1, description="Sampled steps per described step; coarser steps make answers of human length."
    )
    step_seconds: float = Field(
        0.5, ge=0, description="The stride grows on densely sampled clips until a described step takes about this long."
    )
    max_states: int = Field(15, ge=1, description="Answers with more merged states are dropped.")
    hidden_seconds: float = Field(
        1.0, gt=0, description="Direction prediction hides at least so many seconds at the end of the clip."
    )
    prediction_steps: int = Field(2, ge=1, description="Direction prediction spans at least so many sampled steps.")
    pool_per_type: int = Field(
        4096, ge=1, description="Candidates evaluated per clip and type; larger products are sampled down to it."
    )
    candidates_per_type: int = Field(
        40, ge=1, description="Candidates kept per clip and type, balanced by answer, for the matching of options."
    )
    draws: int = Field(16, ge=1, description="Noise draws under which every kept answer is derived again.")
    min_stability: float = Field(
        0.75, ge=0, le=1, description="Smallest share of noise draws that must give the same answer."
    )
    center_floor: float = Field(
        0.001, ge=0, description="Least expected error of a centre, as a share of its distance from the camera."
    )
    heading_floor_degrees: float = Field(1.0, ge=0, description="Least expected error of an agent's heading, degrees.")
    noise_correlation: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Share of the error's variance that is one offset per object and clip; the rest changes per frame.",
    )
    tolerance_ratio: float = Field(
        0.04, ge=0, lt=0.15, description="Answers under ratio thresholds moved by this are also true of a clip."
    )
    tolerance_degrees: float = Field(
        4.0, ge=0, lt=15, description="Answers under an axis angle moved by this are also true of a clip."
    )
    shortlist: int = Field(24, ge=3, description="Partners looked at for each question when options are matched.")
    interval_slack: float = Field(
        0.35,
        ge=0,
        description="Questions share options only if their intervals' lengths differ by less than this share.",
    )
    reader_epochs: int = Field(
        8, ge=0, description="Passes in which the reader that quads are built against learns from other clips; 0: none."
    )
    reader_gap: float = Field(
        0.08, gt=0, le=1, description="A quad is kept only if that reader's beliefs about its questions differ by less."
    )
    audit_steps: int = Field(
        2000, ge=1, description="Most steps in which the text transformer of the blind audit learns."
    )
    type_balance: float = Field(
        1.5, ge=1, description="A type keeps at most this many times the median type's quads within a split."
    )
    max_per_clip: int = Field(80, ge=1, description="A clip keeps at most this many finished questions.")
    pointing: Literal["names", "boxes"] = Field(
        "names",
        description="Names, and marks on the video where they are not unique; or boxes in the text as in the paper.",
    )
    name_length: int = Field(48, ge=8, description="Longest name of an object inside a question, characters.")
    language: LanguageParameters = Field(
        default_factory=LanguageParameters, description="Questions that a text model proposes; none without a model."
    )
