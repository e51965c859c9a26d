"""Requests with an open input, and what is seen of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from types import MappingProxyType
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.client.producer import Producer, Submission
from omnibus.client.request_events import ClientEvent, SegmentFinished, TextPiece
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import stores
from omnibus.wire.request import Request, Segment
from tests.support.flow import serving
from tests.support.waiting import eventually

LONG = 30.0
END = Segment(end=True)


def pipeline_of(
    name: str, function: str = "echo", outputs: Mapping[str, str] = MappingProxyType({"text": "text"}), **fields: Any
) -> PipelineSpec:
    final, kind = not fields.get("edges"), next(iter(outputs.values()))
    ear = StageSpec(
        stage_id=0, name="ear", engine="python", model=f"tests.support.listening_stages:{function}", slots=4,
        engine_args={"outputs": dict(outputs)}, final_output=final, final_output_type=kind if final else None,
    )  # fmt: skip
    more = {"deadline": LONG, "heartbeat_timeout": 1.0, "input_timeout": LONG, "stages": (ear,)}
    return PipelineSpec(name=name, **{**more, **fields, "stages": (ear, *fields.get("stages", ()))})


def said(text: str, *, end: bool = False) -> Segment:
    return Segment(prompt=text, end=end)


@asynccontextmanager
async def session(
    connection: Connection, spec: PipelineSpec, first: str = "hello"
) -> AsyncIterator[tuple[Producer, Submission]]:
    async with serving(connection, spec) as producer:
        yield producer, await producer.submit(spec, Request(prompt=first, resumable=True))


class Heard:
    """The events of a submission, collected by a task."""

    def __init__(self, submission: Submission) -> None:
        self.events: list[ClientEvent] = []
        self.task = asyncio.create_task(self._collect(submission))

    async def _collect(self, submission: Submission) -> None:
        async with aclosing(submission.events()) as events:
            async for event in events:
                self.events.append(event)

    @property
    def segments(self) -> list[str]:
        """The text of each segment that has finished, and what follows."""
        texts = [""]
        for event in self.events:
            if isinstance(event, TextPiece):
                texts[-1] += event.text
            elif isinstance(event, SegmentFinished):
                assert event.number == len(texts) - 1
                texts.append("")
        return texts

    async def until(self, *segments: str) -> None:
        await eventually(lambda: self.segments == [*segments, ""], LONG, what=f"{segments}")


async def nothing_stays(connection: Connection, spec: PipelineSpec) -> None:
    async def is_empty() -> bool:
        info = await connection.api(f"STREAM.INFO.{stores.chunks_stream(spec.name)}")
        return int(info["state"]["messages"]) == 0

    await eventually(is_empty, LONG, what="no segment stays")
