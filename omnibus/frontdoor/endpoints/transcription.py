"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: the text of a sound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field
from starlette.responses import PlainTextResponse
from typing_extensions import TypedDict

from omnibus.client.request_events import ClientEvent, Ended, Output, TextPiece
from omnibus.errors import InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import MediaUsage, media_usage, timing_headers, transcript, whole_answer
from omnibus.frontdoor.bodies import AskingBody, Upload, check_modality
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.streaming import EventStream, Frames, frame
from omnibus.frontdoor.submitting import result_of, submit
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import AudioPart, Message, Request

router = APIRouter(route_class=BodyRoute)


class TranscriptionBody(AskingBody):
    """A sound to write down; a form."""

    takes_forms: ClassVar[bool] = True
    called: ClassVar[Mapping[str, str]] = {"messages": "file"}
    file: Upload
    prompt: str | None = None
    """Text that the model takes for what came before: its words, its style."""
    response_format: Literal["json", "text"] = "json"
    temperature: Annotated[float, Field(ge=0)] | None = None

    def asks_for(self) -> dict[str, object]:
        """Parameters of the stage that writes the text."""
        given = {"prompt": self.prompt or None, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}


class SpokenLanguage(TranscriptionBody):
    """The same, with the language that is spoken."""

    language: str | None = None
    """Its code or its English name; by default the model finds out."""

    def asks_for(self) -> dict[str, object]:
        return {**super().asks_for(), **({"language": self.language} if self.language else {})}


class TranscriptUsage(MediaUsage):
    """Tokens; other servers count seconds."""

    type: Literal["tokens"]


class Transcription(TypedDict):
    """The text of a sound."""

    text: str
    usage: TranscriptUsage


class TranscriptDelta(TypedDict):
    """The next piece of the text."""

    type: Literal["transcript.text.delta"]
    delta: str


class TranscriptDone(TypedDict):
    """The whole text."""

    type: Literal["transcript.text.done"]
    text: str
    usage: TranscriptUsage


@router.post("/v1/audio/transcriptions", openapi_extra=RouteAccess.USER.stated)
async def create_transcription(body: SpokenLanguage, http: HttpRequest, context: Context) -> Response:
    """Write down what is spoken, in its language."""
    return await _answer(body, http, context, "transcribe")


@router.post("/v1/audio/translations", openapi_extra=RouteAccess.USER.stated)
async def create_translation(body: TranscriptionBody, http: HttpRequest, context: Context) -> Response:
    """Write down in English what is spoken."""
    return await _answer(body, http, context, "translate")


async def _answer(body: TranscriptionBody, http: HttpRequest, context: Context, task: str) -> Response:
    if body.stream and body.response_format != "json":
        raise InvalidRequest("a stream is of events: leave response_format out", param="response_format")
    accepted = await submit(context, http, body, partial(transcription_request, task=task), modality="text")
    if body.stream:
        return EventStream(context, http, accepted, _as_events)
    if body.response_format == "text":
        result = await result_of(context, http, accepted)
        return PlainTextResponse(
            transcript(result.outputs) + "\n", headers=timing_headers(result, accepted.served.spec)
        )
    return await whole_answer(
        context, http, accepted,
        lambda outputs: Transcription(text=transcript(outputs), usage=_usage(outputs)),
    )  # fmt: skip


def transcription_request(body: TranscriptionBody, spec: PipelineSpec, task: str) -> Request:
    """A sound as a chat of one turn. Raises RequestError naming the field."""
    check_modality(spec, "text")
    turn = Message(role="user", content=(AudioPart(data=body.file),))
    asked = {**body.asks_for(), **({"task": task} if task == "translate" else {})}
    return body.request(spec, ("text",), text=asked, messages=(turn,))


def _usage(outputs: Iterable[Output]) -> TranscriptUsage:
    return TranscriptUsage(type="tokens", **media_usage(outputs))


async def _as_events(event: ClientEvent, frames: Frames) -> None:
    match event:
        case TextPiece(text=text):
            delta = TranscriptDelta(type="transcript.text.delta", delta=text)
            frames.append(frame(delta, event=delta["type"]))
        case Ended(result=result):
            result.raise_for_state()
            done = TranscriptDone(
                type="transcript.text.done", text=transcript(result.outputs), usage=_usage(result.outputs)
            )
            frames.append(frame(done, event=done["type"]))
