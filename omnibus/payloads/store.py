"""Payloads between stages: put where their readers reach them at the least cost, and read from the first place that has them.

An ack never frees a payload, since the message may come again; the request's end does. A payload that the record refers to
lasts as long as the record: the store's own TTL, longer than any request and its answer may live, removes it, and any leak.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

from omnibus.broker.connection import Connection
from omnibus.broker.objects import ObjectStore
from omnibus.errors import BrokerRefused, Overloaded, PayloadLost
from omnibus.payloads.fetching import Fetching
from omnibus.payloads.memory import HostMemory
from omnibus.payloads.packing import HEAVY, Packed, unpack
from omnibus.payloads.peer import pull
from omnibus.payloads.placement import Place, places
from omnibus.payloads.targets import Targets
from omnibus.payloads.transports import Transports
from omnibus.payloads.write_through import WriteThrough
from omnibus.pipeline.spec import PayloadRule
from omnibus.wire import stores
from omnibus.wire.codec import Buffer
from omnibus.wire.envelope import Ticket
from omnibus.wire.payload import BYTES, INLINE_LIMIT, Location, MemorySlot, ObjectKey, Payload, PeerSlot, StoredOutput

_BROKER_ONLY = Transports()
_FULL = 10077
"""The server's code for a stream at its bound."""
_MOST_TARGETS = 256 << 20
"""Bytes of unused buffers that are kept for payloads from peers."""
_LENT = 3600.0
"""Seconds after which the object store's own lifetime is left to end what readers elsewhere had stored."""
_MOST_PULLS = 4
"""Payloads that are pulled from peers at the same time."""
_PLACES = {MemorySlot: "memory", PeerSlot: "peer", ObjectKey: "object", StoredOutput: "outputs"}
EXPIRY_MARGIN = 60.0
"""Seconds beyond a request's deadline after which no reader can want its payloads."""


