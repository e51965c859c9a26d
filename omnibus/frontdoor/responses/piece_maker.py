"""The pieces of a response's log, made of what comes of its request."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omnibus.client.request_events import (
    ABORT,
    ClientEvent,
    Ended,
    FieldPiece,
    Output,
    OutputArrived,
    Result,
    StepProgress,
    TextPiece,
)
from omnibus.errors import OmnibusError
from omnibus.frontdoor.answers import finish_reason, usage
from omnibus.frontdoor.endpoints.images import Previews
from omnibus.frontdoor.responses.log_pieces import (
    OTHER_TEXT,
    PictureBegun,
    PictureMade,
    PicturePreview,
    Piece,
    ResponseEnd,
    TextFinished,
    TextGrown,
    TextReplaced,
    WorkBegun,
)
from omnibus.frontdoor.responses.response_fold import ResponseFold
from omnibus.frontdoor.streaming import sliced
from omnibus.pipeline.route import Route
from omnibus.requests.state import RequestState
from omnibus.wire.fields import LOGPROBS, PROMPT_LOGPROBS, choice_of

IMAGE_TOOL = "image_generation"
_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by the reason for which its text ended."""
_CUT_OFF = {ABORT, *_REASONS}
"""Reasons after which a text is not whole."""
_CODES = {429: "rate_limit_exceeded"}
"""Codes of errors that clients know, by the status; any other is a fault of the prompt or of the server."""


class PieceMaker:
    """Makes pieces of one request's events. What the log has, of an earlier attempt to follow it, is left out."""

    def __init__(self, route: Route, fold: ResponseFold, tools: Iterable[Mapping[str, Any]]) -> None:
        """`fold` is of the log as it is at the beginning."""
        finals = route.finals
        tool = next((tool for tool in tools if tool["type"] == IMAGE_TOOL), {})
        self._live = next((stage.stage_id for stage in finals if stage.final == "text"), None)
        self._painters = {stage.stage_id for stage in finals if stage.final == "image"}
        self._format: str = tool.get("output_format") or "png"
        self._previews = Previews(tool.get("partial_images") or 0, fold.previews)
        self._logged = {name: text.getvalue() for name, text in fold.shown.items()}
        self._new: defaultdict[str, list[str]] = defaultdict(list)
        """Pieces that were made of each text."""
        self._come, self._diverged = Counter[str](), set[str]()
        """Characters of each text that came, and texts that do not go on from what the log has."""
        self._pictures, self._logged_pictures = 0, fold.pictures
        self._is_painting, self._has_begun = fold.is_painting, fold.status != "queued"

    async def pieces(self, event: ClientEvent) -> Sequence[Piece]:
        """The pieces that an event brings; raises EngineError for a picture that cannot be read."""
        begun: list[Piece] = [] if self._has_begun else [WorkBegun()]
        self._has_begun = True
        return [*begun, *await self._of(event)]

    async def _of(self, event: ClientEvent) -> Sequence[Piece]:
        match event:
            case TextPiece(stage_id, text):
                return self._grown("" if stage_id == self._live else f"{OTHER_TEXT}{stage_id}", text)
            case FieldPiece(stage_id, name, text):
                is_own = stage_id == self._live and choice_of(name)[0] == 0 and name != PROMPT_LOGPROBS
                return self._grown(name, text) if is_own else ()
            case StepProgress(stage_id) if stage_id in self._painters and self._pictures >= self._logged_pictures:
                begun, self._is_painting = [PictureBegun()] * (not self._is_painting), True
                return [*begun, *await self._preview(event)]
            case OutputArrived(output=output) if output.modality == "image":
                return await self._painted(output)
            case OutputArrived(output=output) if output.modality == "text":
                return self._finished(output)
            case Ended(result=result):
                return [end_of(result)]
        return ()

    def _grown(self, name: str, text: str) -> Sequence[Piece]:
        """The new part of a piece, in pieces of one event each."""
        start = self._come[name]
        self._come[name] += len(text)
        known = self._logged.get(name, "")[start : start + len(text)]
        if name in self._diverged or not text.startswith(known):
            self._diverged.add(name)
            return ()
        new = text[len(known) :]
        if not new:
            return ()
        self._new[name].append(new)
        return [TextGrown(new, name)] if name == LOGPROBS else [TextGrown(piece, name) for piece in sliced(new)]

    def _finished(self, output: Output) -> Sequence[Piece]:
        """The texts of an output that are not what was shown, and that it is whole."""
        if output.stage_id != self._live:
            whole = {f"{OTHER_TEXT}{output.stage_id}": output.text}
        else:
            whole = {"": output.text, **output.fields}
        shown = {name: self._logged.get(name, "") + "".join(self._new[name]) for name in whole}
        changed = [TextReplaced(text, name) for name, text in whole.items() if shown[name] and shown[name] != text]
        return [*changed, TextFinished()] if output.finish_reason not in _CUT_OFF else changed

    async def _preview(self, event: StepProgress) -> Iterable[Piece]:
        if event.preview is None or self._previews.take(event.step, event.total) is None:
            return ()
        data, _ = await asyncio.to_thread(_converted, event.preview, self._format)
        return [PicturePreview(data, self._format)]

    async def _painted(self, output: Output) -> Sequence[Piece]:
        made, self._is_painting = list[Piece](), False
        for item in output.items:
            self._pictures += 1
            if self._pictures > self._logged_pictures:
                data, size = await asyncio.to_thread(_converted, item, self._format)
                made.append(PictureMade(data, self._format, size))
        return made


