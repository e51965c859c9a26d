"""Raw requests that wait in their stream: published by anybody, and not admitted yet."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from email.parser import BytesHeaderParser

from omnibus.broker.connection import Connection
from omnibus.wire import subjects
from omnibus.wire.request import REPLY_HEADER


@dataclass(frozen=True, slots=True)
class Raw:
    """A raw request as its producer published it."""

    data: bytes
    front: str | None
    """The reply token that the producer gave; unchecked."""


class RawRequests:
    """The stream of raw requests of one pipeline. Every method raises BrokerUnavailable."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._connection, self._pipeline = connection, pipeline
        self._stream = subjects.requests_stream(pipeline)

    async def find(self, rid: str) -> Raw | None:
        """The one under this id, which stays; None when there is none. An orchestrator may have it in hand."""
        body = {"last_by_subj": subjects.request(self._pipeline, rid)}
        found = await self._connection.find(f"STREAM.MSG.GET.{self._stream}", body)
        if found is None:
            return None
        message = found["message"]
        _, _, headers = base64.b64decode(message.get("hdrs", "")).partition(b"\r\n")
        front = BytesHeaderParser().parsebytes(headers).get(REPLY_HEADER)
        return Raw(base64.b64decode(message.get("data", "")), front)

    async def remove(self, rid: str) -> None:
        """Take it out of the stream; idempotent."""
        body = {"filter": subjects.request(self._pipeline, rid)}
        await self._connection.api(f"STREAM.PURGE.{self._stream}", body)
