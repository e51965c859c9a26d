"""Flows on a real broker, in few words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from omnibus.broker.connection import Connection
from omnibus.broker.layout import Layout, ensure_layout, layout_of
from omnibus.flows.flow_name import FlowName
from omnibus.flows.pacing import Pacing
from omnibus.flows.reader import FlowReader
from omnibus.flows.writer import FlowWriter
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import stores
from omnibus.wire.chunk import FlowEnd
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payload, Payloads

END = FlowEnd(finish_reason="stop")
SOON = 60.0


async def lay_out_flows(conn: Connection, pipeline: str) -> None:
    """Make the stream of a pipeline's flows, and nothing else."""
    stage = StageSpec(stage_id=0, name="talker", engine="sim", final_output=True, final_output_type="audio")
    layout = layout_of(PipelineSpec(name=pipeline, stages=(stage,)))
    chunks = tuple(stream for stream in layout.streams if stream.name == stores.chunks_stream(pipeline))
    await ensure_layout(conn, Layout(chunks, ()))


def flow_of(pipeline: str, rid: str = "r", run: int = 1) -> FlowName:
    return FlowName(pipeline, rid, "nonce", run, 0, "talker")


def fence(task_seq: int = 1, delivery: int = 1) -> Fence:
    return Fence(1, task_seq, delivery)


def chunk(text: str) -> Payloads:
    return {"text": Payload.inline(text.encode(), "text/plain")}


def texts(chunks: Sequence[Payloads]) -> list[str]:
    return [(one["text"].data or b"").decode() for one in chunks]


async def nothing() -> None:
    return


def writer_of(
    conn: Connection, name: FlowName, at: Fence | None = None,
    *, readers: Sequence[int] = (), lease: float = SOON, most: int = 1 << 30,
    on_begun: Callable[[], Awaitable[None]] = nothing,
) -> FlowWriter:  # fmt: skip
    pacing = Pacing(conn, name, readers, lease=lease)
    return FlowWriter(conn, name, at or fence(), pacing=pacing, most=most, on_begun=on_begun)


@asynccontextmanager
async def reading(
    conn: Connection, name: FlowName, reader: int | None = None, *, lease: float = SOON
) -> AsyncIterator[FlowReader]:
    async with FlowReader(conn, name, deadline=conn.clock.now() + SOON, reader=reader, lease=lease) as made:
        yield made


async def read_all(conn: Connection, name: FlowName) -> list[str]:
    """The texts of a flow, to its end."""
    found: list[str] = []
    async with reading(conn, name) as reader:
        while True:
            part = await reader.read()
            found[part.first :] = texts(part.chunks)
            if part.end is not None:
                return found
