"""The one path in: submit a request, follow it, read its result, cancel it.

A producer listens on one `out` subject for all its requests. Messages there may be lost; so a follower also reads
the record after a reconnect and every five seconds, and no lost notice hangs it.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Self

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.client.cancelling import cancel_request
from omnibus.client.channel import Channel
from omnibus.client.event_reader import EventReader
from omnibus.client.following import follow
from omnibus.client.request_events import ClientEvent, Ended, Result
from omnibus.client.segment_sender import send_segment
from omnibus.errors import BrokerError, OmnibusError, Overloaded
from omnibus.ledger.acceptance import admit
from omnibus.ledger.overload import QuotaSlot
from omnibus.payloads.transports import Transports
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.admission import digest, lane_of, new_record, timeout_of
from omnibus.requests.record import BEYOND_DEADLINE, Record
from omnibus.requests.request_checks import validate
from omnibus.requests.request_files import check_files, has_files
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import Ticket
from omnibus.wire.names import check_name
from omnibus.wire.request import REQUEST_MEDIA_TYPE, Request, Segment, decode_request, encode_request

GIVE_UP_TIMEOUT = 1.0
"""Seconds that a submission which has failed takes to remove its traces, at most."""


class Submission:
    """An accepted request."""

    def __init__(self, channel: Channel, record: Record, *, attached: bool, streams: bool = False) -> None:
        """`streams`: sound is delivered while it is made."""
        self._channel, self._record, self._streams = channel, record, streams
        self.attached = attached
        """The same request was submitted before: this is its stream or its answer."""

    @property
    def rid(self) -> str:
        return self._record.rid

    @property
    def ticket(self) -> Ticket:
        return self._record.ticket

    @property
    def state(self) -> RequestState:
        """Its state when it was submitted, or found."""
        return self._record.state

    @property
    def ended(self) -> bool:
        """Whether it had ended already when it was found in the ledger."""
        return self._record.state.terminal

    @property
    def timeout(self) -> float:
        """Seconds within which the request must have ended: until its deadline, by the server's clock, and a little beyond."""
        return max(self._record.ticket.deadline - self._channel.performer.clock.now(), 0.0) + BEYOND_DEADLINE

    def events(self) -> EventReader:
        """The events of the request, until it has ended; the last event is Ended. Raises UnknownRequest when its record is gone.

        To be iterated once, and closed (`contextlib.aclosing`) when left early; the request goes on all the same. A wait for an
        event may be given up, as `asyncio.wait_for` does: the next one gets it.
        """
        return EventReader(self.batches())

    def batches(self) -> AsyncGenerator[list[ClientEvent], None]:
        """The same, as lists of the events that have come: cheaper where many come fast. Empty ones while nothing comes.

        A wait that is given up ends it.
        """
        return self._followed(with_media=self._streams)

    def _followed(self, *, with_media: bool) -> AsyncGenerator[list[ClientEvent], None]:
        return follow(self._channel, self._record.ticket, from_record=self.attached, with_media=with_media)

    async def result(self) -> Result:
        """The result, once the request has ended; at the latest its deadline ends it."""
        async with aclosing(self._followed(with_media=False)) as batches:
            results = [event.result async for events in batches for event in events[-1:] if isinstance(event, Ended)]
        return results.pop()


