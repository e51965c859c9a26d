"""A flow as it is stored: its last message, and those behind one that is known."""

from __future__ import annotations

import base64
from contextlib import aclosing
from functools import partial

import msgspec

from omnibus.broker.connection import STREAM_FULL, Connection, ReceivedMessage, status_of
from omnibus.errors import BrokerRefused, FlowBroken, InvalidRequest, Overloaded
from omnibus.flows.flow_name import FlowName
from omnibus.wire import codec
from omnibus.wire.chunk import Chunks
from omnibus.wire.envelope import VERSION

_BEHIND = "Nats-Expected-Last-Subject-Sequence"
_BATCH = 64
_BATCH_BYTES = 4 << 20
"""Bytes of one batch: they bound what a reader has in memory."""


async def last_message(conn: Connection, name: FlowName) -> tuple[int, Chunks | None]:
    """Sequence and content of a flow's last message as the stream's leader has it; 0 and None where nothing is there.

    Raises BrokerUnavailable, and FlowBroken for a message that cannot be read.
    """
    found = await conn.find(f"STREAM.MSG.GET.{name.stream}", {"last_by_subj": name.subject})
    if found is None:
        return 0, None
    message = found["message"]
    return int(message["seq"]), _decoded(name, base64.b64decode(message.get("data", "")))


async def publish_behind(conn: Connection, name: FlowName, message: Chunks, seq: int) -> int:
    """Append a message behind the last one, which has this sequence; returns its own.

    Raises RevisionConflict when that is not the last one, Overloaded when the stream is full, BrokerUnavailable.
    """
    headers = {_BEHIND: str(seq)}
    try:
        ack = await conn.js_publish(name.subject, codec.encode(message), headers=headers)
    except BrokerRefused as refused:
        if refused.err_code != STREAM_FULL:
            raise
        raise Overloaded(f"{name.stream} is full: its bound is max_stored_bytes") from refused
    return ack.seq


def appended_behind(message: ReceivedMessage) -> int:
    """The sequence of the message that an append names as the last one, also of one that was refused; -1 for no append."""
    named = (message.headers or {}).get(_BEHIND, "")
    return int(named) if named.isdecimal() else -1


async def messages_behind(conn: Connection, name: FlowName, seq: int) -> tuple[int, list[Chunks]]:
    """The messages of a flow behind a sequence, a batch of them, and the sequence of the last one.

    From any copy of the stream, which can lag behind. Raises BrokerUnavailable, and FlowBroken.
    """
    found: dict[int, Chunks] = {}
    await conn.retried(partial(_read_batch, conn, name, seq, found))
    return max(found, default=seq), list(found.values())


async def _read_batch(conn: Connection, name: FlowName, seq: int, found: dict[int, Chunks]) -> None:
    """Fill `found`, in order; what arrived before an outage stays."""
    start = max(found, default=seq) + 1
    body = {"seq": start, "next_by_subj": name.subject, "batch": _BATCH, "max_bytes": _BATCH_BYTES}
    request = conn.request_many(f"$JS.API.DIRECT.GET.{name.stream}", msgspec.json.encode(body))
    async with aclosing(request) as answers:
        async for message in answers:
            if status_of(message) is not None:  # the end of the batch, or nothing is there
                return
            found[int((message.headers or {})["Nats-Sequence"])] = _decoded(name, message.data)


def _decoded(name: FlowName, data: bytes) -> Chunks:
    try:
        chunks: Chunks = codec.decode(data, Chunks)
    except InvalidRequest as error:
        raise FlowBroken(f"{name} cannot be read: {error.message}") from error
    if chunks.v > VERSION:
        raise FlowBroken(f"{name} has version {chunks.v}; this process reads up to {VERSION}")
    return chunks
