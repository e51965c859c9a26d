"""Answers share these parts: tokens, the reason of the end, files in the format that the caller asked for, times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NotRequired

from fastapi import Request as HttpRequest
from fastapi import Response
from typing_extensions import TypedDict

from omnibus.client.request_events import Output, Result
from omnibus.errors import EngineError
from omnibus.frontdoor.bodies import Answer, to_json
from omnibus.frontdoor.body_route import off_loop
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.error_answers import JSON_TYPE
from omnibus.frontdoor.submitting import Accepted, result_of
from omnibus.media.sound_formats import FORMATS
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.envelope import StageTiming, TokenUsage

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})
"""Reasons that OpenAI's clients know; any other that an engine gives reads as stop."""


class CompletionDetails(TypedDict):
    """Tokens among those of the completion."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: NotRequired[CompletionDetails]
    """Where there is any reasoning."""


def usage(outputs: Iterable[Output], timings: Iterable[StageTiming] = ()) -> Usage:
    """Tokens of all delivered outputs together; the prompt's once: what later stages read, earlier ones wrote.

    Where no text is among them, those of all stages that ran, by their times: one of them wrote what another drew or spoke.
    """
    made = tuple(outputs)
    if any(output.modality == "text" for output in made):
        return _summed([output.usage for output in made])
    return _summed([timing.usage for timing in timings] or [output.usage for output in made])


def usage_of(counts: TokenUsage) -> Usage:
    """Tokens of one stage."""
    return _summed([counts])


def _summed(counts: Sequence[TokenUsage]) -> Usage:
    read = next((count.prompt_tokens for count in counts if count.prompt_tokens), 0)
    written = sum(count.completion_tokens for count in counts)
    made = Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
    if reasoning := sum(count.reasoning_tokens for count in counts):
        made["completion_tokens_details"] = CompletionDetails(reasoning_tokens=reasoning)
    return made


class MediaUsage(TypedDict):
    """The same under the names that OpenAI's images and speech have."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


def media_usage(outputs: Iterable[Output], timings: Iterable[StageTiming] = ()) -> MediaUsage:
    """Tokens of a request as `usage` has them."""
    return _renamed(usage(outputs, timings))


def stages_usage(timings: Iterable[StageTiming]) -> MediaUsage:
    """Tokens of all stages that ran, also of those that wrote what was spoken and delivered nothing."""
    return _renamed(_summed([timing.usage for timing in timings]))


def _renamed(total: Usage) -> MediaUsage:
    return MediaUsage(
        input_tokens=total["prompt_tokens"],
        output_tokens=total["completion_tokens"],
        total_tokens=total["total_tokens"],
    )


def transcript(outputs: Iterable[Output]) -> str:
    """The text among the outputs."""
    return next((output.text for output in outputs if output.modality == "text"), "")


def finish_reason(outputs: Iterable[Output]) -> str:
    """Why the text ended; stop where there is none."""
    reason = next((output.finish_reason for output in outputs if output.modality == "text"), "stop")
    return known_reason(reason)


def known_reason(reason: str) -> str:
    """The reason, where OpenAI's clients know it."""
    return reason if reason in FINISH_REASONS else "stop"


async def whole_answer(
    context: FrontDoorContext,
    http: HttpRequest,
    accepted: Accepted,
    answer: Callable[[Sequence[Output], Sequence[StageTiming]], Answer],
    *,
    audio: str | None = None,
    image: str | None = None,
) -> Response:
    """The body of JSON that `answer` makes of the outputs, their files in these formats, and of the times of the stages."""
    result = await result_of(context, http, accepted)
    outputs = [await transcoded(output, audio=audio, image=image) for output in result.outputs]
    return await json_response(
        lambda: answer(outputs, result.timings), size_of(outputs), timing_headers(result, accepted.served.spec)
    )


async def transcoded(output: Output, *, audio: str | None = None, image: str | None = None) -> Output:
    """The output with its files in these formats; an output of another modality, or already in the format, as it is.

    `audio` is one of `sound_formats.FORMATS`, or pcm16 for pcm; `image` is png, jpeg or webp. Raises EngineError for files that
    cannot be read, or that the format cannot hold.
    """
    wanted = {"audio": audio, "image": image}.get(output.modality)
    return output if wanted is None else await asyncio.to_thread(_in_format, output, wanted)


def _in_format(output: Output, wanted: str) -> Output:
    from omnibus.media import pictures, sound  # noqa: PLC0415 only outputs that are files load its libraries, 20 MiB

    if output.modality == "image":
        media_type, convert = f"image/{wanted}", pictures.converted
    else:
        wanted = wanted.removesuffix("16")
        media_type, convert = FORMATS[wanted].media_type, sound.converted
    try:
        items = tuple(convert(item, wanted) for item in output.items)
    except EngineError as error:
        raise EngineError(f"the {output.modality} of stage {output.stage_id}: {error.message}") from error
    return replace(output, media_type=media_type, items=items)


async def json_response(
    answer: Callable[[], Answer], size: int = 0, headers: Mapping[str, str] | None = None
) -> Response:
    """A body of JSON, made of `size` bytes."""
    text = await off_loop(size, lambda: to_json(answer()))
    return Response(text, headers=headers, media_type=JSON_TYPE)


async def list_response(data: Sequence[Mapping[str, object]], *, has_more: bool) -> Response:
    """A part of a list of objects, with the ids of its ends."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return await json_response(
        lambda: {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}
    )


def size_of(outputs: Iterable[Output]) -> int:
    """Bytes of all items."""
    return sum(len(item) for output in outputs for item in output.items)


def timing_headers(result: Result, spec: PipelineSpec) -> dict[str, str]:
    """`Server-Timing`, where there is anything to say."""
    timing = server_timing(result.timings, spec)
    return {"Server-Timing": timing} if timing else {}


def server_timing(timings: Iterable[StageTiming], spec: PipelineSpec) -> str:
    """The value of a `Server-Timing` header: a stage's time in the queue and in the engine, milliseconds."""
    metrics: list[str] = []
    for timing in timings:
        name, (queued, running) = spec.stage_name(timing.stage_id), timing.seconds
        metrics += (f"{name}-queue;dur={queued * 1000:.1f}", f"{name};dur={running * 1000:.1f}")
    return ", ".join(metrics)