class Producer:
    """Submits requests over one connection; an async context manager. Safe for many tasks of one loop."""

    def __init__(self, connection: Connection, transports: Transports | None = None) -> None:
        """`transports` has what large outputs are read from besides the broker."""
        self.connection, self._transports = connection, transports or Transports()
        """The connection to submit over; its owner closes it."""
        self.front = f"f{secrets.token_hex(6)}"
        """Token of the `out` subject that this producer listens to."""
        self._channels: dict[str, Channel] = {}
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def submit(
        self, spec: PipelineSpec, request: Request, *, rid: str | None = None, arrival: float | None = None,
        is_single: bool = False,
    ) -> Submission:  # fmt: skip
        """Submit a request; accepted when this returns, and then it ends exactly once.

        With a `rid` of one's own, submitting again attaches to the running request or to its answer. Raises a RequestError
        for what the pipeline cannot serve, RequestConflict when the id was used otherwise, Overloaded at a bound, and
        BrokerUnavailable: then it may have been accepted, and only a submission with the same id tells.

        `is_single`: nobody submits again under this `rid`, as without one: what a failure leaves of the request is ended.

        Deadline and time in the queue count from `arrival`, seconds since the epoch by this host's clock; by default from now.
        """
        tracing = self.connection.tracing
        if tracing.provider is None:
            return await self._submit(spec, request, rid, arrival, is_single=is_single)
        about = {"messaging.system": "nats", "messaging.operation.type": "send", "messaging.operation.name": "publish"}
        about["omnibus.pipeline"] = spec.name
        with tracing.span(f"publish {spec.name}", request.trace, about, kind="producer") as span:
            traced = request if request.trace else replace(request, trace=dict(span.headers))
            return await self._submit(spec, traced, rid, arrival, is_single=is_single)

    async def _submit(
        self, spec: PipelineSpec, request: Request, rid: str | None, arrival: float | None, *, is_single: bool
    ) -> Submission:
        is_single = is_single or rid is None
        rid = check_name(rid, "rid") if rid is not None else uuid.uuid4().hex
        channel = await self.channel(spec.name)
        await channel.direct(spec)
        clock = self.connection.clock
        arrived = clock.now() if arrival is None else clock.at(arrival)
        body = encode_request(request)
        request = decode_request(body)  # a wrong type is refused here: constructors check none
        route = validate(spec, request)
        lane = lane_of(spec, request, channel.open_requests.count(request.tenant, request.lane))
        slot = QuotaSlot(request.tenant, request.lane, lane, arrived + timeout_of(spec, request))
        # Counted from now on: its end may come before it is admitted.
        try:
            is_new = await channel.open_requests.take_slot(spec, rid, slot)
        except Overloaded:
            if await channel.performer.ledger.read(rid) is None:
                raise
            is_new = False  # it was accepted before, and its client has come back
        attached = True
        try:
            if not await self._is_repeat(channel, rid, request):
                await check_files(request, within=slot.deadline - clock.now())
            payload = await channel.store.put(body, REQUEST_MEDIA_TYPE, rid=rid)
            record = new_record(
                spec, request, rid=rid, payload=payload, nonce=secrets.token_hex(8), now=arrived, front=self.front,
                lane=lane, route=route,
            )  # fmt: skip
            channel.expect(rid)
            try:
                admitted = await admit(channel.performer, record)
            except BrokerError:  # not a conflict: that request is another's
                if is_single:
                    await _give_up(channel, rid)
                raise
            attached = admitted.attached
        finally:
            if is_new:
                channel.open_requests.admission_over(rid, admitted=not attached)
        return Submission(channel, admitted.record, attached=attached, streams=request.stream)

    @staticmethod
    async def _is_repeat(channel: Channel, rid: str, request: Request) -> bool:
        """Whether the same request with files was accepted under this id before: they are decoded once."""
        if not has_files(request):
            return False
        entry = await channel.performer.ledger.read(rid)
        return entry is not None and entry.record.ticket.digest == digest(request)

    async def result(self, pipeline: str, rid: str, *, tenant: str | None = None) -> Result:
        """Read the result in the ledger now; raises UnknownRequest, also for one of another `tenant` where one is given."""
        channel = await self.channel(pipeline)
        return await channel.resolve((await channel.entry(rid, tenant)).record)

    async def attach(self, pipeline: str, rid: str, *, tenant: str | None = None) -> Submission:
        """Follow a request that anybody submitted; raises UnknownRequest, also for one of another `tenant` where one is given."""
        channel = await self.channel(pipeline)
        return Submission(channel, (await channel.entry(rid, tenant)).record, attached=True)

    async def wait(self, pipeline: str, rid: str) -> Result:
        """The result of a request that anybody submitted, once it has ended; raises UnknownRequest."""
        return await (await self.attach(pipeline, rid)).result()

    async def cancel(self, pipeline: str, rid: str, *, tenant: str | None = None) -> Result:
        """End a request wherever it is; returns its state after that, which is another when it had ended before.

        Texts that were being made are among the outputs as far as they had come, with the finish reason "abort"; they stay
        in the record. Idempotent. Raises UnknownRequest, also for one of another `tenant` where one is given.
        """
        channel = await self.channel(pipeline)
        return await channel.resolve(await cancel_request(channel, rid, tenant=tenant))

    async def send_segment(
        self, spec: PipelineSpec, rid: str, segment: Segment, *, number: int | None = None, tenant: str | None = None
    ) -> int:
        """Send a further segment of a request with an open input, from any process; stored when this returns its number.

        The first one has number 1. One that is sent again with its number counts once; without a number it is the next one.
        Raises UnknownRequest, also for one of another `tenant` where one is given; InputClosed when the input or the request
        has ended; RequestConflict when another segment has the number, InvalidRequest when one before it is missing, or for
        a request whose input is not open; RequestTooLarge at a bound; Overloaded when the stages are behind and do not read on;
        any RequestError of a request; BrokerUnavailable.
        """
        return await send_segment(await self.channel(spec.name), spec, rid, segment, number=number, tenant=tenant)

    async def channel(self, pipeline: str) -> Channel:
        """Return this producer's channel of one pipeline, opened on first use."""
        if (known := self._channels.get(pipeline)) is not None:
            return known
        async with self._opening:
            if pipeline not in self._channels:
                self._channels[pipeline] = await Channel.open(self.connection, pipeline, self.front, self._transports)
            return self._channels[pipeline]


async def _give_up(channel: Channel, rid: str) -> None:
    """End what was stored of a request that failed on its way. Where that fails, too, its deadline ends it, or its lifetime."""
    with suppress(OmnibusError, TimeoutError):
        async with asyncio.timeout(GIVE_UP_TIMEOUT):
            await cancel_request(channel, rid)
