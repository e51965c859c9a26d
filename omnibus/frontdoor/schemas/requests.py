"""`/v1/requests/{id}`."""

from __future__ import annotations

from typing import Literal

from omnibus.frontdoor.schemas.common import Answer, ErrorDetail, Usage


class OutputItem(Answer):
    """One text or one file."""

    media_type: str
    text: str | None = None
    data: str | None = None
    """Base64 of a file."""


class RequestOutput(Answer):
    stage: str
    modality: str
    finish_reason: str
    usage: Usage
    items: list[OutputItem]


class StageSeconds(Answer):
    stage: str
    queued: float
    """Seconds from the task's publishing to its start."""
    running: float


class FailedAttempt(Answer):
    """An attempt that came to nothing."""

    stage: str
    run: int
    delivery: int
    """Which delivery of its task it was, from 1."""
    at: float
    """Seconds since the epoch."""
    replica: str | None
    code: str
    message: str


class RequestAnswer(Answer):
    """A request by its id: where it is, and what it has delivered."""

    id: str
    object: Literal["request"]
    model: str
    status: str
    """open, done, failed, cancelled or expired."""
    created: int
    outputs: list[RequestOutput]
    error: ErrorDetail | None
    stages: list[StageSeconds]
    attempts: list[FailedAttempt]
    """Those that failed."""
