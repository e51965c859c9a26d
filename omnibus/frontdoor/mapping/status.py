"""How a request stands, for whoever asks by its id, and where its time went."""

from __future__ import annotations

from collections.abc import Iterable

from omnibus.client.request_events import Output, Result
from omnibus.errors import OmnibusError
from omnibus.frontdoor.mapping.answering import usage
from omnibus.frontdoor.mapping.media import to_base64
from omnibus.frontdoor.schemas.common import ErrorDetail
from omnibus.frontdoor.schemas.requests import FailedAttempt, OutputItem, RequestAnswer, RequestOutput, StageSeconds
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.attempt import Attempt
from omnibus.wire.envelope import StageTiming

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def error_detail(error: OmnibusError) -> ErrorDetail:
    """An error in OpenAI's shape."""
    return ErrorDetail(message=error.message, type=error_type(error.http_status), param=error.param, code=error.code)


def error_type(http_status: int) -> str:
    """The coarse kind of an error, as OpenAI names them."""
    coarse = "invalid_request_error" if http_status < 500 else "server_error"
    return _TYPES.get(http_status, coarse)


def request_answer(result: Result, spec: PipelineSpec, model: str) -> RequestAnswer:
    """A request's record as a body."""
    return RequestAnswer(
        id=result.rid,
        object="request",
        model=model,
        status=result.state.value,
        created=int(result.created),
        outputs=[_output(output, spec) for output in result.outputs],
        error=error_detail(result.failure.exception()) if result.failure is not None else None,
        stages=[_seconds(timing, spec) for timing in result.timings],
        attempts=[_attempt(attempt, spec) for attempt in result.attempts],
    )


def server_timing(timings: Iterable[StageTiming], spec: PipelineSpec) -> str:
    """The value of a `Server-Timing` header: a stage's time in the queue and in the engine, milliseconds."""
    metrics: list[str] = []
    for timing in timings:
        stage = _seconds(timing, spec)
        metrics.append(f"{stage.stage}-queue;dur={stage.queued * 1000:.1f}")
        metrics.append(f"{stage.stage};dur={stage.running * 1000:.1f}")
    return ", ".join(metrics)


def _output(output: Output, spec: PipelineSpec) -> RequestOutput:
    return RequestOutput(
        stage=_stage_name(spec, output.stage_id),
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
    return StageSeconds(
        stage=_stage_name(spec, timing.stage_id),
        # Clocks of two hosts may differ by more than a task waited.
        queued=max(0.0, timing.started - timing.queued),
        running=max(0.0, timing.finished - timing.started),
    )


def _attempt(attempt: Attempt, spec: PipelineSpec) -> FailedAttempt:
    return FailedAttempt(
        stage=_stage_name(spec, attempt.stage_id), run=attempt.run, delivery=attempt.delivery, at=attempt.at,
        replica=attempt.replica, code=attempt.code, message=attempt.message,
    )  # fmt: skip


def _stage_name(spec: PipelineSpec, stage_id: int) -> str:
    """The stage's name; its id when the pipeline was deployed anew without it."""
    return next((stage.name for stage in spec.stages if stage.stage_id == stage_id), str(stage_id))
