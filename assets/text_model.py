"""A text model behind an OpenAI-compatible address: what a user may tune about it, and the way to it.

What it says decides nothing unseen: whoever asks it checks the answer.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from assets.workspace import Workspace

if TYPE_CHECKING:
    from models.endpoint import Endpoint


class TextModelParameters(BaseModel):
    """A text model behind an OpenAI-compatible endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field("http://localhost:8000/v1", description="base URL of the chat-completions interface")
    model: str = Field("", description="name of the model there; empty asks nothing")
    api_key_variable: str = Field(
        "OPENAI_API_KEY", pattern=r"^[A-Z][A-Z0-9_]*$", description="environment variable that holds the key"
    )
    attempts: int = Field(4, ge=1, le=20, description="tries per question, with growing pauses")
    timeout_s: float = Field(60.0, gt=0, description="seconds one try may take")
    max_requests: int = Field(1000, ge=0, description="requests one process may make")
    answers: str = Field(
        ".cache/answers", min_length=1, description="folder of kept answers, inside the workspace unless absolute"
    )

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        """A web address that carries no secret: parameters are recorded with every run."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("an http or https address without user or password")
        return url


@lru_cache(maxsize=4)
def open_text_model(options: TextModelParameters) -> Endpoint:
    """The way to the model, one per process, so that its budget is the run's.

    Raises:
        assets.workspace.WorkspaceError: answers are to be kept in the workspace, and there is none.
    """
    from models.endpoint import Endpoint

    answers = Path(options.answers)
    return Endpoint(
        options.url,
        options.model,
        api_key_variable=options.api_key_variable,
        attempts=options.attempts,
        timeout_s=options.timeout_s,
        max_requests=options.max_requests,
        cache=answers if answers.is_absolute() else Workspace.find().root / answers,
    )
