"""Payloads between stages: small ones travel inline in the message, larger ones through the object store.

An ack never frees a payload, since the message may come again; the request's end does. A payload that the record refers to
lasts as long as the record: the store's own TTL, longer than any request and its answer may live, removes it, and any leak.
"""

from __future__ import annotations

import uuid

from omnibus.broker.connection import Connection
from omnibus.broker.objects import ObjectStore
from omnibus.errors import BrokerRefused, Overloaded, PayloadLost
from omnibus.pipeline.spec import PayloadRule
from omnibus.wire import subjects
from omnibus.wire.payload import INLINE_LIMIT, ObjectKey, Payload

_FULL = 10077
"""The server's code for a stream at its bound."""


class PayloadStore:
    """Payloads of one pipeline. Writing and reading raise BrokerUnavailable, writing also Overloaded when the store is full."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._objects = ObjectStore(connection, subjects.payloads_bucket(pipeline))

    async def put(
        self,
        data: bytes,
        media_type: str,
        *,
        rid: str,
        rule: PayloadRule = PayloadRule.AUTO,
        limit: int = INLINE_LIMIT,
        lasting: bool = False,
    ) -> Payload:
        """Store these bytes as a payload, which is readable from everywhere once this returns.

        AUTO keeps up to `limit` bytes inline; `lasting` payloads stay when the request has ended.
        """
        if rule is PayloadRule.INLINE or (rule is PayloadRule.AUTO and len(data) <= limit):
            return Payload.inline(data, media_type)
        key = ObjectKey(f"{rid}.{uuid.uuid4().hex}")
        try:
            await self._objects.put(key.key, data, group="" if lasting else rid)
        except BrokerRefused as refused:
            if refused.err_code != _FULL:
                raise
            raise Overloaded(
                f"the payload store {self._objects.name} is full: its bound is max_stored_bytes"
            ) from refused
        return Payload(media_type=media_type, nbytes=len(data), location=key)

    async def get(self, payload: Payload) -> bytes:
        """Read the bytes; raises PayloadLost when no location has them any more."""
        if payload.data is not None:
            return payload.data
        if payload.location is None:
            raise PayloadLost("a payload has neither bytes nor a location")
        return await self._objects.get(payload.location.key)
