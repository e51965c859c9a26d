"""The open input of a request as its first stages read it: the request itself, and the segments that follow it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from omnibus.errors import InvalidRequest, PayloadLost
from omnibus.flows.reader import FlowReader
from omnibus.flows.segments import SEGMENT
from omnibus.payloads.store import PayloadStore
from omnibus.wire.payload import BYTES, Payload, Payloads
from omnibus.wire.request import Request, Segment
from omnibus.workers.engines.protocol import Outputs
from omnibus.workers.flow_input import FlowInput

T = TypeVar("T")


class OpenInput(FlowInput):
    """Reads it for one task; a stage that has finished before its end has closed it."""

    reads_rest = False

    def __init__(self, reader: FlowReader, store: PayloadStore, request: Request) -> None:
        super().__init__(reader, store)
        first = msgspec.msgpack.encode(Segment(prompt=request.prompt, messages=request.messages))
        self._chunks.append({SEGMENT: Payload.inline(first, BYTES)})
        self._was_read = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of some work; raises InvalidRequest when it has not looked at the input, of which it knows a part only."""
        result = await super().run(work)
        if not self._was_read:
            raise InvalidRequest("the stage takes no open input: it has not read it", param="resumable")
        return result

    async def next(self) -> Payloads | None:
        self._was_read = True
        return await super().next()

    async def value(self, chunk: Payloads) -> Outputs:
        """The parts of a segment, by the names that a stage finds them under."""
        data = bytes(await self._store.get(chunk[SEGMENT], rid=self._reader.name.rid))
        try:
            segment = msgspec.msgpack.decode(data, type=Segment)
        except msgspec.DecodeError as error:
            raise PayloadLost(f"a segment of {self._reader.name} cannot be read: {error}") from error
        given: dict[str, Any] = {"text": segment.as_request().text()}
        if segment.messages is not None:
            given["messages"] = segment.messages
        if isinstance(segment.prompt, tuple):
            given["token_ids"] = segment.prompt
        return given