def end_of(result: Result) -> ResponseEnd:
    """The last piece of a request that has ended."""
    totals = usage_of(result.outputs) if result.outputs else None
    if result.state is RequestState.CANCELLED:
        return ResponseEnd(status="cancelled", at=_ended_at(result), usage=totals)
    if result.failure is not None:
        return failed(result.failure.exception(), _ended_at(result), totals)
    reason = _REASONS.get(finish_reason(result.outputs))
    return ResponseEnd(
        status="completed" if reason is None else "incomplete", at=_ended_at(result), usage=totals, reason=reason
    )


def failed(error: OmnibusError, at: float, totals: dict[str, Any] | None = None) -> ResponseEnd:
    """The last piece of a response that failed."""
    usual = "invalid_prompt" if error.http_status < 500 else "server_error"
    detail = {
        "code": _CODES.get(error.http_status, usual), "message": error.message, "type": error.code, "param": error.param
    }  # fmt: skip
    return ResponseEnd(status="failed", at=at, usage=totals, error=detail)


def usage_of(outputs: Sequence[Output]) -> dict[str, Any]:
    """Tokens, as responses have them."""
    total = usage(outputs)
    cached = next((output.usage.cached_tokens for output in outputs if output.usage.prompt_tokens), 0)
    return {
        "input_tokens": total["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": total["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": sum(output.usage.reasoning_tokens for output in outputs)},
        "total_tokens": total["total_tokens"],
    }


def events_of(result: Result) -> Iterable[ClientEvent]:
    """The events of a request of which nothing was followed but its end."""
    for output in result.outputs:
        if output.modality == "text":
            before = ("reasoning", LOGPROBS)
            early = [(name, text) for name, text in output.fields.items() if name in before]
            late = [(name, text) for name, text in output.fields.items() if name not in before]
            yield from (FieldPiece(output.stage_id, name, text) for name, text in early)
            if output.text:
                yield TextPiece(output.stage_id, output.text)
            yield from (FieldPiece(output.stage_id, name, text) for name, text in late)
        yield OutputArrived(output)
    yield Ended(result)


def _ended_at(result: Result) -> float:
    return max((timing.finished for timing in result.timings), default=result.created)


def _converted(data: bytes, image_format: str) -> tuple[bytes, str]:
    """A picture in a format, and its size."""
    from omnibus.media import pictures  # noqa: PLC0415 only pictures load their library

    picture = pictures.opened(data)
    return pictures.converted(data, image_format), f"{picture.width}x{picture.height}"
