"""Results as responses: files in the wanted format, the body, where the time went."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import Response

from omnibus.client.request_events import Output, Result
from omnibus.frontdoor.errors import JSON_TYPE
from omnibus.frontdoor.mapping.status import server_timing
from omnibus.frontdoor.schemas.common import Answer
from omnibus.frontdoor.transcoding import transcoded
from omnibus.pipeline.spec import PipelineSpec


async def transcoded_all(
    outputs: Iterable[Output], *, audio: str | None = None, image: str | None = None
) -> list[Output]:
    """Every output as `transcoded` makes it."""
    return [await transcoded(output, audio=audio, image=image) for output in outputs]


def answered(answer: Answer, result: Result, spec: PipelineSpec) -> Response:
    """A body of JSON."""
    return Response(answer.json_text(), headers=timing_headers(result, spec), media_type=JSON_TYPE)


def timing_headers(result: Result, spec: PipelineSpec) -> dict[str, str]:
    """`Server-Timing`, where there is anything to say."""
    timing = server_timing(result.timings, spec)
    return {"Server-Timing": timing} if timing else {}
