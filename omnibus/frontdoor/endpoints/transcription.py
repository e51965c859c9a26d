"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: the text of a sound."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, NotRequired

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field
from typing_extensions import TypedDict

from omnibus.client.request_events import ClientEvent, Ended, Output, TextPiece
from omnibus.errors import InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import MediaUsage, media_usage, timing_headers, transcript, whole_answer
from omnibus.frontdoor.bodies import AskingBody, Upload, check_modality
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.endpoints.subtitles import srt, vtt
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.frontdoor.streaming import EventStream, Frames, frame
from omnibus.frontdoor.submitting import result_of, submit
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import AudioPart, Message, Request
from omnibus.wire.timed_text import TRANSCRIPT, TimedSegment, TimedText, TimedWord

router = APIRouter(route_class=BodyRoute)
_TYPES = answers_with(EVENTS, "text/plain", "text/vtt", "application/x-subrip")
GRANULARITIES = "timestamp_granularities"
Granularity = Literal["segment", "word"]


class TranscriptionBody(AskingBody):
    """A sound to write down; a form."""

    takes_forms: ClassVar[bool] = True
    called: ClassVar[Mapping[str, str]] = {"messages": "file"}
    file: Upload
    prompt: str | None = None
    """Text that the model takes for what came before: its words, its style."""
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: Annotated[float, Field(ge=0)] | None = None

    @property
    def granularities(self) -> Sequence[Granularity]:
        """The parts whose timestamps are wanted."""
        return ("segment",) if self.response_format in ("verbose_json", "srt", "vtt") else ()

    def asks_for(self) -> dict[str, object]:
        """Parameters of the stage that writes the text."""
        given = {
            "prompt": self.prompt or None,
            "temperature": self.temperature,
            GRANULARITIES: list(self.granularities),
        }
        return {name: value for name, value in given.items() if value not in (None, [])}

    def field_of(self, param: str) -> str:
        is_given = getattr(self, GRANULARITIES, None) is not None
        return "response_format" if param == GRANULARITIES and not is_given else super().field_of(param)


class SpokenLanguage(TranscriptionBody):
    """The same, with the language that is spoken."""

    language: str | None = None
    """Its code or its English name; by default the model finds out."""
    timestamp_granularities: Annotated[list[Granularity], Field(min_length=1, max_length=2)] | Granularity | None = None
    """The parts that a `verbose_json` lists with their times; by default segments."""

    @property
    def granularities(self) -> Sequence[Granularity]:
        given = self.timestamp_granularities
        return super().granularities if given is None else [given] if isinstance(given, str) else given

    def asks_for(self) -> dict[str, object]:
        return {**super().asks_for(), **({"language": self.language} if self.language else {})}


class TranscriptUsage(MediaUsage):
    """Tokens; other servers count seconds."""

    type: Literal["tokens"]


class Transcription(TypedDict):
    """The text of a sound."""

    text: str
    usage: TranscriptUsage


class SegmentOut(TypedDict):
    """A segment as OpenAI has it; what transformers does not tell is null. Times are seconds."""

    id: int
    seek: None
    start: float
    end: float
    text: str
    tokens: Sequence[int]
    temperature: float
    avg_logprob: None
    compression_ratio: float
    no_speech_prob: None


class DurationUsage(TypedDict):
    """Seconds of sound."""

    type: Literal["duration"]
    seconds: float


class VerboseTranscription(TypedDict):
    """The text of a sound with the times of its parts."""

    task: str
    language: str
    duration: float
    text: str
    segments: NotRequired[Sequence[SegmentOut]]
    words: NotRequired[Sequence[TimedWord]]
    usage: DurationUsage


class TranscriptDelta(TypedDict):
    """The next piece of the text."""

    type: Literal["transcript.text.delta"]
    delta: str


class TranscriptDone(TypedDict):
    """The whole text."""

    type: Literal["transcript.text.done"]
    text: str
    usage: TranscriptUsage


