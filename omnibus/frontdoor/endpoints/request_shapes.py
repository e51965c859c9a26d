"""The bodies of a request by its id: where it is, its outputs, its attempts that failed."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from omnibus.client.request_events import Output, Result
from omnibus.frontdoor.answers import Usage, usage
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.error_answers import ErrorDetail, error_detail
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.envelope import StageTiming
from omnibus.wire.failed_attempt import Attempt


class OutputItem(TypedDict):
    """One text or one file."""

    media_type: str
    text: NotRequired[str | None]
    data: NotRequired[str | None]
    """Base64 of a file."""


class RequestOutput(TypedDict):
    stage: str
    modality: str
    finish_reason: str
    usage: Usage
    items: list[OutputItem]


class StageSeconds(TypedDict):
    stage: str
    queued: float
    """Seconds from the task's publishing to its start."""
    running: float


class FailedAttempt(TypedDict):
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


class RequestAnswer(TypedDict):
    """A request by its id: where it is, and its outputs."""

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


def request_answer(result: Result, spec: PipelineSpec, model: str) -> RequestAnswer:
    """A request's record as a body."""
    return RequestAnswer(
        id=result.rid,
        object="request",
        model=model,
        status=result.state.value,
        created=int(result.created),
        outputs=[request_output(output, spec) for output in result.outputs],
        error=error_detail(result.failure.exception()) if result.failure is not None else None,
        stages=[_seconds(timing, spec) for timing in result.timings],
        attempts=[failed_attempt(attempt, spec) for attempt in result.attempts],
    )


def request_output(output: Output, spec: PipelineSpec) -> RequestOutput:
    """A delivered output as a body."""
    return RequestOutput(
        stage=spec.stage_name(output.stage_id),
        modality=output.modality,
        finish_reason=output.finish_reason,
        usage=usage([output]),
        items=[_item(item, output) for item in output.items],
    )


def _item(item: bytes, output: Output) -> OutputItem:
    if output.modality == "text":
        return OutputItem(media_type=output.media_type, text=item.decode())
    return OutputItem(media_type=output.media_type, data=to_base64(item))


def _seconds(timing: StageTiming, spec: PipelineSpec) -> StageSeconds:
    queued, running = timing.seconds
    return StageSeconds(stage=spec.stage_name(timing.stage_id), queued=queued, running=running)


def failed_attempt(attempt: Attempt, spec: PipelineSpec) -> FailedAttempt:
    """An attempt as a body."""
    return FailedAttempt(
        stage=spec.stage_name(attempt.stage_id), run=attempt.run, delivery=attempt.delivery, at=attempt.at,
        replica=attempt.replica, code=attempt.code, message=attempt.message,
    )  # fmt: skip
