"""`POST /v1/audio/speech`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from omnibus.errors import EngineError
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import timing_headers, transcoded
from omnibus.frontdoor.bodies import AskingBody, check_modality, single_turn
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.submitting import result_of, submit
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

SpeechFormat = Literal["wav", "pcm", "flac", "mp3", "opus", "aac"]
router = APIRouter(route_class=BodyRoute)


class SpeechBody(AskingBody):
    """A text to speak."""

    called: ClassVar[Mapping[str, str]] = {"messages": "input", "prompt": "input"}
    input: str
    response_format: SpeechFormat = "mp3"
    stream: Literal[False] | None = None
    """The answer comes whole."""


@router.post("/v1/audio/speech", openapi_extra=RouteAccess.USER.stated)
async def create_speech(body: SpeechBody, http: HttpRequest, context: Context) -> Response:
    """Speak a text: the answer is the sound file itself."""
    accepted = await submit(context, http, body, speech_request, modality="audio")
    result = await result_of(context, http, accepted)
    sound = next((output for output in result.outputs if output.modality == "audio" and output.items), None)
    if sound is None:
        raise EngineError("the pipeline delivered no audio")
    sound = await transcoded(sound, audio=body.response_format)
    return Response(sound.items[0], headers=timing_headers(result, accepted.served.spec), media_type=sound.media_type)


def speech_request(body: SpeechBody, spec: PipelineSpec) -> Request:
    """A text to speak, as a chat of one turn. Raises RequestError naming the field."""
    check_modality(spec, "audio")
    return body.request(spec, ("audio",), messages=single_turn(body.input, "input"))
