"""Bodies of the routes that order replicas about."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from omnibus.frontdoor.schemas.common import NAME_LENGTH, Answer, Body, ErrorDetail


class SleepBody(Body):
    """`POST /v1/omni/sleep`, and without `level` and `mode` `/v1/omni/wakeup`."""

    model: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)] | None = None
    stage_ids: list[int] | None = None
    level: int = 1
    mode: str = "abort"


class ReplicaReply(Answer):
    """What one replica said."""

    stage: str
    replica: str
    value: Any = None
    error: ErrorDetail | None = None


class ControlAnswer(Answer):
    """What all of them said."""

    object: str
    method: str
    complete: bool
    replicas: list[ReplicaReply]
    unanswered: list[str]
    """`<stage>.<replica>` of those that said nothing in time."""
