"""What the routes that order replicas about take and answer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from omnibus.frontdoor.schemas.common import NAME_LENGTH, Answer, ErrorDetail


class ControlBody(BaseModel):
    """Whom an order is for. It may hold nothing else: where nothing is said it means all stages, and so would a typo."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)] | None = None
    stage_ids: list[int] | None = None


class PauseBody(ControlBody):
    """The query of `POST /pause`."""

    mode: str = "abort"
    clear_cache: bool = True


class WakeBody(ControlBody):
    """`POST /v1/omni/wakeup`."""

    model_config = ConfigDict(strict=True)


class SleepBody(WakeBody):
    """`POST /v1/omni/sleep`."""

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
