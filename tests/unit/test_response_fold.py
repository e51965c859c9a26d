"""Responses as events: in order, numbered by their log alone, and the same after any takeover."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from openai import BaseModel
from openai._models import validate_type
from openai.types.responses import Response, ResponseStreamEvent
from PIL import Image

from omnibus.client.request_events import (
    ClientEvent,
    Ended,
    FieldPiece,
    Output,
    OutputArrived,
    Result,
    StepProgress,
    TextPiece,
)
from omnibus.errors import EngineError
from omnibus.frontdoor.responses.log_pieces import AskedResponse, Piece, TextReplaced, line_of, lines_of, pieces_in
from omnibus.frontdoor.responses.piece_maker import PieceMaker, events_of
from omnibus.frontdoor.responses.response_fold import ResponseFold
from omnibus.media import pictures
from omnibus.pipeline.route import Route, RouteStage
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import TokenUsage
from omnibus.wire.failure import Failure
from omnibus.wire.payload import TEXT

pytestmark = pytest.mark.unit

PICTURE = pictures.encoded(np.zeros((16, 8, 3), np.uint8))
FIELDS = {
    "reasoning": "Hm, weather.",
    "tool_calls.0.id": "call_1", "tool_calls.0.name": "weather", "tool_calls.0.arguments": '{"city": "Paris"}',
    "tool_calls.1.id": "call_2", "tool_calls.1.name": "clock", "tool_calls.1.arguments": "{}",
}  # fmt: skip
TOOLS = [{"type": "image_generation", "partial_images": 1, "output_format": "webp"}]


def asked(*, background: bool = False, has_text: bool = True) -> AskedResponse:
    head: dict[str, Any] = {
        "id": "resp_0123", "object": "response", "created_at": 5, "model": "m", "background": background, "tools": [],
        "tool_choice": "auto", "parallel_tool_calls": True, "instructions": None, "metadata": {}, "temperature": None,
        "top_p": None,
    }  # fmt: skip
    return AskedResponse(head=head, items=[], has_text=has_text)


ROUTE = Route(
    (
        RouteStage(stage_id=0, sources=(), targets=(), final="text"),
        RouteStage(stage_id=1, sources=(0,), targets=(), final="image"),
    )
)


def text(whole: str, fields: dict[str, str] | None = None, reason: str = "stop") -> Output:
    usage = TokenUsage(3, 4, 2)
    return Output(0, "text", TEXT, (whole.encode(),), finish_reason=reason, usage=usage, fields=fields or {})


def result(*outputs: Output, state: RequestState = RequestState.DONE, failure: Failure | None = None) -> Result:
    return Result(
        rid="r", pipeline="p", state=state, created=1.0, deadline=9.0, run=1, outputs=outputs, timings=(),
        failure=failure,
    )  # fmt: skip


def streamed(piece: int) -> list[ClientEvent]:
    """The events of a request that streams, its texts in pieces of so many characters."""
    output, picture = text("It is fine.", FIELDS), Output(1, "image", "image/png", (PICTURE,))

    def cut(whole: str) -> list[str]:
        return [whole[at : at + piece] for at in range(0, len(whole), piece)]

    return [
        *(FieldPiece(0, "reasoning", one) for one in cut(FIELDS["reasoning"])),
        *(TextPiece(0, one) for one in cut(output.text)),
        *(
            FieldPiece(0, name, one)
            for name, whole in FIELDS.items() if name != "reasoning"
            for one in (cut(whole) if name.endswith("arguments") else [whole])
        ),
        OutputArrived(output),
        *(StepProgress(1, step, 4, PICTURE) for step in range(1, 5)),
        OutputArrived(picture),
        Ended(result(output, picture)),
    ]  # fmt: skip


async def pieces_of(events: Sequence[ClientEvent], fold: ResponseFold) -> list[Piece]:
    maker = PieceMaker(ROUTE, fold, TOOLS)
    return [piece for event in events for piece in await maker.pieces(event)]


def shown(start: AskedResponse, pieces: Sequence[Piece]) -> tuple[list[dict[str, Any]], ResponseFold]:
    fold = ResponseFold(start)
    events = list(fold.opening())
    for piece in pieces:
        events += fold.take(piece)
    return events, fold


def types(events: Sequence[dict[str, Any]]) -> list[str]:
    """Types in their order, repeated ones once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def as_package(event: dict[str, Any]) -> BaseModel:
    """An event as the package's types have it, all of them checked."""
    made: BaseModel = validate_type(type_=ResponseStreamEvent, value=event)
    return made