@router.post(
    "/v1/audio/transcriptions",
    responses=_TYPES,
    openapi_extra=RouteAccess.USER.stated,
)
async def create_transcription(body: SpokenLanguage, http: HttpRequest, context: Context) -> Response:
    """Write down what is spoken, in its language."""
    if body.timestamp_granularities is not None and body.response_format != "verbose_json":
        raise InvalidRequest("only a verbose_json has timestamps of parts", param=GRANULARITIES)
    return await _answer(body, http, context, "transcribe")


@router.post(
    "/v1/audio/translations",
    responses=_TYPES,
    openapi_extra=RouteAccess.USER.stated,
)
async def create_translation(body: TranscriptionBody, http: HttpRequest, context: Context) -> Response:
    """Write down in English what is spoken."""
    return await _answer(body, http, context, "translate")


async def _answer(body: TranscriptionBody, http: HttpRequest, context: Context, task: str) -> Response:
    if body.stream and body.response_format != "json":
        raise InvalidRequest("a stream is of events: leave response_format out", param="response_format")
    accepted = await submit(context, http, body, partial(transcription_request, task=task), modality="text")
    if body.stream:
        return EventStream(context, http, accepted, _as_events)
    match body.response_format:
        case "json":
            return await whole_answer(
                context, http, accepted,
                lambda outputs, _: Transcription(text=transcript(outputs), usage=_usage(outputs)),
            )  # fmt: skip
        case "verbose_json":
            return await whole_answer(context, http, accepted, lambda outputs, _: _verbose(body, outputs, task))
    result = await result_of(context, http, accepted)
    text, media_type = _as_file(body.response_format, result.outputs)
    return Response(text, headers=timing_headers(result, accepted.served.spec), media_type=media_type)


def transcription_request(body: TranscriptionBody, spec: PipelineSpec, task: str) -> Request:
    """A sound as a chat of one turn. Raises RequestError naming the field."""
    check_modality(spec, "text")
    turn = Message(role="user", content=(AudioPart(data=body.file),))
    asked = {**body.asks_for(), **({"task": task} if task == "translate" else {})}
    return body.request(spec, ("text",), text=asked, messages=(turn,))


def _as_file(wanted: str, outputs: Iterable[Output]) -> tuple[str, str]:
    """The text, or its subtitles, and the media type of that."""
    if wanted == "text":
        return transcript(outputs) + "\n", "text/plain"
    segments = _timed(outputs).segments
    return (srt(segments), "application/x-subrip") if wanted == "srt" else (vtt(segments), "text/vtt")


def _timed(outputs: Iterable[Output]) -> TimedText:
    """The parts of the text with their times; raises InvalidRequest for a model that did not give them."""
    fields = next((output.fields for output in outputs if output.modality == "text"), {})
    if TRANSCRIPT not in fields:
        raise InvalidRequest("this model gives no timestamps: ask for json or text", param=GRANULARITIES)
    return TimedText.of(fields[TRANSCRIPT])


def _verbose(body: TranscriptionBody, outputs: Sequence[Output], task: str) -> VerboseTranscription:
    timed = _timed(outputs)
    answer = VerboseTranscription(
        task=task, language=timed.language, duration=timed.duration, text=transcript(outputs),
        usage=DurationUsage(type="duration", seconds=timed.duration),
    )  # fmt: skip
    if "segment" in body.granularities:
        answer["segments"] = [_segment(n, one, body.temperature or 0.0) for n, one in enumerate(timed.segments)]
    if "word" in body.granularities:
        answer["words"] = timed.words
    return answer


def _segment(number: int, one: TimedSegment, temperature: float) -> SegmentOut:
    raw = one.text.encode()
    return SegmentOut(
        id=number, seek=None, start=one.start, end=one.end, text=one.text, tokens=one.tokens, temperature=temperature,
        avg_logprob=None, compression_ratio=round(len(raw) / len(zlib.compress(raw)), 3), no_speech_prob=None,
    )  # fmt: skip


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
