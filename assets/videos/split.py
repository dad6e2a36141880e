"""Which side of the wall between training, validation and benchmark a source video stands on."""

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "val", "bench"]


class SplitParameters(BaseModel):
    """Shares of source videos per side, and the salt that decides who goes where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: float = Field(0.7, ge=0, le=1, description="Share of source videos that may be trained on.")
    val: float = Field(0.1, ge=0, le=1, description="Share of source videos for validation.")
    bench: float = Field(0.2, ge=0, le=1, description="Share of source videos for the benchmark.")
    salt: str = Field("dsr", description="Another salt deals the source videos anew.")

    @model_validator(mode="after")
    def _shares_make_one(self) -> "SplitParameters":
        total = self.train + self.val + self.bench
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + bench make {total:g}, not 1: change one of the three shares")
        return self


def split_of(source: str, parameters: SplitParameters) -> Split:
    """Side of the wall for one source video, a pure function of its id and the salt.

    Args:
        source: id of the source video (a clip's SHA-256 for now). All clips of one source share a side.
        parameters: shares and salt.

    Returns:
        "train", "val" or "bench". Adding videos never moves one that was already there.
    """
    digest = hashlib.sha256(f"{parameters.salt}|{source}".encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "little") / 2**64
    if position < parameters.bench:
        return "bench"
    return "val" if position < parameters.bench + parameters.val else "train"
