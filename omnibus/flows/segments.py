"""The open input of a request: a flow that producers append to, one numbered segment a message, from wherever they are."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable

import msgspec

from omnibus.broker.connection import Connection
from omnibus.errors import (
    FlowBroken,
    InputClosed,
    InvalidRequest,
    Overloaded,
    RequestConflict,
    RequestTooLarge,
    RevisionConflict,
)
from omnibus.flows.decisions import Turn, following_segment, turn_of
from omnibus.flows.flow_name import FlowName
from omnibus.flows.pacing import WINDOW, Pacing
from omnibus.flows.stored_flow import last_message, messages_behind, publish_behind
from omnibus.wire.chunk import Chunks, FlowEnd
from omnibus.wire.out import Fence
from omnibus.wire.payload import BYTES, Payload, Payloads
from omnibus.wire.request import Segment

MOST_SEGMENTS = 10_000
"""Segments of one input, at most."""
READ_TIMEOUT = 30.0
"""Seconds for which a segment waits until the stages have read enough of those before it."""
SEGMENT = "segment"
"""The name of the segment in its chunk."""
_DIGEST, _SENDER = "digest", "sender"
_NOBODY = Fence(0, 0, 0)
"""No attempt at a stage writes an input."""


async def append(
    conn: Connection, name: FlowName, segment: Segment, number: int | None,
    *, most: int, pacing: Pacing, store: Callable[[bytes], Awaitable[Payload]],
) -> int:  # fmt: skip
    """Append a segment and return its number; it is stored when this returns. Idempotent for one with a number.

    Without a number it is the next one. `most` bounds the bytes of the whole input; `store` keeps those of this segment.
    Raises InputClosed behind the end, RequestConflict for another segment under the same number, InvalidRequest when one
    before it is missing, RequestTooLarge at a bound, FlowBroken, Overloaded when the stream is full or `pacing` lets nobody
    go on within READ_TIMEOUT, BrokerUnavailable. The end of an input is not held up.
    """
    encoded = msgspec.msgpack.encode(segment)
    chunk: Payloads = {}
    while True:
        seq, last = await last_message(conn, name)
        turn = number or following_segment(last)
        if turn_of(turn, last) is Turn.KNOWN:
            if _digest_of(await _stored(conn, name, turn)) != _digested(encoded):
                raise RequestConflict(f"another segment has number {turn}", param="number")
            return turn
        _check_turn(turn, last)
        if not segment.is_empty:
            await _wait(pacing, last)
        if not (chunk or segment.is_empty):
            sender = Payload.inline(secrets.token_bytes(8), BYTES)
            chunk = {SEGMENT: await store(encoded), _DIGEST: Payload.inline(_digested(encoded), BYTES), _SENDER: sender}
        message = _message(segment, chunk, last)
        if message.next_offset > most:
            raise RequestTooLarge(
                f"the input would have more than {most} bytes: max_flow_bytes bounds it", param="prompt"
            )
        try:
            await publish_behind(conn, name, message, seq)
        except RevisionConflict:  # somebody else was first, or its own acknowledgement was lost
            if await _stored(conn, name, turn) != message:
                continue
        return turn


async def _wait(pacing: Pacing, last: Chunks | None) -> None:
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            await pacing.wait(0 if last is None else last.next_offset)
    except TimeoutError as error:
        unread = f"{WINDOW >> 20} MiB of the input before this segment are still unread after {READ_TIMEOUT:g} s"
        raise Overloaded(f"{unread}: send it again later") from error


def _check_turn(number: int, last: Chunks | None) -> None:
    match turn_of(number, last):
        case Turn.CLOSED:
            raise InputClosed(f"the input has ended before segment {number}", param="number")
        case Turn.EARLY:
            raise InvalidRequest(f"segment {following_segment(last)} comes before segment {number}", param="number")
    if number > MOST_SEGMENTS:
        raise RequestTooLarge(f"an input has up to {MOST_SEGMENTS} segments", param="number")


def _message(segment: Segment, chunk: Payloads, last: Chunks | None) -> Chunks:
    first, offset = (0, 0) if last is None else (last.next, last.next_offset)
    return Chunks(
        fence=_NOBODY, first=first, offset=offset, chunks=(chunk,) if chunk else (),
        end=FlowEnd() if segment.end else None,
    )  # fmt: skip


async def _stored(conn: Connection, name: FlowName, number: int) -> Chunks:
    """The message of a segment."""
    seq = 0
    while True:
        behind, messages = await messages_behind(conn, name, seq)
        for message in messages:
            if message.first == number - 1:
                return message
        if behind == seq:
            raise FlowBroken(f"{name} is gone")
        seq = behind


def _digest_of(message: Chunks) -> bytes | None:
    return message.chunks[0][_DIGEST].data if message.chunks else _digested(_BARE_END)


def _digested(encoded: bytes) -> bytes:
    return hashlib.sha256(encoded).digest()


_BARE_END = msgspec.msgpack.encode(Segment(end=True))