async def test_events_come_in_their_order_and_have_the_packages_shapes() -> None:
    start = asked(background=True)
    events, fold = shown(start, await pieces_of(streamed(5), ResponseFold(start)))

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert types(events) == [
        "created", "queued", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        *call, *call,
        "output_item.added", "image_generation_call.in_progress", "image_generation_call.generating",
        "image_generation_call.partial_image", "image_generation_call.completed", "output_item.done",
        "completed",
    ]  # fmt: skip
    for event in events:
        as_package(event)
    response = Response.model_validate(fold.response())
    assert [item.type for item in response.output] == [
        "reasoning", "message", "function_call", "function_call", "image_generation_call"
    ]  # fmt: skip
    assert response.output_text == "It is fine."
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (3, 4)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert [item["call_id"] for item in fold.response()["output"][2:4]] == ["call_1", "call_2"]
    item = fold.response()["output"][4]
    assert (item["size"], item["output_format"], item["status"]) == ("8x16", "webp", "completed")


async def test_readers_of_a_log_have_the_events_that_were_shown() -> None:
    start = asked()
    pieces = await pieces_of(streamed(4), ResponseFold(start))
    data = line_of(start) + b'{"t": "grown", "text": "cut off by a dea\n' + lines_of(pieces)
    first, *rest = pieces_in(data.splitlines())
    assert isinstance(first, AskedResponse)
    assert shown(first, rest)[0] == shown(start, pieces)[0]  # type: ignore[arg-type] # the first is the only of its kind


@pytest.mark.parametrize("other", [1, 3, 100])
async def test_nothing_is_missing_or_twice_wherever_another_runner_takes_over(other: int) -> None:
    start = asked(background=True)
    whole = await pieces_of(streamed(4), ResponseFold(start))
    wanted = shown(start, whole)[1].response()
    for cut in range(len(whole)):
        events, fold = shown(start, whole[:cut])
        rest = await pieces_of(streamed(other), fold)
        for piece in rest:
            events += fold.take(piece)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert fold.response() == wanted, cut
        deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        assert deltas == "It is fine."
        assert sum(event["type"].endswith("partial_image") for event in events) == 1
        assert types(events)[-1] == "completed"


async def test_a_text_that_contradicts_what_was_shown_is_in_the_end_whole() -> None:
    start = asked(background=True)
    first = await pieces_of([TextPiece(0, "It wa")], ResponseFold(start))
    _, fold = shown(start, first)
    other = text("Rain.")
    rest = await pieces_of([TextPiece(0, "Rain."), OutputArrived(other), Ended(result(other))], fold)
    assert TextReplaced("Rain.") in rest
    events, fold = shown(start, [*first, *rest])
    done = next(event for event in events if event["type"] == "response.output_text.done")
    assert done["text"] == fold.response()["output"][0]["content"][0]["text"] == "Rain."


@pytest.mark.parametrize(
    ("end", "status", "last", "item"),
    [
        (result(text("It", reason="length")), "incomplete", "incomplete", "incomplete"),
        (result(text("It", reason="abort"), state=RequestState.CANCELLED), "cancelled", "incomplete", "incomplete"),
        (
            result(state=RequestState.FAILED, failure=Failure.of(EngineError("broken"))), "failed", "failed",
            "incomplete",
        ),
    ],
)  # fmt: skip
async def test_what_does_not_complete_keeps_what_was_shown(end: Result, status: str, last: str, item: str) -> None:
    start = asked()
    events, fold = shown(start, await pieces_of([TextPiece(0, "It"), Ended(end)], ResponseFold(start)))
    response = Response.model_validate(fold.response())
    assert (response.status, response.output_text, response.output[0].status) == (status, "It", item)  # type: ignore[union-attr]
    assert types(events)[-1] == last
    as_package(events[-1])
    assert (response.error is not None) == (status == "failed")
    assert response.error is None or (response.error.code, response.error.type) == ("server_error", "engine_error")
    reason = response.incomplete_details and response.incomplete_details.reason
    assert reason == ("max_output_tokens" if status == "incomplete" else None)


async def test_an_answer_without_words_is_an_empty_message() -> None:
    start = asked()
    events, fold = shown(start, await pieces_of(list(events_of(result(text("")))), ResponseFold(start)))
    assert Response.model_validate(fold.response()).output_text == ""
    assert [item["type"] for item in fold.response()["output"]] == ["message"]
    assert types(events)[2:5] == ["output_item.added", "content_part.added", "output_text.done"]


async def test_a_whole_answer_has_the_items_of_a_streamed_one() -> None:
    start = asked()
    (ended,) = streamed(4)[-1:]
    assert isinstance(ended, Ended)
    whole = shown(start, await pieces_of(list(events_of(ended.result)), ResponseFold(start)))[1].response()
    assert whole == shown(start, await pieces_of(streamed(4), ResponseFold(start)))[1].response()
    assert Image.open(io.BytesIO(PICTURE)).size == (8, 16)
