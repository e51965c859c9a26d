"""`POST /v1/audio/speech`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec.structs import replace
from pydantic import Field
from typing_extensions import TypedDict

from omnibus.client.request_events import ClientEvent, Ended, MediaPiece, OutputArrived
from omnibus.errors import EngineError, InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import MediaUsage, stages_usage, timing_headers, transcoded
from omnibus.frontdoor.bodies import AskingBody, Voice, check_modality, single_turn, voice_name
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.live_sound import LiveSound, pieces_of
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.frontdoor.streaming import EventStream, FileStream, Frames, frame
from omnibus.frontdoor.submitting import result_of, submit
from omnibus.frontdoor.voices import Speaking
from omnibus.media.sound_formats import FORMATS
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

SpeechFormat = Literal["wav", "pcm", "flac", "mp3", "opus", "aac"]
_UNPACKED = ("wav", "pcm")
"""Formats that no encoder holds samples of back."""
_SILENT = "the pipeline delivered no audio"
router = APIRouter(route_class=BodyRoute)
_TYPES = answers_with(EVENTS, *{one.media_type for one in FORMATS.values()})


class SpeechBody(AskingBody):
    """A text to speak."""

    called: ClassVar[Mapping[str, str]] = {"messages": "input", "prompt": "input"}
    input: str
    voice: Voice | None = None
    instructions: str | None = None
    speed: Annotated[float, Field(ge=0.25, le=4)] | None = None
    """Both where the pipeline can."""
    response_format: SpeechFormat = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    """The file itself, or events with pieces of it."""
    stream: bool | None = None
    """False: the file comes whole, with its length and the times of the stages. True: samples that play from the first on."""


class SpeechDelta(TypedDict):
    """The next bytes of the sound."""

    type: Literal["speech.audio.delta"]
    audio: str


class SpeechDone(TypedDict):
    """The sound is complete."""

    type: Literal["speech.audio.done"]
    usage: MediaUsage


@router.post("/v1/audio/speech", response_class=Response, responses=_TYPES, openapi_extra=RouteAccess.USER.stated)
async def create_speech(body: SpeechBody, http: HttpRequest, context: Context) -> Response:
    """Speak a text: the answer is the sound file itself, sent while it is made, or events with its pieces."""
    if body.stream is False and body.stream_format == "sse":
        raise InvalidRequest("events are a stream: leave stream out, or take the file", param="stream_format")
    if body.stream and body.response_format not in _UNPACKED:
        message = (
            f"stream: true is for wav and pcm: leave it out, and {body.response_format} is sent while it is made too"
        )
        raise InvalidRequest(message, param="response_format")
    accepted = await submit(context, http, body, speech_request, modality="audio")
    if body.stream is False:
        result = await result_of(context, http, accepted)
        sound = next((output for output in result.outputs if output.modality == "audio" and output.items), None)
        if sound is None:
            raise EngineError(_SILENT)
        sound = await transcoded(sound, audio=body.response_format)
        headers = timing_headers(result, accepted.served.spec)
        return Response(sound.items[0], headers=headers, media_type=sound.media_type)
    speech = Speech(body.response_format)
    if body.stream_format == "sse":
        return EventStream(context, http, accepted, speech.as_events)
    return FileStream(context, http, accepted, speech.as_file, FORMATS[body.response_format].media_type)


def speech_request(body: SpeechBody, spec: PipelineSpec) -> Request:
    """A text to speak, as a chat of one turn. Raises RequestError naming the field."""
    check_modality(spec, "audio")
    speaking = Speaking(voice=voice_name(body.voice), instructions=body.instructions, speed=body.speed)
    request = body.request(spec, ("audio",), messages=single_turn(body.input, "input"), speaking=speaking)
    return replace(request, stream=body.stream is not False)


class Speech:
    """The sound of one answer on its way."""

    def __init__(self, wanted: str) -> None:
        self._sound, self._has_ended = LiveSound(wanted), False

    async def as_file(self, event: ClientEvent, frames: Frames) -> None:
        """Append the bytes of an event; raises the error of a request that fails, and EngineError where there is no sound."""
        match event:
            case MediaPiece():
                frames.append(await self._sound.piece(event))
            case OutputArrived(output=output) if output.items and self._sound.is_of(output.stage_id):
                frames += (await self._sound.ready(output)).items[:1]
                self._has_ended = True
            case Ended(result=result):
                result.raise_for_state()
                if not self._has_ended:
                    raise EngineError(_SILENT)

    async def as_events(self, event: ClientEvent, frames: Frames) -> None:
        """The same as server-sent events."""
        made: Frames = []
        await self.as_file(event, made)
        for data in pieces_of(b"".join(made)):
            delta = SpeechDelta(type="speech.audio.delta", audio=to_base64(data))
            frames.append(frame(delta, event=delta["type"]))
        if isinstance(event, Ended):
            done = SpeechDone(type="speech.audio.done", usage=stages_usage(event.result.timings))
            frames.append(frame(done, event=done["type"]))
