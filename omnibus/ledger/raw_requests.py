"""Raw requests that wait in their stream: published by anybody, and not admitted yet. All raise BrokerUnavailable."""

from __future__ import annotations

import base64
from email.parser import BytesHeaderParser
from typing import NamedTuple

from omnibus.broker.connection import Connection
from omnibus.wire import stores, subjects
from omnibus.wire.request import REPLY_HEADER


class Raw(NamedTuple):
    """A raw request as its producer published it."""

    data: bytes
    front: str | None
    """The reply token that the producer gave; unchecked."""


async def find_raw(connection: Connection, pipeline: str, rid: str) -> Raw | None:
    """The one under this id, which stays; None when there is none. An orchestrator may have it in hand."""
    body = {"last_by_subj": subjects.request(pipeline, rid)}
    found = await connection.find(f"STREAM.MSG.GET.{stores.requests_stream(pipeline)}", body)
    if found is None:
        return None
    message = found["message"]
    _, _, headers = base64.b64decode(message.get("hdrs", "")).partition(b"\r\n")
    return Raw(base64.b64decode(message.get("data", "")), BytesHeaderParser().parsebytes(headers).get(REPLY_HEADER))


async def remove_raw(connection: Connection, pipeline: str, rid: str) -> None:
    """Take it out of the stream; idempotent."""
    body = {"filter": subjects.request(pipeline, rid)}
    await connection.api(f"STREAM.PURGE.{stores.requests_stream(pipeline)}", body)
