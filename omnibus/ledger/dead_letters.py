"""Dead letters: requests whose attempts are used up, in the ledger's bucket, and their stored inputs apart.

A dead letter outlives the request's record and everything that its pipeline stores for it. So an input that is not inline is
copied to an object store of its own, whose lifetime is that of the dead letters.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from contextlib import suppress
from operator import attrgetter

from omnibus.broker.bucket import Bucket, transact
from omnibus.broker.connection import Connection
from omnibus.broker.objects import ObjectStore
from omnibus.errors import InvalidRequest, PayloadLost, RevisionConflict
from omnibus.ledger.records import Ledger
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.requests.record import DEAD_TTL, DeadLetter, Record
from omnibus.wire import codec, stores

_READ_AT_ONCE = 32
"""Dead letters that are in memory together where few of many are wanted, each as large as a record."""
log = get_logger(__name__)


class DeadLetters:
    """The dead letters of one pipeline. All methods raise BrokerUnavailable."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._clock = connection.clock
        self._ledger = Ledger(connection, pipeline)
        self._bucket = Bucket(connection, stores.requests_bucket(pipeline))
        self._payloads = ObjectStore(connection, stores.payloads_bucket(pipeline))
        self._inputs = ObjectStore(connection, stores.dead_payloads_bucket(pipeline))

    async def read(self, rid: str) -> DeadLetter | None:
        """The dead letter; None when there is none (any more), and for one that cannot be read."""
        entry = await self._bucket.get_confirmed(stores.dead_letter_key(rid))
        return _decoded(rid, entry.value) if entry is not None else None

    async def all(self) -> list[DeadLetter]:
        """All of them, the oldest first; the answer grows with their number."""
        return sorted([one async for some in self._in_chunks() for one in some], key=attrgetter("died"))

    async def latest(self, limit: int) -> list[DeadLetter]:
        """The `limit` that died last, the last one first. Beside these, a chunk of them is in memory at a time."""
        kept: list[DeadLetter] = []
        async for some in self._in_chunks():
            kept = heapq.nlargest(limit, [*kept, *some], key=attrgetter("died"))
        return kept

    async def _in_chunks(self) -> AsyncIterator[list[DeadLetter]]:
        """Those that can be read, from any copy of the ledger."""
        keys = await self._bucket.keys(stores.DEAD_LETTERS)
        for first in range(0, len(keys), _READ_AT_ONCE):
            found = await self._bucket.get_all(keys[first : first + _READ_AT_ONCE])
            read = [_decoded(key.removeprefix(stores.DEAD_LETTERS), value) for key, value in found.items()]
            yield [one for one in read if one is not None]

    async def input(self, dead_letter: DeadLetter) -> bytes:
        """The request that it keeps, encoded; raises PayloadLost."""
        payload = dead_letter.record.ticket.request
        return payload.data if payload.data is not None else bytes(await self._inputs.get(dead_letter.record.rid))

    async def keep(self, record: Record) -> None:
        """Write the dead letter of a failed request; nothing when an operator has opened it again since. Twice is once.

        Invariant: a process that was stopped on its way here must not bring back the dead letter of a request that has
        ended well meanwhile. So the revision of the dead letter is taken before the record is looked at, and named in the write.
        """
        key = stores.dead_letter_key(record.rid)

        async def attempt() -> None:
            revision = await self._bucket.revision(key)
            entry = await self._ledger.read_latest(record.rid)
            if entry is None or not entry.record.stands(record.nonce, record.ticket.run):
                return  # that run is not the last one any more
            kept = await self.read(record.rid)
            if kept is not None and kept.record == entry.record:
                return
            await self._keep_input(entry.record)
            dead_letter = DeadLetter(record=entry.record, died=self._clock.now())
            await self._bucket.update(key, codec.encode(dead_letter), revision, ttl=DEAD_TTL)

        await transact(attempt, f"the dead letter of request {record.rid!r}")

    async def forget(self, record: Record) -> None:
        """Remove the dead letter of a request that has ended otherwise; that of a later request under its id stays."""
        key = stores.dead_letter_key(record.rid)
        revision = await self._bucket.revision(key)
        dead_letter = await self.read(record.rid)
        if dead_letter is None or dead_letter.record.nonce != record.nonce:
            return
        with suppress(RevisionConflict):  # somebody else removed it, or wrote a later one
            await self._bucket.delete(key, revision)
            await self._inputs.delete(record.rid)

    async def _keep_input(self, record: Record) -> None:
        if (key := record.ticket.request.object_key) is not None:
            with suppress(PayloadLost):  # the dead letter shows the end all the same
                await self._inputs.put(record.rid, await self._payloads.get(key))


def _decoded(rid: str, value: bytes) -> DeadLetter | None:
    try:
        return codec.decode(value, DeadLetter)
    except InvalidRequest as error:
        log.warning(LogEvent.DEAD_LETTER_UNREADABLE, request=rid, error=error.message)
        return None
