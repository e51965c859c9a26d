"""The stored responses of all tenants: a small record of each in a bucket, and a log of what was asked and what came of it.

A log is written before its record: a response that can be found can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.errors import AttemptSuperseded, BrokerUnavailable, PayloadLost, RequestCancelled, RevisionConflict
from omnibus.files.line_log import LineLog
from omnibus.files.tenant_usage import TenantUsage
from omnibus.frontdoor.body_route import off_loop
from omnibus.frontdoor.idempotency_keys import key_conflict
from omnibus.frontdoor.job_records import JobRecords
from omnibus.frontdoor.responses.log_pieces import (
    AskedResponse,
    Piece,
    ResponseEnd,
    asked_in,
    line_of,
    lines_of,
    pieces_in,
)
from omnibus.frontdoor.responses.response_fold import ResponseFold
from omnibus.frontdoor.responses.response_record import PREFIX, ResponseRecord, unknown_response
from omnibus.wire import stores, subjects
from omnibus.wire.request import Request, decode_request

_LOG_BEYOND = 3600.0
"""Seconds that a log outlives its record."""
_ATTEMPTS = 3


class StoredResponse:
    """A response as its log has it, and a hold on the log for who goes on with it."""

    def __init__(self, asked: AskedResponse, fold: ResponseFold, log: LineLog) -> None:
        self.asked, self.fold, self._log = asked, fold, log

    @property
    def nbytes(self) -> int:
        return self._log.nbytes

    async def add(self, pieces: Iterable[Piece]) -> None:
        """Append pieces to the log; raises AttemptSuperseded when somebody else has appended some."""
        added = list(pieces)
        self.fold.replay(added)
        try:
            await self._log.append(lines_of(added))
        except RevisionConflict as error:
            raise AttemptSuperseded("another runner has the response") from error

    def response(self, record: ResponseRecord) -> dict[str, Any]:
        """The response as it is now."""
        is_stopping = record.cancelling and self.fold.end is None
        return {**self.fold.response(), **({"status": "cancelled"} if is_stopping else {})}


class ResponseStore(JobRecords[ResponseRecord]):
    """Keeps responses over one connection. Every method raises BrokerUnavailable; tenants see no response but their own."""

    def __init__(self, connection: Connection, usage: TenantUsage) -> None:
        super().__init__(connection, stores.RESPONSES_BUCKET, PREFIX, ResponseRecord, unknown_response)
        self._usage = usage

    async def check_room(self, owner: str | None) -> None:
        """Raises QuotaExceeded where a tenant's responses take all the room that it has."""

        async def stored() -> int:
            return sum(record.nbytes for record in await self.records.all(owner))

        await self._usage.check(owner, stored)

    async def add(self, record: ResponseRecord, asked: AskedResponse) -> tuple[ResponseRecord, bool]:
        """Store a response in the background that begins, and queue it; the stored one where one of its id is there.

        Beside it, whether it was stored by this call. What was asked for counts in its tenant's quota from now on. Raises
        RequestConflict where another call under its idempotency key has asked for something else.
        """
        if (found := await self.known(record.owner, record.id)) is not None:
            return found, False
        log = self._log(record)
        try:
            await log.append(line_of(asked))
        except RevisionConflict:  # of another call under the same key, which died, or is at it
            pieces = pieces_in([line async for line in log.lines()])
            before = next((piece for piece in pieces if isinstance(piece, AskedResponse)), None)
            if before is None:
                await log.append(line_of(asked))
            elif decode_request(before.request).fingerprint != record.fingerprint:
                raise key_conflict("response") from None
        await self.enqueue(record, subjects.queued_response(record.id))
        return await self._created(replace(record, nbytes=log.nbytes))

    async def _created(self, record: ResponseRecord) -> tuple[ResponseRecord, bool]:
        """The stored record of this id, and whether it is this one."""
        stored = await self.create(record)
        if is_new := stored is record:
            self._usage.add(record.owner, record.nbytes)
        return stored, is_new

    async def keep(self, record: ResponseRecord, asked: AskedResponse, pieces: Iterable[Piece]) -> None:
        """Store a response that has ended; nothing where it is there."""
        data = line_of(asked) + lines_of(pieces)
        await self._keep_log(record, data)
        await self._created(replace(record, nbytes=len(data)))

    async def _keep_log(self, record: ResponseRecord, data: bytes) -> None:
        """Store the whole log of a response, unless it is there."""
        for _ in range(_ATTEMPTS):
            log = self._log(record)
            try:
                await log.append(data)
            except RevisionConflict:
                stored = pieces_in([line async for line in log.lines()])
                if any(isinstance(piece, ResponseEnd) for piece in stored):  # the same request was sent twice
                    return
                await log.remove()  # one that died has left part of it
            else:
                return
        raise BrokerUnavailable(f"others write the log of response {record.id}")

    async def read(self, record: ResponseRecord) -> StoredResponse:
        """A response as its log has it now; raises PayloadLost when that is gone."""
        log = self._log(record)
        lines = [line async for line in log.lines()]
        asked, fold = await off_loop(log.nbytes, _folded, lines, record.id)
        return StoredResponse(asked, fold, log)

    async def request(self, record: ResponseRecord) -> Request:
        """The request that a response is; raises PayloadLost, and RequestCancelled where none is to be submitted any more."""
        stored = await self.read(record)
        if stored.fold.end is not None or (await self.find(record.owner, record.id)).cancelling:
            raise RequestCancelled
        if not stored.asked.request:
            raise PayloadLost(f"the request of response {record.id} was not kept")
        return decode_request(stored.asked.request)

    async def end(self, record: ResponseRecord, status: str, nbytes: int) -> None:
        """Note in its record that a response has ended, and how many bytes its log has; idempotent."""
        grown = 0

        def ended(known: ResponseRecord) -> ResponseRecord:
            nonlocal grown
            if known.ended is not None:
                return known
            grown = nbytes - known.nbytes
            return replace(known, ended=self.now(), nbytes=nbytes, status=status)

        if await self.change(record, ended) is None:  # it was deleted
            await self._log(record).remove()
        else:
            self._usage.add(record.owner, grown)

    async def remove(self, record: ResponseRecord) -> None:
        """Remove a response and its log, which goes first: once the record is gone, another call may begin one under this id."""
        await self._log(record).remove()
        await self.bucket.delete(self.key(record))
        self._usage.add(record.owner, -record.nbytes)

    def _log(self, record: ResponseRecord) -> LineLog:
        return LineLog(self.connection, record.id, ttl=self.left(record) + _LOG_BEYOND)


def _folded(lines: Iterable[bytes], response_id: str) -> tuple[AskedResponse, ResponseFold]:
    pieces = pieces_in(lines)
    asked = asked_in(pieces, response_id)
    fold = ResponseFold(asked)
    fold.replay(piece for piece in pieces if not isinstance(piece, AskedResponse))
    return asked, fold


def item_list(asked: AskedResponse, response: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation up to the end of a response, as the input of the next one."""
    return [*asked.items, *response["output"]]