class PayloadStore:
    """Payloads of one pipeline. Writing and reading raise BrokerUnavailable, writing also Overloaded when the store is full."""

    def __init__(
        self, connection: Connection, pipeline: str, transports: Transports = _BROKER_ONLY, *, stage: str = ""
    ) -> None:
        """Places that `transports` lacks are not used, and what is there cannot be read. `stage`: whose metrics these are."""
        self._objects = ObjectStore(connection, stores.payloads_bucket(pipeline))
        self._metrics, self._stage = connection.metrics, stage
        self._connection = connection
        self._pipeline, self._memory, self._peer, self._outputs = (
            pipeline,
            transports.memory,
            transports.peer,
            transports.outputs,
        )
        self._targets = Targets(_MOST_TARGETS)
        self._pulls = ThreadPoolExecutor(_MOST_PULLS, "payload-pull")  # apart: a slow peer must not hold up other work
        self._lent: dict[str, float] = {}
        """Requests for which something was written to the object store behind their messages, and when the last of it was."""
        self._write_through = WriteThrough(self._write_late)
        self._fetching = Fetching(connection, pipeline, self._store_for_others)

    async def __aenter__(self) -> Self:
        """Serve what is in this host's memory to readers elsewhere; raises BrokerUnavailable."""
        if self._memory is not None:
            self._measure(self._memory)
            await self._fetching.listen(self._memory.host)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._fetching.close()
        await self._write_through.close()
        self._pulls.shutdown(wait=False, cancel_futures=True)

    async def put(
        self,
        data: bytes | Packed,
        media_type: str = BYTES,
        *,
        rid: str,
        ticket: Ticket | None = None,
        rule: PayloadRule = PayloadRule.AUTO,
        limit: int = INLINE_LIMIT,
        lasting: bool = False,
    ) -> Payload:
        """Store a payload, which is readable from everywhere that its rule reaches once this returns.

        AUTO keeps up to `limit` bytes inline; `lasting` payloads stay when the request has ended. A stage names the `ticket`
        that it works for: what it hands over within that run may be in shared memory, and what it delivers in the storage of
        outputs.
        """
        given, began = Packed.whole(data, media_type) if isinstance(data, bytes) else data, time.monotonic()
        memory = self._memory is not None and ticket is not None and not lasting
        found: tuple[Location, ...] = ()
        outputs = self._outputs is not None and ticket is not None and lasting
        for place in places(rule, given.nbytes, limit=limit, memory=memory, outputs=outputs):
            match place:
                case Place.INLINE:
                    return Payload.inline(given.joined(), given.media_type)
                case Place.MEMORY:
                    assert ticket is not None
                    found = await self._put_in_memory(given, ticket, rule)
                    if not found:
                        self._metrics.payloads_spilled.labels(self._pipeline).inc()
                case Place.OUTPUTS:
                    assert self._outputs is not None
                    found = (await self._outputs.put(given, self._pipeline, rid),)
                case Place.OBJECT:
                    found = (await self._put_object(given, rid, lasting=lasting),)
            if found:
                self._count("put", place.name.lower(), given.nbytes, began)
                break
        assert found, "the object store, which raises when it is full, is the last of all places"
        return Payload(
            media_type=given.media_type, nbytes=given.nbytes, locations=found, lead=given.lead, viewed=given.viewed
        )

    async def get(self, payload: Payload, into: memoryview | None = None, *, rid: str = "") -> Buffer:
        """Read the bytes, into a buffer of their size where one is given; raises PayloadLost when no location has them.

        Without the request that they are of, memory of other hosts is out of reach.
        """
        if payload.data is not None:
            return payload.data if into is None else _filled(into, payload.data)
        why, began = "a payload has neither bytes nor a location", time.monotonic()
        for location in sorted(payload.locations, key=self._is_elsewhere):
            try:
                data = await self._from(location, payload, into, rid)
            except PayloadLost as error:
                why = (
                    error.message
                )  # not the error: it would keep this frame, and so the buffer, until garbage is collected
            else:
                self._count("get", _PLACES[type(location)], payload.nbytes, began)
                return data
        raise PayloadLost(why)

    async def value(self, payload: Payload, rid: str) -> Any:
        """Read a stage's output as its maker gave it; raises PayloadLost, and InvalidRequest for what cannot be unpacked."""
        data = await self.get(payload, rid=rid)
        if len(data) - payload.viewed <= HEAVY:
            return unpack(data, payload.media_type)
        return await asyncio.to_thread(unpack, data, payload.media_type)

    async def sweep(self, now: float, age: float) -> list[str]:
        """Release what nobody wants at `now` (since the epoch), and take over what the dead of this host left.

        Returns the requests that have had something in memory for longer than `age` seconds, and those of other hosts' readers:
        an orchestrator knows whether they have ended.
        """
        held = list[str]()
        if self._memory is not None:
            held = await asyncio.to_thread(self._memory.sweep, now, age)
            self._measure(self._memory)
        self._targets.trim()
        oldest = time.monotonic() - _LENT
        self._lent = {rid: since for rid, since in self._lent.items() if since > oldest}
        return list(dict.fromkeys((*held, *self._lent)))

    def free(self, rid: str, run: int | None) -> None:
        """Free what this run of a request and earlier ones (None: all) have in this host's memory; idempotent.

        What is in the object store goes with the request's end, for all hosts at once.
        """
        if self._memory is not None:
            self._memory.free(rid, sys.maxsize if run is None else run)

    def forget(self, rid: str, run: int, asked: float) -> None:
        """Free what an ended run has here: an orchestrator that was `asked` then (monotonic) has removed what was stored."""
        self.free(rid, run)
        if self._lent.get(rid, asked) <= asked:
            self._lent.pop(rid, None)

    async def written(self) -> list[str]:
        """Return when what is written behind messages is stored: the requests of that, and of what readers elsewhere wanted."""
        await self._write_through.close()
        return list(self._lent)

    def _measure(self, memory: HostMemory) -> None:
        for status, nbytes in zip(("held", "free"), memory.usage(), strict=True):
            self._metrics.memory_bytes.labels(self._pipeline, status).set(nbytes)

    def _count(self, direction: str, place: str, nbytes: int, began: float) -> None:
        labels = (self._pipeline, self._stage, place, direction)
        self._metrics.payload_bytes.labels(*labels).inc(nbytes)
        seconds = time.monotonic() - began
        self._metrics.payload_seconds.labels(*labels).observe(seconds)
        tracing = self._connection.tracing
        if tracing.provider is not None:
            about = {"omnibus.pipeline": self._pipeline, "omnibus.payload.location": place}
            tracing.past(f"payload {direction}", seconds, {**about, "omnibus.payload.bytes": nbytes})

    def _is_elsewhere(self, location: Location) -> bool:
        """Whether it is in another host's memory: the last that is tried, as that takes the broker."""
        return isinstance(location, MemorySlot) and (self._memory is None or not self._memory.reaches(location))

    async def _from(self, location: Location, payload: Payload, into: memoryview | None, rid: str) -> Buffer:
        match location:
            case ObjectKey(key):
                target = self._targets.take(payload.nbytes, payload.lead) if into is None and payload.lead else into
                return await self._objects.get(key, into=target)
            case StoredOutput() if self._outputs is not None:
                return await self._outputs.get(location, payload.nbytes, into)
            case StoredOutput(url):
                raise PayloadLost(
                    f"the output is at {url}: set OMNIBUS_OUTPUT_STORE as the workers have it, or fetch it there"
                )
            case PeerSlot():
                target = self._targets.take(payload.nbytes, payload.lead) if into is None else into
                await asyncio.get_running_loop().run_in_executor(self._pulls, pull, location, target)
                return target
            case MemorySlot() if self._memory is not None and self._memory.reaches(location):
                read = partial(self._memory.read, location, payload.nbytes, payload.lead, into)
                return read() if self._memory.is_quick(payload.nbytes, location) else await asyncio.to_thread(read)
            case MemorySlot() if rid:
                stored = await self._fetching.fetched(location, payload, rid)
                return await self._from(stored, payload, into, rid)
        raise PayloadLost(f"a payload is in the memory of another host, {location.host}")

    async def _store_for_others(self, payload: Payload, rid: str) -> ObjectKey:
        """Put a payload of this host's memory into the object store, where a reader elsewhere wants it."""
        assert self._memory is not None
        slots = [place for place in payload.locations if isinstance(place, MemorySlot) and self._memory.reaches(place)]
        if not slots:
            raise PayloadLost("it is not in this host's memory")
        key = _new_key(rid)
        await self._write_late(key, slots[0], payload.nbytes, rid)
        return key

    async def _put_in_memory(self, packed: Packed, ticket: Ticket, rule: PayloadRule) -> tuple[Location, ...]:
        """The slot and the peer that serves it, in the order of the rule; empty when there is no room."""
        assert self._memory is not None
        expires = ticket.deadline + EXPIRY_MARGIN
        put = partial(self._memory.put, packed, rid=ticket.rid, run=ticket.run, expires=expires)
        slot = put() if self._memory.is_quick(packed.nbytes) else await asyncio.to_thread(put)
        if slot is None:
            return ()
        found: list[Location] = [slot]
        if self._peer is not None and rule is not PayloadRule.SHM:
            peer = self._peer.location(slot, packed.nbytes)
            found.insert(0 if rule is PayloadRule.PEER else 1, peer)
        if rule is PayloadRule.DURABLE:
            found.append(key := _new_key(ticket.rid))
            await self._write_through.add(key, slot, packed.nbytes, ticket.rid)
        return tuple(found)

    async def _write_late(self, key: ObjectKey, slot: MemorySlot, nbytes: int, rid: str) -> None:
        """Write an object whose request may have ended meanwhile: an orchestrator is asked, and removes it then."""
        assert self._memory is not None
        data = await asyncio.to_thread(self._memory.read, slot, nbytes)
        try:
            await self._put_object(Packed.of((data,), BYTES), rid, key=key)
        finally:
            self._lent[rid] = time.monotonic()  # not before: it would be asked about before it is written

    async def _put_object(
        self, packed: Packed, rid: str, *, lasting: bool = False, key: ObjectKey | None = None
    ) -> ObjectKey:
        key = key or _new_key(rid)
        try:
            await self._objects.put(key.key, *packed.parts, group="" if lasting else rid)
        except BrokerRefused as refused:
            if refused.err_code != _FULL:
                raise
            raise Overloaded(
                f"the payload store {self._objects.name} is full: its bound is max_stored_bytes"
            ) from refused
        return key


def _new_key(rid: str) -> ObjectKey:
    return ObjectKey(f"{rid}.{uuid.uuid4().hex}")


def _filled(into: memoryview, data: Buffer) -> memoryview:
    if len(into) != len(data):
        raise PayloadLost(f"a payload has {len(data)} bytes and not {len(into)}")
    into[:] = data
    return into
