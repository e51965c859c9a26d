"""`POST /v1/audio/speech`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from omnibus.errors import EngineError
from omnibus.frontdoor.answers import timing_headers
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.mapping.asking import speech_request
from omnibus.frontdoor.schemas.speech import SpeechBody
from omnibus.frontdoor.submitting import result_of, submit
from omnibus.frontdoor.transcoding import transcoded

router = APIRouter()


@router.post("/v1/audio/speech")
async def create_speech(body: SpeechBody, http: Request, context: Context) -> Response:
    """Speak a text: the answer is the sound file itself."""
    served = await context.models.find(body.model, modality="audio")
    accepted = await submit(context, http, served, speech_request(body, served.spec))
    result = await result_of(context, http, accepted)
    sound = next((output for output in result.outputs if output.modality == "audio" and output.items), None)
    if sound is None:
        raise EngineError("the pipeline delivered no audio")
    sound = await transcoded(sound, audio=body.response_format)
    return Response(sound.items[0], headers=timing_headers(result, served.spec), media_type=sound.media_type)
