"""Send a further segment of a request with an open input."""

from __future__ import annotations

from contextlib import suppress

from omnibus.client.channel import Channel
from omnibus.errors import BrokerError, FlowBroken, InputClosed, InvalidRequest
from omnibus.flows.flow_name import FlowName
from omnibus.flows.pacing import Pacing
from omnibus.flows.segments import append
from omnibus.flows.writer import CHUNK_INLINE
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import read_replicas
from omnibus.requests.record import Record
from omnibus.requests.request_checks import check_segment
from omnibus.requests.request_files import check_files
from omnibus.requests.state import RequestState
from omnibus.wire.payload import Payload
from omnibus.wire.request import Segment, checked_segment


async def send_segment(
    channel: Channel, spec: PipelineSpec, rid: str, segment: Segment, *, number: int | None, tenant: str | None
) -> int:
    """See `Producer.send_segment`."""
    record = (await channel.entry(rid, tenant)).record
    _check_open(record)
    if number is not None and number < 1:
        raise InvalidRequest("segments have numbers from 1 on; the request itself is 0", param="number")
    segment = checked_segment(segment)
    check_segment(spec, record.ticket.route, segment)
    left = record.ticket.deadline - channel.performer.clock.now()
    await check_files(segment.as_request(), within=max(left, 0.0))

    async def store(encoded: bytes) -> Payload:
        return await channel.store.put(encoded, rid=rid, limit=CHUNK_INLINE)

    name = FlowName.of_input(record.ticket)
    readers = [stage.stage_id for stage in record.ticket.route.stages if not stage.sources]

    async def is_read_silently() -> bool:
        """Whether a replica reads it that tells nobody how far: one of an earlier version, or with credentials made for that."""
        _check_open(await _latest(channel, rid))
        found = await read_replicas(channel.connection, spec.name)
        return any(one.alive and one.stage_id in readers and rid in dict(one.claims) for one in found)

    lease = spec.heartbeat_timeout
    pacing = Pacing(channel.connection, name, readers, lease=lease, goes_on_unread=is_read_silently)
    try:
        number = await append(
            channel.connection, name, segment, number, most=spec.max_flow_bytes, pacing=pacing, store=store
        )  # fmt: skip
    except (FlowBroken, InvalidRequest):  # an input that was removed with its request looks so, too
        _check_open(await _latest(channel, rid))
        raise
    finally:
        await pacing.close()
    latest = await _latest(channel, rid)
    if latest.state.terminal:  # meanwhile: nobody else removes what came behind its end
        with suppress(BrokerError):
            await channel.performer.report_orphans(rid)
        # A request that is done may have read it. The first one may also be in an input that was removed and begun again.
        if latest.state is not RequestState.DONE or number == 1:
            _check_open(latest)
    return number


async def _latest(channel: Channel, rid: str) -> Record:
    return channel.known(await channel.performer.ledger.read_latest(rid), rid).record


def _check_open(record: Record) -> None:
    if not record.ticket.resumable and record.ticket.route.stages:  # without any it was never admitted
        what = f"the input of request {record.rid!r} was whole; submit a request as resumable to send more"
        raise InvalidRequest(what, param="resumable")
    if record.state.terminal:
        raise InputClosed(f"request {record.rid!r} is {record.state} and takes no further input", param="request_id")
